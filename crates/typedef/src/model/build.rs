//! From a schema to a layout.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    ArrayCount, ArrayLayout, LayoutExtent, LayoutMode, LayoutNode, NodeShape, StructMember, extent,
    leaf,
};
use crate::error::TypedefError;
use crate::kind::FieldKind;
use crate::limits::PATH_BYTES_MAX;
use crate::pointer::{join, of_reference};
use crate::schema::annotations::{self, KeywordAnnotations};
use crate::schema::{Result, Schema, kind_of};
use crate::tensor::TensorType;

/// The layout of the schema at `ptr`.
pub(crate) fn build(schema: &Schema, ptr: &str, mode: LayoutMode) -> Result<Arc<LayoutNode>> {
    // Without this check, the recursion below might not end.
    schema.start(ptr)?;
    let mut builder = LayoutBuilder {
        schema,
        mode,
        left: schema.limits().expanded,
    };
    let context = LayoutContext {
        ptr,
        path: "",
        big: false,
        tagged_by: None,
    };
    builder.node(&context)
}

pub(super) struct LayoutBuilder<'s> {
    pub(super) schema: &'s Schema,
    pub(super) mode: LayoutMode,
    left: u64,
}

/// The part to build.
pub(super) struct LayoutContext<'p> {
    /// Its path in the schema.
    pub(super) ptr: &'p str,
    /// Its path in the layout.
    pub(super) path: &'p str,
    /// Byte order of the parent.
    pub(super) big: bool,
    /// The property that names the variant, where this is one: it has no bytes.
    pub(super) tagged_by: Option<&'p str>,
}

/// The schema that describes a part, after its references.
pub(super) struct ResolvedSchema<'s> {
    pub(super) keywords: &'s Map<String, Value>,
    pub(super) notes: KeywordAnnotations,
    pub(super) kind: FieldKind,
    pub(super) ptr: String,
    pub(super) big: bool,
    align: u32,
}

impl<'s> LayoutBuilder<'s> {
    pub(super) fn node(&mut self, context: &LayoutContext<'_>) -> Result<Arc<LayoutNode>> {
        self.count(context)?;
        let found = self.find(context)?;
        let mut shape = self.shape(context, &found)?;
        let extent = match self.mode {
            LayoutMode::Aligned => aligned(&mut shape, found.align),
            LayoutMode::Packed => Ok(LayoutExtent::NONE),
        };
        Ok(Arc::new(LayoutNode {
            big: found.big,
            symbols: shape.has_symbols(),
            extent: extent.map_err(|why| TypedefError::layout(context.path, why))?,
            shape,
        }))
    }

    fn count(&mut self, context: &LayoutContext<'_>) -> Result<()> {
        let Some(left) = self.left.checked_sub(1) else {
            let max = self.schema.limits().expanded;
            return Err(TypedefError::limit("parts of a layout", max));
        };
        self.left = left;
        // References can nest the same schema: paths grow beyond those of the schema itself.
        if context.path.len() as u64 > PATH_BYTES_MAX {
            return Err(TypedefError::limit(
                "bytes of the path of a field",
                PATH_BYTES_MAX,
            ));
        }
        Ok(())
    }

    /// Follows references, and collects the annotations on the way.
    fn find(&self, context: &LayoutContext<'_>) -> Result<ResolvedSchema<'s>> {
        let schema = self.schema;
        let mut ptr = context.ptr.to_owned();
        let (mut align, mut big) = (1, context.big);
        loop {
            let Value::Object(keywords) = schema.at(&ptr) else {
                return Err(TypedefError::layout(
                    context.path,
                    "its schema names no kind",
                ));
            };
            let mut apply = |one: Option<u32>, other: Option<bool>| {
                align = align.max(one.unwrap_or(1));
                big = other.unwrap_or(big);
            };
            if let Some(reference) = keywords.get("$ref").and_then(Value::as_str) {
                let read = |name: &str| keywords.get(name).map(|value| (value, join(&ptr, name)));
                let one = read("align").map(|(value, at)| annotations::align(value, &at));
                let other = read("endian").map(|(value, at)| annotations::big_endian(value, &at));
                apply(one.transpose()?, other.transpose()?);
                // The pass over the schema accepted it.
                ptr = of_reference(reference).unwrap_or_default();
                continue;
            }
            let Some(kind) = kind_of(keywords, &ptr)? else {
                let why = format!("its schema at #{ptr} names no kind");
                return Err(TypedefError::layout(context.path, why));
            };
            let at = join(&ptr, kind.keyword());
            let notes = annotations::read(kind, &keywords[kind.keyword()], &at)?;
            apply(notes.align, notes.big_endian);
            // Programs map aligned records directly, in the byte order of the machine.
            if big && self.mode == LayoutMode::Aligned {
                let why = "\"endian\":\"big\" is for packed mode only";
                return Err(TypedefError::schema(&at, why));
            }
            return Ok(ResolvedSchema {
                keywords,
                notes,
                kind,
                ptr,
                big,
                align,
            });
        }
    }

    fn shape(
        &mut self,
        context: &LayoutContext<'_>,
        found: &ResolvedSchema<'_>,
    ) -> Result<NodeShape> {
        let leaf = leaf(
            found.kind,
            found.keywords,
            &found.notes,
            self.mode,
            &found.ptr,
        )?;
        if let Some(leaf) = leaf {
            return Ok(NodeShape::Leaf(leaf));
        }
        match found.kind {
            FieldKind::Array => self.array(context, found).map(NodeShape::Array),
            FieldKind::Record => self.record(context, found).map(NodeShape::Record),
            FieldKind::Struct => self.members(context, found).map(NodeShape::Struct),
            FieldKind::Union => self.union(context, found).map(NodeShape::Union),
            _ => Ok(NodeShape::Tensor(TensorType {
                dtype: found.notes.dtype.clone(),
                shape: found.notes.shape.clone(),
            })),
        }
    }

    fn array(
        &mut self,
        context: &LayoutContext<'_>,
        found: &ResolvedSchema<'_>,
    ) -> Result<ArrayLayout> {
        if !found.keywords.contains_key("items") {
            return Err(TypedefError::layout(context.path, "an Array needs items"));
        }
        let bound = |name: &str| found.keywords.get(name).and_then(Value::as_u64);
        let (min, max) = (bound("minItems").unwrap_or(0), bound("maxItems"));
        let count = match max {
            Some(max) if min == max => ArrayCount::Fixed(max),
            _ => ArrayCount::Between(min, max.unwrap_or(u64::MAX)),
        };
        let item = self.node(&LayoutContext {
            ptr: &join(&found.ptr, "items"),
            path: &join(context.path, "*"),
            big: found.big,
            tagged_by: None,
        })?;
        Ok(ArrayLayout {
            item,
            stride: 0,
            count,
        })
    }

    fn record(
        &mut self,
        context: &LayoutContext<'_>,
        found: &ResolvedSchema<'_>,
    ) -> Result<Arc<LayoutNode>> {
        if self.mode == LayoutMode::Aligned {
            let why = "a Record has no fixed size; it is for packed mode only";
            return Err(TypedefError::layout(context.path, why));
        }
        let ptr = value_of_record(found).ok_or_else(|| {
            let why = "a Record needs one schema for its values: in values, additionalProperties \
                       or a single pattern of patternProperties";
            TypedefError::layout(context.path, why)
        })?;
        self.node(&LayoutContext {
            ptr: &ptr,
            path: &join(context.path, "*"),
            big: found.big,
            tagged_by: None,
        })
    }

    fn members(
        &mut self,
        context: &LayoutContext<'_>,
        found: &ResolvedSchema<'_>,
    ) -> Result<Vec<StructMember>> {
        let order = self.order(context, found)?;
        let mut members = Vec::with_capacity(order.len());
        for name in order {
            let path = join(context.path, &name);
            let node = self.node(&LayoutContext {
                ptr: &join(&join(&found.ptr, "properties"), &name),
                path: &path,
                big: found.big,
                tagged_by: None,
            })?;
            members.push(StructMember { name, off: 0, node });
        }
        Ok(members)
    }

    /// The names of the fields, in the order of their bytes.
    fn order(
        &self,
        context: &LayoutContext<'_>,
        found: &ResolvedSchema<'_>,
    ) -> Result<Vec<String>> {
        let invalid = |why: String| TypedefError::layout(context.path, why);
        let none = Map::new();
        let properties = match found.keywords.get("properties") {
            None => &none,
            Some(properties) => properties
                .as_object()
                .ok_or_else(|| TypedefError::schema(&found.ptr, "properties is an object"))?,
        };
        let is_tag = |name: &String| context.tagged_by == Some(name);
        let order: Vec<String> = match (&found.notes.fields, self.mode) {
            (Some(fields), _) => fields.clone(),
            (None, LayoutMode::Packed) => properties
                .keys()
                .filter(|name| !is_tag(name))
                .cloned()
                .collect(),
            (None, LayoutMode::Aligned) => {
                let why = "a Struct needs the order of its fields, {\"fields\":[…]}: the order of \
                           members in JSON is not kept by everyone";
                return Err(invalid(why.to_owned()));
            }
        };
        let named: HashSet<&String> = order.iter().collect();
        if let Some(name) = order.iter().find(|name| !properties.contains_key(*name)) {
            return Err(invalid(format!("the field '{name}' is not in properties")));
        }
        // The tag says the same, and the two could differ.
        if let Some(name) = order.iter().find(|name| is_tag(name)) {
            return Err(invalid(format!(
                "'{name}' names the variant; it cannot be a field too"
            )));
        }
        let mut properties = properties.keys();
        if let Some(name) = properties.find(|name| !named.contains(*name) && !is_tag(name)) {
            return Err(invalid(format!("the property '{name}' is not in fields")));
        }
        let required = found.keywords.get("required").and_then(Value::as_array);
        let optional = required.and_then(|required| {
            let required: HashSet<&str> = required.iter().filter_map(Value::as_str).collect();
            order.iter().find(|name| !required.contains(name.as_str()))
        });
        if let Some(name) = optional {
            let why = format!("the field '{name}' is not in required: bytes cannot leave it out");
            return Err(invalid(why));
        }
        Ok(order)
    }
}

fn value_of_record(found: &ResolvedSchema<'_>) -> Option<String> {
    let keyword = found.kind.keyword();
    let behind = found.keywords[keyword].get("values").is_some();
    let above = found.keywords.get("additionalProperties");
    let above = above.is_some_and(Value::is_object);
    let patterns = found
        .keywords
        .get("patternProperties")
        .and_then(Value::as_object);
    let at = |parts: &[&str]| {
        parts
            .iter()
            .fold(found.ptr.clone(), |at, part| join(&at, part))
    };
    match (behind, above, patterns.map_or(0, Map::len)) {
        (true, false, 0) => Some(at(&[keyword, "values"])),
        (false, true, 0) => Some(at(&["additionalProperties"])),
        (false, false, 1) => {
            let pattern = patterns?.keys().next()?;
            Some(at(&["patternProperties", pattern]))
        }
        _ => None,
    }
}

fn aligned(shape: &mut NodeShape, align: u32) -> std::result::Result<LayoutExtent, String> {
    let natural = match shape {
        NodeShape::Array(list) => extent::of_list(list)?,
        NodeShape::Leaf(leaf) => extent::of_leaf(leaf)?,
        NodeShape::Struct(members) => extent::of_members(members)?,
        NodeShape::Union(union) => extent::of_union(union)?,
        NodeShape::Record(_) | NodeShape::Tensor(_) => LayoutExtent::NONE,
    };
    let has_parts = matches!(shape, NodeShape::Struct(_) | NodeShape::Union(_));
    // Below it, a program could not read the field in place.
    if align > 1 && align < natural.align {
        return Err(format!(
            "an alignment of {align} is below the natural {}, and may only be above it",
            natural.align
        ));
    }
    natural.raised(align, has_parts)
}
