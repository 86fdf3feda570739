//! Disks and media that start by themselves: by a BIOS, whose loader is GRUB, and by UEFI.
//!
//! The disk under UEFI is in `node/serving.rs`, among others.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_image::{ESP_FIRST_LBA, ImageForm, LBA_BYTES, OutputRole};
use alknet_qemu::{MachineKind, Nic, VirtioDisk, Vm, VmBuilder};
use alknet_tests::tools::tool_says;
use alknet_tests::{BootVariant, BuiltImageFolder, MachineNode, TestBench};
use serde_json::{Value, json};

use super::configuration::{NO_VAULT, document};

/// Bytes of the first sector before the partitions.
const BOOT_CODE_BYTES: usize = 440;
/// Time from power-on until GRUB has given up. A BIOS takes a second.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(30);
/// The beginning of GRUB's last line.
const GIVES_UP: &str = "alknet: GRUB cannot start \\EFI\\BOOT\\BOOTX64.EFI";

fn built(form: ImageForm, role: OutputRole) -> PathBuf {
    BuiltImageFolder::get().file(form, role)
}

/// A machine that has no kernel but those on its disks.
fn machine(kind: MachineKind) -> VmBuilder {
    Vm::builder(kind)
        .probe_kernel(built(ImageForm::Direct, OutputRole::Kernel))
        .nic(Nic::user())
}

/// Starts the machine with this configuration, and returns the node's answer to a call.
fn answers(bench: &TestBench, vm: VmBuilder, config: &str) -> Value {
    let config = document(bench, "by-itself") + config;
    let vm = vm.config(config).start();
    let vm = vm.unwrap_or_else(|error| panic!("{error}"));
    let node = MachineNode::new(vm, BootVariant::Q35Initramfs, bench.admin().clone());
    let info = node.info();
    assert_eq!(info["name"], "by-itself", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    info
}

/// What GRUB needs on a disk: the code of the first sector, and everything before the first file
/// system.
fn loader(disk: &Path) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(ESP_FIRST_LBA * LBA_BYTES).expect("64-bit")];
    let file = File::open(disk).expect("the disk is ours");
    file.read_exact_at(&mut bytes, 0).expect("it is longer");
    // The machine changes the partition table behind the code when it grows its partition.
    let gap = bytes.split_off(34 * 512);
    bytes.truncate(BOOT_CODE_BYTES);
    [bytes, gap].concat()
}

/// The machine changes the partition table at its first start, and leaves GRUB alone.
#[test]
fn the_disk_starts_by_a_bios_on_an_old_pc_and_grows() {
    let bench = TestBench::new();
    let disk = bench.raw();
    let shipped = loader(&disk);
    let vm = machine(MachineKind::Pc).disk(VirtioDisk::file(&disk));
    let info = answers(&bench, vm, NO_VAULT);
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
    assert_eq!(info["data"]["device"], "/dev/vda3", "{info:#}");
    assert!(loader(&disk) == shipped, "GRUB was changed");
}

#[test]
fn the_disk_starts_by_a_bios_on_a_new_pc() {
    let bench = TestBench::new();
    let disk = VirtioDisk::snapshot(built(ImageForm::Raw, OutputRole::Disk));
    keeps_nothing(&bench, machine(MachineKind::Q35).disk(disk));
}

/// A machine in a rack has no person in front of it who could answer.
#[test]
fn a_disk_without_its_program_says_so_and_asks_nothing() {
    let bench = TestBench::new();
    let disk = bench.raw();
    let partition = format!("{}@@1M", disk.display());
    tool_says("mdel", &["-i", &partition, "::/EFI/BOOT/BOOTX64.EFI"]);
    let vm = machine(MachineKind::Q35).disk(VirtioDisk::file(&disk));
    let vm = vm.start().unwrap_or_else(|error| panic!("{error}"));
    let said = vm.wait_for(GIVES_UP, GIVEN_UP_WITHIN);
    said.unwrap_or_else(|error| panic!("{error}"));
    let text = vm.console().text();
    assert!(!text.contains("grub rescue>"), "{text}");
}

#[test]
fn the_medium_starts_as_a_cd_by_a_bios_and_keeps_data_on_another_disk() {
    let bench = TestBench::new();
    let medium = built(ImageForm::Iso, OutputRole::Disk);
    let data = VirtioDisk::file(bench.data()).data();
    let vm = machine(MachineKind::Pc).cd(medium).disk(data);
    let info = answers(&bench, vm, NO_VAULT);
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
    assert_eq!(info["data"]["device"], "/dev/vda", "{info:#}");
}

#[test]
fn the_medium_starts_as_a_cd_by_uefi() {
    let bench = TestBench::new();
    let medium = built(ImageForm::Iso, OutputRole::Disk);
    keeps_nothing(&bench, machine(MachineKind::Q35Uefi).cd(medium));
}

#[test]
fn the_medium_starts_as_a_drive_by_a_bios() {
    let bench = TestBench::new();
    keeps_nothing(&bench, machine(MachineKind::Q35).disk(written_medium()));
}

#[test]
fn the_medium_starts_as_a_drive_by_uefi() {
    let bench = TestBench::new();
    keeps_nothing(&bench, machine(MachineKind::Q35Uefi).disk(written_medium()));
}

/// The medium on a drive, which other tests start as well.
fn written_medium() -> VirtioDisk {
    VirtioDisk::snapshot(built(ImageForm::Iso, OutputRole::Disk))
}

fn keeps_nothing(bench: &TestBench, vm: VmBuilder) {
    let info = answers(bench, vm, "stateless = true\n");
    assert_eq!(info["data"]["mode"], "volatile", "{info:#}");
}
