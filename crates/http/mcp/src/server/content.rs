//! What a tool's result is made of.

use std::sync::Arc;

use alknet_call::{CallBody, CallOutput, ErrorCode, InputMemory, OperationSpec};
use alknet_gateway::{ApiError, MemoryLease, RequestId};
use http::StatusCode;
use rmcp::model::{CallToolResult, ContentBlock, ProtocolVersion};
use serde::Deserialize;
use serde_json::Value;

/// A keyword of an operation's output schema. Where it is `true`, the output is an object with the
/// member `content`, a list of the protocol's content blocks, that becomes the result as it is: text,
/// images, sound, resources. Members `structuredContent` and `isError` are taken too. Operations that
/// are imported from other servers answer so.
pub const CONTENT_KEYWORD: &str = "x-mcp-content";

/// Whether an operation answers with content.
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

/// What an output reads as, which counts against `lease`.
///
/// # Errors
/// 413 where it has too many values for its length, or more than there is memory for.
pub(super) fn value(output: &CallOutput, lease: &Arc<MemoryLease>) -> Result<Value, ApiError> {
    let memory: Arc<dyn InputMemory> = Arc::clone(lease) as _;
    let body = CallBody::from(output.clone()).counted(Some(memory));
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

/// A result with `output`, the value of which older versions of the protocol only carry as text where it
/// is no object. One that is too large for a value is text alone, unless a value was promised.
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
    let any = version.as_str() >= ProtocolVersion::V_2026_07_28.as_str();
    result.structured_content = (any || value.is_object()).then_some(value);
    result
}

/// A result with the content that an operation answered with, or with its output where it answered
/// something else.
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

/// A result that tells an error. Where a tool promises another shape, only its text does: clients hold
/// every structured content against what was promised.
pub(super) fn refusal(error: &ApiError, id: &RequestId, promised: bool) -> CallToolResult {
    let object = error.object(id);
    let mut result = CallToolResult::error(vec![ContentBlock::text(object.to_string())]);
    result.structured_content = (!promised).then_some(object);
    result
}
