//! What an operation knows about its caller.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use alknet_core::{AuthContext, Carriage, ConnId, Connection, Identity, PeerKey};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::Caller;
use crate::dispatcher::Dispatcher;
use crate::envelope::ForwardedFor;
use crate::registry::Capabilities;
use crate::request::Request;

/// The connection a request came over.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// Its number in logs.
    pub id: ConnId,
    /// The key the peer proved to hold, known or not.
    pub key: Option<PeerKey>,
    /// The other end.
    pub remote_addr: Option<SocketAddr>,
    /// What the bytes travel on.
    pub carriage: Carriage,
}

impl ConnInfo {
    pub(crate) fn new(connection: &Connection, auth: Option<&AuthContext>) -> Self {
        Self {
            id: connection.id(),
            key: auth.and_then(|auth| auth.key),
            remote_addr: connection.remote_addr(),
            carriage: connection.carriage(),
        }
    }
}

/// One request, as its operation sees it. Cheap to clone.
#[derive(Clone)]
pub struct Ctx(pub(crate) Arc<Request>);

impl Ctx {
    /// The requester's id for it; unique among its connection's requests in flight.
    #[must_use]
    pub fn request_id(&self) -> &str {
        self.0.id()
    }

    /// The name of the operation.
    #[must_use]
    pub fn operation(&self) -> &str {
        &self.0.operation().spec.name
    }

    /// Who asks: the token's identity where one was sent, else the connection's.
    #[must_use]
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.0.identity()
    }

    /// Whom a trusted forwarder claims to act for. Never a reason to allow anything.
    #[must_use]
    pub fn forwarded_for(&self) -> Option<&ForwardedFor> {
        self.0.forwarded_for()
    }

    /// W3C `traceparent`, as the caller sent it.
    #[must_use]
    pub fn trace(&self) -> Option<&str> {
        self.0.trace()
    }

    /// What this operation was registered with.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.0.operation().capabilities
    }

    /// Cancelled when the request ends before its handler does: abort, deadline, connection lost.
    /// The handler's own future is dropped then anyway; this is for work it spawned.
    #[must_use]
    pub fn cancel(&self) -> &CancellationToken {
        self.0.cancel_token()
    }

    /// When the request must be answered.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline()
    }

    /// The connection it came over.
    #[must_use]
    pub fn conn(&self) -> &ConnInfo {
        &self.0.link().info
    }

    pub(crate) fn dispatcher(&self) -> &Dispatcher {
        &self.0.link().dispatcher
    }

    /// The way back: calls operations of the caller over the same connection.
    #[must_use]
    pub fn caller(&self) -> Caller {
        Caller::new(Arc::clone(self.0.link()))
    }
}

impl fmt::Debug for Ctx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctx")
            .field("operation", &self.operation())
            .field("request_id", &self.request_id())
            .finish_non_exhaustive()
    }
}
