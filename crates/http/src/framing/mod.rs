//! The three framings of HTTP in front of one service.

mod body;
mod quic;
mod streams;
mod tcp;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use tokio::sync::watch;

use crate::connection::Conn;
use crate::front;

pub(crate) use quic::serve as serve_quic;
pub(crate) use tcp::{Version, serve as serve_tcp};

/// Answers one request of a connection, and counts it as long as it runs.
async fn answer(conn: Arc<Conn>, request: Request<Body>) -> Response<Body> {
    let busy = conn.busy();
    let response = front::answer(&conn, request).await;
    // The answer is on its way until its last byte is.
    response.map(|body| Body::new(body::Held::new(body, busy)))
}

/// Resolves when nothing was asked for a while.
async fn idle(conn: &Conn, first: Duration, later: Duration) {
    let mut busy = conn.watch_busy();
    loop {
        let limit = if conn.is_new() { first } else { later };
        // The sender lives as long as the connection.
        let _ = busy.wait_for(|running| *running == 0).await;
        let asked = busy.wait_for(|running| *running > 0);
        if tokio::time::timeout(limit, asked).await.is_err() {
            return;
        }
    }
}

/// Resolves when the connection is to take no more requests.
async fn leave(conn: &Conn, mut draining: watch::Receiver<bool>) {
    tokio::select! {
        // The sender lives as long as the handler.
        _ = draining.wait_for(|draining| *draining) => {}
        () = conn.connection.asked_to_drain() => {}
    }
}
