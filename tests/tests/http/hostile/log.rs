//! Requests that fill the log.

use alknet_tests::{TestBench, WebNode};
use serde_json::{Value, json};

/// Requests of one client without an identity. A line of each is longer than half a KiB, and the log keeps 1 MiB.
const REQUESTS: usize = 3_000;

/// Lines that the log takes of one network in a minute (docs/observability.md). A new minute may begin during the test.
const LINES_MAX: usize = 2 * 120;

fn records(bench: &TestBench, web: &WebNode) -> Vec<Value> {
    let past = json!({ "last": 100_000 });
    let log = bench
        .admin()
        .subscribe(web.node.target(), "node/log", &past);
    log.collect()
}

/// The node refuses other names before it knows the client.
#[test]
fn requests_for_other_names_leave_the_log_to_others() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let source = "console.error('was here before')";
    web.node.call("runtime/eval", &json!({ "source": source }));
    let path = format!("/{}", "x".repeat(250));
    let paths = vec![&*path; REQUESTS];
    let others = "http2\nheader = \"Host: x\"\n";
    let statuses = web.at_once(&bench, &paths, 32, others).statuses();
    let misdirected = statuses.iter().filter(|status| **status == 421).count();
    let limited = statuses.iter().filter(|status| **status == 429).count();
    assert_eq!(misdirected + limited, REQUESTS);
    assert!(
        misdirected > 0 && limited > 0,
        "{misdirected} and {limited}"
    );
    let records = records(&bench, &web);
    let has = |text: &str| {
        let texts = records.iter().filter_map(|it| it["message"].as_str());
        texts.filter(|it| it.contains(text)).count()
    };
    assert_eq!(has("was here before"), 1);
    let lines = has(&path);
    assert!((1..=LINES_MAX).contains(&lines), "{lines}");
}
