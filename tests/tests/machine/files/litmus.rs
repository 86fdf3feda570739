//! litmus, the test suite of WebDAV servers, whole.

use alknet_test_support::limited;

use super::{DONE_WITHIN, FilesClient, program};

/// Its parts, and how many tests each has.
const SUITES: [(&str, usize); 5] = [
    ("basic", 16),
    ("copymove", 13),
    ("props", 30),
    ("locks", 41),
    ("http", 4),
];

const CUT: &str = "litmus prepares the header If in 200 bytes, in which two tags of this node have no room; it \
                   sends the first 199, which no server can read. The test of curl sends the whole header";
const SHARED: &str = "the node has exclusive locks only, as its property supportedlock says (RFC 4918 §6.2 leaves the \
                      choice to the server)";
const NEEDS_SHARED: &str = "it needs the shared lock that the test before did not get";

/// Tests that do not just pass: suite, number and name of the test, its outcome, and the reason.
const EXPECTED: [(&str, u32, &str, LitmusOutcome, &str); 12] = [
    (
        "basic",
        9,
        "delete_fragment",
        LitmusOutcome::Warned,
        "the HTTP library leaves out a fragment, which RFC 9112 §3.2 does not allow in a request, before the mount \
         sees the path, so that the request deletes the collection",
    ),
    ("locks", 19, "complex_cond_put", LitmusOutcome::Failed, CUT),
    (
        "locks",
        20,
        "fail_complex_cond_put",
        LitmusOutcome::Failed,
        CUT,
    ),
    ("locks", 23, "lock_shared", LitmusOutcome::Failed, SHARED),
    (
        "locks",
        24,
        "notowner_modify",
        LitmusOutcome::Skipped,
        NEEDS_SHARED,
    ),
    (
        "locks",
        25,
        "notowner_lock",
        LitmusOutcome::Skipped,
        NEEDS_SHARED,
    ),
    (
        "locks",
        26,
        "owner_modify",
        LitmusOutcome::Skipped,
        NEEDS_SHARED,
    ),
    (
        "locks",
        27,
        "double_sharedlock",
        LitmusOutcome::Skipped,
        NEEDS_SHARED,
    ),
    (
        "locks",
        28,
        "notowner_modify",
        LitmusOutcome::Skipped,
        NEEDS_SHARED,
    ),
    (
        "locks",
        29,
        "notowner_lock",
        LitmusOutcome::Skipped,
        NEEDS_SHARED,
    ),
    ("locks", 30, "unlock", LitmusOutcome::Skipped, NEEDS_SHARED),
    (
        "http",
        2,
        "expect100",
        LitmusOutcome::Skipped,
        "litmus sends it to servers without TLS only. The test of curl waits for 100 as well",
    ),
];

/// What litmus says of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LitmusOutcome {
    Failed,
    Passed,
    Skipped,
    /// Passed, with a warning.
    Warned,
}

/// A test of litmus that ran.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LitmusResult {
    suite: String,
    number: u32,
    name: String,
    /// `None` if litmus ended within the test.
    outcome: Option<LitmusOutcome>,
}

/// Runs all of litmus, and compares what it says of each test with what is known.
pub(super) fn the_suite_ends_as_expected(files: &FilesClient) {
    let password = files.token.clone();
    let asks = [
        "-k".to_owned(),
        files.url("litmus/"),
        "any".to_owned(),
        password,
    ];
    let mut litmus = limited(DONE_WITHIN, program("litmus"));
    // It writes its log into the folder in which it runs.
    litmus.args(asks).current_dir(files.work("litmus"));
    let output = litmus.output().expect("it is in the cache");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let results = parse(&said);
    for (suite, tests) in SUITES {
        let ran = results.iter().filter(|result| result.suite == suite);
        assert_eq!(ran.count(), tests, "{suite}: {said}");
    }
    let others = results.into_iter();
    let others = others.filter(|it| it.outcome != Some(LitmusOutcome::Passed));
    let expected = EXPECTED.map(|(suite, number, name, outcome, _)| LitmusResult {
        suite: suite.to_owned(),
        number,
        name: name.to_owned(),
        outcome: Some(outcome),
    });
    assert_eq!(others.collect::<Vec<_>>(), expected, "{said}");
}

/// The results in what litmus prints. It writes a line for a test that begins, and over it once more when the test has
/// ended.
fn parse(said: &str) -> Vec<LitmusResult> {
    let mut suite = "";
    let mut results: Vec<LitmusResult> = Vec::new();
    for part in said.split(['\n', '\r']) {
        if let Some(name) = part.strip_prefix("-> running `") {
            suite = name.trim_end_matches("':");
            continue;
        }
        let (begun, rest) = match begin(part) {
            Some((number, name, rest)) => (Some((number, name)), rest),
            // The end of a test that gave a warning has a line of its own, without its name.
            None => match part.trim_start().strip_prefix("...") {
                Some(rest) => (None, rest),
                None => continue,
            },
        };
        if let Some((number, name)) = begun
            && results
                .last()
                .is_none_or(|last| (last.suite.as_str(), last.number) != (suite, number))
        {
            results.push(LitmusResult {
                suite: suite.to_owned(),
                number,
                name: name.to_owned(),
                outcome: None,
            });
        }
        if let (Some(last), Some(outcome)) = (results.last_mut(), outcome(rest)) {
            last.outcome = Some(outcome);
        }
    }
    results
}

/// The number and the name of the test that a line is about, and what follows.
fn begin(line: &str) -> Option<(u32, &str, &str)> {
    let (number, rest) = line.trim_start().split_once(". ")?;
    let number = number.parse().ok()?;
    let end = rest.find(['.', ' '])?;
    let (name, rest) = rest.split_at(end);
    Some((number, name, rest))
}

/// The outcome that follows the dots behind the name of a test.
fn outcome(rest: &str) -> Option<LitmusOutcome> {
    let rest = rest.trim_start_matches(['.', ' ']);
    match rest.split([' ', ':']).next()? {
        "FAIL" => Some(LitmusOutcome::Failed),
        "SKIPPED" => Some(LitmusOutcome::Skipped),
        "WARNING" => Some(LitmusOutcome::Warned),
        "pass" if rest.contains("warning") => Some(LitmusOutcome::Warned),
        "pass" => Some(LitmusOutcome::Passed),
        _ => None,
    }
}

#[test]
fn the_results_of_litmus_are_read() {
    let said = "-> running `locks':\n\
                \r 0. init.................. \r 0. init.................. pass\n\
                \r 1. put................... \r 1. put................... FAIL (PUT: 403 Forbidden\n)\n\
                \r18. cond_put_corrupt_token WARNING: PUT failed with 412 not 423\n    \
                ...................... pass (with 1 warning)\n    \
                ...................... \r19. lock_shared........... \r19. lock_shared........... SKIPPED\n\
                <- summary for `locks': of 3 tests run: 2 passed, 1 failed. 66.7%\n\
                -> running `http':\n\
                \r 0. init.................. ";
    let result = |suite: &str, number, name: &str, outcome| LitmusResult {
        suite: suite.to_owned(),
        number,
        name: name.to_owned(),
        outcome,
    };
    let expected = [
        result("locks", 0, "init", Some(LitmusOutcome::Passed)),
        result("locks", 1, "put", Some(LitmusOutcome::Failed)),
        result(
            "locks",
            18,
            "cond_put_corrupt_token",
            Some(LitmusOutcome::Warned),
        ),
        result("locks", 19, "lock_shared", Some(LitmusOutcome::Skipped)),
        result("http", 0, "init", None),
    ];
    assert_eq!(parse(said), expected);
}
