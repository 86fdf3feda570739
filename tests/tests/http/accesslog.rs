//! A node's access log: one line for each request, over every version, and no secret in it.

use std::collections::BTreeMap;

use alknet_tests::raw::{H1, RawQuicConnection};
use alknet_tests::{TestBench, WebNode, eventually, http3};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::task::block_in_place;

/// What the callers of these tests send besides their tokens, and the log must not contain.
const HUSH: &str = "hush-9f3c";

/// The records of the node's log.
fn records(bench: &TestBench, web: &WebNode) -> Vec<Value> {
    let past = json!({ "last": 100_000 });
    let log = bench
        .admin()
        .subscribe(web.node.target(), "node/log", &past);
    log.collect()
}

/// A line of the access log by its fields.
type LoggedFields = BTreeMap<String, String>;

/// The fields of a line, in order. Everything after `operation` may be missing.
const FIELDS: [&str; 9] = [
    "id", "addr", "who", "method", "path", "status", "bytes", "ms", "alpn",
];

fn lines(bench: &TestBench, web: &WebNode) -> Vec<LoggedFields> {
    let records = records(bench, web);
    let access = records.iter().filter(|record| record["target"] == "access");
    let lines = access.map(|record| {
        let text = record["message"].as_str().expect("a text");
        let fields = text.strip_prefix("http.request ").expect(text);
        let fields = fields.split(' ').map(|field| {
            let (name, value) = field.split_once('=').expect(text);
            (name.to_owned(), value.to_owned())
        });
        let fields: Vec<_> = fields.collect();
        let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..FIELDS.len()], FIELDS, "{text}");
        assert!(
            matches!(&names[FIELDS.len()..], [] | ["operation"]),
            "{text}"
        );
        assert!(record["time"].is_string(), "{record}");
        fields.into_iter().collect()
    });
    lines.collect()
}

/// Waits for the line of the only request with these fields.
fn line(bench: &TestBench, web: &WebNode, wanted: &[(&str, &str)]) -> LoggedFields {
    eventually(&format!("a line with {wanted:?}"), || {
        let fits = |line: &LoggedFields| {
            wanted
                .iter()
                .all(|(name, value)| line.get(*name).is_some_and(|has| has == value))
        };
        let lines = lines(bench, web);
        let mut found = lines.iter().filter(|line| fits(line));
        let first = found.next()?.clone();
        assert_eq!(found.next(), None, "one line for a request");
        Some(first)
    })
}

/// Sends an HTTP/1.1 request and reads until its response has begun.
async fn begin(raw: &mut RawQuicConnection, request: &str) -> String {
    assert!(raw.say(request.as_bytes()).await, "it reads");
    let mut told = vec![0; 64 << 10];
    let read = raw.recv.read(&mut told).await.expect("it answers");
    String::from_utf8_lossy(&told[..read]).into_owned()
}

#[test]
fn every_version_has_its_line() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let path = format!("/call?{HUSH}={HUSH}");
    let body = json!({ "operation": "/node/info" }).to_string();
    for (version, alpn) in [("--http1.1", "http/1.1"), ("--http2", "h2")] {
        let told = web.curl_as(&web.admin, &path, &[version, "--json", &body]);
        assert_eq!(told.status, 200);
        let id = told.header("x-request-id").expect("it has a name");
        check(&line(&bench, &web, &[("id", id)]), alpn, told.body.len());
    }
    let bearer = format!("Bearer {}", web.admin);
    let heard = http3(
        web.address(),
        &json!([{
            "method": "POST", "path": path, "body": body,
            "headers": { "authorization": bearer, "content-type": "application/json" },
        }]),
    );
    assert_eq!(heard[0].status, 200);
    let id = heard[0].headers["x-request-id"].as_str();
    let id = id.expect("it has a name");
    check(
        &line(&bench, &web, &[("id", id)]),
        "h3",
        heard[0].body.len(),
    );
    no_secrets(&bench, &web, &[]);
}

/// Compares the line of a call of `node/info` with the call.
fn check(line: &LoggedFields, alpn: &str, bytes: usize) {
    let bytes = bytes.to_string();
    for (name, value) in [
        ("method", "POST"),
        ("path", "/call"),
        ("status", "200"),
        ("bytes", bytes.as_str()),
        ("alpn", alpn),
        ("operation", "node/info"),
    ] {
        assert_eq!(line[name], value, "{name} of {line:?}");
    }
    assert!(line["addr"].starts_with("127.0.0.1:"), "{line:?}");
    assert_ne!(line["who"], "-", "{line:?}");
    line["ms"].parse::<u64>().expect("milliseconds");
}

/// The whole log contains no secret, and nothing of a query or a body.
fn no_secrets(bench: &TestBench, web: &WebNode, more: &[&str]) {
    // The secret itself may contain the separator between secret and name.
    let secret = |token: &str| token.splitn(3, '_').nth(2).map(str::to_owned);
    let tokens = [&web.admin, &web.reader, &web.expired];
    let tokens = tokens.map(|token| secret(token).expect("the form of a token"));
    let records = records(bench, web);
    assert!(!records.is_empty());
    for record in records {
        let text = record["message"].as_str().expect("a text");
        let tokens = tokens.iter().map(String::as_str);
        for hidden in tokens.chain([HUSH]).chain(more.iter().copied()) {
            assert!(!text.contains(hidden), "{hidden} is in the log: {text}");
        }
    }
}

#[test]
fn refused_requests_are_logged_without_their_content() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let call = json!({ "operation": "/node/info", "input": HUSH }).to_string();
    let json = ["--json", call.as_str()];
    // Words that look like an unknown token, in positions where no token belongs.
    let nobodys = format!("alk_00000000_{}", "B".repeat(43));
    let paths = [
        (&web.expired, "/call".to_owned(), "/call", "401"),
        (&nobodys, "/call".to_owned(), "/call", "401"),
        (&web.reader, format!("/{}", web.reader), "/alk_", "404"),
        (&web.reader, format!("/x?{HUSH}"), "/x", "404"),
    ];
    for (token, path, shown, status) in paths {
        let told = web.curl_as(token, &path, &json);
        assert_eq!(told.status.to_string(), status, "{path}");
        let wanted = [("path", shown), ("status", status)];
        let found = eventually("the line", || {
            let lines = lines(&bench, &web);
            lines
                .into_iter()
                .rfind(|line| wanted.iter().all(|(name, value)| line[*name] == *value))
        });
        assert_eq!(found["who"] == "-", status == "401", "{found:?}");
    }
    // An input that the operation's schema refuses is named, but not repeated.
    let told = web.post(&web.admin, "/call", &call);
    let id = told.header("x-request-id").expect("it has a name");
    assert_eq!(line(&bench, &web, &[("id", id)])["operation"], "node/info");
    // A ticket opens a stream if it was not used yet.
    let follow = json!({ "operation": "/node/log" }).to_string();
    let later = ["--json", &follow, "--header", "Prefer: respond-async"];
    let ticket = web.curl_as(&web.admin, "/subscribe", &later).json();
    let url = ticket["url"].as_str().expect("an address");
    assert_eq!(web.curl(url, &[]).status, 200);
    let used = line(&bench, &web, &[("path", "/subscribe/t/")]);
    assert_eq!(used["operation"], "node/log");
    assert_ne!(used["who"], "-");
    let name = url.rsplit('/').next().expect("the last part");
    no_secrets(&bench, &web, &[name, &nobodys]);
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_and_long_requests_are_in_the_access_log() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    // A stream of events that its reader leaves.
    let body = json!({ "operation": "/node/log", "input": { "follow": true } }).to_string();
    let mut raw = RawQuicConnection::open(&web.target(), H1).await;
    let request = format!(
        "POST /subscribe?{HUSH} HTTP/1.1\r\nHost: localhost\r\n\
         Authorization: Bearer {}\r\nAccept: text/event-stream\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        web.admin,
        body.len()
    );
    let told = begin(&mut raw, &request).await;
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    drop(raw);
    let left = block_in_place(|| line(&bench, &web, &[("path", "/subscribe")]));
    assert_eq!(left["status"], "499", "{left:?}");
    assert_eq!(left["operation"], "node/log", "{left:?}");

    // A WebSocket, with its token in the field of the protocol's name.
    let mut raw = RawQuicConnection::open(&web.target(), H1).await;
    let request = format!(
        "GET /alknet/call?{HUSH} HTTP/1.1\r\nHost: localhost\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: alknet.call, alknet.bearer.{}\r\n\r\n",
        web.reader
    );
    let told = begin(&mut raw, &request).await;
    assert!(told.starts_with("HTTP/1.1 101 "), "{told}");
    let session = block_in_place(|| line(&bench, &web, &[("path", "/alknet/call")]));
    assert_eq!(session["status"], "101", "{session:?}");
    assert_eq!(session["alpn"], "http/1.1", "{session:?}");
    assert_ne!(session["who"], "-", "{session:?}");
    block_in_place(|| no_secrets(&bench, &web, &[]));
}

#[test]
fn addresses_are_hashed_where_that_is_asked_for() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "[log]\nhash_addresses = true\n");
    assert_eq!(web.curl("/healthz", &[]).status, 200);
    let line = line(&bench, &web, &[("path", "/healthz")]);
    assert!(line["addr"].starts_with('#'), "{line:?}");
}
