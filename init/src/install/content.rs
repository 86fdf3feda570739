//! What a disk has before the image is written to it.

use std::{
    fs::File,
    io::{self, ErrorKind},
    ops::Range,
    os::unix::fs::FileExt,
};

use alknet_image::{EspVolume, ManifestDisk, head_has_layout};
use alknet_image_write::is_configuration;

use super::MARK;
use crate::data::LABEL;
use crate::little_endian::{u32_at, u64_at};

/// Bytes at the beginning and at the end of a disk that have partition tables and the marks of file systems. An
/// installation empties both first, and writes the beginning last.
pub(super) const HEAD_BYTES: usize = 1 << 20;
/// Bytes that a disk writes whole or not at all.
const BLOCK_BYTES: usize = 512;
/// Sizes of the blocks in which a partition table counts, in bytes.
const TABLE_BLOCKS: [u64; 2] = [512, 4096];

/// How the header of a partition table begins (UEFI 2.10, section 5.3.2), and its length in bytes.
const TABLE_MAGIC: &[u8] = b"EFI PART";
const TABLE_HEADER_BYTES: usize = 92;
/// Bytes of the fields of an entry, and the place of the name among them (section 5.3.3).
const ENTRY_BYTES: usize = 128;
const ENTRY_NAME_AT: usize = 56;
/// Entries of a table that are read. UEFI asks for room for 128.
const ENTRIES_MAX: u64 = 1024;

/// What a disk is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskUse {
    /// It has nothing, or an installation that was interrupted.
    Blank,
    /// It says that the same order installed it. See [`installed`].
    Installed,
    /// It says so, has other programs, and has data: the node may have been updated.
    Changed,
    /// It has the data of a node.
    Node,
    /// It has partitions or something else.
    Used,
}

/// Looks at a disk of `bytes`, which has at least [`HEAD_BYTES`] twice. `head` is the beginning of the image, and
/// each of `marks` names the order.
///
/// # Errors
/// The disk cannot be read. On a disk in this project's layout it is also an error if the mark cannot be read: it may
/// name the order.
pub(super) fn judge(disk: &File, bytes: u64, head: &[u8], marks: &[String]) -> io::Result<DiskUse> {
    let mut first = vec![0; HEAD_BYTES];
    disk.read_exact_at(&mut first, 0)?;
    let mut last = vec![0; HEAD_BYTES];
    disk.read_exact_at(&mut last, bytes.saturating_sub(HEAD_BYTES as u64))?;
    if is_zero(&last) && (is_zero(&first) || is_interrupted(&first, head)) {
        return Ok(DiskUse::Blank);
    }
    let data = data_partitions(disk, bytes)?;
    // The mark is written before the beginning of the disk is. Without the first block the image is not whole: the disk
    // did not keep what was written last.
    let has_table = !is_zero(&first[..BLOCK_BYTES]);
    if has_table {
        match mark_of(disk) {
            Ok(Some(found)) if marks.iter().any(|mark| found == mark.as_bytes()) => {
                return Ok(DiskUse::Installed);
            }
            // Another system may have anything in the place of the volume.
            Err(error) if head_has_layout(&first) || !data.is_empty() => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    match holds_data(disk, bytes, &data)? {
        true => Ok(DiskUse::Node),
        false => Ok(DiskUse::Used),
    }
}

/// Judges a disk that says that the same order installed it. A person who knows the table of the order can write that to
/// any disk, and the machine would be started from the programs of that person. `expected` has the parts of the disk that
/// an installation makes.
///
/// A disk without data was never started, so no update has changed its programs: it may be overwritten like any other
/// disk. One with data may have been updated, and is never overwritten by the same order.
///
/// # Errors
/// The disk cannot be read.
pub(super) fn installed(disk: &File, bytes: u64, expected: &ManifestDisk) -> io::Result<DiskUse> {
    if has_parts(disk, expected)? {
        return Ok(DiskUse::Installed);
    }
    let data = data_partitions(disk, bytes)?;
    match holds_data(disk, bytes, &data)? {
        true => Ok(DiskUse::Changed),
        false => Ok(DiskUse::Used),
    }
}

/// Whether a disk has these parts, and no other file that firmware or the loader may start.
fn has_parts(disk: &File, expected: &ManifestDisk) -> io::Result<bool> {
    let found = match ManifestDisk::read(disk) {
        Ok(found) => found,
        // Firmware may read the volume otherwise than this machine.
        Err(error) if [ErrorKind::InvalidData, ErrorKind::InvalidInput].contains(&error.kind()) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    let mut expected_files = expected.files.iter();
    let has_all = expected_files.all(|file| found.files.contains(file));
    let mut files = found.files.iter();
    let has_no_other =
        files.all(|file| expected.files.contains(file) || is_configuration(&file.path));
    Ok(found.regions == expected.regions && has_all && has_no_other)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Whether the power failed while the beginning of the image was written. Its first block, without which the rest is no
/// partition table, is written last.
fn is_interrupted(first: &[u8], head: &[u8]) -> bool {
    let mut blocks = first.chunks(BLOCK_BYTES).zip(head.chunks(BLOCK_BYTES));
    let table = blocks.next();
    table.is_some_and(|(block, _)| is_zero(block))
        && blocks.all(|(block, own)| is_zero(block) || block == own)
}

/// The mark of an installed disk. `None` if the volume has none.
fn mark_of(disk: &File) -> io::Result<Option<Vec<u8>>> {
    let volume = EspVolume::open(disk)?;
    let files = volume.files()?;
    // Every image has its programs there, so the root was lost, and the mark with it.
    if files.is_empty() {
        let what = "the EFI system partition has no files";
        return Err(io::Error::new(ErrorKind::InvalidData, what));
    }
    let Some(file) = files.iter().find(|file| file.path == MARK) else {
        return Ok(None);
    };
    // The volume ends the copy at the size that its entry says, and a mark is short.
    if file.bytes >= BLOCK_BYTES as u64 {
        let what = format!("the file {MARK} has {} bytes", file.bytes);
        return Err(io::Error::new(ErrorKind::InvalidData, what));
    }
    let mut mark = Vec::new();
    volume.copy(file, &mut mark)?;
    Ok(Some(mark))
}

/// The bytes of each partition for the data of a node, by either copy of the partition table. The checksums do not
/// matter: a table that is damaged must not hide a node.
fn data_partitions(disk: &File, bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    for block in TABLE_BLOCKS {
        for header_at in [block, bytes.saturating_sub(block)] {
            found.extend(labelled(disk, header_at, block)?);
        }
    }
    Ok(found)
}

/// The partitions with the label, by the table whose header is at this byte.
fn labelled(disk: &File, header_at: u64, block: u64) -> io::Result<Vec<Range<u64>>> {
    let Some(header) = piece(disk, header_at, TABLE_HEADER_BYTES)? else {
        return Ok(Vec::new());
    };
    if !header.starts_with(TABLE_MAGIC) {
        return Ok(Vec::new());
    }
    let entries_at = u64_at(&header, 72).saturating_mul(block);
    let (count, step) = (
        u64::from(u32_at(&header, 80)),
        u64::from(u32_at(&header, 84)),
    );
    let mut found = Vec::new();
    for number in 0..count.min(ENTRIES_MAX) {
        let at = entries_at.saturating_add(number.saturating_mul(step));
        let Some(entry) = piece(disk, at, ENTRY_BYTES)? else {
            break;
        };
        if entry[ENTRY_NAME_AT..] == name_field() {
            let end = u64_at(&entry, 40).saturating_add(1).saturating_mul(block);
            found.push(u64_at(&entry, 32).saturating_mul(block)..end);
        }
    }
    Ok(found)
}

/// Whether one of these partitions is not blank. Of each the beginning and the end are read, as of a disk.
fn holds_data(disk: &File, bytes: u64, data: &[Range<u64>]) -> io::Result<bool> {
    for range in data {
        let end = range.end.min(bytes);
        let length = end.saturating_sub(range.start).min(HEAD_BYTES as u64);
        // The table says that the rest is behind the end of the disk. What it was for is unknown.
        if length == 0 {
            return Ok(true);
        }
        for at in [range.start, end - length] {
            let mut piece = vec![0; length as usize];
            disk.read_exact_at(&mut piece, at)?;
            if !is_zero(&piece) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Bytes of the disk. `None` behind its end.
fn piece(disk: &File, at: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; length];
    // pread(2) takes a signed position.
    if i64::try_from(at).is_err() {
        return Ok(None);
    }
    match disk.read_exact_at(&mut bytes, at) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The label as an entry has it: UTF-16, padded with zeros.
fn name_field() -> [u8; ENTRY_BYTES - ENTRY_NAME_AT] {
    let mut field = [0; ENTRY_BYTES - ENTRY_NAME_AT];
    for (place, unit) in field.chunks_exact_mut(2).zip(LABEL.encode_utf16()) {
        place.copy_from_slice(&unit.to_le_bytes());
    }
    field
}
