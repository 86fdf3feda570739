//! The GUID partition table of the boot disk (UEFI 2.10 section 5.3): it is found, repaired, given
//! new GUIDs and grown to the disk's end.
//!
//! The order of writes makes this safe at a power cut. The new backup is written, flushed and read back before
//! the primary is touched. Hence a torn primary always has a valid backup at the disk's last
//! sector, from which the next boot repairs it. A second run changes nothing.
//!
//! A disk may take a write and not keep it, or keep it in a block that cannot be read. Then the other copy stays as it is,
//! and so does the size of the partition.
//!
//! On a disk that has become longer, the header of the earlier backup is overwritten between these two writes: otherwise it
//! would stay within the partition, where `alknet image verify` takes it for the table of an attacker if it is near the end.
//!
//! If the primary is damaged, the backup is the only table that is left. Then the primary is written, flushed and read back
//! first.
//!
//! A block that cannot be read counts as one without what is looked for there, so a damaged block keeps no table from
//! growing if nothing has to be written there, or if it can be read once it is written. [`SettledTable::unreadable`] has it
//! for the log.
//!
//! The GUIDs of the image say that no machine was started from the disk since the image was written. Before they are
//! replaced, a vault that the disk had earlier is overwritten: see [`earlier`](super::earlier). If the power fails in
//! between, the next start does both again.

mod access;

use std::{io, ops::Range};

use uuid::Uuid;

use super::earlier::{self, EarlierContent};
use super::image_guids::ImageGuids;
use crate::little_endian::{u32_at, u64_at};

pub(crate) use access::{DirectDisk, DiskAccess, GptDisk, UnreadableBlock};

/// What a header begins with.
const HEADER_MARK: &[u8; 8] = b"EFI PART";
/// Bytes of a header that its checksum covers.
const HEADER_BYTES: usize = 92;
/// Maximum size of the partition array in bytes: four times what the standard requires.
const ENTRIES_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one entry.
const ENTRY_BYTES: usize = 128;
/// The last partition ends at a multiple of this many bytes.
const ALIGN_BYTES: u64 = 1 << 20;
/// Offset of the sector count in the protective MBR's first record.
const PMBR_COUNT: usize = 446 + 12;

/// Why a partition table cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GptError {
    #[error("neither copy of the partition table is valid; restore it or use another disk")]
    NoTable,
    #[error("the partition table has no partition named {0}")]
    NoPartition(String),
    #[error("partition {0} is not the last one on the disk and cannot grow")]
    NotLast(String),
    #[error("the disk has more sectors than a partition table can say")]
    TooLarge,
    #[error("a vault from before the image was written cannot be overwritten: {0}")]
    EarlierVault(io::Error),
    #[error("a copy of the partition table was written, and cannot be read back: {0}")]
    NotReadBack(UnreadableBlock),
    #[error("the disk did not keep the copy of the partition table that was written to block {0}")]
    NotKept(u64),
    #[error("reading or writing the partition table: {0}")]
    Io(#[from] io::Error),
}

/// What became of the table of a disk.
#[derive(Debug)]
pub(crate) struct SettledTable {
    /// The partition, or why its table is not as it should be.
    pub(crate) placement: Result<GptPlacement, GptError>,
    /// Whether the disk still has the GUIDs of the image.
    pub(crate) image_guids: ImageGuids,
    /// The blocks that could not be read, of those that were looked at.
    pub(crate) unreadable: Vec<UnreadableBlock>,
}

/// Position of the wanted partition after [`settle`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GptPlacement {
    /// One-based number of the partition, as the kernel counts.
    pub(crate) number: u32,
    /// First byte.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) length: u64,
    /// The changes that were written, in words. Empty if the table was right.
    pub(crate) changes: Vec<&'static str>,
    /// What the partition has from before the image was written. `None` on a disk from which a
    /// machine was started.
    pub(crate) earlier: Option<EarlierContent>,
}

/// The copies of the table that are valid.
#[derive(Debug)]
struct TableCopies {
    primary: Option<GptTable>,
    backup: Option<GptTable>,
}

/// The table that a disk is to have.
#[derive(Debug)]
struct TablePlan {
    /// Its primary copy, and its backup.
    target: GptTable,
    twin: GptTable,
    /// Number of the partition in the table, and its bytes on the disk.
    index: usize,
    bytes: Range<u64>,
    /// Whether its GUIDs are new.
    is_new: bool,
    /// Why the partition cannot grow, if it cannot.
    grown: Result<(), GptError>,
    changes: Vec<&'static str>,
}

/// One copy of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GptTable {
    my_lba: u64,
    alternate_lba: u64,
    first_usable: u64,
    last_usable: u64,
    disk_guid: [u8; 16],
    entries_lba: u64,
    entries: Vec<u8>,
}

/// Corrects the table of `disk`: repairs a damaged primary from the backup, replaces GUIDs that
/// came with the image, and grows the partition `name` to the disk's end. With GUIDs of the image, it
/// first overwrites an earlier vault on that partition.
pub(crate) fn settle(
    disk: &GptDisk<'_>,
    name: &str,
    mut random: impl FnMut() -> io::Result<[u8; 16]>,
) -> SettledTable {
    let mut unreadable = Vec::new();
    let copies = TableCopies::read(disk, &mut unreadable);
    let mut image_guids = copies.image_guids(name, &unreadable);
    let planned = copies.plan(disk, name, &mut random);
    let placement = planned.and_then(|mut plan| {
        let earlier = plan.write(disk, &copies, &mut unreadable)?;
        // Both copies are on stable storage, and both were read.
        image_guids = ImageGuids::Absent;
        // The GUIDs are replaced although the partition cannot grow: a vault that is made from now on is
        // this machine's.
        plan.grown?;
        protect(disk, &mut unreadable)?;
        Ok(GptPlacement {
            number: u32::try_from(plan.index + 1).map_err(|_| GptError::TooLarge)?,
            start: plan.bytes.start,
            length: plan.bytes.end - plan.bytes.start,
            changes: plan.changes,
            earlier,
        })
    });
    SettledTable {
        placement,
        image_guids,
        unreadable,
    }
}

/// Whether either copy names a partition `name`, for disks whose primary the kernel refused.
pub(crate) fn names(disk: &GptDisk<'_>, name: &str) -> bool {
    copies(disk).any(|table| table.find(|index| table.has_name(index, name)).is_some())
}

/// The GUID of the partition that begins at the byte `start`, by the first copy of the table that is valid.
pub(super) fn partition_guid(disk: &GptDisk<'_>, start: u64) -> Option<Uuid> {
    copies(disk).find_map(|table| {
        let index = table.find(|index| table.bytes(disk, index).start == start)?;
        Some(Uuid::from_bytes_le(guid_at(table.entry(index), 16)))
    })
}

/// The copies of the table that can be read and are valid, the primary first.
fn copies(disk: &GptDisk<'_>) -> impl Iterator<Item = GptTable> {
    let lbas = [1, disk.sectors.saturating_sub(1)].into_iter();
    lbas.filter_map(move |lba| GptTable::read(disk, lba).ok().flatten())
}

impl TableCopies {
    /// Reads both copies, and adds the blocks that cannot be read.
    fn read(disk: &GptDisk<'_>, unreadable: &mut Vec<UnreadableBlock>) -> Self {
        let mut copy = |lba| {
            let read = GptTable::read(disk, lba);
            read.unwrap_or_else(|block| {
                unreadable.push(block);
                None
            })
        };
        Self {
            primary: copy(1),
            backup: copy(disk.sectors.saturating_sub(1)),
        }
    }

    /// Whether one of the copies has GUIDs of the image. If there is no copy, and a block that cannot be read may have one,
    /// it may have them.
    fn image_guids(&self, name: &str, unreadable: &[UnreadableBlock]) -> ImageGuids {
        let copies = [&self.primary, &self.backup];
        let mut valid = copies.into_iter().flatten().peekable();
        let is_unknown = valid.peek().is_none() && !unreadable.is_empty();
        match is_unknown || valid.any(|table| table.has_image_guids(name)) {
            true => ImageGuids::Present,
            false => ImageGuids::Absent,
        }
    }

    /// The table that the disk is to have. Writes nothing.
    fn plan(
        &self,
        disk: &GptDisk<'_>,
        name: &str,
        random: &mut impl FnMut() -> io::Result<[u8; 16]>,
    ) -> Result<TablePlan, GptError> {
        let last_lba = disk.sectors.checked_sub(1).ok_or(GptError::NoTable)?;
        let mut changes = Vec::new();
        let mut table = match (&self.primary, &self.backup) {
            (Some(table), _) => table.clone(),
            (None, Some(table)) => {
                changes.push("primary table repaired");
                table.clone()
            }
            (None, None) => return Err(GptError::NoTable),
        };
        let index = table
            .find(|index| table.has_name(index, name))
            .ok_or_else(|| GptError::NoPartition(name.to_owned()))?;
        let is_new = table.reroll(index, random)?;
        if is_new {
            changes.push("fresh GUIDs");
        }
        let grown = table.grow(disk, index, name);
        if matches!(grown, Ok(true)) {
            changes.push("grown to the disk's end");
        }
        Ok(TablePlan {
            target: table.placed(disk, 1, last_lba)?,
            twin: table.placed(disk, last_lba, 1)?,
            index,
            bytes: table.bytes(disk, index),
            is_new,
            grown: grown.map(drop),
            changes,
        })
    }
}

impl TablePlan {
    /// Overwrites an earlier vault if the GUIDs are new, and writes the copies that the disk does not have. When this
    /// returns, both are on stable storage, and each was read from there.
    fn write(
        &mut self,
        disk: &GptDisk<'_>,
        copies: &TableCopies,
        unreadable: &mut Vec<UnreadableBlock>,
    ) -> Result<Option<EarlierContent>, GptError> {
        let earlier = match self.is_new {
            true => {
                let overwritten = earlier::overwrite(disk.access, &self.bytes);
                Some(overwritten.map_err(GptError::EarlierVault)?)
            }
            false => None,
        };
        let TableCopies { primary, backup } = copies;
        let has_target = primary.as_ref() == Some(&self.target);
        let has_twin = backup.as_ref() == Some(&self.twin);
        if let Some(primary) = primary {
            // The backup is written first: a power cut in between leaves the old primary whole, and the
            // next start finishes.
            if !has_twin {
                self.twin.write_and_verify(disk)?;
            }
            // The old primary and the new backup are whole. The earlier backup goes before the new primary is written: until then
            // the primary names it, so that a start after a power cut finds it again, and the partition does not reach there yet.
            primary.erase_backup(disk, &self.twin, unreadable)?;
            if !has_target {
                self.target.write_and_verify(disk)?;
            }
        } else {
            // The backup is the only whole copy, so it stays as it is until there is another one.
            self.target.write_and_verify(disk)?;
            if !has_twin {
                self.twin.write_and_verify(disk)?;
            }
        }
        let rewritten = match (has_target, has_twin) {
            (true, true) => None,
            (true, false) => Some("backup table rewritten"),
            (false, true) => Some("primary table rewritten"),
            (false, false) => Some("both tables rewritten"),
        };
        if self.changes.is_empty() {
            self.changes.extend(rewritten);
        }
        Ok(earlier)
    }
}

impl GptTable {
    /// The copy at `lba`. `None` if it is not valid.
    fn read(disk: &GptDisk<'_>, lba: u64) -> Result<Option<Self>, UnreadableBlock> {
        // On a disk of one sector, the last sector is sector 0, which has the protective MBR.
        if lba == 0 || lba >= disk.sectors {
            return Ok(None);
        }
        let block = disk.read(lba, 1)?;
        let header = block.first_chunk::<HEADER_BYTES>();
        let Some((mut table, bytes, crc)) = header.and_then(|it| Self::parse(it, lba, disk)) else {
            return Ok(None);
        };
        table.entries = disk.read(table.entries_lba, disk.sectors_of(bytes))?;
        table.entries.truncate(bytes);
        let sane = crc32(&table.entries) == crc && table.in_bounds(disk);
        Ok(sane.then_some(table))
    }

    /// The fields of a header, the size of the array and its checksum.
    fn parse(
        header: &[u8; HEADER_BYTES],
        lba: u64,
        disk: &GptDisk<'_>,
    ) -> Option<(Self, usize, u32)> {
        // UEFI 2.10 §5.3.2: the checksum is computed with its own field zero.
        let mut unsummed = *header;
        unsummed[16..20].fill(0);
        let count = usize::try_from(u32_at(header, 80)).ok()?;
        let bytes = count.checked_mul(ENTRY_BYTES)?;
        let entries_lba = u64_at(header, 72);
        let array_sectors = (bytes as u64).div_ceil(disk.sector);
        let array_end = entries_lba.checked_add(array_sectors)?;
        let valid = header.starts_with(b"EFI PART\0\0\x01\0")
            && u32_at(header, 12) as usize == HEADER_BYTES
            && u32_at(header, 16) == crc32(&unsummed)
            && u64_at(header, 24) == lba
            && u32_at(header, 84) as usize == ENTRY_BYTES
            && (1..=ENTRIES_BYTES_MAX).contains(&bytes)
            && entries_lba >= 2
            && array_end <= disk.sectors;
        valid.then(|| {
            let table = Self {
                my_lba: lba,
                alternate_lba: u64_at(header, 32),
                first_usable: u64_at(header, 40),
                last_usable: u64_at(header, 48),
                disk_guid: guid_at(header, 56),
                entries_lba,
                entries: Vec::new(),
            };
            (table, bytes, u32_at(header, 88))
        })
    }

    /// Whether every used entry lies inside the disk and has its end behind its start.
    fn in_bounds(&self, disk: &GptDisk<'_>) -> bool {
        self.first_usable <= self.last_usable
            && self.last_usable < disk.sectors
            && self.used().all(|index| {
                let (first, last) = self.range(index);
                first >= self.first_usable && first <= last && last < disk.sectors
            })
    }

    fn used(&self) -> impl Iterator<Item = usize> {
        // UEFI 2.10 §5.3.3: an entry whose type GUID is zero is unused.
        (0..self.entries.len() / ENTRY_BYTES).filter(|index| self.entry(*index)[..16] != [0; 16])
    }

    fn entry(&self, index: usize) -> &[u8] {
        &self.entries[index * ENTRY_BYTES..][..ENTRY_BYTES]
    }

    fn range(&self, index: usize) -> (u64, u64) {
        let entry = self.entry(index);
        (u64_at(entry, 32), u64_at(entry, 40))
    }

    fn bytes(&self, disk: &GptDisk<'_>, index: usize) -> Range<u64> {
        let (first, last) = self.range(index);
        first * disk.sector..(last + 1) * disk.sector
    }

    /// The first used entry for which `is_wanted` holds.
    fn find(&self, is_wanted: impl Fn(usize) -> bool) -> Option<usize> {
        self.used().find(|index| is_wanted(*index))
    }

    fn has_name(&self, index: usize, name: &str) -> bool {
        let mut field = [0; 72];
        // The name field has 36 units of UTF-16LE, padded with zeros.
        for (slot, unit) in field.chunks_exact_mut(2).zip(name.encode_utf16()) {
            slot.copy_from_slice(&unit.to_le_bytes());
        }
        self.entry(index)[56..] == field
    }

    /// Replaces GUIDs of the image, which are derived from the build (version 5, RFC 9562) and so
    /// the same on every copy.
    fn reroll(
        &mut self,
        index: usize,
        random: &mut impl FnMut() -> io::Result<[u8; 16]>,
    ) -> io::Result<bool> {
        let at = index * ENTRY_BYTES + 16;
        let mut changed = false;
        if is_version_5(&self.disk_guid) {
            self.disk_guid = version_4(random()?);
            changed = true;
        }
        if is_version_5(&guid_at(&self.entries, at)) {
            self.entries[at..at + 16].copy_from_slice(&version_4(random()?));
            changed = true;
        }
        Ok(changed)
    }

    /// Whether the disk, or its partition `name`, has a GUID of the image.
    fn has_image_guids(&self, name: &str) -> bool {
        let partition = self.find(|index| self.has_name(index, name));
        let of_partition = partition.map(|index| guid_at(self.entry(index), 16));
        is_version_5(&self.disk_guid) || of_partition.is_some_and(|guid| is_version_5(&guid))
    }

    fn grow(&mut self, disk: &GptDisk<'_>, index: usize, name: &str) -> Result<bool, GptError> {
        let (first, last) = self.range(index);
        // Growing would overwrite a partition behind it.
        if self.used().any(|other| self.range(other).0 > last) {
            return Err(GptError::NotLast(name.to_owned()));
        }
        let reserved = self.array_sectors(disk) + 1;
        let usable = disk
            .sectors
            .checked_sub(reserved + 1)
            .ok_or(GptError::NoTable)?;
        let align = (ALIGN_BYTES / disk.sector).max(1);
        let target = ((usable + 1) / align * align).saturating_sub(1);
        // The disk was shrunk, and the file system must not be cut.
        if target <= last || target <= first {
            return Ok(false);
        }
        self.entries[index * ENTRY_BYTES + 40..][..8].copy_from_slice(&target.to_le_bytes());
        Ok(true)
    }

    fn array_sectors(&self, disk: &GptDisk<'_>) -> u64 {
        disk.sectors_of(self.entries.len()) as u64
    }

    /// This table in the form of the copy at `lba`.
    fn placed(&self, disk: &GptDisk<'_>, lba: u64, other: u64) -> Result<Self, GptError> {
        let array = self.array_sectors(disk);
        let last_lba = disk.sectors - 1;
        Ok(Self {
            my_lba: lba,
            alternate_lba: other,
            last_usable: last_lba.checked_sub(array + 1).ok_or(GptError::NoTable)?,
            entries_lba: if lba == 1 { 2 } else { lba - array },
            ..self.clone()
        })
    }

    /// Writes the array first, and then the header with its checksum. Returns when both are on
    /// stable storage.
    fn write(&self, disk: &GptDisk<'_>) -> io::Result<()> {
        disk.write(self.entries_lba, self.entries.clone())?;
        disk.write(self.my_lba, self.header(disk))?;
        disk.access.sync()
    }

    /// Writes this copy, and reads it again. When this returns, it is on stable storage, and a reader finds it.
    fn write_and_verify(&self, disk: &GptDisk<'_>) -> Result<(), GptError> {
        self.write(disk)?;
        match Self::read(disk, self.my_lba) {
            Ok(Some(found)) if found == *self => Ok(()),
            Ok(_) => Err(GptError::NotKept(self.my_lba)),
            Err(block) => Err(GptError::NotReadBack(block)),
        }
    }

    /// Overwrites the header of the backup that this primary names with zeros, unless the new backup `twin` is there. When
    /// this returns, the zeros are on stable storage.
    ///
    /// The entries stay: without a header they are no table, and if an image was written without its zeros, their blocks may
    /// have data of an earlier node.
    fn erase_backup(
        &self,
        disk: &GptDisk<'_>,
        twin: &Self,
        unreadable: &mut Vec<UnreadableBlock>,
    ) -> io::Result<()> {
        let lba = self.alternate_lba;
        // What is called a backup within a partition is that partition's content, whatever the header says. On a disk that
        // became shorter, the earlier backup is not there any more.
        let is_behind_partitions = self.used().all(|index| self.range(index).1 < lba);
        if !is_behind_partitions || lba >= twin.entries_lba {
            return Ok(());
        }
        match disk.read(lba, 1) {
            Ok(block) if block.starts_with(HEADER_MARK) => {
                disk.write(lba, vec![0; block.len()])?;
                disk.access.sync()
            }
            Ok(_) => Ok(()),
            // What the disk does not give, no program takes for a table.
            Err(block) => {
                unreadable.push(block);
                Ok(())
            }
        }
    }

    fn header(&self, disk: &GptDisk<'_>) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(b"EFI PART\0\0\x01\0");
        out.extend_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        for value in [
            self.my_lba,
            self.alternate_lba,
            self.first_usable,
            self.last_usable,
        ] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&self.disk_guid);
        out.extend_from_slice(&self.entries_lba.to_le_bytes());
        let count = (self.entries.len() / ENTRY_BYTES) as u32;
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&(ENTRY_BYTES as u32).to_le_bytes());
        out.extend_from_slice(&crc32(&self.entries).to_le_bytes());
        let sum = crc32(&out);
        out[16..20].copy_from_slice(&sum.to_le_bytes());
        // The header fills its sector, and the rest of it is reserved and zero (UEFI 2.10 §5.3.2).
        out.resize(disk.sector_bytes(), 0);
        out
    }
}

/// Makes the protective MBR's one record cover the whole disk, or as much as 32 bits can express.
fn protect(disk: &GptDisk<'_>, unreadable: &mut Vec<UnreadableBlock>) -> io::Result<()> {
    let mut mbr = match disk.read(0, 1) {
        Ok(block) => block,
        // It stays as it is: the kernel reads the same block, and finds no partition without it.
        Err(block) => {
            unreadable.push(block);
            return Ok(());
        }
    };
    let count = u32::try_from(disk.sectors - 1)
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    // An MBR that is not protective belongs to another system and stays as it is.
    let protective = mbr[510..512] == [0x55, 0xaa] && mbr[446 + 4] == 0xee;
    if protective && mbr[PMBR_COUNT..PMBR_COUNT + 4] != count {
        mbr[PMBR_COUNT..PMBR_COUNT + 4].copy_from_slice(&count);
        disk.write(0, mbr)?;
        disk.access.sync()?;
    }
    Ok(())
}

/// Whether a GUID has version 5. The first three fields are little endian, so the version is the
/// high half of byte 7.
const fn is_version_5(guid: &[u8; 16]) -> bool {
    guid[7] >> 4 == 5
}

const fn version_4(mut guid: [u8; 16]) -> [u8; 16] {
    guid[7] = guid[7] & 0x0f | 0x40;
    guid[8] = guid[8] & 0x3f | 0x80;
    guid
}

fn guid_at(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut value = [0; 16];
    value.copy_from_slice(&bytes[at..at + 16]);
    value
}

/// CRC-32 (ISO 3309), bit by bit: 16 KiB at boot need no table.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum))
    })
}

#[cfg(test)]
pub(super) mod tests;
