//! Heads that are slow, endless or malformed, and slow bodies.

use std::time::Instant;

use alknet_http::limits::HEADER_BYTES_MAX;
use alknet_tests::raw::{CONTINUATION, H1, HEADERS, RawQuicConnection, asks, hung, long_field};
use alknet_tests::{TestBench, WebNode};
use tokio::io::AsyncWriteExt;

use super::{GROWTH_BYTES, peak, resident, survives};

/// Bytes of a head that exceed what is in transit to a node that has stopped reading.
const HEAD_BYTES: usize = 64 << 20;

/// CONTINUATION frames of 4 KB that the node takes at least.
const CONTINUATIONS_MIN: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_slow_bodies_are_cut_off() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let before = resident(&web);
    let started = Instant::now();
    let mut slow = Vec::new();
    for _ in 0..24 {
        let mut raw = RawQuicConnection::open(&web.target(), H1).await;
        raw.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
            .await;
        slow.push(raw);
    }
    let token = &web.admin;
    let mut body = RawQuicConnection::open(&web.target(), H1).await;
    let head = format!(
        "POST /call HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
    );
    body.say(head.as_bytes()).await;
    survives(&web, before);
    for mut raw in slow {
        raw.hear().await;
    }
    let told = String::from_utf8(body.hear().await).expect("text");
    assert!(told.starts_with("HTTP/1.1 408"), "{told}");
    // The test is about a hang, not about a time.
    assert!(started.elapsed() < hung());
    survives(&web, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_without_end_end() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let before = resident(&web);
    let most = peak(&web);
    let line = format!("X-A: {}\r\n", "a".repeat(1000)).repeat(4);
    let lines = b"A: b\r\n".repeat(700);
    let endless = [b'a'; 4096];
    let fills = |piece: &[u8]| HEADER_BYTES_MAX / piece.len() - 2;
    for (piece, least) in [
        (line.as_bytes(), fills(line.as_bytes())),
        // There are too many lines in the first piece already.
        (lines.as_slice(), 0),
        (endless.as_slice(), fills(&endless)),
    ] {
        let mut raw = RawQuicConnection::open(&web.target(), H1).await;
        raw.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
            .await;
        let mut sent = 0;
        while raw.say(piece).await {
            sent += piece.len();
            assert!(sent < HEAD_BYTES, "the node reads on");
        }
        assert!(sent >= least * piece.len(), "it ended after {sent} bytes");
        let told = raw.hear().await;
        let told = String::from_utf8_lossy(&told).into_owned();
        // A reset may overtake the answer.
        let refused = told.is_empty() || told.starts_with("HTTP/1.1 431 ");
        assert!(refused, "{told}");
    }
    // CONTINUATION that never ends (CVE-2024-27316), with a literal header each. A head that ends
    // after the first of them is a good one.
    let mut raw = RawQuicConnection::open_two(&web.target()).await;
    raw.continued_head_is_served().await;
    let mut raw = RawQuicConnection::open_two(&web.target()).await;
    raw.frame(HEADERS, 0, 1, &asks("/healthz")).await;
    let more = long_field();
    let mut sent = 0;
    while raw.frame(CONTINUATION, 0, 1, &more).await {
        sent += more.len();
        assert!(sent < HEAD_BYTES, "the node reads on");
    }
    // With fewer, a head has not more bytes than it may have.
    let least = CONTINUATIONS_MIN * more.len();
    assert!(sent >= least, "it ended after {sent} bytes");
    raw.hear().await;
    survives(&web, before);
    // Even at its peak, because released memory is not seen afterwards.
    let grown = peak(&web) - most;
    assert!(grown < GROWTH_BYTES, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_and_nothing_else_stops() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let before = resident(&web);
    let smuggled = "POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (text, status) in [
        ("GET / HTTP/9.9\r\n\r\n", 400),
        ("\0\0\0\0\r\n\r\n", 400),
        ("GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        // No host of the node's is named.
        ("GET /healthz HTTP/1.1\r\n\r\n", 421),
        (
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
            421,
        ),
        // The first request shows no token, and what follows it is not read as a second one.
        (smuggled, 401),
    ] {
        let mut raw = RawQuicConnection::open(&web.target(), H1).await;
        assert!(raw.say(text.as_bytes()).await, "{text:?}");
        let mut told = raw.hear_until("\r\n\r\n", hung()).await;
        raw.send.shutdown().await.ok();
        told += &String::from_utf8_lossy(&raw.hear().await);
        let answers = told.matches("HTTP/1.1 ").count();
        assert_eq!(answers, 1, "{text:?}: {told}");
        let status = format!("HTTP/1.1 {status} ");
        assert!(told.starts_with(&status), "{text:?}: {told}");
    }
    survives(&web, before);
}
