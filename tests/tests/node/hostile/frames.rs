//! Frames that are malformed, too long, truncated or corrupted.

use alknet_core::{Carriage, CloseReason, Connection};
use alknet_endpoint::EndpointDialer;
use alknet_tests::{TestBench, wire};
use alknet_tls::NodeKey;
use serde_json::{Value, json};

use super::{
    AttackedNode, AttackedStreamEnd, CARRIAGES, PROTOCOL, answers, count, key, key_of, send, within,
};

/// Frames that the node rejects from every peer, each with a word for the reason.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| wire::frame(text.as_bytes());
    let id =
        |id: &str| text(&json!({ "type": "call.requested", "id": id, "payload": {} }).to_string());
    let deep = format!(
        r#"{{"type":"x","id":"1","payload":{}1{}}}"#,
        "[".repeat(99),
        "]".repeat(99)
    );
    vec![
        ("an empty frame", vec![0; 4]),
        ("no JSON", text("hello")),
        ("no object", text("[]")),
        ("no type", text(r#"{"id":"1","payload":{}}"#)),
        ("no id", text(r#"{"type":"call.requested","payload":{}}"#)),
        (
            "a member twice",
            text(r#"{"type":"a","type":"b","id":"1","payload":{}}"#),
        ),
        (
            "no UTF-8",
            wire::frame(b"{\"type\":\"\xff\",\"id\":\"1\",\"payload\":{}}"),
        ),
        ("nested too deeply", text(&deep)),
        ("an empty id", id("")),
        ("a long id", id(&"i".repeat(65))),
        ("an id with a space", id("a b")),
        ("the other side's id", id("~1")),
        (
            "more envelope than frame",
            wire::frame(&[1, 0, 0, 0, 9, b'{', b'}']),
        ),
        (
            "an HTTP request",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        ),
        ("too long for every peer", u32::MAX.to_be_bytes().to_vec()),
    ]
}

/// Announced lengths that are refused at once, before any byte of the body.
fn over_long(limit: u32) -> Vec<u8> {
    (limit + 1).to_be_bytes().to_vec()
}

/// Sends each of them from a peer with this key, over both carriages.
async fn broken_frames_end_in_code_5(site: &AttackedNode<'_>, key: &NodeKey, limit: u32) {
    let dialer = EndpointDialer::new(Some(key.clone()));
    let mut wrong = malformed();
    wrong.push(("over-long", over_long(limit)));
    for carriage in CARRIAGES {
        for (what, bytes) in &wrong {
            let connection = site.dial(&dialer, carriage).await;
            let ended = within(send(&connection, bytes, false)).await;
            assert_eq!(
                ended,
                AttackedStreamEnd::by(PROTOCOL, &connection),
                "{carriage}: {what}"
            );
            survives_or_closes(&connection, what).await;
        }
        let connection = site.dial(&dialer, carriage).await;
        let cut = &wire::request("1", "services/list", &Value::Null)[..20];
        let ended = within(send(&connection, cut, true)).await;
        assert_eq!(
            ended,
            AttackedStreamEnd::by(PROTOCOL, &connection),
            "{carriage}: the end within a frame"
        );
    }
}

/// A broken stream does not affect other streams. If it is the only one, the peer sees the end
/// without a code.
async fn survives_or_closes(connection: &Connection, what: &str) {
    if connection.is_multi() {
        answers(connection).await;
    } else {
        let reason = within(connection.closed()).await;
        assert!(
            matches!(reason, CloseReason::Peer(None, _)),
            "{what}: {reason:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_frames_of_unknown_peers() {
    let bench = TestBench::new();
    let (_node, site) = AttackedNode::on_host(&bench);
    broken_frames_end_in_code_5(&site, &key(), 64 << 10).await;
    site.serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_frames_of_a_known_peer() {
    let bench = TestBench::new();
    let (_node, site) = AttackedNode::on_host(&bench);
    broken_frames_end_in_code_5(&site, &key_of(bench.admin()), 1 << 20).await;
    site.serves();
}

/// An ID in use cannot be used again.
#[tokio::test(flavor = "multi_thread")]
async fn a_reused_id_ends_in_code_5() {
    let bench = TestBench::new();
    let (_node, site) = AttackedNode::on_host(&bench);
    let dialer = EndpointDialer::new(Some(key_of(bench.admin())));
    let follow = wire::request("1", "node/log", &json!({ "follow": true }));
    for carriage in CARRIAGES {
        let connection = site.dial(&dialer, carriage).await;
        let ended = within(send(&connection, &follow.repeat(2), false)).await;
        assert_eq!(
            ended,
            AttackedStreamEnd::by(PROTOCOL, &connection),
            "{carriage}"
        );
    }
    site.serves();
}

/// Frames with a few changed bytes. They are answered, or ended with code 5.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_noise() {
    let bench = TestBench::new();
    let (_node, site) = AttackedNode::on_host(&bench);
    let dialer = EndpointDialer::new(Some(key_of(bench.admin())));
    let connection = site.dial(&dialer, Carriage::Quic).await;
    let mut noise = FrameRng(0x5eed);
    let right = [
        wire::request(
            "1",
            "services/list",
            &json!({ "prefix": "node/", "limit": 3 }),
        ),
        wire::request(
            "1",
            "services/schema",
            &json!({ "names": ["node/info", "node/log"] }),
        ),
        wire::request("1", "node/log", &json!({ "last": 3 })),
    ];
    for round in 0..count(500, 100_000) {
        let bytes = noise.spoil(&right[round % right.len()]);
        let ended = within(send(&connection, &bytes, true)).await;
        let fine = matches!(
            ended,
            AttackedStreamEnd::Closed | AttackedStreamEnd::Reset(PROTOCOL)
        );
        assert!(fine, "round {round}: {ended:?} after {bytes:?}");
    }
    answers(&connection).await;
    site.serves();
}

/// A generator with the same output in every run (xorshift64).
struct FrameRng(u64);

impl FrameRng {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize
    }

    /// Changes up to four bytes. One time in eight, cuts the rest off.
    fn spoil(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut bytes = frame.to_vec();
        for _ in 0..=self.next() % 4 {
            let at = self.next() % bytes.len();
            bytes[at] = self.next() as u8;
        }
        if self.next().is_multiple_of(8) {
            bytes.truncate(self.next() % bytes.len());
        }
        bytes
    }
}
