//! The four fixed tools as clients see them. Their names and shapes are a contract.

use std::sync::{Arc, LazyLock};

use alknet_gateway::limits::{
    BATCH_CALLS_MAX, BATCH_ID_BYTES_MAX, NAMESPACE_CHARS_MAX, SEARCH_BYTES_MAX, SEARCH_LIMIT,
    SEARCH_LIMIT_MAX, TIMEOUT_MS_MAX,
};
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::{Value, json};

pub(super) const SEARCH: &str = "search";
pub(super) const SCHEMA: &str = "schema";
pub(super) const CALL: &str = "call";
pub(super) const BATCH: &str = "batch";

/// The text that a model reads first.
pub(super) const INSTRUCTIONS: &str = "This is a node with many operations. Find one with 'search', \
    read what it takes and answers with 'schema', and use it with 'call', or several at once with \
    'batch'. Every list holds only what you may use.";

pub(super) static FIXED: LazyLock<[Tool; 4]> =
    LazyLock::new(|| [search(), schema(), call(), batch()]);

fn object(value: Value) -> Arc<JsonObject> {
    match value {
        Value::Object(object) => Arc::new(object),
        // All callers pass objects.
        _ => Arc::default(),
    }
}

fn tool(name: &'static str, description: &'static str, input: Value, reads: bool) -> Tool {
    let mut tool = Tool::new(name, description, object(input));
    let annotations = ToolAnnotations::new().read_only(reads);
    tool.annotations = Some(match reads {
        // A tool that reads only describes operations of this node. A call may reach anything.
        true => annotations.open_world(false),
        false => annotations,
    });
    tool
}

fn kind() -> Value {
    json!({"type": "string", "enum": ["query", "mutation"]})
}

fn search() -> Tool {
    let input = json!({
        "type": "object",
        "properties": {
            "q": {
                "type": "string",
                "maxLength": SEARCH_BYTES_MAX,
                "description": "Part of a name, a summary or a tag, in any case.",
            },
            "namespace": {
                "type": "string",
                "maxLength": NAMESPACE_CHARS_MAX,
                "description": "The first part of the names of operations.",
            },
            "type": kind(),
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": SEARCH_LIMIT_MAX,
                "default": SEARCH_LIMIT,
            },
            "cursor": {"type": "string", "description": "The member 'next' of the page before."},
        },
        "additionalProperties": false,
    });
    let mut tool = tool(
        SEARCH,
        "Lists operations that you may call, in order of name.",
        input,
        true,
    );
    tool.output_schema = Some(object(json!({
        "type": "object",
        "properties": {
            "operations": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "operation": {"type": "string"},
                        "type": kind(),
                        "summary": {"type": "string"},
                        "namespace": {"type": "string"},
                        "access": {"type": "string"},
                    },
                    "required": ["operation", "type", "summary", "namespace", "access"],
                },
            },
            "next": {"type": ["string", "null"]},
        },
        "required": ["operations", "next"],
    })));
    tool
}

fn schema() -> Tool {
    let input = json!({
        "type": "object",
        "properties": {
            "operation": {"type": "string", "description": "Name of the operation, such as /node/info."},
        },
        "required": ["operation"],
        "additionalProperties": false,
    });
    let mut tool = tool(
        SCHEMA,
        "Describes one operation: JSON Schemas of its input and output, and its errors.",
        input,
        true,
    );
    tool.output_schema = Some(object(json!({
        "type": "object",
        "properties": {
            "operation": {"type": "string"},
            "type": kind(),
            "summary": {"type": "string"},
            "description": {"type": "string"},
            "input_schema": {"description": "A JSON Schema."},
            "output_schema": {"description": "A JSON Schema."},
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "code": {"type": "string"},
                        "http_status": {"type": "integer"},
                        "schema": {"description": "A JSON Schema of the details."},
                    },
                    "required": ["code", "http_status", "schema"],
                },
            },
            "examples": {"type": "array"},
        },
        "required": [
            "operation", "type", "summary", "description", "input_schema", "output_schema",
            "errors", "examples",
        ],
    })));
    tool
}

/// The members of a call.
fn members() -> Value {
    json!({
        "operation": {"type": "string", "description": "Name of the operation, such as /node/info."},
        "input": {"description": "Input of the operation, in the form that 'schema' shows; null if left out."},
        "timeout_ms": {"type": "integer", "minimum": 1, "maximum": TIMEOUT_MS_MAX},
        "idempotency_key": {
            "type": "string",
            "description": "The node runs a mutation once for each key, also if the call is repeated.",
        },
        "peer": {"type": "string", "description": "The peer that the node forwards the call to."},
    })
}

fn call() -> Tool {
    let input = json!({
        "type": "object",
        "properties": members(),
        "required": ["operation"],
        "additionalProperties": false,
    });
    // The tool declares no output schema: `{}` would allow the same, and clients of older versions accept only
    // schemas of objects.
    tool(
        CALL,
        "Calls one operation, and answers with its output.",
        input,
        false,
    )
}

fn batch() -> Tool {
    let mut item = members();
    item["id"] = json!({
        "type": "string",
        "minLength": 1,
        "maxLength": BATCH_ID_BYTES_MAX,
        "description": "The id of the result; another one for each call.",
    });
    let input = json!({
        "type": "object",
        "properties": {
            "calls": {
                "type": "array",
                "maxItems": BATCH_CALLS_MAX,
                "items": {
                    "type": "object",
                    "properties": item,
                    "required": ["id", "operation"],
                    "additionalProperties": false,
                },
            },
            "mode": {
                "type": "string",
                "enum": ["parallel", "sequential", "stop_on_error"],
                "default": "parallel",
            },
        },
        "required": ["calls"],
        "additionalProperties": false,
    });
    let mut tool = tool(
        BATCH,
        "Calls several operations. One that fails does not fail the others.",
        input,
        false,
    );
    tool.output_schema = Some(object(json!({
        "type": "object",
        "properties": {
            "results": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "id": {"type": "string"},
                        "status": {"type": "integer"},
                        "output": {"description": "What the operation answered."},
                        "error": {
                            "type": "object",
                            "properties": {
                                "code": {"type": "string"},
                                "message": {"type": "string"},
                                "retryable": {"type": "boolean"},
                            },
                            "required": ["code", "message", "retryable"],
                        },
                    },
                    "required": ["id", "status"],
                },
            },
        },
        "required": ["results"],
    })));
    tool
}
