//! System calls for the area.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use super::words::AreaWords;

/// The file system types of the two kinds of memory: `SECRETMEM_MAGIC` and `TMPFS_MAGIC` of the kernel. A memfd of
/// huge pages has another type, and cannot be mapped in part.
const SECRETMEM_MAGIC: u64 = 0x5345_434d;
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The seals that fix the size of a memfd and its set of seals (fcntl(2)).
const FIXED: i32 = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;

/// The properties of a descriptor.
pub(super) struct DescriptorInfo {
    pub(super) origin: MemoryOrigin,
    pub(super) bytes: u64,
}

/// The origin of a descriptor's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemoryOrigin {
    /// A memfd; `fixed` is whether its size is sealed.
    Memory { fixed: bool },
    /// A file, a pipe, or another descriptor.
    Other,
    /// `memfd_secret`, whose size cannot change once it is set.
    Secret,
}

/// Memory that a process can read through a mapping only.
pub(super) fn memfd_secret(bytes: u64) -> io::Result<OwnedFd> {
    // SAFETY: the call takes one number, and returns a descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    sized(fd, bytes)
}

/// Memory whose size is sealed.
pub(super) fn sealed_memfd(bytes: u64) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a null-terminated string, which the kernel copies.
    let fd = unsafe { libc::memfd_create(c"alknet-vault".as_ptr(), flags) };
    let fd = sized(fd.into(), bytes)?;
    // SAFETY: the call takes numbers only.
    succeeded(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, FIXED) })?;
    Ok(fd)
}

fn sized(fd: libc::c_long, bytes: u64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    succeeded(fd)?;
    // SAFETY: the kernel has just made the descriptor, and no other value owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(bytes)?;
    Ok(file.into())
}

/// Reads the properties of a descriptor.
pub(super) fn describe(fd: BorrowedFd<'_>) -> io::Result<DescriptorInfo> {
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut system: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `system` is a local statfs, and the descriptor is open.
    succeeded(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut system) })?;
    // SAFETY: the call takes numbers only. It fails for a file without seals.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    let origin = match (system.f_type as u64, seals) {
        (SECRETMEM_MAGIC, _) => MemoryOrigin::Secret,
        // Files of a mounted tmpfs have a set of seals too, which is fixed at F_SEAL_SEAL.
        (TMPFS_MAGIC, 0..) => MemoryOrigin::Memory {
            fixed: seals & FIXED == FIXED,
        },
        _ => MemoryOrigin::Other,
    };
    let bytes = File::from(fd.try_clone_to_owned()?).metadata()?.len();
    Ok(DescriptorInfo { origin, bytes })
}

/// Sets close-on-exec, so that programs which this one starts do not inherit the descriptor.
pub(super) fn keep_from_children(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    succeeded(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })
}

/// The area mapped into this process.
#[derive(Debug)]
pub(super) struct AreaMapping {
    at: NonNull<AreaWords>,
    bytes: usize,
}

// SAFETY: the memory holds atomic words, and it is unmapped only when no reference into it is left.
unsafe impl Send for AreaMapping {}
// SAFETY: as above; several threads may use atomic words at the same time.
unsafe impl Sync for AreaMapping {}

impl AreaMapping {
    /// Maps `bytes` bytes that begin with the words of an area. The mapping is left out of core dumps and of forked
    /// processes; `locked` keeps it from being swapped out, which secret memory prevents by itself.
    ///
    /// The memory must be at least that large, and must keep its size.
    pub(super) fn new(fd: BorrowedFd<'_>, bytes: u64, locked: bool) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses, which replaces no other mapping.
        let at = unsafe {
            let (flags, fd) = (libc::MAP_SHARED, fd.as_raw_fd());
            libc::mmap(ptr::null_mut(), bytes, protection, flags, fd, 0)
        };
        let found = NonNull::new(at.cast::<AreaWords>()).filter(|_| at != libc::MAP_FAILED);
        let mapping = Self {
            at: found.ok_or_else(io::Error::last_os_error)?,
            bytes,
        };
        // A core dump or a forked child would carry a copy of the seed (madvise(2)).
        for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
            // SAFETY: exactly the mapping made above; the advice changes none of its bytes.
            succeeded(unsafe { libc::madvise(at, bytes, advice) })?;
        }
        if locked {
            // SAFETY: exactly the mapping made above.
            succeeded(unsafe { libc::mlock(at, bytes) })?;
        }
        Ok(mapping)
    }

    /// The words of the area.
    pub(super) fn words(&self) -> &AreaWords {
        // SAFETY: the mapping is larger than the words, begins at a page and lives as long as `self`; the memory
        // keeps its size, so every access is to memory that exists. Any bits are valid atomic words, and other
        // processes change them by atomic stores or by stores that the machine cannot distinguish from atomic ones.
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
