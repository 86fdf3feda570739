//! An update to a good version, and the way back. Under UEFI `update_cuts.rs` has both, and cuts what the update wrote.

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
    stands, status, update,
};

/// The note of a token that an update keeps.
const KEPT: &str = "stays";

/// The floor of the new version refuses an older one that an administrator permits, and a rollback returns to the first
/// version. Identity and stored tokens stay.
pub(crate) fn goes_back(bench: &TestBench, updated: &UpdatedMachine) {
    let node = &updated.node;
    let older = ReleaseDraft::new(2, "0.0.9");
    let older = updated.keys.bundle(bench.path(), &older, &[0; 2 << 20]);
    let refused = update(
        bench.admin(),
        node,
        &older,
        &["--stage", "--downgrade", "0.0.9"],
    );
    is_refused(&refused, "FORBIDDEN", "below-floor");

    let identity = node.identity().to_owned();
    let back = roll_back(bench.admin(), node);
    assert_eq!(back.status, 0, "{back:?}\n{}", node.vm().report());
    stands(
        node,
        &[
            ("version", FIRST),
            ("slot", "a"),
            ("other_version", SECOND),
            ("state", "good"),
        ],
    );
    // The machine does not go back to it by itself.
    alknet_tests::eventually("the version that was left", || {
        (status(node)["left"] == json!([SECOND])).then_some(())
    });
    assert_eq!(node.info()["identity"], identity.as_str());
    has_token(node, KEPT);
}

/// Under BIOS GRUB counts the tries and starts the slots, here on an NVMe disk, and a delta makes the new version from
/// the first one. Afterwards the machine notices what the disk does wrong.
#[test]
fn update_good_under_bios_and_faults_of_its_storage_are_found() {
    let bench = TestBench::new();
    let started = |config: &str| {
        let disk = VirtioDisk::file(bench.raw()).on(DiskController::Nvme);
        serving(&bench, machine(MachineKind::Q35, disk, config))
    };
    let disk = SlotDiskImage::new(bench.raw());
    let updated = updated(&bench, started, BundleKind::Delta, || disk.clone());
    finds_damage(bench.admin(), &updated.node, &disk);
}

/// What the bundle of an update has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BundleKind {
    Delta,
    Whole,
}

/// Most bytes of a bundle with the delta between two programs that differ by their versions.
const DELTA_BUNDLE_BYTES_MAX: u64 = 256 << 10;

/// A machine after an update from [`FIRST`] to [`SECOND`], which is in slot b.
pub(crate) struct UpdatedMachine {
    pub(crate) node: MachineNode,
    pub(crate) keys: ReleaseKeys,
    /// Those of slot a and slot b.
    pub(crate) programs: [Vec<u8>; 2],
}

/// Updates the machine that `start` makes of a configuration. `read` gives its disk as it is afterwards.
pub(crate) fn updated(
    bench: &TestBench,
    start: impl FnOnce(&str) -> MachineNode,
    has: BundleKind,
    read: impl FnOnce() -> SlotDiskImage,
) -> UpdatedMachine {
    let keys = ReleaseKeys::one(7);
    let first = SlotDiskImage::new(bench.raw()).program(BootSlot::A);
    let first = first.expect("the image has it");
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
    let (disk, programs) = (read(), [first, second]);
    for (slot, program) in BootSlot::ALL.into_iter().zip(&programs) {
        let has_it = disk.has_program(slot, program);
        assert_eq!(has_it, Some(true), "slot {slot} has other bytes");
    }
    UpdatedMachine {
        node,
        keys,
        programs,
    }
}
