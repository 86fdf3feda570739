//! Protocol handlers, and the table from ALPN to handler.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use thiserror::Error;

use crate::alpn::{AlpnSpec, Carriage};
use crate::connection::Connection;
use crate::identity::AuthContext;

/// A boxed future, which the object-safe traits of this crate return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Any error that a handler passes on.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A service: all that a peer can reach once the handshake has chosen one of its ALPNs.
///
/// One call of [`handle`](Self::handle) owns one connection. The endpoint runs it in a task of its own; a panic ends
/// that connection with code 7 and nothing else. Dropping the future (at the drain deadline) must leave no work
/// behind.
pub trait ProtocolHandler: Send + Sync + 'static {
    /// The protocols that it serves. The endpoint reads them once, at the start, because ALPN lists are part of the
    /// TLS configuration.
    fn alpns(&self) -> &[AlpnSpec];

    /// Serves one connection until it ends.
    fn handle(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>>;

    /// Called once when the node drains: the handler takes no new work, and notifies peers where the protocol can.
    /// Running work goes on until the deadline.
    fn drain(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// How a connection ended that did not end well. Each variant maps to a close code.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HandlerError {
    /// The peer must authenticate first.
    #[error("authentication required")]
    AuthRequired,
    /// The connection has ended, with nothing to report.
    #[error("connection closed")]
    Closed,
    /// The peer is known and lacks the right.
    #[error("forbidden")]
    Forbidden,
    /// An error of this node.
    #[error("internal error: {0}")]
    Internal(BoxError),
    /// A limit was reached.
    #[error("overloaded")]
    Overloaded,
    /// The peer broke the protocol; the text is constant and at most 64 bytes.
    #[error("protocol error: {0}")]
    Protocol(Cow<'static, str>),
    /// Reading or writing failed.
    #[error("stream failed: {0}")]
    Stream(#[from] io::Error),
    /// A time limit of the protocol passed.
    #[error("timed out")]
    Timeout,
}

/// The handlers of a node by ALPN. The table does not change once it is built.
#[derive(Clone, Default)]
pub struct HandlerRegistry {
    by_alpn: BTreeMap<&'static [u8], (AlpnSpec, Arc<dyn ProtocolHandler>)>,
    order: Vec<&'static [u8]>,
    handlers: Vec<Arc<dyn ProtocolHandler>>,
}

impl HandlerRegistry {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a handler under each of its ALPNs. The order of registration is the order of preference.
    ///
    /// # Errors
    /// An ALPN that another handler already serves, an empty one, or one over 255 bytes.
    pub fn register(
        &mut self,
        handler: Arc<dyn ProtocolHandler>,
    ) -> Result<(), HandlerRegistryError> {
        // All are checked before any is added: an error leaves the table as it was.
        for spec in handler.alpns() {
            // The length of a protocol name has one byte, and is not zero (RFC 7301 section 3.1).
            if spec.id.is_empty() || spec.id.len() > 255 {
                return Err(HandlerRegistryError::Length(spec.name()));
            }
            if self.by_alpn.contains_key(spec.id) {
                return Err(HandlerRegistryError::Duplicate(spec.name()));
            }
        }
        for spec in handler.alpns() {
            self.order.push(spec.id);
            self.by_alpn
                .insert(spec.id, (spec.clone(), Arc::clone(&handler)));
        }
        self.handlers.push(handler);
        Ok(())
    }

    /// The handler for `alpn` on `carriage`.
    #[must_use]
    pub fn get(
        &self,
        alpn: &[u8],
        carriage: Carriage,
    ) -> Option<(&AlpnSpec, &Arc<dyn ProtocolHandler>)> {
        let (spec, handler) = self.by_alpn.get(alpn)?;
        spec.carriage.covers(carriage).then_some((spec, handler))
    }

    /// ALPNs offered on `carriage`, most preferred first.
    pub fn alpns(&self, carriage: Carriage) -> impl Iterator<Item = &'static [u8]> + '_ {
        self.order
            .iter()
            .copied()
            .filter(move |id| self.by_alpn[id].0.carriage.covers(carriage))
    }

    /// Every protocol, the most preferred first.
    pub fn specs(&self) -> impl Iterator<Item = &AlpnSpec> {
        self.order.iter().map(|id| &self.by_alpn[id].0)
    }

    /// Every handler, once.
    pub fn handlers(&self) -> impl Iterator<Item = &Arc<dyn ProtocolHandler>> {
        self.handlers.iter()
    }
}

impl fmt::Debug for HandlerRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.specs().map(AlpnSpec::name))
            .finish()
    }
}

/// Why a handler could not be added.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HandlerRegistryError {
    /// Two handlers claim one ALPN.
    #[error("ALPN '{0}' is served by two handlers")]
    Duplicate(String),
    /// The ALPN does not have the 1 to 255 bytes of RFC 7301.
    #[error("ALPN '{0}' is empty or longer than 255 bytes")]
    Length(String),
}
