//! What a machine refuses. Each refusal names what is wrong, and leaves the record and both programs as they were.
//!
//! Each run has the refusals of bundles and callers under UEFI, and those of a disk that refuses writes by a BIOS. `cargo
//! xtask soak update-cuts` has both under the other firmware, too. A machine without keys is under UEFI only. The refusal of a version below the floor needs a machine that was updated: it is under UEFI in
//! `update/administrator.rs` and by a BIOS in `update/good.rs`.

use std::path::Path;

use alknet_boot_state::{BootSlot, RECORD_BYTES, RECORD_OFFSET};
use alknet_qemu::{DiskController, DiskRecorder, MachineKind, VirtioDisk};
use alknet_test_support::skip;
use alknet_tests::{CliRunner, MachineNode, TestBench};
use serde_json::{Value, json};

use crate::configuration::{NO_VAULT, document};
use crate::power::is_full;
use crate::update::bundle::{ReleaseDraft, ReleaseKeys, TimestampSignatures, long_metadata, write};
use crate::update::disk::{FOREIGN, SlotDiskImage};
use crate::update::program::versioned;
use crate::update::{
    FIRST, ONLY_CAMPAIGN, SECOND, config, is_refused, machine, roll_back, serving, stands,
    start_after_firmware, update,
};

/// Bytes that the boot partition has left: a small program fits, and one of an image does not.
const ROOM_BYTES: u64 = 16 << 20;
/// Bytes of a program that fits, and of one that does not.
const SMALL: usize = 2 << 20;
const LARGE: usize = 40 << 20;
/// Bytes of metadata that no machine reads.
const LONG: usize = 3 << 20;
/// The version that the machines had before the one that runs.
const BEFORE: &str = "0.0.7";
/// The number of the documents of a version that is staged, above those of all refusals.
const STAGED: u64 = 40;
/// A version that a hub offers meanwhile.
const OTHER: &str = "0.3.0";
/// The lines of GRUB and of the loader for UEFI about a disk that does not take the record.
const GRUB_NOT_WRITTEN: &str = "alknet: the boot state record cannot be written";
const LOADER_NOT_WRITTEN: &str = "alknet-loader: boot state record not written: the disk reports: ";

#[test]
fn update_refusals_change_nothing() {
    refusals_change_nothing(start_after_firmware);
}

/// GRUB starts the machine and has written the record before.
#[test]
fn update_refusals_change_nothing_by_a_bios() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    refusals_change_nothing(|bench, config| {
        let disk = VirtioDisk::file(bench.raw());
        serving(bench, machine(MachineKind::Q35, disk, config))
    });
}

/// One machine, which `start` makes of a configuration. Two of its owner's three keys have to sign, and its boot
/// partition has a large foreign file. Its record says that slot b has the version before. In the end an administrator
/// stages a version, which no hub replaces.
fn refusals_change_nothing(start: impl Fn(&TestBench, &str) -> MachineNode) {
    let bench = TestBench::new();
    let folder = bench.path();
    let keys = ReleaseKeys::new(&[1, 2, 3], 2);
    let disk = SlotDiskImage::new(bench.raw());
    disk.put_version_before(&beginning(&disk, BEFORE));
    let filled = fill(&disk);
    let start = || start(&bench, &config(&bench, &keys));
    let node = start();
    // PID 1 looks at the disk beside the start of the node.
    let stays = [
        ("state", "good"),
        ("version", FIRST),
        ("other_version", BEFORE),
    ];
    let status = stands(&node, &stays);
    let foreign = json!({ "files": 1, "bytes": filled });
    assert_eq!(status["foreign_files"], foreign, "{status:#}");
    let before = disk.contents();
    let small = vec![0x5a; SMALL];
    let draft = ReleaseDraft::new;
    let refuses = |bundle: &Path, more: &[&str], error: &str, code: &str| {
        let output = update(bench.admin(), &node, bundle, &[&["--stage"], more].concat());
        is_refused(&output, error, code);
        assert!(disk.contents() == before, "{code} changed something");
    };
    let refuses_draft = |draft: &ReleaseDraft, error: &str, code: &str| {
        refuses(&keys.bundle(folder, draft, &small), &[], error, code);
    };

    // Other keys than the owner's, and too few of these.
    let foreign = ReleaseKeys::one(9).bundle(folder, &draft(10, SECOND), &small);
    refuses(&foreign, &[], "FORBIDDEN", "signature");
    let alone = ReleaseKeys::one(1).bundle(folder, &draft(10, SECOND), &small);
    refuses(&alone, &[], "FORBIDDEN", "threshold");

    for signatures in [TimestampSignatures::Altered, TimestampSignatures::Missing] {
        let draft = ReleaseDraft {
            signatures,
            ..draft(10, SECOND)
        };
        refuses_draft(&draft, "FORBIDDEN", "signature");
    }

    // The age of documents, and the place of the version in the order.
    let mut expired = draft(10, SECOND);
    expired.is_expired = true;
    refuses_draft(&expired, "FORBIDDEN", "expired");
    refuses_draft(&draft(20, "0.0.9"), "FORBIDDEN", "downgrade");
    refuses_draft(&draft(19, SECOND), "FORBIDDEN", "rollback");
    let other = keys.bundle(folder, &draft(21, "0.0.9"), &small);
    refuses(&other, &["--downgrade", "0.0.8"], "FORBIDDEN", "downgrade");
    let output = update(
        bench.admin(),
        &node,
        &other,
        &["--dry-run", "--downgrade", "0.0.9"],
    );
    assert_eq!(output.json()["plan"]["step"], "downgrade", "{output:?}");
    assert!(disk.contents() == before, "a dry run changed something");

    // Other machines.
    for (number, arch, board, form) in [
        (22, "aarch64", "generic", "raw"),
        (23, "x86_64", "other", "raw"),
        (24, "x86_64", "generic", "iso"),
    ] {
        let draft = ReleaseDraft {
            arch,
            board,
            form,
            ..draft(number, SECOND)
        };
        refuses_draft(&draft, "INVALID_INPUT", "other-machine");
    }

    let needy = ReleaseDraft {
        needs: &["loader-9"],
        ..draft(25, SECOND)
    };
    refuses_draft(&needy, "INVALID_INPUT", "unmet-needs");

    // The bytes of the bundle.
    refuses(
        &long_metadata(folder, LONG),
        &[],
        "INVALID_INPUT",
        "too-large",
    );
    refuses_draft(&draft(30, SECOND), "INVALID_INPUT", "malformed");
    let mut bytes = std::fs::read(folder.join("30.tar")).expect("just written");
    let cut = write(folder, "cut.tar", &bytes[..bytes.len() / 2]);
    refuses(&cut, &[], "INVALID_INPUT", "truncated");
    // The last byte of the program is before two blocks of zeros.
    let last = bytes.len() - 1025;
    bytes[last] ^= 1;
    let damaged = write(folder, "damaged.tar", &bytes);
    refuses(&damaged, &[], "INVALID_INPUT", "hash");
    let large = keys.bundle(folder, &draft(31, SECOND), &vec![0; LARGE]);
    refuses(&large, &[], "CONFLICT", "full");

    // Callers: one without a right, one who is second, and one whose connection ends.
    let unknown = update(&bench.user("unknown"), &node, &damaged, &["--stage"]);
    assert_eq!(unknown.code(), "UNAUTHENTICATED", "{unknown:?}");
    let session = node.call("update/stage", &json!({ "bytes": SMALL }));
    let second = node.try_call("update/stage", &json!({ "bytes": SMALL }), &[]);
    is_refused(&second, "CONFLICT", "busy");
    let piece = json!({ "session": session["session"], "offset": 0, "data": "AAAA" });
    node.call("update/write", &piece);
    let wrong = node.try_call("update/write", &piece, &[]);
    is_refused(&wrong, "CONFLICT", "offset");
    let abort = json!({ "session": session["session"], "abort": true });
    node.call("update/write", &abort);
    let status = stands(&node, &stays);
    assert_eq!(status["session"], Value::Null, "{status:#}");
    let apply = node.try_call("update/apply", &json!({}), &[]);
    is_refused(&apply, "CONFLICT", "not-staged");
    // The machine has neither verified nor run the program in slot b.
    let back = node.try_call("update/rollback", &json!({}), &[]);
    is_refused(&back, "FORBIDDEN", "unverified");
    assert!(disk.contents() == before, "a caller changed something");
    disk.vacate();
    let before = disk.contents();
    let back = node.try_call("update/rollback", &json!({}), &[]);
    is_refused(&back, "CONFLICT", "no-previous");
    let said = roll_back(bench.admin(), &node);
    is_refused(&said, "CONFLICT", "no-previous");
    assert!(disk.contents() == before, "a rollback changed something");
    assert_eq!(node.info()["problems"], json!([]));
    staged_waits_for_its_administrator(&bench, (&keys, &disk), node, start);
}

/// An administrator stages a version. The machine logs whose it is, and takes no version of a hub in its place, also after
/// `restart`, when the node knows the administrator from PID 1 alone: then the machine still takes another version that
/// this administrator offers as a hub does.
fn staged_waits_for_its_administrator(
    bench: &TestBench,
    (keys, disk): (&ReleaseKeys, &SlotDiskImage),
    node: MachineNode,
    restart: impl Fn() -> MachineNode,
) {
    let admin = bench.admin();
    let hub = bench.user("hub");
    let (target, key) = (node.target(), hub.identity());
    let add = ["peer", "add", &target, "attic", "--key", &key];
    let mut add = admin.command(&add);
    add.args(["--scope", "update:offer"]);
    admin.run(add).json();

    let waiting = beginning(disk, SECOND);
    let bundle = keys.bundle(bench.path(), &ReleaseDraft::new(STAGED, SECOND), &waiting);
    let staged = update(admin, &node, &bundle, &["--stage"]);
    assert_eq!(staged.status, 0, "{staged:?}\n{}", node.vm().report());
    let waits = [
        ("version", FIRST),
        ("state", "staged"),
        ("other_version", SECOND),
    ];
    let status = stands(&node, &waits);
    let stager = logged_stager(&node);
    assert_eq!(status["ended"]["by"], stager, "{status:#}");
    let before = disk.contents();
    is_not_wanted(&hub, &node);
    assert!(disk.contents() == before, "an offer changed something");
    node.end();

    let node = restart();
    stands(&node, &waits);
    assert_eq!(logged_stager(&node), stager);
    // A loader may have written the record.
    let restarted = disk.contents();
    assert!(
        restarted.has_programs_of(&before),
        "the restart changed a program"
    );
    let before = restarted;
    is_not_wanted(&hub, &node);
    assert!(disk.contents() == before, "an offer changed something");
    let own = node.call("update/offer", &other_offer());
    assert_eq!(own["wanted"], true, "{own:#}");
    let abort = json!({ "session": own["session"], "abort": true });
    node.call("update/write", &abort);
    stands(&node, &waits);
    assert!(disk.contents() == before, "an offer changed something");
}

/// What a hub says of a bundle with another version than the staged one.
fn other_offer() -> Value {
    json!({ "version": OTHER, "bytes": SMALL })
}

/// The machine does not want a version of this hub, because another caller has staged one.
#[track_caller]
fn is_not_wanted(hub: &CliRunner, node: &MachineNode) {
    let offered = hub.call(&node.target(), "update/offer", &other_offer(), &[]);
    let answer = offered.json();
    assert_eq!(answer["wanted"], false, "{answer:#}");
    let reason = answer["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("this hub did not send"), "{answer:#}");
}

/// The caller that staged [`SECOND`], by the log of updates, in which no other version was staged.
#[track_caller]
fn logged_stager(node: &MachineNode) -> String {
    let log = node.call("update/log", &json!({}));
    let records = log["records"].as_array().expect("a list").iter();
    let staged: Vec<_> = records
        .filter(|record| record["event"] == "staged")
        .collect();
    assert_eq!(staged.len(), 1, "{log:#}");
    let staged = staged[0];
    assert_eq!(staged["version"], SECOND, "{log:#}");
    // An administrator may start versions.
    assert_eq!(staged["limited"], Value::Null, "{log:#}");
    let by = staged["by"].as_str().unwrap_or_default();
    assert!(!["", "the machine"].contains(&by), "{log:#}");
    by.to_owned()
}

/// The beginning of the program in slot a, as one of this version: it says its version, and nothing starts it.
fn beginning(disk: &SlotDiskImage, version: &str) -> Vec<u8> {
    let first = disk.program(BootSlot::A).expect("the image has it");
    let mut program = versioned(&first, version);
    program.truncate(SMALL);
    program
}

/// Fills the boot partition but for [`ROOM_BYTES`]. Returns the bytes of the file.
fn fill(disk: &SlotDiskImage) -> u64 {
    let volume = disk.volume();
    let report = volume.check(&[]).unwrap_or_else(|error| panic!("{error}"));
    let free = u64::from(report.free_clusters) * u64::from(report.cluster_bytes);
    let bytes = free - ROOM_BYTES;
    let content = vec![0; usize::try_from(bytes).expect("a boot partition is small")];
    disk.put(FOREIGN, &content);
    bytes
}

#[test]
fn update_without_keys_is_refused() {
    let bench = TestBench::new();
    let config = document(&bench, "edge") + NO_VAULT;
    let disk = SlotDiskImage::new(bench.raw());
    disk.put_version_before(&beginning(&disk, BEFORE));
    let node = start_after_firmware(&bench, &config);
    refuses_small(&bench, &node, &disk, "FORBIDDEN", "no-keys");
}

#[test]
fn update_on_a_disk_that_refuses_writes_is_refused() {
    disk_that_refuses_writes(MachineKind::Q35, GRUB_NOT_WRITTEN);
}

#[test]
fn update_refusals_of_a_disk_that_refuses_writes_by_uefi() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    disk_that_refuses_writes(MachineKind::Q35Uefi, LOADER_NOT_WRITTEN);
}

/// The disk takes no write until the node serves, which keeps nothing and needs none. The loader cannot write either, and
/// says so by this line. Then the disk takes the record and half of the new program, and refuses the other half.
fn disk_that_refuses_writes(kind: MachineKind, not_written: &str) {
    let bench = TestBench::new();
    let keys = ReleaseKeys::one(7).config();
    let config = document(&bench, "edge") + "stateless = true\n" + NO_VAULT + &keys;
    let disk = SlotDiskImage::new(bench.raw());
    disk.put_version_before(&beginning(&disk, BEFORE));
    let recorder = DiskRecorder::serve(disk.path()).unwrap_or_else(|error| panic!("{error}"));
    recorder.refuse_writes(0..u64::MAX);
    let served = VirtioDisk::recorded(&recorder).on(DiskController::VirtioScsi);
    let node = serving(&bench, machine(kind, served, &config));
    let said = node.vm().console().text();
    assert!(said.contains(not_written), "{said}");
    assert_eq!(recorder.recording().bytes(), 0, "it refuses every write");

    // The free room begins behind the program of slot b, and the new program goes there.
    let disk = SlotDiskImage::new(recorder.image());
    let free_at = disk.program_end(BootSlot::B);
    let half_at = free_at + SMALL as u64 / 2;
    recorder.refuse_writes(half_at..u64::MAX);
    refuses_small(&bench, &node, &disk, "CONFLICT", "disk");
    let recording = recorder.recording();
    let is_written = |places| !recording.writes_in(places).is_empty();
    assert!(is_written(free_at..half_at), "no half of the program");
    let record = RECORD_OFFSET..RECORD_OFFSET + RECORD_BYTES as u64;
    assert!(is_written(record), "the record never gave slot b up");
}

/// A machine with this disk refuses a bundle with a small program, and keeps what it has in both slots.
fn refuses_small(
    bench: &TestBench,
    node: &MachineNode,
    disk: &SlotDiskImage,
    error: &str,
    code: &str,
) {
    let draft = ReleaseDraft::new(1, SECOND);
    let bundle = ReleaseKeys::one(7).bundle(bench.path(), &draft, &vec![0x5a; SMALL]);
    let before = disk.contents();
    let output = update(bench.admin(), node, &bundle, &["--stage"]);
    is_refused(&output, error, code);
    assert!(disk.contents() == before, "{code} changed something");
}
