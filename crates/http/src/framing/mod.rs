//! The three framings of HTTP in front of one service.

mod body;
mod bounds;
mod quic;
mod streams;
mod tcp;
mod timed;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{Request, Response};
use tokio::sync::watch;

use crate::access::Line;
use crate::connection::Conn;
use crate::front;
use crate::limits::Patience;

pub(crate) use quic::serve as serve_quic;
pub(crate) use tcp::{Version, serve as serve_tcp};
pub(crate) use timed::is_slow;

/// Answers one request of a connection, and counts it as long as it runs.
async fn answer(conn: Arc<Conn>, request: Request<Body>) -> Response<Body> {
    let busy = conn.busy();
    // Dropped before its end where the client goes away, which the log says, too.
    let mut line = Line::begin(&request, conn.remote, conn.protocol);
    let response = front::answer(&conn, request, &line).await;
    line.answered(&response);
    // The answer is on its way until its last byte is.
    response.map(|body| Body::new(body::Held::new(body, conn, busy, line)))
}

/// Why a connection ends that its client has not ended.
enum Why {
    Idle,
    Leave,
    Stalled,
}

/// Resolves when it is to. Whoever serves the connection polls this for every request: it looks at what it
/// waits for only when something of that happened.
async fn over(conn: &Conn, draining: watch::Receiver<bool>) -> Why {
    let Patience {
        head,
        keep_alive,
        reader,
        ..
    } = conn.patience();
    let wait = async {
        tokio::select! {
            () = leave(conn, draining) => Why::Leave,
            () = idle(conn, head, keep_alive) => Why::Idle,
            () = stalled(conn, reader) => Why::Stalled,
        }
    };
    let mut only: FuturesUnordered<_> = std::iter::once(wait).collect();
    // There is one, which does not end otherwise.
    only.next().await.unwrap_or(Why::Leave)
}

/// Resolves when nothing was asked for a while.
async fn idle(conn: &Conn, first: Duration, later: Duration) {
    loop {
        let limit = if conn.is_new() { first } else { later };
        let quiet = conn.quiet().unwrap_or_default();
        if quiet >= limit {
            return;
        }
        tokio::time::sleep(limit - quiet).await;
    }
}

/// Resolves when the client has taken an answer too slowly.
async fn stalled(conn: &Conn, patience: Duration) {
    while !conn.is_stalled() {
        tokio::time::sleep(patience).await;
    }
    tracing::debug!(connection = %conn.connection.id(), "HTTP ended: its answers are not read");
}

/// Resolves when the connection is to take no more requests.
async fn leave(conn: &Conn, mut draining: watch::Receiver<bool>) {
    tokio::select! {
        // The sender lives as long as the handler.
        _ = draining.wait_for(|draining| *draining) => {}
        () = conn.connection.asked_to_drain() => {}
    }
}
