//! An attacker adds a command line to the firmware's boot entries, or an entry of their own that starts
//! the image without the loader. The loader ignores such a line. Without the loader it replaces the
//! image's: it is measured separately from the image, and the TPM opens nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use alknet_image::{ESP_BYTES, ESP_FIRST_LBA, LBA_BYTES};
use alknet_qemu::{BootPartitionFile, set_boot_file, set_command_line};
use alknet_sealed::limits::{VAULT_A_AT, VAULT_B_AT};
use alknet_tests::SnapshotPoint;
use alknet_tests::tools::{RAW_DATA_AT, tool_says, variable};
use alknet_tpm::{ExpectedPcrs, PcrChoice, PcrValues};
use alknet_vault::SecretStr;
use alknet_vault::slots::{
    Consent, FileCopyStorage, NewSlot, SlotParams, SlotType, UnlockKey, VaultCopies,
};
use serde_json::{Value, json};

use crate::chip::with_chip;
use crate::interposer::{asking_for_the_slot, assert_refused, with};
use crate::knock;
use crate::secure_boot::PACKAGES_VARIABLE;
use crate::tpm::{PASSPHRASE, WITH_PASSPHRASE, asked, measured, says, served, set_up, type_line};

/// The boot entry's command line, enough to run another program first. Here it names the project's
/// own, so that the machine starts and can be asked.
const LINE: &str = "console=ttyS0 quiet panic=10 noreplace-smp no_timer_check rdinit=/init init=/init root=/dev/vda";
/// Bytes of both copies of the vault, one after the other.
const COPIES_BYTES: usize = 128 << 10;

/// The program of the first boot slot, as firmware names it.
const IMAGE: &str = r"\EFI\ALKNET\A.EFI";

/// A TPM slot does not open with an extra command line: neither a slot as the node makes it now nor
/// one that was made before slots covered the boot entry. The node replaces such an old slot as
/// soon as the passphrase has opened the vault.
///
/// The TPM itself refuses the new slot. It would give out the key of the old one, which PID 1 does not
/// ask for: `LINE` starts PID 1, and a line of an attacker's would start another program.
#[test]
fn a_boot_entry_with_another_command_line_opens_nothing() {
    let (bench, identity) = set_up(WITH_PASSPHRASE);
    let at = |name: &str| bench.path().join(name);
    let machine = |chip: &str| measured(&bench, chip).configured(WITH_PASSPHRASE);
    // Firmware that has started once wrote its boot entries, which come with this machine.
    drop(machine("recorder").after_firmware().start());
    let (variables, packages) = (at("variables.fd"), variable(PACKAGES_VARIABLE));
    let packages: &Path = packages.as_ref();
    set_command_line(&variables, packages, LINE).unwrap_or_else(|error| panic!("{error}"));
    // The loader gets the line and passes none on, so the image starts with its own.
    let handed_over = bench.record("ignored", SnapshotPoint::Kernel, || machine("recorder"));
    let node = machine("own").resumed(&handed_over).boot();
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "tpm2", "{status:#}");
    node.end();

    make_former_slot(&bench.raw(), &at("own.tpm"));
    let image = BootPartitionFile {
        partition: &boot_partition_id(&bench.raw()),
        blocks: (ESP_FIRST_LBA, ESP_BYTES / LBA_BYTES),
        path: IMAGE,
    };
    let changed = set_boot_file(&variables, packages, &image, LINE);
    changed.unwrap_or_else(|error| panic!("{error}"));
    // Firmware runs once with that entry, and hands over to two machines.
    let handed_over = bench.record("handed-over", SnapshotPoint::Kernel, || machine("recorder"));
    let vm = machine("own").resumed(&handed_over).start();
    asked(&vm, "passphrase of the vault");
    says(&vm, "something from beside the image was started with it");
    knock::serves_nothing(&vm);
    type_line(&vm, PASSPHRASE);
    let node = served(&bench, vm);
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "passphrase", "{status:#}");
    let slot = json!({ "slot": 3, "pcrs": [4, 11, 12], "pin": false,
                       "protection": "measured, not enforced" });
    assert_eq!(status["tpm2"], json!([slot]), "{status:#}");
    node.end();

    let attacker = asking_for_the_slot(&bench.raw());
    let vm = with(machine("own").resumed(&handed_over), &attacker).start();
    asked(&vm, "passphrase of the vault");
    // The loader is missing among the programs.
    says(&vm, "PCR 4 (the programs that were started)");
    says(
        &vm,
        "PCR 12 (a command line or add-on from beside the image)",
    );
    assert_refused(&attacker, "PCR 12");
    knock::serves_nothing(&vm);
    drop(vm);

    // With the entry that firmware makes itself, the measurements open the new slot.
    let node = machine("own").after_firmware().boot();
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "tpm2", "{status:#}");
    assert_eq!(node.info()["problems"], json!([]));
    node.end();

    // A copy of the vault with such a slot, written back after the node has replaced the slot, is
    // an older vault, and the node refuses it as such.
    make_former_slot(&bench.raw(), &at("own.tpm"));
    let disk = File::options().read(true).write(true).open(bench.raw());
    let disk = disk.expect("the disk is ours");
    let mut former = vec![0; COPIES_BYTES];
    let copies_at = RAW_DATA_AT + VAULT_A_AT;
    disk.read_exact_at(&mut former, copies_at)
        .expect("the disk is longer");
    machine("own").after_firmware().boot().end();
    disk.write_all_at(&former, copies_at)
        .expect("the disk is ours");
    let vm = machine("own").after_firmware().start();
    asked(&vm, "passphrase of the vault");
    says(&vm, "the vault is older than the data beside it");
    knock::serves_nothing(&vm);
}

/// The identity of the second partition, as sgdisk prints it.
fn boot_partition_id(disk: &Path) -> String {
    let said = tool_says("sgdisk", &["-i", "2", &disk.display().to_string()]);
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("Partition unique GUID: "));
    line.expect("sgdisk prints it").to_lowercase()
}

/// Replaces the machine's slot by one in the old form, for what the machine started.
pub(crate) fn make_former_slot(disk: &Path, chip: &Path) {
    let area = |at| FileCopyStorage::at(disk, RAW_DATA_AT + at);
    let mut copies = VaultCopies::new(area(VAULT_A_AT), area(VAULT_B_AT));
    let found = copies.load().expect("whole").expect("a vault");
    let mut open = found
        .open(&mut UnlockKey::Passphrase {
            passphrase: &SecretStr::from(PASSPHRASE),
            cap_kib: u32::MAX,
        })
        .expect("its passphrase");
    let slots = open.alkv().slots().iter();
    let mut own = slots.filter_map(|slot| match slot.params() {
        SlotParams::Tpm2(params) => Some((slot.id(), params.clone())),
        _ => None,
    });
    let (id, params) = own.next().expect("it was asked for");
    let values = params.pcrs().iter().copied();
    let mut values: PcrValues = values.zip(params.values().iter().copied()).collect();
    assert_eq!(
        values.remove(&12),
        Some([0; 32]),
        "nothing beside the image"
    );
    let choice = PcrChoice::from_pcrs(values.keys().copied().collect()).expect("two of them");

    let kek = alknet_tpm::new_kek().expect("random numbers");
    let sealed = with_chip(chip, |mut tpm| {
        tpm.seal(&kek, &choice, ExpectedPcrs::Predicted(&values), None)
    });
    let former = NewSlot::Tpm2(sealed.expect("sealed"), &kek);
    let made = open
        .replace(id, former, Consent::None)
        .expect("one for one");
    let kinds: Vec<_> = open.alkv().slots().iter().map(|slot| slot.kind()).collect();
    assert_eq!(kinds, [SlotType::Passphrase, SlotType::Tpm2], "{made}");
    copies.save(&open).expect("the disk is ours");
}
