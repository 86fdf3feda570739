//! The gateway's own paths. Their shapes are a contract: see `docs/http.md`.

mod events;

use std::borrow::Cow;
use std::sync::Arc;

use alknet_gateway::limits::CALL_BYTES_MAX;
use alknet_gateway::{
    ApiError, BatchRequest, BatchResult, CallRequest, Code, GatewayCall, HttpCaller, RequestId,
    RequestText, SearchQuery,
};
use axum::body::Body;
use http::header::{ETAG, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::access::AccessLogEntry;
use crate::answer::{self, JSON};
use crate::request_body;
use crate::routes::ApiRoute;
use crate::shared::HttpShared;

pub(crate) use events::ticket;

/// A header that may carry the same key as the member `idempotency_key`.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The response of the health check.
pub(crate) fn health(shared: &HttpShared) -> Response<Body> {
    match shared.health.degraded() {
        None => answer::text(StatusCode::OK, "ok\n".to_owned()),
        Some(why) => {
            let text = format!("degraded: {why}\n");
            answer::text(StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

/// Responds to a request for one of the paths.
pub(crate) async fn answer(
    shared: &Arc<HttpShared>,
    path: ApiRoute,
    caller: &HttpCaller,
    (parts, body): (&Parts, &mut Body),
    entry: &mut AccessLogEntry,
) -> Response<Body> {
    let method = &parts.method;
    // A HEAD request is handled as a GET (RFC 9110 section 9.3.2); the router removes the body.
    let reads = path.method() == Method::GET && *method == Method::HEAD;
    if *method != path.method() && !reads {
        return answer::method(&path.method(), &caller.request_id);
    }
    let answered = match path {
        ApiRoute::Call => call(shared, caller, (parts, body), entry).await,
        ApiRoute::Batch => batch(shared, caller, (parts, body), entry).await,
        ApiRoute::Subscribe => events::subscribe(shared, caller, (parts, body), entry).await,
        ApiRoute::Search => search(shared, caller, parts),
        ApiRoute::Schema => schema(shared, caller, parts),
        ApiRoute::Description => openapi(shared, caller, parts),
        ApiRoute::Metrics => metrics(shared, caller, entry).await,
    };
    answered.unwrap_or_else(|error| answer::error(&error, &caller.request_id))
}

async fn call(
    shared: &HttpShared,
    caller: &HttpCaller,
    (parts, body): (&Parts, &mut Body),
    entry: &mut AccessLogEntry,
) -> Result<Response<Body>, ApiError> {
    let key = key(&parts.headers)?;
    let invocation = {
        let body =
            request_body::json(&parts.headers, body, upload_allowance(shared, caller)).await?;
        invocation(&body, key)?
    };
    entry.calls([invocation.operation.as_str()]);
    let lease = shared.gateway.lease(caller);
    let reserve = lease.reserve()?;
    let output = shared.gateway.invoke(caller, invocation).await?;
    let mut text = opened(&caller.request_id);
    output.append_to(&mut text);
    // The output's memory is freed before the client receives the response, which may take long.
    drop(output);
    text.push(b'}');
    // The capacity counts instead of the length, because all of it is allocated.
    reserve.answer(text.capacity())?;
    Ok(answer::leased(StatusCode::OK, JSON, text.into(), lease))
}

/// The memory and time that the body of a call may use.
fn upload_allowance(shared: &HttpShared, caller: &HttpCaller) -> request_body::UploadAllowance {
    request_body::UploadAllowance {
        lease: shared.gateway.lease(caller),
        most: CALL_BYTES_MAX,
        time: shared.settings().patience.body_time,
    }
}

/// Writes `{"request_id":"…","output":`.
fn opened(id: &RequestId) -> Vec<u8> {
    let mut text = Vec::with_capacity(256);
    // No character of the id needs an escape in JSON.
    text.extend_from_slice(b"{\"request_id\":\"");
    text.extend_from_slice(id.as_str().as_bytes());
    text.extend_from_slice(b"\",\"output\":");
    text
}

fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let key = key.to_str().map_err(|_| {
        ApiError::malformed("", "the header Idempotency-Key has characters beyond ASCII")
    })?;
    Ok(Some(key.to_owned()))
}

/// The call that the body describes. The header may repeat the key, but must not contradict it.
fn invocation(body: &RequestText, key: Option<String>) -> Result<GatewayCall, ApiError> {
    let request = CallRequest::read(&body.text)?;
    let mut invocation = request.invocation(body)?;
    match (&invocation.idempotency_key, key) {
        (Some(own), Some(key)) if *own != key => {
            let message = "the header Idempotency-Key says another key";
            return Err(ApiError::malformed("/idempotency_key", message));
        }
        (None, Some(key)) => invocation.idempotency_key = Some(key),
        _ => {}
    }
    Ok(invocation)
}

async fn batch(
    shared: &HttpShared,
    caller: &HttpCaller,
    (parts, body): (&Parts, &mut Body),
    entry: &mut AccessLogEntry,
) -> Result<Response<Body>, ApiError> {
    let (calls, mode) = {
        let body =
            request_body::json(&parts.headers, body, upload_allowance(shared, caller)).await?;
        let batch = BatchRequest::read(&body.text)?;
        let calls = batch.calls.iter();
        let calls = calls.map(|item| (item.id.as_ref().to_owned(), item.invocation(&body)));
        (calls.collect::<Vec<_>>(), batch.mode)
    };
    let named = calls.iter().filter_map(|(_, call)| call.as_ref().ok());
    entry.calls(named.map(|call| call.operation.as_str()));
    let answers = shared.gateway.lease(caller);
    let results = shared.gateway.batch(caller, calls, mode, &answers).await?;
    let mut text = b"{\"results\":[".to_vec();
    for (n, result) in results.into_iter().enumerate() {
        if n > 0 {
            text.push(b',');
        }
        append_result(&mut text, result, &caller.request_id);
    }
    text.extend_from_slice(b"]}");
    answers.settle(text.capacity())?;
    Ok(answer::leased(StatusCode::OK, JSON, text.into(), answers))
}

fn append_result(text: &mut Vec<u8>, result: BatchResult, id: &RequestId) {
    text.extend_from_slice(b"{\"id\":");
    text.extend_from_slice(Value::from(result.id).to_string().as_bytes());
    match result.outcome {
        Ok(output) => {
            text.extend_from_slice(b",\"status\":200,\"output\":");
            output.append_to(text);
        }
        Err(error) => {
            let rest = format!(
                ",\"status\":{},\"error\":{}",
                error.status.as_u16(),
                error.object(id)
            );
            text.extend_from_slice(rest.as_bytes());
        }
    }
    text.push(b'}');
}

fn search(
    shared: &HttpShared,
    caller: &HttpCaller,
    parts: &Parts,
) -> Result<Response<Body>, ApiError> {
    let mut query = SearchQuery::default();
    for (name, value) in members(parts)? {
        query.set(&name, &value)?;
    }
    // The query was checked first, so that a 304 does not hide its faults.
    if let Some(unchanged) = unchanged(shared, caller, parts) {
        return Ok(unchanged);
    }
    let page = shared.gateway.list(caller, &query);
    described(shared, caller, &page)
}

fn schema(
    shared: &HttpShared,
    caller: &HttpCaller,
    parts: &Parts,
) -> Result<Response<Body>, ApiError> {
    let mut operation = None;
    for (name, value) in members(parts)? {
        match name.as_ref() {
            "operation" => operation = Some(value.into_owned()),
            _ => {
                let message = format!("there is no '{name}' here; there is operation");
                return Err(ApiError::malformed(&format!("/{name}"), message));
            }
        }
    }
    let operation = operation
        .ok_or_else(|| ApiError::malformed("", "say which: /schema?operation=/node/info"))?;
    let description = shared.gateway.describe(caller, &operation)?;
    if let Some(unchanged) = unchanged(shared, caller, parts) {
        return Ok(unchanged);
    }
    described(shared, caller, &description)
}

/// The name and the value of a member of a query string.
type Member<'a> = (Cow<'a, str>, Cow<'a, str>);

/// The members of a query string, each of which may occur once.
fn members(parts: &Parts) -> Result<Vec<Member<'_>>, ApiError> {
    let query = parts.uri.query().unwrap_or_default();
    let mut members: Vec<Member<'_>> = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        // Readers differ in which of two values they use.
        if members.iter().any(|(known, _)| *known == name) {
            let message = format!("'{name}' comes twice");
            return Err(ApiError::malformed(&format!("/{name}"), message));
        }
        members.push((name, value));
    }
    Ok(members)
}

fn described(
    shared: &HttpShared,
    caller: &HttpCaller,
    value: &impl serde::Serialize,
) -> Result<Response<Body>, ApiError> {
    let text = serde_json::to_vec(value).unwrap_or_default();
    let lease = shared.gateway.lease(caller);
    lease.more(text.capacity())?;
    let mut response = answer::leased(StatusCode::OK, JSON, text.into(), lease);
    if let Ok(etag) = HeaderValue::from_str(&shared.gateway.etag(caller)) {
        response.headers_mut().insert(ETAG, etag);
    }
    Ok(response)
}

/// A 304 if the caller already has the current version (RFC 9110 section 13.1.2).
fn unchanged(shared: &HttpShared, caller: &HttpCaller, parts: &Parts) -> Option<Response<Body>> {
    let known = parts.headers.get(IF_NONE_MATCH)?.to_str().ok()?;
    let etag = shared.gateway.etag(caller);
    // A client may list several tags (RFC 9110 section 13.1.2).
    let same = known
        .split(',')
        .any(|one| one.trim() == etag || one.trim() == "*");
    same.then(|| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        if let Ok(etag) = HeaderValue::from_str(&etag) {
            response.headers_mut().insert(ETAG, etag);
        }
        answer::private(&mut response);
        response
    })
}

fn openapi(
    shared: &HttpShared,
    caller: &HttpCaller,
    parts: &Parts,
) -> Result<Response<Body>, ApiError> {
    if let Some(unchanged) = unchanged(shared, caller, parts) {
        return Ok(unchanged);
    }
    let text = shared.document.text(&shared.dispatcher.registry().digest());
    let mut response = answer::api(StatusCode::OK, JSON, text);
    if let Ok(etag) = HeaderValue::from_str(&shared.gateway.etag(caller)) {
        response.headers_mut().insert(ETAG, etag);
    }
    Ok(response)
}

/// The output of `node/metrics` in the form of Prometheus. The operation decides who may read it.
async fn metrics(
    shared: &HttpShared,
    caller: &HttpCaller,
    entry: &mut AccessLogEntry,
) -> Result<Response<Body>, ApiError> {
    let call = GatewayCall::for_operation("node/metrics", &Value::Null);
    entry.calls([call.operation.as_str()]);
    let lease = shared.gateway.lease(caller);
    let reserve = lease.reserve()?;
    let output = shared.gateway.invoke(caller, call).await?;
    let mut text = Vec::new();
    output.append_to(&mut text);
    let value: Value = serde_json::from_slice(&text).unwrap_or_else(|_| json!({}));
    let member = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let (Some(kind), Some(text)) = (member("content_type"), member("text")) else {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let message = "node/metrics answers something else";
        return Err(ApiError::new(status, Code::Internal, message));
    };
    let kind = HeaderValue::from_str(&kind).unwrap_or(JSON);
    reserve.answer(text.len())?;
    Ok(answer::leased(StatusCode::OK, kind, text.into(), lease))
}
