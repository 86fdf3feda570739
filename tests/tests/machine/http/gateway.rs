//! curl requests the gateway's paths.

use std::time::Duration;

use alknet_tests::{Curl, CurlResponse, TestBench, whole_seconds};
use serde_json::{Value, json};

use super::{HTTP_PORT, Machine, VERSIONS};

/// Longest body, in bytes.
pub(super) const BODY_BYTES_MAX: usize = 8 << 20;

/// How long curl waits until the server asks for its body. An emulated machine may take longer than the one second that
/// curl waits by default.
const EXPECT_WITHIN: Duration = Duration::from_secs(120);

pub(super) const JSON: &str = "Content-Type: application/json";

/// Memory of a machine unless a test says otherwise.
const MEMORY_MIB: u32 = 512;

/// Requests over the call protocol may have an eighth of this machine's memory at once. That is less than the limit
/// that holds on every machine.
fn requests_have_their_part_of_the_memory(metrics: &str) {
    let most = metrics
        .lines()
        .find_map(|line| line.strip_prefix("alknet_call_request_bytes_max "));
    let most: f64 = most.expect("it is reported").parse().expect("a number");
    let part = f64::from(MEMORY_MIB << 20) / 8.0;
    // The kernel keeps some of the memory to itself.
    assert!(most < part && most > part / 4.0 * 3.0, "{most}");
}

pub(super) fn every_path_answers(web: &Machine) {
    for (version, name) in VERSIONS {
        let told = web.curl("/healthz", &[version]);
        assert_eq!((told.status, told.version.as_str()), (200, name));
        assert_eq!(told.body, b"ok\n");

        let get = |path: &str| answered(web.curl_as(&web.admin, path, &[version]), path, name);
        let found = get("/search?q=reboot&limit=1").json();
        assert_eq!(found["operations"][0]["operation"], "/node/reboot");
        let schema = get("/schema?operation=/node/info").json();
        assert_eq!(schema["type"], "query", "{schema}");
        assert_eq!(get("/openapi.json").json()["openapi"], "3.1.0");
        let metrics = get("/metrics").text();
        assert!(metrics.contains("alknet_build_info{"), "{metrics}");
        requests_have_their_part_of_the_memory(&metrics);

        let post = |path: &str, body: &Value| {
            let body = body.to_string();
            let arguments = [version, "--header", JSON, "--data-binary", &body];
            answered(web.curl_as(&web.admin, path, &arguments), path, name)
        };
        let info = json!({ "operation": "/node/info" });
        let told = post("/call", &info);
        let answer = told.json();
        assert_eq!(answer["output"]["identity"], web.node.identity());
        assert_eq!(told.header("x-request-id"), answer["request_id"].as_str());
        let calls = json!([
            { "id": "a", "operation": "/node/info" },
            { "id": "b", "operation": "/no/such" },
            { "id": "c", "operation": "/vault/status" },
        ]);
        let results = post("/batch", &json!({ "calls": calls })).json();
        let part = |n: usize, name: &str| results["results"][n][name].clone();
        assert_eq!(part(0, "output")["name"], "alknet", "{results}");
        assert_eq!(part(1, "error")["code"], "NOT_FOUND", "{results}");
        assert_eq!(part(2, "output")["state"], "unlocked", "{results}");
    }
}

fn answered(told: CurlResponse, path: &str, version: &str) -> CurlResponse {
    assert_eq!(
        (told.status, told.version.as_str()),
        (200, version),
        "{path}: {told:?}"
    );
    told
}

pub(super) fn a_caller_without_scope_gets_forbidden(web: &Machine) {
    let call = r#"{"operation":"/node/reboot"}"#;
    let unknown_peer = web.curl("/call", &["--header", JSON, "--data", call]);
    assert_eq!(
        (unknown_peer.status, unknown_peer.code().as_str()),
        (401, "UNAUTHENTICATED")
    );
    let expired = web.post(&web.expired, "/call", call);
    assert_eq!(
        (expired.status, expired.code().as_str()),
        (401, "UNAUTHENTICATED")
    );
    let reader = web.post(&web.reader, "/call", call);
    assert_eq!((reader.status, reader.code().as_str()), (403, "FORBIDDEN"));
    let info = r#"{"operation":"/node/info"}"#;
    assert_eq!(web.post(&web.reader, "/call", info).status, 200);
    let evil = ["--header", "Host: evil.example"];
    assert_eq!(web.curl_as(&web.admin, "/search", &evil).status, 421);
    assert_eq!(web.curl("/nonsense", &[]).status, 404);
}

pub(super) fn bodies_have_a_limit_to_the_byte(bench: &TestBench, web: &Machine) {
    let file = bench.path().join("body");
    let data = format!("@{}", file.display());
    for (version, _) in VERSIONS {
        for (bytes, status) in [(BODY_BYTES_MAX, 200), (BODY_BYTES_MAX + 1, 413)] {
            std::fs::write(&file, body(bytes)).expect("the folder is ours");
            let arguments = [version, "--header", JSON, "--data-binary", &data];
            let told = web.curl_as(&web.admin, "/call", &arguments);
            assert_eq!(told.status, status, "{version} {bytes}: {told:?}");
        }
    }
    // curl asks before it sends the body. A node that takes the body answers 100, and a node that refuses it gets no
    // body.
    let expect = [
        "--http1.1",
        "--header",
        "Expect: 100-continue",
        "--expect100-timeout",
        &whole_seconds(EXPECT_WITHIN),
    ];
    for (bytes, status, interim) in [
        (BODY_BYTES_MAX, 200, &[100][..]),
        (BODY_BYTES_MAX + 1, 413, &[]),
    ] {
        std::fs::write(&file, body(bytes)).expect("the folder is ours");
        let send = ["--header", JSON, "--data-binary", &data];
        let told = web.curl_as(&web.admin, "/call", &[&expect[..], &send].concat());
        assert_eq!(
            (told.status, told.interim.as_slice()),
            (status, interim),
            "{bytes}"
        );
    }
}

/// Returns a call of `bytes` bytes that changes nothing.
pub(super) fn body(bytes: usize) -> String {
    let call =
        |text: &str| format!(r#"{{"operation":"/services/list","input":{{"prefix":"{text}"}}}}"#);
    call(&"x".repeat(bytes - call("").len()))
}

pub(super) fn events_come_as_they_happen(web: &Machine) {
    let follow = r#"{"operation":"/node/log","input":{"follow":true,"last":1}}"#;
    for (version, _) in VERSIONS {
        let mut events = web.events(&web.admin, follow, &[version]);
        let first = events.next().expect("what is kept");
        assert!(first["message"].is_string(), "{first}");
        let path = format!("/nothing-for{version}");
        // The log has no more than some lines a minute of clients of one network that have no identity.
        assert_eq!(web.curl_as(&web.admin, &path, &[]).status, 404);
        let told = events.any(|event| event.to_string().contains(&path));
        assert!(told, "{version}: no {path}");
    }
    let ended = r#"{"operation":"/node/log","input":{"last":1}}"#;
    let last = web.events(&web.admin, ended, &[]).last();
    assert_eq!(last, Some(json!({})), "what completed says so");
}

pub(super) fn a_ticket_streams_once(web: &Machine) {
    let call = r#"{"operation":"/node/log","input":{"last":1}}"#;
    let ask = [
        "--header",
        "Prefer: respond-async",
        "--header",
        JSON,
        "--data",
        call,
    ];
    let told = web.curl_as(&web.admin, "/subscribe", &ask);
    assert_eq!(told.status, 201, "{told:?}");
    let url = told.json()["url"].as_str().expect("an address").to_owned();
    let first = web.curl(&url, &[]);
    assert_eq!(
        (first.status, first.header("content-type")),
        (200, Some("text/event-stream"))
    );
    assert!(first.text().ends_with("event: completed\ndata: {}\n\n"));
    assert_eq!(web.curl(&url, &[]).status, 404);
}

/// Port 80 is closed, because the configuration does not open it.
pub(super) fn port_80_is_closed(web: &Machine) {
    let plain = web
        .node
        .vm()
        .forward_of(HTTP_PORT)
        .expect("it is forwarded");
    let url = format!("http://{plain}/");
    let within = whole_seconds(EXPECT_WITHIN);
    let asked = Curl::new(&["--silent", "--max-time", &within, "--url", &url]).output();
    assert!(!asked.status.success(), "{asked:?}");
    assert!(asked.stdout.is_empty(), "{asked:?}");
}
