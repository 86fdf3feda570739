//! A read-only map of sealed memory.

use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::Sealed;

/// Pages of a sealed descriptor.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the pages are sealed, so that nobody writes them; reading is safe from any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the `bytes` that `sealed` holds.
    pub(crate) fn of_sealed(sealed: &Sealed, bytes: usize) -> io::Result<Self> {
        if bytes == 0 {
            // The kernel maps no nothing.
            let start = NonNull::dangling();
            return Ok(Self { start, bytes });
        }
        let nowhere = std::ptr::null_mut();
        // SAFETY: a new map at a place of the kernel's choice touches no memory of ours.
        let start = unsafe { mmap(nowhere, bytes, ProtFlags::READ, MapFlags::SHARED, sealed, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, bytes })
    }

    pub(crate) const fn bytes(&self) -> &[u8] {
        // SAFETY: the map lives as long as `self`, is `bytes` long (or empty), and sealed against
        // writing and shrinking, so that the bytes stay there and stay the same.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        // SAFETY: the map is ours, and nobody borrows it any more.
        let outcome = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), self.bytes) };
        debug_assert!(outcome.is_ok(), "a map of ours can be taken away");
    }
}
