//! The operations of computing.

mod answer;
mod dispatch;
mod info;
mod matmul;
mod schema;
mod sha256;
mod tensors;

use std::sync::Arc;

use alknet_call::{
    CallBody, CallError, CallOutput, Ctx, ErrorDef, HandlerKind, OperationSpec, Registration,
};
use serde_json::json;

use crate::compute::Compute;
use crate::error::{
    Error, QUOTA_EXCEEDED, Result, SHADER_INVALID, TENSOR_INVALID, TENSOR_TOO_LARGE,
};

/// All operations, for a registry.
#[must_use]
pub fn operations(compute: &Compute) -> Vec<Registration> {
    let mut operations = vec![
        info::operation(compute),
        dispatch::operation(compute),
        sha256::operation(compute),
        matmul::operation(compute),
    ];
    operations.extend(tensors::operations(compute));
    operations
}

/// An operation with this description and this function.
fn register<F, Fut>(compute: &Compute, mut spec: OperationSpec, function: F) -> Registration
where
    F: Fn(Compute, CallBody, Ctx) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<CallOutput>> + Send + 'static,
{
    spec.error_schemas.extend(errors());
    spec.tags.push("compute".to_owned());
    let compute = compute.clone();
    let function = Arc::new(function);
    let handler = HandlerKind::once(move |input, ctx| {
        let answer = function(compute.clone(), input, ctx);
        async move { answer.await.map_err(CallError::from) }
    });
    Registration::new(spec, handler)
}

fn errors() -> [ErrorDef; 4] {
    let place = json!({
        "type": "object",
        "properties": {
            "line": { "type": "integer" }, "column": { "type": "integer" },
            "message": { "type": "string" },
        }
    });
    [
        (
            SHADER_INVALID,
            "The shader is wrong, asks for too much, or is not what is bound to it.",
            place,
        ),
        (
            TENSOR_INVALID,
            "A file that a reference names is damaged in the store.",
            json!({}),
        ),
        (
            TENSOR_TOO_LARGE,
            "A tensor has more bytes than one may have; split it.",
            json!({}),
        ),
        (
            QUOTA_EXCEEDED,
            "This identity has as much as it may have; drop handles.",
            json!({}),
        ),
    ]
    .map(|(code, description, schema)| ErrorDef {
        code: code.to_owned(),
        description: description.to_owned(),
        schema,
        http_status: Some(422),
    })
}

/// Parses the input into the type that the operation takes.
fn parse<T: serde::de::DeserializeOwned>(input: &CallBody) -> Result<T> {
    input.parse().map_err(Error::Answered)
}
