//! An update to a good version, and the way back.

use alknet_boot_state::BootSlot;
use alknet_qemu::{DiskController, MachineKind, VirtioDisk};
use alknet_tests::{MachineNode, TestBench};
use serde_json::json;

use super::bundle::{ReleaseDraft, ReleaseKeys};
use super::damage::finds_damage;
use super::disk::SlotDiskImage;
use super::program::versioned;
use super::{
    FIRST, LIMIT, SECOND, config, has_token, is_refused, machine, make_token, roll_back, serving,
    stands, start_after_firmware, status, update,
};

/// The note of a token that an update keeps.
const KEPT: &str = "stays";

/// Under UEFI: the new version, which a delta makes from the first one, is confirmed, then its floor refuses an older one
/// that an administrator permits, and a rollback returns to the first version. Identity and stored tokens stay.
#[test]
fn update_good_and_back_under_uefi() {
    let bench = TestBench::new();
    let started = |config: &str| start_after_firmware(&bench, config);
    let (node, keys) = updated(&bench, started, BundleKind::Delta);
    let older = ReleaseDraft::new(2, "0.0.9");
    let older = keys.bundle(bench.path(), &older, &[0; 2 << 20]);
    let refused = update(
        bench.admin(),
        &node,
        &older,
        &["--stage", "--downgrade", "0.0.9"],
    );
    is_refused(&refused, "FORBIDDEN", "below-floor");

    let identity = node.identity().to_owned();
    let back = roll_back(bench.admin(), &node);
    assert_eq!(back.status, 0, "{back:?}\n{}", node.vm().report());
    stands(
        &node,
        &[
            ("version", FIRST),
            ("slot", "a"),
            ("other_version", SECOND),
            ("state", "good"),
        ],
    );
    // The machine does not go back to it by itself.
    alknet_tests::eventually("the version that was left", || {
        (status(&node)["left"] == json!([SECOND])).then_some(())
    });
    assert_eq!(node.info()["identity"], identity.as_str());
    has_token(&node, KEPT);
}

/// Under BIOS GRUB counts the tries and starts the slots, here on an NVMe disk. Afterwards the machine notices what the disk
/// does wrong.
#[test]
fn update_good_under_bios_and_faults_of_its_storage_are_found() {
    let bench = TestBench::new();
    let started = |config: &str| {
        let disk = VirtioDisk::file(bench.raw()).on(DiskController::Nvme);
        serving(&bench, machine(MachineKind::Q35, disk, config))
    };
    let (node, _) = updated(&bench, started, BundleKind::Whole);
    finds_damage(bench.admin(), &node, &SlotDiskImage::new(bench.raw()));
}

/// What the bundle of an update has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BundleKind {
    Delta,
    Whole,
}

/// Most bytes of a bundle with the delta between two programs that differ by their versions.
const DELTA_BUNDLE_BYTES_MAX: u64 = 256 << 10;

/// The machine that `start` makes of a configuration, after an update from [`FIRST`] to [`SECOND`], which is in slot b.
fn updated(
    bench: &TestBench,
    start: impl FnOnce(&str) -> MachineNode,
    has: BundleKind,
) -> (MachineNode, ReleaseKeys) {
    let keys = ReleaseKeys::one(7);
    let disk = SlotDiskImage::new(bench.raw());
    let first = disk.program(BootSlot::A).expect("the image has it");
    let second = versioned(&first, SECOND);
    let mut draft = ReleaseDraft::new(1, SECOND);
    draft.floor = Some(FIRST);
    let old = (has == BundleKind::Delta).then_some(&first[..]);
    let bundle = keys.bundle_from(bench.path(), &draft, &second, old);
    let bytes = std::fs::metadata(&bundle).expect("written").len();
    assert_eq!(bytes <= DELTA_BUNDLE_BYTES_MAX, old.is_some(), "{bytes}");
    let mut node = start(&config(bench, &keys));
    let identity = node.identity().to_owned();
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

    let mark = node.vm().console().mark();
    let done = update(bench.admin(), &node, &bundle, &["--yes", "--limit", LIMIT]);
    assert_eq!(done.status, 0, "{done:?}\n{}", node.vm().report());
    let done = done.json();
    assert_eq!(done["outcome"], "confirmed", "{done:#}");
    for (member, value) in [
        ("from", FIRST),
        ("to", SECOND),
        ("step", "upgrade"),
        ("changes", "for a test"),
    ] {
        assert_eq!(done["plan"][member], value, "{done:#}");
    }
    assert_eq!(
        done["plan"]["delta_bytes"].is_u64(),
        old.is_some(),
        "{done:#}"
    );
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    let status = stands(
        &node,
        &[
            ("version", SECOND),
            ("slot", "b"),
            ("good", "b"),
            ("other_version", FIRST),
            ("state", "good"),
        ],
    );
    assert_eq!(status["last"]["outcome"], "confirmed", "{status:#}");
    assert_eq!(node.info()["problems"], json!([]));
    has_token(&node, KEPT);
    // The first version is as it was, and the second one is what was signed.
    assert!(
        disk.program(BootSlot::A) == Some(first),
        "slot a was changed"
    );
    assert!(
        disk.program(BootSlot::B) == Some(second),
        "slot b has other bytes"
    );
    (node, keys)
}
