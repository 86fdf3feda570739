//! A connection with many streams on which answers are late. The bytes that the accepting side writes on a stream of
//! the other side stay on the way until the test delivers them, and are lost when a side closes the connection, as in
//! QUIC.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use alknet_call::ALPN;
use alknet_core::{
    BoxFuture, CloseCode, CloseReason, Connection, RecvStream, SendHalf, SendStream, StreamCode,
    StreamError, StreamSource, memory_pair,
};
use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::sync::{mpsc, watch};

/// Two connected ends, and the wire between them. The first end dialled, and its bytes arrive at once.
pub fn held_pair() -> (Connection, Connection, HeldWire) {
    let (dialled, accepted) = memory_pair(ALPN);
    let wire = HeldWire {
        open: Arc::new(watch::channel(false).0),
        finished: Arc::new(watch::channel(0).0),
    };
    let info = accepted.info().clone();
    let source = HeldConnection {
        inner: accepted,
        wire: wire.clone(),
    };
    let accepted = Connection::from_source(Box::new(source), info);
    (dialled, accepted, wire)
}

#[derive(Clone)]
pub struct HeldWire {
    open: Arc<watch::Sender<bool>>,
    finished: Arc<watch::Sender<usize>>,
}

impl HeldWire {
    /// Delivers the bytes on the way, and later ones at once.
    pub fn deliver(&self) {
        self.open.send_replace(true);
    }

    /// Resolves once the accepting side ended this many streams.
    pub async fn finished(&self, streams: usize) {
        let mut finished = self.finished.subscribe();
        let enough = finished.wait_for(|n| *n >= streams).await;
        enough.expect("the wire is still there");
    }
}

struct HeldConnection {
    inner: Connection,
    wire: HeldWire,
}

impl HeldConnection {
    fn held(&self, (send, recv): (SendStream, RecvStream)) -> (SendStream, RecvStream) {
        let (queue, said) = mpsc::unbounded_channel();
        let arrived = Arc::new(Mutex::new(StreamEndState::default()));
        let (inner, wire) = (self.inner.clone(), self.wire.clone());
        let deliver = deliver(send, said, wire.open.subscribe(), Arc::clone(&arrived));
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = inner.closed() => {}
                () = deliver => {}
            }
        });
        let send = HeldSend {
            queue,
            arrived,
            finished: Arc::clone(&wire.finished),
        };
        (SendStream::new(Box::new(send)), recv)
    }
}

impl StreamSource for HeldConnection {
    fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(async { Ok(self.held(self.inner.accept_bi().await?)) })
    }

    fn open_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(self.inner.open_bi())
    }

    fn is_multi(&self) -> bool {
        true
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.inner.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(self.inner.closed())
    }
}

enum HeldItem {
    Bytes(Bytes),
    End,
    Reset(StreamCode),
}

/// Whether the other side has the end of the stream, and the task to wake.
#[derive(Default)]
struct StreamEndState {
    end: bool,
    waiting: Option<Waker>,
}

async fn deliver(
    mut send: SendStream,
    mut said: mpsc::UnboundedReceiver<HeldItem>,
    mut open: watch::Receiver<bool>,
    arrived: Arc<Mutex<StreamEndState>>,
) {
    open.wait_for(|open| *open)
        .await
        .expect("the wire is still there");
    while let Some(said) = said.recv().await {
        match said {
            HeldItem::Bytes(bytes) => send.write_chunk(bytes).await.expect("it is read"),
            HeldItem::End => {
                send.finish().expect("the only end");
                let mut arrived = arrived.lock().expect("no panics here");
                arrived.end = true;
                arrived.waiting.take().into_iter().for_each(Waker::wake);
            }
            HeldItem::Reset(code) => send.reset(code),
        }
    }
}

struct HeldSend {
    queue: mpsc::UnboundedSender<HeldItem>,
    arrived: Arc<Mutex<StreamEndState>>,
    finished: Arc<watch::Sender<usize>>,
}

impl HeldSend {
    fn say(&self, said: HeldItem) -> io::Result<()> {
        let said = self.queue.send(said);
        said.map_err(|_| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncWrite for HeldSend {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let said = self.say(HeldItem::Bytes(Bytes::copy_from_slice(buf)));
        Poll::Ready(said.map(|()| buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish().map_err(Into::into))
    }
}

impl SendHalf for HeldSend {
    fn poll_write_chunks(
        &mut self,
        _cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, StreamError>> {
        let mut written = 0;
        for chunk in chunks {
            written += chunk.len();
            self.say(HeldItem::Bytes(std::mem::take(chunk)))?;
        }
        Poll::Ready(Ok(written))
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        self.say(HeldItem::End)?;
        self.finished.send_modify(|n| *n += 1);
        Ok(())
    }

    fn reset(&mut self, code: StreamCode) {
        let _ = self.say(HeldItem::Reset(code));
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<u64>, StreamError>> {
        let mut arrived = self.arrived.lock().expect("no panics here");
        if arrived.end {
            return Poll::Ready(Ok(None));
        }
        arrived.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}
