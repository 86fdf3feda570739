//! Frames in whatever pieces they come, and sessions over a pipe and through hyper.

use std::sync::Mutex;
use std::time::Duration;

use alknet_call::limits::{FRAME_BYTES_DEFAULT, FRAME_BYTES_UNAUTHENTICATED, Patience};
use alknet_call::{HandlerKind, OperationSpec, Output, Registration, Registry};
use alknet_core::{Carriage, Identity, IdentityKind, IdentityProvider, PeerKey, memory_pair};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;

use super::frame::{BINARY, CLOSE, Fault, Got, PING, PONG, Reader, TEXT, unmask};
use super::limits::{FRAGMENTS_MAX, FRAME_SENT_BYTES};
use super::out::Out;
use super::*;

const MASK: [u8; 4] = [0x12, 0xf4, 0x56, 0x78];
const TOKEN: &str = "alk_abcdefgh_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A client's frame.
fn frame(opcode: u8, is_last: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![opcode | if is_last { 0x80 } else { 0 }];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    let at = out.len();
    out.extend_from_slice(payload);
    unmask(&mut out[at..], MASK, 0);
    out
}

/// A head that announces more than follows.
fn announcing(opcode: u8, len: u64) -> Vec<u8> {
    let mut out = vec![0x80 | opcode, 0x80 | 127];
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&MASK);
    out
}

fn prefixed(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes()[..], payload].concat()
}

/// Everything in `pieces`: data joined, the rest one by one.
fn read(pieces: &[&[u8]], most: usize) -> (Vec<u8>, Vec<Got>, Option<Fault>) {
    let mut reader = Reader::default();
    let (mut data, mut rest) = (Vec::new(), Vec::new());
    for piece in pieces {
        reader.buffer.extend_from_slice(piece);
        loop {
            match reader.next(most) {
                Ok(Some(Got::Data(bytes))) => data.extend_from_slice(&bytes),
                Ok(Some(got)) => rest.push(got),
                Ok(None) => break,
                Err(fault) => return (data, rest, Some(fault)),
            }
        }
    }
    (data, rest, None)
}

fn code_of(bytes: &[u8]) -> Option<u16> {
    read(&[bytes], 1000).2.map(|fault| fault.code)
}

#[test]
fn what_is_against_the_rules_has_its_code() {
    let plain = frame(BINARY, true, b"{}");
    let change = |at: usize, bits: u8| {
        let mut bytes = plain.clone();
        bytes[at] ^= bits;
        bytes
    };
    for (what, bytes, code) in [
        ("fine", plain.clone(), None),
        ("a reserved bit", change(0, 0x40), Some(1002)),
        ("not masked", change(1, 0x80), Some(1002)),
        ("an opcode nobody has", frame(3, true, b""), Some(1002)),
        ("a long ping", frame(PING, true, &[0; 126]), Some(1002)),
        ("a ping in pieces", frame(PING, false, b""), Some(1002)),
        ("continues nothing", frame(0, true, b""), Some(1002)),
        (
            "a message within another",
            [frame(BINARY, false, b"a"), frame(BINARY, true, b"b")].concat(),
            Some(1002),
        ),
        (
            "a long length",
            [&[0x82, 0xfe, 0, 5][..], &MASK].concat(),
            Some(1002),
        ),
        ("a longer length", announcing(BINARY, 65_535), Some(1002)),
        (
            "a negative length",
            announcing(BINARY, u64::MAX),
            Some(1002),
        ),
        ("a giant", announcing(BINARY, u64::MAX >> 1), Some(1009)),
        (
            "over the limit",
            frame(BINARY, true, &[0; 1001]),
            Some(1009),
        ),
        ("at the limit", frame(BINARY, true, &[0; 1000]), None),
        (
            "over the limit in pieces",
            [frame(BINARY, false, &[0; 600]), frame(0, true, &[0; 401])].concat(),
            Some(1009),
        ),
        ("text that is none", frame(TEXT, true, b"\xff"), Some(1007)),
        ("half a code", frame(CLOSE, true, b"\x03"), Some(1002)),
        (
            "a code nobody sends",
            frame(CLOSE, true, &1005u16.to_be_bytes()),
            Some(1002),
        ),
        (
            "a reason that is no text",
            frame(CLOSE, true, b"\x03\xe8\xff"),
            Some(1007),
        ),
    ] {
        assert_eq!(code_of(&bytes), code, "{what}");
    }
    let crumbs = |n: u32| {
        let mut bytes = frame(BINARY, false, b"");
        (1..n).for_each(|_| bytes.extend(frame(0, false, b"")));
        bytes
    };
    assert_eq!(code_of(&crumbs(FRAGMENTS_MAX)), None);
    assert_eq!(code_of(&crumbs(FRAGMENTS_MAX + 1)), Some(1009));
}

#[test]
fn a_head_costs_nothing_until_bytes_arrive() {
    let mut reader = Reader::default();
    reader
        .buffer
        .extend_from_slice(&announcing(BINARY, 1 << 20));
    let got = reader.next(1 << 20).expect("within the limit");
    assert_eq!(got, Some(Got::Data(Bytes::from_static(&[0, 0x10, 0, 0]))));
    assert_eq!(reader.next(1 << 20), Ok(None));
    assert!(reader.buffer.is_empty() && !reader.is_partial());
    assert_eq!(reader.missing(), 1 << 20);
}

proptest! {
    #[test]
    fn every_split_reads_alike(
        messages in prop::collection::vec(
            (prop::collection::vec("[a-z{}\"]{0,40}", 1..4), any::<bool>(), any::<bool>()), 1..5),
        cut in 1usize..200,
        step in 1usize..9,
    ) {
        let (mut bytes, mut expected, mut pings) = (Vec::new(), Vec::new(), 0);
        for (pieces, text, ping) in &messages {
            for (n, piece) in pieces.iter().enumerate() {
                let opcode = match (n, text) { (0, true) => TEXT, (0, false) => BINARY, _ => 0 };
                bytes.extend(frame(opcode, n + 1 == pieces.len(), piece.as_bytes()));
                if *ping {
                    bytes.extend(frame(PING, true, b"?"));
                    pings += 1;
                }
            }
            expected.extend(prefixed(pieces.concat().as_bytes()));
        }
        let whole = read(&[&bytes], 1000);
        prop_assert_eq!(&whole.0, &expected);
        prop_assert_eq!(whole.1.len(), pings);
        prop_assert_eq!(whole.2, None);
        let (head, tail) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(&read(&[head, tail], 1000), &whole);
        let steps: Vec<_> = bytes.chunks(step).collect();
        prop_assert_eq!(&read(&steps, 1000), &whole);
    }

    #[test]
    fn any_bytes_end_in_frames_or_a_fault(bytes: Vec<u8>) {
        read(&[&bytes], 1000);
    }

    #[test]
    fn what_is_written_comes_out_whole(
        sizes in prop::collection::vec(1usize..200_000, 1..4),
        step in 1usize..70_000,
        text in any::<bool>(),
    ) {
        let bodies: Vec<Vec<u8>> = sizes.iter().map(|n| vec![b'{'; *n]).collect();
        let stream: Vec<u8> = bodies.iter().flat_map(|body| prefixed(body)).collect();
        let mut out = Out::default();
        out.text = text;
        let mut wire = Vec::new();
        for piece in stream.chunks(step) {
            let mut chunk = Bytes::copy_from_slice(piece);
            while !chunk.is_empty() {
                out.take(&mut chunk);
                out.ping();
                let ready = out.ready().to_vec();
                out.wrote(ready.len());
                wire.extend(ready);
            }
        }
        out.close(1000, "the end");
        wire.extend_from_slice(out.ready());
        let mut messages = Vec::new();
        let mut open = Vec::new();
        let (mut rest, mut closed) = (&wire[..], false);
        while !rest.is_empty() {
            let (opcode, is_last, payload, after) = split(rest);
            match opcode {
                PING => {}
                CLOSE => closed = true,
                _ => {
                    prop_assert_eq!(opcode == 0, !open.is_empty());
                    prop_assert!(opcode == 0 || (opcode == TEXT) == text);
                    prop_assert!(payload.len() <= FRAME_SENT_BYTES);
                    open.extend_from_slice(payload);
                    if is_last {
                        messages.push(std::mem::take(&mut open));
                    }
                }
            }
            rest = after;
        }
        prop_assert!(closed);
        prop_assert_eq!(messages, bodies);
    }
}

/// A server's frame at the front.
fn split(bytes: &[u8]) -> (u8, bool, &[u8], &[u8]) {
    let (len, at) = match bytes[1] {
        126 => (usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), 4),
        127 => {
            let len = bytes[2..10].try_into().expect("eight bytes");
            (u64::from_be_bytes(len) as usize, 10)
        }
        short => (usize::from(short), 2),
    };
    let (payload, rest) = bytes[at..].split_at(len);
    (bytes[0] & 15, bytes[0] & 0x80 != 0, payload, rest)
}

// Sessions.

/// Knows one token, as long as it is not taken away or over.
struct OneToken {
    valid: Mutex<bool>,
    ends_in: Option<Duration>,
    changes: watch::Sender<u64>,
}

impl OneToken {
    fn new(ends_in: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            valid: Mutex::new(true),
            ends_in,
            changes: watch::Sender::new(0),
        })
    }

    fn invalidate(&self) {
        *self.valid.lock().expect("nobody panics") = false;
    }

    fn revoke(&self) {
        self.invalidate();
        self.changes.send_modify(|n| *n += 1);
    }
}

impl IdentityProvider for OneToken {
    fn by_key(&self, _key: &PeerKey) -> Option<Arc<Identity>> {
        None
    }

    fn by_token(&self, token: &AuthToken) -> Option<Arc<Identity>> {
        let valid = *self.valid.lock().expect("nobody panics");
        let known = valid && token.expose() == TOKEN;
        known.then(|| {
            Arc::new(Identity {
                id: "somebody".parse().expect("a peer id"),
                // As that of a token bound to a peer.
                kind: IdentityKind::Peer,
                scopes: ["demo"].into_iter().collect(),
                resources: Default::default(),
                generation: 1,
            })
        })
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn token_ends_in(&self, _token: &AuthToken) -> Option<Duration> {
        self.ends_in
    }
}

fn dispatcher(tokens: &Arc<OneToken>) -> Arc<Dispatcher> {
    patient_dispatcher(tokens, Patience::default())
}

fn patient_dispatcher(tokens: &Arc<OneToken>, patience: Patience) -> Arc<Dispatcher> {
    let open = |name: &str, handler| {
        let spec = OperationSpec::query(name, "For tests.");
        Registration::new(spec, handler).open()
    };
    let echo = HandlerKind::once(|input, _| async move { Ok(Output::from(input)) });
    let who = HandlerKind::once(|_, ctx| async move {
        let who = ctx.identity().map(|who| who.id.as_str().to_owned());
        Ok::<_, alknet_call::CallError>(json!(who))
    });
    let back = HandlerKind::once(|input, ctx| async move {
        let answer = ctx.caller().call("ui/notify", input.value()).await?;
        Ok(answer.value().clone())
    });
    let hang =
        HandlerKind::once(|_, _| std::future::pending::<Result<Value, alknet_call::CallError>>());
    let mut secret = OperationSpec::query("demo/secret", "For tests.");
    secret.access_control.required_scopes = vec!["demo".to_owned()];
    let registry = Registry::builder()
        .with(open("demo/echo", echo))
        .with(open("demo/who", who))
        .with(open("demo/back", back))
        .with(open("demo/hang", hang))
        .with(Registration::new(
            secret,
            HandlerKind::once(|_, _| async { Ok::<_, alknet_call::CallError>(json!("secret")) }),
        ))
        .build()
        .expect("correct operations");
    let dispatcher = Dispatcher::new(registry).with_identities(Arc::clone(tokens) as _);
    Arc::new(dispatcher.with_patience(patience))
}

/// One client and the session it has.
struct Client {
    io: DuplexStream,
    buffer: BytesMut,
}

fn visitor(token: Option<&str>) -> Visitor {
    let (_, carrier) = memory_pair(b"http/1.1");
    let auth = AuthContext {
        identity: None,
        key: None,
        alpn: b"http/1.1"[..].into(),
        sni: None,
        remote_addr: None,
        carriage: Carriage::Tcp,
        early_data: false,
    };
    Visitor {
        carrier,
        auth,
        token: token.map(|token| Arc::new(AuthToken::new(token.to_owned()))),
    }
}

impl Client {
    fn start(tokens: &Arc<OneToken>, token: Option<&str>) -> Self {
        Self::start_with(tokens, token, Patience::default(), Pace::default())
    }

    fn start_with(
        tokens: &Arc<OneToken>,
        token: Option<&str>,
        patience: Patience,
        pace: Pace,
    ) -> Self {
        let (io, theirs) = duplex(256 << 10);
        let dispatcher = patient_dispatcher(tokens, patience);
        tokio::spawn(serve(theirs, visitor(token), dispatcher, pace));
        Self {
            io,
            buffer: BytesMut::new(),
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.expect("the node reads");
    }

    async fn request(&mut self, id: &str, operation: &str, input: &Value) {
        let event = json!({
            "type": "call.requested", "id": id,
            "payload": { "operationId": operation, "input": input },
        });
        self.send(&frame(BINARY, true, event.to_string().as_bytes()))
            .await;
    }

    /// The next frame but pings.
    async fn next(&mut self) -> (u8, Vec<u8>) {
        loop {
            let need = match &self.buffer[..] {
                [_, 126, a, b, ..] => 4 + usize::from(u16::from_be_bytes([*a, *b])),
                [_, 127, len @ ..] if len.len() >= 8 => {
                    let len = len[..8].try_into().expect("eight bytes");
                    10 + u64::from_be_bytes(len) as usize
                }
                [_, short, ..] if *short < 126 => 2 + usize::from(*short),
                _ => usize::MAX,
            };
            if self.buffer.len() >= need {
                let bytes = self.buffer.split_to(need);
                let (opcode, _, payload, _) = split(&bytes);
                if opcode == PING {
                    continue;
                }
                return (opcode, payload.to_vec());
            }
            let read = self.io.read_buf(&mut self.buffer).await.expect("a pipe");
            assert_ne!(read, 0, "it ended without a goodbye");
        }
    }

    async fn event(&mut self) -> Value {
        let (opcode, payload) = self.next().await;
        assert!(opcode != CLOSE, "{:?}", String::from_utf8_lossy(&payload));
        serde_json::from_slice(&payload).expect("an event")
    }

    async fn output(&mut self, operation: &str, input: &Value) -> Value {
        self.request("1", operation, input).await;
        self.event().await["payload"]["output"].clone()
    }

    async fn closed(&mut self) -> u16 {
        let (opcode, payload) = self.next().await;
        assert_eq!(opcode, CLOSE, "{:?}", String::from_utf8_lossy(&payload));
        u16::from_be_bytes([payload[0], payload[1]])
    }
}

#[tokio::test]
async fn calls_go_both_ways_and_answers_come_in_the_clients_kind() {
    let tokens = OneToken::new(None);
    let mut client = Client::start(&tokens, None);
    assert_eq!(client.output("/demo/who", &Value::Null).await, Value::Null);
    client.request("2", "/demo/back", &json!("hello")).await;
    let asked = client.event().await;
    assert_eq!(asked["payload"]["operationId"], "/ui/notify", "{asked}");
    let answer = json!({
        "type": "call.responded", "id": asked["id"], "payload": { "output": "seen" },
    });
    client
        .send(&frame(BINARY, true, answer.to_string().as_bytes()))
        .await;
    assert_eq!(client.event().await["payload"]["output"], "seen");
    // What is long comes in pieces, each of them with room for a ping behind it.
    let mut client = Client::start(&tokens, None);
    let event =
        r#"{"type":"call.requested","id":"1","payload":{"operationId":"demo/echo","input":1}}"#;
    let (head, tail) = event.as_bytes().split_at(30);
    client.send(&frame(TEXT, false, head)).await;
    client.send(&frame(PING, true, b"alive?")).await;
    assert_eq!(client.next().await, (PONG, b"alive?".to_vec()));
    client.send(&frame(0, true, tail)).await;
    assert_eq!(client.next().await.0, TEXT);
    client
        .send(&frame(CLOSE, true, &1000u16.to_be_bytes()))
        .await;
    assert_eq!(client.closed().await, 1000);
}

#[tokio::test]
async fn a_token_makes_somebody_who_is_no_peer() {
    let tokens = OneToken::new(None);
    let mut client = Client::start(&tokens, Some(TOKEN));
    assert_eq!(client.output("demo/who", &Value::Null).await, "somebody");
    assert_eq!(client.output("demo/secret", &Value::Null).await, "secret");
    let twice = client
        .output("session/authenticate", &json!({ "token": TOKEN }))
        .await;
    assert_eq!(twice, Value::Null);
    let long = "x".repeat(FRAME_BYTES_DEFAULT / 2);
    client.request("2", "demo/echo", &json!(long)).await;
    let mut whole = Vec::new();
    while !whole.ends_with(b"}}") {
        whole.extend(client.next().await.1);
    }
    client
        .send(&announcing(BINARY, FRAME_BYTES_DEFAULT as u64 + 1))
        .await;
    assert_eq!(client.closed().await, 1009);
}

#[tokio::test]
async fn strangers_have_shorter_messages_until_they_say_who_they_are() {
    let tokens = OneToken::new(None);
    let long = FRAME_BYTES_UNAUTHENTICATED as u64 + 1;
    let mut client = Client::start(&tokens, None);
    client.send(&announcing(BINARY, long)).await;
    assert_eq!(client.closed().await, 1009);
    let mut client = Client::start(&tokens, None);
    let who = client
        .output("session/authenticate", &json!({ "token": TOKEN }))
        .await;
    assert_eq!(who["id"], "somebody");
    let text = "x".repeat(FRAME_BYTES_UNAUTHENTICATED);
    client.request("2", "demo/echo", &json!(text)).await;
    assert_ne!(client.next().await.0, CLOSE);
}

#[tokio::test]
async fn a_revoked_token_ends_the_session_at_once() {
    let tokens = OneToken::new(None);
    for by_header in [true, false] {
        *tokens.valid.lock().expect("nobody panics") = true;
        let mut client = Client::start(&tokens, by_header.then_some(TOKEN));
        if !by_header {
            client
                .output("session/authenticate", &json!({ "token": TOKEN }))
                .await;
        }
        assert_eq!(client.output("demo/who", &Value::Null).await, "somebody");
        tokens.revoke();
        assert_eq!(client.closed().await, 4403);
    }
    let mut late = Client::start(&tokens, Some(TOKEN));
    assert_eq!(late.closed().await, 4403);
}

#[tokio::test]
async fn an_expired_token_ends_the_session_when_it_does() {
    let tokens = OneToken::new(Some(Duration::from_secs(1)));
    let mut client = Client::start(&tokens, Some(TOKEN));
    assert_eq!(client.output("demo/who", &Value::Null).await, "somebody");
    tokens.invalidate();
    assert_eq!(client.closed().await, 4401);
}

#[tokio::test]
async fn whoever_is_silent_slow_or_nobody_is_let_go() {
    const MOMENT: Duration = Duration::from_millis(50);
    let tokens = OneToken::new(None);
    let patience = Patience {
        guest_login: MOMENT,
        partial_frame: MOMENT,
        ..Patience::default()
    };
    // Nobody, and asks nothing.
    let mut client = Client::start_with(&tokens, None, patience, Pace::default());
    assert_eq!(client.closed().await, 4408);
    // A stranger whose call runs stays as long as that.
    let mut client = Client::start_with(&tokens, None, patience, Pace::default());
    let event = json!({
        "type": "call.requested", "id": "1",
        "payload": { "operationId": "demo/hang", "timeout_ms": 4 * MOMENT.as_millis() as u64 },
    });
    client
        .send(&frame(BINARY, true, event.to_string().as_bytes()))
        .await;
    assert_eq!(client.event().await["payload"]["code"], "TIMEOUT");
    assert_eq!(client.closed().await, 4408);
    // Somebody who answers no ping.
    let silent = Pace {
        ping_every: MOMENT,
        ..Pace::default()
    };
    let mut client = Client::start_with(&tokens, Some(TOKEN), patience, silent);
    assert_eq!(client.closed().await, 4408);
    // A message that begins and does not end, in each of its forms.
    let slow = Pace {
        partial: MOMENT,
        ..Pace::default()
    };
    for bytes in [
        &announcing(BINARY, 70_000)[..],
        &frame(BINARY, false, b"{"),
        &[0x82],
        &[0x89, 0x81, 1, 2, 3, 4],
    ] {
        let mut client = Client::start_with(&tokens, Some(TOKEN), patience, slow);
        client.send(bytes).await;
        assert_eq!(client.closed().await, 4408, "{bytes:?}");
    }
}

#[tokio::test]
async fn broken_messages_end_in_1002() {
    let tokens = OneToken::new(None);
    for message in ["", "hello", "[]", "{}", r#"{"type":"x","id":"~1"}"#] {
        let mut client = Client::start(&tokens, Some(TOKEN));
        client.send(&frame(BINARY, true, message.as_bytes())).await;
        if message.contains('~') {
            let event = message.replace("\"x\"", "\"call.requested\"");
            client.send(&frame(BINARY, true, event.as_bytes())).await;
        }
        assert_eq!(client.closed().await, 1002, "{message}");
    }
}

/// Answers that nobody reads end the session before they fill the node.
#[tokio::test]
async fn a_reader_that_never_reads_is_let_go() {
    let tokens = OneToken::new(None);
    let mut client = Client::start(&tokens, Some(TOKEN));
    let text = json!("x".repeat(FRAME_BYTES_DEFAULT - 1000));
    for n in 0..12 {
        let event = json!({
            "type": "call.requested", "id": n.to_string(),
            "payload": { "operationId": "demo/echo", "input": text },
        });
        let bytes = frame(BINARY, true, event.to_string().as_bytes());
        // The node may have stopped reading by now.
        if client.io.write_all(&bytes).await.is_err() {
            break;
        }
    }
    let mut rest = Vec::new();
    client.io.read_to_end(&mut rest).await.expect("a pipe");
    assert!(rest.len() < 6 * FRAME_BYTES_DEFAULT, "{} bytes", rest.len());
}

// Handshakes.

fn request(headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::get("https://node.example/alknet/call");
    let standard = [
        ("host", "node.example"),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for (name, value) in standard {
        if !headers.iter().any(|(other, _)| *other == name) {
            request = request.header(name, value);
        }
    }
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        request = request.header(*name, *value);
    }
    request.body(()).expect("correct headers")
}

#[test]
fn handshakes_are_checked() {
    let origins = ["https://app.example:8443".to_owned()];
    let status = |headers: &[(&str, &str)]| {
        let checked = handshake::check(&request(headers), &origins);
        checked.map_or_else(|error| error.status.as_u16(), |_| 101)
    };
    for (headers, expected) in [
        (&[][..], 101),
        (&[("sec-websocket-protocol", "alknet.call")], 101),
        (
            &[("sec-websocket-protocol", "alknet.bearer.x, alknet.call")],
            101,
        ),
        (&[("sec-websocket-protocol", "chat")], 400),
        (&[("sec-websocket-version", "8")], 426),
        (&[("sec-websocket-version", "")], 426),
        (&[("upgrade", "h2c")], 426),
        (&[("connection", "close")], 426),
        (&[("sec-websocket-key", "short")], 400),
        (&[("sec-websocket-key", "")], 400),
        (&[("origin", "https://node.example")], 101),
        (&[("origin", "https://NODE.example:443")], 101),
        (&[("origin", "https://app.example:8443")], 101),
        (&[("origin", "https://app.example")], 403),
        (&[("origin", "http://node.example")], 403),
        (&[("origin", "https://node.example.evil")], 403),
        (&[("origin", "null")], 403),
    ] {
        assert_eq!(status(headers), expected, "{headers:?}");
    }
    // The example of RFC 6455 section 1.3.
    let accepted = handshake::check(&request(&[("sec-websocket-protocol", "alknet.call")]), &[]);
    let response = accepted.expect("a correct handshake").response(());
    let headers = response.headers();
    assert_eq!(
        headers["sec-websocket-accept"],
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    );
    assert_eq!(headers["sec-websocket-protocol"], "alknet.call");
}

#[test]
fn the_token_is_found_in_the_list_and_nowhere_else() {
    let found = |list: &[(&str, &str)]| {
        let request = request(list);
        bearer(request.headers())
            .map(|token| token.map(str::to_owned))
            .ok()
    };
    let name = "sec-websocket-protocol";
    assert_eq!(found(&[]), Some(None));
    assert_eq!(found(&[(name, "alknet.call")]), Some(None));
    let list = format!("alknet.call, alknet.bearer.{TOKEN}");
    assert_eq!(found(&[(name, &list)]), Some(Some(TOKEN.to_owned())));
    assert_eq!(found(&[(name, &list), (name, "alknet.bearer.x")]), None);
}

#[tokio::test]
async fn hyper_upgrades_both_versions() {
    let tokens = OneToken::new(None);
    for h2 in [false, true] {
        let (ours, theirs) = duplex(64 << 10);
        let dispatcher = dispatcher(&tokens);
        let service =
            hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
                let dispatcher = Arc::clone(&dispatcher);
                async move {
                    let token = bearer(request.headers())
                        .expect("one at most")
                        .map(str::to_owned);
                    let who = visitor(token.as_deref());
                    let body = String::new();
                    respond(&mut request, who, &dispatcher, &[], (), body)
                }
            });
        let io = TokioIo::new(theirs);
        tokio::spawn(async move {
            if h2 {
                let mut builder =
                    hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                builder
                    .enable_connect_protocol()
                    .serve_connection(io, service)
                    .await
            } else {
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .with_upgrades()
                    .await
            }
        });
        let protocols = format!("alknet.call, alknet.bearer.{TOKEN}");
        let request = Request::builder()
            .uri("https://node.example/alknet/call")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", &protocols);
        let io = TokioIo::new(ours);
        let response = if h2 {
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut sender, driver) = hyper::client::conn::http2::handshake(executor, io)
                .await
                .expect("it speaks HTTP/2");
            tokio::spawn(driver);
            let request = request
                .method("CONNECT")
                .extension(hyper::ext::Protocol::from_static("websocket"))
                .body(String::new());
            // The server says in its settings that it takes these.
            sender.ready().await.expect("it is connected");
            let response = sender.send_request(request.expect("correct headers")).await;
            let response = response.expect("an answer");
            assert_eq!(response.status(), 200);
            response
        } else {
            let (mut sender, driver) = hyper::client::conn::http1::handshake(io)
                .await
                .expect("it speaks HTTP/1.1");
            tokio::spawn(driver.with_upgrades());
            let request = request
                .header("host", "node.example")
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                .body(String::new());
            let response = sender.send_request(request.expect("correct headers")).await;
            let response = response.expect("an answer");
            assert_eq!(response.status(), 101);
            response
        };
        assert_eq!(response.headers()["sec-websocket-protocol"], "alknet.call");
        let upgraded = hyper::upgrade::on(response).await.expect("a WebSocket");
        let mut io = TokioIo::new(upgraded);
        let event = r#"{"type":"call.requested","id":"1","payload":{"operationId":"demo/who"}}"#;
        io.write_all(&frame(BINARY, true, event.as_bytes()))
            .await
            .expect("it reads");
        let mut bytes = BytesMut::new();
        while !String::from_utf8_lossy(&bytes).contains("somebody") {
            assert_ne!(io.read_buf(&mut bytes).await.expect("it is there"), 0);
        }
    }
}
