//! No program that a test starts gets a token as an argument. The exceptions are slowhttptest,
//! which takes headers only as arguments, and the curl of the pages that
//! `tests/tests/node/start_page.rs` runs as they are written, whose tokens may read facts about the
//! node, and litmus, which takes its password only as an argument, and whose token opens one bucket
//! with litmus' own files. `/proc` shows arguments to every user of the host, and these nodes run as the
//! tests' user.

use super::tree::sources;

/// The only file that starts curl, which passes options on standard input.
const CURL: &str = "tests/src/curl.rs";

/// This file contains what it searches for.
const RULE: &str = "tests/tests/house/arguments.rs";

/// How tests name tokens of nodes, and objects that have one.
const TOKENS: [&str; 8] = [
    "Bearer",
    "(token",
    "&token",
    ".token",
    "facts",
    "web.admin",
    "web.expired",
    "web.reader",
];

#[test]
fn curl_reads_secrets_from_its_input() {
    let tests = sources().iter().filter(|it| it.path.starts_with("tests/"));
    for source in tests.filter(|it| ![CURL, RULE].contains(&it.path.as_str())) {
        let starts = source.text.contains("\"curl\"");
        assert!(!starts, "{}: start it by `alknet_tests::Curl`", source.path);
    }
}

/// Only the first line of a list of arguments is read. A longer list begins with what every run has
/// in common.
#[test]
fn no_argument_is_a_token() {
    let mut arguments = 0;
    let tests = sources().iter().filter(|it| it.path.starts_with("tests/"));
    for source in tests.filter(|it| it.path != RULE) {
        for (number, line) in source.text.lines().enumerate() {
            if !line.contains(".arg(") && !line.contains(".args(") {
                continue;
            }
            arguments += 1;
            let token = TOKENS.iter().find(|token| line.contains(**token));
            assert_eq!(
                token,
                None,
                "{}:{}: hand it over by `tools::start_with_json`: {line}",
                source.path,
                number + 1
            );
        }
    }
    assert!(arguments > 50, "{arguments} lines");
}
