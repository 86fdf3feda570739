//! JSON text with a table of the offsets of its values.
//!
//! A tree of [`serde_json::Value`] takes 72 bytes for each value, which may have two in the text (`0,`): 8 MiB became
//! 600. The checks before an operation runs therefore never build a tree. The table has four bytes for each value,
//! twelve for each array and object, and eight for each member of an object large enough for a search list: at most
//! four times the bytes of the text, and twelve.

mod build;
mod digest;
mod node;
mod same;

use std::sync::Arc;

use serde_json::Value;

use crate::error::CallError;
use crate::memory::{InputMemory, InputReservation};

pub(crate) use digest::{Digest, digest};
pub(crate) use node::{TapeJson, TapeNode};

/// Set in the first word of an array or object; the other bits are the offset of its bracket.
const CONTAINER: u32 = 1 << 31;
/// Words of an array or object before its contents: its offset, the index of the word after it, its length.
const HEAD_WORDS: u32 = 3;
/// Members from which on an object has a list of them in the order of [`name_hash`].
const SEARCHED_MEMBERS: u32 = 17;
/// Words of that list for each member: the hash of the name, and the index of the name.
const SEARCH_WORDS: u32 = 2;
/// The limit of nested arrays and objects: that of serde_json.
pub(crate) const NESTING_MAX: usize = 128;
/// Bytes that a tree may always have, whatever its text is: 14,563 values.
pub(crate) const TREE_BYTES_FREE: usize = 2 << 20;
/// The factor of the bytes of its text that a larger tree may have.
pub(crate) const TREE_FACTOR: usize = 4;

/// The table of one text.
#[derive(Debug)]
pub(crate) struct Tape<'t> {
    text: &'t str,
    words: Vec<u32>,
}

/// The contents of a text, counted before the table is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TapeSize {
    /// Values of every kind.
    values: usize,
    /// Words of its table.
    words: usize,
}

impl TapeSize {
    /// Counts a text's values.
    ///
    /// # Errors
    /// `INVALID_INPUT` where the text nests too deep, is too long, or holds a number beyond `f64`.
    pub(crate) fn measure(text: &[u8]) -> Result<Self, CallError> {
        build::count(text)
    }

    /// Bytes of the table.
    pub(crate) fn tape_bytes(self) -> usize {
        self.words.saturating_mul(size_of::<u32>())
    }

    /// Bytes of the tree, without the contents of its strings, which have at most the bytes of the text. Lists grow
    /// by doubling.
    pub(crate) fn tree_bytes(self) -> usize {
        self.values.saturating_mul(2 * size_of::<Value>())
    }
}

impl<'t> Tape<'t> {
    /// Reads `text` by its table, which counts against `memory` meanwhile.
    ///
    /// # Errors
    /// `INVALID_INPUT` where the text does not make a tree; the error of `memory`.
    pub(crate) fn read<T>(
        text: &'t [u8],
        memory: Option<&Arc<dyn InputMemory>>,
        read: impl FnOnce(TapeNode<'_>) -> T,
    ) -> Result<T, CallError> {
        let size = TapeSize::measure(text)?;
        let _taken = InputReservation::new(memory, size.tape_bytes())?;
        Ok(read(Self::new(text, size)?.root()))
    }

    /// The table of a text with a counted `size`.
    ///
    /// # Errors
    /// `INVALID_INPUT` where the text is not UTF-8.
    fn new(text: &'t [u8], size: TapeSize) -> Result<Self, CallError> {
        let text = std::str::from_utf8(text)
            .map_err(|_| CallError::invalid_input("the text is not valid UTF-8"))?;
        let words = build::words(text, size.words);
        Ok(Self { text, words })
    }

    /// The whole value.
    fn root(&self) -> TapeNode<'_> {
        TapeNode::at(self, 0)
    }
}

#[cfg(test)]
mod tests;
