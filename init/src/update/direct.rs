//! A block device, read and written past the cache of the kernel.
//!
//! What is read back after a write comes from the device then. It also spares the memory that a cache would take, and a
//! partition and its disk have caches of their own, of which one may be old.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use alknet_fat::BlockDevice;

/// Bytes of a request at most.
const TRANSFER_BYTES: usize = 128 << 10;
/// What a device with sectors of 512 bytes demands of positions and lengths.
const SECTOR_BYTES: u64 = 512;
/// What every device's driver is content with as the position of a buffer in memory: a page.
const MEMORY_ALIGNMENT: usize = 4096;

/// A block device.
#[derive(Debug)]
pub(crate) struct DirectDevice {
    file: File,
    bytes: u64,
    buffer: RefCell<PageBuffer>,
}

impl DirectDevice {
    /// Opens a device for reading and writing. With `alone` the kernel refuses this while a file system on it is mounted,
    /// and refuses to mount it meanwhile (`O_EXCL` on a block device, open(2)).
    pub(crate) fn open(path: &Path, alone: bool) -> io::Result<Self> {
        let exclusive = if alone { libc::O_EXCL } else { 0 };
        Self::open_with(path, OpenOptions::new().write(true), exclusive)
    }

    /// Opens a device for reading. Each write fails.
    pub(crate) fn open_read_only(path: &Path) -> io::Result<Self> {
        Self::open_with(path, &mut OpenOptions::new(), 0)
    }

    fn open_with(path: &Path, options: &mut OpenOptions, flags: libc::c_int) -> io::Result<Self> {
        let mut file = options
            .read(true)
            .custom_flags(libc::O_DIRECT | flags)
            .open(path)?;
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            bytes,
            buffer: RefCell::new(PageBuffer::new()),
        })
    }

    fn require(&self, at: u64, length: usize) -> io::Result<()> {
        let end = at.checked_add(length as u64);
        match end.is_some_and(|end| end <= self.bytes) {
            true => Ok(()),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl BlockDevice for DirectDevice {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.require(at, buffer.len())?;
        #[cfg(test)]
        watch::note(self.bytes, at);
        let mut page = self.buffer.borrow_mut();
        let mut done = 0;
        while done < buffer.len() {
            let position = at + done as u64;
            let before = (position % SECTOR_BYTES) as usize;
            let wanted = (before + buffer.len() - done).min(TRANSFER_BYTES);
            let whole = wanted.next_multiple_of(SECTOR_BYTES as usize);
            let sectors = page.first(whole);
            self.file.read_exact_at(sectors, position - before as u64)?;
            let part = &sectors[before..wanted];
            buffer[done..done + part.len()].copy_from_slice(part);
            done += part.len();
        }
        Ok(())
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.require(at, bytes.len())?;
        // A part of a sector would have to be read first, and a cut could then lose the rest of it.
        if !at.is_multiple_of(SECTOR_BYTES) || !(bytes.len() as u64).is_multiple_of(SECTOR_BYTES) {
            return Err(ErrorKind::InvalidInput.into());
        }
        let page = self.buffer.get_mut();
        let mut position = at;
        for piece in bytes.chunks(TRANSFER_BYTES) {
            let sectors = page.first(piece.len());
            sectors.copy_from_slice(piece);
            self.file.write_all_at(sectors, position)?;
            position += piece.len() as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> u64 {
        self.bytes
    }
}

/// A buffer that begins with a page of memory.
#[derive(Debug)]
struct PageBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl PageBuffer {
    fn new() -> Self {
        let bytes = vec![0; TRANSFER_BYTES + MEMORY_ALIGNMENT];
        // The vector is never resized, so its bytes stay where they are.
        let start = bytes.as_ptr().align_offset(MEMORY_ALIGNMENT);
        Self { bytes, start }
    }

    /// The first `length` bytes, of [`TRANSFER_BYTES`] at most.
    fn first(&mut self, length: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + length]
    }
}

/// Lets a test act at a certain read of a device.
#[cfg(test)]
pub(super) mod watch {
    use std::cell::RefCell;

    /// Gets the bytes of the device, and where the read begins.
    type Watch = Box<dyn FnMut(u64, u64)>;

    thread_local! {
        static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
    }

    /// Does `work`, and calls `each` before each read of a device on this thread.
    pub(in crate::update) fn during<T>(
        each: impl FnMut(u64, u64) + 'static,
        work: impl FnOnce() -> T,
    ) -> T {
        WATCH.set(Some(Box::new(each)));
        let done = work();
        WATCH.set(None);
        done
    }

    pub(super) fn note(device_bytes: u64, at: u64) {
        WATCH.with_borrow_mut(|watch| {
            if let Some(watch) = watch {
                watch(device_bytes, at);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file on the disk of the build, because a file in memory may refuse `O_DIRECT`.
    fn device(bytes: usize) -> (tempfile::NamedTempFile, DirectDevice) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
        let folder = folder
            .canonicalize()
            .unwrap_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).to_owned());
        let file = tempfile::NamedTempFile::new_in(folder).expect("a temporary file");
        let content: Vec<u8> = (0..bytes).map(|at| (at / 7) as u8).collect();
        std::fs::write(file.path(), content).expect("writable");
        let device = DirectDevice::open(file.path(), false).expect("a file on a disk");
        (file, device)
    }

    #[test]
    fn any_range_is_read_and_whole_sectors_are_written() {
        let bytes = TRANSFER_BYTES * 2 + 1024;
        let (file, mut device) = device(bytes);
        assert_eq!(BlockDevice::len(&device), bytes as u64);
        for (at, length) in [(0, 1), (511, 2), (700, TRANSFER_BYTES + 9), (1, bytes - 1)] {
            let mut found = vec![0; length];
            device.read_at(&mut found, at as u64).expect("within");
            let expected: Vec<u8> = (at..at + length).map(|at| (at / 7) as u8).collect();
            assert!(found == expected, "{at} {length}");
        }
        let new = vec![9; TRANSFER_BYTES + 512];
        device.write_at(&new, 1024).expect("within");
        device.flush().expect("a file");
        let found = std::fs::read(file.path()).expect("readable");
        assert!(found[1024..1024 + new.len()] == new);
        assert_eq!(found[1023], (1023 / 7) as u8);
    }

    #[test]
    fn a_device_that_is_opened_for_reading_takes_no_write() {
        let (file, _) = device(2048);
        let mut reader = DirectDevice::open_read_only(file.path()).expect("a file on a disk");
        let before = std::fs::read(file.path()).expect("readable");
        let mut found = vec![0; 2048];
        reader.read_at(&mut found, 0).expect("within");
        assert!(found == before);
        assert!(reader.write_at(&[9; 512], 0).is_err());
        let after = std::fs::read(file.path()).expect("readable");
        assert!(after == before);
    }

    #[test]
    fn what_is_no_whole_sector_or_not_on_the_device_is_refused() {
        let (_file, mut device) = device(2048);
        assert!(device.write_at(&[0; 100], 0).is_err());
        assert!(device.write_at(&[0; 512], 100).is_err());
        assert!(device.write_at(&[0; 512], 2048).is_err());
        assert!(device.read_at(&mut [0; 2], 2047).is_err());
        assert!(device.read_at(&mut [0; 2], u64::MAX).is_err());
    }
}
