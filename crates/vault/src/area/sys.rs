//! What has to be asked of the kernel in its own words.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use super::words::AreaWords;

/// `SECRETMEM_MAGIC` and `TMPFS_MAGIC` of the kernel: what the two kinds of memory lie on. A memfd of
/// huge pages lies elsewhere, and cannot be mapped in part.
const SECRETMEM_MAGIC: u64 = 0x5345_434d;
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// What keeps the size of a memfd, and its seals, as they are.
const FIXED: i32 = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;

/// What a descriptor turned out to be.
pub(super) struct DescriptorInfo {
    pub(super) origin: MemoryOrigin,
    pub(super) bytes: u64,
}

/// Where its memory is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemoryOrigin {
    /// A memfd, and whether its size stays.
    Memory { fixed: bool },
    /// A file, a pipe, anything.
    Other,
    /// `memfd_secret`, whose size stays by itself.
    Secret,
}

/// Memory that a process reads only through a mapping.
pub(super) fn memfd_secret(bytes: u64) -> io::Result<OwnedFd> {
    // SAFETY: the call takes one number, and answers a descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    sized(fd, bytes)
}

/// Memory whose size can no longer be changed.
pub(super) fn sealed_memfd(bytes: u64) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a string that ends with a null, and the kernel copies it.
    let fd = unsafe { libc::memfd_create(c"alknet-vault".as_ptr(), flags) };
    let fd = sized(fd.into(), bytes)?;
    // SAFETY: the call takes numbers only.
    succeeded(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, FIXED) })?;
    Ok(fd)
}

fn sized(fd: libc::c_long, bytes: u64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    succeeded(fd)?;
    // SAFETY: the kernel has just made it, and no other value owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(bytes)?;
    Ok(file.into())
}

/// What a descriptor is.
pub(super) fn look_at(fd: BorrowedFd<'_>) -> io::Result<DescriptorInfo> {
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut system: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `system` is a statfs of ours, and the descriptor is open.
    succeeded(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut system) })?;
    // SAFETY: the call takes numbers only. It fails for what has no seals.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    let origin = match (system.f_type as u64, seals) {
        (SECRETMEM_MAGIC, _) => MemoryOrigin::Secret,
        // Files of a mounted tmpfs have seals too, and allow none.
        (TMPFS_MAGIC, 0..) => MemoryOrigin::Memory {
            fixed: seals & FIXED == FIXED,
        },
        _ => MemoryOrigin::Other,
    };
    let bytes = File::from(fd.try_clone_to_owned()?).metadata()?.len();
    Ok(DescriptorInfo { origin, bytes })
}

/// Closes the descriptor in every program that this one starts.
pub(super) fn keep_from_children(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    succeeded(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })
}

/// The area in this process's memory.
#[derive(Debug)]
pub(super) struct AreaMapping {
    at: NonNull<AreaWords>,
    bytes: usize,
}

// SAFETY: what lies there is atomic words, and the mapping is undone only when no reference into it is
// left.
unsafe impl Send for AreaMapping {}
// SAFETY: as above; atomic words may be used by several threads at the same time.
unsafe impl Sync for AreaMapping {}

impl AreaMapping {
    /// Maps so many bytes, of which the words of an area are the first. They do not go into core dumps,
    /// nor into a process that is a copy of this one; `locked` keeps them from being written elsewhere,
    /// which secret memory is by itself.
    ///
    /// The memory must be at least as large, and keep its size.
    pub(super) fn new(fd: BorrowedFd<'_>, bytes: u64, locked: bool) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel has room, which replaces no other mapping.
        let at = unsafe {
            let (flags, fd) = (libc::MAP_SHARED, fd.as_raw_fd());
            libc::mmap(ptr::null_mut(), bytes, protection, flags, fd, 0)
        };
        let found = NonNull::new(at.cast::<AreaWords>()).filter(|_| at != libc::MAP_FAILED);
        let mapping = Self {
            at: found.ok_or_else(io::Error::last_os_error)?,
            bytes,
        };
        for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
            // SAFETY: exactly the mapping made above; the advice changes no byte of it.
            succeeded(unsafe { libc::madvise(at, bytes, advice) })?;
        }
        if locked {
            // SAFETY: exactly the mapping made above.
            succeeded(unsafe { libc::mlock(at, bytes) })?;
        }
        Ok(mapping)
    }

    /// What lies there.
    pub(super) fn words(&self) -> &AreaWords {
        // SAFETY: the mapping is larger than the words, begins with a page and lives as long as this
        // does; its memory keeps its size, so that every access is to memory that is there. Any bits
        // are atomic words, and other processes change them by atomic stores or by what the machine
        // does not tell from those.
        unsafe { self.at.as_ref() }
    }
}

impl Drop for AreaMapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that was made, and no reference into it is left.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

fn succeeded(outcome: i32) -> io::Result<()> {
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
