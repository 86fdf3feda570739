//! Values to packed bytes.

use std::collections::HashSet;

use crate::access::{check_field_names, check_item_count, other, variant};
use crate::budget::DecodeBudget;
use crate::error::TypedefError;
use crate::leaf::{LeafType, PREFIX_BYTES, put_bits};
use crate::limits::SchemaLimits;
use crate::model::{ArrayCount, LayoutNode, NodeShape};
use crate::schema::Result;
use crate::value::RecordValue;

pub(super) fn write(
    root: &LayoutNode,
    value: &RecordValue,
    out: &mut Vec<u8>,
    limits: &SchemaLimits,
) -> Result<()> {
    let mut writer = PackedWriter {
        start: out.len(),
        out,
        limits,
    };
    writer.node(root, value, &mut DecodeBudget::new(limits))
}

struct PackedWriter<'o> {
    start: usize,
    out: &'o mut Vec<u8>,
    limits: &'o SchemaLimits,
}

impl PackedWriter<'_> {
    fn node(
        &mut self,
        node: &LayoutNode,
        value: &RecordValue,
        budget: &mut DecodeBudget,
    ) -> Result<()> {
        budget.enter(|budget| match (&node.shape, value) {
            (NodeShape::Leaf(leaf), _) => self.leaf(leaf, node.big, value),
            (NodeShape::Array(list), RecordValue::Array(items)) => {
                check_item_count(list.count, items.len())?;
                if matches!(list.count, ArrayCount::Between(..)) {
                    self.length(items.len(), node.big)?;
                }
                for (i, item) in items.iter().enumerate() {
                    let written = self.node(&list.item, item, budget);
                    written.map_err(|error| error.under(&i.to_string()))?;
                }
                Ok(())
            }
            (NodeShape::Record(each), RecordValue::Record(values)) => {
                self.record(node.big, each, values, budget)
            }
            (NodeShape::Struct(members), RecordValue::Struct(values)) => {
                check_field_names(members.iter().map(|member| &member.name), values)?;
                for (member, (name, value)) in members.iter().zip(values) {
                    let written = self.node(&member.node, value, budget);
                    written.map_err(|error| error.under(name))?;
                }
                Ok(())
            }
            (NodeShape::Tensor(_), RecordValue::Tensor) => Ok(()),
            (NodeShape::Union(union), RecordValue::Union(name, value)) => {
                let variant = variant(union, name)?;
                self.bits(variant.tag.into(), union.tag_bytes(), node.big)?;
                let written = self.node(&variant.node, value, budget);
                written.map_err(|error| error.under(name))
            }
            _ => Err(other(node, value)),
        })
    }

    fn record(
        &mut self,
        big: bool,
        each: &LayoutNode,
        values: &[(String, RecordValue)],
        budget: &mut DecodeBudget,
    ) -> Result<()> {
        self.length(values.len(), big)?;
        let mut names = HashSet::with_capacity(values.len());
        for (name, value) in values {
            if !names.insert(name) {
                return Err(TypedefError::access("", format!("'{name}' stands twice")));
            }
            self.length(name.len(), big)?;
            self.bytes(name.as_bytes())?;
            let written = self.node(each, value, budget);
            written.map_err(|error| error.under(name))?;
        }
        Ok(())
    }

    fn leaf(&mut self, leaf: &LeafType, big: bool, value: &RecordValue) -> Result<()> {
        let invalid = |why: String| TypedefError::access("", why);
        if let Some(len) = leaf.fixed_bytes() {
            let room = self.append_zeros(len)?;
            return leaf.put(value, big, room).map_err(invalid);
        }
        let content = leaf.content(value).map_err(invalid)?;
        self.length(content.len(), big)?;
        self.bytes(content)
    }

    fn length(&mut self, len: usize, big: bool) -> Result<()> {
        let len = u32::try_from(len).map_err(|_| {
            // A longer content has no form in which a reader would find its end.
            TypedefError::access("", format!("a length of {len} does not fit 32 bits"))
        })?;
        self.bits(len.into(), PREFIX_BYTES, big)
    }

    fn bits(&mut self, bits: u64, len: usize, big: bool) -> Result<()> {
        put_bits(bits, big, self.append_zeros(len as u64)?);
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.append_zeros(bytes.len() as u64)?
            .copy_from_slice(bytes);
        Ok(())
    }

    /// More bytes, zero so far.
    fn append_zeros(&mut self, len: u64) -> Result<&mut [u8]> {
        let before = self.out.len();
        let used = (before - self.start) as u64;
        let max = self.limits.packed_bytes;
        // A reader with the same limits would refuse the value.
        if len > max.saturating_sub(used) {
            return Err(TypedefError::limit("bytes of a packed value", max));
        }
        // Within the limit, which is memory that the caller allows.
        self.out.resize(before + len as usize, 0);
        Ok(&mut self.out[before..])
    }
}
