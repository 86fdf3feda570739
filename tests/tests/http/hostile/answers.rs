//! Answers that take much to make, or that the client does not take.

use std::time::{Duration, Instant};

use alknet_call::{ALPN, CallClient, CallOptions};
use alknet_core::{Carriage, Connection, RecvStream, SendStream};
use alknet_endpoint::Dialer;
use alknet_test_support::deadline;
use alknet_tests::{Bench, Web};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::block_in_place;

use super::{GROWTH_BYTES, H2, Raw, hung, resident, survives, within};

/// Streams of events of the test below: one identity may have 64.
const READERS: u32 = 60;

/// Lines of the access log that all of them are to get, each of them an event of more than 400 bytes: together four
/// times what the node may grow by.
const LINES: usize = 4_000;

/// What the log and the streams may cost: the log keeps 1 MiB, and each stream an event and its buffers.
const EVENTS_GROWTH_BYTES: u64 = 24 << 20;

/// The clients take one byte of each answer. That is over HTTP/2: over HTTP/1.1 the kernel would take megabytes of each
/// before anything waits in the node.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_events_that_nobody_reads_cost_little() {
    let bench = Bench::new();
    let (web, lines) = chatter(&bench);
    let lines = |count| lines(&web, count);
    // The first of them make what stays: threads, tables, the buffers of connections.
    lines(100);
    let before = resident(&web);
    let mut raw = left_alone(&web).await;
    for n in 0..READERS {
        raw.frame(1, 4, n * 2 + 1, &follows(&web.admin)).await;
        let body = r#"{"operation":"/node/log","input":{"follow":true,"last":0}}"#;
        raw.frame(0, 1, n * 2 + 1, body.as_bytes()).await;
    }
    until_begun(&mut raw, READERS).await;
    lines(LINES);
    let grown = resident(&web).saturating_sub(before);
    println!("figure {READERS} streams of events: {} KiB", grown >> 10);
    assert!(grown < EVENTS_GROWTH_BYTES, "{grown} bytes are held");
    survives(&web, before);
    drop(raw);
}

/// A node, and what writes lines into its access log that are as long as they may be.
fn chatter(bench: &Bench) -> (Web, impl Fn(&Web, usize)) {
    let folder = bench.path().join("www");
    std::fs::create_dir(&folder).expect("room");
    // A line of the access log has 256 characters of a path.
    let name = "x".repeat(250);
    std::fs::write(folder.join(&name), "x").expect("room");
    let web = Web::start(bench, &format!("[http]\nsite = \"{}\"\n", folder.display()));
    let path = format!("/{name}");
    let lines = move |web: &Web, count: usize| {
        let paths = vec![&*path; count];
        let statuses = block_in_place(|| web.at_once(bench, &paths, 32, "http2\n").statuses());
        let served = statuses.iter().filter(|status| **status == 200).count();
        assert_eq!(served, count);
    };
    (web, lines)
}

/// Each reader asks for all that the log has, and takes one byte of it. A copy for each would be 1 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn the_past_of_the_log_is_kept_once_for_all_who_read_it() {
    let bench = Bench::new();
    let (web, lines) = chatter(&bench);
    // More than the log keeps.
    lines(&web, LINES);
    let before = resident(&web);
    let mut raw = left_alone(&web).await;
    let body = r#"{"operation":"/node/log","input":{"last":100000}}"#;
    for n in 0..READERS {
        raw.frame(1, 4, n * 2 + 1, &follows(&web.admin)).await;
        raw.frame(0, 1, n * 2 + 1, body.as_bytes()).await;
    }
    until_begun(&mut raw, READERS).await;
    // Another answer comes after the first of each of theirs.
    survives(&web, before);
    let grown = resident(&web).saturating_sub(before);
    println!(
        "figure {READERS} readers of the log's past: {} KiB",
        grown >> 10
    );
    assert!(grown < EVENTS_GROWTH_BYTES, "{grown} bytes are held");
    drop(raw);

    // What is gone before a reader comes to it is told, and the rest follows.
    let dialer = Dialer::new(None);
    let connection = dialer.dial_over(Carriage::Tcp, &web.target(), ALPN).await;
    let connection = connection.expect("anybody may connect");
    let client = CallClient::without_operations().attach(connection, None);
    let options = CallOptions {
        timeout: None,
        auth_token: Some(web.admin.clone()),
        ..CallOptions::default()
    };
    let all = json!({ "last": 100_000, "follow": true });
    let events = within(client.subscribe_with("node/log", &all, &options)).await;
    let mut events = events.expect("it begins");
    let mut next = async || {
        let event = within(events.next()).await.expect("it goes on");
        event.expect("an administrator may").output.value().clone()
    };
    assert_ne!(next().await["target"], "log");
    lines(&web, LINES);
    let told = loop {
        let record = next().await;
        if record["target"] == "log" {
            break record;
        }
    };
    let message = told["message"].as_str().expect("a text");
    let lost = message.strip_suffix(" records were lost: this reader is slower than the log");
    let lost: usize = lost.expect(message).parse().expect("how many");
    assert!((1..=2 * LINES).contains(&lost), "{message}");
    assert_ne!(next().await["target"], "log");
}

/// A connection of HTTP/2 that takes one byte of each answer: SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 section 6.5.2).
async fn left_alone(web: &Web) -> Raw {
    let mut raw = Raw::open(web, H2).await;
    raw.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    raw.frame(4, 0, 0, &[0, 4, 0, 0, 0, 1]).await;
    raw
}

/// Fields of a request for a stream of events, as literals that are not kept (RFC 7541 section 6.2.2).
fn follows(token: &str) -> Vec<u8> {
    let bearer = format!("Bearer {token}");
    let fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/subscribe"),
        ("authorization", &bearer),
        ("accept", "text/event-stream"),
        ("content-type", "application/json"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "a length of one byte");
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Waits until so many answers have begun, each with the status 200, which is a field of the static table
/// (RFC 7541 appendix A).
async fn until_begun(raw: &mut Raw, answers: u32) {
    let mut heard = Vec::new();
    let mut piece = vec![0; 64 << 10];
    let mut begun = 0;
    while begun < answers {
        let read = within(raw.recv.read(&mut piece)).await;
        let read = read.expect("the connection goes on");
        assert!(read > 0, "it ended after {begun} answers");
        heard.extend(&piece[..read]);
        while let Some((kind, rest)) = next_frame(&heard) {
            if kind == 1 {
                assert_eq!(heard[9], 0x88, "{:?}", &heard[9..rest]);
                begun += 1;
            }
            heard.drain(..rest);
        }
    }
}

/// Bytes that the node has read, of files above all: what it receives of sockets does not count.
fn read(web: &Web) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/io", web.node.pid()));
    let text = text.expect("the node runs");
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|line| line.parse().ok()).expect("a number")
}

/// How long a client that asks beside others may be without an answer: much more than it takes to start curl.
const SILENT: Duration = Duration::from_secs(10);

#[test]
fn a_large_file_is_not_read_before_it_is_sent() {
    let bench = Bench::new();
    let folder = bench.path().join("www");
    std::fs::create_dir(&folder).expect("room");
    for name in ["fresh.bin", "large.bin"] {
        let large = std::fs::File::create(folder.join(name)).expect("room");
        large.set_len(300 << 20).expect("a file with holes");
    }
    let web = Web::start(
        &bench,
        &format!("[http]\nsite = \"{}\"\n", folder.display()),
    );
    // A file that nobody has asked for: what is read of it once, to know it, is read now.
    let before = read(&web);
    let first = web.curl("/fresh.bin", &["--range", "0-9"]);
    assert_eq!(first.status, 206, "{first:?}");
    let read_once = read(&web) - before;
    assert!(read_once < 64 << 10, "{read_once} bytes were read for ten");

    let options = "http2\nrange = \"0-9\"\n";
    let before = read(&web);
    let mut attack = web.at_once(&bench, &["/large.bin"; 480], 48, options);
    let mut longest = Duration::ZERO;
    while !attack.is_over() {
        let asked = Instant::now();
        assert_eq!(web.curl("/healthz", &[]).status, 200);
        longest = longest.max(asked.elapsed());
    }
    // To read the file once for each took more than a minute, without a word to anybody else.
    assert!(!longest.is_zero(), "nobody else asked meanwhile");
    assert!(longest < deadline(SILENT), "{longest:?} without an answer");
    let statuses = attack.statuses();
    assert!(
        statuses.len() == 480 && statuses.iter().all(|status| *status == 206),
        "{statuses:?}"
    );
    let read = read(&web) - before;
    // Half of 64 KiB for each.
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

/// The kind of the first frame, and where the next begins.
fn next_frame(heard: &[u8]) -> Option<(u8, usize)> {
    let [a, b, c, kind] = *heard.first_chunk()?;
    let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
    (heard.len() >= end).then_some((kind, end))
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
        let mut raw = left_alone(&web).await;
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
