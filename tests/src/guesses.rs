//! Guessed tokens.

use std::net::Ipv4Addr;

use alknet_endpoint::Target;
use serde_json::{Value, json};

use crate::bench::TestBench;
use crate::raw_tcp::RawTcpConnection;
use crate::wait::eventually;
use crate::web::{CurlEvents, CurlResponse, WebNode};
use crate::wire;

/// The problem of a node whose clients guess tokens.
pub const FAILED_LOGINS: &str = "failed-logins";

/// Twice as many as a network may make per minute.
const GUESSES: usize = 20;

/// The path of the last request. The access log has no such path before the guesses.
const AFTER: &str = "/after-the-guesses";

/// A well-formed token that no node accepts.
#[must_use]
pub fn wrong_token() -> String {
    format!("alk_00000000_{}", "A".repeat(43))
}

/// What clients behind the guesser's address opened with tokens before: a stream of events, and a
/// connection of the call protocol.
struct TokenSessions {
    log: CurlEvents,
    calls: RawTcpConnection,
}

impl TokenSessions {
    fn open<N>(web: &WebNode<N>, target: &Target) -> Self {
        let follow = r#"{"operation":"/node/log","input":{"follow":true,"last":1}}"#;
        let mut log = web.events(&web.admin, follow, &["--http2"]);
        assert!(log.next().is_some(), "an administrator follows the log");
        let connected =
            RawTcpConnection::connect(target, Ipv4Addr::LOCALHOST, None, b"alknet/call");
        let mut calls = connected.expect("every client may connect");
        let token = json!({ "token": web.reader });
        is_answered(&mut calls, "1", "session/authenticate", &token);
        is_answered(&mut calls, "2", "node/info", &Value::Null);
        Self { log, calls }
    }

    /// The stream has new events, and the connection still has its token's rights.
    fn go_on<N>(mut self, web: &WebNode<N>) {
        is_answered(&mut self.calls, "3", "node/info", &Value::Null);
        // The log contains the request of an identity, however the node answers it. The stream has
        // lines of the guesses before it.
        web.curl_as(&web.reader, AFTER, &[]);
        let told = self.log.any(|record| record.to_string().contains(AFTER));
        assert!(told, "the stream that a token opened has ended");
    }
}

/// Calls an operation that this connection may use, but an unknown peer may not.
fn is_answered(calls: &mut RawTcpConnection, id: &str, operation: &str, input: &Value) {
    let asked = calls.say(&wire::request(id, operation, input));
    asked.unwrap_or_else(|error| panic!("{operation}: the connection has ended: {error}"));
    let answer = calls.event();
    let answer = answer.unwrap_or_else(|error| panic!("{operation}: {error}"));
    assert_eq!(answer["type"], "call.responded", "{operation}: {answer}");
}

/// Guesses tokens until the node refuses to check them, which it does for a minute, and returns the refusal.
///
/// # Panics
/// The node answers a guess otherwise, or refuses none.
pub fn guesses_until_refused<N>(bench: &TestBench, web: &WebNode<N>) -> CurlResponse {
    // In one program, because on a busy machine so many programs take longer than a minute.
    let header = format!("authorization: Bearer {}", wrong_token());
    let options = format!("http2\nheader = \"{header}\"\n");
    let statuses = web
        .at_once(bench, &["/search"; GUESSES], 4, &options)
        .statuses();
    assert_eq!(statuses.len(), GUESSES, "{statuses:?}");
    eventually("a guess that is refused", || {
        let told = guess(web, "--http2");
        assert!([401, 429].contains(&told.status), "{told:?}");
        (told.status == 429).then_some(told)
    })
}

fn guess<N>(web: &WebNode<N>, version: &str) -> CurlResponse {
    web.curl_as(&wrong_token(), "/search", &[version])
}

/// Guesses tokens until the node refuses to check them. Then other clients behind the same address
/// send requests, and two of them continue what they opened before.
///
/// # Panics
/// The guesser does not learn how long to wait, another client is refused or loses what it opened,
/// or the node does not report the problem.
pub fn guesses_refuse_no_other_client<N>(bench: &TestBench, web: &WebNode<N>, target: &Target) {
    let before = TokenSessions::open(web, target);
    is_answered_with_retry_after(&guesses_until_refused(bench, web));
    is_answered_with_retry_after(&guess(web, "--http1.1"));
    for version in ["--http1.1", "--http2"] {
        assert_eq!(web.curl("/healthz", &[version]).status, 200);
        assert_eq!(web.curl_as(&web.reader, "/search", &[version]).status, 200);
        assert_eq!(web.curl("/search", &[version]).status, 401);
    }
    before.go_on(web);
    // The problem lasts as long as the refusals: a minute, which a busy machine may have used up.
    guesses_until_refused(bench, web);
    let info = web.post(&web.admin, "/call", r#"{"operation":"/node/info"}"#);
    let problems = info.json()["output"]["problems"].clone();
    let codes: Vec<_> = problems
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| &one["code"])
        .collect();
    assert_eq!(codes, [FAILED_LOGINS], "{problems}");
}

fn is_answered_with_retry_after(refused: &CurlResponse) {
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.code(), "OVERLOADED");
    let wait = refused.header("retry-after").expect("a time to wait");
    assert!((1..=60).contains(&wait.parse().unwrap_or(0)), "{wait}");
}
