//! What a thief attaches to a stolen machine, or pastes at its console.

use std::path::PathBuf;
use std::sync::OnceLock;

use alknet_qemu::VirtioDisk;
use alknet_tests::tools::{age, iso_volume, tool_says};
use alknet_tests::{CliRunner, MachineBuilder, SnapshotPoint, TestBench};
use data_encoding::BASE64;

use super::{SEED_KEY, VAULT};
use crate::tpm::measured;

/// A drive with a document that names the thief as administrator and as recipient of the words. It has ISO 9660, so the
/// machine cannot write a key to it.
pub(super) struct ThiefsMedium(PathBuf);

impl ThiefsMedium {
    /// `vault` says in the document how to open the vault.
    pub(super) fn new(bench: &TestBench, vault: &str) -> Self {
        let document = thiefs_document(bench, vault);
        Self(iso_volume(bench, "thiefs", &document))
    }

    /// A machine with the chip `chip` and this drive, from the point at which firmware has measured the image. No other
    /// source brings a document.
    pub(super) fn machine<'a>(&self, bench: &'a TestBench, chip: &str) -> MachineBuilder<'a> {
        self.attached(bench, chip).resumed(&handed_over().record)
    }

    fn attached<'a>(&self, bench: &'a TestBench, chip: &str) -> MachineBuilder<'a> {
        let drive = VirtioDisk::file(&self.0).read_only();
        measured(bench, chip).config("").disk(drive)
    }
}

/// Firmware that ran once with a drive beside the machine's disk, for all machines here that have one.
struct FirmwareRecord {
    record: PathBuf,
    /// Has the folder of the record. Rust never drops the content of a static: the next program that starts machines
    /// removes the folder.
    _bench: TestBench,
}

fn handed_over() -> &'static FirmwareRecord {
    static ONE: OnceLock<FirmwareRecord> = OnceLock::new();
    ONE.get_or_init(|| {
        let bench = TestBench::new();
        // Firmware that has started once wrote its boot entries, which come with this machine.
        drop(measured(&bench, "recorder").after_firmware().start());
        let medium = ThiefsMedium::new(&bench, "[vault]");
        let recorder = || medium.attached(&bench, "recorder");
        let record = bench.record("handed-over", SnapshotPoint::Kernel, recorder);
        FirmwareRecord {
            record,
            _bench: bench,
        }
    })
}

/// The line that a user pastes at a console: a document with `admin` as the administrator.
pub(super) fn pasted(bench: &TestBench, admin: &CliRunner) -> String {
    let [file, line] = ["pasted.toml", "pasted.line"].map(|name| bench.path().join(name));
    std::fs::write(&file, document(&admin.identity(), "")).expect("the folder is ours");
    let mut provision = admin.command(&["provision", "--form", "console"]);
    provision.arg("--config").arg(&file).arg("--out").arg(&line);
    provision.args(["--words-to", &recipient(bench)]);
    admin.run(provision).json();
    let line = std::fs::read_to_string(&line).expect("it was written");
    line.trim().to_owned()
}

/// The secrets on a medium that opens the vault.
pub(super) fn secrets() -> String {
    let key = BASE64.encode(&SEED_KEY);
    format!("[secrets]\nseed_key = \"alknet-seed-1 {VAULT} {key}\"\n")
}

/// The document of an owner.
pub(super) fn document(admin: &str, more: &str) -> String {
    format!("[node]\nname = \"alknet\"\nadmin_keys = [\"{admin}\"]\n{more}")
}

/// A document with the thief as administrator and recipient of the words. `vault` says how to open the vault.
pub(super) fn thiefs_document(bench: &TestBench, vault: &str) -> String {
    let recipient = recipient(bench);
    let thief = bench.user("thief").identity();
    document(&thief, &format!("{vault}\nwords_to = [\"{recipient}\"]\n"))
}

/// The thief's own recipient for the encrypted words.
fn recipient(bench: &TestBench) -> String {
    let path = bench.path().join("thief.key");
    if !path.exists() {
        tool_says(&age("age-keygen"), &["-o", &path.display().to_string()]);
    }
    let key = std::fs::read_to_string(path).expect("it was made");
    let mut lines = key.lines();
    let recipient = lines.find_map(|line| line.strip_prefix("# public key: "));
    recipient.expect("a public key").to_owned()
}
