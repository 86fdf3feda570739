//! The streams of a connection in the form in which a handler sees them, whichever carriage it has.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::close::{CloseReason, StreamCode};
use crate::metrics::Counter;

/// Numbers of a connection so far: the bytes of its streams, without what the carriage adds.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes read.
    pub rx: Counter,
    /// Bytes written.
    pub tx: Counter,
    /// Streams opened, by either side.
    pub streams: Counter,
    /// Time of the last byte, in milliseconds since [`began`].
    active_ms: AtomicU64,
}

/// The moment from which times within this process are counted.
fn began() -> Instant {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    *BEGAN
}

impl Traffic {
    /// The counters of a connection that begins now.
    pub(crate) fn begin() -> Self {
        let traffic = Self::default();
        traffic.touch();
        traffic
    }

    /// Records that bytes went now.
    fn touch(&self) {
        let now = began().elapsed().as_millis();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        // No other memory depends on the time, so that no ordering is needed.
        self.active_ms.store(now, Ordering::Relaxed);
    }

    /// Time since the last byte in either direction.
    #[must_use]
    pub fn quiet(&self) -> Duration {
        let active = Duration::from_millis(self.active_ms.load(Ordering::Relaxed));
        began().elapsed().saturating_sub(active)
    }
}

/// The sending half of a stream, as a carriage provides it.
pub trait SendHalf: AsyncWrite + Send + Unpin {
    /// Writes a prefix of `chunks`, without copying where the carriage can. Advances or empties the chunks that it
    /// took, and returns the number of bytes.
    fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, StreamError>>;

    /// Ends the stream: the peer sees its end. On byte carriages this is a shutdown.
    ///
    /// # Errors
    /// The stream was already finished or reset.
    fn finish(&mut self) -> Result<(), StreamError>;

    /// Resets the stream with `code`.
    fn reset(&mut self, code: StreamCode);

    /// Sets the priority, where the carriage has one: higher is sent first.
    fn set_priority(&mut self, _priority: i32) {}

    /// Resolves when the peer stopped reading (`Some(code)`) or acknowledged the end (`None`).
    /// Carriages with many streams have this signal; it stays pending on those with one.
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

    /// Asks the peer to stop sending.
    fn stop(&mut self, code: StreamCode);
}

/// A carriage's half, and the counters of its bytes.
struct MeteredHalf<H: ?Sized> {
    half: Box<H>,
    traffic: Option<Arc<Traffic>>,
}

impl<H: ?Sized> MeteredHalf<H> {
    fn new(half: Box<H>) -> Self {
        Self {
            half,
            traffic: None,
        }
    }

    fn by(mut self, traffic: &Arc<Traffic>) -> Self {
        self.traffic = Some(Arc::clone(traffic));
        self
    }

    fn add(&self, bytes: usize, to: impl FnOnce(&Traffic) -> &Counter) {
        if let Some(traffic) = &self.traffic {
            to(traffic).add(bytes as u64);
            traffic.touch();
        }
    }
}

/// The sending half of a stream.
pub struct SendStream(MeteredHalf<dyn SendHalf>);

impl SendStream {
    /// Wraps a carriage's half.
    #[must_use]
    pub fn new(half: Box<dyn SendHalf>) -> Self {
        Self(MeteredHalf::new(half))
    }

    /// Counts its bytes in `traffic` from now on.
    pub(crate) fn count_in(self, traffic: &Arc<Traffic>) -> Self {
        Self(self.0.by(traffic))
    }

    fn wrote(&self, bytes: usize) {
        self.0.add(bytes, |traffic| &traffic.tx);
    }

    /// Writes every chunk.
    ///
    /// # Errors
    /// The stream or the connection ended.
    pub async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        let mut first = 0;
        while first < chunks.len() {
            // The carriage leaves a chunk empty once it has taken all of it.
            if chunks[first].is_empty() {
                first += 1;
                continue;
            }
            let rest = &mut chunks[first..];
            let half = &mut self.0.half;
            let bytes = std::future::poll_fn(|cx| half.poll_write_chunks(cx, rest)).await?;
            self.wrote(bytes);
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

    /// Ends the stream.
    ///
    /// # Errors
    /// The stream was already finished or reset.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.0.half.finish()
    }

    /// Resets the stream with `code`.
    pub fn reset(&mut self, code: StreamCode) {
        self.0.half.reset(code);
    }

    /// Sets the priority: higher is sent first.
    pub fn set_priority(&mut self, priority: i32) {
        self.0.half.set_priority(priority);
    }

    /// Resolves when the peer stopped reading (`Some(code)`) or acknowledged the end (`None`).
    ///
    /// # Errors
    /// The connection ended.
    pub async fn stopped(&mut self) -> Result<Option<u64>, StreamError> {
        std::future::poll_fn(|cx| self.poll_stopped(cx)).await
    }

    /// Like [`stopped`](Self::stopped), for callers that poll.
    ///
    /// # Errors
    /// The connection ended.
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<u64>, StreamError>> {
        self.0.half.poll_stopped(cx)
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
        let written = Pin::new(&mut *self.0.half).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = written {
            self.wrote(bytes);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.half).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.half).poll_shutdown(cx)
    }
}

/// The receiving half of a stream.
pub struct RecvStream(MeteredHalf<dyn RecvHalf>);

impl RecvStream {
    /// Wraps a carriage's half.
    #[must_use]
    pub fn new(half: Box<dyn RecvHalf>) -> Self {
        Self(MeteredHalf::new(half))
    }

    /// Counts its bytes in `traffic` from now on.
    pub(crate) fn count_in(self, traffic: &Arc<Traffic>) -> Self {
        Self(self.0.by(traffic))
    }

    fn read(&self, bytes: usize) {
        self.0.add(bytes, |traffic| &traffic.rx);
    }

    /// The next bytes, at most `max`; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// The peer reset the stream or the connection ended.
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        std::future::poll_fn(|cx| self.poll_read_chunk(cx, max)).await
    }

    /// Like [`read_chunk`](Self::read_chunk), for callers that poll.
    ///
    /// # Errors
    /// The errors of [`read_chunk`](Self::read_chunk).
    pub fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let chunk = std::task::ready!(self.0.half.poll_read_chunk(cx, max))?;
        if let Some(chunk) = &chunk {
            self.read(chunk.len());
        }
        Poll::Ready(Ok(chunk))
    }

    /// Asks the peer to stop sending.
    pub fn stop(&mut self, code: StreamCode) {
        self.0.half.stop(code);
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
        let before = buf.filled().len();
        let read = Pin::new(&mut *self.0.half).poll_read(cx, buf);
        self.read(buf.filled().len() - before);
        read
    }
}

/// Why an operation on a stream failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The connection ended. Only this error and [`Self::Timeout`] must end a handler.
    #[error("{0}")]
    Closed(CloseReason),
    /// The carriage failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer reset its sending half with this code.
    #[error("the peer reset the stream with code {0}")]
    Reset(u64),
    /// The peer stopped reading with this code.
    #[error("the peer stopped the stream with code {0}")]
    Stopped(u64),
    /// The connection was idle for too long.
    #[error("timed out")]
    Timeout,
    /// The carriage has only one stream.
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
