//! Guessed tokens.

use alknet_tests::{Bench, Web, guesses_refuse_nobody_else};

/// More wrong tokens than a minute may have, and whatever else is behind the same address.
#[test]
fn a_guesser_is_told_to_wait_and_nobody_else_is_refused() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let follow = r#"{"operation":"/node/log","input":{"follow":true,"last":1}}"#;
    let mut events = web.events(&web.admin, follow, &["--http2"]);
    assert!(events.next().is_some(), "it follows the log");
    guesses_refuse_nobody_else(&bench, &web);
    // Its last call made a line of the log.
    assert!(events.next().is_some(), "what a token opened goes on");
}
