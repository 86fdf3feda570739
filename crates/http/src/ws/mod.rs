//! `/alknet/call`: the call protocol over WebSocket, for browsers.
//!
//! The call protocol is unchanged. A WebSocket is a carriage with a single stream ([`source`]): a message is one
//! frame of the call protocol. The other carriages write the length of a frame before it, and this one does not. The
//! dispatcher treats the client as a guest, which may have an identity but is never a peer.
//!
//! This crate reads and writes the frames itself instead of using a library, for three reasons. It limits the number
//! of fragments of a message, their time, and their bytes together with those of the same sender's other messages,
//! before it joins them. It refuses a too long message of an unknown sender by its header. And an idle connection
//! holds no buffer.

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

use alknet_call::{ALPN, Dispatcher, GuestHandle, UnfinishedMessage};
use alknet_core::{AuthContext, AuthToken, CloseCode, Connection, HandlerError};
use alknet_gateway::ApiError;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

pub(crate) use handshake::bearer;

use limits::{PINGS_MISSED_MAX, WsTimeouts};
use source::{WebSocket, WsKeepAlive, WsTransport};

/// The client of a WebSocket, and its connection.
#[derive(Clone, Debug)]
pub(crate) struct WsPeer {
    /// The HTTP connection.
    pub(crate) carrier: Connection,
    /// What authentication found out when the connection began.
    pub(crate) auth: AuthContext,
    /// The authenticated token, from the header or from the list of subprotocols.
    pub(crate) token: Option<Arc<AuthToken>>,
}

/// Responds to a handshake and serves the WebSocket in a task of its own. The task drops `hold` when the WebSocket
/// has ended: until then, the carrier's driver must not release the connection.
///
/// # Errors
/// The request is no WebSocket handshake, or comes from a page that is not allowed. No error contains
/// `Sec-WebSocket-Protocol`, because that may hold a token.
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
    // The library hands over the stream only after it has sent the response that this function returns.
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

/// Adds the headers that the response of an error needs.
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
    let (source, pulse) = WebSocket::new(
        stream,
        known_bytes,
        pace,
        UnfinishedMessage::for_guest(&guest),
    );
    let connection = visitor.carrier.nested(Box::new(source), ALPN);
    let auth = AuthContext {
        // The carrier may have learned the client's identity meanwhile.
        identity: connection.identity(),
        alpn: Arc::clone(&connection.info().alpn),
        carriage: connection.carriage(),
        ..visitor.auth
    };
    tracing::debug!(conn = %connection.id(), "a WebSocket begins");
    let served = dispatcher.serve_guest(connection.clone(), auth, visitor.token, guest);
    // A panic must not skip the close frame and the release of the carrier.
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

/// The close code for an error that the call protocol did not report itself.
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

/// Resolves once the peer has sent nothing after several pings.
async fn silence<S: WsTransport>(pulse: &WsKeepAlive<S>, every: std::time::Duration) {
    let mut missed = 0;
    let mut has_pinged = false;
    loop {
        tokio::time::sleep(every).await;
        let heard = pulse.ping();
        // The first round has no earlier ping.
        missed = if heard || !has_pinged { 0 } else { missed + 1 };
        has_pinged = true;
        if missed >= PINGS_MISSED_MAX {
            return;
        }
    }
}
