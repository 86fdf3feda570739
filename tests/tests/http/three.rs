//! HTTP/3, with aioquic.

use alknet_tests::{Http3Response, TestBench, WebNode, http3};
use serde_json::{Value, json};

#[test]
fn the_gateway_answers_over_http3() {
    let bench = TestBench::new();
    let site = "https://app.example.org";
    let web = WebNode::start(&bench, &format!("[http.cors]\norigins = [\"{site}\"]\n"));
    let bearer = format!("Bearer {}", web.admin);
    let headers = json!({ "authorization": bearer, "content-type": "application/json" });
    let events = json!({ "authorization": bearer, "content-type": "application/json", "accept": "text/event-stream" });
    let from = |origin: &str| json!({ "authorization": bearer, "content-type": "application/json", "origin": origin });
    let body = r#"{"operation":"/node/info"}"#;
    let follow = r#"{"operation":"/node/log","input":{"follow":true,"last":2}}"#;
    // A request without a token, for an operation that any client may follow on `alknet/call`. Over
    // HTTP it would occupy an unknown peer's connection slot.
    let unknown_peer = json!({ "content-type": "application/json", "accept": "text/event-stream" });
    let watch = r#"{"operation":"/services/watch"}"#;
    let heard = http3(
        web.address(),
        &json!([
            { "method": "GET", "path": "/healthz" },
            { "method": "POST", "path": "/call", "headers": headers, "body": body },
            { "method": "POST", "path": "/call", "body": body },
            { "method": "GET", "path": "/nonsense" },
            { "method": "GET", "path": "/healthz", "authority": "evil.example" },
            { "method": "POST", "path": "/subscribe", "headers": events, "body": follow, "events": 2 },
            // The previous stream was abandoned, and the connection continues.
            { "method": "GET", "path": "/healthz" },
            { "method": "POST", "path": "/subscribe", "headers": unknown_peer, "body": watch },
            { "method": "POST", "path": "/call", "headers": headers, "body": " ".repeat(1 << 20), "times": 9 },
            { "method": "POST", "path": "/call", "headers": from(site), "body": body },
            { "method": "POST", "path": "/call", "headers": from("https://evil.example"), "body": body },
        ]),
    );
    let statuses: Vec<_> = heard.iter().map(|one| one.status).collect();
    assert_eq!(
        statuses[..10],
        [200, 200, 401, 404, 421, 200, 200, 401, 413, 200]
    );
    // A browser shows the page of another site no answer without this header.
    let allowed = |one: &Http3Response| one.headers["access-control-allow-origin"].clone();
    assert_eq!(allowed(&heard[9]), site);
    assert_eq!(allowed(&heard[10]), Value::Null);
    assert_eq!(heard[0].body, b"ok\n");
    let answer: Value = serde_json::from_slice(&heard[1].body).expect("JSON");
    assert_eq!(answer["output"]["problems"], json!([]));
    assert_eq!(heard[1].headers["x-request-id"], answer["request_id"]);
    assert!(
        heard[5].body.starts_with(b"id: 1\nevent: data\n"),
        "events come"
    );
}

#[test]
fn unknown_clients_see_the_same_nothing_over_http3() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "[http]\nstealth = true\nhealthz = false\n");
    let paths = [
        "/nonsense",
        "/call",
        "/mcp",
        "/openapi.json",
        "/alknet/call",
        "/healthz",
        "/",
    ];
    let requests: Vec<_> = paths
        .iter()
        .map(|path| json!({ "method": "GET", "path": path }))
        .collect();
    let heard = http3(web.address(), &Value::from(requests));
    for (one, path) in heard.iter().zip(paths) {
        assert_eq!((one.status, &one.body), (404, &heard[0].body), "{path}");
        let mut headers = one.headers.clone();
        let mut first = heard[0].headers.clone();
        for all in [&mut headers, &mut first] {
            all.as_object_mut().expect("headers").remove("date");
        }
        assert_eq!(headers, first, "{path}");
    }
    let tcp = web.curl("/nonsense", &["--http2"]);
    assert_eq!(heard[0].body, tcp.body);
}
