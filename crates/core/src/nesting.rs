//! Protocols inside protocols: how a handler has the streams served that it carries.
//!
//! A multiplexer of channels, an SSH channel or a WebTransport session is a [`StreamSource`] made by a handler. The
//! handler wraps it with [`Connection::nested`] and hands it to the [`NestedDispatch`] that it got when the node was
//! assembled. That finds the handler for it as for a connection of its own. So no handler knows another.
//!
//! [`StreamSource`]: crate::StreamSource

use thiserror::Error;

use crate::connection::Connection;
use crate::handler::BoxFuture;
use crate::identity::AuthContext;

/// Most protocols inside each other below a connection that is not nested.
pub const NESTING_DEPTH_MAX: usize = 3;

/// Finds the handler for a nested connection. The endpoint implements it.
pub trait NestedDispatch: Send + Sync + 'static {
    /// Decides by its protocol whether `nested` can be served, and returns the future that serves it to its end.
    /// `auth` is the carrier's: a carried connection has the same peer.
    ///
    /// # Errors
    /// The connection is not served. Nothing was read from it, and dropping it closes it.
    fn dispatch(
        &self,
        nested: Connection,
        auth: AuthContext,
    ) -> Result<BoxFuture<'static, ()>, DispatchError>;
}

/// Why a nested connection is not served.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DispatchError {
    /// More than [`NESTING_DEPTH_MAX`] protocols in each other.
    #[error("protocols may be nested {NESTING_DEPTH_MAX} deep")]
    Depth,
    /// A protocol inside itself: a peer that nests once could nest without end.
    #[error("a protocol cannot be carried inside itself")]
    Itself,
    /// No handler serves it.
    #[error("no such protocol")]
    NoHandler,
    /// The protocol is for known keys only, and this peer has none.
    #[error("this protocol needs a known key")]
    UnknownKey,
    /// The node does not serve yet, or no longer.
    #[error("shutting down")]
    Unavailable,
}
