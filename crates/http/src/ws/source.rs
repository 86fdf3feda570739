//! A WebSocket as a carriage for core: it has one stream, which is accepted once, of messages with their lengths.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use alknet_call::UnfinishedMessage;
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

/// The transport of a WebSocket.
pub(super) trait WsTransport: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> WsTransport for T {}

/// A WebSocket after its handshake.
pub(super) struct WebSocket<S> {
    shared: Arc<WsShared<S>>,
    yielded: AtomicBool,
}

/// Checks whether a WebSocket is alive.
pub(super) struct WsKeepAlive<S>(Arc<WsShared<S>>);

impl<S: WsTransport> WebSocket<S> {
    /// Makes a WebSocket. The longest message of a known client has `known_bytes` bytes.
    pub(super) fn new(
        stream: S,
        known_bytes: usize,
        pace: WsTimeouts,
        assembly: UnfinishedMessage,
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
    /// Sends a ping. Returns whether bytes arrived since the last call.
    pub(super) fn ping(&self) -> bool {
        let heard = self.0.heard.swap(false, Ordering::Relaxed);
        let mut state = self.0.lock();
        state.out.ping();
        // The next read or write sends what cannot be sent now.
        let _ = state.poll_out(&mut Context::from_waker(&self.0.waker));
        heard
    }

    /// Ends the WebSocket with a code that core does not have.
    pub(super) fn end(&self, fault: WsProtocolError) {
        self.0.end(CloseReason::Local, fault);
    }
}

impl<S: WsTransport> StreamSource for WebSocket<S> {
    fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(async {
            if self.yielded.swap(true, Ordering::Relaxed) {
                // A handler that accepts in a loop must not take this for the end of its only stream.
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
        // Core sets the budget once the client is known.
        let known = self.shared.known_bytes;
        self.shared.most.store(known, Ordering::Relaxed);
    }
}

struct WsShared<S> {
    state: Mutex<WsState<S>>,
    wakers: Arc<Wakers>,
    /// Wakes both the reading and the writing task: the transport keeps only one waker for each direction, and each
    /// half also writes what the other half has to send.
    waker: Waker,
    ended: watch::Sender<Option<CloseReason>>,
    /// The bytes of the longest message, now and for a known client.
    most: AtomicUsize,
    known_bytes: usize,
    /// Whether bytes arrived since the last ping.
    heard: AtomicBool,
}

struct WsState<S> {
    /// The transport; `None` once the WebSocket is closed.
    stream: Option<S>,
    reader: WsFrameReader,
    /// Counts what the reader holds of a fragmented message.
    assembly: UnfinishedMessage,
    out: WsSendBuffer,
    unflushed: bool,
    /// Bytes that were read beyond what the caller wanted.
    rest: Bytes,
    /// The deadline for an incomplete message or frame.
    partial: Option<Pin<Box<Sleep>>>,
    pace: WsTimeouts,
    /// Whether a half was reset before all data was sent.
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
    /// Writes all that can be written.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        poll_write_all(stream, &mut self.out, &mut self.unflushed, cx)
    }

    /// Reads more bytes; `false` at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let want = self.reader.missing();
        let buffer = &mut self.reader.buffer;
        buffer.reserve(want.clamp(*READ_BYTES.start(), *READ_BYTES.end()));
        let read = poll_read_buf(Pin::new(stream), cx, buffer);
        if read.is_pending() && buffer.is_empty() {
            // An idle client costs no buffer.
            *buffer = bytes::BytesMut::new();
        }
        Poll::Ready(Ok(ready!(read)? > 0))
    }

    /// Whether an incomplete message or frame took too long.
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

    /// Ends the WebSocket for this reason, unless it has ended, and sends the peer a close frame.
    fn end(&self, reason: CloseReason, fault: WsProtocolError) {
        let (stream, out, reader) = {
            let mut state = self.lock();
            let out = std::mem::take(&mut state.out);
            let mut reader = std::mem::take(&mut state.reader);
            // Only the peer's close frame still matters.
            reader.forget_messages();
            state.assembly.clear();
            (state.stream.take(), out, reader)
        };
        self.set_ended(reason);
        if let Some(stream) = stream {
            goodbye(stream, out, reader, fault);
        }
    }

    /// Ends the WebSocket after its transport has failed, so no close frame can be sent.
    fn lost(&self, why: String) -> StreamError {
        // The transport is dropped now, because handles of the connection may live on.
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
                    // From here on, the frame that is made of the message counts instead.
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
                    // The caller of this method holds the guest, so the reference here is never the last one.
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
        // Other tasks get their turn before more control frames of this client.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Becomes ready once the transport has the bytes: callers need no flush, as on QUIC.
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
        let accepted: usize = chunks.iter_mut().map(|chunk| state.out.take(chunk)).sum();
        // If this returns Pending and is polled again, the bytes taken so far are no longer among the chunks.
        let written = ready!(state.poll_out(&mut io));
        drop(state);
        match written {
            Ok(()) => Poll::Ready(Ok(accepted)),
            Err(error) => Poll::Ready(Err(self.lost(error.to_string()))),
        }
    }

    fn cut(&self) {
        self.lock().cut = true;
        self.waker.wake_by_ref();
    }
}

/// Sends the reason for the end, and waits until the peer has read it.
fn goodbye<S: WsTransport>(
    mut stream: S,
    mut out: WsSendBuffer,
    mut reader: WsFrameReader,
    fault: WsProtocolError,
) {
    out.close(fault.code, fault.reason);
    let mut unflushed = true;
    // A part is written at once, as far as there is room, because the process may be about to exit.
    let mut cx = Context::from_waker(Waker::noop());
    let _ = poll_write_all(&mut stream, &mut out, &mut unflushed, &mut cx);
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    // If this only answers the peer's close frame, the peer sends no other one.
    let answered = fault.reason == codes::ANSWERED;
    runtime.spawn(async move {
        let closing = async {
            poll_fn(|cx| poll_write_all(&mut stream, &mut out, &mut unflushed, cx)).await?;
            let heard = answered || hear_out(&mut stream, &mut reader).await;
            stream.shutdown().await?;
            if !heard {
                // Unread bytes would make the peer lose the close frame.
                let mut rest = stream.take(GOODBYE_BYTES_MAX as u64);
                tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
            }
            io::Result::Ok(())
        };
        // If the client does not answer, the connection is dropped after the wait.
        let _ = timeout(GOODBYE_TIMEOUT, closing).await;
    });
}

/// Reads the bytes that still arrive. Returns whether they include the peer's close frame. After a protocol fault,
/// the frames can no longer be recognised.
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
        // A WebSocket ends in both directions at once and with a reason, when it is closed.
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

    // A WebSocket cannot end only one direction (RFC 6455 section 5.5.1).
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
