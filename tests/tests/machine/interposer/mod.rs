//! A chip on the wires between a machine and its TPM: what it learns without a PIN and with one,
//! and that it learns nothing if the image names the TPM's storage key.

mod impostor;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use alknet_sealed::limits::{VAULT_A_AT, VAULT_B_AT};
use alknet_tests::tools::RAW_DATA_AT;
use alknet_tests::{MachineBuilder, READY, SnapshotPoint, TestBench, eventually};
use alknet_vault::slots::{
    Alkv, FileCopyStorage, Kek, KekError, KekRequest, KekSource, SlotParams, SlotType, Tpm2Params,
    UnlockKey, VaultCopies,
};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub(crate) use self::impostor::TpmImpostor;
use crate::chip::with_chip;
use crate::knock;
use crate::secure_boot::{PROGRAM, program, put};
use crate::tpm::{
    PIN, TPM_ALONE, WITH_PIN, asked, measured, says, served, set_up, shown, type_line,
};

/// Bytes of a `TPM2B_NAME` at the end of a record's public part.
const NAME_BYTES: usize = 36;

#[test]
fn without_a_pin_it_asks_for_the_key_as_the_machine_does() {
    let (bench, _) = set_up(TPM_ALONE);
    let vault = vault_of(&bench.raw());
    let impostor = Arc::new(TpmImpostor::silent(params(&vault)));
    let machine = measured(&bench, "own").after_firmware();
    let vm = with(machine.configured(TPM_ALONE), &impostor).start();
    let node = served(&bench, vm);
    assert_opens(&vault, &impostor);
    drop(node);
}

/// It lets the TPM open the vault of a disk, and then keeps the machine from the counter, which says whether that disk is
/// an older copy.
#[test]
fn a_tpm_that_gave_the_key_and_is_kept_from_counting_leaves_the_vault_closed() {
    let (bench, _) = set_up(TPM_ALONE);
    let impostor = Arc::new(TpmImpostor::denying(params(&vault_of(&bench.raw()))));
    let machine = measured(&bench, "own").after_firmware();
    let vm = with(machine.configured(TPM_ALONE), &impostor).start();
    says(&vm, "whether the disk is the newest one is not known");
    assert!(impostor.has_denied(), "it was between the two");
    knock::serves_nothing(&vm);
}

/// The attacker writes its own key's name into the record on the disk, answers as a TPM with that
/// key, and tries PINs on the machine's commands.
#[test]
fn with_a_pin_it_learns_that_unless_the_image_names_the_storage_key() {
    let (bench, _) = set_up(WITH_PIN);
    let vault = vault_of(&bench.raw());
    let impostor = Arc::new(TpmImpostor::posing(params(&vault)));
    name_its_key(&bench.raw(), &impostor);
    let machine = with_pin(measured(&bench, "own").after_firmware());
    let vm = with(machine, &impostor).start();
    asked(&vm, "PIN of the TPM");
    type_line(&vm, PIN);
    eventually("the PIN is found", || impostor.kek().map(drop));
    assert_eq!(impostor.pin().as_deref(), Some(PIN));
    assert_opens(&vault, &impostor);
    drop(vm);

    // The same attack on a machine whose image names the key.
    let bench = TestBench::new();
    let chip = bench.path().join("own.tpm");
    let key = with_chip(&chip, |mut tpm| tpm.storage_key()).expect("a TPM");
    name_in_image(&bench, &key.to_string());
    // Firmware runs that image once, and hands over to all the machines.
    let recorder = || with_pin(measured(&bench, "recorder"));
    let handed_over = bench.record("handed-over", SnapshotPoint::Kernel, recorder);
    let machine = || with_pin(measured(&bench, "own")).resumed(&handed_over);
    new_pin(&bench, machine());
    let before = bench.path().join("before.raw");
    alknet_qemu::copy(&bench.raw(), &before).unwrap_or_else(|error| panic!("{error}"));
    let vault = vault_of(&bench.raw());
    let impostor = Arc::new(TpmImpostor::posing(params(&vault)));
    name_its_key(&bench.raw(), &impostor);
    let vm = with(machine(), &impostor).start();
    says(&vm, "sealed by another TPM");
    learns_nothing(&vm, &impostor);
    drop(vm);
    // The attack fails with the original record too.
    alknet_qemu::copy(&before, &bench.raw()).unwrap_or_else(|error| panic!("{error}"));
    let vm = with(machine(), &impostor).start();
    says(&vm, "has another storage key than this machine is to have");
    assert!(impostor.was_asked(), "it was between the two");
    learns_nothing(&vm, &impostor);
}

fn learns_nothing(vm: &alknet_qemu::Vm, impostor: &TpmImpostor) {
    let text = vm.console().text();
    assert!(
        !text.contains("PIN of the TPM") && !text.contains(READY),
        "{text}"
    );
    assert_eq!(impostor.sessions(), 0, "nothing is salted to its key");
}

fn with_pin(machine: MachineBuilder<'_>) -> MachineBuilder<'_> {
    machine.configured(WITH_PIN)
}

/// The first start, which makes a slot with the PIN.
fn new_pin(bench: &TestBench, machine: MachineBuilder<'_>) {
    let vm = machine.start();
    asked(&vm, "new PIN of the TPM");
    type_line(&vm, PIN);
    shown(&vm, "the same again");
    type_line(&vm, PIN);
    served(bench, vm).end();
}

/// Asks the TPM for the key of the disk's slot, as an attacker does who controls the machine's software.
pub(crate) fn asking_for_the_slot(disk: &Path) -> Arc<TpmImpostor> {
    Arc::new(TpmImpostor::silent(params(&vault_of(disk))))
}

/// The TPM refused the key, for a reason that contains `why`. A machine that uses its TPM has begun to do so.
pub(crate) fn assert_refused(impostor: &TpmImpostor, why: &str) {
    assert_eq!(impostor.kek(), None, "the TPM gave the key");
    let refusal = impostor.refusal().expect("the machine used its TPM");
    assert!(refusal.contains(why), "{refusal}");
}

pub(crate) fn with<'a>(
    machine: MachineBuilder<'a>,
    impostor: &Arc<TpmImpostor>,
) -> MachineBuilder<'a> {
    let between = Arc::clone(impostor);
    machine.with(|vm| vm.interposer(between))
}

fn vault_of(disk: &Path) -> Alkv {
    let area = |at| FileCopyStorage::at(disk, RAW_DATA_AT + at);
    let mut copies = VaultCopies::new(area(VAULT_A_AT), area(VAULT_B_AT));
    copies.load().expect("whole").expect("a vault").newest
}

fn params(vault: &Alkv) -> Tpm2Params {
    let mut slots = vault.slots().iter();
    let params = slots.find_map(|slot| match slot.params() {
        SlotParams::Tpm2(params) => Some(params.clone()),
        _ => None,
    });
    params.expect("it was asked for")
}

/// What the impostor learned opens the vault, on any machine.
fn assert_opens(vault: &Alkv, impostor: &TpmImpostor) {
    struct InterceptedSecrets(Kek);
    impl KekSource for InterceptedSecrets {
        fn kek(&mut self, _: KekRequest<'_>) -> Result<Kek, KekError> {
            Kek::from_slice(self.0.expose()).ok_or(KekError::Absent)
        }
    }
    let learned = impostor.kek().expect("it has the key");
    let mut learned = InterceptedSecrets(Kek::copy_of(&learned));
    let id = vault.slots()[0].id();
    let opened = vault.open(id, &mut UnlockKey::Source(SlotType::Tpm2, &mut learned));
    opened.expect("the key is that of the slot");
}

/// Writes its own key's name into the record of both copies. The authentication of the record is
/// inside it.
fn name_its_key(disk: &Path, impostor: &TpmImpostor) {
    let file = File::options().read(true).write(true).open(disk);
    let file = file.expect("the disk is ours");
    for at in [VAULT_A_AT, VAULT_B_AT].map(|at| RAW_DATA_AT + at) {
        let mut copy = vec![0; 64 << 10];
        file.read_exact_at(&mut copy, at).expect("a copy");
        let end = copy.iter().position(|byte| *byte == b'\n').expect("a line");
        let mut vault: Value = serde_json::from_slice(&copy[..end]).expect("JSON");
        let record = &mut vault["slots"][0]["params"]["public"];
        let public = record.as_str().expect("base64").as_bytes();
        let mut public = BASE64.decode(public).expect("base64");
        let name_at = public.len() - NAME_BYTES + 2;
        public[name_at..].copy_from_slice(&impostor.name());
        *record = BASE64.encode(&public).into();
        let text = vault.to_string();
        let digest = HEXLOWER.encode(&Sha256::digest(text.as_bytes()));
        let mut copy = format!("{text}\n{digest}\n").into_bytes();
        copy.resize(64 << 10, 0);
        file.write_all_at(&copy, at).expect("the disk is ours");
    }
    assert_eq!(vault_of(disk).slots().len(), 1, "it is read as before");
}

/// Builds the image for one machine: its command line names the TPM's storage key.
fn name_in_image(bench: &TestBench, key: &str) {
    let path = program(bench);
    let mut image = std::fs::read(&path).expect("the folder is ours");
    let u32_at = |image: &[u8], at: usize| {
        let bytes = image[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes) as usize
    };
    let pe = u32_at(&image, 0x3c);
    let optional_bytes = usize::from(u16::from_le_bytes([image[pe + 20], image[pe + 21]]));
    let mut headers = (pe + 24 + optional_bytes..).step_by(40);
    let header = headers.find(|at| image[*at..].starts_with(b".cmdline"));
    let header = header.expect("the image has a command line");
    let [bytes, raw_bytes, raw_at] = [8, 16, 20].map(|field| u32_at(&image, header + field));
    let line = image[raw_at..raw_at + bytes].to_vec();
    let line = String::from_utf8(line).expect("a line");
    let line = format!("{} alknet.tpm={key}\0", line.trim_end_matches('\0'));
    assert!(line.len() <= raw_bytes, "the section is too short");
    image[raw_at..raw_at + line.len()].copy_from_slice(line.as_bytes());
    let length = u32::try_from(line.len()).expect("short").to_le_bytes();
    image[header + 8..header + 12].copy_from_slice(&length);
    std::fs::write(&path, image).expect("the folder is ours");
    put(bench, &path, PROGRAM);
}
