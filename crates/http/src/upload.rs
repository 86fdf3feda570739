//! Bodies of requests, bounded in bytes. Their time is bounded where they come in.

use std::future::poll_fn;
use std::pin::Pin;

use alknet_gateway::{ApiError, Code};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body::Body as _;

use crate::framing;

/// Reads a body of JSON.
///
/// # Errors
/// It is not said to be JSON, too long, too slow, or breaks off.
pub(crate) async fn json(
    headers: &HeaderMap,
    body: &mut Body,
    max: usize,
) -> Result<Bytes, ApiError> {
    if !is_json(headers) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::InvalidInput,
            "send 'Content-Type: application/json'",
        ));
    }
    whole(headers, body, max).await
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next());
    kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Reads a body of any kind.
///
/// # Errors
/// As [`json`].
pub(crate) async fn whole(
    headers: &HeaderMap,
    body: &mut Body,
    max: usize,
) -> Result<Bytes, ApiError> {
    let told = headers.get(CONTENT_LENGTH);
    let told = told.and_then(|told| told.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|told| told > max as u64) {
        return Err(too_large(max));
    }
    let mut first: Option<Bytes> = None;
    let mut more = BytesMut::new();
    while !body.is_end_stream() {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| broken(&error))?;
        // Trailers say nothing here.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let have = first.as_ref().map_or(0, Bytes::len) + more.len() + data.len();
        if have > max {
            return Err(too_large(max));
        }
        match &first {
            // Most bodies come in one piece, which is then not copied.
            None => first = Some(data),
            Some(_) => more.extend_from_slice(&data),
        }
    }
    let first = first.unwrap_or_default();
    if more.is_empty() {
        return Ok(first);
    }
    let mut all = BytesMut::with_capacity(first.len() + more.len());
    all.extend_from_slice(&first);
    all.extend_from_slice(&more);
    Ok(all.freeze())
}

fn too_large(max: usize) -> ApiError {
    let message = format!("the body has more than {max} bytes");
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        Code::PayloadTooLarge,
        message,
    )
}

fn broken(error: &axum::Error) -> ApiError {
    if framing::is_slow(error) {
        return slow();
    }
    ApiError::malformed("", format!("the body breaks off: {error}"))
}

/// The body does not come, or too slowly.
pub(crate) fn slow() -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        Code::Timeout,
        "the body comes too slowly",
    )
}
