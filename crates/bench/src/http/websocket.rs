//! A call over WebSocket, beside an echo by bare tokio-websockets, which reads the same event, finds the
//! same members and answers in the same form.
//!
//! What carries the WebSockets is the caller's to make: for both of them the same TLS, over the same
//! loopback.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_websockets::{ClientBuilder, Message, ServerBuilder, WebSocketStream};

use super::super::call::measure::failed;
use super::super::rows::{BenchRow, Goal, median};
use alknet_tasks::failure::Result;

/// Name of this benchmark in rows.
const BENCH: &str = "http";

/// What the peer is called in rows.
pub(super) const PEER: &str = "bare tokio-websockets echo";

/// What an event carries, in bytes.
const CARRIED_BYTES: usize = 64;

/// Promised: of calls and their answers on loopback, half take no longer, in microseconds.
/// docs/SPECIFICATION.md quotes it.
const P50_US: f64 = 150.0;

/// A client's end.
pub(super) type BenchWebSocket<S> = WebSocketStream<S>;

/// Begins a session with a node, or with the peer, which looks at no token.
pub(super) async fn open<S>(stream: S, authority: &str, token: &str) -> Result<BenchWebSocket<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let bearer = HeaderValue::from_str(&format!("Bearer {token}"));
    let protocol = HeaderName::from_static("sec-websocket-protocol");
    let builder = ClientBuilder::new()
        .uri(&format!("wss://{authority}/alknet/call"))
        .map_err(failed("naming the node"))?
        .add_header(AUTHORIZATION, bearer.map_err(failed("sending a token"))?)
        .map_err(failed("sending a token"))?
        .add_header(protocol, HeaderValue::from_static("alknet.call"))
        .map_err(failed("naming the subprotocol"))?;
    let opened = builder.connect_on(stream).await;
    Ok(opened.map_err(failed("opening a WebSocket"))?.0)
}

/// Answers every request with its input, as the peer.
pub(super) async fn echo<S>(stream: S) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let accepted = ServerBuilder::new().accept(stream).await;
    let (_, mut socket) = accepted.map_err(failed("taking a WebSocket"))?;
    while let Some(Ok(message)) = socket.next().await {
        // Pings are answered by the library.
        if !message.is_binary() {
            continue;
        }
        let event: WsCallEvent<'_> =
            serde_json::from_slice(message.as_payload()).map_err(failed("reading an event"))?;
        let input = event.payload.input.get();
        let answer = format!(
            r#"{{"type":"call.responded","id":"{}","payload":{{"output":{input}}}}}"#,
            event.id
        );
        let sent = socket.send(Message::binary(answer)).await;
        sent.map_err(failed("answering"))?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct WsCallEvent<'a> {
    id: &'a str,
    #[serde(borrow)]
    payload: WsCallPayload<'a>,
}

#[derive(Deserialize)]
struct WsCallPayload<'a> {
    #[serde(borrow)]
    input: &'a RawValue,
}

/// How long a call of `operation` takes, which answers with its input: the middle of those made within
/// `window`, one after the other, in microseconds.
pub(super) async fn round_trip<S>(
    socket: &mut BenchWebSocket<S>,
    operation: &str,
    window: Duration,
) -> Result<f64>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let carried = "x".repeat(CARRIED_BYTES);
    let mut took = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < window {
        let id = took.len();
        let event = format!(
            r#"{{"type":"call.requested","id":"{id}","payload":{{"operationId":"/{operation}","input":{{"data":"{carried}"}}}}}}"#
        );
        let at = Instant::now();
        let sent = socket.send(Message::binary(event)).await;
        sent.map_err(failed("sending a call"))?;
        loop {
            let message = socket.next().await;
            let message = message.ok_or_else(|| failed("calling")("the session ended"))?;
            let message = message.map_err(failed("reading an answer"))?;
            if message.is_binary() {
                // Searched and not parsed: the client is to cost little, and the same for both.
                let mut parts = message.as_payload().windows(CARRIED_BYTES);
                if !parts.any(|bytes| bytes == carried.as_bytes()) {
                    return Err(failed("calling")("the answer is another"));
                }
                break;
            }
        }
        took.push(at.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(took))
}

/// What was measured, ours first; each the middle of its rounds.
pub(super) fn row(ours_us: f64, peer_us: f64) -> BenchRow {
    BenchRow::lower(BENCH, "WebSocket: a call, 64 B", "us p50", ours_us)
        .beside(PEER, peer_us)
        .goal(Goal::Ours(P50_US))
}
