//! JSON to values.

use serde_json::{Map, Value};

use crate::access::{check_item_count, variant};
use crate::budget::DecodeBudget;
use crate::error::TypedefError;
use crate::leaf::LeafType;
use crate::limits::SchemaLimits;
use crate::model::{LayoutNode, NodeShape, StructMember, UnionLayout};
use crate::schema::Result;
use crate::schema::annotations::BytesEncoding;
use crate::value::RecordValue;

/// The value that `value` means. The content of `indirect` fields is appended to `region`.
pub(crate) fn from_json(
    root: &LayoutNode,
    value: &Value,
    region: &mut Vec<u8>,
    limits: &SchemaLimits,
) -> Result<RecordValue> {
    let start = region.len();
    let mut from = JsonDecoder {
        region,
        budget: DecodeBudget::new(limits),
    };
    let read = from.node(root, value, None);
    if read.is_err() {
        // A failed read must leave no content in the region.
        region.truncate(start);
    }
    read
}

struct JsonDecoder<'r> {
    region: &'r mut Vec<u8>,
    budget: DecodeBudget,
}

impl JsonDecoder<'_> {
    /// `tag` is the member of a struct that named it as a variant.
    fn node(&mut self, node: &LayoutNode, value: &Value, tag: Option<&str>) -> Result<RecordValue> {
        self.budget.down()?;
        let value = self.inside(node, value, tag);
        self.budget.up();
        value
    }

    fn inside(
        &mut self,
        node: &LayoutNode,
        value: &Value,
        tag: Option<&str>,
    ) -> Result<RecordValue> {
        match &node.shape {
            NodeShape::Array(list) => {
                let items = value
                    .as_array()
                    .ok_or_else(|| decode_error("it is no array"))?;
                check_item_count(list.count, items.len())?;
                let item = |(i, item): (usize, &Value)| {
                    let item = self.node(&list.item, item, None);
                    item.map_err(|error| error.under(&i.to_string()))
                };
                let items: Result<_> = items.iter().enumerate().map(item).collect();
                items.map(RecordValue::Array)
            }
            NodeShape::Leaf(leaf) => self.leaf(leaf, value),
            NodeShape::Record(each) => {
                let each = |(name, value): (&String, &Value)| {
                    let value = self.node(each, value, None);
                    let value = value.map_err(|error| error.under(name))?;
                    Ok((name.clone(), value))
                };
                let values: Result<_> = object(value)?.iter().map(each).collect();
                values.map(RecordValue::Record)
            }
            NodeShape::Struct(members) => self.members(members, object(value)?, tag),
            NodeShape::Tensor(_) => Ok(RecordValue::Tensor),
            NodeShape::Union(union) => self.union(union, object(value)?),
        }
    }

    fn leaf(&mut self, leaf: &LeafType, value: &Value) -> Result<RecordValue> {
        let value = leaf.of_json(value).map_err(decode_error)?;
        if !leaf.kind.is_text() || leaf.encoding != BytesEncoding::Indirect {
            return Ok(value);
        }
        let content = leaf.content(&value).map_err(decode_error)?;
        let off = self.region.len() as u64;
        self.region.extend_from_slice(content);
        Ok(RecordValue::Indirect {
            off,
            len: content.len() as u64,
        })
    }

    fn members(
        &mut self,
        members: &[StructMember],
        object: &Map<String, Value>,
        tag: Option<&str>,
    ) -> Result<RecordValue> {
        let mut values = Vec::with_capacity(members.len());
        for StructMember { name, node, .. } in members {
            let value = object
                .get(name)
                .ok_or_else(|| decode_error(format!("it lacks '{name}'")))?;
            let value = self.node(node, value, None);
            values.push((name.clone(), value.map_err(|error| error.under(name))?));
        }
        // Names occur once each, so a larger object has one that the struct lacks.
        if object.len() > members.len() + usize::from(tag.is_some()) {
            return Err(decode_error("it has a member that the layout has not"));
        }
        Ok(RecordValue::Struct(values))
    }

    fn union(&mut self, union: &UnionLayout, object: &Map<String, Value>) -> Result<RecordValue> {
        let (name, value) = match &union.field {
            Some(field) => {
                let name = object.get(field).and_then(Value::as_str);
                let name =
                    name.ok_or_else(|| decode_error(format!("'{field}' names no variant")))?;
                let variant = variant(union, name)?;
                let NodeShape::Struct(members) = &variant.node.shape else {
                    return Err(decode_error("the variant is no struct"));
                };
                (name, self.members(members, object, Some(field))?)
            }
            None => {
                let mut members = object.iter();
                let (Some((name, value)), None) = (members.next(), members.next()) else {
                    return Err(decode_error("it has one member, named by the tag"));
                };
                let value = self.node(&variant(union, name)?.node, value, None);
                (name.as_str(), value.map_err(|error| error.under(name))?)
            }
        };
        Ok(RecordValue::Union(name.to_owned(), Box::new(value)))
    }
}

fn object(value: &Value) -> Result<&Map<String, Value>> {
    value
        .as_object()
        .ok_or_else(|| decode_error("it is no object"))
}

fn decode_error(why: impl Into<String>) -> TypedefError {
    TypedefError::access("", why)
}
