//! Values to JSON.

use serde_json::{Map, Value};

use super::Outside;
use crate::access::{counted, named, other, variant};
use crate::error::TypedefError;
use crate::leaf::{Fit, Leaf};
use crate::model::{Node, Shape};
use crate::pointer::join;
use crate::schema::Result;
use crate::value::FieldValue;

/// The JSON that means `value`.
pub(crate) fn to_json(root: &Node, value: &FieldValue, outside: &Outside<'_>) -> Result<Value> {
    let trail = Trail {
        above: None,
        part: Part::Name(""),
    };
    node(root, value, outside, &trail)
}

/// The way from the root, made into a path only where one is needed.
struct Trail<'t> {
    above: Option<&'t Self>,
    part: Part<'t>,
}

enum Part<'t> {
    Index(usize),
    Name(&'t str),
}

impl Trail<'_> {
    fn path(&self) -> String {
        let Some(above) = self.above else {
            return String::new();
        };
        match self.part {
            Part::Index(index) => join(&above.path(), &index.to_string()),
            Part::Name(name) => join(&above.path(), name),
        }
    }

    fn below<'t>(&'t self, part: Part<'t>) -> Trail<'t>
    where
        Self: 't,
    {
        Trail {
            above: Some(self),
            part,
        }
    }
}

fn node(
    node_: &Node,
    value: &FieldValue,
    outside: &Outside<'_>,
    trail: &Trail<'_>,
) -> Result<Value> {
    let inner = |inner: &Node, value: &FieldValue, part: Part<'_>| {
        node(inner, value, outside, &trail.below(part))
    };
    match (&node_.shape, value) {
        (Shape::Array(list), FieldValue::Array(items)) => {
            counted(list.count, items.len())?;
            let items = items.iter().enumerate();
            items
                .map(|(i, item)| inner(&list.item, item, Part::Index(i)))
                .collect()
        }
        (Shape::Leaf(leaf), _) => {
            text(leaf, value, outside).map_err(|why| TypedefError::access(&trail.path(), why))
        }
        (Shape::Record(each), FieldValue::Record(values)) => {
            let value = |(name, value): &(String, FieldValue)| {
                Ok((name.clone(), inner(each, value, Part::Name(name))?))
            };
            let values: Result<Map<_, _>> = values.iter().map(value).collect();
            values.map(Value::Object)
        }
        (Shape::Struct(members), FieldValue::Struct(values)) => {
            named(members.iter().map(|member| &member.name), values)?;
            let mut object = Map::with_capacity(values.len());
            for (member, (name, value)) in members.iter().zip(values) {
                object.insert(name.clone(), inner(&member.node, value, Part::Name(name))?);
            }
            Ok(Value::Object(object))
        }
        (Shape::Tensor(_), FieldValue::Tensor) => {
            let path = trail.path();
            let reference = outside.tensors.and_then(|tensors| tensors.get(&path));
            let why = "no reference to its tensor is given";
            reference
                .cloned()
                .ok_or_else(|| TypedefError::access(&path, why))
        }
        (Shape::Union(union), FieldValue::Union(name, value)) => {
            let value = inner(&variant(union, name)?.node, value, Part::Name(name))?;
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

/// A leaf, fetched from the other region where it lies there.
fn text(leaf: &Leaf, value: &FieldValue, outside: &Outside<'_>) -> Fit<Value> {
    let FieldValue::Indirect { off, len } = value else {
        return leaf.to_json(value);
    };
    leaf.check_bytes(*len)?;
    let place = |off: u64, len: u64| {
        let [start, end] = [Some(off), off.checked_add(len)].map(|at| usize::try_from(at?).ok());
        outside.region.get(start?..end?)
    };
    let content = place(*off, *len).ok_or_else(|| {
        let size = outside.region.len();
        format!("{len} bytes from {off} do not lie within the region of {size} bytes")
    })?;
    leaf.to_json(&leaf.of_content(content)?)
}
