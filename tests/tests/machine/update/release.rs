//! The release of docs/image.md by the commands of the page: a root document, a program that has it, and a bundle of this
//! program.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use alknet_image::{ImageForm, OutputRole, UPDATE_ROOT_FILE};
use alknet_tests::tools::variable;
use alknet_tests::{BuiltImageFolder, MachineNode, TestBench};

use super::bundle::{LATER, ReleaseKeys};
use super::good::{NUMBER, RELEASE_PAGE};
use super::program::{FILE, changed};
use super::{FIRST, SECOND};
use crate::forms::{run_commands, shell_blocks};

/// The section with the commands.
const SECTION: &str = "\n## Release it\n";
/// How the page builds the image. The test builds the same program from files, and no disk.
const BUILDS: &str = "cargo xtask image --form raw --form uki ";
/// The variable that names systemd's EFI stub.
const STUB_VARIABLE: &str = "ALKNET_TEST_STUB";
/// The days after which the documents of the page expire.
const DAYS: [&str; 3] = ["2032-01-31", "2028-01-31", "2027-03-31"];
/// The machine of the page.
const MACHINE: &str = "edge-1";

/// The folder of a publisher, whose image an owner has signed with another key, too.
pub(super) struct PageRelease {
    folder: PathBuf,
    /// The last command of the page, which updates a machine.
    update: &'static str,
}

impl PageRelease {
    /// Runs the commands of the page but the last one.
    pub(super) fn make(bench: &TestBench) -> Self {
        let folder = bench.path().join("release");
        let made = fs::create_dir(&folder);
        // Where the command line looks for its keys.
        let made = made.and_then(|()| symlink(bench.admin().state(), folder.join("alknet")));
        made.expect("the folder is ours");
        let (_, section) = RELEASE_PAGE.split_once(SECTION).expect("the section");
        let block = shell_blocks(section)[0].trim_end();
        let (commands, update) = block.rsplit_once('\n').expect("several commands");
        let kernel = BuiltImageFolder::get().file(ImageForm::Direct, OutputRole::Kernel);
        let builds = format!(
            "alknet image build --kernel '{}' --stub '{}' --form uki ",
            kernel.display(),
            variable(STUB_VARIABLE)
        );
        assert!(commands.contains(BUILDS), "{commands}");
        let mut commands = commands.replace(BUILDS, &builds);
        for day in DAYS {
            assert!(commands.contains(day), "{day} in {commands}");
            commands = commands.replace(day, &LATER.to_string());
        }
        run_commands(&folder, &commands);
        let release = Self { folder, update };
        release.sign_by_owner();
        release
    }

    /// Makes a bundle of the same image that another key has signed.
    fn sign_by_owner(&self) {
        let commands = format!(
            "openssl genpkey -algorithm ed25519 -out owner.pem\n\
             alknet image root --key owner.pem --expires {LATER} --out owner.root.json\n\
             alknet image bundle out --key owner.pem --root owner.root.json --number {NUMBER} --floor {FIRST} \
             --expires {LATER} --timestamp-expires {LATER} --out owner.tar"
        );
        run_commands(&self.folder, &commands);
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.join(name)).expect("the commands made it")
    }

    /// The program of the release, whose version is [`SECOND`].
    pub(super) fn program(&self) -> Vec<u8> {
        self.read(&format!("out/alknet_{SECOND}.efi"))
    }

    /// The program `base` with the root document of the release.
    pub(super) fn with_root(&self, base: &[u8]) -> Vec<u8> {
        let root = self.read("1.root.json");
        changed(base, FIRST, "", &[(UPDATE_ROOT_FILE, FILE, &root)])
    }

    /// The bundle that the release key has signed.
    pub(super) fn bundle(&self) -> PathBuf {
        self.folder.join("bundle.tar")
    }

    /// The bundle that the owner has signed.
    pub(super) fn owner_bundle(&self) -> PathBuf {
        self.folder.join("owner.tar")
    }

    pub(super) fn owner_keys(&self) -> ReleaseKeys {
        let text = String::from_utf8(self.read("owner.pem"));
        ReleaseKeys::from_pem(&text.expect("PEM"))
    }

    /// The last command of the page, as a dry run.
    pub(super) fn plan_update(&self, node: &MachineNode) {
        assert!(self.update.contains(MACHINE), "{}", self.update);
        let update = self.update.replace(MACHINE, &node.target());
        run_commands(&self.folder, &format!("{update} --dry-run"));
    }
}
