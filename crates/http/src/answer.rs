//! Responses that all paths share.

use std::pin::Pin;
use std::task::{Context, Poll};

use alknet_core::MountBody;
use alknet_core::config::Decoy;
use alknet_gateway::{ApiError, MemoryLease, RequestId};
use axum::body::Body;
use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::Full;

use crate::settings::HttpSettings;

/// The header with the request's id in the log.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The page for an unknown path, in the form that many servers use.
const NOT_FOUND: &str = "<!doctype html>\n<html lang=\"en\">\n<head><title>404 Not Found</title></head>\n\
<body>\n<h1>Not Found</h1>\n</body>\n</html>\n";

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A response of the gateway.
pub(crate) fn api(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    private(&mut response);
    response
}

/// Like `api`, but the body counts against `lease` until the client has received it.
pub(crate) fn leased(
    status: StatusCode,
    kind: HeaderValue,
    body: Bytes,
    lease: MemoryLease,
) -> Response<Body> {
    api(status, kind, Bytes::new()).map(|_| lease_body(Full::new(body), lease))
}

/// A body that counts against `lease` until the client has received it.
pub(crate) fn lease_body<B>(body: B, lease: MemoryLease) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<axum::BoxError>,
{
    Body::new(LeasedBody {
        body,
        _lease: lease,
    })
}

struct LeasedBody<B> {
    body: B,
    _lease: MemoryLease,
}

impl<B: http_body::Body + Unpin> http_body::Body for LeasedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Forbids caches to store the response, and browsers to show it as a page.
pub(crate) fn private(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let policy = HeaderValue::from_static("default-src 'none'");
    headers.insert(CONTENT_SECURITY_POLICY, policy);
}

/// The response for an error.
pub(crate) fn error(error: &ApiError, id: &RequestId) -> Response<Body> {
    let body = error.body(id).to_string();
    let mut response = api(error.status, JSON, body.into());
    let headers = response.headers_mut();
    if let Some(seconds) = error.retry_after_s() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    // A 401 must name a way to authenticate (RFC 9110 section 15.5.2).
    if error.status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, challenge(error));
    }
    response
}

/// The challenge for a token (RFC 6750 section 3).
fn challenge(error: &ApiError) -> HeaderValue {
    // A request without a token gets no error code (RFC 6750 section 3.1).
    HeaderValue::from_static(if error.error.message == NO_TOKEN {
        "Bearer realm=\"alknet\""
    } else {
        "Bearer realm=\"alknet\", error=\"invalid_token\""
    })
}

/// The message for a request without a token.
pub(crate) const NO_TOKEN: &str = "send a token: 'Authorization: Bearer alk_…'";

/// The response for a method that the path does not support.
pub(crate) fn method(allowed: &Method, id: &RequestId) -> Response<Body> {
    let message = format!("this path takes {allowed}");
    let refused = ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        alknet_gateway::Code::InvalidInput,
        message,
    );
    let mut response = error(&refused, id);
    // A 405 must list the supported methods (RFC 9110 section 15.5.6).
    let allowed = HeaderValue::from_str(allowed.as_str());
    if let Ok(allowed) = allowed {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// The response for a path that does not exist, or that the caller must not see.
pub(crate) fn decoy(settings: &HttpSettings, first_page: Option<Response<Body>>) -> Response<Body> {
    match (settings.decoy, &settings.redirect, first_page) {
        (Decoy::Redirect, Some(to), _) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::FOUND;
            response.headers_mut().insert(LOCATION, to.clone());
            response
        }
        (Decoy::Site, _, Some(page)) => page,
        _ => plain_not_found(StatusCode::NOT_FOUND),
    }
}

/// Forbids browsers to guess another type for the response.
pub(crate) fn set_nosniff(response: &mut Response<Body>) {
    let nosniff = HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, nosniff);
}

/// The small 404 page, whatever the configuration says.
pub(crate) fn plain_not_found(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::from(NOT_FOUND));
    *response.status_mut() = status;
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, html);
    response
}

/// A response of plain text.
pub(crate) fn text(status: StatusCode, text: String) -> Response<Body> {
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    api(status, kind, text.into())
}

/// Adapts the response of a mount.
pub(crate) fn mounted(response: Response<MountBody>) -> Response<Body> {
    response.map(Body::new)
}
