//! Reading what a disk really has, and not what the kernel remembers of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;

use crate::content::{BLOCK_BYTES, has_only_zeros};

/// Alignment of addresses, places and lengths that every disk takes for O_DIRECT.
const ALIGNMENT: usize = 4096;
/// Bytes that are read at once: a block of an image.
pub(crate) const READ_BYTES: usize = BLOCK_BYTES;

/// Reads past the kernel's cache, where the file system of a file lets it.
pub(crate) struct DirectReader {
    plain: File,
    /// The same without the cache; `None` where the file system or the disk refuses that.
    direct: Option<File>,
    buffer: Vec<u8>,
    /// The first aligned byte of the buffer.
    start: usize,
}

impl DirectReader {
    /// Reads what `file` has open.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut options = OpenOptions::new();
        options.read(true);
        let plain = options.open(&path)?;
        let direct = match options.custom_flags(libc::O_DIRECT).open(&path) {
            Ok(direct) => Some(direct),
            // A file system in memory has nothing else to read from.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => None,
            Err(error) => return Err(error),
        };
        let buffer = vec![0; READ_BYTES + ALIGNMENT];
        // The standard library may find no such place; direct reads then fail, and plain ones take over.
        let start = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Ok(Self {
            plain,
            direct,
            buffer,
            start,
        })
    }

    /// The bytes at `at`, at most [`READ_BYTES`]. Only a place that the disk takes for direct reads, such as a multiple of
    /// that, is read without the cache.
    pub(crate) fn read(&mut self, at: u64, bytes: usize) -> io::Result<&[u8]> {
        let place = self.start..self.start + bytes;
        match self.read_direct(at, bytes) {
            Ok(true) => return Ok(&self.buffer[place]),
            Ok(false) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.direct = None,
            Err(error) => return Err(error),
        }
        // Pages that are on the disk are dropped, so that the next read is one of the disk.
        forget(&self.plain, at, bytes as u64);
        self.plain
            .read_exact_at(&mut self.buffer[place.clone()], at)?;
        Ok(&self.buffer[place])
    }

    /// Whether the bytes could be read without the cache.
    fn read_direct(&mut self, at: u64, bytes: usize) -> io::Result<bool> {
        let Some(direct) = &self.direct else {
            return Ok(false);
        };
        let whole = bytes.next_multiple_of(ALIGNMENT);
        let mut done = 0;
        while done < bytes {
            let place = &mut self.buffer[self.start + done..self.start + whole];
            match direct.read_at(place, at + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Whether a disk has only zeros there.
pub(crate) fn is_zero(disk: &File, range: Range<u64>) -> io::Result<bool> {
    let mut reader = DirectReader::new(disk)?;
    let mut at = range.start;
    while at < range.end {
        let wanted = (range.end - at).min(READ_BYTES as u64) as usize;
        if !has_only_zeros(reader.read(at, wanted)?) {
            return Ok(false);
        }
        at += wanted as u64;
    }
    Ok(true)
}

/// Tells the kernel to forget the pages of a range that are on the disk.
pub(crate) fn forget(file: &File, at: u64, bytes: u64) {
    // It saves memory only; a kernel that refuses it keeps the pages.
    let _ = posix_fadvise(
        file,
        at.cast_signed(),
        bytes.cast_signed(),
        PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..READ_BYTES + 1000).map(|at| at as u8).collect();
        std::fs::write(&path, &content).expect("writable");
        let file = File::open(&path).expect("readable");
        let mut reader = DirectReader::new(&file).expect("readable");
        assert_eq!(
            reader.read(0, READ_BYTES).expect("readable"),
            &content[..READ_BYTES]
        );
        let at = READ_BYTES as u64;
        assert_eq!(
            reader.read(at, 1000).expect("readable"),
            &content[READ_BYTES..]
        );
        assert_eq!(reader.read(0, 5).expect("readable"), &content[..5]);
        let beyond = reader.read(at, 1001).expect_err("beyond the end");
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }
}
