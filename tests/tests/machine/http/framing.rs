//! Attacks on the framing, against a machine: the machine ends each connection, and serves other clients. The tests of
//! `alknet-http` show that the amount of data ends such a connection and not the clock: their node gives a head an hour
//! (`crates/http/tests/http/patience.rs`).

use std::time::Instant;

use alknet_http::limits::{HEADER_BYTES_MAX, RESETS_BURST, RESETS_MAX, RESETS_PER_SECOND};
use alknet_tests::raw::{
    CONTINUATION, H1, H2, HEADERS, RawQuicConnection, asks, frame, hung, long_field,
};

use super::Machine;

/// Number of resets after which the machine must have ended the connection.
const RESETS: u32 = 4_000;
/// Number of resets in one write: more than the library takes, which then ends the connection.
const AT_ONCE: u32 = 50;
/// Seconds by which the machine's clock may be ahead of the test's.
const AHEAD_S: u64 = 2;

/// Bytes of a head: more than may be on its way to a machine that has stopped reading.
const HEAD_BYTES: usize = 32 << 20;

/// CONTINUATION frames of 4 KB that the machine takes at least: with fewer, a head has not more bytes than it may have.
const CONTINUATIONS_MIN: usize = 4;

/// Sends `begin` of a head and then one `piece` after the other, until the machine ends the connection. Before that it
/// takes `least` pieces.
async fn goes_on_until_ended(
    web: &Machine,
    alpn: &'static [u8],
    begin: &[u8],
    (piece, least): (&[u8], usize),
) {
    let target = web.target();
    let mut raw = match alpn {
        H2 => RawQuicConnection::open_two(&target).await,
        _ => RawQuicConnection::open(&target, alpn).await,
    };
    raw.say(begin).await;
    let mut sent = 0;
    while raw.say(piece).await {
        sent += piece.len();
        assert!(sent < HEAD_BYTES, "the machine reads on");
    }
    assert!(sent >= least * piece.len(), "it ended after {sent} bytes");
    let told = String::from_utf8_lossy(&raw.hear().await).into_owned();
    // A reset may overtake the answer.
    let refused = told.is_empty() || alpn == H2 || told.starts_with("HTTP/1.1 431 ");
    assert!(refused, "{told}");
}

pub(super) fn what_does_not_end_is_ended(web: &Machine) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        // The machine takes a few at once: their number is what ends the second connection.
        let few = (RESETS_MAX / 2) as u32;
        let mut raw = RawQuicConnection::open_two(&web.target()).await;
        assert_eq!(raw.resets(few, few).await, few);
        let mut raw = RawQuicConnection::open_two(&web.target()).await;
        let taken = raw.resets(RESETS, AT_ONCE).await;
        assert!(taken < RESETS_BURST, "{taken} resets were taken in stride");
        // The client sends one reset, and the next one when the machine has read it. The library limits the resets that
        // wait for it, and here never more than one waits: the node's own count ends the connection.
        let mut raw = RawQuicConnection::open_two(&web.target()).await;
        let began = Instant::now();
        let taken = raw.resets(RESETS, 1).await;
        let seconds = u32::try_from(began.elapsed().as_secs() + AHEAD_S).expect("a few");
        let most = RESETS_BURST + RESETS_PER_SECOND * seconds;
        println!("figure resets one by one: {taken}, where {most} may be");
        assert!(
            (RESETS_BURST..=most.min(RESETS - 1)).contains(&taken),
            "{taken} resets were taken, where {RESETS_BURST} to {most} are"
        );

        // CONTINUATION frames that never end (CVE-2024-27316), each with a literal header. A head that ends after the
        // first of them is a good one.
        let mut raw = RawQuicConnection::open_two(&web.target()).await;
        raw.continued_head_is_served().await;
        let begin = frame(HEADERS, 0, 1, &asks("/healthz"));
        let piece = frame(CONTINUATION, 0, 1, &long_field());
        goes_on_until_ended(web, H2, &begin, (&piece, CONTINUATIONS_MIN)).await;

        let begin = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
        let long = format!("X-A: {}\r\n", "a".repeat(1000)).repeat(4);
        let short = "A: b\r\n".repeat(700);
        let endless = "a".repeat(4096);
        // Of the lines of one short piece there are too many already.
        let fills = |piece: &str| HEADER_BYTES_MAX / piece.len() - 2;
        let least = [fills(&long), 0, fills(&endless)];
        for (piece, least) in [long, short, endless].into_iter().zip(least) {
            goes_on_until_ended(web, H1, begin, (piece.as_bytes(), least)).await;
        }

        // A request with two lengths: the node must not read a second request behind the first end.
        let mut raw = RawQuicConnection::open(&web.target(), H1).await;
        raw.say(
            b"POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\
              Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
        .await;
        let mut told = raw.hear_until("\r\n\r\n", hung()).await;
        told += &String::from_utf8_lossy(&raw.hear().await);
        // The client shows no token, and the clients of its network may have made too many requests.
        let refused = ["401", "429"].map(|status| told.starts_with(&format!("HTTP/1.1 {status} ")));
        assert!(refused.contains(&true), "{told}");
        assert_eq!(told.matches("HTTP/1.1 ").count(), 1, "{told}");
        assert!(!told.contains("ok\n"), "{told}");
    });
    for version in ["--http1.1", "--http2"] {
        assert_eq!(web.curl("/healthz", &[version]).status, 200, "{version}");
    }
}
