//! Writes an image, reads it back, and makes the disk bootable at the very end.
//!
//! The first MiB, in which the partition table lies, is wiped first and written last. A disk whose writing was
//! interrupted has no partition table, so no firmware starts anything from it.
//!
//! The image ends before the place where the first boot looks for a vault. What the disk had there earlier would be this
//! machine's vault, so it is overwritten as well.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use alknet_image::{DATA_HEAD_END, DISK_END_BYTES, EspVolume};
use nix::fcntl::{FallocateFlags, fallocate};
use zeroize::Zeroizing;

use crate::content::{BLOCK_BYTES, BlockQueue, WrittenContent, has_only_zeros, start_hashing};
use crate::error::FlashError;
use crate::read_back::{DirectReader, forget, is_zero};
use crate::source::{HEAD_BYTES, ImageSource};
use crate::sys;
use crate::target::DiskTarget;

/// Runs of zeros are found in units of so many bytes.
const ZERO_UNIT: usize = 64 << 10;
/// After so many bytes the disk is waited for. Otherwise they would fill the memory, and the progress would show what
/// memory takes and not what the disk takes.
const SYNC_BYTES: u64 = 32 << 20;
/// Bytes of the block without which the rest of a head is no partition table.
const FIRST_BLOCK_BYTES: usize = 512;

/// How a disk is written.
#[derive(Clone, Debug, Default)]
pub struct FlashOptions<'a> {
    /// The SHA-256 that the unpacked image must have, in lower-case hexadecimal.
    pub sha256: Option<String>,
    /// Files for the EFI system partition.
    pub files: &'a [PlacedFile],
}

/// A file that is placed on the EFI system partition.
#[derive(Clone, Debug)]
pub struct PlacedFile {
    /// The path from the root, with `/` between the names.
    pub path: String,
    /// The content, which may have secrets.
    pub content: Zeroizing<Vec<u8>>,
}

/// How far the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlashStep {
    /// So many bytes of the image are on the disk.
    Writing {
        /// Bytes so far.
        bytes: u64,
        /// Bytes of the image, if they are known.
        total: Option<u64>,
    },
    /// So many bytes were read back.
    Reading {
        /// Bytes so far.
        bytes: u64,
        /// Bytes of the image.
        total: u64,
    },
    /// The files are on the disk, and are about to be read back.
    Placed,
    /// The partition table is being written. From here on the disk should not be interrupted.
    Finishing,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlashReport {
    /// Bytes of the image.
    pub bytes: u64,
    /// Bytes of zeros that the disk made itself, or that a file leaves out.
    pub skipped: u64,
    /// SHA-256 of the image in lower-case hexadecimal, before files were placed.
    pub sha256: String,
    /// Whether the kernel knows the new partitions. If not, the disk has to be connected again.
    pub partitions_known: bool,
}

/// Writes the image in `source` to `target`, and compares what the disk has with what was read.
///
/// # Errors
/// The image does not fit, the source or the disk fails, or the disk returns other bytes. The disk has no partition
/// table then, unless it also fails to lose one that it did not keep.
pub fn flash(
    source: &mut ImageSource,
    target: &DiskTarget,
    options: &FlashOptions<'_>,
    tell: &mut dyn FnMut(FlashStep),
) -> Result<FlashReport, FlashError> {
    target.check_fits(source)?;
    if !options.files.is_empty() {
        source.check_takes_files()?;
    }
    // A file that is known to be cut off need not cost the disk its content.
    source.check_announced()?;
    wipe(target).map_err(target.failed("cannot be wiped"))?;
    let mut writer = ImageWriter::new(target);
    let content = writer.copy(source, tell)?;
    let total = writer.at;
    let behind = behind(source, target, total);
    let failed = || target.failed("cannot be written");
    writer.clear(behind.clone()).map_err(failed())?;
    source.check_length(total)?;
    let expected = options.sha256.as_ref();
    if let Some(expected) = expected.filter(|it| **it != content.sha256) {
        return Err(FlashError::OtherContent {
            actual: content.sha256,
            expected: expected.clone(),
        });
    }
    compare(&content, target, total, tell)?;
    let zeros = is_zero(target.handle(), behind);
    if !zeros.map_err(target.failed("cannot be read back"))? {
        return Err(other_bytes(target, "the place of the vault"));
    }
    write_files(target, options.files, tell)?;
    tell(FlashStep::Finishing);
    finish(source.head(), target, &read_head)?;
    let known = !target.is_device() || sys::read_partition_table(target.handle()).is_ok();
    Ok(FlashReport {
        bytes: total,
        skipped: writer.skipped,
        sha256: content.sha256,
        partitions_known: known,
    })
}

impl DiskTarget {
    /// Checks that the image fits, as far as its size is known. [`flash`] checks it, too, before it writes.
    ///
    /// # Errors
    /// The disk is too small.
    pub fn check_fits(&self, source: &ImageSource) -> Result<(), FlashError> {
        check_size(self, source.bytes().unwrap_or(0).max(HEAD_BYTES as u64))
    }
}

fn check_size(target: &DiskTarget, needed: u64) -> Result<(), FlashError> {
    let present = target.facts().bytes;
    match target.is_device() && needed > present {
        true => Err(FlashError::TooSmall {
            disk: target.facts().name.clone(),
            needed,
            present,
        }),
        false => Ok(()),
    }
}

/// Removes the partition table and each backup at the end, by which firmware would start what the disk had before. The backup
/// lies elsewhere if the disk was written by another adapter.
fn wipe(target: &DiskTarget) -> io::Result<()> {
    let disk = target.handle();
    if !target.is_device() {
        // A file begins empty, so whatever is not written reads as zeros.
        disk.set_len(0)?;
        return disk.set_len(HEAD_BYTES as u64);
    }
    let bytes = target.facts().bytes;
    let end = bytes.saturating_sub(DISK_END_BYTES);
    disk.write_all_at(&vec![0; HEAD_BYTES], 0)?;
    disk.write_all_at(&vec![0; (bytes - end) as usize], end)?;
    disk.sync_all()
}

/// The bytes between the end of the image and that of the vault's place. Empty for an image without such a place, and
/// in a file, which ends with the image.
fn behind(source: &ImageSource, target: &DiskTarget, total: u64) -> Range<u64> {
    let end = match target.is_device() && source.check_takes_files().is_ok() {
        true => DATA_HEAD_END.min(target.facts().bytes),
        false => total,
    };
    total..end.max(total)
}

/// Writes everything behind the head.
struct ImageWriter<'t> {
    target: &'t DiskTarget,
    at: u64,
    /// Zeros that were read and not written yet.
    zeros: Range<u64>,
    skipped: u64,
    unsynced: u64,
    /// Whether the disk makes zeros itself.
    makes_zeros: bool,
}

impl<'t> ImageWriter<'t> {
    const fn new(target: &'t DiskTarget) -> Self {
        Self {
            target,
            at: HEAD_BYTES as u64,
            zeros: 0..0,
            skipped: 0,
            unsynced: 0,
            makes_zeros: true,
        }
    }

    /// Copies the source to its end, and returns what was written. A thread hashes each block while the disk takes it.
    fn copy(
        &mut self,
        source: &mut ImageSource,
        tell: &mut dyn FnMut(FlashStep),
    ) -> Result<WrittenContent, FlashError> {
        std::thread::scope(|scope| {
            let started = start_hashing(scope, source.head());
            let (queue, thread) = started.map_err(|source| FlashError::Thread { source })?;
            let copied = self.copy_blocks(source, queue, tell);
            let content = match thread.join() {
                Ok(content) => content,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            copied.map(|()| content)
        })
    }

    fn copy_blocks(
        &mut self,
        source: &mut ImageSource,
        mut queue: BlockQueue,
        tell: &mut dyn FnMut(FlashStep),
    ) -> Result<(), FlashError> {
        loop {
            let block = queue.fill(|block| source.fill(block))?;
            if block.is_empty() {
                break;
            }
            check_size(self.target, self.at + block.len() as u64)?;
            let failed = self.target.failed("cannot be written");
            self.write(&block).map_err(failed)?;
            tell(FlashStep::Writing {
                bytes: self.at,
                total: source.bytes(),
            });
        }
        let failed = self.target.failed("cannot be written");
        self.end().map_err(failed)
    }

    fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        for unit in chunk.chunks(ZERO_UNIT) {
            let next = self.at + unit.len() as u64;
            if has_only_zeros(unit) {
                if self.zeros.is_empty() {
                    self.zeros = self.at..self.at;
                }
                self.zeros.end = next;
            } else {
                self.write_zeros()?;
                self.target.handle().write_all_at(unit, self.at)?;
                self.unsynced += unit.len() as u64;
            }
            self.at = next;
        }
        match self.unsynced >= SYNC_BYTES {
            true => self.sync(),
            false => Ok(()),
        }
    }

    /// Makes the zeros that were put off. What a disk has there is not known, also after a discard, so they are skipped
    /// only where the kernel promises that the range reads as zeros.
    fn write_zeros(&mut self) -> io::Result<()> {
        let range = std::mem::take(&mut self.zeros);
        let bytes = range.end - range.start;
        if bytes == 0 {
            return Ok(());
        }
        if !self.target.is_device() {
            self.skipped += bytes;
            return Ok(());
        }
        if self.makes_zeros {
            // On a block device the kernel makes zeros by this or refuses; it never leaves the old bytes (Linux 4.9,
            // blkdev_issue_zeroout with BLKDEV_ZERO_NOFALLBACK).
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let (start, length) = (range.start.cast_signed(), bytes.cast_signed());
            match fallocate(self.target.handle(), flags, start, length) {
                Ok(()) => {
                    self.skipped += bytes;
                    return Ok(());
                }
                // An older kernel, a disk without the command, or a range that its blocks do not fit.
                Err(_) => self.makes_zeros = false,
            }
        }
        let zeros = vec![0; ZERO_UNIT];
        let mut at = range.start;
        while at < range.end {
            let length = (range.end - at).min(ZERO_UNIT as u64);
            self.target
                .handle()
                .write_all_at(&zeros[..length as usize], at)?;
            at += length;
            self.unsynced += length;
            if self.unsynced >= SYNC_BYTES {
                self.sync()?;
            }
        }
        Ok(())
    }

    /// Makes zeros behind the image, which are not counted as its own.
    fn clear(&mut self, range: Range<u64>) -> io::Result<()> {
        let skipped = self.skipped;
        let end = range.end;
        self.zeros = range;
        self.write_zeros()?;
        self.skipped = skipped;
        self.target.handle().sync_all()?;
        forget(self.target.handle(), 0, end);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        self.target.handle().sync_data()?;
        forget(self.target.handle(), 0, self.at);
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.write_zeros()?;
        if !self.target.is_device() {
            // Zeros at the end are left out, but they belong to the disk.
            self.target.handle().set_len(self.at)?;
        }
        self.target.handle().sync_all()?;
        forget(self.target.handle(), 0, self.at);
        Ok(())
    }
}

/// Compares the disk behind the head with what was written.
fn compare(
    content: &WrittenContent,
    target: &DiskTarget,
    total: u64,
    tell: &mut dyn FnMut(FlashStep),
) -> Result<(), FlashError> {
    let failed = || target.failed("cannot be read back");
    let mut reader = DirectReader::new(target.handle()).map_err(failed())?;
    let starts = (HEAD_BYTES as u64..total).step_by(BLOCK_BYTES);
    for (index, at) in starts.enumerate() {
        let wanted = (total - at).min(BLOCK_BYTES as u64) as usize;
        let block = reader.read(at, wanted).map_err(failed())?;
        if !content.has(index, block) {
            return Err(other_bytes(target, "the image"));
        }
        tell(FlashStep::Reading {
            bytes: at + wanted as u64,
            total,
        });
    }
    Ok(())
}

/// Places files on the EFI system partition, and reads them back.
fn write_files(
    target: &DiskTarget,
    files: &[PlacedFile],
    tell: &mut dyn FnMut(FlashStep),
) -> Result<(), FlashError> {
    if files.is_empty() {
        return Ok(());
    }
    let failed = |source| FlashError::Seed {
        disk: target.facts().name.clone(),
        source,
    };
    let disk = target.handle();
    let mut volume = EspVolume::open(disk).map_err(failed)?;
    for file in files {
        volume.add(&file.path, &file.content).map_err(failed)?;
    }
    disk.sync_all().map_err(failed)?;
    tell(FlashStep::Placed);
    // No length: to the end of the disk (posix_fadvise(2)).
    forget(disk, 0, 0);
    let volume = EspVolume::open(disk).map_err(failed)?;
    let found = volume.files().map_err(failed)?;
    for file in files {
        let there = found.iter().find(|it| it.path == file.path);
        let mut content = Zeroizing::new(Vec::with_capacity(file.content.len()));
        if let Some(there) = there {
            volume.copy(there, &mut *content).map_err(failed)?;
        }
        if there.is_none() || *content != *file.content {
            return Err(other_bytes(target, "the configuration"));
        }
    }
    Ok(())
}

/// Writes the head, and reads it back by `read`. A disk that does not keep it gets no partition table: an installer, or a
/// person, would take the disk for one that was written whole.
fn finish(head: &[u8], target: &DiskTarget, read: &HeadRead<'_>) -> Result<(), FlashError> {
    let written = write_head(head, target, read);
    if written.is_err() {
        let disk = target.handle();
        let zeros = vec![0; head.len()];
        let wiped = disk.write_all_at(&zeros, 0).and_then(|()| disk.sync_all());
        // The error of before says already that the disk is bad.
        wiped.ok();
    }
    written
}

/// Reads so many bytes from the beginning of a disk, and not what the kernel remembers of them.
type HeadRead<'a> = dyn Fn(&File, usize) -> io::Result<Vec<u8>> + 'a;

fn read_head(disk: &File, bytes: usize) -> io::Result<Vec<u8>> {
    forget(disk, 0, bytes as u64);
    let mut reader = DirectReader::new(disk)?;
    reader.read(0, bytes).map(<[u8]>::to_vec)
}

/// Writes the first block last, without which the rest is no partition table, and once the disk has kept the rest.
fn write_head(head: &[u8], target: &DiskTarget, read: &HeadRead<'_>) -> Result<(), FlashError> {
    let failed = || target.failed("cannot be written");
    let disk = target.handle();
    let (first, rest) = head.split_at(FIRST_BLOCK_BYTES);
    for (content, at, checked_from) in [(rest, first.len(), first.len()), (first, 0, 0)] {
        let written = disk.write_all_at(content, at as u64);
        written.and_then(|()| disk.sync_all()).map_err(failed())?;
        let kept = read(disk, head.len()).map_err(failed())?;
        if kept[checked_from..] != head[checked_from..] {
            return Err(other_bytes(target, "the partition table"));
        }
    }
    Ok(())
}

fn other_bytes(target: &DiskTarget, what: &'static str) -> FlashError {
    FlashError::ReadBack {
        disk: target.facts().name.clone(),
        what,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A disk that returns other bytes when its head is read back: of the rest, before the first block is written, or of
    /// the first block.
    #[test]
    fn a_disk_that_does_not_keep_its_head_has_no_partition_table() {
        let head: Vec<u8> = (0..HEAD_BYTES).map(|at| (at % 251) as u8 + 1).collect();
        for (bad_read, bad_byte, first_block) in
            [(1, 600, false), (1, 900_000, false), (2, 446, true)]
        {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = folder.path().join("disk");
            let target = DiskTarget::file(&path).expect("a file");
            wipe(&target).expect("writable");
            let reads = Cell::new(0);
            let had_table = Cell::new(false);
            let read = |disk: &File, bytes: usize| {
                reads.set(reads.get() + 1);
                let mut kept = read_head(disk, bytes)?;
                had_table.set(kept[..FIRST_BLOCK_BYTES] == head[..FIRST_BLOCK_BYTES]);
                kept[bad_byte] ^= u8::from(reads.get() == bad_read);
                Ok(kept)
            };
            let error = finish(&head, &target, &read).expect_err("it is bad");
            let is_table = matches!(
                error,
                FlashError::ReadBack {
                    what: "the partition table",
                    ..
                }
            );
            assert!(is_table, "{error}");
            assert_eq!(had_table.get(), first_block, "{bad_byte}");
            assert_eq!(reads.get(), bad_read);
            let left = std::fs::read(&path).expect("readable");
            assert!(left.iter().all(|byte| *byte == 0), "{bad_byte}");
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = DiskTarget::file(&folder.path().join("disk")).expect("a file");
        finish(&head, &target, &read_head).expect("a good disk");
        assert!(read_head(target.handle(), HEAD_BYTES).expect("readable") == head);
    }
}
