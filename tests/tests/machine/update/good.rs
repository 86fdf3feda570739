//! An update to a good version: what it has to leave behind, and by a hub and a server under a BIOS. Under UEFI an
//! administrator has both this update and the way back (`administrator.rs`), and `update_cuts.rs` cuts what they wrote.

use std::path::{Path, PathBuf};
use std::thread;

use alknet_boot_state::BootSlot;
use alknet_qemu::{ConsoleMark, DiskController, MachineKind, VirtioDisk, VmBuilder};
use alknet_tests::{CliRunner, MachineNode, TestBench};
use serde_json::json;

use super::administrator::{ReleaseChannel, WORKERS};
use super::bundle::{ReleaseDraft, ReleaseKeys, write};
use super::damage::finds_damage;
use super::disk::{SlotDiskImage, slot_path};
use super::hub::{MachineHub, WORKER};
use super::page::UpdatePageReader;
use super::program::versioned;
use super::release::PageRelease;
use super::{
    FIRST, SECOND, config, confirm, has_token, is_refused, machine, make_token, roll_back_at,
    serving, stands, update,
};
use crate::configuration::{NO_VAULT, document};

pub(super) const PAGE: &str = include_str!("../../../../docs/update.md");
/// The page whose release the machine takes.
pub(super) const RELEASE_PAGE: &str = include_str!("../../../../docs/image.md");

/// The note of a token that an update keeps.
pub(crate) const KEPT: &str = "stays";
/// The number of the good release's documents: above those of a hub's lies.
pub(crate) const NUMBER: u64 = 20;
/// A version below the floor of the good release, which is [`FIRST`].
const OLDER: &str = "0.0.9";

/// How long after its download a version starts: long enough for the command on a busy host, which sends the moment.
const START_IN: &str = "20s";

/// Under BIOS GRUB counts the tries and starts the slots, here on an NVMe disk. The image has the root document of the
/// release keys, and the configuration the owner's keys, which replace them. The machine's hub lies to it, and then updates
/// it. The owner takes the keys out of the configuration, the machine goes back, and from then on it takes bundles of the
/// release: one from a server, at a moment. Afterwards the machine notices what the disk does wrong.
#[test]
fn update_by_a_hub_under_bios_after_its_lies_and_faults_of_its_storage_are_found() {
    let bench = TestBench::new();
    let release = PageRelease::make(&bench);
    let good = GoodUpdate::released(&bench, &release);
    let channel = ReleaseChannel::new(&bench, &release.bundle());
    let hub = MachineHub::start(&bench);
    let promised = hub.promise(&good.keys);
    let more = channel.config() + &hub.join_entry();
    let config = good.config(&bench, &more);
    let disk = VirtioDisk::file(bench.raw()).on(DiskController::Nvme);
    let mut node = good.serving(&bench, machine(MachineKind::Q35, disk, &config));
    let disk = SlotDiskImage::new(bench.raw());
    let identity = node.identity().to_owned();
    channel.store_root(bench.admin(), &node);
    hub.has_worker(WORKER, &identity);
    hub.lies_change_nothing(&promised, &node, &disk, &good.keys);

    let reader = UpdatePageReader::new(&bench, PAGE, &good.bundle);
    reader.add_node("attic", hub.target());
    let mark = node.vm().console().mark();
    let said = reader.follow(WORKERS, node.vm());
    let line = format!("ring 1  {WORKER}  confirmed\n");
    assert!(said.contains(&line), "{said}");
    good.is_confirmed(&mut node, mark, &identity);
    good.is_on(&disk);
    hub.reports_update(WORKER, &identity);

    let before = disk.contents();
    good.refuses_below_floor(&bench, &node);
    assert!(disk.contents() == before, "the refusal changed something");
    refuses_foreign(bench.admin(), &node, &release.bundle());
    remove_owner_keys(&bench, &node, &more);
    goes_back(bench.admin(), &mut node);
    refuses_foreign(bench.admin(), &node, &good.bundle);
    release.plan_update(&node);
    let mark = update_at_moment(bench.admin(), &mut node, &channel.bundle());
    good.is_confirmed(&mut node, mark, &identity);
    good.is_on(&disk);
    // This program was built with the root document in it.
    stands(&node, &[("keys", "release")]);
    finds_damage(bench.admin(), &node, &disk);
}

/// Most bytes of a bundle with the delta between two programs that differ by their versions.
const DELTA_BUNDLE_BYTES_MAX: u64 = 256 << 10;

/// An update from the program of the built image, [`FIRST`], to [`SECOND`].
pub(crate) struct GoodUpdate {
    pub(crate) keys: ReleaseKeys,
    /// The file of the bundle.
    pub(crate) bundle: PathBuf,
    /// Those of slot a and slot b after the update.
    pub(crate) programs: [Vec<u8>; 2],
    /// The loader from before the update.
    loader: Vec<u8>,
}

impl GoodUpdate {
    /// The owner's.
    pub(crate) fn keys() -> ReleaseKeys {
        ReleaseKeys::one(7)
    }

    /// The bundle has only what differs from the first program.
    pub(crate) fn new(bench: &TestBench) -> Self {
        let keys = Self::keys();
        let disk = SlotDiskImage::new(bench.raw());
        let first = disk.program(BootSlot::A).expect("the image has it");
        let second = versioned(&first, SECOND);
        let mut draft = ReleaseDraft::new(NUMBER, SECOND);
        draft.floor = Some(FIRST);
        let bundle = keys.bundle_from(bench.path(), &draft, &second, Some(&first));
        let bytes = std::fs::metadata(&bundle).expect("written").len();
        assert!(bytes <= DELTA_BUNDLE_BYTES_MAX, "{bytes}");
        Self {
            keys,
            bundle,
            programs: [first, second],
            loader: disk.loader(),
        }
    }

    /// The bundle has the whole program of a release, and is signed by the owner. Slot a gets a program with the root
    /// document of the release.
    fn released(bench: &TestBench, release: &PageRelease) -> Self {
        let disk = SlotDiskImage::new(bench.raw());
        let first = disk.program(BootSlot::A).expect("the image has it");
        let first = release.with_root(&first);
        disk.put(&slot_path(BootSlot::A), &first);
        Self {
            keys: release.owner_keys(),
            bundle: release.owner_bundle(),
            programs: [first, release.program()],
            loader: disk.loader(),
        }
    }

    /// The configuration of the machine, with `more` behind its table `[update]`.
    pub(crate) fn config(&self, bench: &TestBench, more: &str) -> String {
        config(bench, &self.keys) + more
    }

    /// This machine before the update, with a token.
    pub(crate) fn serving(&self, bench: &TestBench, vm: VmBuilder) -> MachineNode {
        let node = serving(bench, vm);
        stands(
            &node,
            &[
                ("version", FIRST),
                ("slot", "a"),
                ("state", "idle"),
                ("keys", "owner"),
            ],
        );
        make_token(&node, KEPT);
        node
    }

    /// The machine has confirmed the version, which is in slot b, has kept its key and its token, and has no problem. It
    /// restarted after `mark`.
    #[track_caller]
    pub(crate) fn is_confirmed(&self, node: &mut MachineNode, mark: ConsoleMark, identity: &str) {
        self.is_confirmed_beside(&[], node, mark, identity);
    }

    /// The same of a machine that has problems with these codes.
    #[track_caller]
    pub(crate) fn is_confirmed_beside(
        &self,
        problems: &[&str],
        node: &mut MachineNode,
        mark: ConsoleMark,
        identity: &str,
    ) {
        node.wait_ready(mark);
        assert_eq!(node.identity(), identity);
        let status = stands(
            node,
            &[
                ("version", SECOND),
                ("slot", "b"),
                ("good", "b"),
                ("other_version", FIRST),
                ("state", "good"),
            ],
        );
        assert_eq!(status["last"]["outcome"], "confirmed", "{status:#}");
        let info = node.info();
        let shown = info["problems"].as_array().expect("a list").iter();
        let shown: Vec<_> = shown.map(|problem| problem["code"].clone()).collect();
        assert_eq!(shown, problems, "{info:#}");
        has_token(node, KEPT);
    }

    /// The floor of the confirmed version refuses an older one that an administrator permits.
    #[track_caller]
    pub(super) fn refuses_below_floor(&self, bench: &TestBench, node: &MachineNode) {
        let older = ReleaseDraft::new(NUMBER + 2, OLDER);
        let older = self.keys.bundle(bench.path(), &older, &[0; 2 << 20]);
        let more = ["--stage", "--downgrade", OLDER];
        let refused = update(bench.admin(), node, &older, &more);
        is_refused(&refused, "FORBIDDEN", "below-floor");
    }

    /// The first version and the loader are as they were, and the second version is what was signed.
    #[track_caller]
    pub(crate) fn is_on(&self, disk: &SlotDiskImage) {
        for (slot, program) in BootSlot::ALL.into_iter().zip(&self.programs) {
            let has_it = disk.has_program(slot, program);
            assert_eq!(has_it, Some(true), "slot {slot} has other bytes");
        }
        assert!(disk.loader() == self.loader, "the loader was changed");
    }
}

/// A bundle that other keys have signed than those that count is refused, as a dry run as well.
fn refuses_foreign(user: &CliRunner, node: &MachineNode, bundle: &Path) {
    let refused = update(user, node, bundle, &["--dry-run"]);
    is_refused(&refused, "FORBIDDEN", "signature");
}

/// Applies a configuration without the owner's keys, and otherwise with the same. They count until the machine restarts.
fn remove_owner_keys(bench: &TestBench, node: &MachineNode, more: &str) {
    let document = document(bench, "edge") + NO_VAULT + "[update]\n" + more;
    let file = write(bench.path(), "released.toml", document.as_bytes());
    let mut apply = bench.admin().command(&["config", "apply", &node.target()]);
    apply.arg(file);
    let applied = bench.admin().run(apply).json();
    assert_eq!(applied["kept"], true, "{applied:#}");
    assert_eq!(applied["restart_required"], json!(["update.keys"]));
    stands(node, &[("keys", "owner")]);
}

/// An administrator returns to the first version and confirms it. It keeps the key and the token, and the release keys in
/// its image count from now on.
fn goes_back(user: &CliRunner, node: &mut MachineNode) {
    let (mark, identity) = (node.vm().console().mark(), node.identity().to_owned());
    let target = node.target();
    let back = thread::scope(|scope| {
        let back = scope.spawn(|| roll_back_at(user, &target));
        node.wait_ready(mark);
        confirm(user, node);
        back.join().expect("the command ended")
    });
    assert_eq!(back.status, 0, "{back:?}\n{}", node.vm().report());
    stands(
        node,
        &[
            ("version", FIRST),
            ("slot", "a"),
            ("state", "good"),
            ("keys", "release"),
        ],
    );
    assert_eq!(node.info()["identity"], identity);
    has_token(node, KEPT);
}

/// The machine downloads the bundle at this address and starts its version at a moment, and an administrator confirms it.
/// Returns a mark before the restart.
fn update_at_moment(user: &CliRunner, node: &mut MachineNode, address: &str) -> ConsoleMark {
    let mark = node.vm().console().mark();
    let more = ["--at", START_IN, "--yes"];
    let planned = update(user, node, Path::new(address), &more).json();
    assert_eq!(planned["outcome"], "scheduled", "{planned:#}");
    assert_eq!(planned["plan"]["to"], SECOND, "{planned:#}");
    node.wait_ready(mark);
    confirm(user, node);
    mark
}
