//! Leaves as a schema describes them.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::Mode;
use crate::error::TypedefError;
use crate::kind::{Kind, MAX_BYTES};
use crate::leaf::Leaf;
use crate::pointer::join;
use crate::schema::notes::{Encoding, Notes};

/// The leaf that `keywords` at `ptr` describe; none where `kind` has parts or no bytes.
pub(crate) fn leaf(
    kind: Kind,
    keywords: &Map<String, Value>,
    notes: &Notes,
    mode: Mode,
    ptr: &str,
) -> Result<Option<Leaf>, TypedefError> {
    if kind.is_composite() || kind == Kind::Tensor {
        return Ok(None);
    }
    let max = keywords.get(MAX_BYTES).and_then(Value::as_u64);
    let max = max.and_then(|max| u32::try_from(max).ok());
    let encoding = match (notes.encoding, max, mode) {
        (Some(Encoding::Fixed), None, _) => {
            let why = "\"fixed\" reserves space: say how much with TypeDef:maxBytes";
            return Err(TypedefError::schema(&join(ptr, kind.keyword()), why));
        }
        (Some(encoding), _, _) => encoding,
        (None, Some(_), Mode::Aligned) => Encoding::Fixed,
        _ => Encoding::Prefixed,
    };
    let members = if kind == Kind::Enum {
        members(keywords, ptr)?
    } else {
        Vec::new()
    };
    Ok(Some(Leaf {
        kind,
        nonfinite: notes.nonfinite,
        encoding,
        max,
        members: members.into(),
    }))
}

/// What an `Enum` counts: text and whole numbers, each once.
fn members(keywords: &Map<String, Value>, ptr: &str) -> Result<Vec<Value>, TypedefError> {
    let wrong = |why: &str| TypedefError::schema(&join(ptr, "enum"), why);
    let members = keywords.get("enum").and_then(Value::as_array);
    let members = members.filter(|members| !members.is_empty());
    let members = members.ok_or_else(|| wrong("an Enum needs the list of its members in enum"))?;
    let mut seen = HashSet::with_capacity(members.len());
    for member in members {
        let plain = member.is_string() || member.is_i64() || member.is_u64();
        if !plain {
            return Err(wrong("the members of an Enum are text or whole numbers"));
        }
        if !seen.insert(member.to_string()) {
            return Err(wrong("a member stands here twice"));
        }
    }
    Ok(members.clone())
}
