//! The explicit list of fields that a file carries beside its schema.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind::FieldKind;
use crate::leaf::LeafType;
use crate::limits::SchemaLimits;
use crate::model::{LayoutMode, NodeShape, build};
use crate::offsets::{OffsetEntry, OffsetMap};
use crate::schema::annotations::BytesEncoding;
use crate::schema::{Result, Schema};

/// One field of a record, without parts of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordField {
    /// A JSON pointer (RFC 6901) into the record; empty where the record is the field.
    pub path: String,
    /// Bytes from the beginning of the record.
    pub off: u64,
    /// The kind of the field; for an array, that of each item.
    #[serde(rename = "type")]
    pub kind: FieldKind,
    /// Items of an array; bytes reserved for text and bytes, without the length before these; bytes of a union.
    /// `None` for one number, and for text in another region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub len: Option<u64>,
}

/// The layout of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordLayout {
    /// By offset. They do not overlap.
    pub fields: Vec<RecordField>,
    /// Bytes from one record to the next.
    pub stride: u64,
    /// Alignment of a record, in bytes.
    pub align: u32,
    /// The number of allowed members of each field that is an `Enum`, or a list of one, by its path.
    pub enums: Vec<(String, u32)>,
}

/// The fields of the records that `def` (`#/$defs/X`) of `schema` describes.
///
/// # Errors
/// The schema is refused, has no such definition, or that has no aligned layout.
pub fn fields(schema: &Value, def: &str, limits: &SchemaLimits) -> Result<RecordLayout> {
    Schema::new(schema, limits)?.fields(def)
}

impl Schema {
    /// Like the function [`fields`], for a schema that went through the pass already.
    ///
    /// # Errors
    /// There is no such definition, or it has no aligned layout.
    pub fn fields(&self, def: &str) -> Result<RecordLayout> {
        let ptr = self.pointer(def)?;
        let root = build(self, &ptr, LayoutMode::Aligned)?;
        let map = OffsetMap::new(&root, self.limits().entries)?;
        let (mut fields, mut enums) = (Vec::new(), Vec::new());
        // The parts of a union belong to the union.
        let mut union: Option<String> = None;
        for entry in map.iter() {
            if union
                .as_ref()
                .is_some_and(|union| entry.path().starts_with(union))
            {
                continue;
            }
            if entry.kind() == FieldKind::Union {
                union = Some(format!("{}/", entry.path()));
            }
            if let Some(field) = field(entry) {
                if let Some(members) = members(entry) {
                    enums.push((field.path.clone(), members));
                }
                fields.push(field);
            }
        }
        Ok(RecordLayout {
            fields,
            stride: map.stride(),
            align: map.align(),
            enums,
        })
    }
}

/// `None` where the entry only consists of others, or has no bytes.
fn field(entry: &OffsetEntry) -> Option<RecordField> {
    let (kind, len) = match &entry.node().shape {
        NodeShape::Leaf(leaf) => (leaf.kind, reserved(leaf)),
        NodeShape::Union(_) => (FieldKind::Union, Some(entry.node().extent.size)),
        NodeShape::Array(list) => match &list.item.shape {
            NodeShape::Leaf(leaf) if leaf.kind.scalar_bytes().is_some() => {
                (leaf.kind, entry.items().map(|(count, _)| count))
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(RecordField {
        path: entry.path().to_owned(),
        off: entry.range().start,
        kind,
        len,
    })
}

/// The number of members of an `Enum`. A schema has far fewer values than 32 bits count.
fn members(entry: &OffsetEntry) -> Option<u32> {
    let leaf = match &entry.node().shape {
        NodeShape::Leaf(leaf) => leaf,
        NodeShape::Array(list) => match &list.item.shape {
            NodeShape::Leaf(leaf) => leaf,
            _ => return None,
        },
        _ => return None,
    };
    let members = || u32::try_from(leaf.members.len()).unwrap_or(u32::MAX);
    (leaf.kind == FieldKind::Enum).then(members)
}

fn reserved(leaf: &LeafType) -> Option<u64> {
    let fixed = leaf.kind.is_text() && leaf.encoding == BytesEncoding::Fixed;
    fixed.then(|| leaf.max.unwrap_or_default().into())
}
