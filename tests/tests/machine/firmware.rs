//! Disks, media and the EFI program that start by themselves: by a BIOS, whose loader is GRUB, and by UEFI.
//!
//! Each boot of firmware takes seconds of emulation, so controllers, cards and sizes are spread over the tests. `forms.rs`
//! has the other forms, and the disk under UEFI.
//!
//! | form | firmware | machine | controller | card | MiB | to an answered call |
//! |---|---|---|---|---|---|---|
//! | `raw` | BIOS | pc | virtio-blk | e1000 | 256 | here, and in `install.rs` |
//! | `raw` | BIOS | pc | USB | virtio | 512 | here |
//! | `raw` | BIOS | q35 | NVMe | virtio | 512 | in `update/good.rs` |
//! | `raw` | BIOS | q35 | AHCI | virtio | 512 | in `update_bad.rs` |
//! | `raw` | BIOS | q35 | virtio-scsi | virtio | 512 | in `update_refused.rs` |
//! | `qcow2` | BIOS | pc | virtio-blk | virtio | 512 | here |
//! | `iso` | BIOS | pc | IDE, a CD | virtio | 512 | here |
//! | `iso` | BIOS | q35 | USB | e1000e | 512 | here |
//! | `iso` | UEFI | q35 | AHCI, a CD | virtio | 512 | here |
//! | `iso` | UEFI | q35 | USB | vmxnet3 | 512 | here |
//! | `uki` | UEFI | q35 | USB | virtio | 512 | in `screen.rs` |
//! | `linuxkit` | none | q35 | none | virtio | 512 | in `screen.rs` |

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use alknet_boot_state::{
    BootPhase, BootRecord, BootSlot, NOTE_OFFSET, RECORD_BYTES, RECORD_OFFSET, TRIES,
};
use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{
    DiskController, DiskFormat, DiskRecorder, DiskRecording, MachineKind, Nic, NicModel,
    VirtioDisk, Vm, VmBuilder,
};
use alknet_tests::tools::tool_says;
use alknet_tests::{MachineNode, TestBench, eventually};
use serde_json::{Value, json};

use super::configuration::{NO_VAULT, document};
use super::forms::{built, serving};
use super::knock;
use super::power::Evidence;
use super::update::disk::SlotDiskImage;

/// Bytes of the first sector before the partitions.
const BOOT_CODE_BYTES: usize = 440;
/// Time from power-on until GRUB has given up. A BIOS takes a second.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(30);
/// Time from power-on until the machine says that it waits for its data.
const SAID_WITHIN: Duration = Duration::from_secs(60);
/// The beginning of GRUB's last line.
const GIVES_UP: &str = "alknet: GRUB cannot start \\EFI\\ALKNET\\A.EFI or B.EFI";
/// Tries that are left of a version on trial, and the slot that started last: before GRUB has counted, and afterwards.
const UNCOUNTED: (u8, Option<BootSlot>) = (TRIES, None);
const COUNTED: (u8, Option<BootSlot>) = (TRIES - 1, Some(BootSlot::B));
/// Cuts after all writes of the record, each of which loses other writes.
const SEEDS: u64 = 8;
/// Where a program's script for GRUB begins.
const SCRIPT_AT: usize = 256 << 10;

/// A machine that has no kernel but those on its disks.
fn machine(kind: MachineKind) -> VmBuilder {
    machine_with(kind, NicModel::Virtio)
}

/// The same with this card.
fn machine_with(kind: MachineKind, card: NicModel) -> VmBuilder {
    Vm::builder(kind)
        .probe_kernel(built(ImageForm::Direct, OutputRole::Kernel))
        .nic(Nic::user().model(card))
}

/// Starts the machine with this configuration, and returns the node's answer to a call.
fn answers(bench: &TestBench, vm: VmBuilder, config: &str) -> Value {
    answered(bench, vm, config).1
}

/// The same with the machine, which has no problem.
fn answered(bench: &TestBench, vm: VmBuilder, config: &str) -> (MachineNode, Value) {
    let (node, info) = started(bench, vm, config);
    assert_eq!(info["problems"], json!([]), "{info:#}");
    (node, info)
}

/// The same with a machine that may have problems.
fn started(bench: &TestBench, vm: VmBuilder, config: &str) -> (MachineNode, Value) {
    let config = document(bench, "by-itself") + config;
    let node = serving(bench, vm.config(config));
    let info = node.info();
    assert_eq!(info["name"], "by-itself", "{info:#}");
    (node, info)
}

/// What GRUB needs on a disk: the code of the first sector, and everything before the boot note, which
/// the machine writes.
fn loader(disk: &Path) -> Vec<u8> {
    let mut bytes = vec![0; NOTE_OFFSET as usize];
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
    let vm = machine_with(MachineKind::Pc, NicModel::E1000).memory_mib(256);
    let vm = vm.disk(VirtioDisk::file(&disk));
    let info = answers(&bench, vm, NO_VAULT);
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
    assert_eq!(info["data"]["device"], "/dev/vda3", "{info:#}");
    assert!(loader(&disk) == shipped, "GRUB was changed");
    let record = record(&disk);
    assert_eq!(
        (record.good(), record.phase()),
        (BootSlot::A, BootPhase::Idle)
    );
    assert_eq!(record.booted(), Some(BootSlot::A), "GRUB wrote the record");
}

/// The form for QEMU, libvirt and most providers. Other tests read the file, so the writes of the machine go
/// elsewhere.
#[test]
fn the_qcow2_file_starts_by_a_bios() {
    let bench = TestBench::new();
    let file = built(ImageForm::Qcow2, OutputRole::Disk);
    let disk = VirtioDisk::snapshot(file).format(DiskFormat::Qcow2);
    keeps_nothing(&bench, machine(MachineKind::Pc).disk(disk));
}

/// The record, which the loader, GRUB and the machine write and read.
fn record(disk: &Path) -> BootRecord {
    let mut bytes = [0; RECORD_BYTES];
    let file = File::open(disk).expect("the disk is ours");
    file.read_exact_at(&mut bytes, RECORD_OFFSET)
        .expect("it is longer");
    BootRecord::parse(&bytes).unwrap_or_else(|error| panic!("{error}"))
}

/// The record of a machine with a new version in slot b, which is to be tried.
fn pending() -> BootRecord {
    let record = BootRecord::new(BootSlot::A).vacate().expect("idle");
    record.stage().expect("idle").arm().expect("staged")
}

fn put_record(disk: &Path, record: &BootRecord) {
    let file = File::options().write(true).open(disk);
    let file = file.expect("the disk is ours");
    file.write_all_at(&record.encode(), RECORD_OFFSET)
        .expect("it is longer");
}

/// A version on trial whose file has no program: the kernel and its script begin behind bytes that an update writes
/// last. GRUB leaves it out, and says in the record that the trial failed. The disk is a stick, which GRUB writes by the
/// BIOS as any disk.
#[test]
fn a_trial_without_a_whole_program_leaves_the_good_slot_by_a_bios() {
    let bench = TestBench::new();
    let disk = bench.raw();
    let half = bench.path().join("half");
    let mut program = vec![0; SCRIPT_AT];
    program[..2].copy_from_slice(b"MZ");
    std::fs::write(&half, program).expect("the folder is ours");
    let partition = format!("{}@@1M", disk.display());
    let half = half.display().to_string();
    tool_says("mcopy", &["-i", &partition, &half, "::/EFI/ALKNET/B.EFI"]);
    put_record(&disk, &pending());
    let stick = VirtioDisk::file(&disk).on(DiskController::UsbStorage);
    let vm = machine(MachineKind::Pc).disk(stick);
    let (node, _) = started(&bench, vm, NO_VAULT);
    eventually("the machine says that the update failed", || {
        let problems = node.info()["problems"].take();
        let codes: Vec<_> = problems
            .as_array()?
            .iter()
            .map(|one| &one["code"])
            .collect();
        (codes == ["update-failed"]).then_some(())
    });
    drop(node);
    let record = record(&disk);
    assert_eq!(
        (record.good(), record.phase()),
        (BootSlot::A, BootPhase::Failed)
    );
    assert_eq!(record.booted(), Some(BootSlot::A));
}

/// GRUB starts the version on trial, which is the same program here, and counts, which no power cut in its writes spoils. No version before it left a note, so the
/// machine does not take the blank disk for its own: the data may be on a disk that this version does not see.
#[test]
fn a_trial_starts_by_a_bios_and_is_counted() {
    let bench = TestBench::new();
    let disk = bench.raw();
    let copy = bench.path().join("program").display().to_string();
    let partition = format!("{}@@1M", disk.display());
    tool_says("mcopy", &["-i", &partition, "::/EFI/ALKNET/A.EFI", &copy]);
    tool_says("mcopy", &["-i", &partition, &copy, "::/EFI/ALKNET/B.EFI"]);
    put_record(&disk, &pending());
    let recorder = DiskRecorder::serve(&disk).unwrap_or_else(|error| panic!("{error}"));
    let vm = machine(MachineKind::Q35).disk(VirtioDisk::recorded(&recorder));
    let vm = vm.config(document(&bench, "by-itself") + NO_VAULT).start();
    let vm = vm.unwrap_or_else(|error| panic!("{error}"));
    for line in [
        "alknet: GRUB starts slot b on trial, tries left after this one: 2",
        "alknet: problem data-missing: ",
        "is blank, and this version is or may be on trial",
    ] {
        let said = vm.wait_for(line, SAID_WITHIN);
        said.unwrap_or_else(|error| panic!("{error}"));
    }
    knock::serves_nothing(&vm);
    drop(vm);
    cut_record_writes(&bench, &recorder.recording());
}

/// Cuts each write of the record in a start of a version on trial by GRUB, which writes both sectors and flushes
/// nothing: before the write, within it and after it, and with writes that the disk lost. Every record that is left can
/// be read and starts a whole program, and the one after all writes has a try less.
fn cut_record_writes(bench: &TestBench, recording: &DiskRecording) {
    let first = SlotDiskImage::new(bench.raw());
    let program = first.program(BootSlot::A).expect("the image has it");
    let path = bench.path().join("cut.raw");
    let image = Evidence(path.clone());
    let disk = SlotDiskImage::new(path);
    let starts = |when: &str| {
        let record = disk.record();
        let record = record.unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(record.good(), BootSlot::A, "{when}");
        assert_eq!(disk.chosen(), Some(BootSlot::B), "{when}");
        for slot in BootSlot::ALL {
            let has_it = disk.has_program(slot, &program);
            assert_eq!(has_it, Some(true), "{when}: slot {slot}");
        }
        let left = (record.tries(), record.booted());
        assert!([UNCOUNTED, COUNTED].contains(&left), "{when}: {left:?}");
        left
    };
    let places = RECORD_OFFSET..RECORD_OFFSET + RECORD_BYTES as u64;
    let writes = recording.writes_in(places);
    let mut left = Vec::new();
    let cuts = recording.cut_each(&writes, &image.0, &mut |at, part| {
        left.push(starts(&format!("moment {at}, {part:?}")));
    });
    let cuts = cuts.unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{} writes of the record cut {cuts} times", writes.len());
    let ends = (left.first(), left.last());
    assert_eq!(ends, (Some(&UNCOUNTED), Some(&COUNTED)), "{left:?}");
    let last = writes.last().expect("GRUB wrote the record");
    for seed in 0..SEEDS {
        let cut = recording.cut(last + 1, seed, &image.0);
        let cut = cut.unwrap_or_else(|error| panic!("{error}"));
        starts(&format!("seed {seed}, {cut:?}"));
    }
}

/// A machine in a rack has no person in front of it who could answer.
#[test]
fn a_disk_without_its_program_says_so_and_asks_nothing() {
    let bench = TestBench::new();
    let disk = bench.raw();
    let partition = format!("{}@@1M", disk.display());
    tool_says("mdel", &["-i", &partition, "::/EFI/ALKNET/A.EFI"]);
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
fn the_medium_starts_as_a_stick_by_a_bios() {
    let bench = TestBench::new();
    let vm = machine_with(MachineKind::Q35, NicModel::E1000e);
    keeps_nothing(&bench, vm.disk(stick_with_medium()));
}

#[test]
fn the_medium_starts_as_a_stick_by_uefi() {
    let bench = TestBench::new();
    let vm = machine_with(MachineKind::Q35Uefi, NicModel::Vmxnet3);
    keeps_nothing(&bench, vm.disk(stick_with_medium()));
}

/// A stick to which the medium was written. Other tests start the same file.
pub(super) fn stick_with_medium() -> VirtioDisk {
    let medium = VirtioDisk::snapshot(built(ImageForm::Iso, OutputRole::Disk));
    medium.on(DiskController::UsbStorage)
}

fn keeps_nothing(bench: &TestBench, vm: VmBuilder) {
    let info = answers(bench, vm, "stateless = true\n");
    assert_eq!(info["data"]["mode"], "volatile", "{info:#}");
}
