//! Answers that are expensive to make, or that the client does not read.

use std::time::{Duration, Instant};

use alknet_call::{ALPN, CallClient, CallOptions};
use alknet_core::Carriage;
use alknet_endpoint::EndpointDialer;
use alknet_test_support::{deadline, took};
use alknet_tests::raw::{
    DATA, END_HEADERS, END_STREAM, HEADERS, Http2Tally, RawQuicConnection, frame, get, hung,
    literals, within,
};
use alknet_tests::stalled_http3::{StalledHttp3, not_taken};
use alknet_tests::{CurlResponse, RelayOperation, TestBench, WebNode, eventually};
use serde_json::json;
use tokio::task::block_in_place;

use super::{GROWTH_BYTES, forget_peak, peak, resident, share, survives};

/// Streams of events in the test below. One identity may have 64.
const READERS: u32 = 60;

/// Lines of the access log that all streams should get, each an event of more than 400 bytes.
/// Together they are four times the permitted growth.
const LINES: usize = 4_000;

/// Permitted cost of the log and the streams: the log keeps 1 MiB, and each stream an event and its
/// buffers.
const EVENTS_GROWTH_BYTES: u64 = 24 << 20;

/// The clients read one byte of each answer, over HTTP/2. Over HTTP/1.1 the kernel would receive
/// megabytes of each before anything waits in the node.
#[tokio::test(flavor = "multi_thread")]
async fn unread_streams_of_events_cost_little() {
    let bench = TestBench::new();
    let (web, lines) = chatter(&bench);
    // The first requests allocate what stays: threads, tables, the buffers of connections.
    lines(&web, 100);
    let before = resident(&web);
    let mut raw = RawQuicConnection::open_left_alone(&web.target()).await;
    let body = r#"{"operation":"/node/log","input":{"follow":true,"last":0}}"#;
    ask_all(&mut raw, &web, body).await;
    lines(&web, LINES);
    let grown = resident(&web).saturating_sub(before);
    println!("figure {READERS} streams of events: {} KiB", grown >> 10);
    assert!(grown < EVENTS_GROWTH_BYTES, "{grown} bytes are held");
    survives(&web, before);
    drop(raw);
}

/// A node, and a client that makes the longest possible lines in its access log. It has an identity: the log takes few
/// lines of one that has none.
fn chatter(bench: &TestBench) -> (WebNode, impl Fn(&WebNode, usize)) {
    let folder = bench.path().join("www");
    std::fs::create_dir(&folder).expect("room");
    // A line of the access log has at most 256 characters of a path.
    let name = "x".repeat(250);
    std::fs::write(folder.join(&name), "x").expect("room");
    let web = WebNode::start(bench, &format!("[http]\nsite = \"{}\"\n", folder.display()));
    let path = format!("/{name}");
    let lines = move |web: &WebNode, count: usize| {
        let paths = vec![&*path; count];
        let options = format!("http2\nheader = \"authorization: Bearer {}\"\n", web.admin);
        let statuses = block_in_place(|| web.at_once(bench, &paths, 32, &options).statuses());
        let served = statuses.iter().filter(|status| **status == 200).count();
        assert_eq!(served, count);
    };
    (web, lines)
}

/// Each reader requests the whole log, and reads one byte of it. A copy for each would be 1 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn the_past_of_the_log_is_kept_once_for_all_who_read_it() {
    let bench = TestBench::new();
    let (web, lines) = chatter(&bench);
    // More than the log keeps.
    lines(&web, LINES);
    let before = resident(&web);
    let mut raw = RawQuicConnection::open_left_alone(&web.target()).await;
    let body = r#"{"operation":"/node/log","input":{"last":100000}}"#;
    ask_all(&mut raw, &web, body).await;
    // Each client receives a first response before the next is requested.
    survives(&web, before);
    let grown = resident(&web).saturating_sub(before);
    println!(
        "figure {READERS} readers of the log's past: {} KiB",
        grown >> 10
    );
    assert!(grown < EVENTS_GROWTH_BYTES, "{grown} bytes are held");
    drop(raw);

    // The node reports the events that were dropped before the reader reached them, and sends the
    // rest.
    let dialer = EndpointDialer::new(None);
    let connection = dialer.dial_over(Carriage::Tcp, &web.target(), ALPN).await;
    let connection = connection.expect("every client may connect");
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

/// Batches in the test below, and the size of each of their answers: together more than an identity
/// may have on any machine.
const BATCHES: u32 = 60;
const BATCH_BYTES: usize = 8 << 20;

/// The client reads one byte of each answer. A batch has the answers of all its calls, and is
/// written after the last one.
#[tokio::test(flavor = "multi_thread")]
async fn batches_that_are_not_read_have_one_share() {
    const CALLS: usize = 4;
    let bench = TestBench::new();
    let relay = RelayOperation::new(&bench, &["services/list"]);
    let web = WebNode::start(&bench, &relay.configuration());
    block_in_place(|| relay.promote(web.node.target()));
    let calls: Vec<_> = (0..CALLS)
        .map(|n| {
            let input = RelayOperation::long(BATCH_BYTES / CALLS);
            let operation = format!("/{}", RelayOperation::PATH);
            json!({ "id": n.to_string(), "operation": operation, "input": input })
        })
        .collect();
    let batch = json!({ "calls": calls, "mode": "sequential" }).to_string();
    let post = || block_in_place(|| web.post(&web.admin, "/batch", &batch));
    // The first batch allocates what stays: a worker, the buffers of connections.
    let told = post();
    assert_eq!(told.status, 200, "{told:?}");
    let results = told.json()["results"].take();
    assert!(told.text().len() > BATCH_BYTES, "{results}");
    let before = resident(&web);
    forget_peak(&web);
    let mut raw = RawQuicConnection::open_left_alone(&web.target()).await;
    for n in 0..BATCHES {
        let stream = n * 2 + 1;
        let head = asks_for(&web.admin, "/batch", "application/json");
        let head = frame(HEADERS, END_HEADERS, stream, &head);
        let body = frame(DATA, END_STREAM, stream, batch.as_bytes());
        raw.say(&[head, body].concat()).await;
        // One after the other, so that only answered batches compete with the next.
        raw.until(|tally| tally.begun() > n).await;
    }
    let begun = raw.until(|tally| tally.begun() == BATCHES).await;
    let grown = peak(&web).saturating_sub(before);
    println!(
        "figure {BATCHES} batches of {BATCH_BYTES} bytes: {} KiB",
        grown >> 10
    );
    assert!(begun.served > 0, "{begun:?}");
    // There is no room for another one, so the held answers are the maximum.
    let told = post();
    let refused = |told: &CurlResponse| {
        let answer = told.json();
        let results = answer["results"].as_array().expect("results").iter();
        results.filter(|one| one["status"] != 200).count()
    };
    assert!(told.status != 200 || refused(&told) > 0, "{told:?}");
    let most = share() + GROWTH_BYTES;
    assert!(grown < most, "{grown} bytes are held of {most}");
    drop(raw);
    // They are released with the connection.
    block_in_place(|| {
        eventually("a batch has room again", || {
            (post().status == 200).then_some(())
        });
    });
}

/// Starts a stream of events for each reader.
async fn ask_all(raw: &mut RawQuicConnection, web: &WebNode, body: &str) {
    for n in 0..READERS {
        let stream = n * 2 + 1;
        let head = frame(HEADERS, END_HEADERS, stream, &follows(&web.admin));
        let body = frame(DATA, END_STREAM, stream, body.as_bytes());
        raw.say(&[head, body].concat()).await;
    }
    let begun = raw.until(|tally| tally.begun() == READERS).await;
    assert_eq!(begun.served, READERS, "{begun:?}");
}

/// Fields of a request for a stream of events.
fn follows(token: &str) -> Vec<u8> {
    asks_for(token, "/subscribe", "text/event-stream")
}

/// Fields of a JSON request.
fn asks_for(token: &str, path: &str, accept: &str) -> Vec<u8> {
    let bearer = format!("Bearer {token}");
    literals(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
        ("authorization", &bearer),
        ("accept", accept),
        ("content-type", "application/json"),
    ])
}

/// Bytes that the node has read, mostly from files. Bytes received from sockets do not count.
fn read(web: &WebNode) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/io", web.node.pid()));
    let text = text.expect("the node runs");
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|line| line.parse().ok()).expect("a number")
}

/// How long a client may wait for an answer beside others: much longer than starting curl takes.
const SILENT: Duration = Duration::from_secs(10);

/// The same on a machine that does nothing else.
const HEALTH_WITHIN: Duration = Duration::from_secs(1);

#[test]
fn a_large_file_is_not_read_before_it_is_sent() {
    let bench = TestBench::new();
    let folder = bench.path().join("www");
    std::fs::create_dir(&folder).expect("room");
    for name in ["fresh.bin", "large.bin"] {
        let large = std::fs::File::create(folder.join(name)).expect("room");
        large.set_len(300 << 20).expect("a file with holes");
    }
    let web = WebNode::start(
        &bench,
        &format!("[http]\nsite = \"{}\"\n", folder.display()),
    );
    // The first request for this file. The node now reads the part that it needs only once to
    // identify the file.
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
    // Reading the file once for each took more than a minute, without an answer to another client.
    assert!(!longest.is_zero(), "no other client asked meanwhile");
    assert!(longest < deadline(SILENT), "{longest:?} without an answer");
    let what = "/healthz beside requests for a large file";
    took(what, HEALTH_WITHIN, longest);
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

/// Streams of an HTTP/2 connection that are not read.
const STREAMS: u32 = 120;

/// After the first request, all unread answers end within this time. An answer may stay unread for
/// 30 s, plus a second for each KiB of the 32 KiB that wait for it. The rest is for the requests,
/// and for the checks.
const ENDS_WITHIN: Duration = Duration::from_secs(75);

/// The node has ended each answer of these connections, and has served some.
fn were_reset(answers: &[Http2Tally]) {
    let served = answers.iter().map(|tally| tally.served).sum::<u32>();
    println!("figure answers over HTTP/2 that are not taken: {served} were served");
    assert!(served > 0, "{answers:?}");
    for tally in answers {
        assert_eq!(tally.begun(), STREAMS, "{tally:?}");
        // No served answer came whole: each was reset. A refusal may have been short enough.
        let is_ended = tally.whole <= tally.refused && tally.over() == STREAMS;
        assert!(is_ended, "{tally:?}");
    }
}

/// Over HTTP/2 each answer has a window of one byte. Over HTTP/3 a few answers of a connection are
/// not read while the client reads others.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_taken_end_and_cost_little() {
    const CONNECTIONS: usize = 20;
    const CONNECTIONS_THREE: usize = 8;
    let bench = TestBench::new();
    let folder = bench.path().join("www");
    std::fs::create_dir(&folder).expect("room");
    for name in ["two.bin", "three.bin"] {
        std::fs::write(folder.join(name), vec![7; 4 << 20]).expect("room");
    }
    let web = WebNode::start(
        &bench,
        &format!("[http]\nsite = \"{}\"\n", folder.display()),
    );
    forget_peak(&web);
    let before = resident(&web);
    let asked = Instant::now();
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_THREE {
        idle.push(StalledHttp3::open(&web.target(), "/three.bin", None).await);
    }
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut raw = RawQuicConnection::open_left_alone(&web.target()).await;
        for n in 0..STREAMS {
            raw.say(&get(n * 2 + 1, "/two.bin")).await;
        }
        all.push(raw);
    }
    let resets = all
        .iter_mut()
        .map(|raw| raw.until(|tally| tally.over() == STREAMS));
    let until = Instant::now() + hung();
    let three = async {
        loop {
            for one in &mut idle {
                one.is_served().await;
            }
            let ended =
                block_in_place(|| not_taken(bench.admin(), web.node.target(), "/three.bin", "h3"));
            if ended == CONNECTIONS_THREE * StalledHttp3::ANSWERS {
                break;
            }
            assert!(Instant::now() < until, "{ended} answers have ended");
            // Others are served meanwhile, every second.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let ((), answers) = tokio::join!(three, futures_util::future::join_all(resets));
    took("answers that are not taken", ENDS_WITHIN, asked.elapsed());
    let grown = peak(&web).saturating_sub(before);
    println!(
        "figure answers that are not taken, at the peak: {} KiB",
        grown >> 10
    );
    // A chunk of 32 KiB waits for each answer that the node has begun.
    let served: u64 = answers.iter().map(|tally| u64::from(tally.served)).sum();
    let most = served * (32 << 10) + GROWTH_BYTES;
    assert!(grown < most, "{grown} bytes are held, {most} may be");
    were_reset(&answers);
    for one in idle {
        one.was_reset().await;
    }
    survives(&web, before);
}
