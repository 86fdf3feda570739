//! The data on its way: hashed as often as it has to be while it passes once.

use std::io::{self, Read as _, Write};

use blake3::{Hash, Hasher};

use crate::error::{Code, Quoted, Result, TensorError, fail};
use crate::writer::content::Content;
use crate::writer::tree::Tree;

/// Bytes that pass at once, so that every hash finds them in the cache.
const PIECE_BYTES: usize = 128 << 10;

/// What is written between header and end.
pub(super) struct Stream<'w, W> {
    sink: &'w mut W,
    tree: Tree,
    /// Of the whole data, where it is wanted.
    data: Option<Hasher>,
    /// Of the entry that is written.
    entry: Hasher,
    left: u64,
    too_long: bool,
}

impl<'w, W: Write> Stream<'w, W> {
    /// Data behind a header of so many bytes, the length counted.
    pub(super) fn new(sink: &'w mut W, header_len: u64, hashed: bool) -> Self {
        Self {
            sink,
            tree: Tree::behind(header_len),
            data: hashed.then(Hasher::new),
            entry: Hasher::new(),
            left: 0,
            too_long: false,
        }
    }

    /// Writes one entry of `len` bytes; zeros where there is no content. Its hash, where hashes are
    /// wanted.
    pub(super) fn entry(
        &mut self,
        name: &str,
        len: u64,
        content: Option<Content<'_>>,
    ) -> Result<Option<Hash>> {
        self.left = len;
        self.entry.reset();
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
        Ok(self.data.is_some().then(|| self.entry.finalize()))
    }

    /// The hash of all data, where it was wanted, and the tree of the file.
    pub(super) fn end(self) -> (Option<Hash>, Tree) {
        (self.data.map(|data| data.finalize()), self.tree)
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
        self.sink.write_all(piece)?;
        self.tree.update(piece);
        if let Some(data) = &mut self.data {
            data.update(piece);
            self.entry.update(piece);
        }
        self.left -= len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
