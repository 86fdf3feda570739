//! WebSockets in HTTP/2 connections (RFC 8441) by hand: endless messages, endless pings, and
//! answers that the client does not read.

use std::io;
use std::time::Duration;

use alknet_core::{Carriage, Connection};
use alknet_endpoint::Target;
use alknet_tls::NodeKey;
use bytes::Bytes;
use hyper::Request;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::dialer::patient_dialer;
use crate::raw::{H2, within};

/// Bytes of the longest message of a known peer.
pub const MESSAGE_BYTES: usize = 1 << 20;

/// Kinds of frames (RFC 6455 section 5.2).
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Bytes of a ping's payload, the maximum (RFC 6455 section 5.5).
const PAYLOAD_BYTES: usize = 125;

/// Bytes of each piece of a fragmented message.
const PIECE_BYTES: usize = 64 << 10;

/// The stream of one WebSocket.
pub type UpgradedSocket = TokioIo<Upgraded>;

/// A connection of HTTP/2.
#[derive(Debug)]
pub struct SocketCarrier {
    requests: SendRequest<String>,
    _connection: Connection,
}

impl SocketCarrier {
    /// Each of its streams accepts `window` bytes, and no more until the client has read them.
    ///
    /// # Panics
    /// The node has no connection slot left.
    pub async fn open(target: &Target, window: u32) -> Self {
        let dialer = patient_dialer(Some(NodeKey::generate().expect("the system has entropy")));
        let connection = dialer.dial_over(Carriage::Tcp, target, H2).await;
        let connection = connection.expect("every client may connect");
        let (send, recv) = connection.accept_bi().await.expect("one stream");
        let io = TokioIo::new(tokio::io::join(recv, send));
        let mut builder = Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(window);
        let (mut requests, driver) = builder.handshake(io).await.expect("it speaks HTTP/2");
        tokio::spawn(driver);
        // The node's settings say that it accepts WebSockets.
        within(requests.ready()).await.expect("it is connected");
        Self {
            requests,
            _connection: connection,
        }
    }

    /// Posts JSON with a token, and returns the status.
    ///
    /// # Panics
    /// The connection ended.
    pub async fn post(&mut self, token: &str, path: &str, call: &Value) -> u16 {
        let request = Request::post(format!("https://localhost{path}"))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            // For a subscription, the response is a ticket.
            .header("prefer", "respond-async")
            .body(call.to_string())
            .expect("correct headers");
        let answer = within(self.requests.send_request(request)).await;
        answer.expect("an answer").status().as_u16()
    }

    /// A WebSocket, with this token or as an unknown peer.
    ///
    /// # Panics
    /// The node refuses it.
    pub async fn socket(&mut self, token: Option<&str>) -> UpgradedSocket {
        let mut request = Request::builder()
            .method("CONNECT")
            .uri("https://localhost/alknet/call")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "alknet.call")
            .extension(Protocol::from_static("websocket"));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(String::new()).expect("correct headers");
        let response = within(self.requests.send_request(request)).await;
        let response = response.expect("an answer");
        assert_eq!(response.status(), 200);
        let upgraded = within(hyper::upgrade::on(response)).await;
        TokioIo::new(upgraded.expect("a WebSocket"))
    }
}

/// The head of a client's frame, with a zero mask.
fn head(opcode: u8, is_last: bool, len: usize) -> Vec<u8> {
    let mut head = vec![opcode | if is_last { 0x80 } else { 0 }, 0x80 | 127];
    head.extend((len as u64).to_be_bytes());
    match len {
        0..=125 => {
            head.truncate(1);
            head.push(0x80 | len as u8);
        }
        126..=0xffff => {
            head.truncate(1);
            head.push(0x80 | 126);
            head.extend((len as u16).to_be_bytes());
        }
        _ => {}
    }
    head.extend([0; 4]);
    head
}

/// A text message.
#[must_use]
pub fn message(text: &str) -> Vec<u8> {
    [&head(TEXT, true, text.len())[..], text.as_bytes()].concat()
}

/// The text of a message that calls an operation.
#[must_use]
pub fn request(id: usize, operation: &str, input: &Value) -> String {
    let payload = json!({ "operationId": format!("/{operation}"), "input": input });
    json!({ "type": "call.requested", "id": id.to_string(), "payload": payload }).to_string()
}

/// A message of [`MESSAGE_BYTES`] without its last byte, whole or in pieces.
#[must_use]
pub fn almost(in_pieces: bool) -> Bytes {
    let text = vec![b' '; MESSAGE_BYTES];
    let mut bytes = Vec::new();
    match in_pieces {
        false => {
            bytes.extend(head(TEXT, true, text.len()));
            bytes.extend(&text);
        }
        true => {
            for (n, piece) in text.chunks(PIECE_BYTES).enumerate() {
                let opcode = if n == 0 { TEXT } else { CONTINUATION };
                let is_last = (n + 1) * PIECE_BYTES == text.len();
                bytes.extend(head(opcode, is_last, piece.len()));
                bytes.extend(piece);
            }
        }
    }
    bytes.pop();
    bytes.into()
}

/// What a client sends until the node accepts no more: `count` times, and once for endless data.
#[must_use]
pub fn asks(count: usize) -> Bytes {
    let follow = message(&request(0, "services/watch", &Value::Null));
    let list = |id| message(&request(id, "services/list", &Value::Null));
    let all: Vec<u8> = follow
        .into_iter()
        .chain((1..=count).flat_map(list))
        .collect();
    all.into()
}

/// Sends a request in two pieces, and waits for the answer.
///
/// # Panics
/// The node does not answer it.
pub async fn is_answered_in_pieces(socket: &mut UpgradedSocket, request: &str) {
    let (first, last) = request.split_at(request.len() / 2);
    for (opcode, is_last, piece) in [(TEXT, false, first), (CONTINUATION, true, last)] {
        let frame = [&head(opcode, is_last, piece.len())[..], piece.as_bytes()].concat();
        socket.write_all(&frame).await.expect("it is taken");
    }
    hears(socket, b"call.responded").await;
}

/// Reads until `wanted` came.
///
/// # Panics
/// The WebSocket ends before.
pub async fn hears(socket: &mut UpgradedSocket, wanted: &[u8]) {
    let mut heard = Vec::new();
    while !heard.windows(wanted.len()).any(|bytes| bytes == wanted) {
        let read = within(socket.read_buf(&mut heard)).await;
        assert_ne!(read.expect("it goes on"), 0);
    }
}

/// The code that a WebSocket is closed with. `None` if it stays open for `patience`.
///
/// # Errors
/// It ends without a code.
pub async fn closed(socket: &mut UpgradedSocket, patience: Duration) -> io::Result<Option<u16>> {
    let mut heard = Vec::new();
    let hear = async {
        loop {
            // A client that never ended a message gets only the close frame, and empty pings.
            match *heard.as_slice() {
                [first, len, ref rest @ ..] if rest.len() >= len as usize => {
                    if first & 0xf == CLOSE {
                        return Ok(u16::from_be_bytes([rest[0], rest[1]]));
                    }
                    heard.drain(..2 + len as usize);
                    continue;
                }
                _ => {}
            }
            if socket.read_buf(&mut heard).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    };
    let ended = tokio::time::timeout(patience, hear).await;
    ended.ok().transpose()
}

/// Sends `count` pings, each of which the node reads separately, and reads no answers.
///
/// # Panics
/// The node does not accept them.
pub async fn pings(socket: &mut UpgradedSocket, count: u32) {
    // Beside each ping a pong, which is not answered. The node's HTTP/2 library ends a connection
    // if too many DATA frames below 256 bytes are waiting to be read, as happens on a busy machine.
    let beside = [&head(PONG, true, PAYLOAD_BYTES)[..], &[b'x'; PAYLOAD_BYTES]].concat();
    let pings = async {
        for n in 1..=count {
            let ping = [&head(PING, true, PAYLOAD_BYTES)[..], &payload(n), &beside].concat();
            // Accepted means read, because the node grants window only for what it has processed.
            socket.write_all(&ping).await.expect("it is taken");
        }
    };
    within(pings).await;
}

/// A client that reads answers again receives the one to ping number `n`.
///
/// # Panics
/// It does not come.
pub async fn hears_pong(socket: &mut UpgradedSocket, n: u32) {
    let pong = [&[PONG | 0x80, PAYLOAD_BYTES as u8][..], &payload(n)].concat();
    hears(socket, &pong).await;
}

/// Payload of ping number `n`.
fn payload(n: u32) -> Vec<u8> {
    let mut payload = n.to_be_bytes().to_vec();
    payload.resize(PAYLOAD_BYTES, b'x');
    payload
}
