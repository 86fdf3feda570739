//! The disk, as the partition table sees it: its reads and writes, and the blocks that it does not give.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::Path;

use alknet_fat::BlockDevice;

use crate::update::DirectDevice;

/// Reads and writes of a disk. Positions are bytes; they and the lengths are multiples of the disk's sector.
pub(crate) trait DiskAccess: fmt::Debug {
    /// Fills `bytes` with what the disk has from position `at` on.
    ///
    /// # Errors
    /// One of these sectors cannot be read, or is not on the disk.
    fn read_sectors(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes `bytes` at position `at`. Until [`sync`](Self::sync) returns, the sectors may reach the disk in any order.
    ///
    /// # Errors
    /// The disk refused some of them, and may have others.
    fn write_sectors(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Returns when everything written before is on stable storage.
    ///
    /// # Errors
    /// The disk failed, and what was written before may be lost.
    fn sync(&self) -> io::Result<()>;
}

/// A disk past the cache of the kernel. The cache returns what the disk refused to write, so a second attempt of one start
/// would take the table for written. It also reads whole pages: one sector that cannot be read would take the seven beside
/// it with it, and would refuse a write to them.
#[derive(Debug)]
pub(crate) struct DirectDisk(RefCell<DirectDevice>);

impl DirectDisk {
    /// Opens a disk for reading and writing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        // Another part of PID 1 may have a partition of it open.
        let device = DirectDevice::open(path, false)?;
        Ok(Self(RefCell::new(device)))
    }

    /// Opens a disk for reading alone: the kernel refuses each write.
    pub(crate) fn open_read_only(path: &Path) -> io::Result<Self> {
        let device = DirectDevice::open_read_only(path)?;
        Ok(Self(RefCell::new(device)))
    }
}

impl DiskAccess for DirectDisk {
    fn read_sectors(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.0.borrow().read_at(bytes, at)
    }

    fn write_sectors(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.borrow_mut().write_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

/// A disk, as the table sees it.
#[derive(Debug)]
pub(crate) struct GptDisk<'a> {
    pub(crate) access: &'a dyn DiskAccess,
    /// Bytes of a logical sector.
    pub(crate) sector: u64,
    /// Number of logical sectors.
    pub(crate) sectors: u64,
}

/// A block that the disk does not give.
#[derive(Debug, thiserror::Error)]
#[error("block {lba} cannot be read: {source}")]
pub(crate) struct UnreadableBlock {
    /// Its number, in logical sectors.
    pub(crate) lba: u64,
    source: io::Error,
}

impl GptDisk<'_> {
    /// Bytes of a logical sector.
    pub(super) fn sector_bytes(&self) -> usize {
        usize::try_from(self.sector).unwrap_or(512)
    }

    /// The number of logical sectors that so many bytes need.
    pub(super) fn sectors_of(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.sector_bytes())
    }

    /// Reads `count` blocks from the block `lba` on. The error has the first one that cannot be read.
    pub(super) fn read(&self, lba: u64, count: usize) -> Result<Vec<u8>, UnreadableBlock> {
        let sector = self.sector_bytes();
        let mut blocks = vec![0; count * sector];
        let all = self.access.read_sectors(&mut blocks, lba * self.sector);
        if all.is_ok() {
            return Ok(blocks);
        }
        // The error of all does not say which block it was. If each is read now, the first attempt met a passing fault.
        for (lba, block) in (lba..).zip(blocks.chunks_exact_mut(sector)) {
            let read = self.access.read_sectors(block, lba * self.sector);
            read.map_err(|source| UnreadableBlock { lba, source })?;
        }
        Ok(blocks)
    }

    /// Writes whole blocks from the block `lba` on, padded with zeros.
    pub(super) fn write(&self, lba: u64, mut content: Vec<u8>) -> io::Result<()> {
        content.resize(self.sectors_of(content.len()) * self.sector_bytes(), 0);
        self.access.write_sectors(&content, lba * self.sector)
    }
}
