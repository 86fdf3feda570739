//! Updates of a machine whose vault the TPM opens for what firmware measured.

use std::time::Duration;

use alknet_boot_state::{BootPhase, BootSlot};
use alknet_call::{CallError, CallOptions, ErrorCode};
use alknet_tests::{MachineNode, READY, TestBench};
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::power::is_full;
use crate::tpm::{PIN, TPM_ALONE, WITH_PIN, asked, measured, served, set_up, type_line};
use crate::update::bundle::{ReleaseDraft, ReleaseKeys};
use crate::update::disk::SlotDiskImage;
use crate::update::program::{kernel_alone, versioned};
use crate::update::{FIRST, LIMIT, SECOND, opening_slot, roll_back, stands, update};
use crate::update_unwell::RESTARTS;

/// Bytes of a piece of a bundle, as a hub sends it.
const PIECE_BYTES: usize = 256 << 10;
/// The longest that an emulated machine takes for a piece: after the last one it writes the program and reads it back.
const CALL_WITHIN: Duration = Duration::from_secs(900);

/// Offset of the first reserved word in an EFI program.
const RESERVED_AT: u64 = 0x28;
/// Longest wait from an order to restart until the TPM refused to open the vault. Emulated firmware alone takes long.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for the gate, which gives a version up after ten minutes of the guest's clock.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(660);

/// To the new version without a person, and in `cargo xtask soak update-cuts` also back: before each start the machine has
/// a slot for the program that comes, and after each confirmation the one of the program before is gone. Then the machine
/// predicts wrongly. Each run has the way back under Secure Boot (`update_secured.rs`).
#[test]
fn update_of_a_sealed_machine_and_back_needs_no_person() {
    let keys = ReleaseKeys::one(7);
    let configured = format!("{TPM_ALONE}\n{}", keys.config());
    let (bench, identity) = set_up(&configured);
    let bundle = bundle(&bench, &keys, versioned);
    // The restarts run the machine's own firmware, which measures both programs.
    let disk = SlotDiskImage::new(bench.raw());
    assert_eq!(disk.pass_loader(), Some(BootSlot::A));
    let machine = measured(&bench, "own").after_firmware();
    let mut node = machine.configured(&configured).boot();
    assert_eq!(node.identity(), identity);
    let first = opened(&node);

    let mark = node.vm().console().mark();
    let done = update(bench.admin(), &node, &bundle, &["--yes", "--limit", LIMIT]);
    assert_eq!(done.status, 0, "{done:?}\n{}", node.vm().report());
    assert_eq!(done.json()["plan"]["needs_person"], Value::Null);
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    stands(
        &node,
        &[("version", SECOND), ("slot", "b"), ("state", "good")],
    );
    let second = opened(&node);
    assert_ne!(
        first, second,
        "the slot of the first program is still there"
    );

    let mut trial = BootSlot::A;
    if is_full() {
        let mark = node.vm().console().mark();
        let back = roll_back(bench.admin(), &node);
        assert_eq!(back.status, 0, "{back:?}\n{}", node.vm().report());
        node.wait_ready(mark);
        assert_eq!(node.identity(), identity);
        stands(
            &node,
            &[("version", FIRST), ("slot", "a"), ("state", "good")],
        );
        assert_ne!(opened(&node), second);
        trial = BootSlot::B;
    }
    returns_after_wrong_prediction(&mut node, &disk, trial);
}

/// The version in slot `trial` is put on trial once more, and firmware measures another program than the one for which
/// the machine sealed a slot: its first bytes, which nothing runs, change in between. The TPM opens nothing for it. The
/// version before opens the vault by its own slot, and nothing is typed.
///
/// In `cargo xtask soak update-cuts` the gate ends this last try. In each run of the tests the reset button does, ten
/// minutes earlier. The quick clock of other tests would let the time-outs of the TPM's driver pass while the TPM works.
fn returns_after_wrong_prediction(node: &mut MachineNode, disk: &SlotDiskImage, trial: BootSlot) {
    let (good, failed) = match trial {
        BootSlot::A => (SECOND, FIRST),
        BootSlot::B => (FIRST, SECOND),
    };
    let identity = node.identity().to_owned();
    let slot = opened(node);
    let mark = node.vm().console().mark();
    node.call("update/rollback", &json!({}));
    // The answer comes when the slot is sealed and the record is written. Firmware reads the program seconds later.
    disk.flip(trial, RESERVED_AT);
    disk.leave_last_try();
    let starts = format!("starting slot {trial} on trial, tries left after this one: 0");
    let mut closed = mark;
    for line in [starts.as_str(), "PCR 4 (the programs that were started)"] {
        let said = node.vm().wait_for_after(closed, line, CLOSED_WITHIN);
        closed = said.unwrap_or_else(|error| panic!("{error}"));
    }
    let said = node.vm().console().since(mark);
    assert!(!said.contains(READY), "it serves: {said}");
    let cause = if is_full() {
        let given_up = node.vm().wait_for_after(closed, RESTARTS, GIVEN_UP_WITHIN);
        given_up.unwrap_or_else(|error| panic!("{error}"));
        "gate"
    } else {
        let pressed = node.vm().reset_button();
        pressed.unwrap_or_else(|error| panic!("{error}"));
        "silence"
    };
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    let slot_of_good = trial.other();
    let status = stands(
        node,
        &[
            ("version", good),
            ("slot", slot_of_good.letter()),
            ("state", "failed"),
        ],
    );
    assert_eq!(status["last"]["version"], failed, "{status:#}");
    assert_eq!(status["last"]["cause"], cause, "{status:#}");
    assert_eq!(opened(node), slot, "another slot opened the vault");
}

#[test]
fn update_of_a_machine_with_a_pin_says_that_a_person_must_come() {
    let keys = ReleaseKeys::one(7);
    let configured = format!("{WITH_PIN}\n{}", keys.config());
    let (bench, identity) = set_up(&configured);
    // A plan needs no program that starts.
    let bundle = bundle(&bench, &keys, |first, version| {
        kernel_alone(first, version, "", &[])
    });
    let machine = measured(&bench, "own").after_firmware();
    let vm = machine.configured(&configured).start();
    asked(&vm, "PIN of the TPM");
    type_line(&vm, PIN);
    let node = served(&bench, vm);
    assert_eq!(node.identity(), identity);
    let plan = update(bench.admin(), &node, &bundle, &["--dry-run"]).json();
    assert_eq!(plan["plan"]["needs_person"], "pin", "{plan:#}");
    let scopes = json!({ "scopes": ["update:offer", "update:read"] });
    let token = node.call("token/make", &scopes)["token"].clone();
    let token = token.as_str().expect("a token").to_owned();
    let bundle = std::fs::read(bundle).expect("the test wrote it");
    let runtime = Runtime::new().expect("a runtime");
    let refused = runtime.block_on(offered_and_started(&node, token, &bundle));
    assert_eq!(refused.code, ErrorCode::Forbidden, "{refused}");
    let details = refused.details.expect("details");
    assert_eq!(details["code"], "needs-person", "{details}");
    // It is staged, and the machine goes on.
    stands(&node, &[("version", FIRST), ("state", "staged")]);
    takes_back(&bench, &node);
}

/// A rollback of a version that was to start with the next restart, and then of the staged one. A machine that restarts
/// takes no request about updates, so the test puts the version on trial itself, as a loader leaves it that could not
/// count the try.
fn takes_back(bench: &TestBench, node: &MachineNode) {
    let disk = SlotDiskImage::new(bench.raw());
    let phase = || disk.record().expect("a record").phase();
    disk.arm();
    assert_eq!(phase(), BootPhase::Pending);
    node.call("update/rollback", &json!({}));
    assert_eq!(phase(), BootPhase::Staged);
    let back = roll_back(bench.admin(), node);
    assert_eq!(back.json()["outcome"], "taken-back", "{back:?}");
    assert_eq!(phase(), BootPhase::Idle);
    stands(
        node,
        &[("version", FIRST), ("slot", "a"), ("state", "idle")],
    );
}

/// A hub may offer a version and start it. This one starts it whatever its plan says, and gets this error.
async fn offered_and_started(node: &MachineNode, token: String, bundle: &[u8]) -> CallError {
    let (_dialer, client) = node.client().await.expect("it serves");
    let options = CallOptions {
        auth_token: Some(token),
        timeout: Some(CALL_WITHIN),
        ..CallOptions::default()
    };
    let call =
        async |operation: &str, input: Value| client.call_with(operation, &input, &options).await;
    let offer = json!({ "version": SECOND, "bytes": bundle.len() });
    let begun = call("update/offer", offer).await.expect("it is wanted");
    let (session, mut plan) = (&begun.value()["session"], Value::Null);
    for (n, piece) in bundle.chunks(PIECE_BYTES).enumerate() {
        let (offset, data) = (n * PIECE_BYTES, BASE64.encode(piece));
        let input = json!({ "session": session, "offset": offset, "data": data });
        let taken = call("update/write", input).await;
        plan = taken.expect("the next piece").value()["plan"].clone();
    }
    assert_eq!(plan["needs_person"], "pin", "{plan:#}");
    call("update/apply", json!({}))
        .await
        .expect_err("it needs a person")
}

/// The number of the one slot of the vault, which is the TPM's and opened it.
fn opened(node: &MachineNode) -> Value {
    opening_slot(node, &json!([4, 11, 12]))["slot"].clone()
}

/// A bundle with what `program` makes of the image's program and a version.
fn bundle(
    bench: &TestBench,
    keys: &ReleaseKeys,
    program: fn(&[u8], &str) -> Vec<u8>,
) -> std::path::PathBuf {
    let first = SlotDiskImage::new(bench.raw()).program(BootSlot::A);
    let second = program(&first.expect("the image has it"), SECOND);
    keys.bundle(bench.path(), &ReleaseDraft::new(1, SECOND), &second)
}
