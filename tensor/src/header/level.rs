//! The checks of a metatensor beyond those of a safetensors file: its index must match its entries.

use std::borrow::Cow;

use blake3::Hash;

use crate::dtype::Dtype;
use crate::error::{QuotedText, Result, TensorErrorCode, fail};
use crate::header::entries::RawEntry;
use crate::header::index::{self, RawKind, RawTensor, TensorIndex};
use crate::header::json::{JsonBounds, MemberWatcher, TextSpan, ValueWalk, VisitorContext};
use crate::header::table::EntryTable;
use crate::keys::{DATA_HASH, INDEX, LEVEL, OFFSETS_SUFFIX, PAD_PREFIX, SCHEMA};
use crate::layout::{StructField, check_fields};
use crate::limits::ContainerLimits;

/// The only level above plain safetensors.
const LEVEL_ONE: &str = "1";
/// Prefix of the annotations that schemas use themselves.
const ANNOTATION_PREFIX: &str = "TypeDef:";

/// The additions of level 1.
#[derive(Debug)]
pub(super) struct Extension {
    pub(super) index: TensorIndex,
    pub(super) data_hash: Option<Hash>,
}

/// Reads the additions of level 1; `None` if the file is plain safetensors.
pub(super) fn read(
    table: &EntryTable<'_>,
    metadata: &[(TextSpan, TextSpan)],
    limits: &ContainerLimits,
) -> Result<Option<Extension>> {
    let value = |wanted: &str| {
        let pair = metadata
            .iter()
            .find(|(key, _)| key.text_in(table.text) == wanted);
        pair.map(|(_, value)| value.text_in(table.text))
    };
    let Some(level) = value(LEVEL) else {
        return Ok(None);
    };
    // A later level may change the meaning of entries, so a reader of level 1 must not guess.
    if level != LEVEL_ONE {
        let what = format!("{LEVEL} is {}, this reads level 1", QuotedText(level));
        return fail(TensorErrorCode::Version, what);
    }
    // The level promises an index, without which the tensors have no kinds.
    let Some(text) = value(INDEX) else {
        return fail(TensorErrorCode::Schema, format!("{LEVEL} without {INDEX}"));
    };
    let index = index::read(text, table, limits)?;
    let check = IndexCheck {
        table,
        index: &index,
        limits,
    };
    check.tensors()?;
    check.entries()?;
    check.order()?;
    if let Some((start, len)) = index.root {
        let root = text.get(start as usize..(start + len) as usize);
        let is_tensor = |name: &str| table.find(name).is_some_and(|at| check.is_tensor(at));
        index::check_root(root.unwrap_or_default(), limits, is_tensor)?;
    }
    if let Some(schema) = value(SCHEMA) {
        check_schema(schema, limits)?;
    }
    let data_hash = value(DATA_HASH).map(|text| index::hash(text, TensorErrorCode::Header));
    let data_hash = data_hash
        .transpose()
        .map_err(|error| error.with_subject(DATA_HASH))?;
    Ok(Some(Extension { index, data_hash }))
}

struct IndexCheck<'a> {
    table: &'a EntryTable<'a>,
    index: &'a TensorIndex,
    limits: &'a ContainerLimits,
}

impl IndexCheck<'_> {
    /// Whether the entry is a tensor, rather than the offsets of one.
    fn is_tensor(&self, entry: u32) -> bool {
        let name = self.table.name(entry);
        self.index.tensor_at(entry).is_some() && !name.ends_with(OFFSETS_SUFFIX)
    }

    fn tensors(&self) -> Result<()> {
        for tensor in &self.index.tensors {
            let name = self.table.name(tensor.entry);
            // A pad holds no values that the index could describe.
            if name.starts_with(PAD_PREFIX) {
                let what = format!("{INDEX}: {} is a pad", QuotedText(name));
                return fail(TensorErrorCode::Schema, what);
            }
            if name.ends_with(OFFSETS_SUFFIX) && !matches!(tensor.kind, RawKind::Flat) {
                let what = format!("{INDEX}: {} can only be flat", QuotedText(name));
                return fail(TensorErrorCode::Schema, what);
            }
            match tensor.kind {
                RawKind::Flat => {}
                RawKind::Struct {
                    stride,
                    count,
                    fields,
                    ..
                } => self.records(name, tensor, [count, stride], fields)?,
                RawKind::Blob { shape_of, .. } => self.blob(name, tensor, shape_of)?,
            }
        }
        Ok(())
    }

    fn entry(&self, at: u32) -> Option<(&RawEntry, &[u64])> {
        let entry = self.table.entries.get(at as usize)?;
        Some((entry, self.table.shape(entry)))
    }

    fn records(
        &self,
        name: &str,
        tensor: &RawTensor,
        [count, stride]: [u64; 2],
        (start, len): (u32, u32),
    ) -> Result<()> {
        let label = QuotedText(name);
        if stride == 0 {
            return fail(
                TensorErrorCode::Layout,
                format!("struct {label}: records of 0 bytes"),
            );
        }
        if count.checked_mul(stride).is_none() {
            let what = format!("struct {label}: {count} records of {stride} bytes");
            return fail(TensorErrorCode::Overflow, what);
        }
        match self.entry(tensor.entry) {
            Some((entry, shape)) if entry.dtype == Some(Dtype::U8) && shape == [count, stride] => {}
            _ => {
                let what = format!("struct {label}: its entry is not U8 of [{count}, {stride}]");
                return fail(TensorErrorCode::Layout, what);
            }
        }
        let (start, len) = (start as usize, len as usize);
        let raw = self.index.fields.get(start..start + len);
        let text = self.index.text.as_str();
        let fields: Vec<StructField<'_>> = raw
            .unwrap_or_default()
            .iter()
            .map(|field| StructField {
                path: Cow::Borrowed(field.path.text_in(text)),
                kind: field.kind,
                off: field.off,
                len: field.len,
            })
            .collect();
        check_fields(name, stride, &fields)
    }

    fn blob(&self, name: &str, tensor: &RawTensor, shape_of: Option<u32>) -> Result<()> {
        let label = QuotedText(name);
        match self.entry(tensor.entry) {
            Some((entry, [_])) if entry.dtype == Some(Dtype::U8) => {}
            _ => {
                let what = format!("blob {label}: its entry is not U8 of one dimension");
                return fail(TensorErrorCode::Layout, what);
            }
        }
        let offsets = self.table.find(&format!("{name}{OFFSETS_SUFFIX}"));
        // The offsets have the begin of each item and the end of the last one, so a blob without
        // items has one offset.
        let ends = match offsets.and_then(|at| self.entry(at)) {
            Some((entry, &[ends])) if entry.dtype == Some(Dtype::U64) && ends > 0 => ends,
            Some(_) => {
                let what = format!("blob {label}: its offsets are not U64 of [items + 1]");
                return fail(TensorErrorCode::Layout, what);
            }
            None => return fail(TensorErrorCode::Layout, format!("blob {label}: no offsets")),
        };
        if ends - 1 > self.limits.blob_items {
            let what = format!("blob {label}: {} items", ends - 1);
            return fail(TensorErrorCode::Limit, what);
        }
        match shape_of {
            // The index can only name entries that exist, but an entry may be a pad or the offsets
            // of a blob.
            Some(other) if !self.is_tensor(other) => {
                let other = QuotedText(self.table.name(other));
                let what = format!("blob {label}: shape_of {other}, which is no tensor");
                fail(TensorErrorCode::Schema, what)
            }
            _ => Ok(()),
        }
    }

    /// Checks that every entry is a tensor, the offsets of a blob, or padding.
    fn entries(&self) -> Result<()> {
        for (at, entry) in self.table.entries.iter().enumerate() {
            // At most a million entries, so the cast keeps the value.
            let at = at as u32;
            let name = entry.name.text_in(self.table.text);
            if name.starts_with(PAD_PREFIX) {
                let shape = self.table.shape(entry);
                if entry.dtype != Some(Dtype::U8) || shape.len() != 1 {
                    let what = format!("pad {}: not U8 of one dimension", QuotedText(name));
                    return fail(TensorErrorCode::Layout, what);
                }
                continue;
            }
            if let Some(blob) = name.strip_suffix(OFFSETS_SUFFIX) {
                let blob = self
                    .table
                    .find(blob)
                    .and_then(|at| self.index.tensor_at(at));
                if !blob.is_some_and(|blob| matches!(blob.kind, RawKind::Blob { .. })) {
                    let what = format!("entry {}: offsets without a blob", QuotedText(name));
                    return fail(TensorErrorCode::Layout, what);
                }
                continue;
            }
            if self.index.tensor_at(at).is_none() {
                let what = format!("entry {} is not in {INDEX}", QuotedText(name));
                return fail(TensorErrorCode::Layout, what);
            }
        }
        Ok(())
    }

    /// Checks that the order names every tensor once.
    fn order(&self) -> Result<()> {
        // One flag for each entry finds a repeated name without a search.
        let mut seen = vec![false; self.table.entries.len()];
        for at in &self.index.order {
            let name = QuotedText(self.table.name(*at));
            if !self.is_tensor(*at) {
                return fail(
                    TensorErrorCode::Schema,
                    format!("{INDEX}: order names {name}, no tensor"),
                );
            }
            if std::mem::replace(&mut seen[*at as usize], true) {
                return fail(
                    TensorErrorCode::Schema,
                    format!("{INDEX}: order names {name} twice"),
                );
            }
        }
        let forgotten = self.index.tensors.iter().map(|tensor| tensor.entry);
        let mut forgotten = forgotten.filter(|at| self.is_tensor(*at) && !seen[*at as usize]);
        match forgotten.next() {
            None => Ok(()),
            Some(at) => {
                let name = QuotedText(self.table.name(at));
                fail(
                    TensorErrorCode::Schema,
                    format!("{INDEX}: order forgets {name}"),
                )
            }
        }
    }
}

/// Checks that a schema is within the limits, has no duplicate keys, and is little-endian.
fn check_schema(schema: &str, limits: &ContainerLimits) -> Result<()> {
    let context = VisitorContext::new(SCHEMA, TensorErrorCode::Schema);
    let bounds = JsonBounds::new(limits.schema_depth, limits.schema_nodes);
    context.read(
        schema,
        ValueWalk {
            context: &context,
            bounds: &bounds,
            watch: &LittleEndian,
            // The schema is a document of its own, so its depth begins at zero.
            depth: 0,
            parent: "",
            key: "",
        },
    )
}

struct LittleEndian;

impl MemberWatcher for LittleEndian {
    fn text(&self, parent: &str, key: &str, text: &str) -> Result<()> {
        if parent.starts_with(ANNOTATION_PREFIX) && key == "endian" && text != "little" {
            let what = format!(
                "{SCHEMA}: {}: endian {}, a container is little-endian",
                QuotedText(parent),
                QuotedText(text)
            );
            return fail(TensorErrorCode::Schema, what);
        }
        Ok(())
    }
}
