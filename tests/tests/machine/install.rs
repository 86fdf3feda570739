//! The medium installs itself onto a disk, on an order in the configuration. One of its machines starts from the medium;
//! the others have it in their drive and get its kernel from QEMU, because GRUB takes most of a start.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{MachineKind, Nic, VirtioDisk, Vm, VmBuilder};
use alknet_sealed::limits::{DATA_AT, MEMO_AT};
use alknet_test_support::limited;
use alknet_tests::tools::RAW_DATA_AT;
use alknet_tests::{BootVariant, BuiltImageFolder, MachineNode, READY, TestBench, binary};
use serde_json::json;

use super::configuration::{NO_VAULT, document};
use super::forms::built;

/// Size of the disk.
const DISK_BYTES: u64 = 1 << 30;
/// Its serial number.
const SERIAL: &str = "S4EVNX0N";
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
    let order = format!("[install]\ndisk = \"{SERIAL}\"\nthen = \"poweroff\"\n");
    let config = document(&bench, "installed") + NO_VAULT + &order;

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
    said(&vm, "alknet: installed onto vda; ", INSTALLED_WITHIN);
    let exit = vm.wait_exit(OFF_WITHIN);
    let exit = exit.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(exit.reason(), Some("guest-shutdown"), "{exit}");
    assert!(!vm.console().text().contains(READY), "{}", vm.report());
    is_the_raw_disk(&disk);

    let vm = started(machine().disk(VirtioDisk::file(&disk)));
    let node = MachineNode::new(vm, BootVariant::Q35Initramfs, bench.admin().clone());
    let info = node.info();
    assert_eq!(info["name"], "installed", "{info:#}");
    assert_eq!(info["config"]["source"], "alknet.toml (vda2)", "{info:#}");
    assert_eq!(info["data"]["device"], "/dev/vda3", "{info:#}");
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    drop(node);

    let renamed = config.replace("installed", "renamed");
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

/// A machine that starts from its first drive by a BIOS.
fn machine() -> VmBuilder {
    Vm::builder(MachineKind::Pc)
        .probe_kernel(built(ImageForm::Direct, OutputRole::Kernel))
        .nic(Nic::user())
}

/// The same with the medium in its CD drive, beside the disk.
fn from_medium(disk: &Path) -> VmBuilder {
    let medium = built(ImageForm::Iso, OutputRole::Disk);
    let disk = VirtioDisk::file(disk).serial(SERIAL);
    machine().cd(medium).disk(disk)
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
