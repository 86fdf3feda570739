//! `/alknet/call`: the call protocol over WebSocket, for browsers.
//!
//! The call protocol stays as it is. A WebSocket is a carriage with a single stream ([`source`]): a message is one
//! frame of the call protocol, whose length the other carriages write before it and this one does not. Behind it is a
//! guest of the dispatcher, which may have an identity and is never a peer.
//!
//! The frames are read and written here and not by a library: how many pieces a message is in, how long they take, and
//! how many bytes they have beside others of the same sender, is bounded before they are joined; a message of an
//! unknown sender is refused by its head if it is too long; and a connection that says nothing holds no buffer.

mod codes;
mod frame;
mod handshake;
mod limits;
mod send_buffer;
mod source;

#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use alknet_call::{ALPN, Assembly, Dispatcher, GuestHandle};
use alknet_core::{AuthContext, AuthToken, CloseCode, Connection, HandlerError};
use alknet_gateway::ApiError;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

pub(crate) use handshake::bearer;

use limits::{PINGS_MISSED_MAX, WsTimeouts};
use source::{WebSocket, WsKeepAlive, WsTransport};

/// Who comes in, and over what.
#[derive(Clone, Debug)]
pub(crate) struct WsPeer {
    /// The connection of HTTP.
    pub(crate) carrier: Connection,
    /// What was said of it when it began.
    pub(crate) auth: AuthContext,
    /// The token that was checked, from the header or from the list of subprotocols.
    pub(crate) token: Option<Arc<AuthToken>>,
}

/// Answers a request for a WebSocket and serves it in a task of its own. The task drops `hold` when the WebSocket has
/// ended: the driver of the carrier must not let go of the connection before.
///
/// # Errors
/// The request is not a WebSocket handshake, or comes from a page that may not. `Sec-WebSocket-Protocol` of the request
/// may hold a token and is in no error.
pub(crate) fn respond<B, R, H: Send + 'static>(
    request: &mut Request<B>,
    visitor: WsPeer,
    dispatcher: &Arc<Dispatcher>,
    origins: &[String],
    hold: H,
    body: R,
) -> Result<Response<R>, ApiError> {
    let accepted = handshake::check(request, origins)?;
    let upgrade = hyper::upgrade::on(request);
    let dispatcher = Arc::clone(dispatcher);
    // The library hands the stream over only once the answer is away, which this function returns.
    tokio::spawn(async move {
        let _hold = hold;
        match upgrade.await {
            Ok(upgraded) => {
                let io = TokioIo::new(upgraded);
                serve(io, visitor, dispatcher, WsTimeouts::default()).await;
            }
            Err(error) => tracing::debug!(%error, "no WebSocket came of it"),
        }
    });
    Ok(accepted.response(body))
}

/// What belongs to an error's answer beside its body.
pub(crate) fn add_headers(headers: &mut HeaderMap, status: StatusCode) {
    handshake::add_headers(headers, status);
}

/// Serves a WebSocket to its end.
async fn serve<S: WsTransport>(
    stream: S,
    visitor: WsPeer,
    dispatcher: Arc<Dispatcher>,
    pace: WsTimeouts,
) {
    let guest = GuestHandle::default();
    let known_bytes = dispatcher.limits().frame_bytes;
    let (source, pulse) = WebSocket::new(stream, known_bytes, pace, Assembly::for_guest(&guest));
    let connection = visitor.carrier.nested(Box::new(source), ALPN);
    let auth = AuthContext {
        // An identity that the carrier has found out meanwhile counts.
        identity: connection.identity(),
        alpn: Arc::clone(&connection.info().alpn),
        carriage: connection.carriage(),
        ..visitor.auth
    };
    tracing::debug!(conn = %connection.id(), "a WebSocket begins");
    let served = dispatcher.serve_guest(connection.clone(), auth, visitor.token, guest);
    let served = AssertUnwindSafe(served).catch_unwind();
    tokio::select! {
        ended = served => match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => connection.close(code(&error), ""),
            Err(_) => {
                tracing::error!(conn = %connection.id(), "serving a WebSocket panicked");
                connection.close(CloseCode::Internal, "internal error");
            }
        },
        () = silence(&pulse, pace.ping_every) => pulse.end(codes::SILENT),
    }
    tracing::debug!(conn = %connection.id(), "a WebSocket ends");
}

/// What the call protocol has not said itself.
fn code(error: &HandlerError) -> CloseCode {
    match error {
        HandlerError::AuthRequired | HandlerError::Forbidden => CloseCode::Policy,
        HandlerError::Closed => CloseCode::Normal,
        HandlerError::Overloaded => CloseCode::Overload,
        HandlerError::Protocol(_) => CloseCode::Protocol,
        HandlerError::Timeout => CloseCode::Timeout,
        _ => CloseCode::Internal,
    }
}

/// Resolves once nothing was heard after so many pings.
async fn silence<S: WsTransport>(pulse: &WsKeepAlive<S>, every: std::time::Duration) {
    let mut missed = 0;
    let mut asked = false;
    loop {
        tokio::time::sleep(every).await;
        let heard = pulse.ask();
        // The first round follows no ping.
        missed = if heard || !asked { 0 } else { missed + 1 };
        asked = true;
        if missed >= PINGS_MISSED_MAX {
            return;
        }
    }
}
