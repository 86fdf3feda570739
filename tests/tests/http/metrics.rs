//! Metrics, as a program that collects them reads them: Prometheus' own client library.

use std::io::Write;
use std::process::{Command, Stdio};

use alknet_tests::tools::{client, variable};
use alknet_tests::{Bench, Web};
use serde_json::{Value, json};

/// Longest run of Python, in seconds.
const SECONDS: &str = "120";

/// What both ways to the metrics answer, after calls that were counted.
fn answers(web: &Web) -> Value {
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
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let given = answers(&web);
    let mut child = Command::new("timeout")
        .args([SECONDS, "python3"])
        .arg(client("metrics.py"))
        .env("PYTHONPATH", variable("ALKNET_TEST_PYTHONPATH"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Python is installed by the set-up");
    let mut input = child.stdin.take().expect("it was asked for above");
    write!(input, "{given}").expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it is our child");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"fine\n", "{output:?}");
}
