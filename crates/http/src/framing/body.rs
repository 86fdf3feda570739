//! Bodies on their way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::access::Line;
use crate::connection::{Busy, Conn};
use crate::limits::{LINGER_BYTES, LINGER_TIME};

/// A body that keeps its connection busy until its end, and is counted for the log.
pub(super) struct Held {
    body: Body,
    line: Line,
    conn: Arc<Conn>,
    /// Whether the client has yet to take what came last.
    owed: bool,
    _busy: Busy,
}

impl Held {
    pub(super) fn new(body: Body, conn: Arc<Conn>, busy: Busy, line: Line) -> Self {
        Self {
            body,
            line,
            conn,
            owed: false,
            _busy: busy,
        }
    }

    fn taken(&mut self) {
        if std::mem::take(&mut self.owed) {
            self.conn.taken();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.taken();
        if self.body.is_end_stream() {
            self.line.end();
        }
    }
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Nobody asks for more who has no room for it.
        self.taken();
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.line.sent(bytes);
                self.owed = true;
                self.conn.owes(bytes);
            }
            // What breaks off, we broke off.
            Some(Err(_)) | None => self.line.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request. What was answered before all of it had come is read to its end, within bounds,
/// and thrown away: many a client takes nothing of an answer while it sends.
pub(super) struct Lingering(Option<Incoming>);

impl Lingering {
    pub(super) fn new(body: Incoming) -> Self {
        Self(Some(body))
    }
}

impl http_body::Body for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.0.as_ref().map(Incoming::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(body) = self.0.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(LINGER_TIME, discard(body)));
        }
    }
}

async fn discard(mut body: Incoming) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > LINGER_BYTES {
            return;
        }
    }
}
