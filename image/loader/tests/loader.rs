//! The loader on a model of a machine: what it writes, in which order, and what it starts.

use std::fmt;

use alknet_boot_state::{
    BootPhase, BootRecord, BootSlot, BootSlots, RECORD_BYTES, RECORD_OFFSET, SECTOR_BYTES,
};
use alknet_loader::{
    LoaderMachine, RecordBlocks, RecordDisk, RecordIoError, SlotStartError, load, run, store,
};

/// Bytes of the model's disk: up to the EFI system partition.
const DISK_BYTES: usize = 1 << 20;
/// What lies before the record on a disk with large blocks: the end of GRUB's core image.
const BESIDE: u8 = 0x5a;

/// The state of the model's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MediumFault {
    None,
    /// Each write fails.
    ReadOnly,
    /// Writes succeed and change nothing.
    Forgetful,
    /// Nothing can be read.
    Unreadable,
}

struct BlockDisk {
    bytes: Vec<u8>,
    block: u32,
    fault: MediumFault,
    /// What was done, in order: `write 2046 512`, `flush`.
    log: Vec<String>,
}

impl BlockDisk {
    fn new(block: u32, record: &[u8]) -> Self {
        let mut bytes = vec![BESIDE; DISK_BYTES];
        let at = usize::try_from(RECORD_OFFSET).expect("below a MiB");
        bytes[at..at + record.len()].copy_from_slice(record);
        Self {
            bytes,
            block,
            fault: MediumFault::None,
            log: Vec::new(),
        }
    }

    fn range(&self, first: u64, length: usize) -> std::ops::Range<usize> {
        let block = self.block as usize;
        assert_eq!(length % block, 0, "whole blocks");
        let at = usize::try_from(first).expect("a small disk") * block;
        at..at + length
    }

    fn record(&self) -> &[u8] {
        let at = usize::try_from(RECORD_OFFSET).expect("below a MiB");
        &self.bytes[at..at + RECORD_BYTES]
    }
}

impl RecordDisk for &mut BlockDisk {
    type Error = &'static str;

    fn block_bytes(&self) -> u32 {
        self.block
    }

    fn read(&mut self, first: u64, blocks: &mut [u8]) -> Result<(), &'static str> {
        assert_eq!(blocks.as_ptr() as usize % 4096, 0, "firmware may demand it");
        if self.fault == MediumFault::Unreadable {
            return Err("no medium");
        }
        let range = self.range(first, blocks.len());
        blocks.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    fn write(&mut self, first: u64, blocks: &[u8]) -> Result<(), &'static str> {
        self.log.push(format!("write {first} {}", blocks.len()));
        let range = self.range(first, blocks.len());
        match self.fault {
            MediumFault::None => self.bytes[range].copy_from_slice(blocks),
            MediumFault::Forgetful => {}
            MediumFault::ReadOnly | MediumFault::Unreadable => return Err("write protected"),
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), &'static str> {
        self.log.push("flush".to_owned());
        Ok(())
    }
}

/// A machine on which the slots in `broken` have a program that does not load.
struct ModelMachine {
    disk: BlockDisk,
    present: BootSlots,
    broken: BootSlots,
    /// The first slot that starts ends the loader. Its record of that moment.
    started: Vec<(BootSlot, Option<BootRecord>)>,
    lines: Vec<String>,
}

impl ModelMachine {
    fn new(record: &BootRecord) -> Self {
        Self {
            disk: BlockDisk::new(512, &record.encode()),
            present: BootSlots::ALL,
            broken: BootSlots::NONE,
            started: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// The slots that were started, in order.
    fn slots(&self) -> Vec<BootSlot> {
        self.started.iter().map(|(slot, _)| *slot).collect()
    }

    fn said(&self, part: &str) -> bool {
        self.lines.iter().any(|line| line.contains(part))
    }
}

impl LoaderMachine for ModelMachine {
    type Disk<'a> = &'a mut BlockDisk;
    type Status = &'static str;

    fn disk(&mut self) -> Result<&mut BlockDisk, &'static str> {
        Ok(&mut self.disk)
    }

    fn present(&mut self) -> BootSlots {
        self.present
    }

    fn start(&mut self, slot: BootSlot) -> SlotStartError<&'static str> {
        let record = BootRecord::parse(self.disk.record()).ok();
        self.started.push((slot, record));
        if self.broken.contains(slot) {
            SlotStartError::NotLoaded("LOAD_ERROR")
        } else {
            SlotStartError::Ended("SUCCESS")
        }
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        self.lines.push(line.to_string());
    }
}

fn pending() -> BootRecord {
    let record = BootRecord::new(BootSlot::A).vacate().expect("idle");
    record.stage().expect("idle").arm().expect("staged")
}

#[test]
fn the_record_is_found_in_blocks_of_each_size() {
    let expected = [
        (512, 2046, 1024, 0, 512),
        (1024, 1023, 1024, 0, 1024),
        (2048, 511, 2048, 1024, 2048),
        (4096, 255, 4096, 3072, 4096),
    ];
    for (block, first, bytes, offset, changed_bytes) in expected {
        let blocks = RecordBlocks {
            first,
            bytes,
            offset,
            changed_bytes,
        };
        assert_eq!(RecordBlocks::for_block_bytes(block), Some(blocks));
    }
    for other in [0, 520, 8192] {
        assert_eq!(RecordBlocks::for_block_bytes(other), None);
        let mut disk = BlockDisk::new(other, &[]);
        let error = load(&mut &mut disk).expect_err("unknown blocks");
        assert!(matches!(error, RecordIoError::Blocks(bytes) if bytes == other));
    }
}

#[test]
fn a_change_is_one_write_of_the_blocks_with_the_variables() {
    for (block, write) in [(512, "write 2046 512"), (4096, "write 255 4096")] {
        let mut disk = BlockDisk::new(block, &BootRecord::FALLBACK.encode());
        store(&mut &mut disk, &pending()).expect("it can be written");
        assert_eq!(disk.log, [write, "flush"]);
        assert_eq!(load(&mut &mut disk).expect("a record"), pending());
        // What else is in the block stays.
        let at = usize::try_from(RECORD_OFFSET).expect("below a MiB");
        assert!(disk.bytes[..at].iter().all(|byte| *byte == BESIDE));
        assert!(
            disk.record()[SECTOR_BYTES..]
                .iter()
                .all(|byte| *byte == b'#')
        );
    }
}

#[test]
fn nothing_is_written_where_no_record_was() {
    let mut disk = BlockDisk::new(512, &[BESIDE; RECORD_BYTES]);
    let error = store(&mut &mut disk, &pending()).expect_err("no record");
    assert!(matches!(error, RecordIoError::Record(_)), "{error:?}");
    assert_eq!(disk.log, [""; 0]);
}

#[test]
fn a_disk_that_does_not_keep_a_write_is_noticed() {
    let mut disk = BlockDisk::new(512, &BootRecord::FALLBACK.encode());
    disk.fault = MediumFault::Forgetful;
    let error = store(&mut &mut disk, &pending()).expect_err("nothing changed");
    assert_eq!(error.to_string(), "the disk did not keep what was written");
}

#[test]
fn a_try_is_counted_on_the_disk_before_the_slot_starts() {
    let mut machine = ModelMachine::new(&pending());
    run(&mut machine);
    let (slot, record) = machine.started[0];
    let record = record.expect("it reads back");
    assert_eq!((slot, record.tries()), (BootSlot::B, 2));
    assert_eq!(record.booted(), Some(BootSlot::B));
    assert_eq!(machine.disk.log[..2], ["write 2046 512", "flush"]);
    assert!(machine.said("starting slot b on trial, tries left after this one: 2"));
}

#[test]
fn a_version_on_trial_does_not_start_uncounted() {
    for fault in [MediumFault::ReadOnly, MediumFault::Forgetful] {
        let mut machine = ModelMachine::new(&pending());
        machine.disk.fault = fault;
        run(&mut machine);
        assert_eq!(machine.slots()[0], BootSlot::A, "{fault:?}");
        assert!(machine.said("boot state record not written: "), "{fault:?}");
    }
    // Without a good one there is nothing to protect.
    let mut machine = ModelMachine::new(&pending());
    machine.disk.fault = MediumFault::ReadOnly;
    machine.present = BootSlots::ALL.without(BootSlot::A);
    run(&mut machine);
    assert_eq!(machine.slots(), [BootSlot::B]);
}

#[test]
fn a_trial_that_does_not_load_fails_at_once_and_the_good_slot_starts() {
    let mut machine = ModelMachine::new(&pending());
    machine.broken = BootSlots::ALL.without(BootSlot::A);
    run(&mut machine);
    assert_eq!(machine.slots(), [BootSlot::B, BootSlot::A]);
    assert!(machine.said("slot b did not start: firmware did not load it: LOAD_ERROR"));
    let (_, record) = machine.started[1];
    let record = record.expect("it reads back");
    assert_eq!(record.phase(), BootPhase::Failed);
    assert_eq!(record.failed(), Some(BootSlot::B));
}

#[test]
fn a_good_slot_that_does_not_start_leaves_the_other_one() {
    let mut machine = ModelMachine::new(&BootRecord::new(BootSlot::A));
    machine.broken = BootSlots::ALL;
    run(&mut machine);
    assert_eq!(machine.slots(), [BootSlot::A, BootSlot::B]);
    let record = BootRecord::parse(machine.disk.record()).expect("a record");
    // The running system sees by this that another slot than the good one was started.
    assert_eq!(record.booted(), Some(BootSlot::B));
    assert_eq!(record.good(), BootSlot::A);
    assert!(machine.said("no slot starts: "));
}

#[test]
fn without_a_record_nothing_is_written_and_the_reason_is_on_the_console() {
    for fault in [MediumFault::None, MediumFault::Unreadable] {
        let mut machine = ModelMachine::new(&BootRecord::FALLBACK);
        machine.disk = BlockDisk::new(512, &[BESIDE; RECORD_BYTES]);
        machine.disk.fault = fault;
        run(&mut machine);
        assert_eq!(machine.slots(), [BootSlot::A, BootSlot::B]);
        assert_eq!(machine.disk.log, [""; 0]);
        assert!(machine.said("boot state record unreadable, slot a counts as good: "));
    }
}

#[test]
fn with_neither_slot_the_loader_says_what_to_do_and_writes_nothing() {
    let mut machine = ModelMachine::new(&pending());
    machine.present = BootSlots::NONE;
    run(&mut machine);
    assert_eq!(machine.slots(), []);
    assert_eq!(machine.disk.log, [""; 0]);
    let line = "no slot starts: copy \\EFI\\ALKNET\\A.EFI of an image to the boot partition; restart in 30 s";
    assert_eq!(machine.lines, [line]);
}

/// A boot of the good slot that the record names already costs no write.
#[test]
fn an_ordinary_start_writes_once_and_never_again() {
    let mut machine = ModelMachine::new(&BootRecord::new(BootSlot::A));
    machine.present = BootSlots::ALL.without(BootSlot::B);
    run(&mut machine);
    assert_eq!(machine.disk.log, ["write 2046 512", "flush"]);
    machine.disk.log.clear();
    run(&mut machine);
    assert_eq!(machine.disk.log, [""; 0]);
    assert_eq!(machine.slots(), [BootSlot::A, BootSlot::A]);
}
