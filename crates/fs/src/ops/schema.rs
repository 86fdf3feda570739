//! Parts of the schemas that several operations have.
//!
//! Paths have no length in a schema: their rules are the store's, which names the rule that a path breaks.

use alknet_store::limits::{
    ACTOR_BYTES_MAX, CONSUMER_NAME_BYTES_MAX, MESSAGE_BYTES_MAX, PAGE_ENTRIES_MAX, SEQ_MAX,
    SYMLINK_TARGET_BYTES_MAX,
};
use serde_json::{Map, Value, json};

/// An object with these members, of which some are required, and with an example.
pub(super) fn input(required: &[&str], members: Value, example: Value) -> Value {
    // An operation without required members takes `null` as well, as a call without input has it.
    let kind = match required {
        [] => json!(["object", "null"]),
        _ => json!("object"),
    };
    json!({
        "type": kind, "required": required, "additionalProperties": false,
        "properties": members, "examples": [example],
    })
}

/// An object of an output.
pub(super) fn output(required: &[&str], members: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": members })
}

/// The members of several objects.
pub(super) fn joined(parts: &[Value]) -> Value {
    let members = parts.iter().filter_map(Value::as_object).flatten();
    let members = members.map(|(name, schema)| (name.clone(), schema.clone()));
    Value::Object(members.collect::<Map<_, _>>())
}

/// An address.
pub(super) fn address() -> Value {
    json!({ "type": "string", "description": "bucket[@branch][#seq]:/path" })
}

pub(super) fn bucket() -> Value {
    json!({ "type": "string", "description": "The name of a bucket" })
}

pub(super) fn branch() -> Value {
    json!({ "type": "string", "description": "The name of a branch; main without it" })
}

pub(super) fn seq() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": SEQ_MAX, "description": "The number of a commit" })
}

pub(super) fn hash() -> Value {
    json!({ "type": "string", "description": "BLAKE3 of the content, 64 hex digits" })
}

pub(super) fn flag(description: &str) -> Value {
    json!({ "type": "boolean", "default": false, "description": description })
}

pub(super) fn count(description: &str) -> Value {
    json!({ "type": "integer", "minimum": 0, "description": description })
}

pub(super) fn name() -> Value {
    json!({ "type": "string", "maxLength": CONSUMER_NAME_BYTES_MAX })
}

pub(super) fn limit(most: usize) -> Value {
    json!({ "type": "integer", "minimum": 1, "maximum": most })
}

pub(super) fn bytes() -> Value {
    json!({ "description": "Binary data of a mixed frame, or base64" })
}

/// Milliseconds since 1970-01-01 UTC.
pub(super) fn time() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": MS_MAX,
            "description": "Milliseconds since 1970-01-01 UTC" })
}

pub(super) fn lease() -> Value {
    json!({ "type": "integer", "minimum": 1000, "maximum": 3_600_000, "default": 60_000,
            "description": "Milliseconds that it lasts without a renewal" })
}

/// The latest time that fits into nanoseconds of 64 bits.
pub(super) const MS_MAX: i64 = 9_000_000_000_000;

/// Members that every change has.
pub(super) fn commit_members() -> Value {
    json!({
        "message": { "type": "string", "maxLength": MESSAGE_BYTES_MAX,
                     "description": "A text for the history" },
        "lock_tokens": { "type": "array", "maxItems": 64, "items": { "type": "string", "maxLength": 64 },
                         "description": "Tokens of locks that the caller has" },
    })
}

/// Members that set attributes.
pub(super) fn attribute_members() -> Value {
    json!({
        "mode": { "type": "integer", "minimum": 0, "maximum": 0o7777, "description": "Permission bits" },
        "mtime_ms": { "type": "integer", "minimum": -MS_MAX, "maximum": MS_MAX,
                      "description": "Time of the last modification, in milliseconds since 1970-01-01 UTC" },
    })
}

/// Members that say what is expected at a path.
pub(super) fn condition_members() -> Value {
    json!({
        "if_match": { "type": "string", "maxLength": 64,
                      "description": "The hash of the present content, or * for any entry" },
        "if_none_match": { "const": "*", "description": "Nothing may be at the path" },
    })
}

/// An entry as listings and `fs/stat` show it.
pub(super) fn entry() -> Value {
    json!({
        "type": "object", "required": ["path", "kind", "mode", "mtime_ms", "seq"],
        "properties": {
            "path": { "type": "string", "description": "The path in the bucket" },
            "kind": { "enum": ["deleted", "directory", "file", "symlink"] },
            "hash": hash(), "size": count("Bytes of the content"),
            "mode": { "type": "integer" }, "mtime_ms": { "type": "integer" },
            "target": { "type": "string", "maxLength": SYMLINK_TARGET_BYTES_MAX },
            "seq": seq(),
        },
    })
}

/// A list with what leads to its next page.
pub(super) fn page(name: &str, item: &Value, next: &Value) -> Value {
    let mut members = Map::new();
    members.insert(name.to_owned(), json!({ "type": "array", "items": item }));
    members.insert("next".to_owned(), next.clone());
    output(&[name], Value::Object(members))
}

pub(super) fn next_text() -> Value {
    json!({ "type": "string", "description": "If there are more: the page of the next call" })
}

pub(super) fn page_members() -> Value {
    json!({
        "page": { "type": "string", "description": "What the answer before had as next" },
        "limit": limit(PAGE_ENTRIES_MAX),
    })
}

pub(super) fn actor() -> Value {
    json!({ "type": "string", "maxLength": ACTOR_BYTES_MAX })
}
