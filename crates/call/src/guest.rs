//! Guests: clients that connect by another protocol and speak this one inside it, such as a page in a browser over
//! WebSocket.

use std::sync::Arc;

use alknet_core::{AuthContext, AuthToken, CloseCode, Connection, HandlerError, StreamBudget};
use tokio::time::Instant;

use crate::connection::{CallConnectionState, UNKNOWN};
use crate::dispatcher::Dispatcher;
use crate::limits::GUEST_RECHECK;
use crate::session;
use crate::unfinished::GuestHandle;

impl Dispatcher {
    /// Serves a guest until its connection ends, which another protocol carries. Dropping the future ends it, too.
    ///
    /// A guest may have an identity and is never a peer, even where its key or token is a peer's: no peer can address
    /// it, this node imports nothing from it, and only this connection reaches what it serves. Its identity is that
    /// of `token`, which the accepting server checked and this method looks up again while the connection lasts;
    /// without a token, the one in `auth`. A guest without either has to authenticate or to send a request within
    /// [`PeerTimeouts::guest_login`](crate::limits::PeerTimeouts), and its connection ends after
    /// [`PeerTimeouts::unknown_connection`](crate::limits::PeerTimeouts) whatever it sends. `guest` stands for it
    /// where its carriage [counts](crate::UnfinishedMessage) incomplete messages.
    ///
    /// # Errors
    /// The errors of a [`ProtocolHandler`](alknet_core::ProtocolHandler).
    pub async fn serve_guest(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
        token: Option<Arc<AuthToken>>,
        guest: GuestHandle,
    ) -> Result<(), HandlerError> {
        let state = CallConnectionState::guest(connection, self, &auth);
        guest.set(&state);
        if let Some(token) = token {
            // The token may have been revoked since the accepting server checked it.
            if !session::begin(&state, token) {
                state.connection.close(CloseCode::Policy, session::REVOKED);
                return Err(HandlerError::AuthRequired);
            }
        } else if auth.identity.is_some() {
            // An identified guest may have as many streams as a known peer.
            state.connection.raise_budget(StreamBudget::CALL);
        }
        let login = login(&state);
        let drive = Arc::clone(&state).drive();
        tokio::pin!(login, drive);
        tokio::select! {
            biased;
            ended = &mut drive => ended,
            why = &mut login => {
                state.close(CloseCode::Timeout, why);
                drive.await
            }
        }
    }
}

/// Resolves once an unidentified guest has sent no request for too long, or has been unidentified for too long;
/// returns which of the two it was.
async fn login(state: &CallConnectionState) -> &'static str {
    let patience = state.dispatcher.patience;
    let began = Instant::now();
    tokio::time::sleep(patience.guest_login).await;
    while !state.connection.is_identified() {
        if state.inbound.is_empty() {
            return "not authenticated, and no call is open";
        }
        if !state.has_proved() && began.elapsed() >= patience.unknown_connection {
            return UNKNOWN;
        }
        tokio::time::sleep(GUEST_RECHECK).await;
    }
    std::future::pending().await
}
