//! An update to a good version: what it has to leave behind, and by a hub under a BIOS. Under UEFI an administrator has
//! both this update and the way back (`administrator.rs`), and `update_cuts.rs` cuts what they wrote.

use std::path::PathBuf;

use alknet_boot_state::BootSlot;
use alknet_qemu::{ConsoleMark, DiskController, MachineKind, VirtioDisk, VmBuilder};
use alknet_tests::{CliRunner, MachineNode, TestBench};
use serde_json::json;

use super::administrator::WORKERS;
use super::bundle::{ReleaseDraft, ReleaseKeys};
use super::damage::finds_damage;
use super::disk::SlotDiskImage;
use super::hub::{MachineHub, WORKER};
use super::page::UpdatePageReader;
use super::program::versioned;
use super::{FIRST, SECOND, config, has_token, machine, make_token, roll_back, serving, stands};

pub(super) const PAGE: &str = include_str!("../../../../docs/update.md");

/// The note of a token that an update keeps.
pub(crate) const KEPT: &str = "stays";
/// The number of the good release's documents: above those of a hub's lies.
pub(super) const NUMBER: u64 = 20;

/// Under BIOS GRUB counts the tries and starts the slots, here on an NVMe disk. The machine's hub lies to it, and then
/// updates it. Afterwards the machine notices what the disk does wrong, and goes back to the version before.
#[test]
fn update_by_a_hub_under_bios_after_its_lies_and_faults_of_its_storage_are_found() {
    let bench = TestBench::new();
    let good = GoodUpdate::new(&bench, BundleKind::Whole);
    let hub = MachineHub::start(&bench);
    let promised = hub.promise(&good.keys);
    let config = good.config(&bench, &hub.join_entry());
    let disk = VirtioDisk::file(bench.raw()).on(DiskController::Nvme);
    let mut node = good.serving(&bench, machine(MachineKind::Q35, disk, &config));
    let disk = SlotDiskImage::new(bench.raw());
    let identity = node.identity().to_owned();
    hub.has_worker(&identity);
    hub.lies_change_nothing(&promised, &node, &disk, &good.keys);

    let reader = UpdatePageReader::new(&bench, PAGE, &good.bundle);
    reader.add_node("attic", hub.target());
    let mark = node.vm().console().mark();
    let said = reader.follow(WORKERS, node.vm());
    let line = format!("ring 1  {WORKER}  confirmed\n");
    assert!(said.contains(&line), "{said}");
    good.is_confirmed(&mut node, mark, &identity);
    good.is_on(&disk);
    hub.reports_update(&identity);
    finds_damage(bench.admin(), &node, &disk);
    goes_back(bench.admin(), &node);
}

/// What the bundle of an update has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BundleKind {
    Delta,
    Whole,
}

/// Most bytes of a bundle with the delta between two programs that differ by their versions.
const DELTA_BUNDLE_BYTES_MAX: u64 = 256 << 10;

/// An update from the program of the built image, [`FIRST`], to [`SECOND`].
pub(crate) struct GoodUpdate {
    pub(super) keys: ReleaseKeys,
    /// The file of the bundle.
    pub(super) bundle: PathBuf,
    /// Those of slot a and slot b after the update.
    pub(crate) programs: [Vec<u8>; 2],
}

impl GoodUpdate {
    pub(super) fn new(bench: &TestBench, has: BundleKind) -> Self {
        let keys = ReleaseKeys::one(7);
        let first = SlotDiskImage::new(bench.raw()).program(BootSlot::A);
        let first = first.expect("the image has it");
        let second = versioned(&first, SECOND);
        let mut draft = ReleaseDraft::new(NUMBER, SECOND);
        draft.floor = Some(FIRST);
        let old = (has == BundleKind::Delta).then_some(&first[..]);
        let bundle = keys.bundle_from(bench.path(), &draft, &second, old);
        let bytes = std::fs::metadata(&bundle).expect("written").len();
        assert_eq!(bytes <= DELTA_BUNDLE_BYTES_MAX, old.is_some(), "{bytes}");
        Self {
            keys,
            bundle,
            programs: [first, second],
        }
    }

    /// The configuration of the machine, with `more` behind its table `[update]`.
    pub(crate) fn config(&self, bench: &TestBench, more: &str) -> String {
        config(bench, &self.keys) + more
    }

    /// This machine before the update, with a token.
    pub(super) fn serving(&self, bench: &TestBench, vm: VmBuilder) -> MachineNode {
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

    /// The machine has confirmed the version, which is in slot b, and has kept its key and its token. It restarted after
    /// `mark`.
    #[track_caller]
    pub(super) fn is_confirmed(&self, node: &mut MachineNode, mark: ConsoleMark, identity: &str) {
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
        assert_eq!(node.info()["problems"], json!([]));
        has_token(node, KEPT);
    }

    /// The first version is as it was, and the second one is what was signed.
    #[track_caller]
    pub(crate) fn is_on(&self, disk: &SlotDiskImage) {
        for (slot, program) in BootSlot::ALL.into_iter().zip(&self.programs) {
            let has_it = disk.has_program(slot, program);
            assert_eq!(has_it, Some(true), "slot {slot} has other bytes");
        }
    }
}

/// An administrator returns to the first version, which keeps the key and the token.
fn goes_back(user: &CliRunner, node: &MachineNode) {
    let identity = node.identity();
    let back = roll_back(user, node);
    assert_eq!(back.status, 0, "{back:?}\n{}", node.vm().report());
    stands(
        node,
        &[("version", FIRST), ("slot", "a"), ("state", "good")],
    );
    assert_eq!(node.info()["identity"], identity);
    has_token(node, KEPT);
}
