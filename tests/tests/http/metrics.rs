//! Metrics, as read by a collector: Prometheus' own client library.

use std::time::Duration;

use alknet_test_support::limited;
use alknet_tests::tools::{client, run_with_json, variable};
use alknet_tests::{TestBench, WebNode};
use serde_json::{Value, json};

/// Longest run of Python.
const LIMIT: Duration = Duration::from_secs(120);

/// The answers of both interfaces to the metrics, after counted calls.
fn answers(web: &WebNode) -> Value {
    for operation in ["/node/info", "/no/such"] {
        let call = json!({ "operation": operation }).to_string();
        web.post(&web.admin, "/call", &call);
    }
    web.post("none", "/call", "{}");
    let told = web.curl_as(&web.admin, "/metrics", &[]);
    assert_eq!(told.status, 200, "{told:?}");
    let metrics = r#"{"operation":"/node/metrics"}"#;
    let called = web.post(&web.admin, "/call", metrics);
    assert_eq!(called.status, 200, "{called:?}");
    json!({ "text": told.text(), "output": called.json()["output"] })
}

#[test]
fn prometheus_library_reads_every_number() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let given = answers(&web);
    let mut python = limited(LIMIT, "python3");
    python
        .arg(client("metrics.py"))
        .env("PYTHONPATH", variable("ALKNET_TEST_PYTHONPATH"));
    let output = run_with_json(&mut python, &given);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"fine\n", "{output:?}");
}
