//! Responses of servers: what a document promises of them, and how they become outputs.

use std::collections::BTreeSet;

use alknet_call::{
    BAD_GATEWAY, CallError, CallOutput, ErrorCode, ErrorDef, ImportClaim, ImportShare, tree_bytes,
};
use alknet_http_client::{HttpError, ResponseBody};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::body::{bytes_schema, kind};
use super::error::DocumentError;
use super::limits::{ANSWER_BYTES_MAX, ERROR_BYTES_MAX, ERROR_TREE_BYTES_MAX, REMARK_CHARS_MAX};
use super::refs::{OpenApiSourceDocument, escaped};
use super::schema::{SchemaBuilder, SchemaDirection, brief};

/// The most characters of an error's message.
const MESSAGE_CHARS_MAX: usize = 300;
/// The members in which servers put the message of an error.
const MESSAGES: [&str; 6] = [
    "message",
    "error_description",
    "detail",
    "title",
    "error",
    "msg",
];

/// What a document declares about an operation's responses.
pub(super) struct ResponsePlan {
    pub(super) output: Value,
    pub(super) errors: Vec<ErrorDef>,
    /// Whether successful responses are streams of events.
    pub(super) streams: bool,
    /// The media types of successful responses, for the header `accept`.
    pub(super) accept: String,
}

/// Reads the responses of an operation; their schemas may have `schema_bytes_max` bytes.
pub(super) fn read(
    document: &OpenApiSourceDocument,
    node: &Value,
    at: &str,
    schema_bytes_max: usize,
) -> Result<ResponsePlan, DocumentError> {
    let none = Map::new();
    let responses = match node {
        Value::Null => &none,
        node => document.object(node, at)?,
    };
    let good = |status: &str| status.starts_with('2');
    let has_good = responses.keys().any(|status| good(status));
    let mut schemas = SchemaBuilder::new(document, SchemaDirection::Out, at, schema_bytes_max);
    let mut outputs = Vec::new();
    let mut events = Vec::new();
    let mut media_types = BTreeSet::new();
    let mut errors = Vec::new();
    for (status, node) in responses {
        let at = format!("{at}/{}", escaped(status));
        let response = document.object(node, &at)?;
        // If a document declares no successful status, `default` describes the successful responses.
        if good(status) || (status == "default" && !has_good) {
            let content = response.get("content").and_then(Value::as_object);
            let content = content.filter(|content| !content.is_empty());
            let Some(content) = content else {
                // A response without content becomes `null`.
                outputs.push(json!({ "type": "null" }));
                continue;
            };
            for (media, described) in content {
                let described = document.object(described, &at)?;
                let node = described.get("schema");
                media_types.insert(media.to_ascii_lowercase());
                let schema = match (kind(media), node) {
                    ("json", Some(node)) => schemas.add(node)?,
                    ("json", None) => json!({}),
                    ("text" | "form", _) => json!({ "type": "string" }),
                    ("events", node) => {
                        let data = match node {
                            Some(node) => schemas.add(node)?,
                            None => json!({ "type": "string" }),
                        };
                        events.push(data);
                        continue;
                    }
                    _ => bytes_schema(),
                };
                outputs.push(schema);
            }
        } else if let Some(def) = error(document, status, response, &at)? {
            errors.push(def);
        }
    }
    let streams = !events.is_empty();
    let output = if streams {
        let mut data = vec![json!({ "type": "string" })];
        data.extend(events);
        data.extend(outputs);
        json!({
            "type": "object",
            "properties": {
                "event": { "type": "string" },
                "id": { "type": "string" },
                "data": union(data),
            },
            "required": ["event", "data"],
        })
    } else {
        union(outputs)
    };
    Ok(ResponsePlan {
        output: schemas.finish(output)?,
        errors,
        streams,
        accept: accept(&media_types, streams),
    })
}

fn union(schemas: Vec<Value>) -> Value {
    let mut distinct: Vec<Value> = Vec::new();
    for schema in schemas {
        // Several statuses often have the same schema.
        if !distinct.contains(&schema) {
            distinct.push(schema);
        }
    }
    match distinct.len() {
        0 => json!({}),
        1 => distinct.remove(0),
        _ => json!({ "anyOf": distinct }),
    }
}

/// The most bytes of the header `accept`.
const ACCEPT_BYTES_MAX: usize = 1_000;

fn accept(media_types: &BTreeSet<String>, streams: bool) -> String {
    // The preferred type is first: without weights, some servers choose the first type that they support.
    let order = |media: &&String| match kind(media) {
        "events" if streams => 0,
        "json" => 1,
        _ => 2,
    };
    // The types come from a document, so those that a header cannot hold are left out.
    let fine = |media: &&String| {
        media.contains('/') && media.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
    };
    let mut ordered: Vec<_> = media_types.iter().filter(fine).collect();
    ordered.sort_by_key(order);
    let mut text = String::new();
    for media in ordered {
        // The preferred types come first, so the rest may be cut.
        if text.len() + media.len() > ACCEPT_BYTES_MAX {
            break;
        }
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(media);
    }
    match text.is_empty() {
        true => "*/*".to_owned(),
        false => text,
    }
}

/// The error of a status that the document describes. Ranges and `default` name no single status.
fn error(
    document: &OpenApiSourceDocument,
    status: &str,
    response: &Map<String, Value>,
    at: &str,
) -> Result<Option<ErrorDef>, DocumentError> {
    let Some(number) = status.parse::<u16>().ok() else {
        return Ok(None);
    };
    // Statuses below 300 are no errors.
    if !(300..600).contains(&number) {
        return Ok(None);
    }
    let text = response.get("description").and_then(Value::as_str);
    let content = response.get("content").and_then(Value::as_object);
    let mut content = content.into_iter().flatten();
    let json = content.find(|(media, _)| kind(media) == "json");
    let body = json.and_then(|(_, described)| described.get("schema"));
    let mut schemas = SchemaBuilder::new(document, SchemaDirection::Out, at, ERROR_SCHEMA_BYTES);
    let body = match body {
        Some(node) => schemas.add(node)?,
        None => json!({}),
    };
    let schema = json!({
        "type": "object",
        "properties": { "status": { "const": number }, "body": body },
    });
    Ok(Some(ErrorDef {
        code: format!("HTTP_{number}"),
        description: brief(text.unwrap_or_default(), REMARK_CHARS_MAX),
        schema: schemas.finish(schema)?,
        http_status: Some(number),
    }))
}

/// The most bytes of an error's schema: servers repeat the same schema with every operation.
const ERROR_SCHEMA_BYTES: usize = 512;

/// The output of `answer`, or its error. Both count against `memory` while they are read, and the output counts as
/// long as it exists.
pub(super) async fn output(
    answer: Response<ResponseBody>,
    memory: &ImportShare,
) -> Result<CallOutput, CallError> {
    let (head, body) = answer.into_parts();
    if !head.status.is_success() {
        return Err(refusal(head.status, &head.headers, body, memory).await);
    }
    let mut claim = memory.claim();
    let body = collect(body, ANSWER_BYTES_MAX, &mut claim).await?;
    value(&head.headers, body, claim)
}

async fn collect(
    body: ResponseBody,
    max: usize,
    claim: &mut ImportClaim,
) -> Result<Bytes, CallError> {
    let mut refused = None;
    let has_capacity = |bytes| {
        let room = claim.becomes(bytes);
        room.map_err(|why| refused = Some(why)).is_ok()
    };
    let body = body.collect_counted(max, has_capacity).await;
    // A refusal for memory has the node's own message and says whether a retry may succeed.
    body.map_err(|error| refused.unwrap_or_else(|| of_http(error)))
}

/// The error for a response with another status.
pub(super) async fn refusal(
    status: StatusCode,
    headers: &HeaderMap,
    body: ResponseBody,
    memory: &ImportShare,
) -> CallError {
    // A body that is too long or broken gives no details, but the status still does.
    let body = collect(body, ERROR_BYTES_MAX, &mut memory.claim()).await;
    let body = body.map_or(Value::Null, |body| error_body(&body));
    let number = status.as_u16();
    let server_message = message(&body).unwrap_or_default();
    let reason = status.canonical_reason().unwrap_or("status");
    let text = match server_message.is_empty() {
        true => format!("the server answered {number} {reason}"),
        false => format!("the server answered {number} {reason}: {server_message}"),
    };
    let after = headers
        .get(RETRY_AFTER)
        .and_then(|after| after.to_str().ok());
    // The header may also hold a date (RFC 9110 section 10.2.3), which the node does not read.
    let after = after.and_then(|after| after.trim().parse::<u64>().ok());
    let mut error = CallError::operation(&format!("HTTP_{number}"), text)
        .with_details(json!({ "status": number, "body": body }));
    // These statuses mean that a retry may succeed later (RFC 6585 section 4, RFC 9110 sections 15.6.3 to 15.6.5).
    error.retryable = matches!(number, 429 | 502 | 503 | 504);
    error.retry_after_ms = after.map(|seconds| seconds.saturating_mul(1000));
    error
}

/// The body of an error as JSON, or as text if it is not JSON or too large.
fn error_body(body: &[u8]) -> Value {
    // The size of the tree is checked before parsing, because parsing allocates it.
    let small = tree_bytes(body).is_ok_and(|bytes| bytes <= ERROR_TREE_BYTES_MAX);
    let parsed = small.then(|| serde_json::from_slice(body).ok()).flatten();
    parsed.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned().into())
}

/// The message for people, from the first of the usual members that has one.
fn message(body: &Value) -> Option<String> {
    let text = match body {
        Value::String(text) => Some(text.as_str()),
        Value::Object(members) => MESSAGES.iter().find_map(|name| match members.get(*name)? {
            Value::String(text) => Some(text.as_str()),
            Value::Object(inner) => inner.get("message")?.as_str(),
            _ => None,
        }),
        _ => None,
    };
    text.map(|text| brief(text, MESSAGE_CHARS_MAX))
}

/// The memory that a body may take while it becomes JSON text, as a multiple of its bytes: three where each byte is
/// replaced because it is no UTF-8, and six where each is escaped, in addition to its own.
const TEXT_FACTOR: usize = 8;

/// Like `TEXT_FACTOR`, for a body that becomes base64: four bytes for three, in addition to its own.
const BASE64_FACTOR: usize = 3;

/// The JSON form of a body. Only its media type decides how it is read, not its content. The function makes no tree,
/// which would take up to 75 times the bytes of the text.
fn value(
    headers: &HeaderMap,
    body: Bytes,
    mut claim: ImportClaim,
) -> Result<CallOutput, CallError> {
    // An empty body, such as that of a 204 (RFC 9110 section 15.3.5), is `null` whatever its media type.
    if body.is_empty() {
        return Ok(Value::Null.into());
    }
    let media = headers
        .get(CONTENT_TYPE)
        .and_then(|media| media.to_str().ok());
    // A recipient may assume this type if the response names none (RFC 9110 section 8.3).
    let kind = kind(media.unwrap_or("application/octet-stream"));
    let factor = match kind {
        "json" => 1,
        "text" | "form" | "events" => TEXT_FACTOR,
        _ => BASE64_FACTOR,
    };
    claim.becomes(claim.bytes().max(factor * body.len()))?;
    let output = match kind {
        "json" => CallOutput::from_foreign_text(&body).map_err(|error| {
            let message = format!("the server's answer cannot be read: {}", error.message);
            // The server's fault, not this node's: over HTTP it is 502.
            CallError::operation(BAD_GATEWAY, message)
        })?,
        "text" | "form" | "events" => CallOutput::json(&String::from_utf8_lossy(&body))?,
        _ => CallOutput::Raw(base64_text(&body)?),
    };
    drop(body);
    hold_output(output, claim)
}

/// The JSON text of `body` in base64.
fn base64_text(body: &[u8]) -> Result<Bytes, CallError> {
    let too_long = || CallError::internal("an answer is longer than its limit");
    let length = base64::encoded_len(body.len(), true).ok_or_else(too_long)?;
    let mut text = String::with_capacity(length + 2);
    text.push('"');
    BASE64.encode_string(body, &mut text);
    text.push('"');
    Ok(text.into())
}

/// The same output; its bytes count until it is dropped.
pub(super) fn hold_output(
    output: CallOutput,
    mut claim: ImportClaim,
) -> Result<CallOutput, CallError> {
    Ok(match output {
        CallOutput::Raw(text) => {
            claim.becomes(text.len())?;
            CallOutput::Raw(claim.hold(text))
        }
        other => other,
    })
}

/// The error of a failed exchange, as callers see it.
pub(super) fn of_http(error: HttpError) -> CallError {
    let code = match &error {
        HttpError::Credential(error) => return (*error).into(),
        HttpError::TimedOut(_) | HttpError::Idle(_) => ErrorCode::Timeout,
        HttpError::NoRoom => ErrorCode::Overloaded,
        HttpError::TooLong(_) => ErrorCode::PayloadTooLarge,
        HttpError::UriTooLong => ErrorCode::InvalidInput,
        _ => ErrorCode::Unavailable,
    };
    CallError::new(code, error.to_string())
}
