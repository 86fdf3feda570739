//! Heads that are slow, endless or malformed, and slow bodies.

use std::time::Instant;

use alknet_tests::raw::{CONTINUATION, H1, HEADERS, RawQuicConnection, asks, hung};
use alknet_tests::{TestBench, WebNode};
use tokio::io::AsyncWriteExt;

use super::{GROWTH_BYTES, peak, resident, survives};

/// Bytes of a head that exceed what is in transit to a node that has stopped reading.
const HEAD_BYTES: usize = 64 << 20;

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
    for piece in [line.as_bytes(), lines.as_slice(), &[b'a'; 4096]] {
        let mut raw = RawQuicConnection::open(&web.target(), H1).await;
        raw.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
            .await;
        let mut sent = 0;
        while raw.say(piece).await {
            sent += piece.len();
            assert!(sent < HEAD_BYTES, "the node reads on");
        }
        let told = raw.hear().await;
        let told = String::from_utf8_lossy(&told).into_owned();
        // A reset may overtake the answer.
        let refused = told.is_empty() || told.starts_with("HTTP/1.1 431 ");
        assert!(refused, "{told}");
    }
    let mut raw = RawQuicConnection::open_two(&web.target()).await;
    raw.frame(HEADERS, 0, 1, &asks("/healthz")).await;
    // CONTINUATION that never ends (CVE-2024-27316), with a literal header each.
    let mut more = vec![0x00, 1, b'a', 0x7f, 0xe1, 0x1e];
    more.extend([b'a'; 4000]);
    let mut sent = 0;
    while raw.frame(CONTINUATION, 0, 1, &more).await {
        sent += more.len();
        assert!(sent < HEAD_BYTES, "the node reads on");
    }
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
    for text in [
        "GET / HTTP/9.9\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /healthz HTTP/1.1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        smuggled,
    ] {
        let mut raw = RawQuicConnection::open(&web.target(), H1).await;
        raw.say(text.as_bytes()).await;
        raw.send.shutdown().await.ok();
        let told = String::from_utf8_lossy(&raw.hear().await).into_owned();
        let answers = told.matches("HTTP/1.1 ").count();
        assert!(answers <= 1, "{text:?}: {told}");
        let ok = told.is_empty() || told.starts_with("HTTP/1.1 4");
        assert!(ok, "{text:?}: {told}");
    }
    survives(&web, before);
}
