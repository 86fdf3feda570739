//! Collects content, so that writing and hashing work on large batches.

use std::mem;
use std::sync::Arc;

/// Bytes of a batch: they stay in a processor's second-level cache while they are written and
/// hashed.
const BATCH_BYTES: usize = 512 << 10;

/// Bytes of data, and the ends of entries in them.
#[derive(Debug, Default)]
pub(super) struct WriteBatch {
    pub(super) bytes: Vec<u8>,
    pub(super) ends: Vec<usize>,
}

impl WriteBatch {
    /// Copies as many of these bytes as the batch has room for, and returns their number.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(BATCH_BYTES - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        taken
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() == BATCH_BYTES
    }

    /// The collected bytes, for several readers; the batch is empty afterwards.
    pub(super) fn share(&mut self) -> Arc<Self> {
        Arc::new(mem::take(self))
    }

    /// Reuses the memory of a batch that no other thread reads any more.
    pub(super) fn reuse(&mut self, done: Arc<Self>) {
        if let Ok(done) = Arc::try_unwrap(done)
            && self.bytes.capacity() == 0
        {
            *self = done;
            self.bytes.clear();
            self.ends.clear();
        }
    }
}
