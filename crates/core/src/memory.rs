//! A connection inside this process with many streams, order and back-pressure, for tests and for handlers that carry
//! other protocols.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

use crate::alpn::Carriage;
use crate::close::{CloseCode, CloseReason, StreamCode};
use crate::connection::{Connection, ConnectionInfo, StreamSource};
use crate::handler::BoxFuture;
use crate::stream::{RecvHalf, RecvStream, SendHalf, SendStream, StreamError};

/// Bytes buffered in each direction of one stream.
const STREAM_BUFFER_BYTES: usize = 64 << 10;
/// Streams that one side opened and the other has not accepted.
const ACCEPT_BACKLOG: usize = 128;

type Pair = (SendStream, RecvStream);
type Closed = Option<(bool, CloseCode, String)>;

/// Two connected ends. The first one dialled.
#[must_use]
pub fn memory_pair(alpn: &[u8]) -> (Connection, Connection) {
    let (to_b, from_a) = mpsc::channel(ACCEPT_BACKLOG);
    let (to_a, from_b) = mpsc::channel(ACCEPT_BACKLOG);
    let closed = Arc::new(watch::channel(None).0);
    let end = |dialled, open, incoming| {
        let info = ConnectionInfo {
            alpn: alpn.into(),
            carriage: Carriage::Memory,
            sni: None,
            remote_addr: None,
            local_addr: None,
            dialled,
        };
        let source = MemorySource {
            dialled,
            open,
            incoming: tokio::sync::Mutex::new(incoming),
            closed: Arc::clone(&closed),
        };
        Connection::from_source(Box::new(source), info)
    };
    (end(true, to_b, from_b), end(false, to_a, from_a))
}

struct MemorySource {
    dialled: bool,
    open: mpsc::Sender<Pair>,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Pair>>,
    closed: Arc<watch::Sender<Closed>>,
}

impl MemorySource {
    fn reason(&self, closed: &Closed) -> Option<CloseReason> {
        closed.as_ref().map(|(by_dialler, code, why)| {
            if *by_dialler == self.dialled {
                CloseReason::Local
            } else {
                CloseReason::Peer(Some(code.code().into()), why.clone())
            }
        })
    }

    fn closed_error(&self) -> StreamError {
        StreamError::Closed(
            self.reason(&self.closed.borrow())
                .unwrap_or(CloseReason::Local),
        )
    }
}

impl StreamSource for MemorySource {
    fn accept_bi(&self) -> BoxFuture<'_, Result<Pair, StreamError>> {
        Box::pin(async {
            let mut incoming = self.incoming.lock().await;
            tokio::select! {
                pair = incoming.recv() => pair.ok_or_else(|| self.closed_error()),
                why = self.closed() => Err(StreamError::Closed(why)),
            }
        })
    }

    fn open_bi(&self) -> BoxFuture<'_, Result<Pair, StreamError>> {
        Box::pin(async {
            if self.closed.borrow().is_some() {
                return Err(self.closed_error());
            }
            let (ours, theirs) = tokio::io::duplex(STREAM_BUFFER_BYTES);
            let signals = Signals::default();
            let theirs = split(theirs, 1, &signals, &self.closed);
            self.open
                .send(theirs)
                .await
                .map_err(|_| self.closed_error())?;
            Ok(split(ours, 0, &signals, &self.closed))
        })
    }

    fn is_multi(&self) -> bool {
        true
    }

    fn close(&self, code: CloseCode, reason: &str) {
        // The first reason stays.
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some((self.dialled, code, reason.to_owned()));
            }
            first
        });
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        let mut watch = self.closed.subscribe();
        Box::pin(async move {
            // The sender lives as long as `self`, so that the wait ends only with a reason.
            match watch.wait_for(Option::is_some).await {
                Ok(closed) => self.reason(&closed).unwrap_or(CloseReason::Local),
                Err(_) => CloseReason::Local,
            }
        })
    }
}

/// The signals of each direction beside its bytes; the index is the sending side.
type Signals = Arc<[Mutex<StreamSignal>; 2]>;

#[derive(Default)]
struct StreamSignal {
    /// Code of the sender's RESET.
    reset: Option<u32>,
    /// Code of the receiver's STOP_SENDING.
    stopped: Option<u32>,
    /// The sender, which waits to write or for a stop.
    sender: Option<Waker>,
}

fn signal(signals: &Signals, side: usize) -> MutexGuard<'_, StreamSignal> {
    signals[side].lock().unwrap_or_else(PoisonError::into_inner)
}

fn split(
    stream: DuplexStream,
    side: usize,
    signals: &Signals,
    closed: &Arc<watch::Sender<Closed>>,
) -> Pair {
    let (read, write) = tokio::io::split(stream);
    let send = MemorySendHalf {
        write: Some(write),
        finishing: false,
        side,
        signals: Arc::clone(signals),
        closed: Arc::clone(closed),
    };
    let recv = MemoryRecvHalf {
        read: Some(read),
        side: 1 - side,
        signals: Arc::clone(signals),
    };
    (
        SendStream::new(Box::new(send)),
        RecvStream::new(Box::new(recv)),
    )
}

struct MemorySendHalf {
    write: Option<WriteHalf<DuplexStream>>,
    finishing: bool,
    side: usize,
    signals: Signals,
    closed: Arc<watch::Sender<Closed>>,
}

impl MemorySendHalf {
    fn live(&mut self) -> io::Result<&mut WriteHalf<DuplexStream>> {
        if self.closed.borrow().is_some() || self.finishing {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.write
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn poll_stop_code(&self, cx: &Context<'_>) -> Poll<u64> {
        let mut signal = signal(&self.signals, self.side);
        if let Some(code) = signal.stopped {
            return Poll::Ready(code.into());
        }
        signal.sender = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for MemorySendHalf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // This also leaves the waker that a stop wakes.
        if let Poll::Ready(code) = self.poll_stop_code(cx) {
            return Poll::Ready(Err(StreamError::Stopped(code).into()));
        }
        Pin::new(self.live()?).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.write.as_mut() {
            Some(write) => Pin::new(write).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl SendHalf for MemorySendHalf {
    fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, StreamError>> {
        let mut written = 0;
        for chunk in chunks {
            while !chunk.is_empty() {
                match Pin::new(&mut *self).poll_write(cx, chunk) {
                    Poll::Ready(Ok(n)) => {
                        bytes::Buf::advance(chunk, n);
                        written += n;
                    }
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(unwrap_stream_error(error)));
                    }
                    // The caller must learn how much was taken: it comes again with the rest.
                    Poll::Pending if written > 0 => return Poll::Ready(Ok(written)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
        Poll::Ready(Ok(written))
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        // A duplex pipe shuts down without waiting, so that one poll is enough.
        let write = self.live()?;
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(done) = Pin::new(write).poll_shutdown(&mut cx) {
            done?;
        }
        self.finishing = true;
        Ok(())
    }

    fn reset(&mut self, code: StreamCode) {
        signal(&self.signals, self.side).reset = Some(code.code());
        // The end wakes the reader, which then finds the code.
        if self.finish().is_err() {
            self.write = None;
        }
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<u64>, StreamError>> {
        match self.poll_stop_code(cx) {
            Poll::Ready(code) => Poll::Ready(Ok(Some(code))),
            // The peer has what was written, and may read it whatever happens next.
            Poll::Pending if self.finishing => Poll::Ready(Ok(None)),
            Poll::Pending => Poll::Pending,
        }
    }
}

struct MemoryRecvHalf {
    read: Option<ReadHalf<DuplexStream>>,
    side: usize,
    signals: Signals,
}

impl AsyncRead for MemoryRecvHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let side = self.side;
        let Some(read) = self.read.as_mut() else {
            return Poll::Ready(Ok(()));
        };
        let before = buf.filled().len();
        ready!(Pin::new(read).poll_read(cx, buf))?;
        // The code is reported only at the end: bytes before the reset are still read.
        if buf.filled().len() == before
            && let Some(code) = signal(&self.signals, side).reset
        {
            return Poll::Ready(Err(StreamError::Reset(code.into()).into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl RecvHalf for MemoryRecvHalf {
    fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        // The caller's limit may be far more than one chunk has.
        let mut storage = BytesMut::zeroed(max.min(16 << 10));
        let mut buf = ReadBuf::new(&mut storage);
        let result = ready!(Pin::new(&mut *self).poll_read(cx, &mut buf));
        let filled = buf.filled().len();
        Poll::Ready(match result {
            Ok(()) if filled == 0 => Ok(None),
            Ok(()) => {
                storage.truncate(filled);
                Ok(Some(storage.freeze()))
            }
            Err(error) => Err(unwrap_stream_error(error)),
        })
    }

    fn stop(&mut self, code: StreamCode) {
        self.read = None;
        // The sender is woken without the lock, which it takes at once.
        let sender = {
            let mut signal = signal(&self.signals, self.side);
            // The first code stays.
            signal.stopped.get_or_insert_with(|| code.code());
            signal.sender.take()
        };
        if let Some(sender) = sender {
            sender.wake();
        }
    }
}

/// Takes the [`StreamError`] out of an I/O error that wraps it.
fn unwrap_stream_error(error: io::Error) -> StreamError {
    match error.downcast::<StreamError>() {
        Ok(inner) => inner,
        Err(error) => StreamError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_and_ends_cross() {
        let (a, b) = memory_pair(b"test");
        let (mut send, mut recv) = a.open_bi().await.expect("open");
        send.write_all(b"ping").await.expect("write");
        send.finish().expect("finish");
        let (mut back, mut got) = b.accept_bi().await.expect("accept");
        let mut text = String::new();
        got.read_to_string(&mut text).await.expect("read");
        assert_eq!(text, "ping");
        back.write_chunk(Bytes::from_static(b"pong"))
            .await
            .expect("write");
        assert_eq!(
            recv.read_chunk(99).await.expect("read").as_deref(),
            Some(&b"pong"[..])
        );
    }

    #[tokio::test]
    async fn a_stop_is_seen_even_behind_the_end() {
        let (a, b) = memory_pair(b"test");
        let (_send, mut recv) = a.open_bi().await.expect("open");
        let (mut back, _got) = b.accept_bi().await.expect("accept");
        recv.stop(StreamCode::Cancelled);
        assert!(matches!(back.stopped().await, Ok(Some(0))));
        assert!(matches!(
            back.write_chunk(Bytes::from_static(b"late")).await,
            Err(StreamError::Stopped(0))
        ));
    }

    #[tokio::test]
    async fn an_end_has_arrived_once_it_is_said() {
        let (a, b) = memory_pair(b"test");
        let (mut send, _recv) = a.open_bi().await.expect("open");
        let (_back, mut got) = b.accept_bi().await.expect("accept");
        send.write_all(b"last words").await.expect("write");
        send.finish().expect("finish");
        assert!(matches!(send.stopped().await, Ok(None)));
        a.close(CloseCode::Normal, "");
        let mut text = String::new();
        got.read_to_string(&mut text).await.expect("read");
        assert_eq!(text, "last words");
    }

    #[tokio::test]
    async fn a_reset_and_a_close_are_seen() {
        let (a, b) = memory_pair(b"test");
        let (mut send, _recv) = a.open_bi().await.expect("open");
        let (_back, mut got) = b.accept_bi().await.expect("accept");
        send.reset(StreamCode::Protocol);
        assert!(matches!(
            got.read_chunk(9).await,
            Err(StreamError::Reset(5))
        ));
        a.close(CloseCode::Policy, "no");
        assert_eq!(
            b.closed().await,
            CloseReason::Peer(Some(1), "no".to_owned())
        );
        assert!(matches!(b.accept_bi().await, Err(StreamError::Closed(_))));
    }

    #[tokio::test]
    async fn a_revoked_connection_never_has_an_identity_again() {
        let (a, _b) = memory_pair(b"test");
        let identity = Arc::new(crate::Identity {
            id: "edge".parse().expect("a peer id"),
            kind: crate::IdentityKind::Peer,
            scopes: crate::ScopeSet::default(),
            resources: Default::default(),
            generation: 1,
        });
        assert_eq!(a.set_identity(Arc::clone(&identity)), Ok(()));
        assert!(a.identity().is_some());
        a.revoke_identity();
        assert!(a.identity().is_none());
        assert!(a.set_identity(identity).is_err() && a.identity().is_none());
    }

    #[tokio::test]
    async fn handlers_hear_that_they_shall_finish_and_tell_of_failures() {
        let (a, _b) = memory_pair(b"test");
        let failures = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let count = Arc::clone(&failures);
        a.on_auth_failure(move || {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        a.auth_failed();
        a.clone().auth_failed();
        assert_eq!(failures.load(std::sync::atomic::Ordering::Relaxed), 2);
        tokio::join!(a.drain_requested(), async {
            assert!(!a.is_drain_requested());
            assert!(a.ask_to_drain() && !a.ask_to_drain());
        });
        assert!(a.is_drain_requested());
    }
}
