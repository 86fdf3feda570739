//! Those who mean no good, over HTTP: memory stays bounded, and others are served.

use std::time::{Duration, Instant};

use alknet_core::{Carriage, Connection, RecvStream, SendStream};
use alknet_endpoint::Dialer;
use alknet_test_support::deadline;
use alknet_tests::{Bench, Web, eventually};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::block_in_place;

/// How long anything may take before a test calls it hung.
fn hung() -> Duration {
    deadline(Duration::from_secs(120))
}

/// What an attack may make the node's memory grow by, and the allocator keep of it.
const GROWTH_BYTES: u64 = 48 << 20;

/// Bytes of a head that are more than what is on its way to a node that has stopped to read.
const HEAD_BYTES: usize = 64 << 20;

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
    let most = peak(&web);
    let line = format!("X-A: {}\r\n", "a".repeat(1000)).repeat(4);
    let lines = b"A: b\r\n".repeat(700);
    for piece in [line.as_bytes(), lines.as_slice(), &[b'a'; 4096]] {
        let mut raw = Raw::open(&web, H1).await;
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
    let mut raw = Raw::open(&web, H2).await;
    raw.preface().await;
    raw.frame(1, 0, 1, &head("localhost")).await;
    // CONTINUATION that never ends (CVE-2024-27316): a literal header each.
    let mut more = vec![0x00, 1, b'a', 0x7f, 0xe1, 0x1e];
    more.extend([b'a'; 4000]);
    let mut sent = 0;
    while raw.frame(9, 0, 1, &more).await {
        sent += more.len();
        assert!(sent < HEAD_BYTES, "the node reads on");
    }
    raw.hear().await;
    survives(&web, before);
    // Also while it lasted: what was given back since is not seen afterwards.
    let grown = peak(&web) - most;
    assert!(grown < GROWTH_BYTES, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_reset_at_once_end_the_connection() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let before = resident(&web);
    for _ in 0..4 {
        let mut raw = Raw::open(&web, H2).await;
        raw.preface().await;
        let taken = resets(&mut raw, 20_000, 50).await;
        assert!(taken < 20_000, "all of them were taken in stride");
    }
    survives(&web, before);
}

/// Each request is answered before its stream is reset: the library of the node finds nothing wrong with it.
#[tokio::test(flavor = "multi_thread")]
async fn streams_reset_one_by_one_end_the_connection() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let before = resident(&web);
    let mut raw = Raw::open(&web, H2).await;
    raw.preface().await;
    let taken = resets(&mut raw, 20_000, 1).await;
    // A browser that leaves a page resets what is open of it.
    assert!(
        (128..20_000).contains(&taken),
        "{taken} were taken in stride"
    );
    survives(&web, before);
}

/// Sends requests, each of which it resets, so many at a time: `most`, or as many as the node took before it ended the
/// connection.
async fn resets(raw: &mut Raw, most: u32, at_once: u32) -> u32 {
    let mut answers = vec![0; 64 << 10];
    for first in (0..most).step_by(at_once as usize) {
        let mut bytes = Vec::new();
        for n in first..first + at_once {
            let stream = n * 2 + 1;
            bytes.extend(frame(1, 5, stream, &head("localhost")));
            bytes.extend(frame(3, 0, stream, &8u32.to_be_bytes()));
        }
        // A ping is answered when what came before it was read.
        bytes.extend(frame(6, 0, 0, &[7; 8]));
        if !raw.say(&bytes).await {
            return first;
        }
        let mut heard: Vec<u8> = Vec::new();
        while !heard.windows(8).any(|part| part == [7; 8]) {
            match within(raw.recv.read(&mut answers)).await {
                Ok(0) | Err(_) => return first,
                Ok(read) => heard.extend(&answers[..read]),
            }
        }
    }
    most
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

/// Bytes of the longest body.
const BODY_BYTES: usize = 8 << 20;

/// Bytes of requests that one identity may have under way, as docs/http.md has it.
fn share() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("the kernel says");
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let part = (kib.expect("a number") << 10) / 8;
    part.clamp(4 << 20, 256 << 20) / 2
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

#[test]
fn two_hundred_bodies_at_once_cost_little_and_others_are_served() {
    let bench = Bench::new();
    let web = Web::start(&bench, "[http]\nrequests_burst = 1000\n");
    let body = bench.path().join("body");
    let call =
        |text: &str| format!(r#"{{"operation":"/services/list","input":{{"prefix":"{text}"}}}}"#);
    std::fs::write(&body, call(&"x".repeat(BODY_BYTES - call("").len()))).expect("room");
    let options = format!(
        "http2\nlimit-rate = \"2M\"\nheader = \"Authorization: Bearer {}\"\n\
         header = \"Content-Type: application/json\"\ndata-binary = \"@{}\"\n",
        web.reader,
        body.display()
    );
    let before = peak(&web);
    let mut asked = 0;
    let mut attack = web.at_once(&bench, &["/call"; 200], 200, &options);
    while !attack.is_over() {
        let info = r#"{"operation":"/node/info"}"#;
        assert_eq!(web.post(&web.admin, "/call", info).status, 200);
        let calls = format!(r#"{{"calls":[{{"id":"a",{}]}}"#, &info[1..]);
        let told = web.post(&web.admin, "/batch", &calls).json();
        let name = &told["results"][0]["output"]["name"];
        assert!(name.is_string(), "{told}");
        asked += 1;
    }
    let statuses = attack.statuses();
    assert!(asked > 1, "nobody else asked meanwhile");
    assert_eq!(statuses.len(), 200);
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    let (served, refused, unconnected) = (count(200), count(429), count(0));
    assert_eq!(served + refused + unconnected, 200, "{statuses:?}");
    // A network has so many connections, and no more.
    assert!(served > 0 && served + refused >= 64, "{statuses:?}");
    let grown = peak(&web) - before;
    assert!(grown < share() + GROWTH_BYTES, "{grown} bytes more");
}

/// With a token of the least scope: heads that say more bytes together than its identity has.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_only_announced_take_no_memory() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let head = format!(
        "POST /call HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {BODY_BYTES}\r\n\r\n{{",
        web.reader
    );
    let mut held = Vec::new();
    for _ in 0..=share() / BODY_BYTES as u64 {
        let mut raw = Raw::open(&web, H1).await;
        assert!(raw.say(head.as_bytes()).await);
        held.push(raw);
    }
    let list = r#"{"operation":"/services/list","input":{}}"#;
    for token in [&web.reader, &web.admin] {
        let told = block_in_place(|| web.post(token, "/call", list));
        assert_eq!(told.status, 200, "{}", told.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_short_values_cost_no_trees() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let file = bench.path().join("body");
    let data = format!("@{}", file.display());
    let list = |bytes: usize| format!("[{}0]", "0,".repeat(bytes / 2));
    let tool = |arguments: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"call","arguments":{arguments}}}}}"#
        )
    };
    let (long, shorter) = (list(BODY_BYTES - 200), list((4 << 20) - 500));
    let names: Vec<_> = (0..600_000).map(|n| format!("\"{n:x}\":0")).collect();
    let names = names.join(",");
    let before = peak(&web);
    for (path, body, status) in [
        (
            "/call",
            format!(r#"{{"operation":"/services/list","input":{long}}}"#),
            422,
        ),
        (
            "/call",
            format!(r#"{{"operation":"/services/list","input":{{"x":{long}}}}}"#),
            0,
        ),
        (
            "/call",
            format!(r#"{{"operation":"/services/schema","input":{{"name":"x",{names}}}}}"#),
            0,
        ),
        (
            "/call",
            format!(r#"{{"operation":"/none/such","input":{long}}}"#),
            404,
        ),
        (
            "/call",
            format!(r#"{{"operation":"/services/list","inputs":{long}}}"#),
            400,
        ),
        ("/call", format!(r#"{{{names}}}"#), 400),
        ("/batch", format!(r#"{{"calls":{long}}}"#), 400),
        (
            "/mcp",
            tool(&format!(
                r#"{{"operation":"/services/list","input":{shorter}}}"#
            )),
            200,
        ),
        (
            "/mcp",
            tool(&format!(
                r#"{{"operation":"/none/such","inputs":{shorter}}}"#
            )),
            200,
        ),
        ("/mcp", tool(&shorter), 413),
        ("/mcp", shorter.clone(), 413),
    ] {
        std::fs::write(&file, &body).expect("room");
        let arguments = [
            "--header",
            "Content-Type: application/json",
            "--header",
            "Accept: application/json, text/event-stream",
            "--data-binary",
            &data,
        ];
        let told = block_in_place(|| web.curl_as(&web.reader, path, &arguments));
        let shown: String = body.chars().take(80).collect();
        let fine = told.status == status || (status == 0 && [200, 404, 422].contains(&told.status));
        assert!(fine, "{} for {path} {shown}: {}", told.status, told.text());
        let grown = peak(&web) - before;
        // Four times the longest, and once itself.
        assert!(
            grown < 5 * BODY_BYTES as u64 + (16 << 20),
            "{grown} for {path} {shown}"
        );
    }
}

/// Bytes that the node has read of files and sockets.
fn read(web: &Web) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/io", web.node.pid()));
    let text = text.expect("the node runs");
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|line| line.parse().ok()).expect("a number")
}

#[test]
fn a_large_file_is_not_read_before_it_is_sent() {
    let bench = Bench::new();
    let folder = bench.path().join("www");
    std::fs::create_dir(&folder).expect("room");
    let large = std::fs::File::create(folder.join("large.bin")).expect("room");
    large.set_len(300 << 20).expect("a file with holes");
    let web = Web::start(
        &bench,
        &format!("[http]\nsite = \"{}\"\n", folder.display()),
    );
    let options = "http2\nrange = \"0-9\"\n";
    let before = read(&web);
    let statuses = web
        .at_once(&bench, &["/large.bin"; 480], 48, options)
        .statuses();
    assert!(
        statuses.len() == 480 && statuses.iter().all(|status| *status == 206),
        "{statuses:?}"
    );
    let read = read(&web) - before;
    // Half of 64 KiB for each, with all that is read of sockets.
    let most = 480 * (32 << 10);
    assert!(read < most, "{read} bytes were read for 4,800");
}

/// A request for the path, by the static table and literals that are not kept.
fn asks(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend([0x01, 9]);
    block.extend(b"localhost");
    block
}

/// One request for a path over HTTP/3 (RFC 9114 section 4.1): a frame of fields by the static table (RFC 9204
/// appendix A) and literals.
fn asks_three(path: &str) -> Vec<u8> {
    let mut fields = vec![0, 0, 0xd1, 0xd7, 0x51, path.len() as u8];
    fields.extend(path.as_bytes());
    fields.extend([0x50, 9]);
    fields.extend(b"localhost");
    [&[1, fields.len() as u8], &fields[..]].concat()
}

/// A connection of HTTP/3 with some answers that are left where they are.
struct Idle {
    connection: Connection,
    _dialer: Dialer,
    _control: SendStream,
    left: Vec<(SendStream, RecvStream)>,
}

impl Idle {
    /// So many that the connection's window has room for others.
    const ANSWERS: usize = 4;

    async fn open(web: &Web, path: &str) -> Self {
        let key = NodeKey::generate().expect("the system has entropy");
        let dialer = Dialer::new(Some(key));
        let dialled = dialer.dial_over(Carriage::Quic, &web.target(), b"h3").await;
        let connection = dialled.expect("anybody may connect");
        let mut control = connection.open_uni().await.expect("a stream");
        control.write_all(&[0, 4, 0]).await.expect("SETTINGS");
        let mut idle = Self {
            connection,
            _dialer: dialer,
            _control: control,
            left: Vec::new(),
        };
        for _ in 0..Self::ANSWERS {
            let asked = idle.ask(path).await;
            idle.left.push(asked);
        }
        idle
    }

    async fn ask(&self, path: &str) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.connection.open_bi().await.expect("a stream");
        let asked = send.write_all(&asks_three(path)).await;
        asked.expect("the connection goes on");
        send.finish().expect("it is open");
        (send, recv)
    }

    /// Takes another answer: the client is there, and takes nothing of the first ones alone.
    async fn is_served(&self) {
        let (_send, mut recv) = within(self.ask("/healthz")).await;
        let mut answer = Vec::new();
        let read = within(recv.read_to_end(&mut answer)).await;
        assert!(read.is_ok() && answer.ends_with(b"ok\n"), "{read:?}");
    }
}

/// Lines of the access log about answers of a path that went nowhere.
fn left(bench: &Bench, web: &Web, path: &str) -> usize {
    let past = json!({ "last": 100_000 });
    let log = bench
        .admin()
        .subscribe(web.node.target(), "node/log", &past);
    let path = format!(" path={path} status=499 ");
    let text = |record: &Value| record["message"].as_str().unwrap_or_default().to_owned();
    log.filter(|record| record["target"] == "access" && text(record).contains(&path))
        .count()
}

/// Streams of a connection of HTTP/2 that are left, by [`until_reset`].
const STREAMS: u32 = 120;

/// How many answers began on a connection, once all of its streams were reset, or it ended.
async fn until_reset(mut raw: Raw) -> u32 {
    let mut heard = Vec::new();
    let mut piece = vec![0; 64 << 10];
    let (mut answers, mut resets) = (0, 0);
    loop {
        // Heads of answers, and what ends them.
        while let Some((kind, rest)) = next_frame(&heard) {
            answers += u32::from(kind == 1);
            resets += u32::from(kind == 3);
            heard.drain(..rest);
        }
        if resets == STREAMS {
            return answers;
        }
        match within(raw.recv.read(&mut piece)).await {
            Ok(0) | Err(_) => return answers,
            Ok(read) => heard.extend(&piece[..read]),
        }
    }
}

/// Over HTTP/2 each answer has a window of one byte; over HTTP/3 a few of a connection are left where they are
/// while the client takes others.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_taken_end_and_cost_little() {
    const CONNECTIONS: usize = 20;
    const CONNECTIONS_THREE: usize = 8;
    let bench = Bench::new();
    let folder = bench.path().join("www");
    std::fs::create_dir(&folder).expect("room");
    for name in ["two.bin", "three.bin"] {
        std::fs::write(folder.join(name), vec![7; 4 << 20]).expect("room");
    }
    let web = Web::start(
        &bench,
        &format!("[http]\nsite = \"{}\"\n", folder.display()),
    );
    let before = resident(&web);
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_THREE {
        idle.push(Idle::open(&web, "/three.bin").await);
    }
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut raw = Raw::open(&web, H2).await;
        raw.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        // A window of one byte for each stream: SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 section 6.5.2).
        raw.frame(4, 0, 0, &[0, 4, 0, 0, 0, 1]).await;
        for n in 0..STREAMS {
            raw.frame(1, 5, n * 2 + 1, &asks("/two.bin")).await;
        }
        all.push(raw);
    }
    let resets = all.into_iter().map(until_reset);
    let until = Instant::now() + hung();
    let mut most = 0;
    let three = async {
        loop {
            for one in &idle {
                one.is_served().await;
            }
            most = most.max(resident(&web));
            let ended = block_in_place(|| left(&bench, &web, "/three.bin"));
            if ended == CONNECTIONS_THREE * Idle::ANSWERS {
                break;
            }
            assert!(Instant::now() < until, "{ended} answers have ended");
            // Others are served meanwhile, every second.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let ((), answers) = tokio::join!(three, futures_util::future::join_all(resets));
    let grown = most.saturating_sub(before);
    let chunks = CONNECTIONS as u64 * u64::from(STREAMS) * (32 << 10);
    assert!(grown < chunks + GROWTH_BYTES, "{grown} bytes are held");
    assert!(
        answers.iter().all(|answers| *answers == STREAMS),
        "{answers:?}"
    );
    for (_, mut recv) in idle.into_iter().flat_map(|one| one.left) {
        let read = within(recv.read_to_end(&mut Vec::new())).await;
        assert!(read.is_err(), "it was reset: {read:?}");
    }
    survives(&web, before);
}

/// The kind of the first frame, and where the next begins.
fn next_frame(heard: &[u8]) -> Option<(u8, usize)> {
    let [a, b, c, kind] = *heard.first_chunk()?;
    let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
    (heard.len() >= end).then_some((kind, end))
}
