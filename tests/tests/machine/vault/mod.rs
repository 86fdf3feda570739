//! A booted machine makes its vault, resets it, leaves a damaged vault alone, and restores one from its words. Programs
//! of other authors examine the disk from outside.

mod locking;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use alknet_qemu::{ConsoleMark, DiskRecorder, ScratchDir, VirtioDisk, Vm, WaitResult};
use alknet_tests::tools::{fat_volume, tool, tool_says};
use alknet_tests::{BootVariant, MachineNode, TestBench};
use alknet_vault::{Entropy, ExportReason, KeyPurpose, SecretStr, Vault};
use serde_json::{Value, json};

use crate::configuration::NO_VAULT;
use crate::console::{commands, typed};
use crate::disks::small;
use crate::knock::{self, SecondCard};
use crate::power::cut_now;
use crate::rescue;

/// Longest wait from power-on until the console asks a question.
const ASKED_WITHIN: Duration = Duration::from_secs(30);
/// Longest wait from an answer at the console until its result; Argon2id on an emulated processor is slow.
const DONE_WITHIN: Duration = Duration::from_secs(30);
/// Line that the console prints five seconds after a confirmed reset whose disk does not answer, and every thirty
/// seconds from then on.
const DISK_HANGS: &str = "alknet: factory reset: the disk does not answer";
/// Longest wait from one of these lines to the next: longer than a machine needs to go down.
const SAID_AGAIN_WITHIN: Duration = Duration::from_secs(60);
/// Beginning of the console's line about a machine that goes down.
const GOES_DOWN: &str = "alknet: going down";
/// Magic bytes before the data of a sealed disk as long as a key on it opens the data: the header, its copy, and the
/// vault.
const OPENS_DATA: [&[u8]; 3] = [b"LUKS", b"SKUL", b"alkv"];
/// Beginning of the last line of a picture with a question.
const PICTURE_ENDS: &str = "Enter answers";

/// Where the vault's copies lie on a data disk (docs/sealed.md).
pub(super) const VAULT_A_AT: u64 = (16 << 20) - (128 << 10);
pub(super) const VAULT_B_AT: u64 = (16 << 20) - (64 << 10);
/// Bytes that each copy may take.
const COPY_BYTES: usize = 64 << 10;

/// Text that the tests search for on a disk.
const MARKER: &str = "4f1c8b2e-this-is-the-marker-of-the-test-77aa90d3e5";
/// Number of documents with the marker that a node with a vault stores, and bytes of each: a megabyte in all.
const APPLIED: usize = 18;
const APPLIED_BYTES: usize = 60_000;

/// Size of a data disk, in bytes; the file is sparse.
const DISK_BYTES: u64 = 1 << 30;

/// The words of the published tables.
pub(super) const PHRASE: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                      abandon about";
/// Identity of the node with these words.
pub(super) const IDENTITY: &str =
    "ed25519:e78c2766a792f09bfccb51493968ac322283e8d021a30063784d806929762ecc";

#[test]
fn a_first_boot_makes_a_vault_and_seals_the_disk() {
    let bench = TestBench::new();
    // The machine booted from a blank disk, and the harness asked it nothing before it saved the snapshot.
    let node = bench.snapshot(BootVariant::MicrovmErofs).restore();
    let identity = node.identity().to_owned();
    let status = node.call("vault/status", &Value::Null);
    for (key, value) in [
        ("state", json!("unlocked")),
        ("sealed", json!(false)),
        ("slots", json!(["none"])),
        ("opened_by", json!("none")),
        ("data_cipher", json!("aes-xts-plain64")),
        ("memory", json!("memfd_secret")),
    ] {
        assert_eq!(status[key], value, "{key}: {status:#}");
    }
    let info = node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");
    assert_eq!(info["data"]["mode"], "mounted");
    let answer = node.try_call("node/rotate-key", &Value::Null, &[]);
    assert_eq!(answer.code(), "CONFLICT", "{answer:?}");
    node.end();

    let dump = tool_says(
        "cryptsetup",
        &["luksDump".as_ref(), bench.data().as_os_str()],
    );
    for part in [
        "Version:       \t2",
        "0: luks2",
        "1: luks2",
        "0: alknet",
        "aes-xts-plain64",
    ] {
        assert!(dump.contains(part), "{part} in {dump}");
    }
    let node = bench.machine(BootVariant::MicrovmErofs).boot();
    assert_eq!(node.identity(), identity);
    shown(node.vm(), "UNSEALED: a copy");
    let info = node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");
    assert_eq!(info["data"]["clean"], true, "{info:#}");
}

#[test]
fn the_same_words_are_the_same_node_and_open_its_disk_elsewhere() {
    let bench = TestBench::new();
    let is_theirs = |identity: &str, status: &Value| {
        assert_eq!(identity, IDENTITY);
        assert_eq!(status["words_kept"], true, "{status:#}");
    };
    let first = Provisioned::get();
    for start in &first.starts {
        is_theirs(&start.identity, &start.status);
    }
    // A user types the words at the other machine's console.
    let second = bench.data();
    let machine = bench.machine(BootVariant::MicrovmErofs);
    let vm = machine.configured("[vault]\ninit = \"prompt\"").start();
    asked(&vm, "the words, or Enter for new ones");
    type_line(&vm, PHRASE);
    let node = MachineNode::new(vm, BootVariant::MicrovmErofs, bench.admin().clone());
    is_theirs(node.identity(), &node.call("vault/status", &Value::Null));
    drop(node);
    // The words alone open both disks, with a program that knows nothing of a vault.
    let key = bench.path().join("recovery.key");
    std::fs::write(&key, rescue::recovery_key(PHRASE)).expect("the folder is ours");
    for disk in [&first.disk(), &second] {
        let arguments = ["open", "--type", "luks2", "--test-passphrase", "--key-file"];
        let mut arguments: Vec<_> = arguments.iter().map(std::ffi::OsStr::new).collect();
        arguments.extend([key.as_os_str(), disk.as_os_str()]);
        tool("cryptsetup", &arguments);
    }
}

/// The machine erases the words at the first start and at each later start: a user may put the stick in again, or a
/// power cut may come between the vault and the erasing.
#[test]
fn words_on_a_stick_are_erased_whenever_they_are_the_vaults() {
    for start in &Provisioned::get().starts {
        assert_eq!(start.identity, IDENTITY);
        let info = &start.info;
        assert_eq!(info["problems"], json!([]), "{info:#}");
        let left = &start.stick;
        assert!(!holds(left, b"abandon"), "the words are on the stick");
        assert!(holds(left, b"admin_keys"), "the document stays");
    }
}

#[test]
fn new_words_are_shown_once_and_a_factory_reset_makes_another_node_also_after_a_power_cut() {
    let bench = TestBench::new();
    let mut node = bench.snapshot(BootVariant::MicrovmErofs).restore();
    let identity = node.identity().to_owned();
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["words_kept"], false, "{status:#}");
    let words = write_down(node.vm());
    alknet_tests::eventually("the words count as kept", || {
        let status = node.call("vault/status", &Value::Null);
        (status["words_kept"] == true).then_some(())
    });
    // The node's key comes from the words on the console.
    let entropy = Entropy::parse(&words).expect("24 words");
    let vault = Vault::locked();
    vault
        .unlock(&entropy, &SecretStr::empty())
        .expect("it is locked");
    let key = vault.signer(KeyPurpose::NodeIdentity).expect("it is open");
    let key = data_encoding::HEXLOWER.encode(&key.public());
    assert_eq!(identity, format!("ed25519:{key}"));

    let send = |text: &str| {
        node.vm()
            .console()
            .send(text)
            .expect("the console takes it")
    };
    send("v");
    shown(node.vm(), "factory-reset");
    send("factory-reset\r");
    shown(node.vm(), "type RESET to go on");
    send("RESET\r");
    let exit = node.vm_mut().wait_exit(DONE_WITHIN);
    let exit = exit.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(exit.reason(), Some("guest-reset"), "{exit}");
    drop(node);
    // This disk may lose what it has not flushed when the power goes.
    let recorder = DiskRecorder::serve(&bench.data()).unwrap_or_else(|error| panic!("{error}"));
    let machine = |disk: VirtioDisk| {
        bench
            .machine(BootVariant::MicrovmErofs)
            .data(Some(disk.data()))
    };
    let mut node = machine(VirtioDisk::recorded(&recorder)).boot();
    let second = node.identity().to_owned();
    assert_ne!(second, identity);
    let info = node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");

    // The power goes while the machine is still on its way down. Without a finished reset, the disk would open for its
    // new owner if the owner gave it away the next day. The user has not written down the new words yet: the first key
    // shows them.
    commands(node.vm());
    typed(node.vm(), "factory-reset", "type RESET to go on: _");
    let mark = node.vm().console().mark();
    let line = "alknet: going down (Reboot) because of a factory reset";
    typed(node.vm(), "RESET", line);
    let recording = recorder.recording();
    let said = node.vm().console().since(mark);
    assert!(!said.contains("These words are this node"), "{said}");
    node.vm_mut()
        .cut_power()
        .unwrap_or_else(|error| panic!("{error}"));
    drop(node);
    let cut = bench.path().join("cut.raw");
    cut_now(&recording, &cut);
    let recorder = DiskRecorder::serve(&cut).unwrap_or_else(|error| panic!("{error}"));
    let mut node = machine(VirtioDisk::recorded(&recorder)).boot();
    assert_ne!(node.identity(), second, "it is the node that was reset");
    let info = node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");
    reset_while_its_disk_hangs(&bench, &mut node, &recorder);
}

/// The disk answers nothing when the user resets the machine, and goes on later. A machine that restarted meanwhile
/// would come back with its old keys, perhaps in the hands of a new owner. The disk hangs until the console prints its
/// line for the second time: a machine that went down after the first line would be off by then.
fn reset_while_its_disk_hangs(bench: &TestBench, node: &mut MachineNode, recorder: &DiskRecorder) {
    commands(node.vm());
    typed(node.vm(), "factory-reset", "type RESET to go on: _");
    let begun = node.vm().console().mark();
    recorder.hold();
    type_line(node.vm(), "RESET");
    let mut mark = begun;
    for time in ["first", "second"] {
        let limit = node.vm().scale(SAID_AGAIN_WITHIN);
        let console = node.vm().console();
        let waited = console.wait_any(mark, &[DISK_HANGS, GOES_DOWN], limit);
        let said = console.since(begun);
        assert!(!said.contains(GOES_DOWN), "before the {time} time: {said}");
        let WaitResult::Said(end) = waited else {
            panic!("the {time} time: {waited:?}\n{}", node.vm().report());
        };
        mark = end;
    }
    let left = || opens_data(recorder, &bench.path().join("front.raw"));
    assert_eq!(left(), OPENS_DATA, "the power goes while the disk hangs");
    recorder.release();
    let exit = node.vm_mut().wait_exit(DONE_WITHIN);
    let exit = exit.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(exit.reason(), Some("guest-reset"), "{exit}");
    assert!(left().is_empty(), "{:?} is left", left());
}

/// Returns which of [`OPENS_DATA`] are on a recorded disk if the power goes now. The function writes the disk's image
/// to `image`.
fn opens_data(recorder: &DiskRecorder, image: &Path) -> Vec<&'static [u8]> {
    let recording = recorder.recording();
    let cut = recording.cut(recording.len(), 0, image);
    cut.unwrap_or_else(|error| panic!("{error}"));
    let end = usize::try_from(VAULT_B_AT).expect("16 MiB") + (64 << 10);
    let mut front = vec![0; end];
    let read = File::open(image).and_then(|disk| disk.read_exact_at(&mut front, 0));
    read.expect("the disk is longer");
    let left = OPENS_DATA.into_iter();
    left.filter(|wanted| holds(&front, wanted)).collect()
}

/// A machine keeps its identity when its vault is damaged: the node serves nothing, and leaves the disk as it is.
#[test]
fn a_vault_with_both_copies_damaged_serves_nothing_and_is_left_alone() {
    let bench = TestBench::new();
    let identity = bench.snapshot(BootVariant::MicrovmErofs).switched_off();
    let whole = bench.path().join("whole.raw");
    copied(&bench.data(), &whole);
    let damage = |places: &[u64]| {
        let disk = File::options().write(true).open(bench.data());
        let disk = disk.expect("the disk is ours");
        for at in places {
            disk.write_all_at(b"damage", *at).expect("it is a file");
        }
    };
    // The machine repairs one copy from the other before the node serves, because the power may go right after that.
    damage(&[VAULT_A_AT + 100]);
    let node = bench.machine(BootVariant::MicrovmErofs).boot();
    assert_eq!(node.identity(), identity);
    drop(node);
    damage(&[VAULT_B_AT + 200]);
    let node = bench.machine(BootVariant::MicrovmErofs).boot();
    assert_eq!(
        node.identity(),
        identity,
        "the first copy was written again"
    );
    drop(node);

    copied(&whole, &bench.data());
    damage(&[VAULT_A_AT + 100, VAULT_B_AT + 100]);
    stays_closed_and_unwritten(&bench);
    // Nothing is left of the vault. The header still says that this program made the partition.
    let disk = File::options().write(true).open(bench.data());
    let disk = disk.expect("the disk is ours");
    for at in [VAULT_A_AT, VAULT_B_AT] {
        disk.write_all_at(&[0; COPY_BYTES], at)
            .expect("it is a file");
    }
    drop(disk);
    stays_closed_and_unwritten(&bench);
}

/// Starts a machine whose vault is damaged.
fn stays_closed_and_unwritten(bench: &TestBench) {
    let checksum = || {
        let sum = alknet_qemu::checksum(&bench.data());
        sum.unwrap_or_else(|error| panic!("{error}"))
    };
    let before = checksum();
    let link = SecondCard::new();
    let vm = link.join(bench.machine(BootVariant::MicrovmErofs)).start();
    let said = vm.wait_for("alknet: problem vault-damaged", ASKED_WITHIN);
    said.unwrap_or_else(|error| panic!("{error}"));
    knock::serves_nothing(&vm);
    link.hears(&vm, "vault-damaged");
    type_line(&vm, "");
    shown(&vm, "nothing: the vault is locked");
    // A user at the console cannot change that either.
    knock::serves_nothing(&vm);
    drop(vm);
    assert_eq!(before, checksum(), "the disk was written to");
}

fn copied(from: &Path, to: &Path) {
    alknet_qemu::copy(from, to).unwrap_or_else(|error| panic!("{error}"));
}

/// A node stores a megabyte of a marker, and has words and an identity key. The disk of the machine, while off, has
/// none of them in the clear, and the owner of the words can still read the last file. Without a vault the marker and
/// the key are on the disk.
#[test]
fn the_disk_of_a_sealed_machine_tells_nothing() {
    let bench = TestBench::new();
    let node = small(&bench);
    // One document shows that the test finds an applied configuration on an unencrypted disk.
    write_marker(&bench, &node, NO_VAULT, 1);
    node.end();
    let plain = content(&bench.data());
    assert!(holds(&plain, MARKER.as_bytes()), "the marker is written");
    assert!(holds(&plain, b"admin_keys"));
    drop(plain);

    let vault = Vault::locked();
    let words = Entropy::parse(PHRASE).expect("twelve words");
    vault
        .unlock(&words, &SecretStr::empty())
        .expect("it is locked");
    let key = vault.signer(KeyPurpose::NodeIdentity).expect("it is open");
    let key = key.expose(ExportReason::Console).expect("it is open");
    let recovery = vault.recovery_secret().expect("it is open");
    let text = rescue::recovery_key(PHRASE);
    let disk = Provisioned::get().disk();
    let sealed = content(&disk);
    assert!(holds(&sealed, b"LUKS\xba\xbe"), "the header can be read");
    let secrets: [(&str, &[u8]); 7] = [
        ("the marker", MARKER.as_bytes()),
        ("the configuration", b"admin_keys"),
        ("the words", b"abandon abandon"),
        ("the key", key.expose()),
        ("the recovery key", recovery.expose()),
        ("its text", text.as_bytes()),
        ("a file system", b"alknet-state"),
    ];
    for (what, secret) in secrets {
        assert!(!holds(&sealed, secret), "{what} is on the disk");
    }
    drop(sealed);
    let read = rescue::read(&bench, &disk, PHRASE, "/config/config.toml");
    let last = format!("# {} {MARKER}", APPLIED - 1);
    assert!(read.contains(&last), "{read:.1000}");
}

fn holds(disk: &[u8], wanted: &[u8]) -> bool {
    memchr::memmem::find(disk, wanted).is_some()
}

/// Returns every byte that a machine wrote to a disk.
fn content(disk: &Path) -> Vec<u8> {
    alknet_qemu::content(disk).unwrap_or_else(|error| panic!("{error}"))
}

/// Has a node store `documents` documents with the marker, one after the other.
fn write_marker(bench: &TestBench, node: &MachineNode, more: &str, documents: usize) {
    let file = bench.path().join("applied.toml");
    for round in 0..documents {
        let line = format!("# {round} {MARKER}\n");
        let lines = line.repeat(APPLIED_BYTES / line.len());
        let admin = bench.admin().identity();
        let document = format!("[node]\nadmin_keys = [\"{admin}\"]\n{more}{lines}");
        std::fs::write(&file, document).expect("the folder is ours");
        let mut apply = bench.admin().command(&["config", "apply", &node.target()]);
        apply.arg(&file);
        let applied = bench.admin().run(apply).json();
        assert_eq!(applied["kept"], true, "{applied:#}");
    }
}

/// A machine that found the published words on a stick at its first start. At its second start it found them on the
/// same stick again, and the test wrote the marker through its node. All tests about the result share this machine,
/// because a first start that seals the disk is the dearest of all starts.
struct Provisioned {
    starts: Vec<StartResult>,
    /// Rust never drops the content of a static: the next program that starts machines removes the folder.
    folder: ScratchDir,
}

/// Result of a start.
struct StartResult {
    identity: String,
    info: Value,
    status: Value,
    /// Content of the stick after the start.
    stick: Vec<u8>,
}

impl Provisioned {
    fn get() -> &'static Self {
        static ONE: OnceLock<Provisioned> = OnceLock::new();
        ONE.get_or_init(Self::start)
    }

    fn start() -> Self {
        let (bench, folder) = (TestBench::new(), ScratchDir::new());
        let folder = folder.unwrap_or_else(|error| panic!("{error}"));
        let mut provisioned = Self {
            starts: vec![],
            folder,
        };
        let disk = provisioned.disk();
        alknet_qemu::blank(&disk, DISK_BYTES).unwrap_or_else(|error| panic!("{error}"));
        let admin = bench.admin().identity();
        let document = format!(
            "[node]\nname = \"alknet\"\nadmin_keys = [\"{admin}\"]\n[vault]\ninit = \"provisioned\"\n\
             [secrets]\nwords = \"{PHRASE}\"\n"
        );
        let stick = fat_volume(&bench, "stick", &document);
        let written = std::fs::read(&stick).expect("it was made");
        assert!(holds(&written, b"abandon abandon"));
        for is_first in [true, false] {
            std::fs::write(&stick, &written).expect("the folder is ours");
            let machine = bench.machine(BootVariant::MicrovmErofs).config("");
            let machine = machine.data(Some(VirtioDisk::file(&disk).data()));
            let node = machine.disk(VirtioDisk::file(&stick)).boot();
            let (info, status) = (node.info(), node.call("vault/status", &Value::Null));
            if !is_first {
                write_marker(&bench, &node, "", APPLIED);
            }
            let identity = node.identity().to_owned();
            node.end();
            provisioned.starts.push(StartResult {
                identity,
                info,
                status,
                stick: std::fs::read(&stick).expect("it is there"),
            });
        }
        provisioned
    }

    fn disk(&self) -> PathBuf {
        self.folder.file("disk")
    }
}

/// Reads the words off the console, and types those that the console asks for.
pub(super) fn write_down(vm: &Vm) -> String {
    let drawn = |mark| {
        let waited = vm.wait_for_after(mark, PICTURE_ENDS, DONE_WITHIN);
        waited.unwrap_or_else(|error| panic!("{error}"));
        vm.console().since(mark)
    };
    let mark = vm.console().mark();
    type_line(vm, "");
    let text = drawn(mark);
    let table: Vec<&str> = text.split_whitespace().collect();
    let numbered = table.windows(2).filter_map(|pair| {
        let number: usize = pair[0].parse().ok()?;
        let word = pair[1].bytes().all(|byte| byte.is_ascii_lowercase());
        (word && (1..=24).contains(&number)).then(|| (number, pair[1].to_owned()))
    });
    let words: std::collections::BTreeMap<_, _> = numbered.collect();
    assert_eq!(words.len(), 24, "{text}");
    let asked = |text: &str| -> Option<usize> {
        let asked = text.rsplit("word ").next()?;
        asked.split(':').next()?.parse().ok()
    };
    let mut place = asked(&text).unwrap_or_else(|| panic!("no word is asked for: {text}"));
    for left in (0..3).rev() {
        let mark = vm.console().mark();
        type_line(vm, &words[&place]);
        if left > 0 {
            // Pictures of the previous question may still arrive.
            place = alknet_tests::eventually("the next word is asked for", || {
                asked(&vm.console().since(mark)).filter(|next| *next != place)
            });
        }
    }
    words.into_values().collect::<Vec<_>>().join(" ")
}

/// Waits until the unattended console asks for `what`.
pub(super) fn asked(vm: &Vm, what: &str) {
    let line = format!("alknet: asks: {what}");
    let waited = vm.wait_for(&line, ASKED_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until the live console shows `what`.
pub(super) fn shown(vm: &Vm, what: &str) {
    let waited = vm.wait_for_after(ConsoleMark::default(), what, DONE_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
}

pub(super) fn type_line(vm: &Vm, line: &str) {
    let sent = vm.console().send(&format!("{line}\r"));
    sent.unwrap_or_else(|error| panic!("{error}"));
}
