//! Sizes and offsets in aligned mode: those of C.

use super::{ArrayCount, ArrayLayout, StructMember, UnionLayout};
use crate::leaf::LeafType;
use crate::limits::RECORD_BYTES_MAX;

/// The room that a part takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayoutExtent {
    /// In bytes.
    pub(crate) size: u64,
    /// In bytes, a power of two.
    pub(crate) align: u32,
}

/// The error says why there is no such value.
type Sized<T> = Result<T, String>;

impl LayoutExtent {
    /// The extent of a part without bytes.
    pub(crate) const NONE: Self = Self { size: 0, align: 1 };

    /// The distance from one such part to the next.
    pub(crate) fn stride(self) -> Sized<u64> {
        round_up(self.size, self.align)
    }

    /// This extent with an alignment of at least `align`. A part with parts of its own grows to a multiple of it; a
    /// number keeps its size.
    pub(crate) fn raised(self, align: u32, has_parts: bool) -> Sized<Self> {
        let align = self.align.max(align);
        let size = if has_parts {
            round_up(self.size, align)?
        } else {
            self.size
        };
        Ok(Self { size, align })
    }
}

pub(super) fn of_leaf(leaf: &LeafType) -> Sized<LayoutExtent> {
    let align = leaf.align();
    let bytes = leaf.fixed_bytes().ok_or(
        "its length is not known: give it TypeDef:maxBytes for reserved space, or the encoding \
         \"indirect\"",
    )?;
    let size = round_up(bytes, align)?;
    Ok(LayoutExtent { size, align })
}

/// Gives each member its offset.
pub(super) fn of_members(members: &mut [StructMember]) -> Sized<LayoutExtent> {
    let mut whole = LayoutExtent::NONE;
    for member in members {
        let LayoutExtent { size, align } = member.node.extent;
        member.off = round_up(whole.size, align)?;
        whole.size = sum(member.off, size)?;
        whole.align = whole.align.max(align);
    }
    // As in C: items of an array follow each other at a multiple of the alignment.
    whole.raised(1, true)
}

/// Gives the variants their common offset.
pub(super) fn of_union(union: &mut UnionLayout) -> Sized<LayoutExtent> {
    let extents = || union.variants.iter().map(|variant| variant.node.extent);
    let size = extents()
        .map(|extent| extent.size)
        .max()
        .unwrap_or_default();
    let align = extents().map(|extent| extent.align).max().unwrap_or(1);
    let tag = union.tag_bytes();
    let off = round_up(tag as u64, align)?;
    let size = sum(off, size)?;
    union.off = off;
    // A tag has at most four bytes, so the cast is exact.
    LayoutExtent {
        size,
        align: align.max(tag as u32),
    }
    .raised(1, true)
}

/// Gives the array its stride.
pub(super) fn of_list(list: &mut ArrayLayout) -> Sized<LayoutExtent> {
    let ArrayCount::Fixed(count) = list.count else {
        return Err("how many items it has is not known: make minItems and maxItems equal".into());
    };
    list.stride = list.item.extent.stride()?;
    let size = list
        .stride
        .checked_mul(count)
        .filter(|size| *size <= RECORD_BYTES_MAX);
    let align = list.item.extent.align;
    Ok(LayoutExtent {
        size: size.ok_or_else(too_large)?,
        align,
    })
}

fn round_up(size: u64, align: u32) -> Sized<u64> {
    let rounded = size.checked_next_multiple_of(align.into());
    rounded
        .filter(|size| *size <= RECORD_BYTES_MAX)
        .ok_or_else(too_large)
}

fn sum(one: u64, other: u64) -> Sized<u64> {
    let sum = one
        .checked_add(other)
        .filter(|size| *size <= RECORD_BYTES_MAX);
    sum.ok_or_else(too_large)
}

fn too_large() -> String {
    format!("it is larger than {RECORD_BYTES_MAX} bytes")
}
