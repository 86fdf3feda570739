//! Core's carriage over a QUIC library. The binary has two, quinn and the one inside iroh, which are shaped alike and
//! share no type. This macro makes the carriage for both.

/// Makes `QuicSource`, the carriage over the library at this path. Where the libraries differ, the module that calls
/// the macro has a function each: `read_chunk`, `rtt`, `set_send_window` and `write_chunks`.
macro_rules! quic_carriage {
    ($library:ident $(:: $module:ident)*) => {
        use std::io;
        use std::pin::Pin;
        use std::sync::Arc;
        use std::task::{Context, Poll, ready};
        use std::time::Duration;

        use alknet_core::{
            BoxFuture, CloseCode, CloseReason, RecvHalf, RecvStream, SendHalf, SendStream,
            StreamBudget, StreamCode, StreamError, StreamSource,
        };
        use bytes::Bytes;
        use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

        use $library $(:: $module)* ::{
            Connection, ConnectionError, ReadError, RecvStream as Receiving, SendStream as Sending,
            StoppedError, VarInt, WriteError,
        };

        use crate::windows::{WindowCredit, ReceiveWindow, WindowControl};

        /// A connection of this library.
        pub(crate) struct QuicSource {
            connection: Connection,
            /// Present where the node counts the window; otherwise the window is as large as the budget says.
            credit: Option<Arc<WindowCredit>>,
        }

        impl QuicSource {
            pub(crate) fn new(connection: Connection, credit: Option<Arc<WindowCredit>>) -> Self {
                Self { connection, credit }
            }

            fn pair(&self, (send, recv): (Sending, Receiving)) -> (SendStream, RecvStream) {
                (send_stream(send), self.recv_stream(recv))
            }

            fn recv_stream(&self, stream: Receiving) -> RecvStream {
                let credit = self.credit.clone();
                RecvStream::new(Box::new(QuicRecvHalf { stream, credit }))
            }
        }

        impl WindowControl for Connection {
            fn set_window(&self, bytes: u32) {
                self.set_receive_window(bytes.into());
            }

            fn rtt(&self) -> Option<Duration> {
                rtt(self)
            }
        }

        /// The credit of a connection whose window counts.
        pub(crate) fn credit(connection: &Connection, window: Arc<ReceiveWindow>) -> Arc<WindowCredit> {
            WindowCredit::new(window, Box::new(connection.clone()))
        }

        fn send_stream(stream: Sending) -> SendStream {
            SendStream::new(Box::new(QuicSendHalf {
                stream,
                stopped: None,
            }))
        }

        impl StreamSource for QuicSource {
            fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
                Box::pin(async {
                    let streams = self.connection.accept_bi().await;
                    streams.map(|streams| self.pair(streams)).map_err(lost)
                })
            }

            fn open_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
                Box::pin(async {
                    let streams = self.connection.open_bi().await;
                    streams.map(|streams| self.pair(streams)).map_err(lost)
                })
            }

            fn accept_uni(&self) -> BoxFuture<'_, Result<RecvStream, StreamError>> {
                Box::pin(async {
                    let stream = self.connection.accept_uni().await;
                    stream.map(|stream| self.recv_stream(stream)).map_err(lost)
                })
            }

            fn open_uni(&self) -> BoxFuture<'_, Result<SendStream, StreamError>> {
                Box::pin(async { self.connection.open_uni().await.map(send_stream).map_err(lost) })
            }

            fn is_multi(&self) -> bool {
                true
            }

            fn close(&self, code: CloseCode, reason: &str) {
                self.close_foreign(code.code(), reason);
            }

            fn close_foreign(&self, code: u32, reason: &str) {
                self.connection.close(code.into(), reason.as_bytes());
            }

            fn closed(&self) -> BoxFuture<'_, CloseReason> {
                Box::pin(async { close_reason(self.connection.closed().await) })
            }

            fn set_budget(&self, budget: StreamBudget) {
                let connection = &self.connection;
                connection.set_max_concurrent_bi_streams(budget.bidi_streams.into());
                connection.set_max_concurrent_uni_streams(budget.uni_streams.into());
                // Where the window counts, the credit decides how much of the budget it gets, because all windows
                // share one total.
                match &self.credit {
                    Some(credit) => credit.allow(budget.connection_window_bytes),
                    None => connection.set_receive_window(budget.connection_window_bytes.into()),
                }
                set_send_window(connection, budget.send_window_bytes);
            }

            fn rtt(&self) -> Option<Duration> {
                rtt(&self.connection)
            }

            fn export_keying_material(
                &self,
                label: &[u8],
                context: &[u8],
                out: &mut [u8],
            ) -> Result<(), StreamError> {
                self.connection
                    .export_keying_material(out, label, context)
                    .map_err(|_| io::Error::other("the TLS session exports no such keying material").into())
            }
        }

        pub(crate) fn close_reason(error: ConnectionError) -> CloseReason {
            match error {
                ConnectionError::ApplicationClosed(close) => CloseReason::Peer(
                    Some(close.error_code.into_inner()),
                    String::from_utf8_lossy(&close.reason).into_owned(),
                ),
                ConnectionError::LocallyClosed => CloseReason::Local,
                ConnectionError::TimedOut => CloseReason::TimedOut,
                other => CloseReason::Lost(other.to_string()),
            }
        }

        fn lost(error: ConnectionError) -> StreamError {
            match close_reason(error) {
                CloseReason::TimedOut => StreamError::Timeout,
                reason => StreamError::Closed(reason),
            }
        }

        fn write_error(error: WriteError) -> StreamError {
            match error {
                WriteError::Stopped(code) => StreamError::Stopped(code.into_inner()),
                WriteError::ConnectionLost(error) => lost(error),
                other => io::Error::new(io::ErrorKind::NotConnected, other).into(),
            }
        }

        fn read_error(error: ReadError) -> StreamError {
            match error {
                ReadError::Reset(code) => StreamError::Reset(code.into_inner()),
                ReadError::ConnectionLost(error) => lost(error),
                other => io::Error::new(io::ErrorKind::NotConnected, other).into(),
            }
        }

        /// The result of a stream's `stopped`.
        type Stopped = Result<Option<VarInt>, StoppedError>;

        struct QuicSendHalf {
            stream: Sending,
            /// Kept between polls, because the future forgets its waker when it is dropped.
            stopped: Option<Pin<Box<dyn Future<Output = Stopped> + std::marker::Send>>>,
        }

        impl QuicSendHalf {
            /// Returns what was written, or that the peer stopped reading meanwhile. A pending write waits for room
            /// only: where a stream has used its own window, and other streams took the rest of the connection's, the
            /// library (quinn-proto 0.11.19) wakes no writer of a stream that the peer stopped.
            fn or_stopped<T>(
                &mut self,
                cx: &mut Context<'_>,
                written: Poll<Result<T, StreamError>>,
            ) -> Poll<Result<T, StreamError>> {
                if written.is_pending()
                    && let Poll::Ready(stopped) = self.poll_stopped(cx)
                    && let Some(code) = stopped?
                {
                    return Poll::Ready(Err(StreamError::Stopped(code)));
                }
                written
            }
        }

        impl SendHalf for QuicSendHalf {
            fn poll_write_chunks(
                &mut self,
                cx: &mut Context<'_>,
                chunks: &mut [Bytes],
            ) -> Poll<Result<usize, StreamError>> {
                if chunks.iter().all(Bytes::is_empty) {
                    return Poll::Ready(Ok(0));
                }
                // The future holds no state of its own: the stream has all that it waits for.
                let written = std::pin::pin!(write_chunks(&mut self.stream, chunks)).poll(cx);
                self.or_stopped(cx, written.map_err(write_error))
            }

            fn finish(&mut self) -> Result<(), StreamError> {
                self.stream
                    .finish()
                    .map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error).into())
            }

            fn reset(&mut self, code: StreamCode) {
                // An error says that the stream has ended already, which is the purpose of the reset.
                let _ = self.stream.reset(code.code().into());
            }

            fn set_priority(&mut self, priority: i32) {
                // A stream that has ended has no priority any more.
                let _ = self.stream.set_priority(priority);
            }

            fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<u64>, StreamError>> {
                let stopped = self
                    .stopped
                    .get_or_insert_with(|| Box::pin(self.stream.stopped()));
                let result = ready!(stopped.as_mut().poll(cx));
                self.stopped = None;
                Poll::Ready(match result {
                    Ok(code) => Ok(code.map(VarInt::into_inner)),
                    Err(StoppedError::ConnectionLost(error)) => Err(lost(error)),
                    Err(other) => Err(io::Error::new(io::ErrorKind::NotConnected, other).into()),
                })
            }
        }

        impl AsyncWrite for QuicSendHalf {
            fn poll_write(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                let written = Pin::new(&mut self.stream).poll_write(cx, buf);
                self.or_stopped(cx, written.map_err(write_error))
                    .map_err(Into::into)
            }

            fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                // There is nothing to do: the library sends what was written as soon as congestion control lets it.
                Poll::Ready(Ok(()))
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(SendHalf::finish(&mut *self).map_err(Into::into))
            }
        }

        struct QuicRecvHalf {
            stream: Receiving,
            credit: Option<Arc<WindowCredit>>,
        }

        impl QuicRecvHalf {
            fn count(&self, bytes: usize) {
                if let Some(credit) = &self.credit {
                    credit.read(bytes);
                }
            }
        }

        impl RecvHalf for QuicRecvHalf {
            fn poll_read_chunk(
                &mut self,
                cx: &mut Context<'_>,
                max: usize,
            ) -> Poll<Result<Option<Bytes>, StreamError>> {
                // As for writes, the future is stateless, so each poll may make a new one.
                let read = {
                    let read = std::pin::pin!(read_chunk(&mut self.stream, max));
                    ready!(read.poll(cx)).map_err(read_error)
                };
                if let Ok(Some(chunk)) = &read {
                    self.count(chunk.len());
                }
                Poll::Ready(read)
            }

            fn stop(&mut self, code: StreamCode) {
                // An error says that the stream has ended, and there is nothing to stop.
                let _ = self.stream.stop(code.code().into());
            }
        }

        impl AsyncRead for QuicRecvHalf {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let unfilled = buf.initialize_unfilled();
                let read = ready!(self.stream.poll_read(cx, unfilled)).map_err(read_error)?;
                buf.advance(read);
                self.count(read);
                Poll::Ready(Ok(()))
            }
        }
    };
}

pub(crate) use quic_carriage;
