//! Guessed tokens.

use crate::bench::TestBench;
use crate::wait::eventually;
use crate::web::{CurlResponse, WebNode};

/// The problem of a node some of whose clients guess.
pub const FAILED_LOGINS: &str = "failed-logins";

/// Twice as many as a network may make in a minute.
const GUESSES: usize = 20;

/// A well-formed token that no node accepts.
#[must_use]
pub fn wrong_token() -> String {
    format!("alk_00000000_{}", "A".repeat(43))
}

/// Guesses tokens until the node refuses to look at them, and then asks as others do behind the same address.
///
/// # Panics
/// The guesser is not told how long to wait, another client is refused, or the node does not name the problem.
pub fn guesses_refuse_nobody_else<N>(bench: &TestBench, web: &WebNode<N>) {
    let wrong = wrong_token();
    // By one program: on a busy machine as many programs take longer than a minute.
    let options = format!("http2\nheader = \"Authorization: Bearer {wrong}\"\n");
    let statuses = web
        .at_once(bench, &["/search"; GUESSES], 4, &options)
        .statuses();
    assert_eq!(statuses.len(), GUESSES, "{statuses:?}");
    let guess = |version: &str| web.curl_as(&wrong, "/search", &[version]);
    let refused = eventually("a guess that is refused", || {
        let told = guess("--http2");
        assert!([401, 429].contains(&told.status), "{told:?}");
        (told.status == 429).then_some(told)
    });
    is_told_to_wait(&refused);
    is_told_to_wait(&guess("--http1.1"));
    for version in ["--http1.1", "--http2"] {
        assert_eq!(web.curl("/healthz", &[version]).status, 200);
        assert_eq!(web.curl_as(&web.reader, "/search", &[version]).status, 200);
        assert_eq!(web.curl("/search", &[version]).status, 401);
    }
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

fn is_told_to_wait(refused: &CurlResponse) {
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.code(), "OVERLOADED");
    let wait = refused.header("retry-after").expect("a time to wait");
    assert!((1..=60).contains(&wait.parse().unwrap_or(0)), "{wait}");
}
