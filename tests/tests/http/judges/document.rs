//! Compares the document at `/openapi.json` with the node that serves it. schemathesis sends
//! requests that the document allows, and some that it does not. A generated client is used too.

use std::time::Duration;

use alknet_test_support::{limited, seconds};
use alknet_tests::tools::variable;
use alknet_tests::{TestBench, WebNode};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{Faults, SUITE, generated, judge, printed};

const KNOWN: &str = include_str!("document.txt");

/// How many requests are generated for each path. They are the same in every run, and `cargo xtask
/// soak hostile` has more. Known problems are found by rule before any request is generated.
const EXAMPLES: &str = "10";
const EXAMPLES_FULL: &str = "50";

/// With fewer requests, almost nothing was tested.
const REQUESTS: u64 = 300;

/// Enough for a client that guesses: requests, and unknown tokens.
const PATIENT: &str = "[limits]\nhandshake_burst = 10000\nhandshakes_per_second = 10000\nfailures_per_minute = 1000\n\
[http]\nrequests_per_second = 100000\nrequests_burst = 100000\nunknown_peer_requests_per_second = 100000\n";

/// A node with high limits, and a token without dangerous rights.
fn patient(bench: &TestBench) -> (WebNode, String) {
    let web = WebNode::start(bench, "");
    let keys = format!("node.admin_keys = [\"{}\"]\n", bench.admin().identity());
    let document = json!({ "document": keys + PATIENT });
    web.node.call("config/apply", &document);
    let scopes = json!({ "scopes": ["node:read", "metrics:read"] });
    let made = web.node.call("token/make", &scopes);
    let token = made["token"].as_str().expect("a token").to_owned();
    (web, token)
}

/// The problem of a request, in words that do not vary.
fn fault(failure: &Value, response: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (message, kind) = (text(&failure["message"]), text(&failure["type"]));
    let why = match kind.as_str() {
        "AcceptedNegativeData" => message.split("Invalid component: ").nth(1),
        "RejectedPositiveData" => None,
        _ => message.lines().next(),
    };
    let body = text(&response["content"]["$base64"]);
    let body = BASE64.decode(body.as_bytes()).unwrap_or_default();
    let told: Value = serde_json::from_slice(&body).unwrap_or_default();
    let told = text(&told["error"]["message"]);
    let operation = text(&failure["operation"]);
    let name = format!("{kind}: {}, {operation}", why.unwrap_or(&told));
    (name, format!("{} {told}", response["status_code"]))
}

/// All problems in its report, which has a line for each event.
fn faults(report: &str) -> Faults {
    let mut faults = Faults::new();
    for line in report.lines() {
        let event: Value = serde_json::from_str(line).expect("it writes JSON");
        let recorder = &event["ScenarioFinished"]["recorder"];
        let cases = recorder["checks"].as_object().into_iter().flatten();
        for (case, checks) in cases {
            let response = &recorder["interactions"][case]["response"];
            for check in checks.as_array().into_iter().flatten() {
                let failure = &check["failure_info"]["failure"];
                if failure.is_object() {
                    faults.extend([fault(failure, response)]);
                }
            }
        }
    }
    faults
}

/// Its settings, in a file, because every user can see arguments. For random requests only the form
/// of the answers is checked, because chance decides whether they meet something known.
fn settings(token: &str) -> String {
    let headers = format!("Authorization = \"Bearer {token}\"");
    let wait = seconds(Duration::from_secs(30));
    format!(
        "tls-verify = false\nrequest-timeout = {wait}\nheaders = {{ {headers} }}\n\
         [[operations]]\ninclude-path = \"/subscribe\"\n\
         headers = {{ {headers}, Prefer = \"respond-async\" }}\n\
         [phases.fuzzing.checks]\n\
         negative_data_rejection.enabled = false\npositive_data_acceptance.enabled = false\n"
    )
}

/// Its summary, and its report.
fn schemathesis(bench: &TestBench, web: &WebNode, token: &str) -> (Value, String) {
    let folder = bench.path();
    let examples = match std::env::var("ALKNET_SOAK") {
        Ok(value) if value == "full" => EXAMPLES_FULL,
        _ => EXAMPLES,
    };
    std::fs::write(folder.join("schemathesis.toml"), settings(token)).expect("room");
    let said = printed(
        limited(SUITE, "python3")
            .args(["-m", "schemathesis.cli", "--config-file"])
            .args(["schemathesis.toml", "run", "--no-color"])
            .args(["--phases", "examples,coverage,fuzzing"])
            .args(["--max-examples", examples, "--generation-deterministic"])
            .args(["--continue-on-failure", "--report", "json,ndjson"])
            .args(["--report-json-path", "report.json"])
            .args(["--report-ndjson-path", "report.ndjson"])
            .arg(web.url("/openapi.json"))
            .env("PYTHONPATH", variable("ALKNET_TEST_SCHEMATHESIS"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(folder),
    );
    let read = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name));
        text.unwrap_or_else(|error| panic!("{error}: {said}"))
    };
    let summary = serde_json::from_str(&read("report.json"));
    let summary = summary.unwrap_or_else(|error| panic!("{error}: {said}"));
    (summary, read("report.ndjson"))
}

#[test]
fn a_node_answers_as_its_document_says() {
    let bench = TestBench::new();
    let (web, token) = patient(&bench);
    let (summary, report) = schemathesis(&bench, &web, &token);
    assert_eq!(summary["complete"], true, "{summary:#}");
    assert_eq!(summary["errors"], json!([]), "{summary:#}");
    let operations = &summary["operations"];
    assert_eq!(operations["tested"], operations["total"], "{summary:#}");
    let requests = summary["test_cases"]["generated"].as_u64();
    assert!(requests >= Some(REQUESTS), "{summary:#}");
    judge(KNOWN, &faults(&report));
}

#[test]
fn a_generated_client_calls_a_node() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    generated::a_client_calls(&bench, &web);
}
