//! The medium installs itself onto a disk, on an order in the configuration. One of its machines starts from the medium;
//! the others have it in their drive and get its kernel from QEMU, because GRUB takes most of a start.
//!
//! In `cargo xtask soak media` the medium is also a USB stick on a machine with UEFI, and the disk NVMe.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{DiskController, MachineKind, Nic, VirtioDisk, Vm, VmBuilder};
use alknet_sealed::limits::{DATA_AT, MEMO_AT};
use alknet_test_support::{limited, skip};
use alknet_tests::tools::RAW_DATA_AT;
use alknet_tests::{BootVariant, BuiltImageFolder, MachineNode, READY, TestBench, binary};
use serde_json::json;

use super::configuration::{NO_VAULT, document};
use super::firmware::stick_with_medium;
use super::forms::built;
use super::power::is_full;

/// Size of the disk.
const DISK_BYTES: u64 = 1 << 30;
/// Its serial number.
const SERIAL: &str = "S4EVNX0N";
/// The name of the machine in the document.
const NAME: &str = "installed";
/// Time from power-on until the disk is written and read back.
const INSTALLED_WITHIN: Duration = Duration::from_secs(120);
/// Time from power-on until the console says why a machine serves nothing.
const SAID_WITHIN: Duration = Duration::from_secs(60);
/// Time from the last line until the machine is off.
const OFF_WITHIN: Duration = Duration::from_secs(25);
/// Limit for the comparison of the disk with the manifest.
const VERIFIED_WITHIN: Duration = Duration::from_secs(60);

/// The power fails in the middle of the first installation. The second one is complete, and the disk serves with the
/// configuration of the medium. What the disk had in the place of the vault before is gone. The medium does not write the
/// disk a second time, nor for a document with another name. With another table it does not erase the node.
#[test]
fn the_medium_installs_itself_and_the_disk_serves() {
    let bench = TestBench::new();
    let disk = bench.disk("target", DISK_BYTES);
    let earlier = File::options().write(true).open(&disk).expect("ours");
    let written =
        earlier.write_all_at(&[0xa5; (DATA_AT - MEMO_AT) as usize], RAW_DATA_AT + MEMO_AT);
    written.expect("writable");
    let config = ordered(&bench);

    let mut vm = started(beside_medium(&disk).config(config.as_str()));
    said(&vm, "alknet: 64 of 272 MiB are written", INSTALLED_WITHIN);
    vm.cut_power().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(first_block(&disk), [0; 512], "no firmware starts from it");

    let mut vm = started(from_medium(&disk).config(config.as_str()));
    said(
        &vm,
        "alknet: found an order to install: fw_cfg",
        SAID_WITHIN,
    );
    said(&vm, " from sr0 onto vda ", SAID_WITHIN);
    is_installed(&mut vm, "vda", &disk);

    let vm = machine(MachineKind::Pc).disk(VirtioDisk::file(&disk));
    disk_serves(&bench, vm, BootVariant::Q35Initramfs, "vda");

    let renamed = config.replace(NAME, "renamed");
    let erase = config.clone() + "erase = true\n";
    for (config, why) in [
        (renamed, "vda has this image already"),
        (erase, "vda has a node's data"),
    ] {
        let vm = started(beside_medium(&disk).config(config.as_str()));
        let problem =
            format!("alknet: problem install-refused: the image was not installed: {why}");
        said(&vm, &problem, SAID_WITHIN);
        assert!(!vm.console().text().contains(READY), "{}", vm.report());
    }
}

/// The firmware starts the medium from a stick, which the kernel finds some time after the other disks. The serial
/// number of an NVMe disk belongs to its controller, and its partitions have other names than those of other disks.
#[test]
fn the_medium_as_a_stick_installs_itself_onto_nvme_by_uefi() {
    if !is_full() {
        skip!(
            "campaign",
            "emulated firmware and sticks take long: `cargo xtask soak media` runs it"
        );
    }
    let bench = TestBench::new();
    let disk = bench.disk("target", DISK_BYTES);
    let target = VirtioDisk::file(&disk).on(DiskController::Nvme);
    let target = target.serial(SERIAL);
    // Firmware starts the first disk.
    let both = machine(MachineKind::Q35Uefi).disk(stick_with_medium());
    let both = both.disk(target.clone()).config(ordered(&bench));
    let mut vm = started(both);
    said(&vm, " from sda onto nvme0n1 ", INSTALLED_WITHIN);
    is_installed(&mut vm, "nvme0n1", &disk);
    let alone = machine(MachineKind::Q35Uefi).disk(target);
    disk_serves(&bench, alone, BootVariant::UefiRaw, "nvme0n1p");
}

/// A configuration with the order for the disk with [`SERIAL`].
fn ordered(bench: &TestBench) -> String {
    let order = format!("[install]\ndisk = \"{SERIAL}\"\nthen = \"poweroff\"\n");
    document(bench, NAME) + NO_VAULT + &order
}

/// Waits until the machine has installed the medium onto the disk with this name, whose file is `disk`, and is off.
fn is_installed(vm: &mut Vm, name: &str, disk: &Path) {
    let installed = format!("alknet: installed onto {name}; ");
    said(vm, &installed, INSTALLED_WITHIN);
    let exit = vm.wait_exit(OFF_WITHIN);
    let exit = exit.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(exit.reason(), Some("guest-shutdown"), "{exit}");
    assert!(!vm.console().text().contains(READY), "{}", vm.report());
    is_the_raw_disk(disk);
}

/// The machine serves from its disk alone, with the configuration of the medium. The names of the disk's partitions are
/// `partition` and a number.
fn disk_serves(bench: &TestBench, vm: VmBuilder, boot: BootVariant, partition: &str) {
    let node = MachineNode::new(started(vm), boot, bench.admin().clone());
    let info = node.info();
    let (source, data) = (
        format!("alknet.toml ({partition}2)"),
        format!("/dev/{partition}3"),
    );
    assert_eq!(info["name"], NAME, "{info:#}");
    assert_eq!(info["config"]["source"], *source, "{info:#}");
    assert_eq!(info["data"]["device"], *data, "{info:#}");
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
}

/// A machine that starts from its first drive.
fn machine(kind: MachineKind) -> VmBuilder {
    Vm::builder(kind)
        .probe_kernel(built(ImageForm::Direct, OutputRole::Kernel))
        .nic(Nic::user())
}

/// A machine with a BIOS and the medium in its CD drive, beside the disk.
fn from_medium(disk: &Path) -> VmBuilder {
    let medium = built(ImageForm::Iso, OutputRole::Disk);
    let disk = VirtioDisk::file(disk).serial(SERIAL);
    machine(MachineKind::Pc).cd(medium).disk(disk)
}

/// The same, with the kernel and the initial file system of the medium from QEMU.
fn beside_medium(disk: &Path) -> VmBuilder {
    let direct = |role| built(ImageForm::Direct, role);
    from_medium(disk)
        .kernel(direct(OutputRole::Kernel))
        .initrd(direct(OutputRole::Initrd))
        .append(BuiltImageFolder::get().command_line(ImageForm::Direct))
}

fn started(vm: VmBuilder) -> Vm {
    vm.start().unwrap_or_else(|error| panic!("{error}"))
}

fn said(vm: &Vm, text: &str, limit: Duration) {
    let waited = vm.wait_for(text, limit);
    waited.unwrap_or_else(|error| panic!("{error}"));
}

fn first_block(disk: &Path) -> [u8; 512] {
    let mut block = [1; 512];
    let disk = File::open(disk).expect("the disk is ours");
    disk.read_exact_at(&mut block, 0).expect("it is longer");
    block
}

/// The command line finds the disk of the form `raw`, and the files of a configuration.
fn is_the_raw_disk(disk: &Path) {
    let raw = built(ImageForm::Raw, OutputRole::Disk);
    let manifest = raw.with_file_name("manifest.json");
    let mut verify = limited(VERIFIED_WITHIN, binary());
    verify.args(["image", "verify", "--disk"]).arg(disk);
    let output = verify.arg("--manifest").arg(manifest).output();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
}
