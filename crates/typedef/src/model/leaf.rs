//! Leaves as a schema describes them.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::LayoutMode;
use crate::error::TypedefError;
use crate::kind::{FieldKind, MAX_BYTES};
use crate::leaf::LeafType;
use crate::pointer::join;
use crate::schema::annotations::{BytesEncoding, KeywordAnnotations};

/// The leaf that `keywords` at `ptr` describe; `None` where `kind` has parts or no bytes.
pub(crate) fn leaf(
    kind: FieldKind,
    keywords: &Map<String, Value>,
    notes: &KeywordAnnotations,
    mode: LayoutMode,
    ptr: &str,
) -> Result<Option<LeafType>, TypedefError> {
    if kind.is_composite() || kind == FieldKind::Tensor {
        return Ok(None);
    }
    let max = keywords.get(MAX_BYTES).and_then(Value::as_u64);
    let max = max.and_then(|max| u32::try_from(max).ok());
    let encoding = match (notes.encoding, max, mode) {
        (Some(BytesEncoding::Fixed), None, _) => {
            let why = "\"fixed\" reserves space: say how much with TypeDef:maxBytes";
            return Err(TypedefError::schema(&join(ptr, kind.keyword()), why));
        }
        (Some(encoding), _, _) => encoding,
        // With a bound, the room is reserved, so that the next field has a fixed offset.
        (None, Some(_), LayoutMode::Aligned) => BytesEncoding::Fixed,
        _ => BytesEncoding::Prefixed,
    };
    let members = if kind == FieldKind::Enum {
        members(keywords, ptr)?
    } else {
        Vec::new()
    };
    Ok(Some(LeafType {
        kind,
        nonfinite: notes.nonfinite,
        encoding,
        max,
        members: members.into(),
    }))
}

/// The members of an `Enum`: text and whole numbers, each once.
fn members(keywords: &Map<String, Value>, ptr: &str) -> Result<Vec<Value>, TypedefError> {
    let invalid = |why: &str| TypedefError::schema(&join(ptr, "enum"), why);
    let members = keywords.get("enum").and_then(Value::as_array);
    let members = members.filter(|members| !members.is_empty());
    let members =
        members.ok_or_else(|| invalid("an Enum needs the list of its members in enum"))?;
    let mut seen = HashSet::with_capacity(members.len());
    for member in members {
        let plain = member.is_string() || member.is_i64() || member.is_u64();
        if !plain {
            return Err(invalid("the members of an Enum are text or whole numbers"));
        }
        // Compared as JSON text: `1` and `"1"` are two members.
        if !seen.insert(member.to_string()) {
            return Err(invalid("a member stands here twice"));
        }
    }
    Ok(members.clone())
}
