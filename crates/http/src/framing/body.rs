//! Wrappers for bodies of requests and responses.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, ReadBuf};

use super::stream::WriteDeadline;
use crate::access::AccessLogEntry;
use crate::connection::{HttpConnection, RequestGuard};
use crate::limits::{ANSWER_PIECE, ANSWER_PIECE_LARGE, LINGER_BYTES, LINGER_TIME};

/// A response body that keeps its connection busy until its end, and counts its bytes for the log.
pub(super) struct TrackedBody {
    body: Body,
    entry: AccessLogEntry,
    conn: Arc<HttpConnection>,
    /// The rest of the last piece: a client that receives little gets little at once.
    left: Bytes,
    /// The most bytes that are handed on at once.
    piece: usize,
    /// Whether the client has not received the last piece yet.
    owed: bool,
    /// The deadline of the body's own stream.
    until: Option<Arc<WriteDeadline>>,
    /// When the last piece was read from the body.
    last: Option<Instant>,
    busy: RequestGuard,
}

impl TrackedBody {
    pub(super) fn new(
        body: Body,
        conn: Arc<HttpConnection>,
        busy: RequestGuard,
        entry: AccessLogEntry,
    ) -> Self {
        // HTTP/2 holds a piece for each stream, and the other framings one for each connection.
        let piece = match conn.protocol {
            "h2" => ANSWER_PIECE,
            _ => ANSWER_PIECE_LARGE,
        };
        let mut tracked = Self {
            body,
            entry,
            conn,
            left: Bytes::new(),
            piece,
            owed: false,
            until: WriteDeadline::polled(),
            last: None,
            busy,
        };
        // The library does not poll the body while the client has no room, so the deadline must begin before the
        // first piece.
        tracked.owe(Instant::now(), 0);
        tracked
    }

    /// Records that this number of bytes is handed on.
    fn owe(&mut self, now: Instant, bytes: usize) {
        self.owed = true;
        let until = self.conn.owes(now, bytes);
        if let Some(own) = &self.until {
            own.set(until);
        }
    }

    fn taken(&mut self) {
        if std::mem::take(&mut self.owed) {
            self.conn.taken();
            if let Some(own) = &self.until {
                own.clear();
            }
        }
    }

    /// The next bytes to hand on.
    fn piece(&mut self) -> Option<Bytes> {
        let piece = self.left.split_to(self.left.len().min(self.piece));
        (!piece.is_empty()).then_some(piece)
    }

    fn sent(&mut self, bytes: usize) {
        self.entry.sent(bytes);
        let now = Instant::now();
        self.last = Some(now);
        self.owe(now, bytes);
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        self.taken();
        let whole = self.is_end_stream();
        if whole {
            self.entry.end();
        }
        // A complete body is dropped right after its last piece, so the clock need not be read again.
        let last = self.last.filter(|_| whole);
        let now = last.unwrap_or_else(Instant::now);
        self.entry.ended(now);
        self.busy.ended(now);
    }
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // The library polls for more only when the client has room, so the client has received the last piece.
        self.taken();
        if let Some(piece) = self.piece() {
            self.sent(piece.len());
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let frame = match frame {
            Some(Ok(frame)) => frame.into_data(),
            // The body has ended, or the node itself broke it off: the log counts both as complete.
            other => {
                self.entry.end();
                return Poll::Ready(other);
            }
        };
        let frame = match frame {
            Ok(data) => {
                self.left = data;
                let piece = self.piece().unwrap_or_default();
                self.sent(piece.len());
                Frame::data(piece)
            }
            Err(trailers) => {
                self.sent(0);
                trailers
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.left.len() as u64;
        let body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower().saturating_add(left));
        if let Some(upper) = body.upper().and_then(|upper| upper.checked_add(left)) {
            hint.set_upper(upper);
        }
        hint
    }
}

/// The body of a request. If the response came before the end of the body, this reads and discards the rest, within
/// limits: many clients read no response while they send.
pub(super) struct LingeringBody {
    body: Option<Incoming>,
    conn: Arc<HttpConnection>,
}

impl LingeringBody {
    pub(super) fn new(body: Incoming, conn: &Arc<HttpConnection>) -> Self {
        Self {
            body: Some(body),
            conn: Arc::clone(conn),
        }
    }
}

impl http_body::Body for LingeringBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.as_ref().map(Incoming::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl Drop for LingeringBody {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        // Without a runtime the process is ending.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let busy = self.conn.hold();
            runtime.spawn(async move {
                // The result does not matter: the client learns nothing about it.
                let _ = tokio::time::timeout(LINGER_TIME, discard(body)).await;
                drop(busy);
            });
        }
    }
}

async fn discard(mut body: Incoming) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        // The client could otherwise send without end.
        if bytes > LINGER_BYTES {
            return;
        }
    }
}

/// The reader of an HTTP/1.1 connection, which records when the head of a request began.
pub(super) struct HeadTimingStream<R> {
    stream: R,
    conn: Arc<HttpConnection>,
}

impl<R> HeadTimingStream<R> {
    pub(super) fn new(stream: R, conn: &Arc<HttpConnection>) -> Self {
        conn.watch();
        Self {
            stream,
            conn: Arc::clone(conn),
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for HeadTimingStream<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if buffer.filled().len() > before {
            self.conn.bytes_arrived();
        }
        Poll::Ready(read)
    }
}
