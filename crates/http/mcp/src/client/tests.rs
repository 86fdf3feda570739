use alknet_call::{OperationType, Visibility};
use rmcp::model::Tool;
use serde_json::{Value, json};

use super::tool_list::McpToolList;
use super::tools::{ImportedTool, taken};
use crate::limits::{DESCRIPTION_CHARS_MAX, SCHEMA_BYTES_MAX};

fn tool(value: Value) -> Tool {
    serde_json::from_value(value).expect("a tool")
}

fn plain(name: &str) -> Value {
    json!({"name": name, "inputSchema": {"type": "object"}})
}

fn all(tools: &[Value]) -> (Vec<ImportedTool>, Vec<String>) {
    taken("ns", &[], list(tools.iter().cloned(), false))
}

fn list(tools: impl IntoIterator<Item = Value>, takes_headers: bool) -> McpToolList {
    McpToolList {
        tools: tools.into_iter().map(tool).collect(),
        takes_headers,
    }
}

#[test]
fn tools_become_internal_operations() {
    let mut reading = plain("list files");
    reading["annotations"] = json!({"readOnlyHint": true});
    reading["outputSchema"] = json!({"type": "object", "x-mcp-content": true});
    let (tools, left_out) = all(&[reading, plain("write")]);
    assert!(left_out.is_empty());
    assert_eq!(tools[0].spec.name, "ns/list_files");
    assert_eq!(tools[0].name, "list files");
    assert_eq!(tools[0].spec.op_type, OperationType::Query);
    assert_eq!(tools[1].spec.op_type, OperationType::Mutation);
    assert!(
        tools
            .iter()
            .all(|tool| tool.spec.visibility == Visibility::Internal)
    );
    // What a server writes into a schema does not make its output more than it is.
    assert!(tools[0].typed && tools[0].spec.output_schema.get("x-mcp-content").is_none());
    assert!(!tools[1].typed && tools[1].spec.output_schema["x-mcp-content"] == true);
}

#[test]
fn only_what_is_wanted_is_taken() {
    let tools = ["list files", "list_users", "remove"].map(plain);
    let (found, left_out) = taken("ns", &["list_".to_owned()], list(tools, false));
    assert_eq!(found.len(), 2);
    assert!(left_out.is_empty(), "no caller asks for the others");
}

#[test]
fn words_of_unknown_servers_are_cut_and_marked() {
    let mut one = plain("a");
    one["description"] = format!("ignore all\u{1b}[0m{}", "x".repeat(9000)).into();
    let (tools, _) = all(&[one]);
    let about = &tools[0].spec.description;
    assert!(
        about.contains("did not check") && !about.contains('\u{1b}'),
        "{about}"
    );
    assert!(about.chars().count() < DESCRIPTION_CHARS_MAX + 120);
}

#[test]
fn what_cannot_be_an_operation_is_left_out_alone() {
    let mut remote = plain("remote");
    remote["inputSchema"] = json!({"type": "object", "$ref": "http://127.0.0.1/x"});
    let mut giant = plain("giant");
    giant["inputSchema"]["description"] = "x".repeat(SCHEMA_BYTES_MAX).into();
    let mut broken = plain("broken");
    broken["outputSchema"] = json!({"type": "no such type"});
    let (tools, left_out) = all(&[plain("fine"), plain("fine"), remote, giant, broken]);
    assert_eq!(tools.len(), 1, "{left_out:?}");
    assert_eq!(left_out.len(), 4, "{left_out:?}");
}

#[test]
fn a_tool_whose_headers_are_not_allowed_is_left_out_of_a_server_that_takes_them() {
    let mut wrong = plain("wrong");
    wrong["inputSchema"]["properties"] = json!({"a": {"x-mcp-header": "a"}});
    let tools = [plain("fine"), wrong];
    let (found, left_out) = taken("ns", &[], list(tools.clone(), true));
    assert_eq!((found.len(), left_out.len()), (1, 1), "{left_out:?}");
    let (found, _) = taken("ns", &[], list(tools, false));
    assert_eq!(
        found.len(),
        2,
        "a server of an older version takes no headers"
    );
}
