//! Reading and writing aligned layouts.

use crate::budget::Budget;
use crate::error::TypedefError;
use crate::leaf::{put_bits, take_bits};
use crate::limits::Limits;
use crate::model::{Count, Node, Shape, Union};
use crate::offsets::{Field, OffsetMap};
use crate::schema::Result;
use crate::value::FieldValue;

/// Reads a field of a record.
pub(crate) fn read(
    map: &OffsetMap,
    record: &[u8],
    path: &str,
    limits: &Limits,
) -> Result<FieldValue> {
    let field = map.find(path)?;
    let range = range(&field, record.len(), path)?;
    let value = take(field.node, &record[range], &mut Budget::new(limits));
    value.map_err(|error| above(error, path))
}

/// Writes a field of a record. A value that is refused leaves every byte as it was.
pub(crate) fn write(
    map: &OffsetMap,
    record: &mut [u8],
    path: &str,
    value: &FieldValue,
    limits: &Limits,
) -> Result<()> {
    let field = map.find(path)?;
    let range = range(&field, record.len(), path)?;
    // Gaps become zero, so that equal values are equal bytes.
    let mut bytes = vec![0; range.len()];
    let put = put(field.node, value, &mut bytes, &mut Budget::new(limits));
    put.map_err(|error| above(error, path))?;
    record[range].copy_from_slice(&bytes);
    Ok(())
}

fn above(error: TypedefError, path: &str) -> TypedefError {
    match error {
        TypedefError::Access { path: below, why } => TypedefError::Access {
            path: path.to_owned() + &below,
            why,
        },
        other => other,
    }
}

fn range(field: &Field<'_>, len: usize, path: &str) -> Result<std::ops::Range<usize>> {
    let end = field.off + field.node.extent.size;
    if end > len as u64 {
        let why = format!("the record has {len} bytes, and the field ends at {end}");
        return Err(TypedefError::access(path, why));
    }
    // Both are at most `len`.
    Ok(field.off as usize..end as usize)
}

/// Reads from exactly the bytes of `node`.
fn take(node: &Node, bytes: &[u8], budget: &mut Budget) -> Result<FieldValue> {
    budget.enter(|budget| match &node.shape {
        Shape::Leaf(leaf) => {
            let len = leaf.fixed_bytes().unwrap_or_default() as usize;
            let value = leaf.take(&bytes[..len], false);
            value.map_err(|why| TypedefError::access("", why))
        }
        Shape::Struct(members) => {
            let member = |member: &crate::model::Member| {
                let value = take(&member.node, part(bytes, member.off, &member.node), budget);
                let value = value.map_err(|error| error.under(&member.name))?;
                Ok((member.name.clone(), value))
            };
            let members: Result<_> = members.iter().map(member).collect();
            members.map(FieldValue::Struct)
        }
        Shape::Array(list) => {
            let mut items = Vec::new();
            for i in 0..fixed(list.count) {
                let item = take(&list.item, part(bytes, i * list.stride, &list.item), budget);
                items.push(item.map_err(|error| error.under(&i.to_string()))?);
            }
            Ok(FieldValue::Array(items))
        }
        Shape::Union(union) => {
            let tag = take_bits(&bytes[..union.tag_bytes()], false);
            let variant = union
                .tagged(tag)
                .map_err(|why| TypedefError::access("", why))?;
            let value = take(&variant.node, part(bytes, union.off, &variant.node), budget);
            let value = value.map_err(|error| error.under(&variant.name))?;
            Ok(FieldValue::Union(variant.name.clone(), Box::new(value)))
        }
        Shape::Tensor(_) => Ok(FieldValue::Tensor),
        Shape::Record(_) => Err(TypedefError::access("", "a Record is for packed mode only")),
    })
}

/// Writes into exactly the bytes of `node`, which are zero.
fn put(node: &Node, value: &FieldValue, out: &mut [u8], budget: &mut Budget) -> Result<()> {
    budget.enter(|budget| match (&node.shape, value) {
        (Shape::Leaf(leaf), _) => {
            let len = leaf.fixed_bytes().unwrap_or_default() as usize;
            let put = leaf.put(value, false, &mut out[..len]);
            put.map_err(|why| TypedefError::access("", why))
        }
        (Shape::Struct(members), FieldValue::Struct(values)) => {
            named(members.iter().map(|member| &member.name), values)?;
            for (member, (name, value)) in members.iter().zip(values) {
                let room = part_mut(out, member.off, &member.node);
                let put = put(&member.node, value, room, budget);
                put.map_err(|error| error.under(name))?;
            }
            Ok(())
        }
        (Shape::Array(list), FieldValue::Array(values)) => {
            counted(list.count, values.len())?;
            for (i, value) in (0_u64..).zip(values) {
                let room = part_mut(out, i * list.stride, &list.item);
                let put = put(&list.item, value, room, budget);
                put.map_err(|error| error.under(&i.to_string()))?;
            }
            Ok(())
        }
        (Shape::Union(union), FieldValue::Union(name, value)) => {
            let variant = variant(union, name)?;
            put_bits(variant.tag.into(), false, &mut out[..union.tag_bytes()]);
            let room = part_mut(out, union.off, &variant.node);
            let put = put(&variant.node, value, room, budget);
            put.map_err(|error| error.under(name))
        }
        (Shape::Tensor(_), FieldValue::Tensor) => Ok(()),
        _ => Err(other(node, value)),
    })
}

/// That a value of a struct has the fields, in their order.
pub(crate) fn named<'n>(
    mut names: impl ExactSizeIterator<Item = &'n String>,
    values: &[(String, FieldValue)],
) -> Result<()> {
    let same =
        names.len() == values.len() && values.iter().all(|(name, _)| names.next() == Some(name));
    if same {
        return Ok(());
    }
    Err(TypedefError::access(
        "",
        "the value has other fields, or in another order",
    ))
}

/// That an array has as many items as it may.
pub(crate) fn counted(count: Count, items: usize) -> Result<()> {
    let items = items as u64;
    let (min, max) = match count {
        Count::Fixed(count) => (count, count),
        Count::Between(min, max) => (min, max),
    };
    if (min..=max).contains(&items) {
        return Ok(());
    }
    let why = format!("the array has {items} items, and may have {min} to {max}");
    Err(TypedefError::access("", why))
}

pub(crate) fn variant<'u>(union: &'u Union, name: &str) -> Result<&'u crate::model::Variant> {
    let found = union.named(name);
    found.ok_or_else(|| TypedefError::access("", format!("the union has no variant '{name}'")))
}

pub(crate) fn other(node: &Node, value: &FieldValue) -> TypedefError {
    TypedefError::access("", format!("{} is no {}", value.name(), node.kind()))
}

fn fixed(count: Count) -> u64 {
    match count {
        Count::Fixed(count) => count,
        Count::Between(..) => 0,
    }
}

/// The bytes of a part, which lie within those of the whole.
fn part<'b>(bytes: &'b [u8], off: u64, node: &Node) -> &'b [u8] {
    &bytes[off as usize..][..node.extent.size as usize]
}

fn part_mut<'b>(bytes: &'b mut [u8], off: u64, node: &Node) -> &'b mut [u8] {
    &mut bytes[off as usize..][..node.extent.size as usize]
}
