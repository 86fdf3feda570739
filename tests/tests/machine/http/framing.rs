//! Attacks on the framing, against a machine: each connection ends, and others are served. That it ends by what the
//! machine takes and not by its clock is held by the tests of `alknet-http`, whose node has an hour for a head
//! (`crates/http/tests/http/patience.rs`).

use std::time::Duration;

use alknet_core::{Carriage, Connection, RecvStream, SendStream};
use alknet_endpoint::{Dialer, Target};
use alknet_test_support::deadline;
use alknet_tests::Node;
use alknet_tls::NodeKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Machine;

/// How long anything may take before a test calls it hung.
const HUNG: Duration = Duration::from_secs(120);

/// Resets after which the machine has to have ended the connection.
const RESETS: u32 = 4_000;
/// Of these, so many in a row before the test looks whether it has.
const AT_ONCE: u32 = 50;
/// What is in the frame that asks for an answer.
const PING: [u8; 8] = [7; 8];

/// Bytes of a head that are more than what is on its way to a machine that has stopped to read.
const HEAD_BYTES: usize = 32 << 20;

const H1: &[u8] = b"http/1.1";
const H2: &[u8] = b"h2";

/// A connection that says what it likes.
struct Raw {
    _connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

impl Raw {
    async fn open(node: &Node, alpn: &'static [u8]) -> Self {
        let dialer = Dialer::new(Some(NodeKey::generate().expect("a key")));
        let target: Target = node.target().parse().expect("the machine's own target");
        let connection = dialer.dial_over(Carriage::Tcp, &target, alpn).await;
        let connection = connection.expect("anybody may connect");
        let (send, recv) = connection.accept_bi().await.expect("one stream");
        Self {
            _connection: connection,
            send,
            recv,
        }
    }

    /// Whether the machine still takes it.
    async fn says(&mut self, bytes: &[u8]) -> bool {
        let said =
            async { self.send.write_all(bytes).await.is_ok() && self.send.flush().await.is_ok() };
        let said = tokio::time::timeout(deadline(HUNG), said).await;
        said.expect("it hangs")
    }

    /// Everything until the machine ends the connection.
    async fn heard(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let read = self.recv.read_to_end(&mut all);
        // How it ends says nothing more.
        let _ = tokio::time::timeout(deadline(HUNG), read)
            .await
            .expect("it hangs");
        all
    }

    /// Sends requests, each of which it resets, [`AT_ONCE`] at a time: [`RESETS`], or as many as the machine took
    /// before it ended the connection.
    async fn resets(&mut self) -> u32 {
        let mut answers = vec![0; 64 << 10];
        for first in (0..RESETS).step_by(AT_ONCE as usize) {
            let mut bytes = Vec::new();
            for n in first..first + AT_ONCE {
                let stream = n * 2 + 1;
                bytes.extend(frame(1, 5, stream, &head()));
                bytes.extend(frame(3, 0, stream, &8u32.to_be_bytes()));
            }
            // A ping is answered when what came before it was read.
            bytes.extend(frame(6, 0, 0, &PING));
            if !self.says(&bytes).await {
                return first;
            }
            let mut heard: Vec<u8> = Vec::new();
            while !heard.windows(PING.len()).any(|part| part == PING) {
                let read = self.recv.read(&mut answers);
                match tokio::time::timeout(deadline(HUNG), read).await {
                    Ok(Ok(read)) if read > 0 => heard.extend(&answers[..read]),
                    Ok(_) => return first,
                    Err(_) => panic!("it hangs"),
                }
            }
        }
        RESETS
    }
}

/// Sends a head that begins so and goes on with one piece after the other, until the machine ends the connection.
async fn goes_on_until_ended(node: &Node, alpn: &'static [u8], begin: &[u8], piece: &[u8]) {
    let mut raw = Raw::open(node, alpn).await;
    raw.says(begin).await;
    let mut sent = 0;
    while raw.says(piece).await {
        sent += piece.len();
        assert!(sent < HEAD_BYTES, "the machine reads on");
    }
    let told = String::from_utf8_lossy(&raw.heard().await).into_owned();
    // A reset may overtake the answer.
    let refused = told.is_empty() || alpn == H2 || told.starts_with("HTTP/1.1 431 ");
    assert!(refused, "{told}");
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `/healthz` with the indices of the static table (RFC 7541 appendix A), the rest as it is.
fn head() -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x44, 8];
    block.extend(b"/healthz");
    block.extend([0x41, 9]);
    block.extend(b"localhost");
    block
}

fn preface() -> Vec<u8> {
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
    ]
    .concat()
}

pub(super) fn what_does_not_end_is_ended(web: &Machine) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let node = &web.node;
        let mut raw = Raw::open(node, H2).await;
        raw.says(&preface()).await;
        let taken = raw.resets().await;
        assert!(taken < RESETS, "{taken} resets were taken in stride");

        // CONTINUATION that never ends (CVE-2024-27316): a literal header each.
        let mut more = vec![0x00, 1, b'a', 0x7f, 0xe1, 0x1e];
        more.extend([b'a'; 4000]);
        let begin = [preface(), frame(1, 0, 1, &head())].concat();
        let piece = frame(9, 0, 1, &more);
        goes_on_until_ended(node, H2, &begin, &piece).await;

        let begin = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
        let long = format!("X-A: {}\r\n", "a".repeat(1000)).repeat(4);
        let short = "A: b\r\n".repeat(700);
        let endless = "a".repeat(4096);
        for piece in [long, short, endless] {
            goes_on_until_ended(node, H1, begin, piece.as_bytes()).await;
        }

        // Two lengths: what is behind the first end must be no request.
        let mut raw = Raw::open(node, H1).await;
        raw.says(
            b"POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\
              Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
        .await;
        let told = String::from_utf8_lossy(&raw.heard().await).into_owned();
        assert!(told.matches("HTTP/1.1 ").count() <= 1, "{told}");
        assert!(!told.contains("ok\n"), "{told}");
    });
    for version in ["--http1.1", "--http2"] {
        assert_eq!(web.curl("/healthz", &[version]).status, 200, "{version}");
    }
}
