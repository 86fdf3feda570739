//! Content on its way, collected so that writing and hashing get much of it at once.

use std::mem;
use std::sync::Arc;

/// Bytes of a batch: they stay in a processor's second cache while they are written and hashed.
const BATCH_BYTES: usize = 512 << 10;

/// Bytes of data, and where entries end in them.
#[derive(Debug, Default)]
pub(super) struct WriteBatch {
    pub(super) bytes: Vec<u8>,
    pub(super) ends: Vec<usize>,
}

impl WriteBatch {
    /// Takes as many of these bytes as there is room for, and says how many.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(BATCH_BYTES - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        taken
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() == BATCH_BYTES
    }

    /// What was collected, to be looked at by several; empty afterwards.
    pub(super) fn share(&mut self) -> Arc<Self> {
        Arc::new(mem::take(self))
    }

    /// Uses the memory of a batch that no other thread looks at any more.
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
