//! The three framings of HTTP in front of one service.

mod body;
mod bounds;
mod coalescing;
mod pooled;
mod quic;
mod resets;
mod stream;
mod streams;
mod tcp;
mod timed;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::PollOnWake;
use axum::body::Body;
use http::{Request, Response};
use tokio::sync::watch;

use crate::access::AccessLogEntry;
use crate::connection::HttpConnection;
use crate::limits::HttpTimeouts;
use crate::router::{self, IncomingRequest};

pub(crate) use quic::serve as serve_quic;
pub(crate) use tcp::{TcpHttpVersion, serve as serve_tcp};
pub(crate) use timed::is_slow;

/// Handles one request of a connection, and counts it as long as it runs.
///
/// The request is large, and a future of an `async fn` would hold its arguments twice, so the request is taken apart
/// before.
fn answer(
    conn: Arc<HttpConnection>,
    request: Request<Body>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> {
    let busy = conn.busy();
    // If the client disconnects, this entry is dropped early, and the log shows that.
    let mut entry = AccessLogEntry::begin(&request, conn.remote, conn.protocol, conn.began());
    let mut arrived = IncomingRequest::new(request);
    async move {
        let response = router::answer(&conn, &mut arrived, &mut entry).await;
        entry.set_response(&response);
        // The response counts as sent when its last byte is.
        Ok(response.map(|body| Body::new(body::TrackedBody::new(body, conn, busy, entry))))
    }
}

/// The reason why the node ends a connection.
enum HttpCloseCause {
    Idle,
    /// The head of a request began and did not end in time.
    Slow,
    Leave,
    /// The client has not authenticated in time.
    Unknown,
    Stalled,
}

/// Resolves when the node must end the connection.
async fn over(conn: &HttpConnection, draining: watch::Receiver<bool>) -> HttpCloseCause {
    let HttpTimeouts {
        head,
        keep_alive,
        unknown_peer: unknown_limit,
        reader,
        ..
    } = conn.patience();
    let wait = async {
        tokio::select! {
            () = wait_for_drain(conn, draining) => HttpCloseCause::Leave,
            why = idle(conn, (head, keep_alive), unknown_limit) => why,
            () = stalled(conn, reader) => HttpCloseCause::Stalled,
        }
    };
    PollOnWake::new(wait).await
}

/// Resolves when the client has sent no request for a while, the head of its request does not end, or it has not
/// authenticated in time.
async fn idle(
    conn: &HttpConnection,
    (first, later): (Duration, Duration),
    unknown: Duration,
) -> HttpCloseCause {
    loop {
        let limit = if conn.is_new() { first } else { later };
        let quiet = conn.quiet().unwrap_or_default();
        if quiet >= limit {
            return HttpCloseCause::Idle;
        }
        let mut wait = limit - quiet;
        // Small requests from time to time cost a client next to nothing, so without this limit they would hold an
        // unknown peer's connection slot.
        if let Some(left) = conn.stays(unknown) {
            if left.is_zero() {
                conn.leave();
                return HttpCloseCause::Unknown;
            }
            wait = wait.min(left);
        }
        if conn.is_watched() {
            let since = conn.head_since().unwrap_or_default();
            if since >= first {
                return HttpCloseCause::Slow;
            }
            // No head that begins meanwhile can be overdue before the next check.
            wait = wait.min(first - since);
        }
        tokio::time::sleep(wait).await;
    }
}

/// Resolves when the client has received a response too slowly.
async fn stalled(conn: &HttpConnection, patience: Duration) {
    while !conn.is_stalled() {
        tokio::time::sleep(patience).await;
    }
    tracing::debug!(connection = %conn.connection.id(), "HTTP ended: its answers are not read");
}

/// Resolves when the connection must accept no more requests.
async fn wait_for_drain(conn: &HttpConnection, mut draining: watch::Receiver<bool>) {
    tokio::select! {
        // The sender lives as long as the handler.
        _ = draining.wait_for(|draining| *draining) => {}
        () = conn.connection.drain_requested() => {}
    }
}
