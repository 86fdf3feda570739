//! HTTP/1.1 and HTTP/2 on a single stream (RFC 9112, RFC 9113), by hyper.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use alknet_core::HandlerError;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;

use super::body::{HeadTimingStream, LingeringBody};
use super::coalescing::{CoalescingStream, drive};
use super::pooled::PooledRequestTask;
use super::resets::ResetLimitedStream;
use super::stream::H2StreamExecutor;
use super::timed::TimedBody;
use super::{HttpCloseCause, answer, over, stalled};
use crate::connection::HttpConnection;
use crate::limits;

/// The version of HTTP on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TcpHttpVersion {
    Http1,
    Http2,
}

/// Hyper's future for a connection.
type Serving<'conn> = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send + 'conn>>;

/// Serves a connection until it ends.
pub(crate) async fn serve(
    conn: Arc<HttpConnection>,
    version: TcpHttpVersion,
    draining: watch::Receiver<bool>,
) -> Result<(), HandlerError> {
    let streams = conn.connection.accept_bi().await;
    let (send, recv) = streams.map_err(std::io::Error::from)?;
    let patience = conn.patience();
    let service = {
        let conn = Arc::clone(&conn);
        service_fn(move |request: Request<Incoming>| {
            let conn = Arc::clone(&conn);
            let read = |body| TimedBody::new(LingeringBody::new(body, &conn), patience);
            let request = request.map(|body| Body::new(read(body)));
            PooledRequestTask::new(answer(conn, request))
        })
    };
    let peer = &conn;
    // The future is on the heap and dropped before the wait below: a WebSocket may last for days, and hyper's part of
    // its connection takes 2.7 KiB.
    let serving: Serving<'_> = match version {
        TcpHttpVersion::Http1 => Box::pin(async move {
            let io = TokioIo::new(tokio::io::join(HeadTimingStream::new(recv, peer), send));
            let serving = http1::Builder::new()
                // `over` limits the time of heads instead, by what `HeadTimingStream` records.
                .header_read_timeout(None)
                .max_headers(limits::HEADER_FIELDS_MAX)
                .max_buf_size(limits::HEADER_BYTES_MAX)
                .serve_connection(io, service)
                .with_upgrades();
            let mut serving = pin!(serving);
            tokio::select! {
                biased;
                ended = serving.as_mut() => ended,
                why = over(peer, draining) => {
                    serving.as_mut().graceful_shutdown();
                    match why {
                        HttpCloseCause::Leave => serving.await,
                        HttpCloseCause::Unknown => end(serving, peer).await,
                        HttpCloseCause::Idle => {
                            // A head that has begun may use the rest of its time.
                            let left = |since| patience.head.saturating_sub(since);
                            let time = peer.head_since().map_or(limits::HEADER_TIMEOUT, left);
                            finish(serving, time).await
                        }
                        // A client that receives nothing, or never ends its head, does not receive a goodbye either.
                        HttpCloseCause::Slow | HttpCloseCause::Stalled => Ok(()),
                    }
                }
            }
        }),
        TcpHttpVersion::Http2 => Box::pin(async move {
            let send = CoalescingStream::new(send);
            let io = TokioIo::new(tokio::io::join(ResetLimitedStream::new(recv), send.clone()));
            let serving = builder().serve_connection(io, service);
            let mut serving = pin!(serving);
            tokio::select! {
                biased;
                ended = drive(serving.as_mut(), &send) => ended,
                why = over(peer, draining) => {
                    serving.as_mut().graceful_shutdown();
                    match why {
                        HttpCloseCause::Leave => drive(serving, &send).await,
                        HttpCloseCause::Unknown => end(drive(serving, &send), peer).await,
                        HttpCloseCause::Idle => finish(drive(serving, &send), limits::HEADER_TIMEOUT).await,
                        HttpCloseCause::Slow | HttpCloseCause::Stalled => Ok(()),
                    }
                }
            }
        }),
    };
    let ended = serving.await;
    // An upgraded connection continues without hyper.
    conn.finished().await;
    if let Err(error) = ended {
        tracing::debug!(connection = %conn.connection.id(), "HTTP ended: {error}");
    }
    Ok(())
}

/// Drives a connection without running requests for at most `time`, so that the goodbye can be sent.
async fn finish<F: Future<Output = Result<(), hyper::Error>>>(
    serving: F,
    time: Duration,
) -> Result<(), hyper::Error> {
    let goodbye = tokio::time::timeout(time, serving).await;
    goodbye.unwrap_or(Ok(()))
}

/// Ends a connection whose client was asked to leave, once its earlier requests are finished. The library alone would
/// keep serving an HTTP/2 client that does not answer the PING which follows the GOAWAY.
async fn end<F: Future<Output = Result<(), hyper::Error>>>(
    serving: F,
    conn: &HttpConnection,
) -> Result<(), hyper::Error> {
    let patience = conn.patience();
    let mut serving = pin!(serving);
    tokio::select! {
        biased;
        ended = serving.as_mut() => return ended,
        () = conn.finished_earlier() => {}
        () = stalled(conn, patience.reader) => return Ok(()),
    }
    finish(serving, patience.head).await
}

fn builder() -> http2::Builder<H2StreamExecutor> {
    let mut builder = http2::Builder::new(H2StreamExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS_MAX)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::STREAM_WINDOW)
        .max_header_list_size(limits::HEADER_BYTES_MAX as u32)
        .max_pending_accept_reset_streams(limits::RESETS_MAX)
        .max_local_error_reset_streams(limits::RESETS_MAX)
        .max_send_buf_size(limits::SEND_BUFFER)
        // This allows WebSockets on a stream (RFC 8441 section 3).
        .enable_connect_protocol();
    builder
}
