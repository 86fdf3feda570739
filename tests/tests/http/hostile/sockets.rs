//! WebSockets in connections of HTTP/2: messages that do not end, and answers that nobody reads, pongs among them.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::ALPN;
use alknet_core::{Carriage, Connection};
use alknet_endpoint::Dialer;
use alknet_test_support::deadline;
use alknet_tests::raw::within;
use alknet_tests::{Bench, Web, wire};
use alknet_tls::NodeKey;
use bytes::Bytes;
use hyper::Request;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinSet, block_in_place};

use super::{GROWTH_BYTES, forget_peak, peak, resident, share};

/// WebSockets that one connection carries.
const SOCKETS: usize = 16;

/// Bytes of the longest message of somebody known.
const MESSAGE_BYTES: usize = 1 << 20;

/// What one WebSocket and its part of the connection may cost beside what it has yet to take or to end: what it counts
/// for nobody, a frame on its way out, and its state.
const SOCKET_BYTES: u64 = 64 << 10;

/// How long nothing happens that is believed to have come to its end.
const QUIET: Duration = Duration::from_millis(500);

/// Kinds of frames (RFC 6455 section 5.2).
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Lets one client do much at once: what is attacked here is something else.
const FAST: &str = "[http]\nrequests_per_second = 10000\nrequests_burst = 10000\n\
                    stranger_requests_per_second = 10000\n";

type Socket = TokioIo<Upgraded>;

/// A connection of HTTP/2.
struct Carrier {
    requests: SendRequest<String>,
    _connection: Connection,
}

impl Carrier {
    /// Each of its streams takes so many bytes, and no more before they are read.
    async fn open(web: &Web, window: u32) -> Self {
        let dialer = Dialer::new(Some(NodeKey::generate().expect("the system has entropy")));
        let connection = dialer.dial_over(Carriage::Tcp, &web.target(), b"h2").await;
        let connection = connection.expect("anybody may connect");
        let (send, recv) = connection.accept_bi().await.expect("one stream");
        let io = TokioIo::new(tokio::io::join(recv, send));
        let mut builder = Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(window);
        let (mut requests, driver) = builder.handshake(io).await.expect("it speaks HTTP/2");
        tokio::spawn(driver);
        // The node says in its settings that it takes WebSockets.
        within(requests.ready()).await.expect("it is connected");
        Self {
            requests,
            _connection: connection,
        }
    }

    /// A WebSocket of whoever has the token (RFC 8441).
    async fn socket(&mut self, token: Option<&str>) -> Socket {
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

/// The head of a client's frame, with a mask that changes nothing.
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

/// A message of text.
fn message(text: &str) -> Vec<u8> {
    [&head(TEXT, true, text.len())[..], text.as_bytes()].concat()
}

fn request(id: usize, operation: &str, input: &Value) -> String {
    let payload = json!({ "operationId": format!("/{operation}"), "input": input });
    json!({ "type": "call.requested", "id": id.to_string(), "payload": payload }).to_string()
}

/// A message of 1 MiB but for its last byte, whole or in pieces.
fn almost(in_pieces: bool) -> Bytes {
    const PIECE_BYTES: usize = 64 << 10;
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

/// The code that a WebSocket is closed with; `None` where it goes on for so long.
async fn closed(socket: &mut Socket, patience: Duration) -> Option<u16> {
    let mut heard = Vec::new();
    let hear = async {
        loop {
            // Nothing but its end is said to a client that never ended a message, and pings, which are empty.
            match *heard.as_slice() {
                [first, len, ref rest @ ..] if rest.len() >= len as usize => {
                    if first & 0xf == CLOSE {
                        return u16::from_be_bytes([rest[0], rest[1]]);
                    }
                    heard.drain(..2 + len as usize);
                    continue;
                }
                _ => {}
            }
            let read = socket.read_buf(&mut heard).await.expect("it says why");
            assert_ne!(read, 0, "it ended without a goodbye");
        }
    };
    tokio::time::timeout(patience, hear).await.ok()
}

/// With a token of the least scope; text is not passed on in another way than what is binary, and pieces are counted.
#[tokio::test(flavor = "multi_thread")]
async fn messages_without_their_ends_are_counted_together() {
    // Twice as many as the token's identity has room for.
    let connections = (2 * share() as usize / MESSAGE_BYTES / SOCKETS).max(4);
    let bench = Bench::new();
    let web = Web::start(&bench, FAST);
    let (before, forms) = (resident(&web), [false, true].map(almost));
    forget_peak(&web);
    let mut all = JoinSet::new();
    let mut carriers = Vec::new();
    for _ in 0..connections {
        let mut carrier = Carrier::open(&web, 64 << 10).await;
        for n in 0..SOCKETS {
            let mut socket = carrier.socket(Some(&web.reader)).await;
            let bytes = forms[n % 2].clone();
            all.spawn(async move {
                // It may be refused before it has said all.
                let _ = socket.write_all(&bytes).await;
                socket
            });
        }
        carriers.push(carrier);
    }
    let mut sockets = Vec::new();
    while let Some(socket) = within(all.join_next()).await {
        sockets.push(socket.expect("no panic"));
    }
    // Another identity has a call of 60,000 bytes answered, and one in pieces over a WebSocket.
    let long = json!({ "prefix": "x".repeat(60_000) });
    let listed = block_in_place(|| web.node.call("services/list", &long));
    assert!(listed["operations"].is_array(), "{listed}");
    let mut other = Carrier::open(&web, 64 << 10).await;
    let mut socket = other.socket(Some(&web.admin)).await;
    let asks = request(1, "services/list", &long);
    let (first, last) = asks.split_at(asks.len() / 2);
    for (opcode, is_last, piece) in [(TEXT, false, first), (CONTINUATION, true, last)] {
        let frame = [&head(opcode, is_last, piece.len())[..], piece.as_bytes()].concat();
        socket.write_all(&frame).await.expect("it is taken");
    }
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("call.responded") {
        let read = within(socket.read_buf(&mut heard)).await;
        assert_ne!(read.expect("it goes on"), 0);
    }
    let grown = peak(&web).saturating_sub(before);
    let mut refused = 0;
    for mut socket in sockets {
        match closed(&mut socket, deadline(Duration::from_millis(5))).await {
            Some(1013) => refused += 1,
            // It has room, or had it until it took too long.
            None | Some(4408) => {}
            Some(code) => panic!("closed with {code}"),
        }
    }
    drop(carriers);
    let count = connections * SOCKETS;
    println!(
        "figure {count} messages: {} KiB, {refused} refused",
        grown >> 10
    );
    let most = share() + count as u64 * SOCKET_BYTES + GROWTH_BYTES;
    assert!(grown <= most, "{grown} bytes for {count} messages");
    // As many as have no room.
    let room = share() as usize / MESSAGE_BYTES;
    assert!(refused >= count - room - SOCKETS, "{refused} of {count}");
}

/// What a client asks until the node takes no more: `count` times, and once what goes on for ever.
fn asks(count: usize) -> Bytes {
    let follow = message(&request(0, "services/watch", &Value::Null));
    let list = |id| message(&request(id, "services/list", &Value::Null));
    let all: Vec<u8> = follow
        .into_iter()
        .chain((1..=count).flat_map(list))
        .collect();
    all.into()
}

/// Resolves once the node does not grow any more.
async fn settled(web: &Web) {
    let mut before = 0;
    loop {
        // Nothing tells that the node keeps no more.
        tokio::time::sleep(deadline(QUIET)).await;
        let now = peak(web);
        if now == before {
            return;
        }
        before = now;
    }
}

/// By how much the node grows for so many connections full of WebSockets that read nothing.
async fn growth_unread(web: &Web, token: Option<&str>, connections: usize, each: usize) -> u64 {
    let before = resident(web);
    forget_peak(web);
    let asks = asks(each);
    let mut kept = Vec::new();
    let mut all = JoinSet::new();
    for _ in 0..connections {
        // Not a byte of an answer is taken.
        let mut carrier = Carrier::open(web, 0).await;
        for _ in 0..SOCKETS {
            let mut socket = carrier.socket(token).await;
            let asks = asks.clone();
            all.spawn(async move {
                // The node stops taking them.
                let _ = socket.write_all(&asks).await;
                std::future::pending::<()>().await;
            });
        }
        kept.push(carrier);
    }
    settled(web).await;
    // Another identity, over a connection of its own: a long answer.
    let listed = block_in_place(|| web.node.call("services/list", &Value::Null));
    assert!(listed["operations"].is_array(), "{listed}");
    peak(web).saturating_sub(before)
}

/// Without a token from one network, and with one of the least scope: each WebSocket follows what is open to everybody,
/// and asks for a list until the node takes no more.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_no_socket_reads_are_counted_together() {
    const UNKNOWN: usize = 40;
    const KNOWN: usize = 12;
    let bench = Bench::new();
    for (token, connections, each, room) in [
        // Of one network: a sixteenth of what the node has.
        (false, UNKNOWN, 400, share() / 8),
        (true, KNOWN, 800, share()),
    ] {
        // A node of its own: another one would keep what it took for the last.
        let web = Web::start(&bench, FAST);
        let reader = token.then_some(web.reader.as_str());
        let grown = growth_unread(&web, reader, connections, each).await;
        let sockets = (connections * SOCKETS) as u64;
        println!(
            "figure {sockets} WebSockets, token {token}: {} KiB",
            grown >> 10
        );
        let most = room + sockets * SOCKET_BYTES + GROWTH_BYTES;
        assert!(
            grown <= most,
            "{grown} bytes, token {token}: {most} are room"
        );
    }
}

/// One token on many connections of the call protocol, each of which alone may have 4 MiB unread, and as much again.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_no_connection_of_a_token_reads_are_counted_together() {
    const CONNECTIONS: usize = 48;
    /// Requests on each.
    const REQUESTS: usize = 20_000;
    let bench = Bench::new();
    let web = Web::start(&bench, FAST);
    let before = resident(&web);
    forget_peak(&web);
    let ask = |id: usize| wire::request(&id.to_string(), "services/list", &Value::Null);
    let asks = Bytes::from_iter((1..=REQUESTS).flat_map(ask));
    let dialer = Arc::new(Dialer::new(None));
    let mut all = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let connection = dialer.dial_over(Carriage::Tcp, &web.target(), ALPN).await;
        let connection = connection.expect("anybody may connect");
        let (mut send, mut recv) = wire::stream(&connection).await.expect("one stream");
        let token = wire::request("0", "session/authenticate", &json!({ "token": web.reader }));
        send.write_all(&token).await.expect("it is taken");
        let answer = within(wire::event(&mut recv)).await.expect("it goes on");
        assert_eq!(answer["type"], "call.responded", "{answer}");
        let asks = asks.clone();
        all.spawn(async move {
            // The node stops taking them.
            let _ = send.write_chunk(asks).await;
            std::future::pending::<()>().await;
            drop((recv, connection));
        });
    }
    settled(&web).await;
    let listed = block_in_place(|| web.node.call("services/list", &Value::Null));
    assert!(listed["operations"].is_array(), "{listed}");
    let grown = peak(&web).saturating_sub(before);
    println!("figure {CONNECTIONS} connections: {} KiB", grown >> 10);
    // Each has two records of TLS and a piece of what it asks besides.
    let most = share() + CONNECTIONS as u64 * (256 << 10) + GROWTH_BYTES;
    assert!(grown <= most, "{grown} bytes: {most} are room");
}

/// Without a token, and for as long as an unknown peer may stay: each ping is read by itself, and would be answered
/// behind the answers that the client has not taken.
#[tokio::test(flavor = "multi_thread")]
async fn pings_whose_answers_nobody_takes_are_not_kept() {
    const PINGS: u32 = 100_000;
    /// Bytes of what a ping carries (RFC 6455 section 5.5).
    const PAYLOAD_BYTES: usize = 125;
    /// What one connection may cost; the answers together would be 12 MiB.
    const MOST_BYTES: u64 = 8 << 20;
    let bench = Bench::new();
    let web = Web::start(&bench, FAST);
    let mut carrier = Carrier::open(&web, 8 << 10).await;
    let mut socket = carrier.socket(None).await;
    let follow = message(&request(0, "services/watch", &Value::Null));
    socket.write_all(&follow).await.expect("it is taken");
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("call.responded") {
        let read = within(socket.read_buf(&mut heard)).await;
        assert_ne!(read.expect("it goes on"), 0);
    }
    let before = resident(&web);
    forget_peak(&web);
    let payload = |n: u32| {
        let mut payload = n.to_be_bytes().to_vec();
        payload.resize(PAYLOAD_BYTES, b'x');
        payload
    };
    // Beside each ping a pong, which is not answered: the node's library of HTTP/2 ends a connection on which too many
    // frames of DATA below 256 bytes wait to be read, as they do on a busy machine.
    let beside = [&head(PONG, true, PAYLOAD_BYTES)[..], &[b'x'; PAYLOAD_BYTES]].concat();
    let pings = async {
        for n in 1..=PINGS {
            let ping = [&head(PING, true, PAYLOAD_BYTES)[..], &payload(n), &beside].concat();
            // Taken means read: the node grants room for as much as it has looked at.
            socket.write_all(&ping).await.expect("it is taken");
        }
    };
    within(pings).await;
    let grown = peak(&web).saturating_sub(before);
    println!("figure {PINGS} pings: {} KiB", grown >> 10);
    assert!(grown <= MOST_BYTES, "{grown} bytes for {PINGS} pings");
    is_answered_with(&mut socket, &payload(PINGS)).await;
}

/// A client that takes answers again has the one to the last ping.
async fn is_answered_with(socket: &mut Socket, payload: &[u8]) {
    let last = [&[PONG | 0x80, payload.len() as u8], payload].concat();
    let mut heard = Vec::new();
    while !heard.windows(last.len()).any(|bytes| bytes == last) {
        let read = within(socket.read_buf(&mut heard)).await;
        assert_ne!(read.expect("it goes on"), 0);
    }
}
