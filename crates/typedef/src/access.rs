//! Reading and writing aligned layouts.

use crate::budget::DecodeBudget;
use crate::error::TypedefError;
use crate::leaf::{put_bits, take_bits};
use crate::limits::SchemaLimits;
use crate::model::{ArrayCount, LayoutNode, NodeShape, UnionLayout};
use crate::offsets::{FieldOffset, OffsetMap};
use crate::schema::Result;
use crate::value::RecordValue;

/// Reads a field of a record.
pub(crate) fn read(
    map: &OffsetMap,
    record: &[u8],
    path: &str,
    limits: &SchemaLimits,
) -> Result<RecordValue> {
    let field = map.find(path)?;
    let range = range(&field, record.len(), path)?;
    let value = take(field.node, &record[range], &mut DecodeBudget::new(limits));
    value.map_err(|error| above(error, path))
}

/// Writes a field of a record. A refused value leaves every byte as it was.
pub(crate) fn write(
    map: &OffsetMap,
    record: &mut [u8],
    path: &str,
    value: &RecordValue,
    limits: &SchemaLimits,
) -> Result<()> {
    let field = map.find(path)?;
    let range = range(&field, record.len(), path)?;
    // Gaps become zero, so that equal values are equal bytes.
    let mut bytes = vec![0; range.len()];
    let put = put(
        field.node,
        value,
        &mut bytes,
        &mut DecodeBudget::new(limits),
    );
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

fn range(field: &FieldOffset<'_>, len: usize, path: &str) -> Result<std::ops::Range<usize>> {
    let end = field.off + field.node.extent.size;
    // A record from outside may be shorter than its layout.
    if end > len as u64 {
        let why = format!("the record has {len} bytes, and the field ends at {end}");
        return Err(TypedefError::access(path, why));
    }
    // Both are at most `len`, so they are valid indices.
    Ok(field.off as usize..end as usize)
}

/// Reads from exactly the bytes of `node`.
fn take(node: &LayoutNode, bytes: &[u8], budget: &mut DecodeBudget) -> Result<RecordValue> {
    budget.enter(|budget| match &node.shape {
        NodeShape::Leaf(leaf) => {
            let len = leaf.fixed_bytes().unwrap_or_default() as usize;
            let value = leaf.take(&bytes[..len], false);
            value.map_err(|why| TypedefError::access("", why))
        }
        NodeShape::Struct(members) => {
            let member = |member: &crate::model::StructMember| {
                let value = take(&member.node, part(bytes, member.off, &member.node), budget);
                let value = value.map_err(|error| error.under(&member.name))?;
                Ok((member.name.clone(), value))
            };
            let members: Result<_> = members.iter().map(member).collect();
            members.map(RecordValue::Struct)
        }
        NodeShape::Array(list) => {
            let mut items = Vec::new();
            for i in 0..fixed(list.count) {
                let item = take(&list.item, part(bytes, i * list.stride, &list.item), budget);
                items.push(item.map_err(|error| error.under(&i.to_string()))?);
            }
            Ok(RecordValue::Array(items))
        }
        NodeShape::Union(union) => {
            let tag = take_bits(&bytes[..union.tag_bytes()], false);
            let variant = union
                .tagged(tag)
                .map_err(|why| TypedefError::access("", why))?;
            let value = take(&variant.node, part(bytes, union.off, &variant.node), budget);
            let value = value.map_err(|error| error.under(&variant.name))?;
            Ok(RecordValue::Union(variant.name.clone(), Box::new(value)))
        }
        NodeShape::Tensor(_) => Ok(RecordValue::Tensor),
        NodeShape::Record(_) => Err(TypedefError::access("", "a Record is for packed mode only")),
    })
}

/// Writes into exactly the bytes of `node`, which are zero.
fn put(
    node: &LayoutNode,
    value: &RecordValue,
    out: &mut [u8],
    budget: &mut DecodeBudget,
) -> Result<()> {
    budget.enter(|budget| match (&node.shape, value) {
        (NodeShape::Leaf(leaf), _) => {
            let len = leaf.fixed_bytes().unwrap_or_default() as usize;
            let put = leaf.put(value, false, &mut out[..len]);
            put.map_err(|why| TypedefError::access("", why))
        }
        (NodeShape::Struct(members), RecordValue::Struct(values)) => {
            check_field_names(members.iter().map(|member| &member.name), values)?;
            for (member, (name, value)) in members.iter().zip(values) {
                let room = part_mut(out, member.off, &member.node);
                let put = put(&member.node, value, room, budget);
                put.map_err(|error| error.under(name))?;
            }
            Ok(())
        }
        (NodeShape::Array(list), RecordValue::Array(values)) => {
            check_item_count(list.count, values.len())?;
            for (i, value) in (0_u64..).zip(values) {
                let room = part_mut(out, i * list.stride, &list.item);
                let put = put(&list.item, value, room, budget);
                put.map_err(|error| error.under(&i.to_string()))?;
            }
            Ok(())
        }
        (NodeShape::Union(union), RecordValue::Union(name, value)) => {
            let variant = variant(union, name)?;
            put_bits(variant.tag.into(), false, &mut out[..union.tag_bytes()]);
            let room = part_mut(out, union.off, &variant.node);
            // The rest of the largest variant stays zero.
            let put = put(&variant.node, value, room, budget);
            put.map_err(|error| error.under(name))
        }
        (NodeShape::Tensor(_), RecordValue::Tensor) => Ok(()),
        _ => Err(other(node, value)),
    })
}

/// Checks that a value of a struct has the fields, in their order.
pub(crate) fn check_field_names<'n>(
    mut names: impl ExactSizeIterator<Item = &'n String>,
    values: &[(String, RecordValue)],
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

/// Checks that an array has an allowed number of items.
pub(crate) fn check_item_count(count: ArrayCount, items: usize) -> Result<()> {
    let items = items as u64;
    let (min, max) = match count {
        ArrayCount::Fixed(count) => (count, count),
        ArrayCount::Between(min, max) => (min, max),
    };
    if (min..=max).contains(&items) {
        return Ok(());
    }
    let why = format!("the array has {items} items, and may have {min} to {max}");
    Err(TypedefError::access("", why))
}

pub(crate) fn variant<'u>(
    union: &'u UnionLayout,
    name: &str,
) -> Result<&'u crate::model::UnionVariant> {
    let found = union.variant_named(name);
    found.ok_or_else(|| TypedefError::access("", format!("the union has no variant '{name}'")))
}

pub(crate) fn other(node: &LayoutNode, value: &RecordValue) -> TypedefError {
    TypedefError::access("", format!("{} is no {}", value.name(), node.kind()))
}

fn fixed(count: ArrayCount) -> u64 {
    match count {
        ArrayCount::Fixed(count) => count,
        ArrayCount::Between(..) => 0,
    }
}

/// The bytes of a part, which lie within those of the whole.
fn part<'b>(bytes: &'b [u8], off: u64, node: &LayoutNode) -> &'b [u8] {
    &bytes[off as usize..][..node.extent.size as usize]
}

fn part_mut<'b>(bytes: &'b mut [u8], off: u64, node: &LayoutNode) -> &'b mut [u8] {
    &mut bytes[off as usize..][..node.extent.size as usize]
}
