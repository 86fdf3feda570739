//! TLS over TCP as core's carriage: one stream, yielded once.

mod socket;

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use alknet_core::{
    BoxFuture, CloseCode, CloseReason, RecvHalf, RecvStream, SendHalf, SendStream, StreamCode,
    StreamError, StreamSource,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;
use tokio_rustls::TlsStream;
use tokio_util::io::poll_read_buf;

pub(crate) use socket::Socket;

/// Bytes of the buffer from which chunks are cut: one TLS record (RFC 8446 section 5.1).
const CHUNK_BYTES: usize = 16 << 10;

/// With less room than this, the reader takes a new buffer: small records share one.
const BUFFER_BYTES_MIN: usize = 4 << 10;

/// Time for which a closed connection waits for the peer's end, so that a reset does not overtake the node's last
/// bytes.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of the peer that the node throws away meanwhile.
const LINGER_BYTES_MAX: u64 = 1 << 20;

type Tls = TlsStream<Socket>;

/// A TLS connection.
pub(crate) struct TcpSource {
    shared: Arc<TcpShared>,
    yielded: AtomicBool,
}

impl TcpSource {
    pub(crate) fn new(tls: Tls) -> Self {
        let io = TlsStreamIo {
            tls: Some(tls),
            unflushed: false,
            read_ended: false,
            write_ended: false,
        };
        Self {
            shared: Arc::new(TcpShared {
                io: Mutex::new(io),
                reader: AtomicWaker::new(),
                writer: AtomicWaker::new(),
                ended: watch::channel(None).0,
            }),
            yielded: AtomicBool::new(false),
        }
    }
}

impl StreamSource for TcpSource {
    fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(async {
            if self.yielded.swap(true, Ordering::Relaxed) {
                // The call waits for the end of the connection: a handler that loops must not take its one stream for
                // finished.
                return Err(StreamError::Closed(self.closed().await));
            }
            let send = TcpSendHalf {
                shared: Arc::clone(&self.shared),
                finished: false,
            };
            let recv = TcpRecvHalf {
                shared: Arc::clone(&self.shared),
                buffer: BytesMut::new(),
            };
            Ok((
                SendStream::new(Box::new(send)),
                RecvStream::new(Box::new(recv)),
            ))
        })
    }

    fn open_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(std::future::ready(Err(StreamError::Unsupported)))
    }

    fn is_multi(&self) -> bool {
        false
    }

    fn close(&self, _code: CloseCode, _reason: &str) {
        // TLS has no field for code and reason, so the peer sees only close_notify.
        if let Some(mut tls) = self.shared.end(CloseReason::Local) {
            // The shutdown begins at once, as far as there is room: the process may be about to exit.
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let _ = Pin::new(&mut tls).poll_shutdown(&mut cx);
            spawn(linger(tls));
        }
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        let mut ended = self.shared.ended.subscribe();
        Box::pin(async move {
            match ended.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or(CloseReason::Local),
                // The sender lives as long as `self`.
                Err(_) => CloseReason::Local,
            }
        })
    }

    fn export_keying_material(
        &self,
        label: &[u8],
        context: &[u8],
        out: &mut [u8],
    ) -> Result<(), StreamError> {
        let io = self.shared.lock();
        let exported = match &io.tls {
            Some(TlsStream::Client(tls)) => {
                let session = tls.get_ref().1;
                session.export_keying_material(out, label, Some(context))
            }
            Some(TlsStream::Server(tls)) => {
                let session = tls.get_ref().1;
                session.export_keying_material(out, label, Some(context))
            }
            None => return Err(self.shared.ended_error()),
        };
        exported.map(|_| ()).map_err(|e| io::Error::other(e).into())
    }
}

/// Ends a handshake before the node has chosen a configuration for it, with a fatal alert (RFC 8446 section 6) in a
/// record of its own, and gives the client time to read it.
pub(crate) async fn alert(tcp: &mut Socket, alert: u8) -> io::Result<()> {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    // Every record since TLS 1.3 has the version 3, 3 (RFC 8446 section 5.1).
    tcp.write_all(&[ALERT, 3, 3, 0, 2, FATAL, alert]).await?;
    tcp.shutdown().await?;
    let (mut rest, mut sink) = (tcp.take(LINGER_BYTES_MAX), tokio::io::sink());
    let read = tokio::io::copy(&mut rest, &mut sink);
    let _ = tokio::time::timeout(LINGER, read).await;
    Ok(())
}

/// Sends the rest and close_notify, then waits until the peer has read it.
async fn linger(mut tls: Tls) {
    let goodbye = async {
        if tls.shutdown().await.is_ok() {
            let mut rest = tls.take(LINGER_BYTES_MAX);
            let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
        }
    };
    // A peer that does not answer costs nothing but this wait.
    let _ = tokio::time::timeout(LINGER, goodbye).await;
}

/// Spawns work that outlives a stream. Outside a runtime no task can wait: the work is dropped.
fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(work);
    }
}

struct TcpShared {
    io: Mutex<TlsStreamIo>,
    /// Woken when the connection is closed under the halves, and when one half flushed for the other: the socket
    /// itself remembers only one waker for each direction.
    reader: AtomicWaker,
    writer: AtomicWaker,
    ended: watch::Sender<Option<CloseReason>>,
}

struct TlsStreamIo {
    /// `None` once closed.
    tls: Option<Tls>,
    /// Whether encrypted bytes wait for room in the socket.
    unflushed: bool,
    read_ended: bool,
    write_ended: bool,
}

impl TcpShared {
    fn lock(&self) -> MutexGuard<'_, TlsStreamIo> {
        self.io.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection with `reason` unless it has ended. Returns the TLS stream if this call is the first.
    fn end(&self, reason: CloseReason) -> Option<Tls> {
        let tls = self.lock().tls.take();
        // The first reason stays: a later failure is a consequence of it.
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(reason);
            }
            first
        });
        self.reader.wake();
        self.writer.wake();
        tls
    }

    fn ended_error(&self) -> StreamError {
        let reason = self.ended.borrow().clone();
        StreamError::Closed(reason.unwrap_or(CloseReason::Local))
    }

    /// Ends the connection after a failed read or write.
    fn fail(&self, error: io::Error) -> StreamError {
        drop(self.end(CloseReason::Lost(error.to_string())));
        StreamError::Io(error)
    }

    fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize, StreamError>> {
        let mut io = self.lock();
        if io.write_ended {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::NotConnected).into()));
        }
        let Some(tls) = io.tls.as_mut() else {
            drop(io);
            return Poll::Ready(Err(self.ended_error()));
        };
        let written = Pin::new(&mut *tls).poll_write(cx, buf);
        // This is asked before a pending write returns: the session may have taken bytes for which the socket had no
        // room.
        let waits = tls.get_ref().1.wants_write();
        let written = ready!(waiting(&self.writer, cx, written));
        io.unflushed |= waits;
        drop(io);
        Poll::Ready(written.map_err(|error| self.fail(error)))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let flushed = {
            let mut io = self.lock();
            match io.flush(cx) {
                None => return Poll::Ready(Err(self.ended_error())),
                Some(flushed) => ready!(waiting(&self.writer, cx, flushed)),
            }
        };
        Poll::Ready(flushed.map_err(|error| self.fail(error)))
    }

    /// Sends close_notify and the TCP end, after all bytes before them.
    fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut io = self.lock();
        let Some(tls) = io.tls.as_mut() else {
            return Poll::Ready(Ok(()));
        };
        let done = Pin::new(tls).poll_shutdown(cx);
        let done = ready!(waiting(&self.writer, cx, done));
        io.write_ended = true;
        io.unflushed = false;
        let over = io.read_ended;
        drop(io);
        match done {
            Err(error) => return Poll::Ready(Err(self.fail(error))),
            Ok(()) if over => drop(self.end(CloseReason::Peer(None, String::new()))),
            Ok(()) => {}
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), StreamError>> {
        let mut io = self.lock();
        if io.read_ended {
            return Poll::Ready(Ok(()));
        }
        // A handler that waits for a response does not poll its writer: the rest of its request, which the session
        // still has, leaves from here.
        if io.unflushed && io.flush(cx).is_some_and(|f| f.is_ready()) {
            self.writer.wake();
        }
        let Some(tls) = io.tls.as_mut() else {
            drop(io);
            return Poll::Ready(Err(self.ended_error()));
        };
        let before = buf.filled().len();
        let read = Pin::new(tls).poll_read(cx, buf);
        let read = ready!(waiting(&self.reader, cx, read));
        // Reading no bytes is the end only where there was room to read into.
        let ended = read.is_ok() && buf.filled().len() == before && buf.remaining() > 0;
        drop(io);
        if ended {
            self.read_end(CloseReason::Peer(None, String::new()));
        }
        Poll::Ready(read.map_err(|error| self.fail(error)))
    }

    /// Ends the reading side. If the writing side has ended as well, the connection is over.
    fn read_end(&self, reason: CloseReason) {
        let over = {
            let mut io = self.lock();
            io.read_ended = true;
            io.write_ended
        };
        if over {
            drop(self.end(reason));
        }
    }
}

/// Remembers the waiting task. The caller holds the lock, and a task that closes the connection takes the lock first:
/// hence it wakes this one.
fn waiting<T>(waker: &AtomicWaker, cx: &Context<'_>, polled: Poll<T>) -> Poll<T> {
    if polled.is_pending() {
        waker.register(cx.waker());
    }
    polled
}

impl TlsStreamIo {
    /// `None` when the connection is closed.
    fn flush(&mut self, cx: &mut Context<'_>) -> Option<Poll<io::Result<()>>> {
        let tls = self.tls.as_mut()?;
        if !self.unflushed && !tls.get_ref().1.wants_write() {
            return Some(Poll::Ready(Ok(())));
        }
        let flushed = Pin::new(tls).poll_flush(cx);
        self.unflushed = flushed.is_pending();
        Some(flushed)
    }
}

struct TcpSendHalf {
    shared: Arc<TcpShared>,
    finished: bool,
}

impl SendHalf for TcpSendHalf {
    /// Ready once the kernel has the bytes: callers need no flush, as on QUIC.
    fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, StreamError>> {
        let mut total = 0;
        for chunk in chunks.iter_mut() {
            while !chunk.is_empty() {
                match self.shared.poll_write(cx, chunk) {
                    Poll::Ready(Ok(written)) => {
                        chunk.advance(written);
                        total += written;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    // The chunks were advanced, and the caller must learn by how much before it waits.
                    Poll::Pending if total > 0 => return Poll::Ready(Ok(total)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
        // When this is polled again after Pending, the chunks are empty and only the flush goes on.
        ready!(self.shared.poll_flush(cx))?;
        Poll::Ready(Ok(total))
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        if std::mem::replace(&mut self.finished, true) {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        }
        // This call has no waker: if the end needs to wait, a task of its own polls on.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match self.shared.poll_finish(&mut cx) {
            Poll::Ready(done) => done,
            Poll::Pending => {
                let shared = Arc::clone(&self.shared);
                spawn(async move {
                    // A failure has ended the connection, and `closed` reports it.
                    let _ = std::future::poll_fn(|cx| shared.poll_finish(cx)).await;
                });
                Ok(())
            }
        }
    }

    /// Ends the connection without close_notify: a stream that was cut must not look complete (RFC 8446 section 6.1).
    fn reset(&mut self, _code: StreamCode) {
        self.finished = true;
        if let Some(tls) = self.shared.end(CloseReason::Local) {
            // A linger of zero has the kernel send a reset in place of the regular end (socket(7), SO_LINGER).
            let _ = SockRef::from(tls.get_ref().0.tcp()).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncWrite for TcpSendHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared.poll_write(cx, buf).map_err(Into::into)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.poll_flush(cx).map_err(Into::into)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        self.shared.poll_finish(cx).map_err(Into::into)
    }
}

impl Drop for TcpSendHalf {
    fn drop(&mut self) {
        if !self.finished {
            // As QUIC does: the peer gets what was written, and then the end.
            let _ = SendHalf::finish(self);
        }
    }
}

struct TcpRecvHalf {
    shared: Arc<TcpShared>,
    /// The rest of the buffer from which chunks are cut.
    buffer: BytesMut,
}

impl RecvHalf for TcpRecvHalf {
    fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.capacity() < BUFFER_BYTES_MIN {
            buffer.reserve(CHUNK_BYTES);
        }
        let most = max.min(buffer.capacity());
        let read = poll_read_buf(Pin::new(&mut *self), cx, &mut (&mut buffer).limit(most));
        let chunk = buffer.split().freeze();
        self.buffer = buffer;
        match ready!(read) {
            Ok(_) => Poll::Ready(Ok((!chunk.is_empty()).then_some(chunk))),
            // `AsyncRead` has wrapped the stream's own error, which callers match on.
            Err(error) => Poll::Ready(Err(error.downcast().unwrap_or_else(StreamError::Io))),
        }
    }

    fn stop(&mut self, _code: StreamCode) {
        self.shared.read_end(CloseReason::Local);
    }
}

impl AsyncRead for TcpRecvHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared.poll_read(cx, buf).map_err(Into::into)
    }
}

impl Drop for TcpRecvHalf {
    fn drop(&mut self) {
        self.shared.read_end(CloseReason::Local);
    }
}
