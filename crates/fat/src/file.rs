//! A file that is read.

use std::io::{self, Read};

use crate::device::BlockDevice;

/// A piece of a file on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FatExtent {
    /// Position in bytes from the start of the volume: a multiple of the size of a sector.
    pub at: u64,
    /// Bytes of the file that lie there.
    pub bytes: u64,
}

/// A file of a volume, whose chain is whole, or the content of one that is being written. It reads as a stream.
#[derive(Debug)]
pub struct FatFile<'a, D> {
    pub(crate) device: &'a D,
    pub(crate) size: u32,
    pub(crate) extents: Vec<FatExtent>,
    /// The piece that is read next, and how much of it was read.
    pub(crate) piece: usize,
    pub(crate) taken: u64,
}

impl<D> FatFile<'_, D> {
    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Where the bytes of the file lie, in order. Together they have the size of the file.
    ///
    /// For a reader that goes past the caches of the system (`O_DIRECT`) and has to read whole sectors: the rest of the
    /// last sector belongs to the file's last cluster.
    #[must_use]
    pub fn extents(&self) -> &[FatExtent] {
        &self.extents
    }
}

impl<D: BlockDevice> Read for FatFile<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(extent) = self.extents.get(self.piece) else {
            return Ok(0);
        };
        // A read ends with the piece, because the next one lies elsewhere on the device.
        let left = extent.bytes - self.taken;
        let length = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let at = extent.at + self.taken;
        self.device.read_at(&mut buffer[..length], at)?;
        self.taken += length as u64;
        if self.taken == extent.bytes {
            self.piece += 1;
            self.taken = 0;
        }
        Ok(length)
    }
}
