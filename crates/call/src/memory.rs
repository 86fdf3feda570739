//! What inputs count against while they are kept.

use std::fmt;
use std::sync::Arc;

use crate::error::CallError;

/// Counts the memory of one request's input, and of what is made of it, against what its sender and the node
/// have. What was counted is given back when the last holder of it is dropped.
pub trait InputMemory: fmt::Debug + Send + Sync + 'static {
    /// Counts so many bytes more.
    ///
    /// # Errors
    /// `OVERLOADED` where there are not as many now, `PAYLOAD_TOO_LARGE` where there never are.
    fn take(&self, bytes: usize) -> Result<(), CallError>;

    /// Counts so many bytes less.
    fn give_back(&self, bytes: usize);
}

/// Bytes that are counted as long as this lives.
#[derive(Debug)]
pub(crate) struct InputReservation<'a> {
    memory: Option<&'a dyn InputMemory>,
    bytes: usize,
}

impl<'a> InputReservation<'a> {
    /// Where `memory` is `None` something else bounds them: frames of connections are short.
    pub(crate) fn new(
        memory: Option<&'a Arc<dyn InputMemory>>,
        bytes: usize,
    ) -> Result<Self, CallError> {
        let memory = memory.map(|memory| &**memory);
        if let Some(memory) = memory {
            memory.take(bytes)?;
        }
        Ok(Self { memory, bytes })
    }
}

impl Drop for InputReservation<'_> {
    fn drop(&mut self) {
        if let Some(memory) = self.memory {
            memory.give_back(self.bytes);
        }
    }
}
