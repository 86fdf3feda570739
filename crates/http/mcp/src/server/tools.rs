//! Implements the four fixed tools.

use std::sync::Arc;

use alknet_call::OperationType;
use alknet_gateway::{
    ApiError, BatchRequest, BatchResult, CallRequest, Code, Gateway, HttpCaller, MemoryLease,
    SearchQuery,
};
use http::StatusCode;
use rmcp::model::{CallToolResult, ProtocolVersion};
use serde_json::{Value, json};

use crate::server::arguments::ToolArguments;
use crate::server::content;

type ToolCallResult = Result<CallToolResult, ApiError>;

/// A result with a value that has a JSON form.
fn answer(value: Value, version: &ProtocolVersion) -> CallToolResult {
    content::structured(value.to_string(), value, version)
}

pub(super) fn search(
    gateway: &Gateway,
    caller: &HttpCaller,
    arguments: &ToolArguments,
    version: &ProtocolVersion,
) -> ToolCallResult {
    let arguments = arguments.read()?;
    let mut query = SearchQuery {
        no_subscriptions: true,
        ..SearchQuery::default()
    };
    for (name, value) in &arguments {
        match value {
            // Some clients send every member, and set the unused ones to `null`.
            Value::Null => {}
            Value::String(text) => query.set(name, text)?,
            Value::Number(number) if name == "limit" => query.set(name, &number.to_string())?,
            _ => {
                let message = format!("'{}' has to be a string", short(name));
                return Err(ApiError::malformed(&format!("/{}", short(name)), message));
            }
        }
    }
    if query.op_type == Some(OperationType::Subscription) {
        return Err(ApiError::malformed("/type", "type is query or mutation"));
    }
    Ok(answer(json!(gateway.list(caller, &query)), version))
}

/// The beginning of a name that a client sent.
fn short(name: &str) -> String {
    name.chars().take(64).collect()
}

pub(super) fn schema(
    gateway: &Gateway,
    caller: &HttpCaller,
    arguments: &ToolArguments,
    version: &ProtocolVersion,
) -> ToolCallResult {
    let arguments = arguments.read()?;
    if let Some(other) = arguments.keys().find(|name| *name != "operation") {
        let at = format!("/{}", short(other));
        let message = format!("'{}' is not known here", short(other));
        return Err(ApiError::malformed(&at, message));
    }
    let Some(operation) = arguments.get("operation").and_then(Value::as_str) else {
        let message = "'operation' has to be a string";
        return Err(ApiError::malformed("/operation", message));
    };
    let found = gateway.describe(caller, operation)?;
    if found.op_type == OperationType::Subscription {
        let message = format!(
            "'{}' is a subscription, which no tool can call",
            found.operation
        );
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            Code::InvalidOperationType,
            message,
        ));
    }
    Ok(answer(json!(found), version))
}

pub(super) async fn call(
    gateway: &Gateway,
    caller: &HttpCaller,
    arguments: &ToolArguments,
    version: &ProtocolVersion,
) -> ToolCallResult {
    let body = &arguments.0;
    let request = CallRequest::read(&body.text)?;
    let content = gateway
        .find(caller, &request.operation)
        .is_ok_and(|found| content::is_declared(found.spec()));
    let lease = gateway.lease(caller);
    let reserve = lease.reserve()?;
    let output = gateway.invoke(caller, request.invocation(body)?).await?;
    // The lease counts the result, which now takes the place of the output.
    drop(reserve);
    match content {
        true => content::blocks(&output, lease, version),
        false => content::result(&output, lease, false, version),
    }
}

pub(super) async fn batch(
    gateway: &Gateway,
    caller: &HttpCaller,
    arguments: &ToolArguments,
    version: &ProtocolVersion,
) -> ToolCallResult {
    let body = &arguments.0;
    let request = BatchRequest::read(&body.text)?;
    let calls = request.calls.iter();
    let calls = calls.map(|call| (call.id.as_ref().to_owned(), call.invocation(body)));
    let calls = calls.collect();
    let answers = Arc::new(gateway.lease(caller));
    let results = gateway.batch(caller, calls, request.mode, &answers).await?;
    let results: Vec<_> = results
        .iter()
        .map(|one| item(one, caller, &answers))
        .collect();
    Ok(answer(json!({ "results": results }), version))
}

fn item(result: &BatchResult, caller: &HttpCaller, answers: &Arc<MemoryLease>) -> Value {
    let id = &result.id;
    let value = match &result.outcome {
        Ok(output) => content::value(output, answers),
        Err(error) => Err(error.clone()),
    };
    match value {
        Ok(value) => json!({"id": id, "status": 200, "output": value}),
        Err(error) => {
            let object = error.object(&caller.request_id);
            json!({"id": id, "status": error.status.as_u16(), "error": object})
        }
    }
}
