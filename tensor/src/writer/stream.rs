//! The data on its way: hashed as often as it has to be while it passes once.

use std::io::{self, Read as _, Write};

use blake3::Hash;

use crate::error::{Code, Quoted, Result, TensorError, fail};
use crate::writer::content::Content;
use crate::writer::sums::Sums;
use crate::writer::tree::Tree;

/// Bytes that pass at once, so that every hash finds them in the cache.
const PIECE_BYTES: usize = 128 << 10;

/// What is written between header and end.
pub(super) struct Stream<'w, W> {
    sink: &'w mut W,
    tree: Tree,
    /// Of the data and of its entries, where they are wanted.
    sums: Option<Sums>,
    left: u64,
    too_long: bool,
}

/// What is known once the data has passed.
pub(super) struct Passed {
    /// Of the whole data and of each entry, where they were wanted.
    pub(super) hashes: Option<(Hash, Vec<Hash>)>,
    /// The tree of the file.
    pub(super) tree: Tree,
}

impl<'w, W: Write> Stream<'w, W> {
    /// So many bytes of data behind a header of so many bytes, the length counted.
    pub(super) fn new(sink: &'w mut W, header_len: u64, data_len: u64, hashed: bool) -> Self {
        Self {
            sink,
            tree: Tree::behind(header_len),
            sums: hashed.then(|| Sums::new(data_len)),
            left: 0,
            too_long: false,
        }
    }

    /// Writes one entry of `len` bytes; zeros where there is no content.
    pub(super) fn entry(
        &mut self,
        name: &str,
        len: u64,
        content: Option<Content<'_>>,
    ) -> Result<()> {
        self.left = len;
        match content {
            None => {
                let zeros = io::copy(&mut io::repeat(0).take(len), self);
                zeros.map_err(|error| TensorError::io("write a pad", error))?;
            }
            Some(content) => {
                // Some content comes in small pieces.
                let mut buffered = io::BufWriter::with_capacity(PIECE_BYTES, &mut *self);
                let written = content.write(&mut buffered).and_then(|()| {
                    let flushed = buffered.flush();
                    flushed.map_err(|error| TensorError::io("write content", error))
                });
                // Whatever is left in the buffer after an error is not to be written.
                let _ = buffered.into_parts();
                if self.too_long {
                    let what = format!("{}: more than {len} bytes of content", Quoted(name));
                    return fail(Code::Shape, what);
                }
                written.map_err(|error| error.of(Quoted(name)))?;
            }
        }
        if self.left > 0 {
            let what = format!(
                "{}: {} bytes of content are missing of {len}",
                Quoted(name),
                self.left
            );
            return fail(Code::Shape, what);
        }
        if let Some(sums) = &mut self.sums {
            sums.end_entry();
        }
        Ok(())
    }

    pub(super) fn end(self) -> Result<Passed> {
        let hashes = self.sums.map(Sums::end).transpose();
        Ok(Passed {
            hashes: hashes.map_err(|error| TensorError::io("hash the data", error))?,
            tree: self.tree,
        })
    }
}

impl<W: Write> Write for Stream<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        // Less than the length of a slice.
        let len = (bytes.len().min(PIECE_BYTES) as u64).min(self.left) as usize;
        if len == 0 {
            self.too_long = true;
            return Err(io::Error::other("more content than its shape says"));
        }
        let piece = &bytes[..len];
        // First, so that another thread may hash while this one writes.
        if let Some(sums) = &mut self.sums {
            sums.update(piece)?;
        }
        self.tree.update(piece);
        self.sink.write_all(piece)?;
        self.left -= len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
