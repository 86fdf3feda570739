//! The source of a container's bytes.
//!
//! The usual source is a file that is read by offset into memory of its own, because a mapped file
//! that shrinks ends the process with a signal. [`MappedFile`] maps a file, which is unsafe.

#[cfg(not(target_family = "wasm"))]
mod file;
#[cfg(not(target_family = "wasm"))]
mod mapped;

use std::io;
use std::ops::Range;
use std::sync::Arc;

#[cfg(not(target_family = "wasm"))]
pub use mapped::MappedFile;

/// Bytes that any number of threads can read by offset, repeatedly.
pub trait ReadAt {
    /// The number of bytes.
    ///
    /// # Errors
    /// The system cannot tell the size.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// The error of the system; `UnexpectedEof` if there are fewer bytes.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// These bytes without a copy, if they are in memory.
    fn slice_at(&self, range: Range<u64>) -> Option<&[u8]> {
        let _ = range;
        None
    }
}

impl ReadAt for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        // `get` on ranges refuses offsets beyond the end, so no sum can overflow here.
        let rest = start.and_then(|start| self.get(start..));
        let Some(bytes) = rest.and_then(|rest| rest.get(..buffer.len())) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn slice_at(&self, range: Range<u64>) -> Option<&[u8]> {
        let (start, end) = (range.start.try_into().ok()?, range.end.try_into().ok()?);
        self.get::<Range<usize>>(start..end)
    }
}

macro_rules! in_memory {
    ($($source:ty),*) => {
        $(
            impl ReadAt for $source {
                fn size(&self) -> io::Result<u64> {
                    <[u8]>::size(self)
                }

                fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
                    <[u8]>::read_exact_at(self, buffer, offset)
                }

                fn slice_at(&self, range: Range<u64>) -> Option<&[u8]> {
                    <[u8]>::slice_at(self, range)
                }
            }
        )*
    };
}

in_memory!(&[u8], Arc<[u8]>, Vec<u8>);
#[cfg(not(target_family = "wasm"))]
in_memory!(MappedFile);
