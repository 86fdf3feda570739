//! The schema that the library reads: this crate's, with unions and records in the library's keywords.

use serde_json::{Map, Value, json};

use crate::kind::FieldKind;
use crate::pointer::{fragment, join, of_reference};
use crate::schema::{Result, annotations, subschemas};

/// The path of the whole schema in the lowered one.
pub(super) const ROOT: &str = "/$defs/schema";

/// A schema of the part at `ptr` of `schema`.
pub(super) fn lower(schema: &Value, ptr: &str) -> Result<Value> {
    let mut schema = schema.clone();
    one(&mut schema, "")?;
    Ok(json!({
        "$ref": fragment(&[ROOT, ptr].concat()),
        "$defs": { "schema": schema },
    }))
}

fn one(schema: &mut Value, ptr: &str) -> Result<()> {
    let Value::Object(keywords) = schema else {
        return Ok(());
    };
    // The root of the lowered schema has it once.
    keywords.shift_remove("$schema");
    if let Some(Value::String(reference)) = keywords.get_mut("$ref") {
        let target = of_reference(reference).unwrap_or_default();
        *reference = fragment(&[ROOT, &target].concat());
    }
    // First: the keywords added below are lowered already.
    subschemas::each(keywords, ptr, &mut |value, at| one(value, at))?;
    if let Some(value) = keywords.get(FieldKind::Union.keyword()) {
        let meaning = union(value, &join(ptr, FieldKind::Union.keyword()))?;
        also(keywords, meaning);
    }
    if let Some(value) = keywords.get(FieldKind::Record.keyword())
        && value.get("values").is_some()
    {
        let at = join(&join(ptr, FieldKind::Record.keyword()), "values");
        also(
            keywords,
            vec![json!({ "additionalProperties": refer(&at) })],
        );
    }
    Ok(())
}

/// Adds further conditions.
fn also(keywords: &mut Map<String, Value>, more: Vec<Value>) {
    match keywords.get_mut("allOf") {
        Some(Value::Array(all)) => all.extend(more),
        // A value of another kind is an error that the library reports.
        Some(_) => {}
        None => {
            keywords.insert("allOf".to_owned(), more.into());
        }
    }
}

/// A union names its variant by a field, or by its only member.
fn union(value: &Value, at: &str) -> Result<Vec<Value>> {
    let read = annotations::read(FieldKind::Union, value, at)?;
    let none = Map::new();
    let mapping = value
        .get("mapping")
        .and_then(Value::as_object)
        .unwrap_or(&none);
    let at = join(at, "mapping");
    let variants = mapping.keys().map(|name| (name, refer(&join(&at, name))));
    let field = read
        .discriminator
        .and_then(|discriminator| discriminator.field);
    let Some(field) = field else {
        let variants: Map<_, _> = variants
            .map(|(name, schema)| (name.clone(), schema))
            .collect();
        return Ok(vec![json!({
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "properties": variants,
            "additionalProperties": false,
        })]);
    };
    let names: Vec<_> = mapping.keys().collect();
    let mut all = vec![json!({
        "type": "object",
        "required": [field],
        "properties": { field.as_str(): { "enum": names } },
    })];
    all.extend(variants.map(|(name, schema)| {
        let named = json!({
            "required": [field],
            "properties": { field.as_str(): { "const": name } },
        });
        // Not `oneOf`: only the named variant then reports its violations.
        json!({ "if": named, "then": schema })
    }));
    Ok(all)
}

fn refer(ptr: &str) -> Value {
    json!({ "$ref": fragment(&[ROOT, ptr].concat()) })
}
