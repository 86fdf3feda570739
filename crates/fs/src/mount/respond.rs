//! Responses.

use std::convert::Infallible;

use alknet_core::MountBody;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};

use crate::dav::CONDITION_MEDIA_TYPE;

/// A response without a body.
pub(super) fn empty(status: StatusCode) -> Response<MountBody> {
    with_body(status, full(Bytes::new()))
}

pub(super) fn with_body(status: StatusCode, body: MountBody) -> Response<MountBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// A response with an XML body.
pub(super) fn xml(status: StatusCode, body: MountBody) -> Response<MountBody> {
    let mut response = with_body(status, body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(CONDITION_MEDIA_TYPE));
    // It says what the caller may see, and locks, which change without the file.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(super) fn full(bytes: impl Into<Bytes>) -> MountBody {
    let body = Full::new(bytes.into());
    MountBody::new(body.map_err(|never: Infallible| match never {}))
}

/// A value of ASCII signs, which is valid in every field.
pub(super) fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Sets fields that are the same in every response of a kind.
pub(super) fn insert_fixed(headers: &mut HeaderMap, fields: &[(&'static str, &'static str)]) {
    for (name, value) in fields {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
}
