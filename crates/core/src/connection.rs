//! A connection in the form in which a handler sees it, whichever carriage it has.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use thiserror::Error;
use tokio::sync::watch;

use crate::alpn::Carriage;
use crate::close::{CloseCode, CloseReason};
use crate::handler::BoxFuture;
use crate::identity::{Identity, PeerId};
use crate::limits::StreamBudget;
use crate::stream::{RecvStream, SendStream, StreamError, Traffic};

/// Number of a connection within this process, which is in every log line about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

impl ConnId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The interface of a carriage. The endpoint implements it for QUIC and for TLS over TCP, and each handler that
/// carries other protocols for its own streams.
pub trait StreamSource: Send + Sync + 'static {
    /// The next stream that the peer opens. A carriage with a single stream yields it once, and then
    /// [`StreamError::Closed`]. Cancel safe.
    fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>>;

    /// Opens a stream; [`StreamError::Unsupported`] on a single-stream carriage.
    fn open_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>>;

    /// The next unidirectional stream that the peer opens.
    fn accept_uni(&self) -> BoxFuture<'_, Result<RecvStream, StreamError>> {
        Box::pin(std::future::ready(Err(StreamError::Unsupported)))
    }

    /// Opens a unidirectional stream.
    fn open_uni(&self) -> BoxFuture<'_, Result<SendStream, StreamError>> {
        Box::pin(std::future::ready(Err(StreamError::Unsupported)))
    }

    /// Whether more than one stream can exist.
    fn is_multi(&self) -> bool;

    /// Ends the connection at once. `reason` is constant text of at most 64 bytes.
    fn close(&self, code: CloseCode, reason: &str);

    /// Like [`close`](Self::close), with a number of a protocol that has codes of its own.
    fn close_foreign(&self, _code: u32, reason: &str) {
        self.close(CloseCode::Normal, reason);
    }

    /// Resolves once the connection has ended.
    fn closed(&self) -> BoxFuture<'_, CloseReason>;

    /// Replaces the flow-control budget, where the carriage has one.
    fn set_budget(&self, _budget: StreamBudget) {}

    /// Smoothed round-trip time, where the carriage measures it.
    fn rtt(&self) -> Option<Duration> {
        None
    }

    /// Keying material bound to this connection (RFC 8446 section 7.5).
    ///
    /// # Errors
    /// The carriage has no TLS session to export from.
    fn export_keying_material(
        &self,
        _label: &[u8],
        _context: &[u8],
        _out: &mut [u8],
    ) -> Result<(), StreamError> {
        Err(StreamError::Unsupported)
    }
}

/// Facts that the end of the handshake fixed.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The negotiated protocol.
    pub alpn: Arc<[u8]>,
    /// The transport that carries the bytes.
    pub carriage: Carriage,
    /// The server name that the client asked for.
    pub sni: Option<Arc<str>>,
    /// The address of the peer.
    pub remote_addr: Option<SocketAddr>,
    /// The address of this side.
    pub local_addr: Option<SocketAddr>,
    /// Whether this side dialled.
    pub dialled: bool,
}

/// Called when a peer has proved who it is. Returns whether it has a known peer's connection slot from then on.
type Authenticated = dyn Fn(&PeerId) -> bool + Send + Sync;

struct ConnectionInner {
    id: ConnId,
    info: ConnectionInfo,
    source: Box<dyn StreamSource>,
    traffic: Arc<Traffic>,
    peer_id: OnceLock<PeerId>,
    identity: ArcSwapOption<Identity>,
    revoked: AtomicBool,
    /// Whether the peer proved who it is, by its key or by a token, and has a known peer's connection slot.
    authenticated: AtomicBool,
    drain: watch::Sender<bool>,
    on_auth_failure: OnceLock<Box<dyn Fn() + Send + Sync>>,
    on_authenticated: OnceLock<Box<Authenticated>>,
    penalty: OnceLock<Box<dyn Fn() -> Option<Duration> + Send + Sync>>,
    /// Translates close codes for a protocol that has numbers of its own.
    codes: OnceLock<fn(CloseCode) -> u32>,
    /// The connection that carries this one, if it is nested.
    carrier: Option<Connection>,
}

impl Drop for ConnectionInner {
    fn drop(&mut self) {
        self.close(CloseCode::Normal, "");
    }
}

impl ConnectionInner {
    fn close(&self, code: CloseCode, reason: &str) {
        match self.codes.get() {
            // A handler of another protocol numbers its errors in its own way.
            Some(number) => self.source.close_foreign(number(code), reason),
            None => self.source.close(code, reason),
        }
    }
}

/// One connection. Clones share it; dropping the last one closes it.
#[derive(Clone)]
pub struct Connection(Arc<ConnectionInner>);

impl Connection {
    /// Wraps a carriage.
    #[must_use]
    pub fn from_source(source: Box<dyn StreamSource>, info: ConnectionInfo) -> Self {
        Self::new(source, info, None)
    }

    /// Wraps a connection that this one carries inside itself, which the peer opened for another protocol. It has
    /// this connection's addresses, and its identity for as long as it has none of its own.
    #[must_use]
    pub fn nested(&self, source: Box<dyn StreamSource>, alpn: &[u8]) -> Self {
        let info = ConnectionInfo {
            alpn: alpn.into(),
            // The bytes travel in a stream of the carrier, and not over a carriage of their own.
            carriage: Carriage::Memory,
            dialled: false,
            ..self.0.info.clone()
        };
        Self::new(source, info, Some(self.clone()))
    }

    fn new(source: Box<dyn StreamSource>, info: ConnectionInfo, carrier: Option<Self>) -> Self {
        Self(Arc::new(ConnectionInner {
            id: ConnId::next(),
            info,
            source,
            traffic: Arc::new(Traffic::begin()),
            peer_id: OnceLock::new(),
            identity: ArcSwapOption::empty(),
            revoked: AtomicBool::new(false),
            authenticated: AtomicBool::new(false),
            drain: watch::Sender::new(false),
            on_auth_failure: OnceLock::new(),
            on_authenticated: OnceLock::new(),
            penalty: OnceLock::new(),
            codes: OnceLock::new(),
            carrier,
        }))
    }

    /// The connections that carry this one, from the inside out; empty for one that is not nested.
    pub fn carriers(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(self.0.carrier.as_ref(), |carrier| {
            carrier.0.carrier.as_ref()
        })
    }

    /// The next stream that the peer opens; see [`StreamSource::accept_bi`].
    ///
    /// # Errors
    /// Only [`StreamError::Closed`] and [`StreamError::Timeout`] mean that no more streams will come.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), StreamError> {
        let streams = self.0.source.accept_bi().await;
        streams.map(|pair| self.count(pair))
    }

    /// Opens a stream. The peer sees it with its first byte.
    ///
    /// # Errors
    /// The connection is gone, or the carriage has one stream only.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), StreamError> {
        let streams = self.0.source.open_bi().await;
        streams.map(|pair| self.count(pair))
    }

    /// The next unidirectional stream that the peer opens.
    ///
    /// # Errors
    /// The errors of [`accept_bi`](Self::accept_bi).
    pub async fn accept_uni(&self) -> Result<RecvStream, StreamError> {
        let stream = self.0.source.accept_uni().await?;
        self.0.traffic.streams.add(1);
        Ok(stream.count_in(&self.0.traffic))
    }

    /// Opens a unidirectional stream.
    ///
    /// # Errors
    /// The errors of [`open_bi`](Self::open_bi).
    pub async fn open_uni(&self) -> Result<SendStream, StreamError> {
        let stream = self.0.source.open_uni().await?;
        self.0.traffic.streams.add(1);
        Ok(stream.count_in(&self.0.traffic))
    }

    fn count(&self, (send, recv): (SendStream, RecvStream)) -> (SendStream, RecvStream) {
        let traffic = &self.0.traffic;
        traffic.streams.add(1);
        (send.count_in(traffic), recv.count_in(traffic))
    }

    /// The bytes and streams so far.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }

    /// Number of this connection in logs.
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.0.id
    }

    /// Facts that the end of the handshake fixed.
    #[must_use]
    pub fn info(&self) -> &ConnectionInfo {
        &self.0.info
    }

    /// The negotiated protocol.
    #[must_use]
    pub fn alpn(&self) -> &[u8] {
        &self.0.info.alpn
    }

    /// The address of the peer, where the carriage knows it.
    #[must_use]
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.0.info.remote_addr
    }

    /// The transport that carries the bytes.
    #[must_use]
    pub fn carriage(&self) -> Carriage {
        self.0.info.carriage
    }

    /// Smoothed round-trip time.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.0.source.rtt()
    }

    /// Whether more than one stream can exist.
    #[must_use]
    pub fn is_multi(&self) -> bool {
        self.0.source.is_multi()
    }

    /// Sets the identity that the peer proved. The peer id is written once; a later call may only replace the scopes
    /// and resources of the same id.
    ///
    /// # Errors
    /// The connection already belongs to another peer id, or the node has removed its peer.
    pub fn set_identity(&self, identity: Arc<Identity>) -> Result<(), AlreadySet> {
        let id = self.0.peer_id.get_or_init(|| identity.id.clone());
        if *id != identity.id {
            return Err(AlreadySet);
        }
        self.0.identity.store(Some(identity));
        // The flag is read after the store: a revocation in between wins.
        if self.0.revoked.load(Ordering::SeqCst) {
            self.0.identity.store(None);
            return Err(AlreadySet);
        }
        self.authenticated(id);
        Ok(())
    }

    /// Removes the identity because the node has removed the peer. From here on the connection, which is about to be
    /// closed, has no identity, and cannot get one again.
    pub fn revoke_identity(&self) {
        // The flag is set before the identity is taken: `set_identity` reads it after its own store.
        self.0.revoked.store(true, Ordering::SeqCst);
        self.0.identity.store(None);
    }

    /// The identity of the peer, once it is known.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        let own = self.0.identity.load_full();
        own.or_else(|| self.inherits().and_then(Self::identity))
    }

    /// The carrier whose identity counts where this connection has none.
    fn inherits(&self) -> Option<&Self> {
        // A peer that was removed must not get its carrier's rights.
        let revoked = self.0.revoked.load(Ordering::SeqCst);
        self.0.carrier.as_ref().filter(|_| !revoked)
    }

    /// Whether the peer is known: as [`identity`](Self::identity), without a new reference.
    #[must_use]
    pub fn is_identified(&self) -> bool {
        self.0.identity.load().is_some() || self.inherits().is_some_and(Self::is_identified)
    }

    /// Asks the handler to finish its work and to accept none, because a newer connection of the same peer takes
    /// over. Returns whether this is the first such request.
    pub fn ask_to_drain(&self) -> bool {
        !self.0.drain.send_replace(true)
    }

    /// Whether the handler was asked to finish.
    #[must_use]
    pub fn is_drain_requested(&self) -> bool {
        *self.0.drain.borrow()
    }

    /// Resolves once the handler is asked to finish. Cancel safe.
    pub async fn drain_requested(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.drain.subscribe().wait_for(|asked| *asked).await;
    }

    /// Sets the function that runs each time the peer fails to prove who it is. The maker of the connection sets it
    /// once.
    pub fn on_auth_failure(&self, notice: impl Fn() + Send + Sync + 'static) {
        self.0.on_auth_failure.get_or_init(|| Box::new(notice));
    }

    /// A handler reports that the peer sent a token, a key or a password that belongs to no identity. Every handler
    /// that authenticates calls this: guesses are counted by network.
    pub fn auth_failed(&self) {
        match (self.0.on_auth_failure.get(), &self.0.carrier) {
            (Some(notice), _) => notice(),
            // A nested connection has no network of its own: its carrier counts.
            (None, Some(carrier)) => carrier.auth_failed(),
            (None, None) => {}
        }
    }

    /// Sets the function that returns for how long guesses from the peer's network are refused. The maker of the
    /// connection sets it once.
    pub fn set_penalty(&self, penalty: impl Fn() -> Option<Duration> + Send + Sync + 'static) {
        self.0.penalty.get_or_init(|| Box::new(penalty));
    }

    /// For how long the node limits its answers to invalid tokens from the peer's network, because too many came from
    /// there. A handler names this time to a peer that sends one. Valid tokens work all the same.
    #[must_use]
    pub fn penalty(&self) -> Option<Duration> {
        match (self.0.penalty.get(), &self.0.carrier) {
            (Some(penalty), _) => penalty(),
            (None, Some(carrier)) => carrier.penalty(),
            (None, None) => None,
        }
    }

    /// Sets the function that runs when the peer has proved who it is. It returns whether the peer has a known peer's
    /// connection slot from then on, and runs again otherwise. The maker of the connection sets it once, before a
    /// handler has the connection.
    pub fn on_authenticated(&self, notice: impl Fn(&PeerId) -> bool + Send + Sync + 'static) {
        self.0.on_authenticated.get_or_init(|| Box::new(notice));
    }

    /// A handler reports that the peer sent a valid token of `peer`: the limits for unknown peers no longer apply to
    /// this connection, nor to its carrier, unless connections with that token have too many slots already. Every
    /// handler that authenticates calls this, and so does [`set_identity`](Self::set_identity).
    pub fn authenticated(&self, peer: &PeerId) {
        if !self.is_authenticated() {
            let notice = self.0.on_authenticated.get();
            // Without a maker that counts slots, every peer has one.
            if notice.is_none_or(|notice| notice(peer)) {
                self.0.authenticated.store(true, Ordering::Release);
            }
        }
        if let Some(carrier) = &self.0.carrier {
            carrier.authenticated(peer);
        }
    }

    /// Whether the peer proved who it is, at any time, and has a known peer's connection slot.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.0.authenticated.load(Ordering::Acquire)
    }

    /// Gives an authenticated peer its larger budget.
    pub fn raise_budget(&self, budget: StreamBudget) {
        self.0.source.set_budget(budget);
    }

    /// Keying material bound to this connection.
    ///
    /// # Errors
    /// The carriage has no TLS session.
    pub fn export_keying_material(
        &self,
        label: &[u8],
        context: &[u8],
        out: &mut [u8],
    ) -> Result<(), StreamError> {
        self.0.source.export_keying_material(label, context, out)
    }

    /// Ends the connection at once.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.0.close(code, reason);
    }

    /// Ends the connection at once with a number of a protocol that has codes of its own.
    pub fn close_foreign(&self, code: u32, reason: &str) {
        self.0.source.close_foreign(code, reason);
    }

    /// From now on every close of the connection has the numbers of `number`. The handler of a protocol with codes of
    /// its own sets it once.
    pub fn speaks_codes(&self, number: fn(CloseCode) -> u32) {
        self.0.codes.get_or_init(|| number);
    }

    /// Resolves once the connection has ended.
    pub async fn closed(&self) -> CloseReason {
        self.0.source.closed().await
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.0.id)
            .field("info", &self.0.info)
            .finish_non_exhaustive()
    }
}

/// The connection already belongs to another peer id, or the node has removed its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the connection already has another identity, or its peer is gone")]
pub struct AlreadySet;
