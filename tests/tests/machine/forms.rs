//! Machines of hypervisors, clouds and hosting companies under UEFI, each started from its form of the image by the
//! loader that the form has, to an answered call.
//!
//! Controllers, cards and sizes are spread over the forms, because each boot of firmware takes seconds of emulation.
//! "Left" is a disk that stays as it is, for a node that keeps nothing; "grown" is one that was made larger, on which
//! the machine makes its data partition.
//!
//! | form | how its disk is made | controller | card | MiB | processors | disk |
//! |---|---|---|---|---|---|---|
//! | `vmdk` | opened by QEMU | NVMe | vmxnet3 | 512 | 1 | left |
//! | `vhd` | opened by QEMU | virtio-scsi | e1000e | 512 | 2 | left |
//! | `vhdx` | opened by QEMU | USB | e1000 | 256 | 1 | left |
//! | `ova` | unpacked, converted to qcow2 | AHCI | e1000 | 512 | 1 | grown |
//! | `aws` | converted to raw | NVMe | igb | 512 | 2 | grown |
//! | `raw` | written by the commands of a page | USB | e1000e | 512 | 1 | grown |
//! | `gce` | unpacked; in `forms_large.rs` | virtio-scsi | virtio | 4096 | 1 | grown |
//! | `qcow2` | opened by QEMU; in `firmware.rs`, by BIOS | virtio-blk | virtio | 512 | 1 | left |
//! | `containerdisk` | unpacked; in `containers.rs` | virtio-blk | virtio | 512 | 1 | left, and another one |
//! | `kernelboot` | unpacked; there, without firmware | virtio-scsi | virtio | 512 | 8 | none, and another one |
//! | `pxe` | by a server; in `network_boot.rs`, by BIOS | none | virtio | 512 | 1 | none |

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{
    DiskController, DiskFormat, MachineKind, Nic, NicModel, VirtioDisk, Vm, VmBuilder,
};
use alknet_sealed::limits::{VAULT_A_AT, VAULT_B_AT};
use alknet_test_support::limited;
use alknet_tests::tools::{RAW_DATA_AT, tool_says};
use alknet_tests::{BootVariant, BuiltImageFolder, CliRunner, MachineNode, TestBench, binary};
use alknet_vault::slots::{
    FileCopyStorage, FirstBootPermissions, NewSlot, NewVault, OpenAlkv, VaultCopies,
};
use alknet_vault::{Entropy, WordCount};
use serde_json::{Value, json};

use super::configuration::{NO_VAULT, document};
use super::update::damage::disk_check;

/// The pages whose commands make an image of one's own, and the page about rescue systems.
const CLOUD: &str = include_str!("../../../docs/deploy-cloud.md");
const PANEL: &str = include_str!("../../../docs/deploy-kvm-panel.md");
const RESCUE: &str = include_str!("../../../docs/deploy-rescue.md");

/// Size of a disk that was made larger than the image.
const GROWN_BYTES: u64 = 2 << 30;

/// The console's message about the first address, and how long after it serves a machine may lack one.
const ADDRESS: &str = "alknet: address ";
const ADDRESS_WITHIN: Duration = Duration::from_secs(10);

/// Limit for the commands of a page.
const COMMANDS_WITHIN: Duration = Duration::from_secs(120);

#[test]
fn a_vmdk_starts_on_nvme() {
    let bench = TestBench::new();
    let disk = opened(ImageForm::Vmdk, DiskFormat::Vmdk);
    let vm = uefi(disk.on(DiskController::Nvme), NicModel::Vmxnet3);
    keeps_nothing(&bench, vm);
}

#[test]
fn a_vhd_starts_on_virtio_scsi() {
    let bench = TestBench::new();
    let disk = opened(ImageForm::Vhd, DiskFormat::Vhd);
    let vm = uefi(disk.on(DiskController::VirtioScsi), NicModel::E1000e);
    let info = keeps_nothing(&bench, vm.cpus(2));
    assert_eq!(info["processors"], 2, "{info:#}");
}

#[test]
fn a_vhdx_starts_on_usb_with_little_memory() {
    let bench = TestBench::new();
    let disk = opened(ImageForm::Vhdx, DiskFormat::Vhdx);
    let vm = uefi(disk.on(DiskController::UsbStorage), NicModel::E1000);
    let info = keeps_nothing(&bench, vm.memory_mib(256));
    let total = info["memory"]["total_bytes"].as_u64();
    assert!(total.is_some_and(|total| total < 256 << 20), "{info:#}");
}

/// VMware and VirtualBox unpack the archive, check its hashes and convert the disk. The description names the
/// controller and the card. The disk is a SATA disk, and the machine asks it for its health.
#[test]
fn an_ova_is_imported_and_grows() {
    let bench = TestBench::new();
    let archive = built(ImageForm::Ova, OutputRole::Archive);
    let folder = unpacked(&bench, &archive);
    let disk = only_file(&folder, "vmdk");
    let description = fs::read_to_string(only_file(&folder, "ovf")).expect("it was unpacked");
    assert!(description.contains(">AHCI<") && description.contains(">E1000<"));
    let disk = imported(&bench, &disk, DiskFormat::Qcow2);
    let vm = uefi(disk.on(DiskController::Ahci), NicModel::E1000);
    let (node, info) = keeps_data(&bench, vm, "/dev/sda3", GROWN_BYTES);
    assert_eq!(info["processors"], 1, "{info:#}");
    reports_sata_health(bench.admin(), &node);
}

/// The machine's one disk is a SATA disk of QEMU, whose SMART status is good. Its attributes are constants of QEMU: one
/// hour, 31 °C, and none of wear or of errors.
fn reports_sata_health(admin: &CliRunner, node: &MachineNode) {
    let found = disk_check(admin, node).json();
    let count = found["disks"].as_array().map(Vec::len);
    assert_eq!(count, Some(1), "{found:#}");
    for (member, value) in [
        ("name", json!("sda")),
        ("kind", json!("sata")),
        ("health", json!("ok")),
        ("power_on_hours", json!(1)),
        ("temperature_c", json!(31)),
        ("wear_percent", Value::Null),
        ("media_errors", Value::Null),
    ] {
        assert_eq!(found["disks"][0][member], value, "{member}: {found:#}");
    }
}

/// Amazon makes a volume from the imported snapshot, as large as the owner asks for.
#[test]
fn a_snapshot_of_amazon_becomes_a_volume_and_grows() {
    let bench = TestBench::new();
    let disk = built(ImageForm::Aws, OutputRole::Disk);
    let disk = imported(&bench, &disk, DiskFormat::Raw);
    let vm = uefi(disk.on(DiskController::Nvme), NicModel::Igb);
    let (_, info) = keeps_data(&bench, vm.cpus(2), "/dev/nvme0n1p3", GROWN_BYTES);
    assert_eq!(info["processors"], 2, "{info:#}");
}

/// The commands that a person types in a rescue system, with a file in the place of the drive. An attacker, who had the
/// drive before, left a vault behind the end of the image: the machine makes its own.
#[test]
fn a_drive_that_was_written_in_a_rescue_system_starts() {
    let bench = TestBench::new();
    let drive = bench.disk("drive", GROWN_BYTES);
    let words = Entropy::generate(WordCount::TwentyFour).expect("random bytes");
    let attackers = NewVault {
        pending: FirstBootPermissions::ALL,
        ..NewVault::new(words, 0)
    };
    let attackers = OpenAlkv::create(attackers, NewSlot::None).expect("made");
    copies(&drive).create(&attackers).expect("written");
    let admin = format!("--admin {} --form esp", bench.admin().identity());
    let image = built(ImageForm::Raw, OutputRole::Disk);
    for commands in shell_blocks(RESCUE) {
        let commands = commands
            .replace("out/alknet_VERSION.raw", &image.display().to_string())
            .replace("/dev/sdX", &drive.display().to_string())
            // The key of the command line that calls the machine below.
            .replace("--form esp", &admin)
            // A drive keeps its size by itself.
            .replace("conv=fsync", "conv=fsync,notrunc");
        run_commands(bench.path(), &commands);
    }
    // A stick: its configuration and its data are behind a bus on which devices appear late.
    let disk = VirtioDisk::file(&drive).on(DiskController::UsbStorage);
    let node = serving(&bench, uefi(disk, NicModel::E1000e));
    let info = node.info();
    assert_eq!(info["name"], "edge-1", "{info:#}");
    assert_eq!(info["config"]["source"], "alknet.toml (sda2)", "{info:#}");
    has_data(&info, "/dev/sda3", GROWN_BYTES);
    let said = node.try_call("node/log", &json!({ "last": 1000 }), &[]);
    let said = said.output;
    assert!(
        said.contains("bytes in the place of the vault from before the image"),
        "{said}"
    );
    assert!(!said.contains("the first boot was cut short"), "{said}");
    assert_eq!(
        info["data"]["cipher"],
        Value::Null,
        "the attacker's vault: {info:#}"
    );
}

/// The places of the vault on a drive of the form `raw`.
fn copies(drive: &Path) -> VaultCopies<FileCopyStorage> {
    let area = |at| FileCopyStorage::at(drive, RAW_DATA_AT + at);
    VaultCopies::new(area(VAULT_A_AT), area(VAULT_B_AT))
}

/// The commands up to the upload, and what qemu-img, tar and mtools say of the files.
#[test]
fn the_commands_of_the_pages_make_an_image_with_a_document() {
    for (page, formats) in [
        (PANEL, &[("qcow2", "qcow2")][..]),
        (
            CLOUD,
            &[("vmdk", "vmdk"), ("vpc", "vhd"), ("qcow2", "qcow2")],
        ),
    ] {
        let bench = TestBench::new();
        let image = built(ImageForm::Raw, OutputRole::Disk)
            .display()
            .to_string();
        for commands in shell_blocks(page) {
            let commands = commands.replace("out/alknet_VERSION.raw", &image);
            run_commands(bench.path(), &commands);
        }
        let at = |name: &str| bench.path().join(name).display().to_string();
        let raw = at("edge-1.raw");
        for (format, ending) in formats {
            let file = at(&format!("edge-1.{ending}"));
            let compare = ["compare", "-f", "raw", "-F", format, &raw, &file];
            let said = tool_says("qemu-img", &compare);
            assert!(said.contains("Images are identical"), "{said}");
        }
        let read = ["-i", &format!("{raw}@@1M"), "::alknet.toml"];
        let document = fs::read_to_string(bench.path().join("boot/alknet.toml"));
        let document = document.expect("the page made it");
        assert!(document.contains("name = \"edge-1\""), "{document}");
        assert!(document.contains("admin_keys = [\"ed25519:"), "{document}");
        assert_eq!(tool_says("mtype", &read), document);
    }
}

/// A file of the built image.
pub(super) fn built(form: ImageForm, role: OutputRole) -> PathBuf {
    BuiltImageFolder::get().file(form, role)
}

/// The disk of a form as it is. The machine's writes go elsewhere.
fn opened(form: ImageForm, format: DiskFormat) -> VirtioDisk {
    VirtioDisk::snapshot(built(form, OutputRole::Disk)).format(format)
}

/// A compressed VMDK as a hypervisor imports it: converted, and made larger.
fn imported(bench: &TestBench, vmdk: &Path, format: DiskFormat) -> VirtioDisk {
    let driver = format.driver();
    let image = bench.path().join(format!("imported.{driver}"));
    let [from, to] = [vmdk, &image].map(|path| path.display().to_string());
    let convert = ["convert", "-f", "vmdk", "-O", driver, &from, &to];
    tool_says("qemu-img", &convert);
    let bytes = GROWN_BYTES.to_string();
    tool_says("qemu-img", &["resize", "-f", driver, &to, &bytes]);
    VirtioDisk::file(image).format(format)
}

/// The folder into which GNU tar unpacked an archive.
pub(super) fn unpacked(bench: &TestBench, archive: &Path) -> PathBuf {
    let folder = bench.path().join("unpacked");
    fs::create_dir(&folder).expect("a new folder");
    let [from, to] = [archive, &folder].map(|path| path.display().to_string());
    tool_says("tar", &["-x", "-S", "-f", &from, "-C", &to]);
    folder
}

/// The one file in a folder with this ending.
fn only_file(folder: &Path, ending: &str) -> PathBuf {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("readable").path());
    let mut found = paths.filter(|path| path.extension().is_some_and(|it| it == ending));
    let file = found.next().expect("the archive has such a file");
    assert_eq!(found.next(), None);
    file
}

/// A machine that starts from this disk by UEFI firmware.
pub(super) fn uefi(disk: VirtioDisk, model: NicModel) -> VmBuilder {
    Vm::builder(MachineKind::Q35Uefi)
        .probe_kernel(built(ImageForm::Direct, OutputRole::Kernel))
        .disk(disk)
        .nic(Nic::user().model(model))
}

/// Starts the machine, and waits until it serves and has an address: some cards negotiate with the cable for seconds.
pub(super) fn serving(bench: &TestBench, vm: VmBuilder) -> MachineNode {
    let vm = vm.start().unwrap_or_else(|error| panic!("{error}"));
    let node = MachineNode::new(vm, BootVariant::UefiRaw, bench.admin().clone());
    let waited = node.vm().wait_for(ADDRESS, ADDRESS_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
    node
}

/// A node that keeps nothing answers. Returns its answer.
fn keeps_nothing(bench: &TestBench, vm: VmBuilder) -> Value {
    let config = document(bench, "stateless") + "stateless = true\n";
    let node = serving(bench, vm.config(config));
    let info = node.info();
    assert_eq!(info["name"], "stateless", "{info:#}");
    assert_eq!(info["data"]["mode"], "volatile", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    info
}

/// A node answers that has its data on this partition, which takes the rest of a disk of so many bytes. Returns it with
/// its answer.
pub(super) fn keeps_data(
    bench: &TestBench,
    vm: VmBuilder,
    device: &str,
    disk_bytes: u64,
) -> (MachineNode, Value) {
    let config = document(bench, "grown") + NO_VAULT;
    let node = serving(bench, vm.config(config));
    let info = node.info();
    assert_eq!(info["name"], "grown", "{info:#}");
    has_data(&info, device, disk_bytes);
    (node, info)
}

pub(super) fn has_data(info: &Value, device: &str, disk_bytes: u64) {
    assert_eq!(info["problems"], json!([]), "{info:#}");
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
    assert_eq!(info["data"]["device"], device, "{info:#}");
    let total = info["data"]["total_bytes"].as_u64().expect("a number");
    assert!(total > (disk_bytes - RAW_DATA_AT) / 10 * 9, "{info:#}");
}

/// The commands of each block of a page for a shell.
pub(super) fn shell_blocks(page: &'static str) -> Vec<&'static str> {
    let blocks = page.split("```sh\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    let blocks: Vec<_> = blocks.collect();
    assert!(!blocks.is_empty(), "the page has commands");
    blocks
}

/// Runs commands of a page in this folder. Each of them must succeed.
pub(super) fn run_commands(folder: &Path, commands: &str) {
    let log = folder.join("commands.log");
    let output = File::create(&log).expect("the folder is ours");
    let errors = output.try_clone().expect("an open file");
    let mut shell = limited(COMMANDS_WITHIN, "bash");
    // The program by its name, and a user of this folder alone.
    let commands = format!(
        "alknet() {{ '{}' \"$@\"; }}\n{commands}",
        binary().display()
    );
    shell.args(["-euo", "pipefail", "-c", &commands]);
    shell.env("HOME", folder).env("XDG_STATE_HOME", folder);
    shell.current_dir(folder).stdout(output).stderr(errors);
    let status = shell.status().expect("every system has bash");
    let said = fs::read_to_string(&log).expect("just written");
    assert!(status.success(), "{commands}\n{status}: {said}");
}
