//! Turns the tools that a server lists into operations.

use std::collections::HashSet;

use alknet_call::{ErrorDef, FromJsonSchema, Idempotence, OperationSpec};
use rmcp::model::Tool;
use serde_json::{Value, json};

use crate::client::names;
use crate::client::param_headers::ParamHeaders;
use crate::client::tool_list::McpToolList;
use crate::limits::{DESCRIPTION_CHARS_MAX, SCHEMA_BYTES_MAX};
use crate::server::CONTENT_KEYWORD;

/// The tool itself reports that it failed.
pub(super) const TOOL_ERROR: &str = "MCP_TOOL_ERROR";
/// The server refused the call, or its answer breaks the protocol.
pub(super) const SERVER_ERROR: &str = "MCP_SERVER_ERROR";

/// A tool that becomes an operation.
#[derive(Debug)]
pub(super) struct ImportedTool {
    /// The name that the server gives the tool.
    pub(super) name: String,
    pub(super) spec: OperationSpec,
    /// Whether the server declared an output schema.
    pub(super) typed: bool,
    /// The arguments that a server of the newest version gets as headers too.
    pub(super) headers: ParamHeaders,
}

/// The tools that can become operations, and for each other tool the reason why it cannot.
pub(super) fn taken(
    namespace: &str,
    only: &[String],
    list: McpToolList,
) -> (Vec<ImportedTool>, Vec<String>) {
    let McpToolList {
        mut tools,
        takes_headers,
    } = list;
    let mut left_out = Vec::new();
    let mut seen = HashSet::new();
    tools.retain(|tool| {
        // Of two tools with one name, a call could reach either, so only the first is imported.
        let first = seen.insert(tool.name.clone());
        if !first {
            left_out.push(format!("{}: it is listed twice", shown(&tool.name)));
        }
        first
    });
    let listed: Vec<&str> = tools.iter().map(|tool| &*tool.name).collect();
    let names = names::tool_names(&listed);
    let mut taken = Vec::with_capacity(tools.len());
    let wanted = |name: &str| only.is_empty() || only.iter().any(|start| name.starts_with(start));
    for (tool, name) in tools.into_iter().zip(names) {
        if !wanted(&name) {
            continue;
        }
        let too_long = bytes(&tool) > SCHEMA_BYTES_MAX;
        let tool_name = tool.name.to_string();
        let headers = ParamHeaders::from_schema(&tool.input_schema);
        let mut one = operation(namespace, &name, tool);
        let refusal = match (too_long, headers) {
            (true, _) => Some(format!(
                "its schemas have more than {SCHEMA_BYTES_MAX} bytes"
            )),
            (false, Err(why)) if takes_headers => Some(why),
            (false, headers) => {
                one.headers = headers.unwrap_or_default();
                compile(&one.spec)
            }
        };
        match refusal {
            None => taken.push(one),
            // The importer gets the list. With a record for each tool, a server could fill the log.
            Some(why) => left_out.push(format!("{}: {why}", shown(&tool_name))),
        }
    }
    (taken, left_out)
}

/// The bytes of a tool's name, description and schemas.
pub(super) fn bytes(tool: &Tool) -> usize {
    let length = |value: &rmcp::model::JsonObject| {
        // This is a part of the largest number, because the sum of a tool's sizes must not
        // overflow.
        serde_json::to_vec(value).map_or(usize::MAX / 4, |text| text.len())
    };
    let output = tool.output_schema.as_deref().map_or(0, length);
    let description = tool.description.as_ref().map_or(0, |text| text.len());
    length(&tool.input_schema) + output + description + tool.name.len()
}

/// The reason why the operation could not be registered, if there is one.
fn compile(spec: &OperationSpec) -> Option<String> {
    let tried = FromJsonSchema::new(vec![spec.clone()]).registrations();
    tried.err().map(|error| shown(&error.to_string()))
}

fn operation(namespace: &str, name: &str, tool: Tool) -> ImportedTool {
    let hints = tool.annotations.clone().unwrap_or_default();
    let name = format!("{namespace}/{name}");
    let reads = hints.read_only_hint == Some(true);
    let about = marked_description(namespace, tool.description.as_deref().unwrap_or_default());
    // A tool that does not declare that it only reads may change something.
    let new = match reads {
        true => OperationSpec::query,
        false => OperationSpec::mutation,
    };
    let typed = tool.output_schema.is_some();
    let output = tool.output_schema.map_or_else(content, |schema| {
        let mut schema = (*schema).clone();
        // The keyword counts only in this node's own descriptions of operations.
        schema.remove(CONTENT_KEYWORD);
        Value::Object(schema)
    });
    let input = Value::Object((*tool.input_schema).clone());
    let mut spec = new(&name, &about)
        .internal()
        .with_input(input)
        .with_output(output);
    if !reads && hints.idempotent_hint == Some(true) {
        spec.idempotent = Idempotence::Yes;
    }
    spec.tags = vec!["mcp".to_owned(), "untrusted".to_owned()];
    spec.error_schemas = vec![
        error(TOOL_ERROR, "The tool failed; 'content' is its answer.", 422),
        error(
            SERVER_ERROR,
            "The server refused the call, or its answer breaks the protocol.",
            502,
        ),
    ];
    ImportedTool {
        name: tool.name.into_owned(),
        spec,
        typed,
        headers: ParamHeaders::default(),
    }
}

fn error(code: &str, description: &str, status: u16) -> ErrorDef {
    ErrorDef {
        code: code.to_owned(),
        description: description.to_owned(),
        schema: json!({"type": "object"}),
        http_status: Some(status),
    }
}

/// The output schema of a tool that declares none: blocks of text, images, sound and resources. A
/// text stays text even if it looks like something else.
fn content() -> Value {
    json!({
        "type": "object",
        "properties": {
            "content": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "type": {"enum": ["text", "image", "audio", "resource", "resource_link"]},
                    },
                    "required": ["type"],
                },
            },
        },
        "required": ["content"],
        CONTENT_KEYWORD: true,
    })
}

/// The text of an untrusted server, marked as such for people and models.
fn marked_description(namespace: &str, text: &str) -> String {
    let text = shortened(text, DESCRIPTION_CHARS_MAX);
    format!(
        "Tool of the server '{namespace}', in its own words, which this node did not check: {text}"
    )
}

/// A name or a message of an untrusted server, for the log.
pub(super) fn shown(text: &str) -> String {
    shortened(text, 200)
}

/// `text` without control characters, and cut to this number of characters.
pub(super) fn shortened(text: &str, chars: usize) -> String {
    let plain = |c: char| match c.is_control() && c != '\n' {
        true => ' ',
        false => c,
    };
    let mut short: String = text.chars().take(chars).map(plain).collect();
    if text.chars().nth(chars).is_some() {
        short.push('…');
    }
    short
}
