//! A client of HTTP/3 by hand (RFC 9114), over a connection in memory that has streams of one direction as well.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use alknet_core::{
    BoxFuture, CloseCode, CloseReason, Connection, RecvStream, SendHalf, SendStream, StreamCode,
    StreamError, StreamSource, memory_pair,
};
use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::node::{HttpTestNode, ServeTask, hung};

const ALPN: &[u8] = b"h3";

/// A control stream with SETTINGS (section 6.2.1).
const CONTROL: [u8; 3] = [0, 4, 0];

/// Its last frame (section 7.2.6).
const GOAWAY: u64 = 7;

/// What the client lets the node do on streams of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum H3StreamPermits {
    /// To begin none: `initial_max_streams_uni` (RFC 9000 section 18.2).
    Nothing,
    /// To begin them, and to send until the client [takes nothing](H3TestClient::takes_nothing) more.
    Streams,
}

/// A client, which shows no token.
pub(crate) struct H3TestClient {
    streams: Connection,
    /// Streams of one direction are those of a connection of their own, of each of which one half is used.
    _ways: Connection,
    _control: (SendStream, RecvStream),
    /// The node's control stream, where it may begin one.
    control_of_node: Option<(SendStream, RecvStream)>,
    is_shut: Arc<AtomicBool>,
}

impl H3TestClient {
    /// A client, and what serves it.
    ///
    /// # Panics
    /// The node does not begin what it is permitted to.
    pub(crate) async fn connect(
        node: &HttpTestNode,
        permits: H3StreamPermits,
    ) -> (Self, ServeTask) {
        let (streams, accepted) = memory_pair(ALPN);
        let (ways, accepted_ways) = memory_pair(ALPN);
        let is_shut = Arc::<AtomicBool>::default();
        let info = accepted.info().clone();
        let end = H3ServerEnd {
            streams: accepted,
            ways: accepted_ways,
            permits,
            is_shut: Arc::clone(&is_shut),
        };
        let served = node.serve(Connection::from_source(Box::new(end), info), None);
        let mut control = ways.open_bi().await.expect("a stream");
        let said = control.0.write_all(&CONTROL).await;
        said.expect("the node takes it");
        let control_of_node = match permits {
            H3StreamPermits::Nothing => None,
            // The first that it begins (section 3.2).
            H3StreamPermits::Streams => {
                let begun = tokio::time::timeout(hung(), ways.accept_bi()).await;
                Some(begun.expect("it hangs").expect("a stream"))
            }
        };
        let client = Self {
            streams,
            _ways: ways,
            _control: control,
            control_of_node,
            is_shut,
        };
        (client, served)
    }

    /// From now on nothing is taken of what the node says on streams of one direction.
    pub(crate) fn takes_nothing(&self) {
        self.is_shut.store(true, Ordering::SeqCst);
    }

    /// Whether `/healthz` is answered; it is not where the node has ended the connection.
    pub(crate) async fn is_served(&self) -> bool {
        let served = async {
            let (mut send, mut recv) = self.streams.open_bi().await.ok()?;
            send.write_all(&asks("/healthz")).await.ok()?;
            send.finish().ok()?;
            let mut answer = Vec::new();
            recv.read_to_end(&mut answer).await.ok()?;
            answer.ends_with(b"ok\n").then_some(())
        };
        let served = async {
            tokio::select! {
                biased;
                served = served => served,
                _ = self.streams.closed() => None,
            }
        };
        let served = tokio::time::timeout(hung(), served).await;
        served.expect("it hangs").is_some()
    }

    /// Whether the node, which has ended the connection, asked it to leave.
    ///
    /// # Panics
    /// It was not permitted to.
    pub(crate) async fn was_asked_to_leave(self) -> bool {
        let (_send, mut recv) = self.control_of_node.expect("a control stream");
        let mut said = Vec::new();
        let read = tokio::time::timeout(hung(), recv.read_to_end(&mut said)).await;
        read.expect("it hangs").expect("it ends");
        let mut said = said.as_slice();
        assert_eq!(number(&mut said), Some(0), "a control stream: {said:?}");
        while let Some((kind, length)) = number(&mut said).zip(number(&mut said)) {
            if kind == GOAWAY {
                return true;
            }
            said = &said[length as usize..];
        }
        false
    }
}

/// A request: a frame of fields by the static table (RFC 9204 appendix A) and literals.
fn asks(path: &str) -> Vec<u8> {
    let mut fields = vec![0, 0, 0xd1, 0xd7];
    for (name, text) in [(0x51, path), (0x50, "localhost")] {
        fields.push(name);
        fields.push(text.len() as u8);
        fields.extend(text.as_bytes());
    }
    let mut frame = vec![1, fields.len() as u8];
    frame.extend(fields);
    frame
}

/// The number at the front (RFC 9000 section 16).
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let first = *bytes.first()?;
    let (number, rest) = bytes.split_at_checked(1 << (first >> 6))?;
    *bytes = rest;
    let (high, more) = (u64::from(first & 0x3f), number[1..].iter());
    Some(more.fold(high, |all, byte| all << 8 | u64::from(*byte)))
}

/// The node's end.
struct H3ServerEnd {
    streams: Connection,
    ways: Connection,
    permits: H3StreamPermits,
    is_shut: Arc<AtomicBool>,
}

impl StreamSource for H3ServerEnd {
    fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(self.streams.accept_bi())
    }

    fn open_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(self.streams.open_bi())
    }

    fn accept_uni(&self) -> BoxFuture<'_, Result<RecvStream, StreamError>> {
        Box::pin(async {
            let (_send, recv) = self.ways.accept_bi().await?;
            Ok(recv)
        })
    }

    fn open_uni(&self) -> BoxFuture<'_, Result<SendStream, StreamError>> {
        Box::pin(async {
            if self.permits == H3StreamPermits::Nothing {
                std::future::pending::<()>().await;
            }
            let (send, _recv) = self.ways.open_bi().await?;
            let is_shut = Arc::clone(&self.is_shut);
            Ok(SendStream::new(Box::new(OneWayStream { send, is_shut })))
        })
    }

    fn is_multi(&self) -> bool {
        true
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.streams.close(code, reason);
        self.ways.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(self.streams.closed())
    }
}

/// A stream of one direction.
struct OneWayStream {
    send: SendStream,
    is_shut: Arc<AtomicBool>,
}

impl AsyncWrite for OneWayStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_shut.load(Ordering::SeqCst) {
            // It never takes anything again: no task has to be woken.
            return Poll::Pending;
        }
        Pin::new(&mut self.send).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_shutdown(cx)
    }
}

impl SendHalf for OneWayStream {
    fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, StreamError>> {
        let Some(chunk) = chunks.iter_mut().find(|chunk| !chunk.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let written = ready!(Pin::new(self).poll_write(cx, chunk))?;
        chunk.advance(written);
        Poll::Ready(Ok(written))
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        self.send.finish()
    }

    fn reset(&mut self, code: StreamCode) {
        self.send.reset(code);
    }
}
