//! The account that inputs count against while they are kept.

use std::fmt;
use std::sync::Arc;

use crate::error::CallError;

/// Counts the memory of one request's input, and of values made of it, against the shares of its sender and of the
/// node. The counted bytes are free again when the last holder of the value is dropped.
pub trait InputMemory: fmt::Debug + Send + Sync + 'static {
    /// Counts so many bytes more.
    ///
    /// # Errors
    /// `OVERLOADED` where the account has too few bytes now, `PAYLOAD_TOO_LARGE` where it never has enough.
    fn take(&self, bytes: usize) -> Result<(), CallError>;

    /// Counts so many bytes less.
    fn give_back(&self, bytes: usize);
}

/// Bytes that count while this lives.
#[derive(Debug)]
pub(crate) struct InputReservation<'a> {
    memory: Option<&'a dyn InputMemory>,
    bytes: usize,
}

impl<'a> InputReservation<'a> {
    /// Where `memory` is `None`, another bound applies: frames of connections are short.
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
