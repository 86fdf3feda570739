//! The loader under firmware, on a disk with a boot state record: which slot starts, and what the record says
//! afterwards. In the slots are programs that say their own name and restart the machine.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_boot_state::{BootPhase, BootRecord, BootSlot, RECORD_BYTES, RECORD_OFFSET};
use alknet_qemu::{ConsoleMark, MachineKind, VirtioDisk, Vm, blank};
use alknet_tests::TestBench;
use alknet_tests::tools::{tool_says, variable};

/// Name the loader, and the program for its slots.
const LOADER_VARIABLE: &str = "ALKNET_TEST_LOADER";
const SLOT_PROBE_VARIABLE: &str = "ALKNET_TEST_SLOT_PROBE";

/// Bytes of the disk: the frozen layout with a smaller EFI system partition.
const DISK_BYTES: u64 = 32 << 20;
/// The last block of that partition, and its blocks.
const ESP_LAST_LBA: u32 = 49_151;
const ESP_BLOCKS: &str = "47104";
/// Where the partition begins, for mtools.
const ESP_AT: &str = "1M";

/// Memory of the machine in MiB: firmware and a program of 13 KB need no more.
const MEMORY_MIB: u32 = 256;
/// From power-on until the loader or the slot has printed its line.
const SAID_WITHIN: Duration = Duration::from_secs(30);

/// The place of a slot's program.
fn program_of(slot: BootSlot) -> String {
    format!("::/EFI/ALKNET/{}", slot.file_name())
}

/// A disk with the loader, these slots, and these bytes in the record's place.
fn disk(bench: &TestBench, slots: &[BootSlot], record: &[u8]) -> PathBuf {
    let path = bench.path().join("slots.raw");
    blank(&path, DISK_BYTES).unwrap_or_else(|error| panic!("{error}"));
    let name = path.display().to_string();
    let esp = format!("2:2048:{ESP_LAST_LBA}");
    let table = [
        "-a",
        "1",
        "-n",
        "1:34:2047",
        "-t",
        "1:EF02",
        "-n",
        &esp,
        "-t",
        "2:EF00",
    ];
    tool_says("sgdisk", &[&table[..], &[name.as_str()]].concat());
    let volume = format!("{name}@@{ESP_AT}");
    tool_says(
        "mformat",
        &[
            "-i", &volume, "-T", ESP_BLOCKS, "-h", "16", "-s", "63", "::",
        ],
    );
    let folders = ["::/EFI", "::/EFI/BOOT", "::/EFI/ALKNET"];
    tool_says("mmd", &[&["-i", &volume][..], &folders].concat());
    copy(&path, &variable(LOADER_VARIABLE), "::/EFI/BOOT/BOOTX64.EFI");
    for slot in slots {
        copy(&path, &variable(SLOT_PROBE_VARIABLE), &program_of(*slot));
    }
    let file = File::options().write(true).open(&path);
    let written = file.and_then(|file| file.write_all_at(record, RECORD_OFFSET));
    written.expect("the disk is ours");
    path
}

fn copy(disk: &Path, file: &str, to: &str) {
    let volume = format!("{}@@{ESP_AT}", disk.display());
    tool_says("mcopy", &["-o", "-i", &volume, file, to]);
}

fn record_on(disk: &Path) -> BootRecord {
    let mut bytes = [0; RECORD_BYTES];
    let file = File::open(disk).expect("the disk is ours");
    file.read_exact_at(&mut bytes, RECORD_OFFSET)
        .expect("it is longer");
    BootRecord::parse(&bytes).expect("the loader leaves a record")
}

/// The record of a machine with a new version in slot b, which is to be tried.
fn pending() -> BootRecord {
    let record = BootRecord::new(BootSlot::A).vacate().expect("idle");
    record.stage().expect("idle").arm().expect("staged")
}

/// A machine that ends when its slot restarts it.
fn once(disk: VirtioDisk) -> Vm {
    let machine = Vm::builder(MachineKind::Q35Uefi).memory_mib(MEMORY_MIB);
    let vm = machine.disk(disk).exit_on_reset().start();
    vm.unwrap_or_else(|error| panic!("{error}"))
}

/// Waits for a line behind `mark`.
fn says(vm: &Vm, mark: ConsoleMark, line: &str) -> ConsoleMark {
    let found = vm.wait_for_after(mark, line, SAID_WITHIN);
    found.unwrap_or_else(|error| panic!("{error}"))
}

/// Waits until the program of `slot` says that it runs. It has no load options, so the program of an image takes its own
/// command line.
fn started(vm: &Vm, mark: ConsoleMark, slot: BootSlot) -> ConsoleMark {
    let line = format!(
        "alknet-slot-probe: \\EFI\\ALKNET\\{}, 0 bytes of options",
        slot.file_name()
    );
    says(vm, mark, &line)
}

/// One machine through all starts of a trial: each of the three counts, then the good slot starts, and then again.
#[test]
fn a_trial_starts_three_times_and_then_the_good_slot_starts() {
    let bench = TestBench::new();
    let disk = disk(&bench, &BootSlot::ALL, &pending().encode());
    let machine = Vm::builder(MachineKind::Q35Uefi).memory_mib(MEMORY_MIB);
    let vm = machine.disk(VirtioDisk::file(&disk)).start();
    let vm = vm.unwrap_or_else(|error| panic!("{error}"));
    let mut mark = ConsoleMark::default();
    for left in [2, 1, 0] {
        let trial = format!("starting slot b on trial, tries left after this one: {left}");
        mark = says(&vm, mark, &trial);
        mark = started(&vm, mark, BootSlot::B);
    }
    for _ in 0..2 {
        mark = says(&vm, mark, "alknet-loader: starting slot a");
        mark = started(&vm, mark, BootSlot::A);
    }
    drop(vm);
    let record = record_on(&disk);
    assert_eq!(record.phase(), BootPhase::Failed);
    assert_eq!(
        (record.good(), record.booted()),
        (BootSlot::A, Some(BootSlot::A))
    );
}

#[test]
fn a_trial_without_a_program_and_one_that_does_not_load_leave_the_good_slot() {
    let bench = TestBench::new();
    let disk = disk(&bench, &[BootSlot::A], &pending().encode());
    started(
        &once(VirtioDisk::snapshot(&disk)),
        ConsoleMark::default(),
        BootSlot::A,
    );
    // It begins as a program, and firmware finds that it is not one.
    let broken = bench.path().join("broken.efi");
    std::fs::write(&broken, [&b"MZ"[..], &[0x5a; 4000]].concat()).expect("the folder is ours");
    copy(
        &disk,
        &broken.display().to_string(),
        &program_of(BootSlot::B),
    );
    let vm = once(VirtioDisk::file(&disk));
    let refused = "slot b did not start: firmware did not load it: ";
    let mark = says(&vm, ConsoleMark::default(), refused);
    started(&vm, mark, BootSlot::A);
    drop(vm);
    let record = record_on(&disk);
    assert_eq!(record.phase(), BootPhase::Failed);
}

#[test]
fn garbage_in_the_record_s_place_starts_slot_a_and_stays() {
    let bench = TestBench::new();
    let garbage = [0xa5; RECORD_BYTES];
    let disk = disk(&bench, &BootSlot::ALL, &garbage);
    let vm = once(VirtioDisk::file(&disk));
    let unreadable = "boot state record unreadable, slot a counts as good: ";
    let mark = says(&vm, ConsoleMark::default(), unreadable);
    started(&vm, mark, BootSlot::A);
    drop(vm);
    let mut bytes = [0; RECORD_BYTES];
    let file = File::open(&disk).expect("the disk is ours");
    file.read_exact_at(&mut bytes, RECORD_OFFSET)
        .expect("it is longer");
    assert_eq!(bytes, garbage);
}

#[test]
fn on_a_disk_that_refuses_writes_no_trial_starts() {
    let bench = TestBench::new();
    let disk = disk(&bench, &BootSlot::ALL, &pending().encode());
    let vm = once(VirtioDisk::file(&disk).read_only());
    let unwritten = "boot state record not written: the disk reports: WRITE_PROTECTED";
    let mark = says(&vm, ConsoleMark::default(), unwritten);
    let mark = says(&vm, mark, "alknet-loader: starting slot a");
    started(&vm, mark, BootSlot::A);
    drop(vm);
    assert_eq!(record_on(&disk), pending());
}

#[test]
fn with_neither_slot_the_console_says_what_to_do() {
    let bench = TestBench::new();
    let disk = disk(&bench, &[], &pending().encode());
    let vm = once(VirtioDisk::file(&disk));
    let line = "alknet-loader: no slot starts: copy \\EFI\\ALKNET\\A.EFI of an image to the boot partition; restart \
                in 30 s";
    says(&vm, ConsoleMark::default(), line);
    drop(vm);
    assert_eq!(record_on(&disk), pending());
}
