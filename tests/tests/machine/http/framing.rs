//! Attacks on the framing, against a machine: each connection ends, and others are served. That it ends by what the
//! machine takes and not by its clock is held by the tests of `alknet-http`, whose node has an hour for a head
//! (`crates/http/tests/http/patience.rs`).

use alknet_tests::raw::{CONTINUATION, H1, H2, HEADERS, Raw, asks, frame};

use super::Machine;

/// Resets after which the machine has to have ended the connection.
const RESETS: u32 = 4_000;
/// Of these, so many in a row before the test looks whether it has: more than the library takes, which ends the
/// connection then, and fewer, so that the node's own count does.
const AT_ONCE: [u32; 2] = [50, 8];
/// Resets that a browser may send that leaves a page.
const RESETS_TAKEN: u32 = 128;

/// Bytes of a head that are more than what is on its way to a machine that has stopped to read.
const HEAD_BYTES: usize = 32 << 20;

/// Sends a head that begins so and goes on with one piece after the other, until the machine ends the connection.
async fn goes_on_until_ended(web: &Machine, alpn: &'static [u8], begin: &[u8], piece: &[u8]) {
    let target = web.target();
    let mut raw = match alpn {
        H2 => Raw::open_two(&target).await,
        _ => Raw::open(&target, alpn).await,
    };
    raw.say(begin).await;
    let mut sent = 0;
    while raw.say(piece).await {
        sent += piece.len();
        assert!(sent < HEAD_BYTES, "the machine reads on");
    }
    let told = String::from_utf8_lossy(&raw.hear().await).into_owned();
    // A reset may overtake the answer.
    let refused = told.is_empty() || alpn == H2 || told.starts_with("HTTP/1.1 431 ");
    assert!(refused, "{told}");
}

pub(super) fn what_does_not_end_is_ended(web: &Machine) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        for at_once in AT_ONCE {
            let mut raw = Raw::open_two(&web.target()).await;
            let taken = raw.resets(RESETS, at_once).await;
            assert!(taken < RESETS, "{taken} resets were taken in stride");
            let by_count = taken >= RESETS_TAKEN;
            assert_eq!(
                by_count,
                at_once < AT_ONCE[0],
                "{taken} by {at_once} at once"
            );
        }

        // CONTINUATION that never ends (CVE-2024-27316): a literal header each.
        let mut more = vec![0x00, 1, b'a', 0x7f, 0xe1, 0x1e];
        more.extend([b'a'; 4000]);
        let begin = frame(HEADERS, 0, 1, &asks("/healthz"));
        let piece = frame(CONTINUATION, 0, 1, &more);
        goes_on_until_ended(web, H2, &begin, &piece).await;

        let begin = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
        let long = format!("X-A: {}\r\n", "a".repeat(1000)).repeat(4);
        let short = "A: b\r\n".repeat(700);
        let endless = "a".repeat(4096);
        for piece in [long, short, endless] {
            goes_on_until_ended(web, H1, begin, piece.as_bytes()).await;
        }

        // Two lengths: what is behind the first end must be no request.
        let mut raw = Raw::open(&web.target(), H1).await;
        raw.say(
            b"POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\
              Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
        .await;
        let told = String::from_utf8_lossy(&raw.hear().await).into_owned();
        assert!(told.matches("HTTP/1.1 ").count() <= 1, "{told}");
        assert!(!told.contains("ok\n"), "{told}");
    });
    for version in ["--http1.1", "--http2"] {
        assert_eq!(web.curl("/healthz", &[version]).status, 200, "{version}");
    }
}
