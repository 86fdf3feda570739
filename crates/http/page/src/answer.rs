//! Builds responses with the headers that browsers obey.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use alknet_core::MountBody;
use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY,
    SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// The policy allows only content that this node serves, and forbids framing.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// The headers of every response. The browser sends the referrer between the node's own pages,
/// because without it browsers would not state the origin of a form.
const ALWAYS: [(HeaderName, &str); 5] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (REFERRER_POLICY, "same-origin"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

pub(crate) type PageResponse = Response<MountBody>;

/// A response with a page.
pub(crate) fn page(status: StatusCode, html: String) -> PageResponse {
    with(status, "text/html; charset=utf-8", "no-store", full(html))
}

/// A static file of the program. Its address changes with its content.
pub(crate) fn asset(kind: &'static str, text: &'static str) -> PageResponse {
    let body = full(Bytes::from_static(text.as_bytes()));
    with(StatusCode::OK, kind, "max-age=31536000, immutable", body)
}

/// The response for an unknown path.
pub(crate) fn nothing() -> PageResponse {
    plain(StatusCode::NOT_FOUND, "There is nothing here.\n")
}

pub(crate) fn plain(status: StatusCode, text: &'static str) -> PageResponse {
    with(status, "text/plain; charset=utf-8", "no-store", full(text))
}

/// The response for a method that the path does not support.
pub(crate) fn method(allowed: &'static str) -> PageResponse {
    let mut answer = plain(
        StatusCode::METHOD_NOT_ALLOWED,
        "This takes another method.\n",
    );
    let headers = answer.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// Redirects the browser to `/`.
pub(crate) fn see_root() -> PageResponse {
    // After a 303 the browser sends a GET, whatever method it used before (RFC 9110 section
    // 15.4.4).
    let mut answer = plain(StatusCode::SEE_OTHER, "");
    let headers = answer.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_static("/"));
    answer
}

/// The same response with a cookie.
pub(crate) fn with_cookie(mut answer: PageResponse, cookie: &str) -> PageResponse {
    // The node's cookies contain only visible ASCII, so this always succeeds.
    if let Ok(value) = HeaderValue::from_str(cookie) {
        answer.headers_mut().insert(SET_COOKIE, value);
    }
    answer
}

/// A response that streams events.
pub(crate) fn events(body: EventBody) -> PageResponse {
    let body = MountBody::new(body.map_err(|never: Infallible| match never {}));
    let mut answer = with(StatusCode::OK, "text/event-stream", "no-store", body);
    let headers = answer.headers_mut();
    // A buffering proxy would hold back the events.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    headers.insert(unbuffered, HeaderValue::from_static("no"));
    answer
}

fn full(text: impl Into<Bytes>) -> MountBody {
    let body = Full::new(text.into());
    MountBody::new(body.map_err(|never: Infallible| match never {}))
}

fn with(
    status: StatusCode,
    kind: &'static str,
    cache: &'static str,
    body: MountBody,
) -> PageResponse {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    for (name, value) in ALWAYS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// The events that a task writes. Dropping the body ends the task.
#[derive(Debug)]
pub(crate) struct EventBody {
    events: mpsc::Receiver<Bytes>,
    writer: AbortHandle,
}

impl EventBody {
    /// A body with the events that `writer` sends.
    pub(crate) fn new(events: mpsc::Receiver<Bytes>, writer: AbortHandle) -> Self {
        Self { events, writer }
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.events.poll_recv(cx);
        next.map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

impl Drop for EventBody {
    fn drop(&mut self) {
        self.writer.abort();
    }
}
