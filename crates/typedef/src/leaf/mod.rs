//! Fields without parts: numbers, truth values, members of enums, text and bytes.

mod bits;
mod json;
mod text;
mod timestamp;

use std::sync::Arc;

use serde_json::Value;

pub(crate) use self::bits::{put_bits, take_bits};
pub(crate) use self::text::PREFIX_BYTES;
use crate::kind::Kind;
use crate::schema::notes::Encoding;

/// One such field.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) kind: Kind,
    /// Whether a float may be infinite or not a number.
    pub(crate) nonfinite: bool,
    /// Of text and bytes.
    pub(crate) encoding: Encoding,
    /// Bytes that text and bytes may have.
    pub(crate) max: Option<u32>,
    /// Of an `Enum`.
    pub(crate) members: Arc<[Value]>,
}

/// What does not fit, in words.
pub(crate) type Fit<T> = Result<T, String>;

impl Leaf {
    /// Bytes it has wherever it stands; none where that depends on the value.
    pub(crate) fn fixed_bytes(&self) -> Option<u64> {
        if let Some(bytes) = self.kind.scalar_bytes() {
            return Some(bytes.into());
        }
        let max = u64::from(self.max.unwrap_or_default());
        match (self.encoding, self.kind) {
            (Encoding::Indirect, _) => Some(16),
            (Encoding::Fixed, Kind::Bytes) => Some(PREFIX_BYTES as u64 + max),
            (Encoding::Fixed, _) => Some(max),
            (Encoding::Prefixed, _) => None,
        }
    }

    /// Natural alignment.
    pub(crate) fn align(&self) -> u32 {
        match (self.kind.scalar_bytes(), self.encoding, self.kind) {
            (Some(bytes), _, _) => bytes.into(),
            (None, Encoding::Indirect, _) => 8,
            (None, Encoding::Fixed, Kind::Bytes) => PREFIX_BYTES as u32,
            _ => 1,
        }
    }
}
