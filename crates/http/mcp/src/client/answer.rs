//! What a server answered to a call, as the outcome of an operation.

use alknet_call::{CallError, ErrorCode, Output};
use rmcp::model::{CallToolResponse, CallToolResult, ContentBlock};
use serde_json::json;

use crate::client::tools::{SERVER_ERROR, TOOL_ERROR, shortened};

/// Characters of a message that are passed on.
const MESSAGE_CHARS_MAX: usize = 1000;

pub(super) fn outcome(response: CallToolResponse, typed: bool) -> Result<Output, CallError> {
    match response {
        CallToolResponse::Complete(result) => complete(result, typed),
        CallToolResponse::InputRequired(_) => Err(refused(
            "the tool wants to be told more by a person or a model, which this node refuses",
        )),
        _ => Err(refused(
            "the server put the call off, which nobody asked it to",
        )),
    }
}

fn refused(message: &str) -> CallError {
    CallError::operation(SERVER_ERROR, message)
}

fn complete(result: CallToolResult, typed: bool) -> Result<Output, CallError> {
    let CallToolResult {
        content,
        structured_content,
        is_error,
        ..
    } = result;
    if is_error == Some(true) {
        let message = format!("the tool failed: {}", text(&content));
        let details = json!({"content": content, "structuredContent": structured_content});
        return Err(CallError::operation(TOOL_ERROR, message).with_details(details));
    }
    match (typed, structured_content) {
        (false, _) => Ok(Output::Value(json!({ "content": content }))),
        (true, Some(value)) => Ok(Output::Value(value)),
        (true, None) => Err(CallError::new(
            ErrorCode::InvalidOutput,
            "the tool did not answer with what it promised",
        )),
    }
}

/// What a tool says first.
fn text(content: &[ContentBlock]) -> String {
    let first = content.iter().find_map(|block| match block {
        ContentBlock::Text(text) => Some(text.text.as_str()),
        _ => None,
    });
    shortened(first.unwrap_or("it does not say why"), MESSAGE_CHARS_MAX)
}
