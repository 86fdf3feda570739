//! Memory that can no longer change, in which large values travel.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::Errno;

use crate::WorkerFrameError;
use crate::limits::SEALED_BYTES_MAX;
use crate::sys::DescriptorMapping;

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

const FLAGS: MemfdFlags = MemfdFlags::CLOEXEC.union(MemfdFlags::ALLOW_SEALING);

/// `TMPFS_MAGIC` of the kernel: the file system of an ordinary memfd. One of huge pages is on another, and a read
/// from its map may fail with a signal whatever its seals are.
const TMPFS: u64 = 0x0102_1994;

/// How often memory is sealed again that the kernel itself uses for a moment.
const SEAL_ATTEMPTS: usize = 5;

/// Seals a memfd.
///
/// The kernel counts who holds the pages (`memfd_wait_for_pins` in `mm/memfd.c`). Its own batches of pages count, too, and
/// on a busy machine they may last longer than the fraction of a second for which it waits for them. A writable mapping
/// is refused at once, each time.
pub(super) fn add_seals(file: &File, seals: SealFlags) -> io::Result<()> {
    for _ in 1..SEAL_ATTEMPTS {
        match fcntl_add_seals(file, seals) {
            Err(Errno::BUSY) => {}
            sealed => return sealed.map_err(io::Error::from),
        }
    }
    fcntl_add_seals(file, seals).map_err(io::Error::from)
}

/// A memfd that can be neither written nor truncated nor grown nor unsealed (fcntl(2), F_ADD_SEALS).
#[derive(Debug)]
pub struct SealedMemfd {
    file: File,
    len: u64,
}

impl SealedMemfd {
    /// Copies `bytes` into new sealed memory.
    ///
    /// # Errors
    /// There are too many bytes, or the kernel refuses the memory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WorkerFrameError> {
        let len = bytes.len() as u64;
        if len > SEALED_BYTES_MAX {
            return Err(WorkerFrameError::TooMuch(len));
        }
        let mut file = File::from(memfd_create(c"alknet", FLAGS).map_err(io::Error::from)?);
        file.write_all(bytes)?;
        Self::seal(file)
    }

    /// Makes sealed memory that `write` fills, and that can be executed.
    ///
    /// # Errors
    /// `write` failed, there are too many bytes, or the kernel refuses the memory.
    pub fn program(write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<Self> {
        // Older kernels do not know the flag, and allow every memfd to be executed.
        let memory = memfd_create(c"alknet", FLAGS | MemfdFlags::EXEC)
            .or_else(|_| memfd_create(c"alknet", FLAGS))?;
        let mut memory = File::from(memory);
        write(&mut memory)?;
        Self::seal(memory).map_err(io::Error::other)
    }

    /// Seals the content of `file`, a memfd that allows it and has no writable mapping.
    ///
    /// # Errors
    /// The kernel refuses, or there are too many bytes.
    pub fn seal(file: File) -> Result<Self, WorkerFrameError> {
        add_seals(&file, SEALS)?;
        Self::check(file.into())
    }

    /// Checks and takes a descriptor that a peer sent.
    ///
    /// # Errors
    /// The descriptor is not sealed memory of at most [`SEALED_BYTES_MAX`].
    pub fn check(fd: OwnedFd) -> Result<Self, WorkerFrameError> {
        // The seals are read before the length: afterwards the peer can change neither.
        let seals = fcntl_get_seals(&fd).map_err(|_| WorkerFrameError::NotSealed("no memfd"))?;
        if !seals.contains(SEALS) {
            return Err(WorkerFrameError::NotSealed("it could still change"));
        }
        let on = rustix::fs::fstatfs(&fd).map_err(io::Error::from)?.f_type;
        if u64::try_from(on).ok() != Some(TMPFS) {
            return Err(WorkerFrameError::NotSealed("not of ordinary pages"));
        }
        let end = rustix::fs::SeekFrom::End(0);
        let len = rustix::fs::seek(&fd, end).map_err(io::Error::from)?;
        if len > SEALED_BYTES_MAX {
            return Err(WorkerFrameError::TooMuch(len));
        }
        let file = File::from(fd);
        Ok(Self { file, len })
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the number of bytes is zero.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy of the bytes.
    ///
    /// # Errors
    /// There are more than `max` bytes, or the kernel cannot read the pages back.
    pub fn read(&self, max: u64) -> Result<Vec<u8>, WorkerFrameError> {
        if self.len > max {
            return Err(WorkerFrameError::TooMuch(self.len));
        }
        let mut bytes = vec![0; usize::try_from(self.len).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

impl AsFd for SealedMemfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<SealedMemfd> for OwnedFd {
    fn from(sealed: SealedMemfd) -> Self {
        sealed.file.into()
    }
}

/// A read-only map of a descriptor that the host passed.
#[derive(Debug)]
pub struct SealedMapping(DescriptorMapping);

impl SealedMapping {
    /// Maps a file that the host passed. Only for workers, and only for files that the host does not change while the
    /// map is read: truncating the file meanwhile ends the process by a signal, which a worker may suffer. So does a
    /// machine that has no memory left for a page.
    ///
    /// # Errors
    /// The descriptor is no regular file, or the kernel refuses the map.
    pub fn of_file(fd: OwnedFd) -> Result<Self, WorkerFrameError> {
        let file = File::from(fd);
        // The standard library uses another system call for this, which the filter refuses.
        let about = rustix::fs::fstat(&file).map_err(io::Error::from)?;
        if !FileType::from_raw_mode(about.st_mode).is_file() {
            return Err(WorkerFrameError::NotSealed("no file"));
        }
        let len = usize::try_from(about.st_size).unwrap_or(usize::MAX);
        Ok(Self(DescriptorMapping::of_file(&file, len)?))
    }
}

impl AsRef<[u8]> for SealedMapping {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl Deref for SealedMapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memfd(flags: MemfdFlags) -> File {
        File::from(memfd_create(c"test", flags).expect("memory"))
    }

    #[test]
    fn sealed_bytes_are_read_and_mapped_and_cannot_change() {
        let sealed = SealedMemfd::from_bytes(b"some bytes").expect("sealed");
        assert_eq!(sealed.read(10).expect("readable"), b"some bytes");
        let copy = || sealed.as_fd().try_clone_to_owned().expect("a copy");
        let mapped = SealedMapping::of_file(copy()).expect("mapped");
        assert_eq!(&mapped[..], b"some bytes");
        let again = SealedMemfd::check(copy());
        assert_eq!(again.expect("still sealed").len(), 10);
        let mut file = sealed.file;
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(1).is_err());
        assert!(file.set_len(1000).is_err());
        // The map outlives the descriptor.
        drop(file);
        assert_eq!(&mapped[..], b"some bytes");
    }

    #[test]
    fn files_are_mapped_and_other_things_are_not() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"of the store").expect("written");
        let mapped = SealedMapping::of_file(file.into()).expect("mapped");
        assert_eq!(&mapped[..], b"of the store");
        let empty = tempfile::tempfile().expect("a file");
        assert_eq!(
            &SealedMapping::of_file(empty.into()).expect("mapped")[..],
            b""
        );
        let folder = File::open("/").expect("a folder");
        assert!(SealedMapping::of_file(folder.into()).is_err());
    }

    #[test]
    fn nothing_is_bytes_too() {
        let sealed = SealedMemfd::from_bytes(b"").expect("sealed");
        assert!(sealed.is_empty());
        assert_eq!(sealed.read(0).expect("readable"), b"");
        let mapped = SealedMapping::of_file(sealed.into()).expect("mapped");
        assert_eq!(&mapped[..], b"");
    }

    #[test]
    fn what_could_change_is_refused() {
        let open = memfd(MemfdFlags::ALLOW_SEALING);
        assert!(SealedMemfd::check(open.into()).is_err());
        let never = memfd(MemfdFlags::empty());
        assert!(SealedMemfd::check(never.into()).is_err());
        for lacking in [
            SealFlags::SEAL,
            SealFlags::SHRINK,
            SealFlags::GROW,
            SealFlags::WRITE,
        ] {
            let file = memfd(MemfdFlags::ALLOW_SEALING);
            fcntl_add_seals(&file, SEALS.difference(lacking)).expect("sealed in part");
            let refused = SealedMemfd::check(file.into());
            assert!(
                matches!(refused, Err(WorkerFrameError::NotSealed(_))),
                "{lacking:?}"
            );
        }
        let disk = tempfile::tempfile().expect("a file");
        assert!(matches!(
            SealedMemfd::check(disk.into()),
            Err(WorkerFrameError::NotSealed(_))
        ));
    }

    #[test]
    fn too_much_is_refused_without_reading_it() {
        let file = memfd(MemfdFlags::ALLOW_SEALING);
        file.set_len(SEALED_BYTES_MAX + 1).expect("a hole");
        let refused = SealedMemfd::seal(file);
        assert!(matches!(refused, Err(WorkerFrameError::TooMuch(_))));
    }
}
