//! Adapts the streams of a connection to the HTTP/3 library.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use alknet_core::{CloseReason, Connection, RecvStream, SendStream, StreamCode, StreamError};
use bytes::{Buf, Bytes};
use futures_util::stream::{BoxStream, StreamExt, unfold};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use tokio::io::AsyncWrite;

use super::bounds::H3FrameBounds;
use crate::limits::STREAMS_MAX;

/// The most bytes that are read from a stream at once.
const READ_BYTES: usize = 64 << 10;

type Accepted<T> = BoxStream<'static, Result<T, StreamError>>;

/// The streams of a connection.
pub(super) struct H3Transport {
    own: H3StreamOpener,
    requests: Accepted<(SendStream, RecvStream)>,
    controls: Accepted<RecvStream>,
    opening: Option<Accepted<SendStream>>,
    next_request: u64,
    next_control: u64,
    next_own: u64,
    cancels: H3Cancellations,
}

/// Tells the task of a request, by the number of its stream, that the client has stopped reading the response.
#[derive(Clone, Default)]
pub(super) struct H3Cancellations(Arc<Mutex<HashMap<u64, Weak<Mutex<SendStream>>>>>);

type SharedSendStream = Arc<Mutex<SendStream>>;

impl H3Cancellations {
    /// Resolves when the client has stopped reading or the connection has ended.
    pub(super) async fn stopped(&self, id: u64) {
        let stream = lock(&self.0).remove(&id);
        let Some(stream) = stream.as_ref().and_then(Weak::upgrade) else {
            return std::future::pending().await;
        };
        let stopped = std::future::poll_fn(|cx| lock(&stream).poll_stopped(cx)).await;
        if let Ok(None) = stopped {
            // The client has received everything.
            std::future::pending().await
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl H3Transport {
    pub(super) fn new(connection: &Connection) -> Self {
        let requests = unfold(connection.clone(), |connection| async move {
            let accepted = connection.accept_bi().await;
            Some((accepted, connection))
        });
        let controls = unfold(connection.clone(), |connection| async move {
            let accepted = connection.accept_uni().await;
            Some((accepted, connection))
        });
        Self {
            own: H3StreamOpener(connection.clone()),
            requests: requests.boxed(),
            controls: controls.boxed(),
            opening: None,
            // The first ids of bidirectional and unidirectional streams of the client, and of unidirectional streams
            // of the server (RFC 9000 section 2.1).
            next_request: 0,
            next_control: 2,
            next_own: 3,
            cancels: H3Cancellations::default(),
        }
    }

    pub(super) fn cancels(&self) -> H3Cancellations {
        self.cancels.clone()
    }
}

/// The ids of streams of one kind increase by four (RFC 9000 section 2.1), and the streams are accepted in order.
fn number(next: &mut u64) -> StreamId {
    let id = StreamId::try_from(*next);
    *next += 4;
    id.expect("no connection lives long enough for 2^62 streams")
}

fn lost(error: StreamError) -> ConnectionErrorIncoming {
    match error {
        StreamError::Timeout => ConnectionErrorIncoming::Timeout,
        StreamError::Closed(CloseReason::Peer(Some(error_code), _)) => {
            ConnectionErrorIncoming::ApplicationClose { error_code }
        }
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn broken(error: StreamError) -> StreamErrorIncoming {
    match error {
        StreamError::Reset(error_code) | StreamError::Stopped(error_code) => {
            StreamErrorIncoming::StreamTerminated { error_code }
        }
        // These errors end the connection, and all of its streams with it.
        StreamError::Closed(_) | StreamError::Timeout => {
            StreamErrorIncoming::ConnectionErrorIncoming {
                connection_error: lost(error),
            }
        }
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

fn broken_io(error: std::io::Error) -> StreamErrorIncoming {
    match error.downcast::<StreamError>() {
        Ok(error) => broken(error),
        Err(error) => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}

fn refused<T>() -> Poll<Result<T, StreamErrorIncoming>> {
    Poll::Ready(Err(broken(StreamError::Unsupported)))
}

/// The library's codes have 62 bits. The node's codes have 32 bits, which hold every code of HTTP/3.
fn code(number: u64) -> StreamCode {
    StreamCode::Foreign(u32::try_from(number).unwrap_or(u32::MAX))
}

impl quic::OpenStreams<Bytes> for H3Transport {
    type BidiStream = H3BidiStream;
    type SendStream = H3SendStream;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<H3BidiStream, StreamErrorIncoming>> {
        self.own.poll_open_bidi(cx)
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<H3SendStream, StreamErrorIncoming>> {
        let connection = self.own.0.clone();
        let opening = self.opening.get_or_insert_with(|| {
            futures_util::stream::once(async move { connection.open_uni().await }).boxed()
        });
        let opened = ready!(opening.poll_next_unpin(cx));
        // The next call opens another stream.
        self.opening = None;
        let stream = opened
            .unwrap_or(Err(StreamError::Unsupported))
            .map_err(broken)?;
        Poll::Ready(Ok(H3SendStream::new(stream, number(&mut self.next_own))))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.own.close(code, reason);
    }
}

/// Lets the library open streams that no client requested, and refuses every one.
pub(super) struct H3StreamOpener(Connection);

impl quic::OpenStreams<Bytes> for H3StreamOpener {
    type BidiStream = H3BidiStream;
    type SendStream = H3SendStream;

    fn poll_open_bidi(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Result<H3BidiStream, StreamErrorIncoming>> {
        // A server sends no requests.
        refused()
    }

    fn poll_open_send(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Result<H3SendStream, StreamErrorIncoming>> {
        // This server pushes nothing.
        refused()
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        let number = u32::try_from(code.value()).unwrap_or(u32::MAX);
        let reason = std::str::from_utf8(reason).unwrap_or_default();
        // The frame with the reason must fit into one packet (RFC 9000 section 19.19).
        let reason: String = reason.chars().take(64).collect();
        self.0.close_foreign(number, &reason);
    }
}

impl quic::Connection<Bytes> for H3Transport {
    type RecvStream = H3RecvStream;
    type OpenStreams = H3StreamOpener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<H3RecvStream, ConnectionErrorIncoming>> {
        let stream = ready!(self.controls.poll_next_unpin(cx));
        let stream = stream
            .unwrap_or(Err(StreamError::Unsupported))
            .map_err(lost)?;
        Poll::Ready(Ok(H3RecvStream {
            stream,
            id: number(&mut self.next_control),
            bounds: H3FrameBounds::new(false),
            own: self.own.0.clone(),
        }))
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<H3BidiStream, ConnectionErrorIncoming>> {
        let streams = ready!(self.requests.poll_next_unpin(cx));
        let streams = streams.unwrap_or(Err(StreamError::Unsupported));
        let (send, stream) = streams.map_err(lost)?;
        let id = number(&mut self.next_request);
        let send = H3SendStream::new(send, id);
        let mut known = lock(&self.cancels.0);
        if known.len() >= STREAMS_MAX as usize {
            // Requests with an invalid head never removed their entry.
            known.retain(|_, stream| stream.strong_count() > 0);
        }
        known.insert(id.into_inner(), Arc::downgrade(&send.stream));
        drop(known);
        Poll::Ready(Ok(H3BidiStream {
            send,
            recv: H3RecvStream {
                stream,
                id,
                bounds: H3FrameBounds::new(true),
                own: self.own.0.clone(),
            },
        }))
    }

    fn opener(&self) -> H3StreamOpener {
        H3StreamOpener(self.own.0.clone())
    }
}

/// The sending half of a stream.
pub(super) struct H3SendStream {
    stream: SharedSendStream,
    id: StreamId,
    writing: Option<WriteBuf<Bytes>>,
}

impl H3SendStream {
    fn new(stream: SendStream, id: StreamId) -> Self {
        Self {
            stream: Arc::new(Mutex::new(stream)),
            id,
            writing: None,
        }
    }
}

impl quic::SendStream<Bytes> for H3SendStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        let Some(data) = &mut self.writing else {
            return Poll::Ready(Ok(()));
        };
        while data.has_remaining() {
            let mut stream = lock(&self.stream);
            let written = ready!(Pin::new(&mut *stream).poll_write(cx, data.chunk()));
            data.advance(written.map_err(broken_io)?);
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            let error = std::io::Error::other("data is still being written");
            return Err(StreamErrorIncoming::Unknown(Box::new(error)));
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        // Waiting data must be sent before the end of the stream.
        ready!(self.poll_ready(cx))?;
        Poll::Ready(lock(&self.stream).finish().map_err(broken))
    }

    fn reset(&mut self, reset_code: u64) {
        lock(&self.stream).reset(code(reset_code));
    }

    fn send_id(&self) -> StreamId {
        self.id
    }
}

/// The receiving half of a stream.
pub(super) struct H3RecvStream {
    stream: RecvStream,
    id: StreamId,
    bounds: H3FrameBounds,
    own: Connection,
}

impl quic::RecvStream for H3RecvStream {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let data = ready!(self.stream.poll_read_chunk(cx, READ_BYTES)).map_err(broken)?;
        if data.as_ref().is_some_and(|data| !self.bounds.accepts(data)) {
            let why = b"a frame is longer than any may be";
            quic::OpenStreams::close(
                &mut H3StreamOpener(self.own.clone()),
                Code::H3_EXCESSIVE_LOAD,
                why,
            );
            // The connection is already closed, and any error makes the library stop reading.
            return Poll::Ready(Err(broken(StreamError::Timeout)));
        }
        Poll::Ready(Ok(data))
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.stream.stop(code(error_code));
    }

    fn recv_id(&self) -> StreamId {
        self.id
    }
}

/// The stream of a request.
pub(super) struct H3BidiStream {
    send: H3SendStream,
    recv: H3RecvStream,
}

impl quic::BidiStream<Bytes> for H3BidiStream {
    type SendStream = H3SendStream;
    type RecvStream = H3RecvStream;

    fn split(self) -> (H3SendStream, H3RecvStream) {
        (self.send, self.recv)
    }
}

impl quic::SendStream<Bytes> for H3BidiStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.send.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.send.id
    }
}

impl quic::RecvStream for H3BidiStream {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.recv.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.id
    }
}
