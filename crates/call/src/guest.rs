//! Somebody who came in by another protocol and speaks this one inside it, such as a page in a browser
//! over WebSocket.

use std::sync::Arc;

use alknet_core::{AuthContext, AuthToken, CloseCode, Connection, HandlerError, StreamBudget};
use tokio::time::Instant;

use crate::dispatcher::Dispatcher;
use crate::limits::GUEST_RECHECK;
use crate::link::{Link, UNKNOWN};
use crate::session;
use crate::unfinished::GuestHandle;

impl Dispatcher {
    /// Serves a guest until its connection ends, which another protocol carries. Dropping the future
    /// ends it, too.
    ///
    /// A guest is somebody, and never a peer, even where its key or token is a peer's: nobody can
    /// address it, nothing is imported from it, and what it serves is reached over this connection
    /// only. It is whom `token` stands for, which was checked where the connection came in and is
    /// looked up again as long as it lasts; without one whom `auth` says; else nobody, who may
    /// authenticate within [`Patience::guest_login`](crate::limits::Patience) or has to ask something, and
    /// is ended after [`Patience::stranger_connection`](crate::limits::Patience) whatever it asks. `guest` stands for it
    /// where its carriage [counts](crate::Assembly) messages in the making.
    ///
    /// # Errors
    /// As a [`ProtocolHandler`](alknet_core::ProtocolHandler).
    pub async fn serve_guest(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
        token: Option<Arc<AuthToken>>,
        guest: GuestHandle,
    ) -> Result<(), HandlerError> {
        let link = Link::guest(connection, self, &auth);
        guest.set(&link);
        if let Some(token) = token {
            if !session::begin(&link, token) {
                link.connection.close(CloseCode::Policy, session::REVOKED);
                return Err(HandlerError::AuthRequired);
            }
        } else if auth.identity.is_some() {
            link.connection.raise_budget(StreamBudget::CALL);
        }
        let login = login(&link);
        let drive = Arc::clone(&link).drive();
        tokio::pin!(login, drive);
        tokio::select! {
            biased;
            ended = &mut drive => ended,
            why = &mut login => {
                link.close(CloseCode::Timeout, why);
                drive.await
            }
        }
    }
}

/// Resolves once a guest who is nobody has asked nothing for too long, or has been nobody for too long; to which of
/// them it is.
async fn login(link: &Link) -> &'static str {
    let patience = link.dispatcher.patience;
    let began = Instant::now();
    tokio::time::sleep(patience.guest_login).await;
    while !link.connection.is_identified() {
        if link.inbound.is_empty() {
            return "nobody, and asks nothing";
        }
        if !link.has_proved() && began.elapsed() >= patience.stranger_connection {
            return UNKNOWN;
        }
        tokio::time::sleep(GUEST_RECHECK).await;
    }
    std::future::pending().await
}
