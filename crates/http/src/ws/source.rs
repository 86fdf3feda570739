//! A WebSocket as core's carriage: one stream, yielded once, of messages with their lengths.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use alknet_call::Assembly;
use alknet_call::limits::FRAME_BYTES_UNAUTHENTICATED;
use alknet_core::{
    BoxFuture, CloseCode, CloseReason, RecvHalf, RecvStream, SendHalf, SendStream, StreamBudget,
    StreamCode, StreamError, StreamSource,
};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::io::poll_read_buf;

use super::codes;
use super::frame::{WsEvent, WsFrameReader, WsProtocolError};
use super::limits::{
    CONTROLS_PER_TURN, GOODBYE_BYTES_MAX, GOODBYE_TIMEOUT, KEPT_BYTES_MAX, READ_BYTES, WsTimeouts,
};
use super::send_buffer::WsSendBuffer;

/// What carries a WebSocket.
pub(super) trait WsTransport: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> WsTransport for T {}

/// A WebSocket behind its handshake.
pub(super) struct WebSocket<S> {
    shared: Arc<WsShared<S>>,
    yielded: AtomicBool,
}

/// Sees to it that a WebSocket is alive.
pub(super) struct WsKeepAlive<S>(Arc<WsShared<S>>);

impl<S: WsTransport> WebSocket<S> {
    /// `known_bytes` are those of the longest message of a known client.
    pub(super) fn new(
        stream: S,
        known_bytes: usize,
        pace: WsTimeouts,
        assembly: Assembly,
    ) -> (Self, WsKeepAlive<S>) {
        let wakers = Arc::new(Wakers::default());
        let state = WsState {
            stream: Some(stream),
            reader: WsFrameReader::default(),
            assembly,
            out: WsSendBuffer::default(),
            unflushed: false,
            rest: Bytes::new(),
            partial: None,
            pace,
            cut: false,
        };
        let shared = Arc::new(WsShared {
            state: Mutex::new(state),
            waker: Waker::from(Arc::clone(&wakers)),
            wakers,
            ended: watch::Sender::new(None),
            most: AtomicUsize::new(FRAME_BYTES_UNAUTHENTICATED.min(known_bytes)),
            known_bytes,
            heard: AtomicBool::new(false),
        });
        let pulse = WsKeepAlive(Arc::clone(&shared));
        let source = Self {
            shared,
            yielded: AtomicBool::new(false),
        };
        (source, pulse)
    }
}

impl<S: WsTransport> WsKeepAlive<S> {
    /// Asks for a sign of life; whether one came since this was asked before.
    pub(super) fn ask(&self) -> bool {
        let heard = self.0.heard.swap(false, Ordering::Relaxed);
        let mut state = self.0.lock();
        state.out.ping();
        // What does not go out now goes with the next read or write.
        let _ = state.poll_out(&mut Context::from_waker(&self.0.waker));
        heard
    }

    /// Ends it with a code that core has none for.
    pub(super) fn end(&self, fault: WsProtocolError) {
        self.0.end(CloseReason::Local, fault);
    }
}

impl<S: WsTransport> StreamSource for WebSocket<S> {
    fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(async {
            if self.yielded.swap(true, Ordering::Relaxed) {
                // A handler that loops must not think its one stream is over.
                return Err(StreamError::Closed(self.closed().await));
            }
            let send = WsSendHalf(Arc::clone(&self.shared));
            let recv = WsRecvHalf(Arc::clone(&self.shared));
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

    fn close(&self, code: CloseCode, reason: &str) {
        let cut = self.shared.lock().cut;
        self.shared
            .end(CloseReason::Local, codes::close_error(code, reason, cut));
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

    fn set_budget(&self, _budget: StreamBudget) {
        // Said once the other side is known.
        let known = self.shared.known_bytes;
        self.shared.most.store(known, Ordering::Relaxed);
    }
}

struct WsShared<S> {
    state: Mutex<WsState<S>>,
    wakers: Arc<Wakers>,
    /// Wakes the reading and the writing task: what carries the WebSocket remembers one waker per
    /// direction, and each half also writes what the other one has to say.
    waker: Waker,
    ended: watch::Sender<Option<CloseReason>>,
    /// Bytes of the longest message: taken now, and of a known client.
    most: AtomicUsize,
    known_bytes: usize,
    /// Whether anything came since the last ping.
    heard: AtomicBool,
}

struct WsState<S> {
    /// `None` once closed.
    stream: Option<S>,
    reader: WsFrameReader,
    /// Counts what the reader holds of a message in pieces.
    assembly: Assembly,
    out: WsSendBuffer,
    unflushed: bool,
    /// Read, and more than was asked for.
    rest: Bytes,
    /// When what began has to be whole.
    partial: Option<Pin<Box<Sleep>>>,
    pace: WsTimeouts,
    /// Whether a half was given up before everything was said.
    cut: bool,
}

#[derive(Default)]
struct Wakers {
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.reader.wake();
        self.writer.wake();
    }
}

impl<S: WsTransport> WsState<S> {
    /// Writes whatever can be written.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        poll_write_all(stream, &mut self.out, &mut self.unflushed, cx)
    }

    /// Reads more; `false` at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let want = self.reader.missing();
        let buffer = &mut self.reader.buffer;
        buffer.reserve(want.clamp(*READ_BYTES.start(), *READ_BYTES.end()));
        let read = poll_read_buf(Pin::new(stream), cx, buffer);
        if read.is_pending() && buffer.is_empty() {
            // A silent client costs no buffer.
            *buffer = bytes::BytesMut::new();
        }
        Poll::Ready(Ok(ready!(read)? > 0))
    }

    /// Whether something that began took too long.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.reader.is_partial() {
            self.partial = None;
            return false;
        }
        let (partial, patience) = (&mut self.partial, self.pace.partial);
        let timer = partial.get_or_insert_with(|| Box::pin(sleep(patience)));
        timer.as_mut().poll(cx).is_ready()
    }
}

fn poll_write_all<S: WsTransport>(
    stream: &mut S,
    out: &mut WsSendBuffer,
    unflushed: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    loop {
        let bytes = out.ready();
        if bytes.is_empty() {
            break;
        }
        let written = ready!(Pin::new(&mut *stream).poll_write(cx, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        out.wrote(written);
        *unflushed = true;
    }
    if *unflushed {
        ready!(Pin::new(stream).poll_flush(cx))?;
        *unflushed = false;
    }
    Poll::Ready(Ok(()))
}

impl<S: WsTransport> WsShared<S> {
    fn lock(&self) -> MutexGuard<'_, WsState<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the WebSocket for this reason unless it has ended, and tells the other side.
    fn end(&self, reason: CloseReason, fault: WsProtocolError) {
        let (stream, out, reader) = {
            let mut state = self.lock();
            let out = std::mem::take(&mut state.out);
            let mut reader = std::mem::take(&mut state.reader);
            reader.forget_messages();
            state.assembly.clear();
            (state.stream.take(), out, reader)
        };
        self.set_ended(reason);
        if let Some(stream) = stream {
            goodbye(stream, out, reader, fault);
        }
    }

    /// What carries the WebSocket has ended, so that no close frame can be sent.
    fn lost(&self, why: String) -> StreamError {
        drop(self.lock().stream.take());
        self.set_ended(CloseReason::Lost(why));
        self.error()
    }

    fn set_ended(&self, reason: CloseReason) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(reason);
            }
            first
        });
        self.waker.wake_by_ref();
    }

    fn error(&self) -> StreamError {
        let reason = self.ended.borrow().clone();
        StreamError::Closed(reason.unwrap_or(CloseReason::Local))
    }

    fn poll_read(
        &self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        self.wakers.reader.register(cx.waker());
        let mut io = Context::from_waker(&self.waker);
        for _ in 0..CONTROLS_PER_TURN {
            let mut state = self.lock();
            if state.stream.is_none() {
                drop(state);
                return Poll::Ready(Err(self.error()));
            }
            if !state.rest.is_empty() {
                let most = max.min(state.rest.len());
                return Poll::Ready(Ok(Some(state.rest.split_to(most))));
            }
            let most = self.most.load(Ordering::Relaxed);
            match state.reader.next(most) {
                Err(fault) => {
                    drop(state);
                    self.end(CloseReason::Local, fault);
                }
                Ok(Some(WsEvent::Data(bytes))) => {
                    state.out.text = state.reader.speaks_text();
                    state.rest = bytes;
                    // From here on the frame counts that is made of it.
                    state.assembly.clear();
                }
                Ok(Some(WsEvent::Ping(payload))) => state.out.pong(payload),
                Ok(Some(WsEvent::Pong)) => {}
                Ok(Some(WsEvent::Close(code, reason))) => {
                    drop(state);
                    let reason = CloseReason::Peer(code.and_then(codes::core), reason);
                    self.end(reason, codes::answer(code));
                }
                Ok(None) => {
                    // The caller of this method has a share in the guest, so that the one taken
                    // here is never the last.
                    let held = state.reader.held_bytes();
                    if state.assembly.count(held).is_err() {
                        drop(state);
                        self.end(CloseReason::Local, codes::OVERFULL);
                        continue;
                    }
                    if state.is_late(cx) {
                        drop(state);
                        self.end(CloseReason::Local, codes::LATE);
                        continue;
                    }
                    if let Poll::Ready(Err(error)) = state.poll_out(&mut io) {
                        drop(state);
                        return Poll::Ready(Err(self.lost(error.to_string())));
                    }
                    let more = ready!(state.poll_more(&mut io));
                    drop(state);
                    match more {
                        Ok(true) => self.heard.store(true, Ordering::Relaxed),
                        Ok(false) => {
                            let why = "it ended without a goodbye".to_owned();
                            return Poll::Ready(Err(self.lost(why)));
                        }
                        Err(error) => return Poll::Ready(Err(self.lost(error.to_string()))),
                    }
                }
            }
        }
        // A client that sends nothing but pings lets other tasks have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready once the bytes are with whatever carries them: callers need no flush, as on QUIC.
    fn poll_write(
        &self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, StreamError>> {
        self.wakers.writer.register(cx.waker());
        let mut io = Context::from_waker(&self.waker);
        let mut state = self.lock();
        if state.stream.is_none() || state.cut {
            drop(state);
            return Poll::Ready(Err(self.error()));
        }
        let taken: usize = chunks.iter_mut().map(|chunk| state.out.take(chunk)).sum();
        // Polled again after Pending here, what was taken is no longer among the chunks.
        let written = ready!(state.poll_out(&mut io));
        drop(state);
        match written {
            Ok(()) => Poll::Ready(Ok(taken)),
            Err(error) => Poll::Ready(Err(self.lost(error.to_string()))),
        }
    }

    fn cut(&self) {
        self.lock().cut = true;
        self.waker.wake_by_ref();
    }
}

/// Says why the WebSocket ends and waits for the other side to have read it.
fn goodbye<S: WsTransport>(
    mut stream: S,
    mut out: WsSendBuffer,
    mut reader: WsFrameReader,
    fault: WsProtocolError,
) {
    out.close(fault.code, fault.reason);
    let mut unflushed = true;
    // At once, as far as there is room: the process may be about to exit.
    let mut cx = Context::from_waker(Waker::noop());
    let _ = poll_write_all(&mut stream, &mut out, &mut unflushed, &mut cx);
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    let answered = fault.reason == codes::ANSWERED;
    runtime.spawn(async move {
        let said = async {
            poll_fn(|cx| poll_write_all(&mut stream, &mut out, &mut unflushed, cx)).await?;
            let heard = answered || hear_out(&mut stream, &mut reader).await;
            stream.shutdown().await?;
            if !heard {
                // What is not taken would make the other side lose our goodbye.
                let mut rest = stream.take(GOODBYE_BYTES_MAX as u64);
                tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
            }
            io::Result::Ok(())
        };
        // If the client does not answer, the connection is dropped after the wait.
        let _ = timeout(GOODBYE_TIMEOUT, said).await;
    });
}

/// Reads what is on its way; whether the other side's goodbye was among it. After a fault nothing can
/// be told apart any more.
async fn hear_out<S: WsTransport>(stream: &mut S, reader: &mut WsFrameReader) -> bool {
    let mut left = GOODBYE_BYTES_MAX;
    loop {
        match reader.next(GOODBYE_BYTES_MAX) {
            Ok(Some(WsEvent::Close(..))) => return true,
            Ok(Some(_)) => continue,
            Ok(None) => {}
            Err(_) => return false,
        }
        reader.buffer.reserve(KEPT_BYTES_MAX);
        let buffer = &mut reader.buffer;
        match poll_fn(|cx| poll_read_buf(Pin::new(&mut *stream), cx, buffer)).await {
            Ok(n) if n > 0 && n < left => left -= n,
            _ => return false,
        }
    }
}

struct WsSendHalf<S>(Arc<WsShared<S>>);

impl<S: WsTransport> SendHalf for WsSendHalf<S> {
    fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, StreamError>> {
        self.0.poll_write(cx, chunks)
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        // A WebSocket ends in both directions at once, and with a reason: when it is closed.
        Ok(())
    }

    fn reset(&mut self, _code: StreamCode) {
        self.0.cut();
    }
}

impl<S: WsTransport> AsyncWrite for WsSendHalf<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut chunk = [Bytes::copy_from_slice(buf)];
        let written = self.0.poll_write(cx, &mut chunk);
        written.map_err(Into::into)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0
            .poll_write(cx, &mut [])
            .map_ok(|_| ())
            .map_err(Into::into)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

struct WsRecvHalf<S>(Arc<WsShared<S>>);

impl<S: WsTransport> RecvHalf for WsRecvHalf<S> {
    fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        self.0.poll_read(cx, max)
    }

    // A WebSocket cannot end one direction alone (RFC 6455 section 5.5.1).
    fn stop(&mut self, _code: StreamCode) {}
}

impl<S: WsTransport> AsyncRead for WsRecvHalf<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.0.poll_read(cx, buf.remaining()));
        if let Some(bytes) = read? {
            buf.put_slice(&bytes);
        }
        Poll::Ready(Ok(()))
    }
}
