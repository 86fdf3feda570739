//! The disk with the boot slots: its record, its boot note and its boot partition.

use std::cell::RefCell;
use std::io;

use alknet_boot_state::{
    BootNote, BootNoteError, BootRecord, BootRecordError, BootSlot, NOTE_BYTES, NOTE_OFFSET,
    NoteArea, RECORD_BYTES, RECORD_OFFSET, SECTOR_BYTES,
};
use alknet_fat::{BlockDevice, FatError, FatExtent, FatVolume};

use super::boot_partitions::{BIOS_LBA, BootPartitions};
use super::direct::DirectDevice;

/// The folder of the boot slots on the boot partition.
const FOLDER: &str = r"\EFI\ALKNET";
/// The loader, where firmware finds a program without a boot entry (UEFI, section 3.5.1.1).
pub(super) const LOADER: &str = r"\EFI\BOOT\BOOTX64.EFI";

/// The path of a slot's program on the boot partition.
pub(super) fn slot_path(slot: BootSlot) -> String {
    format!(r"{FOLDER}\{}", slot.file_name())
}

/// Why the record or the note could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootDiskError {
    /// The disk has other bytes than those that were written.
    #[error("the disk did not keep {what} that was written")]
    Changed { what: &'static str },
    /// The disk failed.
    #[error("cannot {doing} of the boot slots: {source}")]
    Io {
        /// A verb and its object.
        doing: &'static str,
        source: io::Error,
    },
    /// The bytes in the record's place are no record.
    #[error("the boot state record cannot be read: {0}")]
    Record(BootRecordError),
}

impl BootDiskError {
    fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// The two partitions of the disk.
#[derive(Debug)]
pub(crate) struct SlotDisk<D> {
    bios: D,
    esp: D,
}

impl SlotDisk<DirectDevice> {
    /// Opens both partitions. While the value lives, the kernel mounts no file system of the boot partition.
    pub(super) fn open(partitions: &BootPartitions) -> Result<Self, BootDiskError> {
        let open = |path, alone| {
            DirectDevice::open(path, alone).map_err(BootDiskError::io("open the disk"))
        };
        Ok(Self {
            bios: open(&partitions.bios, false)?,
            esp: open(&partitions.esp, true)?,
        })
    }
}

impl<D: BlockDevice> SlotDisk<D> {
    /// A disk in parts, for models of one.
    #[cfg(test)]
    pub(super) fn new(bios: D, esp: D) -> Self {
        Self { bios, esp }
    }

    /// The boot partition, to be read or written as FAT.
    pub(super) fn volume(&mut self) -> Result<FatVolume<&mut D>, FatError> {
        FatVolume::open(&mut self.esp)
    }

    /// The boot partition for several readers, and a writer between whose writes they read.
    pub(super) fn shared(&mut self) -> RefCell<&mut D> {
        RefCell::new(&mut self.esp)
    }

    pub(super) fn record(&self) -> Result<BootRecord, BootDiskError> {
        read_record(&self.bios)
    }

    /// Writes the record, flushes the disk, and reads the record back.
    pub(super) fn write_record(&mut self, record: &BootRecord) -> Result<(), BootDiskError> {
        write_record(&mut self.bios, record)
    }

    pub(super) fn note(&self) -> Result<Result<BootNote, BootNoteError>, BootDiskError> {
        Ok(read_note(&self.bios)?.read())
    }

    pub(super) fn write_note(&mut self, note: &BootNote) -> Result<(), BootDiskError> {
        write_note(&mut self.bios, note)
    }

    /// Removes the note.
    pub(super) fn clear_note(&mut self) -> Result<(), BootDiskError> {
        if *read_note(&self.bios)?.bytes() == *NoteArea::EMPTY.bytes() {
            return Ok(());
        }
        write_flushed(&mut self.bios, NoteArea::EMPTY.bytes(), at(NOTE_OFFSET))
    }
}

/// A device that is read while a file of it is written. No call holds it while another one begins.
#[derive(Debug)]
pub(super) struct SharedDevice<'a, D>(pub(super) &'a RefCell<&'a mut D>);

impl<D> Clone for SharedDevice<'_, D> {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl<D: BlockDevice> BlockDevice for SharedDevice<'_, D> {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.0.borrow().read_at(buffer, at)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.borrow_mut().write_at(bytes, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }

    fn len(&self) -> u64 {
        self.0.borrow().len()
    }
}

/// Where something of the disk lies in `alk-bios`.
const fn at(disk_offset: u64) -> u64 {
    disk_offset - BIOS_LBA * SECTOR_BYTES as u64
}

fn read_record<D: BlockDevice>(bios: &D) -> Result<BootRecord, BootDiskError> {
    let mut bytes = [0; RECORD_BYTES];
    let read = bios.read_at(&mut bytes, at(RECORD_OFFSET));
    read.map_err(BootDiskError::io("read the record"))?;
    BootRecord::parse(&bytes).map_err(BootDiskError::Record)
}

fn write_record<D: BlockDevice>(bios: &mut D, record: &BootRecord) -> Result<(), BootDiskError> {
    let bytes = record.encode();
    let (variables, padding) = bytes.split_at(SECTOR_BYTES);
    let mut known = [0; RECORD_BYTES];
    let read = bios.read_at(&mut known, at(RECORD_OFFSET));
    read.map_err(BootDiskError::io("read the record"))?;
    // The second sector is always the same. It is written only where it was damaged, and first, because the record
    // counts with the first one.
    if &known[SECTOR_BYTES..] != padding {
        let behind = at(RECORD_OFFSET) + SECTOR_BYTES as u64;
        write_flushed(bios, padding, behind)?;
    }
    write_flushed(bios, variables, at(RECORD_OFFSET))?;
    // Some sticks and card readers report a write that they did not make.
    match read_record(bios) {
        Ok(found) if found == *record => Ok(()),
        _ => Err(BootDiskError::Changed { what: "the record" }),
    }
}

fn read_note<D: BlockDevice>(bios: &D) -> Result<NoteArea, BootDiskError> {
    let mut bytes = [0; NOTE_BYTES];
    let read = bios.read_at(&mut bytes, at(NOTE_OFFSET));
    read.map_err(BootDiskError::io("read the boot note"))?;
    Ok(NoteArea::new(bytes))
}

pub(super) fn write_note<D: BlockDevice>(
    bios: &mut D,
    note: &BootNote,
) -> Result<(), BootDiskError> {
    let (half, bytes) = read_note(bios)?.put(note);
    write_flushed(bios, &bytes, at(NOTE_OFFSET) + half as u64)
}

fn write_flushed<D: BlockDevice>(bios: &mut D, bytes: &[u8], at: u64) -> Result<(), BootDiskError> {
    let written = bios.write_at(bytes, at).and_then(|()| bios.flush());
    written.map_err(BootDiskError::io("write the state"))
}

/// A file of the boot partition, read anywhere.
#[derive(Debug)]
pub(super) struct SlotFile<'a, D> {
    device: &'a D,
    extents: Vec<FatExtent>,
    bytes: u64,
}

impl<'a, D: BlockDevice> SlotFile<'a, D> {
    pub(super) fn open(volume: &'a FatVolume<D>, path: &str) -> Result<Self, FatError> {
        let file = volume.open_file(path)?;
        Ok(Self {
            device: volume.device(),
            extents: file.extents().to_vec(),
            bytes: file.size().into(),
        })
    }

    /// Size in bytes.
    pub(super) fn len(&self) -> u64 {
        self.bytes
    }

    /// Fills `buffer` from position `at` of the file.
    pub(super) fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        let mut begin = 0;
        for extent in &self.extents {
            let end = begin + extent.bytes;
            let position = at + done as u64;
            if position < end && done < buffer.len() {
                let within = position - begin;
                let left = usize::try_from(extent.bytes - within).unwrap_or(usize::MAX);
                let length = left.min(buffer.len() - done);
                let piece = &mut buffer[done..done + length];
                self.device.read_at(piece, extent.at + within)?;
                done += length;
            }
            begin = end;
        }
        match done == buffer.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
