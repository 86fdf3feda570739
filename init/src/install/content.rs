//! What a disk has before the image is written to it.

use std::{fs::File, io, os::unix::fs::FileExt};

use alknet_image::EspVolume;

use super::MARK;

/// Bytes at the beginning and at the end of a disk that have partition tables and the marks of file systems. An
/// installation empties both first, and writes the beginning last.
pub(super) const HEAD_BYTES: usize = 1 << 20;
/// Bytes that a disk writes whole or not at all.
const BLOCK_BYTES: usize = 512;

/// What a disk is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskUse {
    /// It has nothing, or an installation that was interrupted.
    Blank,
    /// It has what the same order installed.
    Installed,
    /// It has partitions or something else.
    Used,
}

/// Looks at a disk of `bytes`, which has at least [`HEAD_BYTES`] twice. `head` is the beginning of the image, and
/// `mark` names the order.
pub(super) fn judge(disk: &File, bytes: u64, head: &[u8], mark: &str) -> io::Result<DiskUse> {
    let mut first = vec![0; HEAD_BYTES];
    disk.read_exact_at(&mut first, 0)?;
    let mut last = vec![0; HEAD_BYTES];
    disk.read_exact_at(&mut last, bytes.saturating_sub(HEAD_BYTES as u64))?;
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if is_zero(&last) && (is_zero(&first) || is_interrupted(&first, head)) {
        return Ok(DiskUse::Blank);
    }
    // The mark is written before the beginning of the disk is. Without the first block the image is not whole: the disk
    // did not keep what was written last.
    let has_table = !is_zero(&first[..BLOCK_BYTES]);
    match mark_of(disk).filter(|_| has_table) {
        Some(found) if found == mark.as_bytes() => Ok(DiskUse::Installed),
        _ => Ok(DiskUse::Used),
    }
}

/// Whether the power failed while the beginning of the image was written. Its first block, without which the rest is no
/// partition table, is written last.
fn is_interrupted(first: &[u8], head: &[u8]) -> bool {
    let mut blocks = first.chunks(BLOCK_BYTES).zip(head.chunks(BLOCK_BYTES));
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let table = blocks.next();
    table.is_some_and(|(block, _)| is_zero(block))
        && blocks.all(|(block, own)| is_zero(block) || block == own)
}

/// The mark of an installed disk. `None` on every other disk, whatever it has in the place of the partition.
fn mark_of(disk: &File) -> Option<Vec<u8>> {
    let volume = EspVolume::open(disk).ok()?;
    let files = volume.files().ok()?;
    let file = files.iter().find(|file| file.path == MARK)?;
    let mut mark = Vec::new();
    // The volume ends the copy at the size that its entry says, and a mark is short.
    (file.bytes < BLOCK_BYTES as u64)
        .then(|| volume.copy(file, &mut mark).ok())
        .flatten()?;
    Some(mark)
}
