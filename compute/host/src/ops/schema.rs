//! Schemas that several operations share.

use serde_json::{Value, json};

use crate::limits::RANK_MAX;

/// Schema of a shape.
pub(super) fn shape() -> Value {
    json!({
        "type": "array", "maxItems": RANK_MAX,
        "items": { "type": "integer", "minimum": 0 },
    })
}

/// Schema of a tensor in a request or a response. Bytes are a part of a mixed frame, or base64.
pub(super) fn tensor() -> Value {
    json!({
        "type": "object",
        "properties": {
            "inline": bytes(),
            "ref": { "type": "string" },
            "handle": { "type": "string" },
            "dtype": { "type": "string" },
            "shape": shape(),
            "expires_ms": { "type": "integer", "minimum": 0 },
        },
        "additionalProperties": false,
    })
}

/// Schema of bytes.
pub(super) fn bytes() -> Value {
    json!({
        "type": ["string", "object"],
        "contentEncoding": "base64",
        "description": "{\"$bin\":[offset,length]}, or base64",
    })
}

/// Schema of the form of a response.
pub(super) fn wanted() -> Value {
    json!({
        "enum": ["inline", "handle"],
        "description": "'inline' returns the bytes, 'handle' keeps them on the device; unless given, by their length",
    })
}

/// Schema of a kernel's variant.
pub(super) fn variant() -> Value {
    json!({ "enum": ["auto", "host", "wgsl"], "default": "auto" })
}

/// Schema of a range of rows: the first, and the one after the last.
pub(super) fn rows() -> Value {
    json!({
        "type": ["array", "null"], "minItems": 2, "maxItems": 2,
        "items": { "type": "integer", "minimum": 0 },
    })
}
