//! Those who mean no good, over HTTP: memory stays bounded, and others are served.

mod answers;
mod bodies;
mod frames;
mod guesses;
mod heads;
mod removals;
mod sockets;

use std::time::Duration;

use alknet_core::{Carriage, Connection, RecvStream, SendStream};
use alknet_endpoint::Dialer;
use alknet_test_support::deadline;
use alknet_tests::Web;
use alknet_tls::NodeKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::block_in_place;

/// How long anything may take before a test calls it hung.
fn hung() -> Duration {
    deadline(Duration::from_secs(120))
}

/// What an attack may make the node's memory grow by, and the allocator keep of it.
const GROWTH_BYTES: u64 = 48 << 20;

const H1: &[u8] = b"http/1.1";
const H2: &[u8] = b"h2";

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(hung(), work).await.expect("it hangs")
}

/// A connection that says what it likes.
struct Raw {
    _connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

impl Raw {
    async fn open(web: &Web, alpn: &'static [u8]) -> Self {
        let key = NodeKey::generate().expect("the system has entropy");
        Self::open_as(web, alpn, key).await
    }

    /// The same with a key.
    async fn open_as(web: &Web, alpn: &'static [u8], key: NodeKey) -> Self {
        let dialer = Dialer::new(Some(key));
        let connection = dialer.dial_over(Carriage::Tcp, &web.target(), alpn).await;
        let connection = connection.expect("anybody may connect");
        let (send, recv) = connection.accept_bi().await.expect("one stream");
        Self {
            _connection: connection,
            send,
            recv,
        }
    }

    async fn say(&mut self, bytes: &[u8]) -> bool {
        let said =
            async { self.send.write_all(bytes).await.is_ok() && self.send.flush().await.is_ok() };
        within(said).await
    }

    /// Hears more of what comes over HTTP/1.1 until it has `end`; all of it.
    async fn hear_until(&mut self, end: &str, within: Duration) -> String {
        let mut heard = Vec::new();
        let work = async {
            while !String::from_utf8_lossy(&heard).contains(end) {
                let read = self.recv.read_buf(&mut heard).await.expect("it goes on");
                assert_ne!(read, 0, "it ended before {end:?}");
            }
        };
        let over = tokio::time::timeout(within, work).await;
        let heard = String::from_utf8_lossy(&heard).into_owned();
        assert!(over.is_ok(), "no {end:?} in time: {heard}");
        heard
    }

    /// Everything until the node ends the connection.
    async fn hear(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        // How it ends says nothing more.
        let _ = within(self.recv.read_to_end(&mut all)).await;
        all
    }

    /// A frame of HTTP/2 (RFC 9113 section 4.1).
    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.say(&frame(kind, flags, stream, payload)).await
    }

    /// Waits until the node has read all frames of HTTP/2 that were sent: it answers a ping after them.
    async fn until_read(&mut self) {
        const PING: u8 = 6;
        assert!(self.frame(PING, 0, 0, &[7; 8]).await);
        let mut heard = Vec::new();
        while !heard.windows(8).any(|part| part == [7; 8]) {
            let read = within(self.recv.read_buf(&mut heard)).await;
            assert_ne!(read.expect("it goes on"), 0);
        }
    }

    async fn preface(&mut self) {
        self.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        self.frame(4, 0, 0, &[]).await;
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn resident(web: &Web) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", web.node.pid()));
    let text = text.expect("the node runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        << 10
}

/// From now on the [`peak`] is a new one.
fn forget_peak(web: &Web) {
    let file = format!("/proc/{}/clear_refs", web.node.pid());
    std::fs::write(file, "5").expect("it is our process");
}

/// The most that the node had of memory until now.
fn peak(web: &Web) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", web.node.pid()));
    let text = text.expect("the node runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        << 10
}

/// The node answers others, and has not grown.
fn survives(web: &Web, before: u64) {
    let told = block_in_place(|| web.curl("/healthz", &["--http2"]));
    assert_eq!(told.status, 200);
    let now = resident(web);
    assert!(now < before + GROWTH_BYTES, "{before} became {now}");
}

/// Bytes of requests that one identity may have under way, as docs/http.md has it, and of frames that are not complete
/// and of unread answers, as docs/protocol.md has it.
fn share() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("the kernel says");
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let part = (kib.expect("a number") << 10) / 8;
    part.clamp(4 << 20, 256 << 20) / 2
}

/// `/healthz` with the indices of the static table (RFC 7541 appendix A), the rest as it is.
fn head(authority: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x44, 8];
    block.extend(b"/healthz");
    block.extend([0x41, authority.len() as u8]);
    block.extend(authority.as_bytes());
    block
}
