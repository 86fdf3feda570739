//! Attacks on the framing, against a machine: each connection ends, and others are served.

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

/// Frames, or lines of a head, after which the machine has to have ended the connection.
const MOST: u32 = 4_000;
/// Of these, so many in a row before the test looks whether it has.
const AT_ONCE: u32 = 50;

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

    /// Whether it is over after `repeated`, as often as [`MOST`], or goes on. What the machine says is read all the
    /// while, as far as it is there.
    async fn ends(&mut self, mut repeated: impl FnMut(u32) -> Vec<u8>) -> bool {
        let mut answers = vec![0; 64 << 10];
        for n in 0..MOST {
            if !self.says(&repeated(n)).await {
                return true;
            }
            if n % AT_ONCE != AT_ONCE - 1 {
                continue;
            }
            tokio::select! {
                biased;
                read = self.recv.read(&mut answers) => {
                    if matches!(read, Ok(0) | Err(_)) {
                        return true;
                    }
                }
                () = tokio::task::yield_now() => {}
            }
        }
        // It may have been told to leave by what is on its way.
        tokio::time::timeout(deadline(Duration::from_secs(30)), self.heard())
            .await
            .is_ok()
    }
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
        let mut raw = Raw::open(node, b"h2").await;
        raw.says(&preface()).await;
        let ended = raw.ends(|n| {
            let stream = n * 2 + 1;
            let reset = frame(3, 0, stream, &8u32.to_be_bytes());
            [frame(1, 5, stream, &head()), reset].concat()
        });
        assert!(ended.await, "{MOST} resets were taken in stride");

        let mut raw = Raw::open(node, b"h2").await;
        raw.says(&preface()).await;
        raw.says(&frame(1, 0, 1, &head())).await;
        // CONTINUATION that never ends (CVE-2024-27316): a literal header each.
        let mut more = vec![0x00, 1, b'a', 0x7f, 0xe1, 0x1e];
        more.extend([b'a'; 4000]);
        let ended = raw.ends(|_| frame(9, 0, 1, &more));
        assert!(ended.await, "{MOST} parts of a head were taken in stride");

        let mut raw = Raw::open(node, b"http/1.1").await;
        raw.says(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n").await;
        let line = format!("X-A: {}\r\n", "a".repeat(1000));
        let ended = raw.ends(|_| line.clone().into_bytes());
        assert!(ended.await, "{MOST} lines of a head were taken in stride");

        // Two lengths: what is behind the first end must be no request.
        let mut raw = Raw::open(node, b"http/1.1").await;
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
