//! testssl.sh: versions, ciphers, forward secrecy, headers, and whether any known attack works.

use alknet_test_support::limited;
use alknet_tests::{TestBench, WebNode};
use serde_json::Value;

use super::{Faults, SUITE, judge, printed};

const KNOWN: &str = include_str!("tls.txt");

/// Checks that must have run and passed, because a check that did not run finds no fault either.
const WELL: [&str; 22] = [
    "SSLv2",
    "SSLv3",
    "TLS1_3",
    "ALPN_HTTP2",
    "cipherlist_NULL",
    "cipherlist_aNULL",
    "cipherlist_EXPORT",
    "cipherlist_LOW",
    "cipherlist_STRONG",
    "PFS",
    "PFS_ECDHE_curves",
    "heartbleed",
    "CCS",
    "ticketbleed",
    "ROBOT",
    "secure_renego",
    "secure_client_renego",
    "BREACH",
    "fallback_SCSV",
    "DROWN",
    "LOGJAM",
    "LUCKY13",
];

/// Results that the tool accepts, but this project does not.
const NOT_OFFERED: [&str; 5] = [
    "TLS1",
    "TLS1_1",
    "TLS1_2",
    "cipherlist_3DES_IDEA",
    "cipherlist_AVERAGE",
];

fn report(bench: &TestBench, web: &WebNode) -> Vec<Value> {
    let file = bench.path().join("testssl.json");
    let said = printed(
        limited(SUITE, "testssl")
            .args(["--quiet", "--color", "0", "--warnings", "off"])
            // Everything that it needs is here, so it needs no resolver.
            .args(["--nodns", "none", "--ip", "127.0.0.1"])
            .args(["--protocols", "--std", "--pfs", "--headers"])
            .arg("--vulnerable")
            .arg("--jsonfile")
            .arg(&file)
            .arg(format!("localhost:{}", web.address().port()))
            .current_dir(bench.path())
            .env("TMPDIR", bench.path()),
    );
    // Its exit code is the number of its findings.
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{error}: {said}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn text<'a>(finding: &'a Value, member: &str) -> &'a str {
    finding[member].as_str().expect("its members are text")
}

#[test]
fn testssl_finds_no_weakness() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let findings = report(&bench, &web);
    let mut faults = Faults::new();
    for finding in &findings {
        let seen = format!(
            "{}: {}",
            text(finding, "severity"),
            text(finding, "finding")
        );
        if !matches!(text(finding, "severity"), "OK" | "INFO") {
            faults.insert(text(finding, "id").to_owned(), seen);
        }
    }
    judge(KNOWN, &faults);
    let all = |id: &str| -> Vec<&Value> {
        let found = findings.iter().filter(|one| text(one, "id") == id);
        found.collect()
    };
    for id in WELL {
        let found = all(id);
        let well = found.iter().all(|one| text(one, "severity") == "OK");
        assert!(!found.is_empty() && well, "{id}: {found:?}");
    }
    for id in NOT_OFFERED {
        let found = all(id);
        let without = found
            .iter()
            .all(|one| text(one, "finding") == "not offered");
        assert!(!found.is_empty() && without, "{id}: {found:?}");
    }
}
