//! Builds the results of tools.

use std::sync::Arc;

use alknet_call::{CallBody, CallOutput, ErrorCode, InputMemory, OperationSpec};
use alknet_gateway::{ApiError, MemoryLease, RequestId};
use http::StatusCode;
use rmcp::model::{CallToolResult, ContentBlock, ProtocolVersion};
use serde::Deserialize;
use serde_json::Value;

/// A keyword of an operation's output schema. If it is `true`, the output is an object whose member `content` is a
/// list of the protocol's content blocks: text, images, sound and resources. The blocks become the result unchanged.
/// The members `structuredContent` and `isError` are used too. Operations that are imported from other servers answer
/// like this.
pub const CONTENT_KEYWORD: &str = "x-mcp-content";

/// Whether the operation's output is content.
pub(super) fn is_declared(spec: &OperationSpec) -> bool {
    spec.output_schema.get(CONTENT_KEYWORD) == Some(&Value::Bool(true))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToolContent {
    content: Vec<ContentBlock>,
    #[serde(default)]
    structured_content: Option<Value>,
    #[serde(default)]
    is_error: bool,
}

/// Parses an output; its memory counts against `lease`.
///
/// # Errors
/// 413 if the output has too many values for its length, or needs more memory than there is.
pub(super) fn value(output: &CallOutput, lease: &Arc<MemoryLease>) -> Result<Value, ApiError> {
    let memory: Arc<dyn InputMemory> = Arc::clone(lease) as _;
    let body = CallBody::from(output.clone()).with_memory(Some(memory));
    body.try_into_value().map_err(|error| {
        let message = format!("the answer is too large for a tool: {}", error.message);
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::PayloadTooLarge,
            message,
        )
    })
}

fn text(output: &CallOutput) -> String {
    let mut text = Vec::new();
    output.append_to(&mut text);
    String::from_utf8(text).unwrap_or_default()
}

/// A result with `output`. Older versions of the protocol carry a value that is no object only as text. An output
/// that is too large to parse becomes text alone, unless the tool promised a value.
pub(super) fn result(
    output: &CallOutput,
    lease: MemoryLease,
    promised: bool,
    version: &ProtocolVersion,
) -> Result<CallToolResult, ApiError> {
    let value = value(output, &Arc::new(lease));
    match value {
        Ok(value) => Ok(structured(text(output), value, version)),
        Err(_) if !promised => {
            let text = ContentBlock::text(text(output));
            Ok(CallToolResult::success(vec![text]))
        }
        Err(error) => Err(error),
    }
}

pub(super) fn structured(text: String, value: Value, version: &ProtocolVersion) -> CallToolResult {
    let mut result = CallToolResult::success(vec![ContentBlock::text(text)]);
    // Versions are dates in ISO form, whose order is that of their text.
    let any = version.as_str() >= ProtocolVersion::V_2026_07_28.as_str();
    result.structured_content = (any || value.is_object()).then_some(value);
    result
}

/// A result with the operation's content, or with its output if that is no content.
pub(super) fn blocks(
    output: &CallOutput,
    lease: MemoryLease,
    version: &ProtocolVersion,
) -> Result<CallToolResult, ApiError> {
    let value = value(output, &Arc::new(lease))?;
    Ok(match ToolContent::deserialize(&value) {
        Ok(content) => {
            let mut result = CallToolResult::success(content.content);
            result.structured_content = content.structured_content;
            result.is_error = Some(content.is_error);
            result
        }
        Err(error) => {
            tracing::warn!(%error, "an operation that declares content answered with something else");
            structured(text(output), value, version)
        }
    })
}

/// A result that reports an error. If the tool promised another shape, the error is only in the text, because clients
/// check every structured content against the promised schema.
pub(super) fn refusal(error: &ApiError, id: &RequestId, promised: bool) -> CallToolResult {
    let object = error.object(id);
    let mut result = CallToolResult::error(vec![ContentBlock::text(object.to_string())]);
    result.structured_content = (!promised).then_some(object);
    result
}
