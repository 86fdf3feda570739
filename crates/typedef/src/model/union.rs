//! Unions as a schema describes them.

use serde_json::{Map, Value};

use super::build::{LayoutBuilder, LayoutContext, ResolvedSchema};
use super::{LayoutMode, NodeShape, UnionLayout, UnionVariant};
use crate::error::TypedefError;
use crate::kind::FieldKind;
use crate::pointer::join;
use crate::schema::Result;

impl LayoutBuilder<'_> {
    pub(super) fn union(
        &mut self,
        context: &LayoutContext<'_>,
        found: &ResolvedSchema<'_>,
    ) -> Result<UnionLayout> {
        let invalid = |why: &str| TypedefError::layout(context.path, why);
        let Some(discriminator) = &found.notes.discriminator else {
            return Err(invalid("a Union needs a discriminator"));
        };
        let mapping = found.keywords[FieldKind::Union.keyword()].get("mapping");
        let mapping = mapping
            .and_then(Value::as_object)
            .filter(|mapping| !mapping.is_empty());
        let mapping = mapping.ok_or_else(|| invalid("a Union needs a mapping with a variant"))?;
        let field = discriminator.field.clone();
        let (tag, names) = match field {
            None => (
                discriminator.tag.unwrap_or(FieldKind::Uint8),
                numbers(mapping),
            ),
            Some(_) => {
                let names = self.ordered(mapping, found);
                (discriminator.tag.unwrap_or(FieldKind::Uint32), names)
            }
        };
        let names = names.map_err(|why| invalid(&why))?;
        let (_, most) = tag.integers().unwrap_or_default();
        if let Some((name, _)) = names.iter().find(|(_, tag)| i128::from(*tag) > most) {
            return Err(invalid(&format!("the tag of '{name}' does not fit {tag}")));
        }
        let mut variants = Vec::with_capacity(names.len());
        for (name, tag) in names {
            let path = join(context.path, &name);
            let ptr = [FieldKind::Union.keyword(), "mapping", &name];
            let ptr = ptr
                .iter()
                .fold(found.ptr.clone(), |ptr, part| join(&ptr, part));
            let node = self.node(&LayoutContext {
                ptr: &ptr,
                path: &path,
                big: found.big,
                tagged_by: field.as_deref(),
            })?;
            if field.is_some() && !matches!(node.shape, NodeShape::Struct(_)) {
                let why = "what a field names is a Struct: the name is one of its members in JSON";
                return Err(TypedefError::layout(&path, why));
            }
            variants.push(UnionVariant { name, tag, node });
        }
        Ok(UnionLayout {
            field,
            tag,
            off: 0,
            variants,
        })
    }

    /// Names and their indices in `order`.
    fn ordered(
        &self,
        mapping: &Map<String, Value>,
        found: &ResolvedSchema<'_>,
    ) -> std::result::Result<Vec<(String, u32)>, String> {
        let order: Vec<String> = match (&found.notes.order, self.mode) {
            (Some(order), _) => order.clone(),
            (None, LayoutMode::Packed) => mapping.keys().cloned().collect(),
            (None, LayoutMode::Aligned) => {
                return Err(
                    "a Union by a field needs the order of its variants, {\"order\":[…]}: \
                            the tag is the place in it"
                        .to_owned(),
                );
            }
        };
        // Each variant occurs in the order once, so equal counts and no unknown name mean all of them.
        if let Some(name) = order.iter().find(|name| !mapping.contains_key(*name)) {
            return Err(format!("'{name}' is in the order, and not in the mapping"));
        }
        // A variant without an index would have no tag.
        if order.len() != mapping.len() {
            return Err("the order does not name every variant".to_owned());
        }
        Ok(order.into_iter().zip(0..).collect())
    }
}

/// Names that are the tags themselves.
fn numbers(mapping: &Map<String, Value>) -> std::result::Result<Vec<(String, u32)>, String> {
    let number = |name: &String| {
        let tag: Option<u32> = name.parse().ok();
        // One spelling for each tag: `01` is not a tag.
        let tag = tag.filter(|tag| tag.to_string() == *name);
        let tag = tag.ok_or_else(|| format!("'{name}' is no tag: a number in decimal digits is"));
        tag.map(|tag| (name.clone(), tag))
    };
    mapping.keys().map(number).collect()
}
