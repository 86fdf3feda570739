//! HTTP/3 (RFC 9114) on the streams of a QUIC connection.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use alknet_core::{CloseCode, Connection, HandlerError};
use axum::body::Body;
use bytes::{Buf, Bytes};
use h3::error::{Code, ConnectionError};
use h3::quic::SendStream as _;
use h3::server::{RequestResolver, RequestStream};
use http::header::{CONTENT_LENGTH, TE};
use http::{HeaderMap, Response};
use http_body::{Body as _, Frame};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::streams::{H3Cancellations, H3RecvStream, H3SendStream, H3Transport};
use super::timed::TimedBody;
use super::{HttpCloseCause, answer, over};
use crate::connection::HttpConnection;
use crate::limits;

/// The node's close codes as error codes of HTTP/3 (RFC 9114 section 8.1).
fn number(code: CloseCode) -> u32 {
    const NO_ERROR: u32 = 0x100;
    const GENERAL_PROTOCOL_ERROR: u32 = 0x101;
    const INTERNAL_ERROR: u32 = 0x102;
    const EXCESSIVE_LOAD: u32 = 0x107;
    match code {
        CloseCode::Internal => INTERNAL_ERROR,
        CloseCode::Overload => EXCESSIVE_LOAD,
        CloseCode::Protocol => GENERAL_PROTOCOL_ERROR,
        _ => NO_ERROR,
    }
}

/// How long a client has to take the last bytes of its responses and to close the connection. The library throws away
/// what the client has not acknowledged, and does not even send its own close frame while the congestion window is full.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// The identifier in GOAWAY: the first request that the server refuses, which is the next one (RFC 9114 section 5.2).
const NEXT: usize = 1;

type Server = h3::server::Connection<H3Transport, Bytes>;

/// Serves a connection until it ends.
pub(crate) async fn serve(
    conn: Arc<HttpConnection>,
    draining: watch::Receiver<bool>,
) -> Result<(), HandlerError> {
    let connection = conn.connection.clone();
    connection.speaks_codes(number);
    let streams = H3Transport::new(&connection);
    let cancels = streams.cancels();
    let time = conn.patience().head;
    // The future is boxed, so that this one does not hold its memory for as long as the connection lasts.
    let Ok(begun) = Box::pin(tokio::time::timeout(time, begin(streams))).await else {
        // The client permits no stream of the server, or does not read from one.
        connection.close(CloseCode::Timeout, "timed out");
        return Ok(());
    };
    let mut server = begun?;
    let mut requests = JoinSet::new();
    let ended = tokio::select! {
        ended = accept(&mut server, &conn, &cancels, &mut requests) => ended,
        why = over(&conn, draining) => match why {
            // The futures are boxed, so that a connection reserves no memory for them before it ends.
            HttpCloseCause::Leave | HttpCloseCause::Unknown => {
                let drained = Box::pin(drain(&mut server, &mut requests, time)).await;
                let _ = tokio::time::timeout(LAST_BYTES, connection.closed()).await;
                drained
            }
            HttpCloseCause::Idle | HttpCloseCause::Slow => Box::pin(goodbye(&mut server, time)).await,
            HttpCloseCause::Stalled => {
                // A client that receives nothing would not receive the rest of these responses either.
                requests.abort_all();
                Ok(())
            }
        },
    };
    // Closing the connection now would cut off responses that are still being sent.
    while requests.join_next().await.is_some() {}
    close(&connection, ended);
    Ok(())
}

/// This is a function of its own, as is each way to end a connection: the library's connection has nearly 2 KiB,
/// which the caller's future would otherwise hold a second time, for as long as it lasts.
async fn begin(streams: H3Transport) -> Result<Server, HandlerError> {
    let mut builder = h3::server::builder();
    builder
        .max_field_section_size(limits::HEADER_BYTES_MAX as u64)
        .send_grease(false);
    let built = builder.build(streams).await;
    built.map_err(|_| HandlerError::Closed)
}

fn close(connection: &Connection, ended: Result<(), ()>) {
    // If the peer broke the protocol, the library has already closed the connection with the right code.
    if ended.is_ok() {
        connection.close(CloseCode::Normal, "");
    }
}

async fn accept(
    server: &mut Server,
    conn: &Arc<HttpConnection>,
    cancels: &H3Cancellations,
    requests: &mut JoinSet<()>,
) -> Result<(), ()> {
    loop {
        let accepted = next(server, requests).await.map_err(|error| {
            tracing::debug!(connection = %conn.connection.id(), "HTTP/3 ended: {error}");
        });
        let Some(resolver) = accepted? else {
            return Ok(());
        };
        requests.spawn(request(resolver, Arc::clone(conn), cancels.clone()));
    }
}

/// The next request. Meanwhile this drops the tasks of finished requests, because each holds 8 KiB until then.
async fn next(
    server: &mut Server,
    requests: &mut JoinSet<()>,
) -> Result<Option<RequestResolver<H3Transport, Bytes>>, ConnectionError> {
    let mut accepting = pin!(server.accept());
    loop {
        tokio::select! {
            biased;
            accepted = accepting.as_mut() => return accepted,
            Some(_) = requests.join_next() => {}
        }
    }
}

/// Asks the client to send no more requests. The time is limited, because a client that does not read the control
/// stream would otherwise hold its connection slot for as long as it likes.
async fn goodbye(server: &mut Server, time: Duration) -> Result<(), ()> {
    let result = tokio::time::timeout(time, server.shutdown(NEXT)).await;
    result.unwrap_or(Ok(())).map_err(drop)
}

/// Asks the client to send no more requests, and finishes the current ones. A response that the client does not
/// receive ends by itself.
async fn drain(server: &mut Server, requests: &mut JoinSet<()>, time: Duration) -> Result<(), ()> {
    goodbye(server, time).await?;
    tokio::select! {
        ended = refuse(server) => ended,
        () = async { while requests.join_next().await.is_some() {} } => Ok(()),
    }
}

/// Refuses late requests. The library itself refuses those behind the GOAWAY, except the one that it names.
async fn refuse(server: &mut Server) -> Result<(), ()> {
    while let Some(mut late) = server.accept().await.map_err(drop)? {
        late.frame_stream.reset(Code::H3_REQUEST_REJECTED.value());
    }
    Ok(())
}

async fn request(
    resolver: RequestResolver<H3Transport, Bytes>,
    conn: Arc<HttpConnection>,
    cancels: H3Cancellations,
) {
    let resolved = tokio::time::timeout(limits::HEADER_TIMEOUT, resolver.resolve_request()).await;
    // If the head is invalid, the library has responded; if it is late, the stream is dropped.
    let Ok(Ok((request, stream))) = resolved else {
        return;
    };
    let id = stream.id().into_inner();
    let (mut send, mut recv) = stream.split();
    // A malformed request is an error of its stream only (RFC 9114 section 4.1.2).
    let Some(left) = length(request.headers()) else {
        send.stop_stream(Code::H3_MESSAGE_ERROR);
        recv.stop_sending(Code::H3_MESSAGE_ERROR);
        return;
    };
    let body = H3RequestBody { stream: recv, left };
    let patience = conn.patience();
    let request = request.map(|()| Body::new(TimedBody::new(body, patience)));
    let patience = patience.reader;
    let work = async {
        let Ok(response) = answer(conn, request).await;
        respond(&mut send, response, patience).await
    };
    let done = tokio::select! {
        done = work => done,
        () = cancels.stopped(id) => Err(()),
    };
    // The stream is reset instead of finished, so that a part of a response does not look complete.
    if done.is_err() {
        send.stop_stream(Code::H3_REQUEST_CANCELLED);
    }
}

async fn respond(
    send: &mut RequestStream<H3SendStream, Bytes>,
    response: Response<Body>,
    patience: Duration,
) -> Result<(), ()> {
    let (head, mut body) = response.into_parts();
    let head = send.send_response(Response::from_parts(head, ()));
    in_time(patience, head).await?;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| {
            tracing::debug!("an answer over HTTP/3 broke off: {error}");
        })?;
        match frame.into_data() {
            Ok(data) => {
                let bytes = data.len() as u64;
                let time = patience + Duration::from_secs(bytes / limits::BODY_BYTES_PER_SECOND);
                in_time(time, send.send_data(data)).await?;
            }
            Err(frame) => {
                // Nothing may follow the trailers (RFC 9114 section 4.1).
                if let Ok(trailers) = frame.into_trailers() {
                    return in_time(patience, send.send_trailers(trailers)).await;
                }
            }
        }
    }
    in_time(patience, send.finish()).await
}

/// Limits the time of one send. If the client receives nothing of this response, only this response ends, because the
/// client may still receive others.
async fn in_time<T, E>(
    time: Duration,
    sending: impl Future<Output = Result<T, E>>,
) -> Result<T, ()> {
    let sent = tokio::time::timeout(time, sending).await;
    sent.map_err(drop)?.map_err(drop)
}

/// Fields of an HTTP/1.1 connection, which make a request malformed (RFC 9114 section 4.2).
const OF_A_CONNECTION: [&str; 5] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
];

/// The declared length of the body, if there is one; `None` if the request is malformed.
fn length(headers: &HeaderMap) -> Option<Option<u64>> {
    let foreign = OF_A_CONNECTION
        .iter()
        .any(|name| headers.contains_key(*name));
    // Any other value makes the request malformed (RFC 9114 section 4.2).
    let other_coding = headers.get(TE).is_some_and(|te| te != "trailers");
    if foreign || other_coding {
        return None;
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return Some(None);
    };
    // At most one of two different lengths can be true (RFC 9110 section 8.6).
    if lengths.any(|other| other != length) {
        return None;
    }
    length.to_str().ok()?.parse().ok().map(Some)
}

/// The body of a request.
struct H3RequestBody {
    stream: RequestStream<H3RecvStream, Bytes>,
    /// The bytes that have not arrived yet, if the request declares a length.
    left: Option<u64>,
}

impl H3RequestBody {
    /// Counts bytes that arrived; 0 means the end.
    fn count(&mut self, bytes: u64) -> std::io::Result<()> {
        let Some(left) = &mut self.left else {
            return Ok(());
        };
        // A body whose length differs from the declared one makes the request malformed (RFC 9114 section 4.1.2).
        let matches = if bytes == 0 {
            *left == 0
        } else {
            bytes <= *left
        };
        if !matches {
            let why = "the body is not as long as content-length says";
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
        }
        *left -= bytes;
        Ok(())
    }
}

impl http_body::Body for H3RequestBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let data = ready!(self.stream.poll_recv_data(cx));
        Poll::Ready(match data {
            Ok(Some(mut data)) => {
                let bytes = data.copy_to_bytes(data.remaining());
                // An empty frame must not count as the end.
                let counted = match bytes.len() as u64 {
                    0 => Ok(()),
                    more => self.count(more),
                };
                Some(counted.map(|()| Frame::data(bytes)))
            }
            Ok(None) => self.count(0).err().map(Err),
            Err(error) => Some(Err(std::io::Error::other(error))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_close_code_is_one_of_theirs() {
        for code in CloseCode::ALL {
            assert!((0x100..=0x110).contains(&number(code)), "{code}");
        }
    }
}
