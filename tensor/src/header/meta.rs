//! A parsed header, and its accessors.

use std::ops::Range;

use blake3::Hash;

use crate::dtype::ElementType;
use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::header::PREFIX_BYTES;
use crate::header::entries::RawEntry;
use crate::header::index::TensorIndex;
use crate::header::json::TextSpan;
use crate::header::table;
use crate::header::tensor::{Tensor, TensorKind};
use crate::keys::{INDEX, OFFSETS_SUFFIX, PAD_PREFIX, SCHEMA};
use crate::layout::{LayoutOracle, StructField};

/// The description of a file, without its data.
#[derive(Debug)]
pub struct Meta {
    pub(super) header_len: u64,
    pub(super) data_len: u64,
    pub(super) text: Box<str>,
    pub(super) entries: Box<[RawEntry]>,
    pub(super) dims: Box<[u64]>,
    pub(super) by_name: table::EntryNames,
    pub(super) metadata: Option<Box<[(TextSpan, TextSpan)]>>,
    pub(super) index: Option<TensorIndex>,
    pub(super) data_hash: Option<Hash>,
}

impl Meta {
    /// 1 for a metatensor, 0 for any other safetensors file.
    #[must_use]
    pub const fn level(&self) -> u32 {
        self.index.is_some() as u32
    }

    /// Bytes of the header without its length prefix.
    #[must_use]
    pub const fn header_len(&self) -> u64 {
        self.header_len
    }

    /// Where the data begins in the file.
    #[must_use]
    pub const fn data_start(&self) -> u64 {
        PREFIX_BYTES + self.header_len
    }

    /// Bytes of the data.
    #[must_use]
    pub const fn data_len(&self) -> u64 {
        self.data_len
    }

    /// Bytes of the file.
    #[must_use]
    pub const fn file_len(&self) -> u64 {
        self.data_start() + self.data_len
    }

    /// Every entry in the order of its bytes, padding and offsets included.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = HeaderEntry<'_>> {
        self.entries
            .iter()
            .map(|raw| HeaderEntry { meta: self, raw })
    }

    /// The entry with this name, whether it is a tensor or not.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<HeaderEntry<'_>> {
        let at = self.find(name)?;
        self.entry_at(at)
    }

    /// The tensors in the order in which a reader should load them.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        let ordered = self.index.as_ref().map(|index| index.order.iter().copied());
        // At most a million entries, so the cast keeps the value.
        let plain = match self.index {
            None => 0..self.entries.len() as u32,
            Some(_) => 0..0,
        };
        let places = ordered.into_iter().flatten().chain(plain);
        places.filter_map(|at| self.tensor_at(at))
    }

    /// The tensor with this name.
    ///
    /// # Errors
    /// `E_NOTFOUND` if no tensor has the name. Padding and the offsets of blobs are no tensors.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let found = self.find(name).and_then(|at| self.tensor_at(at));
        found.ok_or_else(|| {
            TensorError::new(
                TensorErrorCode::NotFound,
                format!("no tensor {}", QuotedText(name)),
            )
        })
    }

    /// The metadata as the file has them, in the file's order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.metadata.iter().flatten();
        pairs.map(|(key, value)| (key.text_in(&self.text), value.text_in(&self.text)))
    }

    /// Whether the header has metadata, which may be empty.
    #[must_use]
    pub const fn has_metadata(&self) -> bool {
        self.metadata.is_some()
    }

    /// The value of the metadata under this key.
    #[must_use]
    pub fn metadata_value(&self, key: &str) -> Option<&str> {
        let mut pairs = self.metadata();
        pairs.find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// BLAKE3 of the data, as the header states it.
    #[must_use]
    pub const fn data_hash(&self) -> Option<Hash> {
        self.data_hash
    }

    /// The schema of the records, a JSON Schema's text.
    #[must_use]
    pub fn schema(&self) -> Option<&str> {
        self.index.as_ref()?;
        self.metadata_value(SCHEMA)
    }

    /// The nested view: JSON objects whose leaves are `"#NAME"`.
    #[must_use]
    pub fn root(&self) -> Option<&str> {
        let (start, len) = self.index.as_ref()?.root?;
        let text = self.metadata_value(INDEX)?;
        text.get(start as usize..(start + len) as usize)
    }

    /// Compares the fields of every struct with the layout of its schema.
    ///
    /// # Errors
    /// `E_SCHEMA` if the schema or a definition has no layout; `E_LAYOUT` if the file states
    /// another one.
    pub fn check_layouts(&self, oracle: &dyn LayoutOracle) -> Result<()> {
        let Some(schema) = self.schema() else {
            return Ok(());
        };
        for tensor in self.tensors() {
            let TensorKind::Struct(records) = tensor.kind() else {
                continue;
            };
            let name = QuotedText(tensor.name());
            let layout = oracle.layout(schema, records.def()).map_err(|why| {
                let def = QuotedText(records.def());
                TensorError::new(
                    TensorErrorCode::Schema,
                    format!("struct {name}: {def}: {why}"),
                )
            })?;
            if layout.stride != records.stride() {
                let what = format!(
                    "struct {name}: records of {} bytes, by its schema {}",
                    records.stride(),
                    layout.stride
                );
                return fail(TensorErrorCode::Layout, what);
            }
            let mut ours: Vec<StructField<'_>> = records.fields().collect();
            let mut theirs = layout.fields;
            // The index may list fields in any order, so both lists are sorted before the
            // comparison.
            ours.sort_by(|a, b| a.path.cmp(&b.path));
            theirs.sort_by(|a, b| a.path.cmp(&b.path));
            let differ = ours
                .iter()
                .zip(&theirs)
                .find(|(ours, theirs)| ours != theirs);
            if let Some((ours, theirs)) = differ {
                let what =
                    format!("struct {name}: {ours:?} by the index, {theirs:?} by its schema");
                return fail(TensorErrorCode::Layout, what);
            }
            // `zip` ends with the shorter list, so the lengths are compared as well.
            if ours.len() != theirs.len() {
                let what = format!(
                    "struct {name}: {} fields by the index, {} by its schema",
                    ours.len(),
                    theirs.len()
                );
                return fail(TensorErrorCode::Layout, what);
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<u32> {
        self.by_name.find(&self.entries, &self.text, name)
    }

    pub(super) fn entry_at(&self, at: u32) -> Option<HeaderEntry<'_>> {
        let raw = self.entries.get(at as usize)?;
        Some(HeaderEntry { meta: self, raw })
    }

    fn tensor_at(&self, at: u32) -> Option<Tensor<'_>> {
        let entry = self.entry_at(at)?;
        let listed = match &self.index {
            None => None,
            // The offsets are a part of their blob.
            Some(_) if entry.name().ends_with(OFFSETS_SUFFIX) => return None,
            Some(index) => Some(index.tensor_at(at)?),
        };
        Some(Tensor { entry, listed })
    }

    /// The hash that the index states for an entry, whether it is a tensor or the offsets of one.
    #[must_use]
    pub fn entry_hash(&self, name: &str) -> Option<Hash> {
        let index = self.index.as_ref()?;
        index.tensor_at(self.find(name)?)?.hash
    }

    /// The alignment that the index states for an entry.
    pub(crate) fn align_of(&self, name: &str) -> Option<u32> {
        let index = self.index.as_ref()?;
        index.tensor_at(self.find(name)?)?.align
    }
}

/// One entry of the header.
#[derive(Clone, Copy, Debug)]
pub struct HeaderEntry<'m> {
    pub(super) meta: &'m Meta,
    raw: &'m RawEntry,
}

impl<'m> HeaderEntry<'m> {
    /// The entry's name.
    #[must_use]
    pub fn name(&self) -> &'m str {
        self.raw.name.text_in(&self.meta.text)
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> ElementType<'m> {
        match self.raw.dtype {
            Some(dtype) => ElementType::Known(dtype),
            None => ElementType::Opaque(self.raw.opaque.text_in(&self.meta.text)),
        }
    }

    /// The dimensions; an empty slice for a single element.
    #[must_use]
    pub fn shape(&self) -> &'m [u64] {
        table::shape(&self.meta.dims, self.raw)
    }

    /// The range of its bytes in the data.
    #[must_use]
    pub const fn range(&self) -> Range<u64> {
        self.raw.start..self.raw.end
    }

    /// The range of its bytes in the file.
    #[must_use]
    pub const fn file_range(&self) -> Range<u64> {
        let start = self.meta.data_start();
        start + self.raw.start..start + self.raw.end
    }

    /// The number of its bytes.
    #[must_use]
    pub const fn byte_len(&self) -> u64 {
        self.raw.end - self.raw.start
    }

    /// The range of these rows within the entry.
    ///
    /// # Errors
    /// `E_SHAPE` if the entry has no such rows; `E_DTYPE` if they are no whole bytes.
    pub fn row_range(&self, rows: Range<u64>) -> Result<Range<u64>> {
        let range = crate::view::row_bytes(self.dtype(), self.shape(), &rows);
        range.map_err(|error| error.with_subject(format_args!("entry {}", QuotedText(self.name()))))
    }

    /// Whether it is padding, which only files of level 1 have.
    #[must_use]
    pub fn is_pad(&self) -> bool {
        self.meta.index.is_some() && self.name().starts_with(PAD_PREFIX)
    }
}
