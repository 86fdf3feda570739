//! An attacker restores an older copy of a machine's disk, or only of its vault: the TPM opens it,
//! and the machine closes it again.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use alknet_qemu::{Vm, VmBuilder};
use alknet_sealed::limits::{VAULT_A_AT, VAULT_B_AT};
use alknet_tests::tools::RAW_DATA_AT;
use alknet_tests::{BootVariant, MachineBuilder};
use serde_json::{Value, json};

use crate::chip::with_chip;
use crate::console::{commands, said, typed};
use crate::knock;
use crate::stolen::{FORGED, forged_beside};
use crate::tpm::{
    DONE_WITHIN, PASSPHRASE, PIN, WITH_PASSPHRASE, WITH_PIN, asked, measured, says, served, set_up,
    type_line,
};

/// Bytes of a copy of the vault.
const COPY_BYTES: usize = 64 << 10;
/// `TPM2_NV_DefineSpace` by the owner, who has no password, of 8 ordinary bytes at the handle of
/// the counter.
const DEFINE_OTHER: [u8; 45] = [
    0x80, 0x02, 0, 0, 0, 45, 0, 0, 0x01,
    0x2a, // A command with a session, its bytes, its code.
    0x40, 0, 0, 0x01, // The owner.
    0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0, // An empty password.
    0, 0, // No authorisation of the index.
    0, 14, 0x01, 0x80, 0x41, 0x4c, 0, 0x0b, 0, 0x06, 0, 0x06, 0, 0, 0, 8,
];

#[test]
fn an_older_copy_that_is_put_back_opens_only_for_its_owner() {
    let (bench, identity) = set_up(WITH_PASSPHRASE);
    let machine = || {
        let machine = measured(&bench, "own").after_firmware();
        machine.configured(WITH_PASSPHRASE)
    };
    let before = bench.path().join("before.raw");
    alknet_qemu::copy(&bench.raw(), &before).unwrap_or_else(|error| panic!("{error}"));

    let node = machine().boot();
    commands(node.vm());
    typed(node.vm(), "passwd", "passphrase of the vault: _");
    typed(node.vm(), PASSPHRASE, "new passphrase: _");
    typed(node.vm(), "battery staple", "the same again: _");
    typed(node.vm(), "battery staple", "the passphrase was changed");
    node.end();

    let now = bench.path().join("now.raw");
    let put = |from: &Path| {
        alknet_qemu::copy(from, &bench.raw()).unwrap_or_else(|error| panic!("{error}"));
    };
    alknet_qemu::copy(&bench.raw(), &now).unwrap_or_else(|error| panic!("{error}"));
    put(&before);
    refused_as_older(&machine().start());

    // The newest disk with an older vault, which had another passphrase, and a copy made by an
    // attacker, who types what opens it.
    put(&now);
    let [from, to] = [&before, &bench.raw()].map(|path| {
        let file = File::options().read(true).write(true).open(path);
        file.expect("the folder is ours")
    });
    let mut older = vec![0; COPY_BYTES];
    let read = from.read_exact_at(&mut older, RAW_DATA_AT + VAULT_A_AT);
    read.expect("it has a vault");
    let forged = forged_beside(&older);
    for (at, copy) in [(VAULT_A_AT, older), (VAULT_B_AT, forged)] {
        let written = to.write_all_at(&copy, RAW_DATA_AT + at);
        written.expect("the folder is ours");
    }
    let vm = machine().start();
    asked(&vm, "passphrase of the vault");
    says(&vm, "the vault is older than the data beside it");
    wrong_then_right(&vm);
    let node = served(&bench, vm);
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["state"], "unlocked", "{status:#}");
    node.end();
    // The count continues, even for the removal of what the TPM opens. This holds after the TPM was
    // switched off in the firmware, so that its owner thought it broken, and was switched on again.
    let with_slot = bench.path().join("with-slot.raw");
    alknet_qemu::copy(&bench.raw(), &with_slot).unwrap_or_else(|error| panic!("{error}"));
    let by_passphrase = |machine: MachineBuilder<'_>| {
        let vm = machine.start();
        asked(&vm, "passphrase of the vault");
        type_line(&vm, PASSPHRASE);
        served(&bench, vm)
    };
    let without_tpm = bench.machine(BootVariant::UefiRaw).after_firmware();
    let node = by_passphrase(without_tpm.configured(WITH_PASSPHRASE));
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(node.info()["problems"], json!([]), "nothing was changed");
    let slot = &status["tpm2"][0]["slot"];
    commands(node.vm());
    let remove = format!("slot rm {slot}");
    typed(node.vm(), &remove, "passphrase of the vault: _");
    typed(
        node.vm(),
        PASSPHRASE,
        &format!("slot {slot} (tpm2) was removed"),
    );
    alknet_tests::eventually("the missing count is reported", || {
        let info = node.info();
        (info["problems"][0]["code"] == "vault-uncounted").then_some(())
    });
    node.end();
    let node = by_passphrase(machine());
    assert_eq!(node.info()["problems"], json!([]), "the TPM counted it");
    node.end();
    put(&with_slot);
    let vm = machine().start();
    refused_as_older(&vm);

    // And a factory reset. The attacker restores the disk that opened without input directly before
    // it.
    type_line(&vm, PASSPHRASE);
    served(&bench, vm).end();
    let counted = bench.path().join("counted.raw");
    alknet_qemu::copy(&bench.raw(), &counted).unwrap_or_else(|error| panic!("{error}"));
    let mut node = machine().with(VmBuilder::exit_on_reset).boot();
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "tpm2", "{status:#}");
    commands(node.vm());
    typed(node.vm(), "factory-reset", "type RESET to go on: _");
    type_line(node.vm(), "RESET");
    let exit = node.vm_mut().wait_exit(DONE_WITHIN);
    let exit = exit.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(exit.reason(), Some("guest-reset"), "{exit}");
    // It starts again, with nothing on its disk.
    asked(&machine().start(), "new passphrase");
    put(&counted);
    refused_as_older(&machine().start());

    // With something else at the counter's handle, the TPM says nothing about the disk's age.
    put(&before);
    replace_counter(&bench.path().join("own.tpm"));
    let vm = machine().start();
    asked(&vm, "passphrase of the vault");
    says(&vm, "something else is in the place of the TPM's counter");
    knock::serves_nothing(&vm);
}

/// The owner of a vault with a PIN types it at each start. That says nothing about an older copy before the console has
/// named it.
#[test]
fn an_older_copy_asks_once_more_where_a_pin_is_typed_at_each_start() {
    let (bench, identity) = set_up(WITH_PIN);
    let machine = || {
        let machine = measured(&bench, "own").after_firmware();
        machine.configured(WITH_PIN)
    };
    let before = bench.path().join("before.raw");
    alknet_qemu::copy(&bench.raw(), &before).unwrap_or_else(|error| panic!("{error}"));
    let vm = machine().start();
    asked(&vm, "PIN of the TPM");
    type_line(&vm, PIN);
    let node = served(&bench, vm);
    commands(node.vm());
    typed(node.vm(), "slot add passphrase", "PIN of the TPM: _");
    typed(node.vm(), PIN, "new passphrase: _");
    typed(node.vm(), PASSPHRASE, "the same again: _");
    typed(node.vm(), PASSPHRASE, "(passphrase) was added to the vault");
    alknet_tests::eventually("the vault has the slot", || {
        let status = node.call("vault/status", &Value::Null);
        (status["slots"] == json!(["tpm2", "passphrase"])).then_some(())
    });
    node.end();

    alknet_qemu::copy(&before, &bench.raw()).unwrap_or_else(|error| panic!("{error}"));
    let vm = machine().start();
    asked(&vm, "PIN of the TPM");
    let mark = vm.console().mark();
    type_line(&vm, PIN);
    let told = "the disk is older than the last change that the TPM counted; type it once more";
    said(&vm, mark, told);
    knock::serves_nothing(&vm);
    type_line(&vm, PIN);
    let node = served(&bench, vm);
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["slots"], json!(["tpm2"]), "{status:#}");
    drop(node);
    // It is the newest from now on.
    let vm = machine().start();
    asked(&vm, "PIN of the TPM");
    type_line(&vm, PIN);
    assert_eq!(served(&bench, vm).identity(), identity);
}

fn refused_as_older(vm: &Vm) {
    asked(vm, "passphrase of the vault");
    says(
        vm,
        "the disk is older than the last change that the TPM counted",
    );
    knock::serves_nothing(vm);
}

/// Removes the counter from the TPM, and puts something else at its handle.
fn replace_counter(chip: &Path) {
    with_chip(chip, |mut tpm| {
        tpm.remove_counter().expect("it needs no secret");
        let mut wire = tpm.into_inner();
        wire.write_all(&DEFINE_OTHER).expect("it listens");
        let mut answer = [0; 10];
        wire.read_exact(&mut answer).expect("it answers");
        assert_eq!(answer[6..], [0; 4], "the TPM's code");
    });
}

/// The passphrase of the restored vault, after that of the forged one and that of the newer one.
fn wrong_then_right(vm: &Vm) {
    for wrong in [FORGED, "battery staple"] {
        let mark = vm.console().mark();
        type_line(vm, wrong);
        let asks = "alknet: asks: passphrase of the vault";
        let again = vm.wait_for_after(mark, asks, DONE_WITHIN);
        again.unwrap_or_else(|error| panic!("{error}"));
        says(vm, "what was typed does not open it");
        knock::serves_nothing(vm);
    }
    type_line(vm, PASSPHRASE);
}
