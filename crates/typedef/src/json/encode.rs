//! Values to JSON.

use serde_json::{Map, Value};

use super::ExternalData;
use crate::access::{check_field_names, check_item_count, other, variant};
use crate::error::TypedefError;
use crate::leaf::{Fit, LeafType};
use crate::model::{LayoutNode, NodeShape};
use crate::pointer::join;
use crate::schema::Result;
use crate::value::RecordValue;

/// The JSON that means `value`.
pub(crate) fn to_json(
    root: &LayoutNode,
    value: &RecordValue,
    outside: &ExternalData<'_>,
) -> Result<Value> {
    let trail = PathTrail {
        above: None,
        part: PathSegment::Name(""),
    };
    node(root, value, outside, &trail)
}

/// The way from the root, made into a path only for an error or a tensor.
struct PathTrail<'t> {
    above: Option<&'t Self>,
    part: PathSegment<'t>,
}

enum PathSegment<'t> {
    Index(usize),
    Name(&'t str),
}

impl PathTrail<'_> {
    fn path(&self) -> String {
        let Some(above) = self.above else {
            return String::new();
        };
        match self.part {
            PathSegment::Index(index) => join(&above.path(), &index.to_string()),
            PathSegment::Name(name) => join(&above.path(), name),
        }
    }

    fn below<'t>(&'t self, part: PathSegment<'t>) -> PathTrail<'t>
    where
        Self: 't,
    {
        PathTrail {
            above: Some(self),
            part,
        }
    }
}

fn node(
    node_: &LayoutNode,
    value: &RecordValue,
    outside: &ExternalData<'_>,
    trail: &PathTrail<'_>,
) -> Result<Value> {
    let inner = |inner: &LayoutNode, value: &RecordValue, part: PathSegment<'_>| {
        node(inner, value, outside, &trail.below(part))
    };
    match (&node_.shape, value) {
        (NodeShape::Array(list), RecordValue::Array(items)) => {
            check_item_count(list.count, items.len())?;
            let items = items.iter().enumerate();
            items
                .map(|(i, item)| inner(&list.item, item, PathSegment::Index(i)))
                .collect()
        }
        (NodeShape::Leaf(leaf), _) => {
            text(leaf, value, outside).map_err(|why| TypedefError::access(&trail.path(), why))
        }
        (NodeShape::Record(each), RecordValue::Record(values)) => {
            let value = |(name, value): &(String, RecordValue)| {
                Ok((name.clone(), inner(each, value, PathSegment::Name(name))?))
            };
            let values: Result<Map<_, _>> = values.iter().map(value).collect();
            values.map(Value::Object)
        }
        (NodeShape::Struct(members), RecordValue::Struct(values)) => {
            check_field_names(members.iter().map(|member| &member.name), values)?;
            let mut object = Map::with_capacity(values.len());
            for (member, (name, value)) in members.iter().zip(values) {
                object.insert(
                    name.clone(),
                    inner(&member.node, value, PathSegment::Name(name))?,
                );
            }
            Ok(Value::Object(object))
        }
        (NodeShape::Tensor(_), RecordValue::Tensor) => {
            let path = trail.path();
            let reference = outside.tensors.and_then(|tensors| tensors.get(&path));
            let why = "no reference to its tensor is given";
            reference
                .cloned()
                .ok_or_else(|| TypedefError::access(&path, why))
        }
        (NodeShape::Union(union), RecordValue::Union(name, value)) => {
            let value = inner(&variant(union, name)?.node, value, PathSegment::Name(name))?;
            let mut object = Map::new();
            match (&union.field, value) {
                (Some(field), Value::Object(members)) => {
                    object.insert(field.clone(), name.as_str().into());
                    object.extend(members);
                }
                (_, value) => {
                    object.insert(name.clone(), value);
                }
            }
            Ok(Value::Object(object))
        }
        _ => Err(other(node_, value)),
    }
}

/// A leaf, with its content from the other region where it lies there.
fn text(leaf: &LeafType, value: &RecordValue, outside: &ExternalData<'_>) -> Fit<Value> {
    let RecordValue::Indirect { off, len } = value else {
        return leaf.to_json(value);
    };
    leaf.check_bytes(*len)?;
    // Both numbers come from the record, which a caller may have written.
    let bytes_at = |off: u64, len: u64| {
        let [start, end] = [Some(off), off.checked_add(len)].map(|at| usize::try_from(at?).ok());
        outside.region.get(start?..end?)
    };
    let content = bytes_at(*off, *len).ok_or_else(|| {
        let size = outside.region.len();
        format!("{len} bytes from {off} do not lie within the region of {size} bytes")
    })?;
    leaf.to_json(&leaf.of_content(content)?)
}
