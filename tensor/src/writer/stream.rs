//! The data stream: writes the data once and computes all of its hashes meanwhile.

use std::io::{self, Read as _, Write};

use blake3::Hash;

use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::writer::batch::WriteBatch;
use crate::writer::content::TensorContent;
use crate::writer::sums::HashPipeline;
use crate::writer::tree::FileHashTree;

/// The stream between the header and the end of the file.
pub(super) struct DataStream<'w, W> {
    sink: &'w mut W,
    /// Bytes that arrived and are not written yet.
    batch: WriteBatch,
    tree: FileHashTree,
    /// The hashes of the data and of its entries, if the file has them.
    sums: Option<HashPipeline>,
    left: u64,
    too_long: bool,
}

/// The hashes that are known once all data was written.
pub(super) struct DataHashes {
    /// The hash of the whole data and of each entry, if the file has them.
    pub(super) hashes: Option<(Hash, Vec<Hash>)>,
    /// The hash tree of the file.
    pub(super) tree: FileHashTree,
}

impl<'w, W: Write> DataStream<'w, W> {
    /// Writes `data_len` bytes after a header of `header_len` bytes, its length prefix included.
    pub(super) fn new(sink: &'w mut W, header_len: u64, data_len: u64, hashed: bool) -> Self {
        Self {
            sink,
            batch: WriteBatch::default(),
            tree: FileHashTree::behind(header_len),
            sums: hashed.then(|| HashPipeline::new(data_len)),
            left: 0,
            too_long: false,
        }
    }

    /// Writes one entry of `len` bytes; zeros if it has no content.
    pub(super) fn entry(
        &mut self,
        name: &str,
        len: u64,
        content: Option<TensorContent<'_>>,
    ) -> Result<()> {
        self.left = len;
        match content {
            None => {
                let zeros = io::copy(&mut io::repeat(0).take(len), self);
                zeros.map_err(|error| TensorError::io("write a pad", error))?;
            }
            Some(content) => {
                let written = content.write(self);
                // The error of the writer only says that the stream ended; this one names the
                // tensor.
                if self.too_long {
                    let what = format!("{}: more than {len} bytes of content", QuotedText(name));
                    return fail(TensorErrorCode::Shape, what);
                }
                written.map_err(|error| error.with_subject(QuotedText(name)))?;
            }
        }
        if self.left > 0 {
            let what = format!(
                "{}: {} bytes of content are missing of {len}",
                QuotedText(name),
                self.left
            );
            return fail(TensorErrorCode::Shape, what);
        }
        self.batch.ends.push(self.batch.bytes.len());
        Ok(())
    }

    pub(super) fn end(mut self) -> Result<DataHashes> {
        let passed = self.pass();
        passed.map_err(|error| TensorError::io("write content", error))?;
        let hashes = self.sums.map(HashPipeline::end).transpose();
        Ok(DataHashes {
            hashes: hashes.map_err(|error| TensorError::io("hash the data", error))?,
            tree: self.tree,
        })
    }

    /// Writes and hashes the collected batch.
    fn pass(&mut self) -> io::Result<()> {
        let batch = self.batch.share();
        // The batch is handed to the hashing thread first, so that it hashes while this thread
        // writes.
        if let Some(sums) = &mut self.sums {
            sums.take(&batch)?;
        }
        self.tree.update(&batch.bytes);
        self.sink.write_all(&batch.bytes)?;
        let hashed = self.sums.as_ref().and_then(HashPipeline::done);
        self.batch.reuse(hashed.unwrap_or(batch));
        Ok(())
    }
}

impl<W: Write> Write for DataStream<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        // Less than the length of a slice, so the cast keeps the value.
        let len = (bytes.len() as u64).min(self.left) as usize;
        if len == 0 {
            self.too_long = true;
            return Err(io::Error::other("more content than its shape says"));
        }
        let taken = self.batch.fill(&bytes[..len]);
        self.left -= taken as u64;
        if self.batch.is_full() {
            self.pass()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
