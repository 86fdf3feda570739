//! Operations that are tools of their own.

use std::collections::BTreeMap;

use alknet_call::{IMPORTED_TAG, OperationSpec, OperationType, is_operation_name};
use alknet_gateway::GatewayCall;
use bytes::Bytes;
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::{Map, Value, json};

use crate::limits::{PINNED_MAX, TOOL_NAME_BYTES_MAX};
use crate::server::arguments::ToolArguments;
use crate::server::content;

/// The names of the operations, by the names of their tools.
#[derive(Debug, Default)]
pub(super) struct PinnedTools(BTreeMap<String, String>);

impl PinnedTools {
    /// The operations of a list that can be tools, and for each other one the reason why it cannot.
    pub(super) fn new(operations: &[String]) -> (Self, Vec<String>) {
        let mut left_out = Vec::new();
        let mut tools = BTreeMap::new();
        for operation in operations {
            let operation = operation.strip_prefix('/').unwrap_or(operation);
            let name = tool_name(operation);
            let invalid = if !is_operation_name(operation) {
                Some("this is no name of an operation".to_owned())
            } else if name.len() > TOOL_NAME_BYTES_MAX {
                Some(format!(
                    "tools have names of at most {TOOL_NAME_BYTES_MAX} bytes"
                ))
            } else if tools.get(&name).is_some_and(|other| other != operation) {
                Some(format!("another operation is the tool '{name}' already"))
            } else if tools.len() == PINNED_MAX && !tools.contains_key(&name) {
                Some(format!(
                    "at most {PINNED_MAX} operations are tools of their own"
                ))
            } else {
                None
            };
            match invalid {
                None => drop(tools.insert(name, operation.to_owned())),
                Some(why) => {
                    tracing::warn!(operation, why, "an operation is no tool of its own");
                    left_out.push(format!("{operation}: {why}"));
                }
            }
        }
        (Self(tools), left_out)
    }

    /// The name of the operation that the tool calls.
    pub(super) fn operation(&self, tool: &str) -> Option<&str> {
        self.0.get(tool).map(String::as_str)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(tool, name)| (tool.as_str(), name.as_str()))
    }
}

/// The name of an operation's tool. The protocol allows letters, digits, `_`, `-` and `.`, but most interfaces that
/// describe tools to models do not allow `.`. The name never equals one of the four fixed tools: those have no `_`,
/// and every operation has a slash.
fn tool_name(operation: &str) -> String {
    operation.replace('/', "_")
}

/// The tool for an operation; `None` for a subscription, which has several outputs.
pub(super) fn tool(name: &str, spec: &OperationSpec) -> Option<Tool> {
    // A tool has one result.
    if spec.op_type == OperationType::Subscription {
        return None;
    }
    let query = spec.op_type == OperationType::Query;
    let mut tool = Tool::new(name.to_owned(), spec.description.clone(), arguments(spec).0);
    tool.output_schema = promised(spec).map(Into::into);
    if spec.tags.iter().any(|tag| tag == IMPORTED_TAG) {
        // The server's owner describes what such a tool changes, and this node does not vouch for that.
        tool.annotations = Some(ToolAnnotations::new().open_world(true));
        return Some(tool);
    }
    let annotations = ToolAnnotations::new().read_only(query).open_world(false);
    tool.annotations = Some(match query {
        true => annotations,
        false => annotations.idempotent(spec.idempotent == alknet_call::Idempotence::Yes),
    });
    Some(tool)
}

/// The output schema that a client may rely on. Only objects qualify, because clients of all versions understand
/// them.
pub(super) fn promised(spec: &OperationSpec) -> Option<JsonObject> {
    let schema = spec.output_schema.as_object()?;
    let object = schema.get("type") == Some(&json!("object"));
    (object && !content::is_declared(spec)).then(|| schema.clone())
}

/// How a tool's arguments, which are always an object, become an operation's input, which may be any value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ArgumentForm {
    /// The arguments are the input.
    Object,
    /// The tool has no arguments, and the input is `null`.
    Null,
    /// The argument `input` is the input.
    Wrapped,
}

fn arguments(spec: &OperationSpec) -> (JsonObject, ArgumentForm) {
    let empty = Map::new();
    let schema = spec.input_schema.as_object().unwrap_or(&empty);
    let kinds: Vec<&str> = match schema.get("type") {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let anything = schema
        .keys()
        .all(|key| KEYS_OF_NOTHING.contains(&key.as_str()));
    if kinds.contains(&"object") || (kinds.is_empty() && (anything || describes(schema))) {
        let mut schema = schema.clone();
        schema.insert("type".to_owned(), "object".into());
        return (schema, ArgumentForm::Object);
    }
    if kinds == ["null"] {
        let none = json!({"type": "object", "additionalProperties": false});
        return (
            none.as_object().cloned().unwrap_or_default(),
            ArgumentForm::Null,
        );
    }
    let mut inner = schema.clone();
    let mut outer = Map::new();
    outer.insert("type".to_owned(), "object".into());
    // References in the schema point to definitions at its root.
    for key in ["$defs", "definitions", "$schema"] {
        if let Some(value) = inner.remove(key) {
            outer.insert(key.to_owned(), value);
        }
    }
    outer.insert("properties".to_owned(), json!({ "input": inner }));
    outer.insert("required".to_owned(), json!(["input"]));
    outer.insert("additionalProperties".to_owned(), false.into());
    (outer, ArgumentForm::Wrapped)
}

/// Keywords that do not constrain a value.
const KEYS_OF_NOTHING: [&str; 6] = [
    "$schema",
    "title",
    "description",
    "examples",
    "default",
    "$comment",
];

/// Whether a schema without a type describes objects.
fn describes(schema: &JsonObject) -> bool {
    ["properties", "required", "additionalProperties"]
        .iter()
        .any(|key| schema.contains_key(*key))
}

/// The call that the arguments describe.
pub(super) fn call(spec: &OperationSpec, arguments: &ToolArguments) -> GatewayCall {
    GatewayCall {
        operation: spec.name.clone(),
        input: input(spec, arguments),
        memory: arguments.0.lease.clone().map(|lease| lease as _),
        ..GatewayCall::default()
    }
}

/// The text of the input; `None` is `null`.
fn input(spec: &OperationSpec, arguments: &ToolArguments) -> Option<Bytes> {
    let text = &arguments.0.text;
    let inner = text
        .strip_prefix(b"{")
        .and_then(|text| text.strip_suffix(b"}"));
    match self::arguments(spec).1 {
        ArgumentForm::Null if inner.is_some_and(|inner| inner.trim_ascii().is_empty()) => None,
        ArgumentForm::Null | ArgumentForm::Object => Some(text.clone()),
        // A missing input is `null`, and the operation's own schema decides whether it may be.
        ArgumentForm::Wrapped => arguments.one("input"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(input: Value) -> OperationSpec {
        OperationSpec::query("demo/one", "").with_input(input)
    }

    fn given(schema: Value, arguments: Value) -> Option<Value> {
        let arguments = ToolArguments::from_object(arguments.as_object().cloned());
        let input = input(&spec(schema), &arguments)?;
        Some(serde_json::from_slice(&input).expect("JSON"))
    }

    #[test]
    fn every_input_has_its_arguments() {
        let object = json!({"type": "object", "properties": {"n": {"type": "integer"}}});
        let arguments = json!({"n": 1});
        assert_eq!(given(object, arguments.clone()), Some(arguments.clone()));
        assert_eq!(given(json!({}), arguments.clone()), Some(arguments.clone()));
        let maybe = json!({"type": ["object", "null"]});
        assert_eq!(given(maybe, json!(null)), Some(json!({})));
        assert_eq!(given(json!({"type": "null"}), json!({})), None);
        // What is not expected is not dropped: the operation refuses it.
        assert_eq!(
            given(json!({"type": "null"}), arguments.clone()),
            Some(arguments)
        );
        let number = json!({"type": "integer"});
        assert_eq!(given(number.clone(), json!({"input": 7})), Some(json!(7)));
        assert_eq!(given(number, json!({})), None);
    }

    #[test]
    fn references_reach_their_definitions() {
        let schema = json!({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "string"}}});
        let (outer, form) = arguments(&spec(schema));
        assert_eq!(form, ArgumentForm::Wrapped);
        assert_eq!(outer["$defs"]["a"]["type"], "string");
        assert_eq!(
            outer["properties"]["input"]["anyOf"][0]["$ref"],
            "#/$defs/a"
        );
    }

    /// Clients run a tool that only reads without asking a person.
    #[test]
    fn the_node_vouches_for_no_tool_of_another_server() {
        let hints = |spec: &OperationSpec| {
            let tool = tool("demo_one", spec).expect("a tool");
            let hints = tool.annotations.expect("there are some");
            (hints.read_only_hint, hints.open_world_hint)
        };
        let mut spec = spec(json!({}));
        assert_eq!(hints(&spec), (Some(true), Some(false)));
        spec.tags.push(IMPORTED_TAG.to_owned());
        assert_eq!(hints(&spec), (None, Some(true)));
    }

    #[test]
    fn what_cannot_be_a_tool_is_named() {
        let mut operations: Vec<_> = (0..PINNED_MAX - 1).map(|n| format!("a/n{n}")).collect();
        operations.extend(["/a/b_c", "a_b/c", "nothing", "a/last"].map(str::to_owned));
        let (pinned, left_out) = PinnedTools::new(&operations);
        assert_eq!(pinned.iter().count(), PINNED_MAX);
        assert_eq!(pinned.operation("a_b_c"), Some("a/b_c"));
        assert_eq!(left_out.len(), 3, "{left_out:?}");
        let long = format!("{0}/{0}/{0}", "a".repeat(63));
        assert_eq!(PinnedTools::new(&[long]).1.len(), 1);
    }
}
