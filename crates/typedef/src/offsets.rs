//! The offsets of every field of an aligned layout.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::TypedefError;
use crate::kind::FieldKind;
use crate::limits::PATH_BYTES_MAX;
use crate::model::{ArrayCount, ArrayLayout, LayoutNode, NodeShape};
use crate::pointer::{join, split_last};
use crate::schema::Result;

/// An index in an [`OffsetMap`], for callers that look a path up often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathId(u32);

/// One field, or one part with fields.
#[derive(Clone, Debug)]
pub struct OffsetEntry {
    path: String,
    range: Range<u64>,
    node: Arc<LayoutNode>,
}

/// The fields of one record, each after the part that contains it.
///
/// An array of numbers is one entry, whose items have paths all the same. In any other array each item has entries of
/// its own.
#[derive(Clone, Debug)]
pub struct OffsetMap {
    entries: Vec<OffsetEntry>,
    by_path: HashMap<String, PathId>,
    stride: u64,
    align: u32,
}

/// A found field.
#[derive(Clone, Debug)]
pub(crate) struct FieldOffset<'m> {
    pub(crate) off: u64,
    pub(crate) node: &'m LayoutNode,
}

impl OffsetMap {
    /// Lays `root` out. Fails where there are too many entries, or a stride is too large.
    pub(crate) fn new(root: &Arc<LayoutNode>, entries_max: u64) -> Result<Self> {
        let stride = root.extent.stride();
        let mut map = Self {
            entries: Vec::new(),
            by_path: HashMap::new(),
            stride: stride.map_err(|why| TypedefError::layout("", why))?,
            align: root.extent.align,
        };
        map.add(String::new(), 0, root, entries_max)?;
        let paths = map.entries.iter().zip(0..);
        map.by_path = paths
            .map(|(entry, id)| (entry.path.clone(), PathId(id)))
            .collect();
        Ok(map)
    }

    fn add(&mut self, path: String, off: u64, node: &Arc<LayoutNode>, max: u64) -> Result<()> {
        // Arrays of structs within arrays multiply: the schema's own size does not bound the entries.
        if self.entries.len() as u64 >= max {
            return Err(TypedefError::limit("fields of a record", max));
        }
        // Items of arrays have longer names than the schema, whose paths were checked before.
        if path.len() as u64 > PATH_BYTES_MAX {
            return Err(TypedefError::limit(
                "bytes of the path of a field",
                PATH_BYTES_MAX,
            ));
        }
        self.entries.push(OffsetEntry {
            path: path.clone(),
            // Within the size of the whole, which is valid.
            range: off..off + node.extent.size,
            node: Arc::clone(node),
        });
        match &node.shape {
            NodeShape::Struct(members) => {
                for member in members {
                    let path = join(&path, &member.name);
                    self.add(path, off + member.off, &member.node, max)?;
                }
            }
            NodeShape::Union(union) => {
                for variant in &union.variants {
                    let path = join(&path, &variant.name);
                    self.add(path, off + union.off, &variant.node, max)?;
                }
            }
            NodeShape::Array(list) if !is_plain(list) => {
                for i in 0..fixed(list) {
                    let path = join(&path, &i.to_string());
                    self.add(path, off + i * list.stride, &list.item, max)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Bytes from one record to the next.
    #[must_use]
    pub fn stride(&self) -> u64 {
        self.stride
    }

    /// Alignment of a record, in bytes.
    #[must_use]
    pub fn align(&self) -> u32 {
        self.align
    }

    /// Every entry in the order of the layout, each part before its fields.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &OffsetEntry> {
        self.entries.iter()
    }

    /// The index of a path.
    #[must_use]
    pub fn id(&self, path: &str) -> Option<PathId> {
        self.by_path.get(path).copied()
    }

    /// The entry at an index of this map.
    ///
    /// # Panics
    /// The index is of another map, and beyond the end of this one.
    #[must_use]
    pub fn entry(&self, id: PathId) -> &OffsetEntry {
        &self.entries[id.0 as usize]
    }

    /// The entry of a path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&OffsetEntry> {
        self.id(path).map(|id| self.entry(id))
    }

    /// A field by its path, items of arrays included.
    pub(crate) fn find(&self, path: &str) -> Result<FieldOffset<'_>> {
        if let Some(entry) = self.get(path) {
            return Ok(FieldOffset {
                off: entry.range.start,
                node: &entry.node,
            });
        }
        let unknown = || TypedefError::access(path, "the layout has no such field");
        let (above, last) = split_last(path).ok_or_else(unknown)?;
        let entry = self.get(above).ok_or_else(unknown)?;
        let NodeShape::Array(list) = &entry.node.shape else {
            return Err(unknown());
        };
        let index: Option<u64> = last.parse().ok();
        // One path for each item: `01` is not an index.
        let index = index
            .filter(|index| index.to_string() == last)
            .ok_or_else(unknown)?;
        let count = fixed(list);
        if index >= count {
            return Err(TypedefError::access(
                path,
                format!("the array has {count} items"),
            ));
        }
        Ok(FieldOffset {
            off: entry.range.start + index * list.stride,
            node: &list.item,
        })
    }
}

/// Whether the array alone determines its items.
fn is_plain(list: &ArrayLayout) -> bool {
    let kind = list.item.kind();
    kind.scalar_bytes().is_some() || kind == FieldKind::Tensor
}

fn fixed(list: &ArrayLayout) -> u64 {
    match list.count {
        ArrayCount::Fixed(count) => count,
        ArrayCount::Between(..) => 0,
    }
}

impl OffsetEntry {
    /// A JSON pointer (RFC 6901) into the record; empty for the whole.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its bytes in the record.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The kind of the field.
    #[must_use]
    pub fn kind(&self) -> FieldKind {
        self.node.kind()
    }

    /// The number of items of an array, and the distance between them in bytes; `None` for other kinds.
    #[must_use]
    pub fn items(&self) -> Option<(u64, u64)> {
        match &self.node.shape {
            NodeShape::Array(list) => Some((fixed(list), list.stride)),
            _ => None,
        }
    }

    pub(crate) fn node(&self) -> &LayoutNode {
        &self.node
    }
}
