//! Read-only maps of files that do not change while they are read.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The pages of a descriptor.
#[derive(Debug)]
pub(crate) struct DescriptorMapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the pages are never written (see `bytes`); reading is safe from any thread.
unsafe impl Send for DescriptorMapping {}
// SAFETY: as above.
unsafe impl Sync for DescriptorMapping {}

impl DescriptorMapping {
    /// Maps the first `bytes` of a file, which its sender does not change.
    pub(crate) fn of_file(file: &File, bytes: usize) -> io::Result<Self> {
        if bytes == 0 {
            // The kernel makes no map of zero bytes (mmap(2)).
            let start = NonNull::dangling();
            return Ok(Self { start, bytes });
        }
        let nowhere = std::ptr::null_mut();
        // SAFETY: a new map at a place of the kernel's choice touches no memory of ours.
        let start = unsafe { mmap(nowhere, bytes, ProtFlags::READ, MapFlags::SHARED, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, bytes })
    }

    pub(crate) const fn bytes(&self) -> &[u8] {
        // SAFETY: the map lives as long as `self` and is `bytes` long (or empty). What is behind it
        // is memory sealed against writing, or a file that the host, which passed it, never changes.
        // What is cut short while it is read (memory that the host takes back is not read any more by then)
        // ends the worker by a signal.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for DescriptorMapping {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        // SAFETY: the map is ours, and is not borrowed any more.
        let outcome = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), self.bytes) };
        debug_assert!(outcome.is_ok(), "a map of ours can be taken away");
    }
}
