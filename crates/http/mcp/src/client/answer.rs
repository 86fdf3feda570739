//! Turns a server's answer to a call into the outcome of an operation.

use alknet_call::{CallError, CallOutput, ErrorCode, tree_bytes};
use bytes::Bytes;
use rmcp::model::{CallToolResult, ContentBlock, ServerResult};
use serde::Serialize;
use serde_json::json;

use crate::client::tools::{SERVER_ERROR, TOOL_ERROR, shortened};
use crate::limits::{ERROR_BYTES_MAX, NOTE_TREE_BYTES_MAX};

/// Characters of a server's message that the node passes on.
const MESSAGE_CHARS_MAX: usize = 1000;

/// The text of the output. This function consumes the answer, whose values are a tree in memory.
pub(super) fn outcome(response: ServerResult, typed: bool) -> Result<Bytes, CallError> {
    match response {
        ServerResult::CallToolResult(result) => complete(result, typed),
        ServerResult::InputRequiredResult(_) => Err(refused(
            "the tool asks a person or a model for more, which this node refuses",
        )),
        ServerResult::CreateTaskResult(_) => Err(refused(
            "the server put the call off, which this node did not ask for",
        )),
        _ => Err(refused(
            "the server does not speak as it should: its answer is not one to what it was asked",
        )),
    }
}

fn refused(message: &str) -> CallError {
    CallError::operation(SERVER_ERROR, message)
}

fn complete(result: CallToolResult, typed: bool) -> Result<Bytes, CallError> {
    #[derive(Serialize)]
    struct Content {
        content: Vec<ContentBlock>,
    }
    let CallToolResult {
        content,
        structured_content,
        is_error,
        ..
    } = result;
    if is_error == Some(true) {
        return Err(failed(&content, structured_content));
    }
    // An operation without a declared output promises only blocks of content.
    match (typed, structured_content) {
        (false, _) => text_of(&Content { content }),
        (true, Some(value)) => text_of(&value),
        (true, None) => Err(CallError::new(
            ErrorCode::InvalidOutput,
            "the tool did not answer with what it promised",
        )),
    }
}

fn text_of(output: &impl Serialize) -> Result<Bytes, CallError> {
    match CallOutput::json(output)? {
        CallOutput::Raw(text) => Ok(text),
        _ => Err(CallError::internal("text of JSON is no text")),
    }
}

/// The error of a tool that failed. It has the tool's whole answer only if that is short, because the holder of an
/// error keeps the answer as a tree.
fn failed(content: &[ContentBlock], structured: Option<serde_json::Value>) -> CallError {
    let message = format!("the tool failed: {}", text(content));
    let error = CallError::operation(TOOL_ERROR, message);
    let details = json!({"content": content, "structuredContent": structured});
    // The tree is limited too, because a short text may become a large tree.
    let short = text_of(&details).is_ok_and(|text| {
        text.len() <= ERROR_BYTES_MAX
            && tree_bytes(&text).is_ok_and(|bytes| bytes <= NOTE_TREE_BYTES_MAX)
    });
    match short {
        true => error.with_details(details),
        false => error.with_details(json!({"omitted": "it is too long"})),
    }
}

/// The first text of the tool's answer.
fn text(content: &[ContentBlock]) -> String {
    let first = content.iter().find_map(|block| match block {
        ContentBlock::Text(text) => Some(text.text.as_str()),
        _ => None,
    });
    shortened(first.unwrap_or("it does not say why"), MESSAGE_CHARS_MAX)
}
