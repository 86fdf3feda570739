//! Decides which pages of other origins may read responses (the Fetch standard's CORS protocol). The node never
//! allows credentials and never allows every origin.

use axum::body::Body;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use crate::answer;
use crate::limits::CORS_MAX_AGE_S;
use crate::settings::HttpSettings;

const HEADERS: &str = "authorization, content-type, idempotency-key, mcp-protocol-version, mcp-session-id, last-event-id, prefer, range, if-range, if-none-match";
const EXPOSED: &str =
    "x-request-id, mcp-session-id, retry-after, etag, accept-ranges, content-range";

/// The origin of a request, if it is an allowed one.
pub(crate) fn allowed(settings: &HttpSettings, headers: &HeaderMap) -> Option<HeaderValue> {
    if settings.origins.is_empty() {
        return None;
    }
    let origin = headers.get(ORIGIN)?;
    // Browsers send an origin in one normal form, so the bytes can be compared.
    let known = |own: &String| origin.as_bytes() == own.as_bytes();
    settings.origins.iter().any(known).then(|| origin.clone())
}

/// Responds to the preflight request that a browser sends before a request.
pub(crate) fn preflight(parts: &Parts, origin: &HeaderValue) -> Option<Response<Body>> {
    // An OPTIONS request without this header is no preflight.
    let asks = parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if parts.method != Method::OPTIONS || !asks {
        return None;
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, POST");
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(HEADERS),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, CORS_MAX_AGE_S.into());
    allow(headers, origin);
    // The browser keeps a preflight's result by its own header, which is independent of this response's cache
    // control.
    answer::private(&mut response);
    Some(response)
}

/// Allows a page of `origin` to read a response.
pub(crate) fn allow(headers: &mut HeaderMap, origin: &HeaderValue) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    let exposed = HeaderValue::from_static(EXPOSED);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    // A cache must not give one origin's permission to another (RFC 9110 section 12.5.5).
    headers.append(VARY, HeaderValue::from_static("origin"));
}
