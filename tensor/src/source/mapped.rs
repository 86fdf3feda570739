//! A file mapped into memory: the only module of this crate with unsafe code.

use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::Mmap;

/// A mapped file.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps all of `file` for reading.
    ///
    /// # Errors
    /// The error of mmap(2).
    ///
    /// # Safety
    /// No process may change or shorten the file while it is mapped: bytes could change after they
    /// were checked, and reading beyond a shortened file ends the process with `SIGBUS` (mmap(2)).
    /// A file of the content-addressed store fulfils this, and so does a memory file sealed against
    /// shrinking and writing. The node and PID 1 never map files; their workers do.
    pub unsafe fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the caller guarantees that the file does not change.
        unsafe { Mmap::map(file) }.map(Self)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
