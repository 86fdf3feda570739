//! Protocols inside protocols: how a handler that carries streams of its own has them served.
//!
//! A multiplexer of channels, an SSH channel or a WebTransport session is a [`StreamSource`] made by
//! a handler. The handler wraps it with [`Connection::nested`] and hands it to the [`NestedDispatch`] it was
//! given when the node was assembled, which finds the handler for it as it does for a connection of
//! its own. So no handler knows another.
//!
//! [`StreamSource`]: crate::StreamSource

use thiserror::Error;

use crate::connection::Connection;
use crate::handler::BoxFuture;
use crate::identity::AuthContext;

/// How many protocols may lie in each other below a connection of its own.
pub const NESTING_DEPTH_MAX: usize = 3;

/// Finds the handler for what a handler carries. Implemented by the endpoint.
pub trait NestedDispatch: Send + Sync + 'static {
    /// Decides whether `nested` can be served, by its protocol, and returns what serves it to its end. `auth` is the
    /// carrier's: the peer of a carried connection is the same.
    ///
    /// # Errors
    /// It is not served; nothing was read from it, and dropping it closes it.
    fn dispatch(
        &self,
        nested: Connection,
        auth: AuthContext,
    ) -> Result<BoxFuture<'static, ()>, DispatchError>;
}

/// Why something carried is not served.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DispatchError {
    /// More than [`NESTING_DEPTH_MAX`] protocols in each other.
    #[error("protocols may be nested {NESTING_DEPTH_MAX} deep")]
    Depth,
    /// A protocol inside itself: a peer that could go round once could go round for ever.
    #[error("a protocol cannot be carried inside itself")]
    Itself,
    /// No handler serves it.
    #[error("no such protocol")]
    NoHandler,
    /// It is for known keys only, and this peer has none.
    #[error("this protocol needs a known key")]
    UnknownKey,
    /// The node does not serve yet, or no longer.
    #[error("shutting down")]
    Unavailable,
}
