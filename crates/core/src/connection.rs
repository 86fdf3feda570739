//! A connection as a handler sees it, whatever carries it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::alpn::Carriage;
use crate::close::{CloseCode, CloseReason, StreamCode};
use crate::handler::BoxFuture;
use crate::identity::{Identity, PeerId};
use crate::limits::StreamBudget;

/// Numbers a connection within this process; in every log line about it.
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

/// What a carriage has to provide. Implemented for QUIC and TLS over TCP by the endpoint, and by
/// anything that carries other protocols inside itself.
pub trait StreamSource: Send + Sync + 'static {
    /// The next stream the peer opens. A single-stream carriage yields once, then
    /// [`StreamError::Closed`]. Cancel safe.
    fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>>;

    /// Opens a stream; [`StreamError::Unsupported`] on a single-stream carriage.
    fn open_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>>;

    /// The next unidirectional stream the peer opens.
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

/// Facts fixed when the handshake ended.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The negotiated protocol.
    pub alpn: Arc<[u8]>,
    /// What the bytes travel on.
    pub carriage: Carriage,
    /// The server name the client asked for.
    pub sni: Option<Arc<str>>,
    /// The other end.
    pub remote_addr: Option<SocketAddr>,
    /// This end.
    pub local_addr: Option<SocketAddr>,
    /// Whether this side dialled.
    pub dialled: bool,
}

struct Inner {
    id: ConnId,
    info: ConnectionInfo,
    source: Box<dyn StreamSource>,
    peer_id: OnceLock<PeerId>,
    identity: ArcSwapOption<Identity>,
    revoked: AtomicBool,
    drain: watch::Sender<bool>,
    on_auth_failure: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.source.close(CloseCode::Normal, "");
    }
}

/// One connection. Clones share it; dropping the last one closes it.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

impl Connection {
    /// Wraps a carriage.
    #[must_use]
    pub fn from_source(source: Box<dyn StreamSource>, info: ConnectionInfo) -> Self {
        Self(Arc::new(Inner {
            id: ConnId::next(),
            info,
            source,
            peer_id: OnceLock::new(),
            identity: ArcSwapOption::empty(),
            revoked: AtomicBool::new(false),
            drain: watch::Sender::new(false),
            on_auth_failure: OnceLock::new(),
        }))
    }

    /// The next stream the peer opens; see [`StreamSource::accept_bi`].
    ///
    /// # Errors
    /// Only [`StreamError::Closed`] and [`StreamError::Timeout`] mean that no more will come.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), StreamError> {
        self.0.source.accept_bi().await
    }

    /// Opens a stream. The peer sees it with its first byte.
    ///
    /// # Errors
    /// The connection is gone, or the carriage has one stream only.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), StreamError> {
        self.0.source.open_bi().await
    }

    /// The next unidirectional stream the peer opens.
    ///
    /// # Errors
    /// As [`accept_bi`](Self::accept_bi).
    pub async fn accept_uni(&self) -> Result<RecvStream, StreamError> {
        self.0.source.accept_uni().await
    }

    /// Opens a unidirectional stream.
    ///
    /// # Errors
    /// As [`open_bi`](Self::open_bi).
    pub async fn open_uni(&self) -> Result<SendStream, StreamError> {
        self.0.source.open_uni().await
    }

    /// Number of this connection in logs.
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.0.id
    }

    /// Facts fixed when the handshake ended.
    #[must_use]
    pub fn info(&self) -> &ConnectionInfo {
        &self.0.info
    }

    /// The negotiated protocol.
    #[must_use]
    pub fn alpn(&self) -> &[u8] {
        &self.0.info.alpn
    }

    /// The other end, where the carriage knows it.
    #[must_use]
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.0.info.remote_addr
    }

    /// What the bytes travel on.
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

    /// Who the peer turned out to be. The peer id is write-once; a later call may only replace
    /// scopes and resources behind the same id.
    ///
    /// # Errors
    /// The connection already belongs to another peer id, or its peer is gone.
    pub fn set_identity(&self, identity: Arc<Identity>) -> Result<(), AlreadySet> {
        let id = self.0.peer_id.get_or_init(|| identity.id.clone());
        if *id != identity.id {
            return Err(AlreadySet);
        }
        self.0.identity.store(Some(identity));
        // Looked at after the store: whoever takes the identity away in between wins.
        if self.0.revoked.load(Ordering::SeqCst) {
            self.0.identity.store(None);
            return Err(AlreadySet);
        }
        Ok(())
    }

    /// The peer is gone: from here on the connection, which is about to be closed, is nobody's, and
    /// cannot become anybody's again.
    pub fn revoke_identity(&self) {
        self.0.revoked.store(true, Ordering::SeqCst);
        self.0.identity.store(None);
    }

    /// Who the peer is, once known.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.0.identity.load_full()
    }

    /// Whether the peer is known: [`identity`](Self::identity) without a share in it.
    #[must_use]
    pub fn is_identified(&self) -> bool {
        self.0.identity.load().is_some()
    }

    /// Asks the handler to finish what it does and to take nothing new: a newer connection of the
    /// same peer takes over.
    pub fn ask_to_drain(&self) {
        self.0.drain.send_replace(true);
    }

    /// Whether the handler was asked to finish.
    #[must_use]
    pub fn is_asked_to_drain(&self) -> bool {
        *self.0.drain.borrow()
    }

    /// Resolves once the handler is asked to finish. Cancel safe.
    pub async fn asked_to_drain(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.drain.subscribe().wait_for(|asked| *asked).await;
    }

    /// What to do each time the peer fails to prove who it is. Set once, by whoever made the
    /// connection.
    pub fn on_auth_failure(&self, notice: impl Fn() + Send + Sync + 'static) {
        self.0.on_auth_failure.get_or_init(|| Box::new(notice));
    }

    /// A handler's word that the peer sent a token, a key or a password that stands for nobody.
    /// Every handler that authenticates says so: guesses are counted by network.
    pub fn auth_failed(&self) {
        if let Some(notice) = self.0.on_auth_failure.get() {
            notice();
        }
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
        self.0.source.close(code, reason);
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

/// The connection already belongs to another peer id, or its peer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the connection already has another identity, or its peer is gone")]
pub struct AlreadySet;

/// The sending half of a stream, as a carriage provides it.
pub trait SendHalf: AsyncWrite + Send + Unpin {
    /// Writes a prefix of `chunks` without copying where the carriage can; advances or empties
    /// the chunks it took and returns the number of bytes.
    fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, StreamError>>;

    /// No more data: the peer sees the end of the stream. On byte carriages, shutdown.
    ///
    /// # Errors
    /// The stream was already finished or reset.
    fn finish(&mut self) -> Result<(), StreamError>;

    /// Abandons the stream.
    fn reset(&mut self, code: StreamCode);

    /// Higher is sent first, where the carriage has priorities.
    fn set_priority(&mut self, _priority: i32) {}

    /// Resolves when the peer stopped reading (`Some(code)`) or acknowledged the end (`None`).
    /// Stays pending on carriages without such a signal.
    fn poll_stopped(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Option<u64>, StreamError>> {
        Poll::Pending
    }
}

/// The receiving half of a stream, as a carriage provides it.
pub trait RecvHalf: AsyncRead + Send + Unpin {
    /// The next bytes, at most `max`, without copying where the carriage can; `None` at the end.
    fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>>;

    /// Tells the peer that its bytes are no longer wanted.
    fn stop(&mut self, code: StreamCode);
}

/// The sending half of a stream.
pub struct SendStream(Box<dyn SendHalf>);

impl SendStream {
    /// Wraps a carriage's half.
    #[must_use]
    pub fn new(half: Box<dyn SendHalf>) -> Self {
        Self(half)
    }

    /// Writes every chunk.
    ///
    /// # Errors
    /// The stream or the connection ended.
    pub async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        let mut first = 0;
        while first < chunks.len() {
            if chunks[first].is_empty() {
                first += 1;
                continue;
            }
            let rest = &mut chunks[first..];
            std::future::poll_fn(|cx| self.0.poll_write_chunks(cx, rest)).await?;
        }
        Ok(())
    }

    /// Writes one chunk.
    ///
    /// # Errors
    /// The stream or the connection ended.
    pub async fn write_chunk(&mut self, chunk: Bytes) -> Result<(), StreamError> {
        self.write_chunks(&mut [chunk]).await
    }

    /// No more data.
    ///
    /// # Errors
    /// The stream was already finished or reset.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.0.finish()
    }

    /// Abandons the stream.
    pub fn reset(&mut self, code: StreamCode) {
        self.0.reset(code);
    }

    /// Higher is sent first.
    pub fn set_priority(&mut self, priority: i32) {
        self.0.set_priority(priority);
    }

    /// Resolves when the peer stopped reading (`Some(code)`) or acknowledged the end (`None`).
    ///
    /// # Errors
    /// The connection ended.
    pub async fn stopped(&mut self) -> Result<Option<u64>, StreamError> {
        std::future::poll_fn(|cx| self.0.poll_stopped(cx)).await
    }
}

impl fmt::Debug for SendStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SendStream")
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

/// The receiving half of a stream.
pub struct RecvStream(Box<dyn RecvHalf>);

impl RecvStream {
    /// Wraps a carriage's half.
    #[must_use]
    pub fn new(half: Box<dyn RecvHalf>) -> Self {
        Self(half)
    }

    /// The next bytes, at most `max`; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// The peer reset the stream or the connection ended.
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        std::future::poll_fn(|cx| self.0.poll_read_chunk(cx, max)).await
    }

    /// Tells the peer that its bytes are no longer wanted.
    pub fn stop(&mut self, code: StreamCode) {
        self.0.stop(code);
    }
}

impl fmt::Debug for RecvStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecvStream")
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buf)
    }
}

/// Why an operation on a stream failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The connection ended; the only error, with [`Self::Timeout`], that must end a handler.
    #[error("{0}")]
    Closed(CloseReason),
    /// The carriage failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer abandoned its sending half with this code.
    #[error("the peer reset the stream with code {0}")]
    Reset(u64),
    /// The peer no longer wants our bytes.
    #[error("the peer stopped the stream with code {0}")]
    Stopped(u64),
    /// The connection was idle for too long.
    #[error("timed out")]
    Timeout,
    /// The carriage has one stream only.
    #[error("this carriage has a single stream")]
    Unsupported,
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Io(error) => return error,
            StreamError::Closed(_) => io::ErrorKind::NotConnected,
            StreamError::Reset(_) | StreamError::Stopped(_) => io::ErrorKind::ConnectionReset,
            StreamError::Timeout => io::ErrorKind::TimedOut,
            StreamError::Unsupported => io::ErrorKind::Unsupported,
        };
        Self::new(kind, error)
    }
}
