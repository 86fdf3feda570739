//! The record on the disk, in blocks of the disk's own size.

use core::fmt;

use alknet_boot_state::{
    BootRecord, BootRecordError, RECORD_BYTES, RECORD_OFFSET, VARIABLES_BYTES_MAX,
};

/// Largest block of a disk, in bytes. Disks have blocks of 512 or 4,096 bytes.
pub const BLOCK_BYTES_MAX: usize = 4096;

/// A disk from its first block on.
pub trait RecordDisk {
    /// What the disk's driver reports.
    type Error: fmt::Display;

    /// Bytes of a block.
    fn block_bytes(&self) -> u32;

    /// Reads whole blocks from block `first` on. The buffer is aligned to its page.
    ///
    /// # Errors
    /// The disk cannot be read.
    fn read(&mut self, first: u64, blocks: &mut [u8]) -> Result<(), Self::Error>;

    /// Writes whole blocks from block `first` on.
    ///
    /// # Errors
    /// The disk cannot be written.
    fn write(&mut self, first: u64, blocks: &[u8]) -> Result<(), Self::Error>;

    /// Makes the disk keep what was written.
    ///
    /// # Errors
    /// The disk cannot do that.
    fn flush(&mut self) -> Result<(), Self::Error>;
}

/// Why the record could not be read or written.
#[derive(Debug)]
#[non_exhaustive]
pub enum RecordIoError<E> {
    /// The disk has blocks of so many bytes, for which the loader was not made.
    Blocks(u32),
    /// The disk has other bytes than those that were written.
    Changed,
    /// The disk's driver reports an error.
    Disk(E),
    /// The bytes in the record's place are not a record.
    Record(BootRecordError),
}

impl<E: fmt::Display> fmt::Display for RecordIoError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks(bytes) => write!(f, "the disk has blocks of {bytes} bytes"),
            Self::Changed => f.write_str("the disk did not keep what was written"),
            Self::Disk(error) => write!(f, "the disk reports: {error}"),
            Self::Record(error) => write!(f, "{error}"),
        }
    }
}

/// The blocks of a disk that have the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordBlocks {
    /// The first of them.
    pub first: u64,
    /// Bytes of all of them.
    pub bytes: usize,
    /// Where the record begins in them.
    pub offset: usize,
    /// Bytes to write for a change: the blocks with the variables.
    pub changed_bytes: usize,
}

impl RecordBlocks {
    /// `None` if the loader was not made for blocks of `block` bytes.
    #[must_use]
    pub fn for_block_bytes(block: u32) -> Option<Self> {
        let bytes = usize::try_from(block).ok()?;
        if !matches!(block, 512 | 1024 | 2048 | 4096) {
            return None;
        }
        // Both are below the size of a block, which fits.
        let offset = usize::try_from(RECORD_OFFSET % u64::from(block)).ok()?;
        Some(Self {
            first: RECORD_OFFSET / u64::from(block),
            bytes: (offset + RECORD_BYTES).next_multiple_of(bytes),
            offset,
            changed_bytes: (offset + VARIABLES_BYTES_MAX).next_multiple_of(bytes),
        })
    }
}

/// A page, to which firmware may demand that buffers are aligned.
#[repr(C, align(4096))]
struct BlockBuffer([u8; BLOCK_BYTES_MAX]);

impl BlockBuffer {
    const fn new() -> Self {
        Self([0; BLOCK_BYTES_MAX])
    }

    /// The first `bytes`, of [`BLOCK_BYTES_MAX`] at most.
    fn first(&mut self, bytes: usize) -> &mut [u8] {
        let bytes = bytes.min(BLOCK_BYTES_MAX);
        &mut self.0[..bytes]
    }
}

/// Reads the record.
///
/// # Errors
/// The disk cannot be read, or has no record.
pub fn load<D: RecordDisk>(disk: &mut D) -> Result<BootRecord, RecordIoError<D::Error>> {
    let blocks = blocks(disk)?;
    let mut buffer = BlockBuffer::new();
    let read = buffer.first(blocks.bytes);
    disk.read(blocks.first, read).map_err(RecordIoError::Disk)?;
    parse(read, blocks.offset)
}

/// Writes the record, flushes the disk, and reads the record back. On a disk with blocks of 512 bytes it writes one
/// block, with all variables. Larger blocks are written with what else they have.
///
/// # Errors
/// The errors of [`load`]: the loader writes only where a record was. The disk cannot be written, or has other bytes
/// afterwards.
pub fn store<D: RecordDisk>(
    disk: &mut D,
    record: &BootRecord,
) -> Result<(), RecordIoError<D::Error>> {
    let blocks = blocks(disk)?;
    let mut buffer = BlockBuffer::new();
    let wanted = buffer.first(blocks.bytes);
    disk.read(blocks.first, wanted)
        .map_err(RecordIoError::Disk)?;
    parse(wanted, blocks.offset)?;
    let place = wanted.get_mut(blocks.offset..).unwrap_or_default();
    for (to, from) in place.iter_mut().zip(record.encode()) {
        *to = from;
    }
    let changed = wanted.get(..blocks.changed_bytes).unwrap_or_default();
    disk.write(blocks.first, changed)
        .map_err(RecordIoError::Disk)?;
    disk.flush().map_err(RecordIoError::Disk)?;
    // Some sticks and card readers report a write that they did not make.
    let mut buffer = BlockBuffer::new();
    let found = buffer.first(blocks.bytes);
    disk.read(blocks.first, found)
        .map_err(RecordIoError::Disk)?;
    if *found == *wanted {
        Ok(())
    } else {
        Err(RecordIoError::Changed)
    }
}

fn blocks<D: RecordDisk>(disk: &D) -> Result<RecordBlocks, RecordIoError<D::Error>> {
    let bytes = disk.block_bytes();
    RecordBlocks::for_block_bytes(bytes).ok_or(RecordIoError::Blocks(bytes))
}

fn parse<E>(blocks: &[u8], offset: usize) -> Result<BootRecord, RecordIoError<E>> {
    let end = offset + RECORD_BYTES;
    let record = blocks.get(offset..end).unwrap_or_default();
    BootRecord::parse(record).map_err(RecordIoError::Record)
}
