//! A connection with one stream, as over TLS and TCP: closing it means no more than the end of the stream does, and
//! only a stream that is cut off looks different.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use alknet_call::ALPN;
use alknet_core::{
    BoxFuture, Carriage, CloseCode, CloseReason, Connection, ConnectionInfo, RecvHalf, RecvStream,
    SendHalf, SendStream, StreamCode, StreamError, StreamSource,
};
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::watch;

/// Bytes on the way in each direction.
pub const SINGLE_BUFFER_BYTES: usize = 64 << 10;

/// Two ends of one byte stream. The first one dialled.
pub fn single_pair() -> (Connection, Connection) {
    let (a, b) = tokio::io::duplex(SINGLE_BUFFER_BYTES);
    let cuts: [Arc<AtomicBool>; 2] = Default::default();
    let end = |stream, dialled: bool| {
        let (ours, theirs) = (usize::from(!dialled), usize::from(dialled));
        let shared = SingleStreamShared {
            io: Mutex::new(SingleStreamIo {
                stream: Some(stream),
                read_ended: false,
                write_ended: false,
            }),
            ended: watch::channel(None).0,
            cut: Arc::clone(&cuts[ours]),
            peer_cut: Arc::clone(&cuts[theirs]),
        };
        let info = ConnectionInfo {
            alpn: ALPN.into(),
            carriage: Carriage::Tcp,
            sni: None,
            remote_addr: None,
            local_addr: None,
            dialled,
        };
        let source = SingleStreamSource {
            shared: Arc::new(shared),
            yielded: AtomicBool::new(false),
        };
        Connection::from_source(Box::new(source), info)
    };
    (end(a, true), end(b, false))
}

struct SingleStreamSource {
    shared: Arc<SingleStreamShared>,
    yielded: AtomicBool,
}

struct SingleStreamShared {
    io: Mutex<SingleStreamIo>,
    ended: watch::Sender<Option<CloseReason>>,
    /// Whether this side cut the stream off, and whether the other one did.
    cut: Arc<AtomicBool>,
    peer_cut: Arc<AtomicBool>,
}

struct SingleStreamIo {
    /// `None` once closed.
    stream: Option<DuplexStream>,
    read_ended: bool,
    write_ended: bool,
}

impl SingleStreamShared {
    fn lock(&self) -> MutexGuard<'_, SingleStreamIo> {
        self.io.lock().expect("no panics here")
    }

    /// Ends the connection, unless it has ended. The other side reads the bytes on the way, and then the end.
    fn end(&self, reason: CloseReason) {
        drop(self.lock().stream.take());
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(reason);
            first
        });
    }

    /// Ends one direction; with both the connection is over.
    fn half_ended(&self, which: impl FnOnce(&mut SingleStreamIo)) {
        let over = {
            let mut io = self.lock();
            which(&mut io);
            io.read_ended && io.write_ended
        };
        if over {
            self.end(CloseReason::Peer(None, String::new()));
        }
    }

    fn with<T>(
        &self,
        poll: impl FnOnce(Pin<&mut DuplexStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match self.lock().stream.as_mut() {
            Some(stream) => poll(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl StreamSource for SingleStreamSource {
    fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(async {
            if self.yielded.swap(true, Ordering::SeqCst) {
                return Err(StreamError::Closed(self.closed().await));
            }
            let (send, recv) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
            Ok((
                SendStream::new(Box::new(SingleSendHalf(send))),
                RecvStream::new(Box::new(SingleRecvHalf(recv))),
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
        self.shared.end(CloseReason::Local);
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        let mut ended = self.shared.ended.subscribe();
        Box::pin(async move {
            let ended = ended.wait_for(Option::is_some).await;
            let reason = ended.ok().and_then(|reason| reason.clone());
            reason.unwrap_or(CloseReason::Local)
        })
    }
}

struct SingleRecvHalf(Arc<SingleStreamShared>);
struct SingleSendHalf(Arc<SingleStreamShared>);

impl AsyncRead for SingleRecvHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &self.0;
        let before = buf.filled().len();
        ready!(shared.with(|stream| stream.poll_read(cx, buf)))?;
        if buf.filled().len() == before {
            if shared.peer_cut.load(Ordering::SeqCst) {
                shared.end(CloseReason::Lost("cut off".to_owned()));
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            shared.half_ended(|io| io.read_ended = true);
        }
        Poll::Ready(Ok(()))
    }
}

impl RecvHalf for SingleRecvHalf {
    fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let mut storage = vec![0; max.min(16 << 10)];
        let mut buf = ReadBuf::new(&mut storage);
        ready!(Pin::new(&mut *self).poll_read(cx, &mut buf))?;
        let len = buf.filled().len();
        storage.truncate(len);
        Poll::Ready(Ok((len > 0).then(|| storage.into())))
    }

    fn stop(&mut self, _code: StreamCode) {
        self.0.half_ended(|io| io.read_ended = true);
    }
}

impl Drop for SingleRecvHalf {
    fn drop(&mut self) {
        self.stop(StreamCode::Cancelled);
    }
}

impl AsyncWrite for SingleSendHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.with(|stream| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A closed connection has no direction left to end.
        let _ = ready!(self.0.with(|stream| stream.poll_shutdown(cx)));
        self.0.half_ended(|io| io.write_ended = true);
        Poll::Ready(Ok(()))
    }
}

impl SendHalf for SingleSendHalf {
    fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, StreamError>> {
        let Some(chunk) = chunks.first_mut() else {
            return Poll::Ready(Ok(0));
        };
        let written = ready!(Pin::new(&mut *self).poll_write(cx, chunk))?;
        chunk.advance(written);
        Poll::Ready(Ok(written))
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        // A duplex pipe shuts down without waiting: one poll is enough.
        let mut cx = Context::from_waker(Waker::noop());
        let _ = Pin::new(self).poll_shutdown(&mut cx);
        Ok(())
    }

    fn reset(&mut self, _code: StreamCode) {
        // A closed connection has announced its end already.
        if self.0.lock().stream.is_some() {
            self.0.cut.store(true, Ordering::SeqCst);
        }
        self.0.end(CloseReason::Local);
    }
}

impl Drop for SingleSendHalf {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}
