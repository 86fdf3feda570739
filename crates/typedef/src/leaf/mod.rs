//! Fields without parts: numbers, truth values, members of enums, text and bytes.

mod bits;
mod json;
mod text;
mod timestamp;

use std::sync::Arc;

use serde_json::Value;

pub(crate) use self::bits::{put_bits, take_bits};
pub(crate) use self::text::PREFIX_BYTES;
use crate::kind::FieldKind;
use crate::schema::annotations::BytesEncoding;

/// One such field.
#[derive(Clone, Debug)]
pub(crate) struct LeafType {
    pub(crate) kind: FieldKind,
    /// Whether a float may be infinite or not a number.
    pub(crate) nonfinite: bool,
    /// The encoding of text and bytes.
    pub(crate) encoding: BytesEncoding,
    /// The most bytes of text and bytes.
    pub(crate) max: Option<u32>,
    /// The members of an `Enum`.
    pub(crate) members: Arc<[Value]>,
}

/// The fault of a value, in words.
pub(crate) type Fit<T> = Result<T, String>;

impl LeafType {
    /// Its bytes, wherever it occurs; `None` where that depends on the value.
    pub(crate) fn fixed_bytes(&self) -> Option<u64> {
        if let Some(bytes) = self.kind.scalar_bytes() {
            return Some(bytes.into());
        }
        let max = u64::from(self.max.unwrap_or_default());
        match (self.encoding, self.kind) {
            (BytesEncoding::Indirect, _) => Some(16),
            (BytesEncoding::Fixed, FieldKind::Bytes) => Some(PREFIX_BYTES as u64 + max),
            (BytesEncoding::Fixed, _) => Some(max),
            (BytesEncoding::Prefixed, _) => None,
        }
    }

    /// Natural alignment.
    pub(crate) fn align(&self) -> u32 {
        match (self.kind.scalar_bytes(), self.encoding, self.kind) {
            (Some(bytes), _, _) => bytes.into(),
            (None, BytesEncoding::Indirect, _) => 8,
            (None, BytesEncoding::Fixed, FieldKind::Bytes) => PREFIX_BYTES as u32,
            _ => 1,
        }
    }
}
