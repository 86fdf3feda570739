//! What the four tools do.

use alknet_call::OperationType;
use alknet_gateway::{
    ApiError, BatchRequest, BatchResult, CallRequest, Caller, Code, Gateway, Query,
};
use bytes::Bytes;
use http::StatusCode;
use rmcp::model::{CallToolResult, JsonObject, ProtocolVersion};
use serde_json::{Value, json};

use crate::server::content;

type Outcome = Result<CallToolResult, ApiError>;

/// Whatever has a JSON form, as a result.
fn answer(value: Value, version: &ProtocolVersion) -> CallToolResult {
    content::structured(value.to_string(), value, version)
}

pub(super) fn search(
    gateway: &Gateway,
    caller: &Caller,
    arguments: JsonObject,
    version: &ProtocolVersion,
) -> Outcome {
    let mut query = Query {
        no_subscriptions: true,
        ..Query::default()
    };
    for (name, value) in &arguments {
        match value {
            // Clients that fill in every member mean nothing by it.
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

/// Of a name that somebody sent.
fn short(name: &str) -> String {
    name.chars().take(64).collect()
}

pub(super) fn schema(
    gateway: &Gateway,
    caller: &Caller,
    arguments: &JsonObject,
    version: &ProtocolVersion,
) -> Outcome {
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
    caller: &Caller,
    arguments: JsonObject,
    version: &ProtocolVersion,
) -> Outcome {
    let body = text(arguments);
    let request = CallRequest::read(&body)?;
    let content = gateway
        .find(caller, &request.operation)
        .is_ok_and(|found| content::is_declared(found.spec()));
    let output = gateway.invoke(caller, request.invocation(&body)?).await?;
    Ok(match content {
        true => content::blocks(&output, version),
        false => content::result(&output, version),
    })
}

pub(super) async fn batch(
    gateway: &Gateway,
    caller: &Caller,
    arguments: JsonObject,
    version: &ProtocolVersion,
) -> Outcome {
    let body = text(arguments);
    let request = BatchRequest::read(&body)?;
    let calls = request.calls.iter();
    let calls = calls.map(|call| (call.id.as_ref().to_owned(), call.invocation(&body)));
    let results = gateway.batch(caller, calls.collect(), request.mode).await?;
    let results: Vec<_> = results.iter().map(|one| item(one, caller)).collect();
    Ok(answer(json!({ "results": results }), version))
}

fn item(result: &BatchResult, caller: &Caller) -> Value {
    let id = &result.id;
    match &result.outcome {
        Ok(output) => json!({"id": id, "status": 200, "output": content::read(output).1}),
        Err(error) => {
            let object = error.object(&caller.request_id);
            json!({"id": id, "status": error.status.as_u16(), "error": object})
        }
    }
}

/// As `/call` and `/batch` read it.
fn text(arguments: JsonObject) -> Bytes {
    Value::Object(arguments).to_string().into()
}
