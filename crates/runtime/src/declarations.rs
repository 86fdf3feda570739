//! `alknet.d.ts`: TypeScript declarations of what a script can use, for the operations of one
//! session.

use std::fmt::Write as _;

use serde_json::Value;

use crate::host::{EnvOperation, ScriptOperationKind};

/// The deepest level of a schema that is written; deeper parts are `unknown`.
const DEPTH: usize = 12;

/// The declarations for a session whose environment has `operations`.
#[must_use]
pub fn declarations(operations: &[EnvOperation]) -> String {
    let mut out = String::from(include_str!("declarations.d.ts"));
    // The declarations omit what the session may not call.
    let may = |path: &str| operations.iter().any(|operation| operation.path == path);
    let parts = [
        ("compute/dispatch", include_str!("declarations.gpu.d.ts")),
        ("tensor/open", include_str!("declarations.tensor.d.ts")),
    ];
    for (path, part) in parts {
        if may(path) {
            out.push('\n');
            out.push_str(part);
        }
    }
    // Only these two parts use the type.
    if may("compute/dispatch") || may("tensor/open") {
        out.push_str("\ntype Bytes = ArrayBuffer | ArrayBufferView;\n");
    }
    let of = |kinds: &[ScriptOperationKind]| {
        let mut listed = String::new();
        for operation in operations
            .iter()
            .filter(|operation| kinds.contains(&operation.kind))
        {
            member(&mut listed, operation);
        }
        listed
    };
    let calls = of(&[ScriptOperationKind::Query, ScriptOperationKind::Mutation]);
    let streams = of(&[ScriptOperationKind::Subscription]);
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "\ninterface AlknetCalls {{\n{calls}}}\n\ninterface AlknetSubscriptions {{\n{streams}}}\n"
    );
    out
}

fn member(out: &mut String, operation: &EnvOperation) {
    if !operation.description.is_empty() {
        // The text would end the comment.
        let text = operation.description.replace("*/", "* /");
        let _ = writeln!(
            out,
            "  /** {} */",
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        );
    }
    // The path is quoted because it has a slash.
    let path = Value::from(operation.path.as_str());
    let (input, output) = (type_of(&operation.input, 0), type_of(&operation.output, 0));
    let _ = writeln!(out, "  {path}: {{ input: {input}; output: {output} }};");
}

/// The type that a JSON Schema describes, as far as TypeScript can express it.
fn type_of(schema: &Value, depth: usize) -> String {
    let Some(schema) = schema.as_object().filter(|_| depth < DEPTH) else {
        // No value matches `false` (JSON Schema Core, section 4.3.2).
        return if schema == &Value::Bool(false) {
            "never"
        } else {
            "unknown"
        }
        .to_owned();
    };
    if let Some(value) = schema.get("const") {
        return literal(value);
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return union(values.iter().map(literal));
    }
    for word in ["oneOf", "anyOf"] {
        if let Some(parts) = schema.get(word).and_then(Value::as_array) {
            return union(parts.iter().map(|part| type_of(part, depth + 1)));
        }
    }
    match schema.get("type") {
        Some(Value::String(name)) => type_of_name(name, schema, depth),
        Some(Value::Array(names)) => union(
            names
                .iter()
                .filter_map(Value::as_str)
                .map(|name| type_of_name(name, schema, depth)),
        ),
        _ if schema.contains_key("properties") => type_of_name("object", schema, depth),
        _ => "unknown".to_owned(),
    }
}

fn type_of_name(name: &str, schema: &serde_json::Map<String, Value>, depth: usize) -> String {
    match name {
        "null" => "null".to_owned(),
        "boolean" => "boolean".to_owned(),
        "integer" | "number" => "number".to_owned(),
        "string" => "string".to_owned(),
        "array" => {
            let item = schema
                .get("items")
                .map_or_else(|| "unknown".to_owned(), |items| type_of(items, depth + 1));
            format!("Array<{item}>")
        }
        "object" => object(schema, depth),
        _ => "unknown".to_owned(),
    }
}

fn object(schema: &serde_json::Map<String, Value>, depth: usize) -> String {
    let empty = serde_json::Map::new();
    let properties = schema
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |name: &str| {
        required.is_some_and(|names| names.iter().any(|known| known.as_str() == Some(name)))
    };
    let members: Vec<String> = properties
        .iter()
        .map(|(name, schema)| {
            let mark = if is_required(name) { "" } else { "?" };
            format!(
                "{}{mark}: {}",
                Value::from(name.as_str()),
                type_of(schema, depth + 1)
            )
        })
        .collect();
    match (members.is_empty(), schema.get("additionalProperties")) {
        (true, Some(Value::Bool(false))) => "Record<string, never>".to_owned(),
        (true, Some(more)) => format!("Record<string, {}>", type_of(more, depth + 1)),
        (true, None) => "Record<string, unknown>".to_owned(),
        (false, _) => format!("{{ {} }}", members.join("; ")),
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => "unknown".to_owned(),
        plain => plain.to_string(),
    }
}

fn union(parts: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<String> = parts.collect();
    parts.dedup();
    match parts.len() {
        0 => "never".to_owned(),
        _ => parts.join(" | "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_become_types() {
        let cases = [
            (json!(true), "unknown"),
            (json!(false), "never"),
            (json!({ "type": "integer" }), "number"),
            (json!({ "type": ["string", "null"] }), "string | null"),
            (json!({ "enum": ["a", 1, null] }), "\"a\" | 1 | null"),
            (
                json!({ "type": "array", "items": { "type": "boolean" } }),
                "Array<boolean>",
            ),
            (
                json!({ "type": "object", "properties": { "a-b": { "type": "string" }, "c": {} }, "required": ["a-b"] }),
                "{ \"a-b\": string; \"c\"?: unknown }",
            ),
            (
                json!({ "type": "object", "additionalProperties": { "type": "number" } }),
                "Record<string, number>",
            ),
        ];
        for (schema, expected) in cases {
            assert_eq!(type_of(&schema, 0), expected, "{schema}");
        }
        let mut deep = json!({ "type": "string" });
        for _ in 0..100 {
            deep = json!({ "type": "array", "items": deep });
        }
        assert!(type_of(&deep, 0).ends_with(&format!("unknown{}", ">".repeat(DEPTH))));
    }

    #[test]
    fn a_description_cannot_leave_its_comment() {
        let operation = EnvOperation {
            path: "a\"b".to_owned(),
            kind: ScriptOperationKind::Query,
            input: json!({}),
            output: json!({}),
            description: "*/ declare const x: 1; /*\nnext".to_owned(),
        };
        let text = declarations(&[operation]);
        assert!(text.contains("/** * / declare const x: 1; /* next */"));
        assert!(text.contains("\"a\\\"b\": { input: unknown; output: unknown };"));
    }
}
