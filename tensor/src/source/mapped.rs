//! A file as memory. This is the one place of this crate that is not safe.

use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::Mmap;

/// A file that was mapped.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps all of `file`, to be read.
    ///
    /// # Errors
    /// The system cannot map it.
    ///
    /// # Safety
    /// No process may change or shorten the file while the map lives: what was checked could change
    /// after the check, and reading what is gone ends the process with `SIGBUS`. A file of the
    /// content-addressed store is such a file, and so is a memory file sealed against shrinking and
    /// writing. The node and PID 1 never map; their workers do.
    pub unsafe fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the caller answers for the file.
        unsafe { Mmap::map(file) }.map(Self)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
