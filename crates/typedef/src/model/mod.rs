//! A layout: what a schema says of bytes, with every reference followed.

mod build;
mod extent;
mod leaf;
mod union;

use std::sync::Arc;

pub(crate) use self::build::build;
pub(crate) use self::extent::Extent;
pub(crate) use self::leaf::leaf;
use crate::kind::Kind;
use crate::leaf::Leaf;
use crate::tensor::TensorType;

/// How values lie in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every field at an offset known from the schema, as C lays out a `struct`.
    Aligned,
    /// One after the other without a gap, read from the beginning.
    Packed,
}

/// One part of a layout.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Most significant byte first; in packed mode only.
    pub(crate) big: bool,
    /// Whether a size has a name somewhere in it.
    pub(crate) symbols: bool,
    /// Nothing in packed mode.
    pub(crate) extent: Extent,
    pub(crate) shape: Shape,
}

/// What it is made of.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Array(List),
    Leaf(Leaf),
    Record(Arc<Node>),
    Struct(Vec<Member>),
    Tensor(TensorType),
    Union(Union),
}

/// An array.
#[derive(Clone, Debug)]
pub(crate) struct List {
    pub(crate) item: Arc<Node>,
    /// From one item to the next.
    pub(crate) stride: u64,
    pub(crate) count: Count,
}

/// How many items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// At least and at most; packed mode only.
    Between(u64, u64),
    Fixed(u64),
}

/// A field of a struct.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) off: u64,
    pub(crate) node: Arc<Node>,
}

/// A tag, and what it stands for.
#[derive(Clone, Debug)]
pub(crate) struct Union {
    /// The member of the JSON object that names the variant; none where the object has only the
    /// variant as a member.
    pub(crate) field: Option<String>,
    /// The integer that the tag is.
    pub(crate) tag: Kind,
    /// Where the variant begins.
    pub(crate) off: u64,
    pub(crate) variants: Vec<Variant>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) tag: u32,
    pub(crate) node: Arc<Node>,
}

impl Node {
    pub(crate) fn kind(&self) -> Kind {
        match &self.shape {
            Shape::Array(_) => Kind::Array,
            Shape::Leaf(leaf) => leaf.kind,
            Shape::Record(_) => Kind::Record,
            Shape::Struct(_) => Kind::Struct,
            Shape::Tensor(_) => Kind::Tensor,
            Shape::Union(_) => Kind::Union,
        }
    }
}

impl Shape {
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

impl Union {
    /// The variant of that name.
    pub(crate) fn named(&self, name: &str) -> Option<&Variant> {
        self.variants.iter().find(|variant| variant.name == name)
    }

    /// The variant that a tag in bytes stands for.
    pub(crate) fn tagged(&self, tag: u64) -> Result<&Variant, String> {
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
