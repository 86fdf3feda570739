//! Answers, with what each of them says to browsers.

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

/// Nothing but what this node itself serves, and no page around it.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Headers of everything that comes from here. The referrer is kept among our own pages: without it
/// browsers would not say where a form comes from.
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

/// A page.
pub(crate) fn page(status: StatusCode, html: String) -> PageResponse {
    with(status, "text/html; charset=utf-8", "no-store", full(html))
}

/// A file of the program; its address changes with it.
pub(crate) fn asset(kind: &'static str, text: &'static str) -> PageResponse {
    let body = full(Bytes::from_static(text.as_bytes()));
    with(StatusCode::OK, kind, "max-age=31536000, immutable", body)
}

/// Nothing here.
pub(crate) fn nothing() -> PageResponse {
    plain(StatusCode::NOT_FOUND, "There is nothing here.\n")
}

pub(crate) fn plain(status: StatusCode, text: &'static str) -> PageResponse {
    with(status, "text/plain; charset=utf-8", "no-store", full(text))
}

/// Another method is wanted.
pub(crate) fn method(allowed: &'static str) -> PageResponse {
    let mut answer = plain(
        StatusCode::METHOD_NOT_ALLOWED,
        "This takes another method.\n",
    );
    let headers = answer.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// The browser is to get `/`.
pub(crate) fn see_root() -> PageResponse {
    // 303 has the browser get it, whatever it sent before (RFC 9110 section 15.4.4).
    let mut answer = plain(StatusCode::SEE_OTHER, "");
    let headers = answer.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_static("/"));
    answer
}

/// The same answer with a cookie.
pub(crate) fn with_cookie(mut answer: PageResponse, cookie: &str) -> PageResponse {
    // A cookie of ours is visible ASCII.
    if let Ok(value) = HeaderValue::from_str(cookie) {
        answer.headers_mut().insert(SET_COOKIE, value);
    }
    answer
}

/// Events as they come.
pub(crate) fn events(body: EventBody) -> PageResponse {
    let body = MountBody::new(body.map_err(|never: Infallible| match never {}));
    let mut answer = with(StatusCode::OK, "text/event-stream", "no-store", body);
    let headers = answer.headers_mut();
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

/// The events that a task writes; dropping the body ends the task.
#[derive(Debug)]
pub(crate) struct EventBody {
    events: mpsc::Receiver<Bytes>,
    writer: AbortHandle,
}

impl EventBody {
    /// Reads what `writer` sends.
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
