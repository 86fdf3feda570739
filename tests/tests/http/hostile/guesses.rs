//! Guessed tokens.

use alknet_tests::{Bench, Web, eventually};

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
