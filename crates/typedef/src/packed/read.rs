//! Packed bytes to values.

use std::collections::HashSet;

use crate::access::check_item_count;
use crate::budget::DecodeBudget;
use crate::error::TypedefError;
use crate::leaf::{LeafType, PREFIX_BYTES, take_bits};
use crate::limits::SchemaLimits;
use crate::model::{ArrayCount, ArrayLayout, LayoutNode, NodeShape};
use crate::schema::Result;
use crate::value::RecordValue;

pub(super) fn read(
    root: &LayoutNode,
    bytes: &[u8],
    limits: &SchemaLimits,
) -> Result<(RecordValue, usize)> {
    // The reader ignores bytes beyond the budget.
    let most = usize::try_from(limits.packed_bytes).unwrap_or(usize::MAX);
    let mut reader = PackedReader {
        bytes: &bytes[..bytes.len().min(most)],
        used: 0,
        more: bytes.len() > most,
        budget: DecodeBudget::new(limits),
        limits,
    };
    let value = reader.node(root)?;
    Ok((value, reader.used))
}

struct PackedReader<'b> {
    bytes: &'b [u8],
    used: usize,
    /// Whether there are bytes beyond the budget.
    more: bool,
    budget: DecodeBudget,
    limits: &'b SchemaLimits,
}

impl<'b> PackedReader<'b> {
    fn node(&mut self, node: &LayoutNode) -> Result<RecordValue> {
        self.budget.down()?;
        let value = self.inside(node);
        self.budget.up();
        value
    }

    fn inside(&mut self, node: &LayoutNode) -> Result<RecordValue> {
        match &node.shape {
            NodeShape::Leaf(leaf) => self.leaf(leaf, node.big),
            NodeShape::Array(list) => self.array(list, node.big),
            NodeShape::Record(value) => self.record(value, node.big),
            NodeShape::Struct(members) => {
                // The schema bounds the capacity, unlike the count of an array.
                let mut values = Vec::with_capacity(members.len());
                for member in members {
                    let value = self.node(&member.node);
                    let value = value.map_err(|error| error.under(&member.name))?;
                    values.push((member.name.clone(), value));
                }
                Ok(RecordValue::Struct(values))
            }
            NodeShape::Tensor(_) => Ok(RecordValue::Tensor),
            NodeShape::Union(union) => {
                let tag = take_bits(self.take(union.tag_bytes() as u64)?, node.big);
                let variant = union
                    .tagged(tag)
                    .map_err(|why| TypedefError::access("", why))?;
                let value = self.node(&variant.node);
                let value = value.map_err(|error| error.under(&variant.name))?;
                Ok(RecordValue::Union(variant.name.clone(), Box::new(value)))
            }
        }
    }

    fn leaf(&mut self, leaf: &LeafType, big: bool) -> Result<RecordValue> {
        let value = if let Some(len) = leaf.fixed_bytes() {
            leaf.take(self.take(len)?, big)
        } else {
            let len = self.length(big)?;
            // Before taking the bytes: this error is the more useful one.
            leaf.check_bytes(len)
                .map_err(|why| TypedefError::access("", why))?;
            leaf.of_content(self.take(len)?)
        };
        value.map_err(|why| TypedefError::access("", why))
    }

    fn array(&mut self, list: &ArrayLayout, big: bool) -> Result<RecordValue> {
        let count = match list.count {
            ArrayCount::Fixed(count) => count,
            ArrayCount::Between(..) => self.length(big)?,
        };
        // A count beyond a `usize` exceeds the budget before it matters.
        check_item_count(list.count, usize::try_from(count).unwrap_or(usize::MAX))?;
        // The list grows as items come: the count alone must not cost memory.
        let mut items = Vec::new();
        for i in 0..count {
            let item = self.node(&list.item);
            items.push(item.map_err(|error| error.under(&i.to_string()))?);
        }
        Ok(RecordValue::Array(items))
    }

    fn record(&mut self, value: &LayoutNode, big: bool) -> Result<RecordValue> {
        let count = self.length(big)?;
        let mut names = HashSet::new();
        let mut values = Vec::new();
        for _ in 0..count {
            let len = self.length(big)?;
            let name = std::str::from_utf8(self.take(len)?);
            let name = name.map_err(|_| TypedefError::access("", "a name is no UTF-8"))?;
            // Other readers would keep one of the two values silently.
            if !names.insert(name) {
                return Err(TypedefError::access("", format!("'{name}' stands twice")));
            }
            let value = self.node(value).map_err(|error| error.under(name))?;
            values.push((name.to_owned(), value));
        }
        Ok(RecordValue::Record(values))
    }

    fn length(&mut self, big: bool) -> Result<u64> {
        self.take(PREFIX_BYTES as u64)
            .map(|bytes| take_bits(bytes, big))
    }

    fn take(&mut self, len: u64) -> Result<&'b [u8]> {
        let left = self.bytes.len() - self.used;
        if len > left as u64 {
            // The value may be complete, but is longer than the limit.
            if self.more {
                let max = self.limits.packed_bytes;
                return Err(TypedefError::limit("bytes of a packed value", max));
            }
            let why = format!("{len} bytes are missing, and {left} are left");
            return Err(TypedefError::access("", why));
        }
        // At most `left`, so the cast is exact.
        let end = self.used + len as usize;
        let taken = &self.bytes[self.used..end];
        self.used = end;
        Ok(taken)
    }
}
