//! Values one after the other without a gap, for the wire.
//!
//! | what | bytes |
//! |---|---|
//! | number, truth value, `Enum` | its own |
//! | text and bytes, length-prefixed | `u32` length, content |
//! | text, fixed | `maxBytes`, zero after the content |
//! | `Bytes`, fixed | `u32` length, `maxBytes`, zero after the content |
//! | text and bytes, indirect | `u64` offset, `u64` length |
//! | `Struct` | its fields |
//! | `Union` | tag, variant |
//! | `Array` | `u32` count where it is not fixed, items |
//! | `Record` | `u32` count; each name as length-prefixed text, then its value |
//! | `Tensor` | nothing |

mod read;
mod write;

use std::sync::Arc;

use crate::error::TypedefError;
use crate::limits::SchemaLimits;
use crate::model::LayoutNode;
use crate::schema::Result;
use crate::value::RecordValue;

/// Reads and writes packed values of one schema.
#[derive(Clone, Debug)]
pub struct PackedCodec {
    root: Arc<LayoutNode>,
    limits: SchemaLimits,
}

impl PackedCodec {
    pub(crate) fn new(root: Arc<LayoutNode>, limits: SchemaLimits) -> Self {
        Self { root, limits }
    }

    /// Reads one value from the beginning of `bytes`, and returns how many bytes it has.
    ///
    /// # Errors
    /// The bytes end too early or break the schema ([`TypedefError::Access`] with the field), or the value is larger
    /// than the limits ([`TypedefError::Limit`]). The reader allocates nothing for a length before it has seen that
    /// the bytes are there.
    pub fn read_first(&self, bytes: &[u8]) -> Result<(RecordValue, usize)> {
        read::read(&self.root, bytes, &self.limits)
    }

    /// Reads a value that takes up all of `bytes`.
    ///
    /// # Errors
    /// The errors of [`read_first`](Self::read_first), and where bytes are left.
    pub fn read(&self, bytes: &[u8]) -> Result<RecordValue> {
        let (value, used) = self.read_first(bytes)?;
        if used < bytes.len() {
            let left = bytes.len() - used;
            return Err(TypedefError::access("", format!("{left} bytes follow it")));
        }
        Ok(value)
    }

    /// Appends a value to `out`.
    ///
    /// # Errors
    /// The value breaks the schema or the limits. `out` then stays as it was.
    pub fn write(&self, value: &RecordValue, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        let written = write::write(&self.root, value, out, &self.limits);
        if written.is_err() {
            out.truncate(start);
        }
        written
    }
}

#[cfg(test)]
mod tests;
