//! A tensor of a parsed header, and its kind.

use std::borrow::Cow;

use blake3::Hash;

use crate::header::index::{RawKind, RawTensor, TensorIndex};
use crate::header::meta::HeaderEntry;
use crate::keys::OFFSETS_SUFFIX;
use crate::layout::StructField;

/// A tensor: an entry, and its description in the index.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'m> {
    pub(super) entry: HeaderEntry<'m>,
    pub(super) listed: Option<&'m RawTensor>,
}

impl<'m> Tensor<'m> {
    /// The tensor's name.
    #[must_use]
    pub fn name(&self) -> &'m str {
        self.entry.name()
    }

    /// The tensor's entry; for a blob, the entry of its data.
    #[must_use]
    pub const fn entry(&self) -> HeaderEntry<'m> {
        self.entry
    }

    /// The alignment that the index states.
    #[must_use]
    pub fn align(&self) -> Option<u32> {
        self.listed?.align
    }

    /// BLAKE3 of the entry's bytes, as the index states it.
    #[must_use]
    pub fn hash(&self) -> Option<Hash> {
        self.listed?.hash
    }

    /// How the tensor's bytes are interpreted.
    #[must_use]
    pub fn kind(&self) -> TensorKind<'m> {
        let meta = self.entry.meta;
        let (Some(tensor), Some(index)) = (self.listed, &meta.index) else {
            return TensorKind::Flat;
        };
        match tensor.kind {
            RawKind::Flat => TensorKind::Flat,
            RawKind::Struct { .. } => TensorKind::Struct(StructInfo { index, tensor }),
            RawKind::Blob { enc, shape_of } => {
                let offsets = format!("{}{OFFSETS_SUFFIX}", self.name());
                // Parsing the header refuses a blob without offsets, so this fallback is not
                // reached.
                let Some(offsets) = meta.entry(&offsets) else {
                    return TensorKind::Flat;
                };
                TensorKind::Blob(BlobInfo {
                    enc: enc.text_in(index.text.as_str()),
                    shape_of: shape_of.and_then(|at| meta.entry_at(at)),
                    offsets,
                })
            }
        }
    }
}

/// How a tensor's bytes are interpreted.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum TensorKind<'m> {
    /// Elements of one type.
    Flat,
    /// Records of one size.
    Struct(StructInfo<'m>),
    /// Items of any size.
    Blob(BlobInfo<'m>),
}

impl TensorKind<'_> {
    /// The name in `mt.index`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Struct(_) => "struct",
            Self::Blob(_) => "blob",
        }
    }
}

/// The records of a struct.
#[derive(Clone, Copy, Debug)]
pub struct StructInfo<'m> {
    index: &'m TensorIndex,
    tensor: &'m RawTensor,
}

impl<'m> StructInfo<'m> {
    /// The name of the records' definition in the schema.
    #[must_use]
    pub fn def(&self) -> &'m str {
        // `kind` makes this value only for records, so the other arm is not reached.
        match self.tensor.kind {
            RawKind::Struct { def, .. } => def.text_in(self.index.text.as_str()),
            _ => "",
        }
    }

    /// Bytes from one record to the next.
    #[must_use]
    pub const fn stride(&self) -> u64 {
        match self.tensor.kind {
            RawKind::Struct { stride, .. } => stride,
            _ => 0,
        }
    }

    /// The number of records.
    #[must_use]
    pub const fn count(&self) -> u64 {
        match self.tensor.kind {
            RawKind::Struct { count, .. } => count,
            _ => 0,
        }
    }

    /// The fields as the index lists them.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = StructField<'m>> + use<'m> {
        let (start, len) = match self.tensor.kind {
            RawKind::Struct { fields, .. } => fields,
            _ => (0, 0),
        };
        let (start, len) = (start as usize, len as usize);
        let raw = self
            .index
            .fields
            .get(start..start + len)
            .unwrap_or_default();
        let text = self.index.text.as_str();
        raw.iter().map(|field| StructField {
            path: Cow::Borrowed(field.path.text_in(text)),
            kind: field.kind,
            off: field.off,
            len: field.len,
        })
    }
}

/// The items of a blob.
#[derive(Clone, Copy, Debug)]
pub struct BlobInfo<'m> {
    enc: &'m str,
    shape_of: Option<HeaderEntry<'m>>,
    offsets: HeaderEntry<'m>,
}

impl<'m> BlobInfo<'m> {
    /// The encoding of the items: `utf8`, `bytes`, `json` or a media type.
    #[must_use]
    pub const fn enc(&self) -> &'m str {
        self.enc
    }

    /// The tensor with the shape of each item, if the blob is a ragged array.
    #[must_use]
    pub fn shape_of(&self) -> Option<&'m str> {
        self.shape_of.map(|entry| entry.name())
    }

    /// The entry of the offsets, which has one more than the blob has items.
    #[must_use]
    pub const fn offsets(&self) -> HeaderEntry<'m> {
        self.offsets
    }

    /// The number of items.
    #[must_use]
    pub fn count(&self) -> u64 {
        // Parsing the header refuses a blob without any offset, so this subtraction cannot
        // underflow.
        self.offsets.byte_len() / 8 - 1
    }
}
