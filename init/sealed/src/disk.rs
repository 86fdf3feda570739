//! The storage that a sealed partition is read from and written to.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use nix::errno::Errno;

const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKZEROOUT: libc::c_ulong = 0x127f;
/// Size of the pieces in which zeros and random bytes are written.
const PIECE_BYTES: usize = 1 << 18;

/// A partition, a disk, or a file in its place. Tests have a disk that loses power.
pub trait BlockStorage {
    /// Fills `buffer` from position `at`.
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes all of `bytes` at position `at`. Until [`flush`](Self::flush) returns, the sectors
    /// may reach the disk in any order, or not at all.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Returns when everything written before is on the disk.
    fn flush(&self) -> io::Result<()>;

    /// Writes zeros.
    fn zero(&self, at: u64, bytes: u64) -> io::Result<()> {
        let piece = vec![0; PIECE_BYTES];
        pieces(at, bytes, |at, length| self.write(&piece[..length], at))
    }

    /// Marks a range as unused, so that the disk may erase it.
    fn discard(&self, at: u64, bytes: u64) -> io::Result<()> {
        let _ = (at, bytes);
        Err(ErrorKind::Unsupported.into())
    }
}

/// Writes random bytes, which cannot be told from encrypted data.
pub(crate) fn noise(disk: &(impl BlockStorage + ?Sized), at: u64, bytes: u64) -> io::Result<()> {
    let most = usize::try_from(bytes).unwrap_or(PIECE_BYTES);
    let mut piece = vec![0; most.min(PIECE_BYTES)];
    pieces(at, bytes, |at, length| {
        getrandom::fill(&mut piece[..length]).map_err(|_| io::Error::other("no random numbers"))?;
        disk.write(&piece[..length], at)
    })
}

fn pieces(
    at: u64,
    bytes: u64,
    mut each: impl FnMut(u64, usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        let left = usize::try_from(bytes - done).unwrap_or(usize::MAX);
        let length = left.min(PIECE_BYTES);
        each(at + done, length)?;
        done += length as u64;
    }
    Ok(())
}

impl BlockStorage for File {
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn zero(&self, at: u64, bytes: u64) -> io::Result<()> {
        if block_ioctl(self, BLKZEROOUT, at, bytes).is_ok() {
            return Ok(());
        }
        // The storage is a file, or a device that requires larger sectors.
        let piece = vec![0; PIECE_BYTES];
        pieces(at, bytes, |at, length| self.write(&piece[..length], at))
    }

    fn discard(&self, at: u64, bytes: u64) -> io::Result<()> {
        block_ioctl(self, BLKDISCARD, at, bytes)
    }
}

fn block_ioctl(file: &File, request: libc::c_ulong, at: u64, bytes: u64) -> io::Result<()> {
    let range = [at, bytes];
    // SAFETY: both ioctls read the two numbers behind the pointer, which outlive the call.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), request, range.as_ptr()) };
    Ok(Errno::result(outcome).map(drop)?)
}

impl<D: BlockStorage + ?Sized> BlockStorage for &D {
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        (**self).read(buffer, at)
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        (**self).write(bytes, at)
    }

    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }

    fn zero(&self, at: u64, bytes: u64) -> io::Result<()> {
        (**self).zero(at, bytes)
    }

    fn discard(&self, at: u64, bytes: u64) -> io::Result<()> {
        (**self).discard(at, bytes)
    }
}
