//! Updates of a machine under Secure Boot with its owner's key, whose vault the TPM opens by PCR 7, 11 and 12.

use alknet_boot_state::BootSlot;
use alknet_qemu::PlatformOwner;
use alknet_tests::{BootVariant, MachineNode, TestBench};
use serde_json::{Value, json};

use crate::secure_boot::{OwnedPrograms, by, enrolled};
use crate::tpm::TPM_ALONE;
use crate::update::bundle::{ReleaseDraft, ReleaseKeys, write};
use crate::update::disk::SlotDiskImage;
use crate::update::program::{kernel_alone, versioned};
use crate::update::{FIRST, LIMIT, SECOND, failed_update, opening_slot, roll_back, stands, update};

/// The loader's message about a version that the firmware does not permit.
const NOT_PERMITTED: &str = "alknet-loader: slot b did not start: Secure Boot does not permit it";

/// To the owner's new version and back without a person; then a version whose bundle is signed and whose program is
/// not, and one that another owner signed, end in the first version.
#[test]
fn update_under_secure_boot_and_back_starts_only_what_its_owner_signed() {
    let bench = TestBench::new();
    let [owner, other_owner] =
        ["owner", "other-owner"].map(|name| PlatformOwner::create(bench.path(), name));
    let [owner, other_owner] = [owner, other_owner].map(|made| made.expect("keys can be made"));
    let variables = enrolled(&bench, &owner, "owners");
    let disk = SlotDiskImage::new(bench.raw());
    let first = disk.program(BootSlot::A).expect("the image has it");
    OwnedPrograms::of_disk(&bench)
        .by(&bench, &owner, "first")
        .install(&bench);
    let second = versioned(&first, SECOND);
    let unsigned = write(bench.path(), "second", &second);
    let owners = by(&bench, &owner, &unsigned, "second-of-owner");
    let owners = std::fs::read(owners).expect("it was signed");
    // Firmware refuses the other two before it starts a kernel.
    let foreign = kernel_alone(&first, SECOND, "", &[]);
    let unsigned_other = write(bench.path(), "other", &foreign);
    let others = by(&bench, &other_owner, &unsigned_other, "second-of-other");
    let others = std::fs::read(others).expect("it was signed");
    let keys = ReleaseKeys::one(7);
    let bundle = |number, program: &[u8]| {
        keys.bundle(bench.path(), &ReleaseDraft::new(number, SECOND), program)
    };

    let machine = bench.machine(BootVariant::UefiRaw).measured("own");
    let configured = format!("{TPM_ALONE}\n{}", keys.config());
    let mut node = machine.secured(&variables).configured(&configured).boot();
    let identity = node.identity().to_owned();
    let slot_of_first = opened(&node);

    let mark = node.vm().console().mark();
    let done = update(
        bench.admin(),
        &node,
        &bundle(1, &owners),
        &["--yes", "--limit", LIMIT],
    );
    assert_eq!(done.status, 0, "{done:?}\n{}", node.vm().report());
    assert_eq!(done.json()["plan"]["needs_person"], Value::Null);
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    stands(
        &node,
        &[("version", SECOND), ("slot", "b"), ("state", "good")],
    );
    let slot_of_second = opened(&node);
    assert_ne!(slot_of_first, slot_of_second);

    let mark = node.vm().console().mark();
    let back = roll_back(bench.admin(), &node);
    assert_eq!(back.status, 0, "{back:?}\n{}", node.vm().report());
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    stands(
        &node,
        &[("version", FIRST), ("slot", "a"), ("state", "good")],
    );
    assert_ne!(opened(&node), slot_of_second);

    for (number, program) in [(2, &foreign), (3, &others)] {
        let mark = node.vm().console().mark();
        failed_update(bench.admin(), &mut node, &bundle(number, program));
        let said = node.vm().console().since(mark);
        assert!(said.contains(NOT_PERMITTED), "{said}");
        stands(
            &node,
            &[("version", FIRST), ("slot", "a"), ("state", "failed")],
        );
        opened(&node);
    }
}

/// The number of the one slot of the vault, which is the TPM's and opened it.
fn opened(node: &MachineNode) -> Value {
    let slot = opening_slot(node, &json!([7, 11, 12]));
    assert_eq!(slot["protection"], "measured and enforced", "{slot:#}");
    slot["slot"].clone()
}
