//! Finds the schemas within a schema.

use serde_json::{Map, Value};

use super::Result;
use crate::kind::FieldKind;
use crate::pointer::join;

/// Keywords whose value is a schema.
const ONE: [&str; 12] = [
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "values",
];

/// Keywords whose value is a list of schemas.
const LIST: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];

/// Keywords whose value names schemas.
const NAMED: [&str; 6] = [
    "$defs",
    "definitions",
    "dependentSchemas",
    "mapping",
    "patternProperties",
    "properties",
];

/// This crate's: not keywords of JSON Schema, but annotations in the value of one of its own.
const BEHIND: [&str; 2] = ["mapping", "values"];

/// Calls `each` with every direct subschema, and the pointer to it.
pub(crate) fn each(
    schema: &mut Map<String, Value>,
    ptr: &str,
    each: &mut dyn FnMut(&mut Value, &str) -> Result<()>,
) -> Result<()> {
    for (keyword, value) in schema {
        let at = join(ptr, keyword);
        if FieldKind::of_keyword(keyword).is_some() {
            if let Value::Object(notes) = value {
                let notes = notes.iter_mut();
                for (name, value) in notes.filter(|(name, _)| BEHIND.contains(&name.as_str())) {
                    below(name, value, &join(&at, name), each)?;
                }
            }
        } else if !BEHIND.contains(&keyword.as_str()) {
            below(keyword, value, &at, each)?;
        }
    }
    Ok(())
}

fn below(
    keyword: &str,
    value: &mut Value,
    at: &str,
    each: &mut dyn FnMut(&mut Value, &str) -> Result<()>,
) -> Result<()> {
    match value {
        value if ONE.contains(&keyword) => each(value, at),
        Value::Array(items) if LIST.contains(&keyword) => {
            let mut items = items.iter_mut().enumerate();
            items.try_for_each(|(i, item)| each(item, &join(at, &i.to_string())))
        }
        Value::Object(named) if NAMED.contains(&keyword) => {
            let mut named = named.iter_mut();
            named.try_for_each(|(name, value)| each(value, &join(at, name)))
        }
        _ => Ok(()),
    }
}
