//! Those who mean no good, over HTTP: memory stays bounded, and others are served.

use std::time::{Duration, Instant};

use alknet_core::{Carriage, Connection, RecvStream, SendStream};
use alknet_endpoint::Dialer;
use alknet_test_support::deadline;
use alknet_tests::{Bench, Web, eventually};
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

/// The node answers others, and has not grown.
fn survives(web: &Web, before: u64) {
    let told = block_in_place(|| web.curl("/healthz", &["--http2"]));
    assert_eq!(told.status, 200);
    let now = resident(web);
    assert!(now < before + GROWTH_BYTES, "{before} became {now}");
}

/// `/healthz` with the indices of the static table (RFC 7541 appendix A), the rest as it is.
fn head(authority: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x44, 8];
    block.extend(b"/healthz");
    block.extend([0x41, authority.len() as u8]);
    block.extend(authority.as_bytes());
    block
}

/// Ten wrong tokens in a minute, and whatever else is behind the same address.
#[test]
fn a_guesser_is_told_to_wait_and_nobody_else_is_refused() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let follow = r#"{"operation":"/node/log","input":{"follow":true,"last":1}}"#;
    let mut events = web.events(&web.admin, follow, &["--http2"]);
    assert!(events.next().is_some(), "it follows the log");
    let wrong = format!("alk_00000000_{}", "A".repeat(43));
    let refused = eventually("a guess that is refused", || {
        let told = web.curl_as(&wrong, "/search", &["--http2"]);
        assert!([401, 429].contains(&told.status), "{told:?}");
        (told.status == 429).then_some(told)
    });
    assert_eq!(refused.code(), "OVERLOADED");
    let wait = refused.header("retry-after").expect("a time to wait");
    assert!((1..=60).contains(&wait.parse().unwrap_or(0)), "{wait}");
    for version in ["--http1.1", "--http2"] {
        assert_eq!(web.curl("/healthz", &[version]).status, 200);
        assert_eq!(web.curl_as(&web.reader, "/search", &[version]).status, 200);
        assert_eq!(web.curl("/search", &[version]).status, 401);
    }
    // The call that makes a line of the log, too.
    let info = web.post(&web.admin, "/call", r#"{"operation":"/node/info"}"#);
    let problems = info.json()["output"]["problems"].clone();
    let codes: Vec<_> = problems
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| &one["code"])
        .collect();
    assert_eq!(codes, ["failed-logins"], "{problems}");
    assert!(events.next().is_some(), "what a token opened goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_slow_bodies_are_cut_off() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let before = resident(&web);
    let started = Instant::now();
    let mut slow = Vec::new();
    for _ in 0..24 {
        let mut raw = Raw::open(&web, H1).await;
        raw.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
            .await;
        slow.push(raw);
    }
    let token = &web.admin;
    let mut body = Raw::open(&web, H1).await;
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
    // A hang is what this is about, not a time.
    assert!(started.elapsed() < hung());
    survives(&web, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_without_end_end() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let before = resident(&web);
    let line = format!("X-A: {}\r\n", "a".repeat(1000));
    for piece in [line.as_bytes(), b"A: b\r\n", &[b'a'; 4096]] {
        let mut raw = Raw::open(&web, H1).await;
        raw.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
            .await;
        for _ in 0..20_000 {
            if !raw.say(piece).await {
                break;
            }
        }
        let told = raw.hear().await;
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(told.is_empty() || told.starts_with("HTTP/1.1 4"), "{told}");
    }
    let mut raw = Raw::open(&web, H2).await;
    raw.preface().await;
    raw.frame(1, 0, 1, &head("localhost")).await;
    // CONTINUATION that never ends (CVE-2024-27316): a literal header each.
    let mut more = vec![0x00, 1, b'a', 0x7f, 0xe1, 0x1e];
    more.extend([b'a'; 4000]);
    for _ in 0..20_000 {
        if !raw.frame(9, 0, 1, &more).await {
            break;
        }
    }
    raw.hear().await;
    survives(&web, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_reset_at_once_end_the_connection() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let before = resident(&web);
    for _ in 0..4 {
        let mut raw = Raw::open(&web, H2).await;
        raw.preface().await;
        for burst in 0..400 {
            let mut bytes = Vec::new();
            for n in 0..50 {
                let stream = (burst * 50 + n) * 2 + 1;
                bytes.extend(frame(1, 5, stream, &head("localhost")));
                bytes.extend(frame(3, 0, stream, &8u32.to_be_bytes()));
            }
            if !raw.say(&bytes).await {
                break;
            }
        }
        // Either all 20,000 were taken in stride, or the node ended the connection.
        raw.hear().await;
    }
    survives(&web, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_and_settings_without_end_are_answered_or_refused() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let before = resident(&web);
    for (kind, payload) in [(6, &[0; 8][..]), (4, &[0, 4, 0, 0, 0, 1][..])] {
        let mut raw = Raw::open(&web, H2).await;
        raw.preface().await;
        let many = frame(kind, 0, 0, payload).repeat(1000);
        // The answers are never read.
        for _ in 0..200 {
            let limit = deadline(Duration::from_secs(5));
            let said = tokio::time::timeout(limit, raw.send.write_all(&many)).await;
            if !matches!(said, Ok(Ok(()))) {
                break;
            }
        }
        survives(&web, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_events_that_nobody_reads_cost_little() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let before = resident(&web);
    let mut readers = Vec::new();
    for _ in 0..30 {
        let mut raw = Raw::open(&web, H1).await;
        let body = r#"{"operation":"/node/log","input":{"follow":true,"last":100000}}"#;
        let head = format!(
            "POST /subscribe HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
Accept: text/event-stream\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            web.admin,
            body.len()
        );
        raw.say(head.as_bytes()).await;
        readers.push(raw);
    }
    // Every request is a line of the log, which all of them are to get.
    for _ in 0..20 {
        assert_eq!(block_in_place(|| web.curl("/healthz", &[])).status, 200);
    }
    survives(&web, before);
    drop(readers);
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_and_nothing_else_stops() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
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
        let mut raw = Raw::open(&web, H1).await;
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
