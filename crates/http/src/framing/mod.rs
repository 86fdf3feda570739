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

/// Answers one request of a connection, and counts it as long as it runs.
///
/// The request is large, and arguments of an `async fn` lie in its future twice: it is taken apart before.
fn answer(
    conn: Arc<HttpConnection>,
    request: Request<Body>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> {
    let busy = conn.busy();
    // Dropped before its end where the client goes away, which the log says, too.
    let mut line = AccessLogEntry::begin(&request, conn.remote, conn.protocol, conn.began());
    let mut arrived = IncomingRequest::new(request);
    async move {
        let response = router::answer(&conn, &mut arrived, &mut line).await;
        line.answered(&response);
        // The answer is on its way until its last byte is.
        Ok(response.map(|body| Body::new(body::TrackedBody::new(body, conn, busy, line))))
    }
}

/// Why a connection ends that its client has not ended.
enum HttpCloseCause {
    Idle,
    /// A head began, and does not end.
    Slow,
    Leave,
    /// The client has not proved in time who it is.
    Unknown,
    Stalled,
}

/// Resolves when it is to.
async fn over(conn: &HttpConnection, draining: watch::Receiver<bool>) -> HttpCloseCause {
    let HttpTimeouts {
        head,
        keep_alive,
        stranger,
        reader,
        ..
    } = conn.patience();
    let wait = async {
        tokio::select! {
            () = wait_for_drain(conn, draining) => HttpCloseCause::Leave,
            why = idle(conn, (head, keep_alive), stranger) => why,
            () = stalled(conn, reader) => HttpCloseCause::Stalled,
        }
    };
    PollOnWake::new(wait).await
}

/// Resolves when the client has asked nothing for a while, its request's head does not end, or it has not proved in
/// time who it is.
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
        // A small request now and then costs a client next to nothing, and would keep an unknown peer's place.
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
            // None that begins meanwhile is overdue before the next look.
            wait = wait.min(first - since);
        }
        tokio::time::sleep(wait).await;
    }
}

/// Resolves when the client has taken an answer too slowly.
async fn stalled(conn: &HttpConnection, patience: Duration) {
    while !conn.is_stalled() {
        tokio::time::sleep(patience).await;
    }
    tracing::debug!(connection = %conn.connection.id(), "HTTP ended: its answers are not read");
}

/// Resolves when the connection is to take no more requests.
async fn wait_for_drain(conn: &HttpConnection, mut draining: watch::Receiver<bool>) {
    tokio::select! {
        // The sender lives as long as the handler.
        _ = draining.wait_for(|draining| *draining) => {}
        () = conn.connection.asked_to_drain() => {}
    }
}
