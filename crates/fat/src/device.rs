//! The device that a volume lies on.

use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// A partition, a disk, or bytes in their place.
pub trait BlockDevice {
    /// Fills `buffer` from position `at`, in bytes.
    ///
    /// # Errors
    /// The range is not wholly on the device, or the device failed.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes all of `bytes` at position `at`, in bytes. Until [`flush`](Self::flush) returns, the sectors may reach the
    /// device in any order, or not at all.
    ///
    /// # Errors
    /// The range is not wholly on the device, or the device failed; some sectors may have been written.
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Returns when everything written before is on the device.
    ///
    /// # Errors
    /// The device failed, and what was written before may be lost.
    fn flush(&mut self) -> io::Result<()>;

    /// Size in bytes.
    fn len(&self) -> u64;

    /// Whether it has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for &mut D {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        (**self).read_at(buffer, at)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        (**self).write_at(bytes, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        (**self).flush()
    }

    fn len(&self) -> u64 {
        (**self).len()
    }
}

/// A range of a file or of a block device: `FilePartition<File>`, or `FilePartition<&File>`.
///
/// [`flush`](BlockDevice::flush) is [`File::sync_data`].
///
/// ```no_run
/// use alknet_fat::{FatVolume, FilePartition};
///
/// // The EFI system partition of a disk of alknet: 256 MiB from block 2048 on.
/// let disk = std::fs::File::open("/dev/sda")?;
/// let volume = FatVolume::open(FilePartition::new(disk, 2048 * 512, 256 << 20))?;
/// for entry in volume.list(r"\EFI\BOOT")? {
///     println!("{} {}", entry.name(), entry.size());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct FilePartition<F> {
    file: F,
    first_byte: u64,
    bytes: u64,
}

impl<F: Borrow<File>> FilePartition<F> {
    /// The range of `bytes` bytes from `first_byte` on. Nothing is read: a range behind the end of the file fails when it
    /// is read.
    pub fn new(file: F, first_byte: u64, bytes: u64) -> Self {
        Self {
            file,
            first_byte,
            bytes,
        }
    }

    /// The whole file or block device.
    ///
    /// # Errors
    /// Its size is unknown.
    pub fn whole(file: F) -> io::Result<Self> {
        // The metadata of a block device say that it has no bytes.
        let mut opened: &File = file.borrow();
        let bytes = opened.seek(SeekFrom::End(0))?;
        Ok(Self::new(file, 0, bytes))
    }

    fn file(&self) -> &File {
        self.file.borrow()
    }

    /// The position of a range of the partition in the file.
    fn position(&self, at: u64, length: usize) -> io::Result<u64> {
        // Another partition lies behind this one, and no number in the volume may lead there.
        within(at, length, self.bytes)?;
        let position = self.first_byte.checked_add(at);
        position.ok_or_else(|| ErrorKind::InvalidInput.into())
    }
}

impl<F: Borrow<File>> BlockDevice for FilePartition<F> {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let position = self.position(at, buffer.len())?;
        self.file().read_exact_at(buffer, position)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let position = self.position(at, bytes.len())?;
        self.file().write_all_at(bytes, position)
    }

    fn flush(&mut self) -> io::Result<()> {
        // The size stays, so the rest of the metadata, such as times, need not be on the device.
        self.file().sync_data()
    }

    fn len(&self) -> u64 {
        self.bytes
    }
}

/// Bytes in memory, for tests and for volumes that are small.
impl BlockDevice for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let at = within(at, buffer.len(), BlockDevice::len(self))?;
        buffer.copy_from_slice(&self[at..at + buffer.len()]);
        Ok(())
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = within(at, bytes.len(), BlockDevice::len(self))?;
        self[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }
}

/// The position as an index, if the range lies on a device of `bytes` bytes.
fn within(at: u64, length: usize, bytes: u64) -> io::Result<usize> {
    let end = at.checked_add(length as u64);
    if end.is_none_or(|end| end > bytes) {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    usize::try_from(at).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_read_and_written_within_its_range_only() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&[7; 12], 0).expect("writable");
        let mut part = FilePartition::new(&file, 4, 4);
        part.write_at(&[1, 2], 2).expect("within");
        part.flush().expect("a file");
        let mut all = [0; 12];
        file.read_exact_at(&mut all, 0).expect("readable");
        assert_eq!(all, [7, 7, 7, 7, 7, 7, 1, 2, 7, 7, 7, 7]);
        for (at, length) in [(3, 2), (4, 1), (u64::MAX, 1)] {
            let mut buffer = vec![0; length];
            assert!(part.read_at(&mut buffer, at).is_err(), "{at} {length}");
            assert!(part.write_at(&buffer, at).is_err(), "{at} {length}");
        }
        let whole = FilePartition::whole(&file).expect("a size");
        assert_eq!(BlockDevice::len(&whole), 12);
        assert!(!BlockDevice::is_empty(&whole));
    }

    #[test]
    fn bytes_in_memory_refuse_what_is_behind_their_end() {
        let mut bytes = vec![1_u8, 2, 3];
        let mut two = [0; 2];
        bytes.read_at(&mut two, 1).expect("within");
        assert_eq!(two, [2, 3]);
        assert!(bytes.read_at(&mut two, 2).is_err());
        assert!(bytes.write_at(&two, u64::MAX).is_err());
    }
}
