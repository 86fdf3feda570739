//! Named sizes, over a whole value.

use serde_json::Value;

use crate::error::Violation;
use crate::kind::FieldKind;
use crate::model::{LayoutNode, NodeShape};
use crate::pointer::join;
use crate::tensor::Dims;

/// Gives names their sizes from the tensors of a value that is valid otherwise.
pub(super) fn bind(node: &LayoutNode, value: &Value, dims: &mut Dims) -> Result<(), Violation> {
    walk(node, value, "", dims)
}

fn walk(node: &LayoutNode, value: &Value, path: &str, dims: &mut Dims) -> Result<(), Violation> {
    // Most parts have no tensor, and cost nothing then.
    if !node.symbols {
        return Ok(());
    }
    let mut each = |node: &LayoutNode, part: &str| {
        let below = value.get(part).unwrap_or(&Value::Null);
        walk(node, below, &join(path, part), dims)
    };
    match &node.shape {
        NodeShape::Array(list) => {
            let mut items = value.as_array().into_iter().flatten().enumerate();
            items
                .try_for_each(|(i, item)| walk(&list.item, item, &join(path, &i.to_string()), dims))
        }
        NodeShape::Leaf(_) => Ok(()),
        NodeShape::Record(one) => {
            let mut names = value
                .as_object()
                .into_iter()
                .flat_map(serde_json::Map::keys);
            names.try_for_each(|name| each(one, name))
        }
        NodeShape::Struct(members) => {
            let mut members = members.iter();
            members.try_for_each(|member| each(&member.node, &member.name))
        }
        NodeShape::Tensor(tensor) => tensor.check_json(value, dims).map_err(|message| Violation {
            path: path.to_owned(),
            keyword: FieldKind::Tensor.keyword().to_owned(),
            message,
        }),
        NodeShape::Union(union) => match &union.field {
            Some(field) => {
                let name = value.get(field).and_then(Value::as_str).unwrap_or_default();
                let variant = union.variant_named(name);
                variant.map_or(Ok(()), |variant| walk(&variant.node, value, path, dims))
            }
            None => {
                let mut variants = union.variants.iter();
                let there = |name: &str| value.get(name).is_some();
                variants.try_for_each(|one| {
                    if there(&one.name) {
                        each(&one.node, &one.name)
                    } else {
                        Ok(())
                    }
                })
            }
        },
    }
}
