//! What a machine refuses. Each refusal names what is wrong, and leaves the record and both programs as they were.
//! `cargo xtask soak update-cuts` has most of them once more on a machine that GRUB starts by a BIOS.

use std::path::Path;

use alknet_boot_state::BootSlot;
use alknet_qemu::{DiskController, MachineKind, VirtioDisk};
use alknet_test_support::skip;
use alknet_tests::{MachineNode, TestBench};
use serde_json::{Value, json};

use crate::configuration::{NO_VAULT, document};
use crate::power::is_full;
use crate::update::bundle::{ReleaseDraft, ReleaseKeys, long_metadata, write};
use crate::update::disk::{FOREIGN, SlotDiskImage};
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
/// GRUB's line about a disk that does not take the record.
const NOT_WRITTEN: &str = "alknet: the boot state record cannot be written";

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
/// partition has a large foreign file.
fn refusals_change_nothing(start: impl FnOnce(&TestBench, &str) -> MachineNode) {
    let bench = TestBench::new();
    let folder = bench.path();
    let keys = ReleaseKeys::new(&[1, 2, 3], 2);
    let disk = SlotDiskImage::new(bench.raw());
    let filled = fill(&disk);
    let node = start(&bench, &config(&bench, &keys));
    // PID 1 looks at the disk beside the start of the node.
    let status = stands(&node, &[("state", "idle"), ("version", FIRST)]);
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
    let status = stands(&node, &[("state", "idle"), ("version", FIRST)]);
    assert_eq!(status["session"], Value::Null, "{status:#}");
    let apply = node.try_call("update/apply", &json!({}), &[]);
    is_refused(&apply, "CONFLICT", "not-staged");
    let back = node.try_call("update/rollback", &json!({}), &[]);
    is_refused(&back, "CONFLICT", "no-previous");
    let said = roll_back(bench.admin(), &node);
    is_refused(&said, "CONFLICT", "no-previous");
    assert!(disk.contents() == before, "a caller changed something");
    assert_eq!(node.info()["problems"], json!([]));
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
    let node = start_after_firmware(&bench, &config);
    refuses_small(&bench, &node, "FORBIDDEN", "no-keys");
}

/// The node keeps nothing, so it serves without writing to its disk. Its loader, here GRUB, cannot write either.
#[test]
fn update_on_a_disk_that_refuses_writes_is_refused() {
    let bench = TestBench::new();
    let keys = ReleaseKeys::one(7).config();
    let config = document(&bench, "edge") + "stateless = true\n" + NO_VAULT + &keys;
    let disk = VirtioDisk::file(bench.raw()).read_only();
    let disk = disk.on(DiskController::VirtioScsi);
    let node = serving(&bench, machine(MachineKind::Q35, disk, &config));
    let said = node.vm().console().text();
    assert!(said.contains(NOT_WRITTEN), "{said}");
    refuses_small(&bench, &node, "CONFLICT", "disk");
}

/// A machine refuses a bundle with a small program, and changes nothing.
fn refuses_small(bench: &TestBench, node: &MachineNode, error: &str, code: &str) {
    let draft = ReleaseDraft::new(1, SECOND);
    let bundle = ReleaseKeys::one(7).bundle(bench.path(), &draft, &vec![0x5a; SMALL]);
    let disk = SlotDiskImage::new(bench.raw());
    let before = disk.contents();
    let output = update(bench.admin(), node, &bundle, &["--stage"]);
    is_refused(&output, error, code);
    assert!(disk.contents() == before && disk.program(BootSlot::B).is_none());
}
