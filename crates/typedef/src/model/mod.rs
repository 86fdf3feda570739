//! A layout: how a schema stores values in bytes, with every reference followed.

mod build;
mod extent;
mod leaf;
mod union;

use std::sync::Arc;

pub(crate) use self::build::build;
pub(crate) use self::extent::LayoutExtent;
pub(crate) use self::leaf::leaf;
use crate::kind::FieldKind;
use crate::leaf::LeafType;
use crate::tensor::TensorType;

/// How values lie in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutMode {
    /// Every field at an offset that follows from the schema, as C lays out a `struct`.
    Aligned,
    /// One after the other without a gap, read from the beginning.
    Packed,
}

/// One part of a layout.
#[derive(Clone, Debug)]
pub(crate) struct LayoutNode {
    /// Most significant byte first; in packed mode only.
    pub(crate) big: bool,
    /// Whether it contains a named size.
    pub(crate) symbols: bool,
    /// Empty in packed mode.
    pub(crate) extent: LayoutExtent,
    pub(crate) shape: NodeShape,
}

/// The structure of a part.
#[derive(Clone, Debug)]
pub(crate) enum NodeShape {
    Array(ArrayLayout),
    Leaf(LeafType),
    Record(Arc<LayoutNode>),
    Struct(Vec<StructMember>),
    Tensor(TensorType),
    Union(UnionLayout),
}

/// An array.
#[derive(Clone, Debug)]
pub(crate) struct ArrayLayout {
    pub(crate) item: Arc<LayoutNode>,
    /// The distance from one item to the next.
    pub(crate) stride: u64,
    pub(crate) count: ArrayCount,
}

/// The number of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ArrayCount {
    /// At least and at most; packed mode only.
    Between(u64, u64),
    Fixed(u64),
}

/// A field of a struct.
#[derive(Clone, Debug)]
pub(crate) struct StructMember {
    pub(crate) name: String,
    pub(crate) off: u64,
    pub(crate) node: Arc<LayoutNode>,
}

/// A tag, and the variant of that tag.
#[derive(Clone, Debug)]
pub(crate) struct UnionLayout {
    /// The member of the JSON object that names the variant; `None` where the object has only the variant as a
    /// member.
    pub(crate) field: Option<String>,
    /// The integer type of the tag.
    pub(crate) tag: FieldKind,
    /// The offset of the variant.
    pub(crate) off: u64,
    pub(crate) variants: Vec<UnionVariant>,
}

/// One variant.
#[derive(Clone, Debug)]
pub(crate) struct UnionVariant {
    pub(crate) name: String,
    pub(crate) tag: u32,
    pub(crate) node: Arc<LayoutNode>,
}

impl LayoutNode {
    pub(crate) fn kind(&self) -> FieldKind {
        match &self.shape {
            NodeShape::Array(_) => FieldKind::Array,
            NodeShape::Leaf(leaf) => leaf.kind,
            NodeShape::Record(_) => FieldKind::Record,
            NodeShape::Struct(_) => FieldKind::Struct,
            NodeShape::Tensor(_) => FieldKind::Tensor,
            NodeShape::Union(_) => FieldKind::Union,
        }
    }
}

impl NodeShape {
    fn has_symbols(&self) -> bool {
        match self {
            Self::Array(list) => list.item.symbols,
            Self::Leaf(_) => false,
            Self::Record(value) => value.symbols,
            Self::Struct(members) => members.iter().any(|member| member.node.symbols),
            Self::Tensor(tensor) => tensor.has_symbols(),
            Self::Union(union) => union.variants.iter().any(|one| one.node.symbols),
        }
    }
}

impl UnionLayout {
    /// The variant of that name.
    pub(crate) fn variant_named(&self, name: &str) -> Option<&UnionVariant> {
        self.variants.iter().find(|variant| variant.name == name)
    }

    /// The variant of a tag in bytes.
    pub(crate) fn tagged(&self, tag: u64) -> Result<&UnionVariant, String> {
        let found = self
            .variants
            .iter()
            .find(|variant| u64::from(variant.tag) == tag);
        found.ok_or_else(|| format!("the tag {tag} is not in the mapping"))
    }

    /// Bytes of the tag.
    pub(crate) fn tag_bytes(&self) -> usize {
        self.tag.scalar_bytes().unwrap_or(1).into()
    }
}

#[cfg(test)]
mod tests;
