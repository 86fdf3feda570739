//! The TPM opens the vault of a machine that firmware measures, without input. After a start of another image, with
//! another chip, or without the PIN, only the passphrase opens it. A user at the console changes its slots.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alknet_qemu::{ConsoleMark, Interposer, VirtioDisk, Vm};
use alknet_tests::{
    BootVariant, MachineBuilder, MachineNode, SnapshotPoint, TestBench, eventually,
};
use serde_json::{Value, json};

use crate::console::{commands, said, typed};
use crate::interposer::{TpmImpostor, asking_for_the_slot};
use crate::media::{self, KEY, OTHER_VAULT, stick};
use crate::secure_boot::{LOADER, PROGRAM, copy_out, program, put};

/// Longest wait from power-on until the console asks a question. Emulated firmware alone takes long.
const ASKED_WITHIN: Duration = Duration::from_secs(30);
/// Configurations of a machine whose vault opens by its TPM alone, also by a passphrase, or by the TPM with a PIN.
pub(crate) const TPM_ALONE: &str = "[vault]\nunlock = [\"tpm2\"]";
pub(crate) const WITH_PASSPHRASE: &str = "[vault]\nunlock = [\"tpm2\", \"passphrase\"]";
pub(crate) const WITH_PIN: &str = "[vault]\nunlock = [\"tpm2\"]\ntpm_pin = true";
pub(crate) const PASSPHRASE: &str = "correct horse";
pub(crate) const PIN: &str = "1234";

/// Longest wait from an answer at the console until its result.
pub(crate) const DONE_WITHIN: Duration = Duration::from_secs(30);

/// A word of the image's command line, and another word with the same effect.
const WORD: &[u8] = b"panic=10";
const OTHER_WORD: &[u8] = b"panic=11";
/// File name of an update on a medium or on the boot partition.
const NEXT: &str = "alknet-next.efi";
/// Offset of the first reserved word in an EFI program.
const RESERVED_AT: usize = 0x28;

/// `TPM2_PCR_Extend`, and the register to which the machine seals every slot.
const PCR_EXTEND: [u8; 4] = [0, 0, 1, 0x82];
const PCR_OF_ALL_SLOTS: [u8; 4] = [0, 0, 0, 11];

/// Counts how often a chip extended [`PCR_OF_ALL_SLOTS`], and asks the chip for a slot's key. In a TPM's messages the
/// code of the command or response is at byte 6, and the command's handle at byte 10.
#[derive(Debug)]
struct LockWatch {
    extends: AtomicUsize,
    /// Asks when the machine first uses the TPM.
    attacker: Arc<TpmImpostor>,
}

impl LockWatch {
    fn new(attacker: Arc<TpmImpostor>) -> Self {
        Self {
            extends: AtomicUsize::default(),
            attacker,
        }
    }

    fn extends(&self) -> usize {
        self.extends.load(Ordering::Relaxed)
    }

    fn forward(
        &self,
        command: &[u8],
        chip: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let response = chip(command)?;
        let is_meant = command[6..].starts_with(&PCR_EXTEND)
            && command.get(10..14) == Some(&PCR_OF_ALL_SLOTS[..]);
        if is_meant && response[6..].starts_with(&[0; 4]) {
            self.extends.fetch_add(1, Ordering::Relaxed);
        }
        Ok(response)
    }
}

impl Interposer for LockWatch {
    fn exchange(
        &self,
        command: &[u8],
        chip: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        self.attacker
            .exchange(command, &mut |command| self.forward(command, chip))
    }
}

/// The first start asked for a passphrase as a second way to open the vault; a later start from power-on needs no
/// input. The machine asks for the passphrase and says why if another image starts, if another program starts that
/// measures the same image, or if the machine has another chip. The other image is an update: the administrator makes a
/// slot for it before it replaces the running image. Then the update opens the vault as well, and renews the slot of
/// the previous image.
#[test]
fn a_machine_opens_by_its_tpm_until_something_else_is_started() {
    // The firmware that runs now must open a slot that the machine sealed to measurements of an earlier firmware run.
    let (bench, identity) = set_up(WITH_PASSPHRASE);
    let machine = |chip: &str| measured(&bench, chip).configured(WITH_PASSPHRASE);
    // Firmware that has started once wrote its boot entries, which come with this machine.
    drop(machine("recorder").after_firmware().start());
    let before_the_lock = asking_for_the_slot(&bench.raw());
    let watch = Arc::new(LockWatch::new(Arc::clone(&before_the_lock)));
    let between = Arc::clone(&watch);
    let mut node = machine("own").with(|vm| vm.interposer(between)).boot();
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    let slot = json!({ "slot": 0, "pcrs": [4, 11, 12], "pin": false,
                       "protection": "measured, not enforced" });
    for (key, value) in [
        ("sealed", json!(true)),
        ("slots", json!(["tpm2", "passphrase"])),
        ("tpm2", json!([slot])),
        ("opened_by", json!("tpm2")),
    ] {
        assert_eq!(status[key], value, "{key}: {status:#}");
    }
    assert_eq!(node.info()["problems"], json!([]));
    let add = |node: &MachineNode, leads_to: &str| {
        commands(node.vm());
        let asks = "passphrase of the vault: _";
        typed(node.vm(), "slot add tpm2 next", asks);
        typed(node.vm(), PASSPHRASE, leads_to);
    };
    add(&node, "no alknet-next.efi in the root");
    leave_commands(node.vm());
    // After a hard lock the TPM opens nothing before the machine restarts, even if a user presses Enter.
    let mark = node.vm().console().mark();
    let before = watch.extends();
    assert_ne!(before, 0, "the image was measured");
    assert!(before_the_lock.kek().is_some(), "the slot is open");
    node.try_call("vault/lock", &json!({ "hard": true }), &[]);
    let line = "alknet: asks: passphrase of the vault";
    let asks = node.vm().wait_for_after(mark, line, DONE_WITHIN);
    asks.unwrap_or_else(|error| panic!("{error}"));
    type_line(node.vm(), "");
    let closed = node
        .vm()
        .wait_for_after(mark, "the TPM opens nothing", DONE_WITHIN);
    let mark = closed.unwrap_or_else(|error| panic!("{error}"));
    // An attacker in PID 1 could print that line too. The chip was also asked to extend the register of the slots.
    alknet_test_support::eventually("the TPM is closed", DONE_WITHIN, || {
        (watch.extends() > before).then_some(())
    });
    type_line(node.vm(), PASSPHRASE);
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    node.end();

    // The next image differs only in its command line. Firmware takes it for the image when it lies in the image's
    // place.
    let (image, next) = (program(&bench), bench.path().join("next.efi"));
    let mut other = std::fs::read(&image).expect("the folder is ours");
    let word = word_at(&other, WORD);
    other[word..word + WORD.len()].copy_from_slice(OTHER_WORD);
    std::fs::write(&next, other).expect("the folder is ours");
    put(&bench, &next, PROGRAM);
    // A thief's medium is attached from here on. It has a key of another vault, which makes it a medium like others.
    let medium = stick(&bench, "thiefs", OTHER_VAULT, KEY);
    media::put(&bench, &medium, NEXT, "the thief's program");
    let beside = |chip: &str| machine(chip).disk(VirtioDisk::file(&medium).read_only());
    let recorder = || beside("recorder");
    let handed_over = bench.record("handed-over", SnapshotPoint::Kernel, recorder);
    let vm = beside("own").resumed(&handed_over).start();
    asked(&vm, "passphrase of the vault");
    says(&vm, "PCR 4 (the programs that were started)");
    says(&vm, "PCR 11 (the image or its command line)");
    type_line(&vm, PASSPHRASE);
    let node = served(&bench, vm);
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "passphrase", "{status:#}");
    node.end();

    // Firmware sees another program, with the same image in it: the stub measures sections, and this byte is in
    // reserved words before all sections.
    let mut reserved = std::fs::read(&image).expect("the folder is ours");
    reserved[RESERVED_AT] = 1;
    let path = bench.path().join("reserved.efi");
    std::fs::write(&path, reserved).expect("the folder is ours");
    put(&bench, &path, PROGRAM);
    let other_program = || {
        let vm = machine("own").ready_to_boot().start();
        asked(&vm, "passphrase of the vault");
        says(
            &vm,
            "to: PCR 4 (the programs that were started) has another value",
        );
    };
    other_program();

    // Another loader starts the image itself.
    put(&bench, &image, PROGRAM);
    let loader = copy_out(&bench, LOADER, "loader.efi");
    let mut reserved = std::fs::read(&loader).expect("the folder is ours");
    reserved[RESERVED_AT] ^= 1;
    std::fs::write(&path, reserved).expect("the folder is ours");
    put(&bench, &path, LOADER);
    other_program();

    put(&bench, &loader, LOADER);
    put(&bench, &next, &format!("::/{NEXT}"));
    let node = machine("own").after_firmware().boot();
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "tpm2", "{status:#}");
    add(&node, "type ADD to go on: _");
    typed(node.vm(), "ADD", "slot 2 (tpm2) was added");
    has_slots(&node, &json!(["tpm2", "passphrase", "tpm2"]));
    node.end();

    put(&bench, &next, PROGRAM);
    let node = beside("own").resumed(&handed_over).boot();
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "tpm2", "{status:#}");
    // The machine makes no slot for either program while a thief's program lies beside the owner's.
    add(&node, "there is more than one");
    assert_eq!(slots(&node), json!(["tpm2", "passphrase", "tpm2"]));
    typed(node.vm(), "slot test 0", "PCR 11 (the");
    typed(node.vm(), "slot renew 0", "passphrase of the vault: _");
    typed(
        node.vm(),
        PASSPHRASE,
        "slot 3 (tpm2) is for what runs, in the place of slot 0",
    );
    typed(node.vm(), "slot test 3", "slot 3 (tpm2) opens");
    assert_eq!(node.info()["problems"], json!([]));
    drop(node);

    let vm = beside("another").resumed(&handed_over).start();
    asked(&vm, "passphrase of the vault");
    says(&vm, "sealed by another TPM");
}

#[test]
fn a_pin_is_asked_for_and_wrong_ones_are_counted_by_the_tpm() {
    let (bench, identity) = set_up(WITH_PIN);
    let vm = after_firmware(&bench, "own").configured(WITH_PIN).start();
    asked(&vm, "PIN of the TPM");
    type_line(&vm, "1235");
    shown(&vm, "wrong PIN, 2 more before");
    type_line(&vm, "1243");
    shown(&vm, "wrong PIN, 1 more before");
    type_line(&vm, PIN);
    let node = served(&bench, vm);
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["tpm2"][0]["pin"], true, "{status:#}");
    // A right PIN does not reduce the count of wrong PINs.
    let mark = node.vm().console().mark();
    node.call("vault/lock", &Value::Null);
    let again = node
        .vm()
        .wait_for_after(mark, "PIN of the TPM", DONE_WITHIN);
    again.unwrap_or_else(|error| panic!("{error}"));
    type_line(node.vm(), "9999");
    eventually("the lockout is reported", || {
        let info = node.info();
        let text = info["problems"][0]["text"].as_str()?.to_owned();
        let told = text.contains("too many wrong PINs") && text.contains("1000 s");
        told.then_some(())
    });
}

/// The first start makes the PIN and the passphrase. Then a user at the console changes the slots, and a new master key
/// keeps those TPM slots whose PIN the user typed or that need no PIN.
#[test]
fn a_pin_and_a_passphrase_are_made_together_and_changed_at_the_console() {
    let bench = TestBench::new();
    let machine = || {
        let unlock = "[vault]\nunlock = [\"tpm2\", \"passphrase\"]\ntpm_pin = true";
        after_firmware(&bench, "own").configured(unlock)
    };
    let either = "PIN of the TPM, or Enter for the passphrase";
    let vm = machine().start();
    asked(&vm, "new PIN of the TPM");
    typed(&vm, "1234", "the same again");
    typed(&vm, "1234", "new passphrase");
    typed(&vm, "correct horse", "the same again");
    type_line(&vm, "correct horse");
    let node = served(&bench, vm);
    let identity = node.identity().to_owned();
    assert_eq!(slots(&node), json!(["tpm2", "passphrase"]));
    node.end();

    let vm = machine().start();
    asked(&vm, either);
    typed(&vm, "", "passphrase of the vault, or Enter for the PIN");
    type_line(&vm, "correct horse");
    let node = served(&bench, vm);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "passphrase", "{status:#}");
    let vm = node.vm();
    commands(vm);
    typed(vm, "slot test 0", "PIN of slot 0: _");
    typed(vm, "1235", "wrong PIN, 2 more before");
    typed(vm, "1234", "slot 0 (tpm2) opens");
    typed(vm, "slot add tpm2", "passphrase of the vault: _");
    typed(vm, "correct horse", "slot 2 (tpm2) was added");
    typed(vm, "slot test 2", "slot 2 (tpm2) opens");
    typed(vm, "slot add tpm2 pin", "passphrase of the vault: _");
    typed(vm, "correct horse", "new PIN of the TPM: _");
    typed(vm, "4321", "the same again: _");
    typed(vm, "4321", "slot 3 (tpm2) was added");
    typed(vm, "rekey", "PIN of slot 0, or Enter to lose the slot: _");
    typed(vm, "", "passphrase of slot 1, or Enter to lose the slot: _");
    let mark = vm.console().mark();
    typed(
        vm,
        "correct horse",
        "PIN of slot 3, or Enter to lose the slot: _",
    );
    typed(vm, "4321", "type REKEY to go on: _");
    let told = vm.console().since(mark);
    for fate in [
        "slot 0 (tpm2) is LOST: its PIN was not typed",
        "slot 1 (passphrase) stays",
        "slot 2 (tpm2) stays",
        "slot 3 (tpm2) stays",
    ] {
        assert!(told.contains(fate), "{fate} in {told}");
    }
    typed(vm, "REKEY", "The vault has a new master key");
    has_slots(&node, &json!(["passphrase", "tpm2", "tpm2"]));
    node.end();

    // Each of the slots that stayed opens the vault with its new master key.
    let node = machine().boot();
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "tpm2", "{status:#}");
    commands(node.vm());
    typed(node.vm(), "slot rm 2", "passphrase of the vault: _");
    typed(node.vm(), "correct horse", "slot 2 (tpm2) was removed");
    node.end();
    let vm = machine().start();
    asked(&vm, either);
    type_line(&vm, "4321");
    let node = served(&bench, vm);
    assert_eq!(node.identity(), identity);
    assert_eq!(node.info()["problems"], json!([]));
}

/// Leaves the list of commands, which would otherwise stay above the question that follows a lock of the vault.
pub(crate) fn leave_commands(vm: &Vm) {
    let mark = vm.console().mark();
    let sent = vm.console().send("\x03");
    sent.unwrap_or_else(|error| panic!("{error}"));
    said(vm, mark, "[ok] node");
}

fn slots(node: &MachineNode) -> Value {
    node.call("vault/status", &Value::Null)["slots"].take()
}

/// Waits until the vault has these slots: the console may say so before the node knows.
fn has_slots(node: &MachineNode, wanted: &Value) {
    alknet_test_support::eventually("the vault has these slots", DONE_WITHIN, || {
        let now = slots(node);
        (now == *wanted)
            .then_some(())
            .ok_or_else(|| now.to_string())
    });
}

/// The image on a machine with UEFI, the chip `chip`, and UEFI variables that persist. Firmware measures the image
/// during the start.
pub(crate) fn measured<'a>(bench: &'a TestBench, chip: &str) -> MachineBuilder<'a> {
    bench.machine(BootVariant::UefiRaw).measured(chip)
}

/// The same machine from the point at which firmware has measured the image.
fn after_firmware<'a>(bench: &'a TestBench, chip: &str) -> MachineBuilder<'a> {
    measured(bench, chip).after_firmware()
}

pub(crate) fn served(bench: &TestBench, vm: Vm) -> MachineNode {
    MachineNode::new(vm, BootVariant::UefiRaw, bench.admin().clone())
}

/// Returns where the command line's only copy of `WORD` lies.
fn word_at(image: &[u8], word: &[u8]) -> usize {
    let places: Vec<_> = memchr::memmem::find_iter(image, b"console=ttyS0 quiet ").collect();
    let [at] = places[..] else {
        panic!("{} command lines", places.len());
    };
    at + memchr::memmem::find(&image[at..], word).expect("the word is there")
}

/// A machine that an earlier start set up with this configuration, and its identity. Its console asked for
/// [`PASSPHRASE`] or [`PIN`] where the configuration wants one, and for nothing else.
pub(crate) fn set_up(config: &str) -> (TestBench, String) {
    let wanted = match config {
        config if config.starts_with(WITH_PASSPHRASE) => Some(("new passphrase", PASSPHRASE)),
        config if config.starts_with(WITH_PIN) => Some(("new PIN of the TPM", PIN)),
        _ => None,
    };
    TestBench::set_up_measured(config, |bench, machine| {
        let vm = machine.start();
        if let Some((question, answer)) = wanted {
            asked(&vm, question);
            type_line(&vm, answer);
            shown(&vm, "the same again");
            type_line(&vm, answer);
        }
        served(bench, vm)
    })
}

/// Waits until the unattended console asks for `what`.
pub(crate) fn asked(vm: &Vm, what: &str) {
    let line = format!("alknet: asks: {what}");
    let waited = vm.wait_for(&line, ASKED_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until the console prints a line with `what`.
pub(crate) fn says(vm: &Vm, what: &str) {
    let waited = vm.wait_line(what, ASKED_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until the live console shows `what`.
pub(crate) fn shown(vm: &Vm, what: &str) {
    let waited = vm.wait_for_after(ConsoleMark::default(), what, DONE_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
}

pub(crate) fn type_line(vm: &Vm, line: &str) {
    let sent = vm.console().send(&format!("{line}\r"));
    sent.unwrap_or_else(|error| panic!("{error}"));
}
