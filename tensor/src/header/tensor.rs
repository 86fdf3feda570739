//! A tensor of a header that was read, and how it is to be read.

use std::borrow::Cow;

use blake3::Hash;

use crate::header::index::{Index, RawKind, RawTensor};
use crate::header::meta::Entry;
use crate::keys::OFFSETS_SUFFIX;
use crate::layout::Field;

/// A tensor: an entry, and what the index says about it.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'m> {
    pub(super) entry: Entry<'m>,
    pub(super) listed: Option<&'m RawTensor>,
}

impl<'m> Tensor<'m> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'m str {
        self.entry.name()
    }

    /// Its entry; a blob's data.
    #[must_use]
    pub const fn entry(&self) -> Entry<'m> {
        self.entry
    }

    /// The alignment that the index promises.
    #[must_use]
    pub fn align(&self) -> Option<u32> {
        self.listed?.align
    }

    /// BLAKE3 of the entry's bytes, as the index says.
    #[must_use]
    pub fn hash(&self) -> Option<Hash> {
        self.listed?.hash
    }

    /// How it is to be read.
    #[must_use]
    pub fn kind(&self) -> Kind<'m> {
        let meta = self.entry.meta;
        let (Some(tensor), Some(index)) = (self.listed, &meta.index) else {
            return Kind::Flat;
        };
        match tensor.kind {
            RawKind::Flat => Kind::Flat,
            RawKind::Struct { .. } => Kind::Struct(Struct { index, tensor }),
            RawKind::Blob { enc, shape_of } => {
                let offsets = format!("{}{OFFSETS_SUFFIX}", self.name());
                // The header was refused if it were not there.
                let Some(offsets) = meta.entry(&offsets) else {
                    return Kind::Flat;
                };
                Kind::Blob(Blob {
                    enc: enc.of(index.text.as_str()),
                    shape_of: shape_of.and_then(|at| meta.entry_at(at)),
                    offsets,
                })
            }
        }
    }
}

/// How a tensor is to be read.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Kind<'m> {
    /// Elements of one type.
    Flat,
    /// Records of one size.
    Struct(Struct<'m>),
    /// Items of any size.
    Blob(Blob<'m>),
}

impl Kind<'_> {
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
pub struct Struct<'m> {
    index: &'m Index,
    tensor: &'m RawTensor,
}

impl<'m> Struct<'m> {
    /// Which definition of the schema the records are.
    #[must_use]
    pub fn def(&self) -> &'m str {
        match self.tensor.kind {
            RawKind::Struct { def, .. } => def.of(self.index.text.as_str()),
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

    /// How many records there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        match self.tensor.kind {
            RawKind::Struct { count, .. } => count,
            _ => 0,
        }
    }

    /// The fields as the index lists them.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = Field<'m>> + use<'m> {
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
        raw.iter().map(|field| Field {
            path: Cow::Borrowed(field.path.of(text)),
            kind: field.kind,
            off: field.off,
            len: field.len,
        })
    }
}

/// The items of a blob.
#[derive(Clone, Copy, Debug)]
pub struct Blob<'m> {
    enc: &'m str,
    shape_of: Option<Entry<'m>>,
    offsets: Entry<'m>,
}

impl<'m> Blob<'m> {
    /// What the items are: `utf8`, `bytes`, `json` or a media type.
    #[must_use]
    pub const fn enc(&self) -> &'m str {
        self.enc
    }

    /// The tensor that has the shape of each item of a ragged array.
    #[must_use]
    pub fn shape_of(&self) -> Option<&'m str> {
        self.shape_of.map(|entry| entry.name())
    }

    /// The entry of the offsets: one more than there are items.
    #[must_use]
    pub const fn offsets(&self) -> Entry<'m> {
        self.offsets
    }

    /// How many items there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.offsets.byte_len() / 8 - 1
    }
}
