//! The access log, as whatever keeps the log gets it.

use std::time::Duration;

use alknet_core::config::NodeConfig;
use alknet_http::HttpSettings;
use alknet_http::port80::Port80Server;
use alknet_test_support::deadline;
use alknet_test_support::log_capture::{CapturedLine, LogCapture};
use http::header::ACCEPT;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::node::{HttpTestNode, HttpTestResponse};

/// How long a line may take before a test calls it missing.
fn missing() -> Duration {
    deadline(Duration::from_secs(60))
}

/// The access log of this thread.
struct AccessLogCapture(LogCapture);

impl AccessLogCapture {
    fn listen() -> Self {
        Self(LogCapture::listen())
    }

    /// The lines since the last look.
    fn lines(&self) -> Vec<CapturedLine> {
        self.0.take(|line| line.target.starts_with("alknet_access"))
    }

    /// The only line since the last look, once it is there.
    async fn line(&self) -> CapturedLine {
        let said = async {
            loop {
                let lines = self.lines();
                if !lines.is_empty() {
                    break lines;
                }
                tokio::task::yield_now().await;
            }
        };
        let said = tokio::time::timeout(missing(), said).await;
        let mut lines = said.expect("there is a line for every request");
        let line = lines.pop().expect("it was there");
        assert!(lines.is_empty(), "one line for a request: {lines:?}");
        line
    }
}

fn number(line: &CapturedLine, name: &str) -> u64 {
    let text = line.field(name).expect("the field is there");
    text.parse().expect("a number")
}

const VERSIONS: [(&str, &str); 2] = [("h1", "http/1.1"), ("h2", "h2")];

/// Holds a line against the answer that it is about.
fn fits(line: &CapturedLine, told: &HttpTestResponse) {
    assert_eq!(number(line, "status"), u64::from(told.status.as_u16()));
    assert_eq!(number(line, "bytes"), told.body.len() as u64, "{line:?}");
    let id = told.header("x-request-id");
    assert!(id.is_none() || line.field("id") == id, "{line:?}");
}

#[tokio::test]
async fn a_call_is_one_line_with_its_operation_and_no_secret() {
    let heard = AccessLogCapture::listen();
    for (version, alpn) in VERSIONS {
        let node = HttpTestNode::new("");
        let body = json!({ "operation": "/test/echo", "input": { "hush": "hush" } });
        let path = "/call?hush=hush";
        let told = node.post(version, Some("good"), path, &body).await;
        assert_eq!(told.status, StatusCode::OK);
        let line = heard.line().await;
        fits(&line, &told);
        let names = line.fields.iter().map(|(name, _)| *name);
        let names: Vec<_> = names.filter(|name| *name != "message").collect();
        let expected = [
            "id",
            "who",
            "method",
            "path",
            "status",
            "bytes",
            "ms",
            "alpn",
            "operation",
        ];
        assert_eq!(names, expected);
        for (name, value) in [
            ("message", "http.request"),
            ("who", "token"),
            ("method", "POST"),
            ("path", "/call"),
            ("alpn", alpn),
            ("operation", "test/echo"),
        ] {
            assert_eq!(line.field(name), Some(value), "{version} {name}");
        }
        let text = format!("{line:?}");
        assert!(!text.contains("hush") && !text.contains("good"), "{text}");
    }
}

#[tokio::test]
async fn refused_requests_are_in_the_access_log() {
    let heard = AccessLogCapture::listen();
    let node = HttpTestNode::new("");
    let batch = json!({ "calls": [
        { "id": "a", "operation": "/test/echo" },
        { "id": "b", "operation": "not a name status=200" },
    ]});
    let call = json!({ "operation": "/test/admin" });
    for (token, path, body, who, status, operation) in [
        (None, "/call", &call, "-", 401, None),
        (Some("bad"), "/call", &call, "-", 401, None),
        (
            Some("good"),
            "/call",
            &call,
            "token",
            403,
            Some("test/admin"),
        ),
        (Some("good"), "/nothing", &call, "token", 404, None),
        (Some("good"), "/call", &batch, "token", 400, None),
        (
            Some("good"),
            "/batch",
            &batch,
            "token",
            200,
            Some("test/echo,-"),
        ),
    ] {
        let told = node.post("h2", token, path, body).await;
        assert_eq!(told.status.as_u16(), status, "{path}");
        let line = heard.line().await;
        fits(&line, &told);
        assert_eq!(line.field("who"), Some(who), "{path}");
        assert_eq!(line.field("operation"), operation, "{path}");
    }
}

#[tokio::test]
async fn an_abandoned_request_is_marked_in_the_access_log() {
    let heard = AccessLogCapture::listen();
    for (version, _) in VERSIONS {
        let node = HttpTestNode::new("");
        let body = json!({ "operation": "/test/wait" });
        let request = node.request(Method::POST, Some("good"), "/call", &body.to_string());
        let mut client = node.client(version).await;
        let asked = tokio::spawn(async move { client.ask(request).await });
        node.until_running(1).await;
        asked.abort();
        let line = heard.line().await;
        assert_eq!(number(&line, "status"), 499, "{version}");
        assert_eq!(number(&line, "bytes"), 0, "{version}");
        assert_eq!(line.field("who"), Some("token"), "{version}");
        assert_eq!(line.field("operation"), Some("test/wait"), "{version}");

        // In the middle of an answer that would go on for ever.
        let body = json!({ "operation": "/test/count", "input": u64::MAX });
        let mut request = node.request(Method::POST, Some("good"), "/subscribe", &body.to_string());
        let kind = "text/event-stream".parse().expect("a header");
        request.headers_mut().insert(ACCEPT, kind);
        let mut client = node.client(version).await;
        let mut response = client.ask(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let first = response.body_mut().frame().await;
        assert!(first.is_some_and(|frame| frame.is_ok()));
        assert!(heard.lines().is_empty(), "it is not over");
        drop((response, client));
        let line = heard.line().await;
        assert_eq!(number(&line, "status"), 499, "{version}");
        assert!(number(&line, "bytes") > 0, "{version}");
        assert_eq!(line.field("operation"), Some("test/count"), "{version}");
    }
}

#[tokio::test]
async fn what_a_head_would_have_brought_is_no_bytes() {
    let heard = AccessLogCapture::listen();
    for (version, _) in VERSIONS {
        let node = HttpTestNode::new("");
        let request = node.request(Method::HEAD, None, "/healthz", "");
        let told = node.client(version).await.response(request).await;
        assert_eq!(told.status, StatusCode::OK, "{version}");
        let line = heard.line().await;
        fits(&line, &told);
        assert_eq!(line.field("method"), Some("HEAD"), "{version}");
    }
}

#[tokio::test]
async fn port_80_is_in_it_too() {
    let heard = AccessLogCapture::listen();
    let settings = HttpSettings::new(&NodeConfig::default());
    let plain = Port80Server::new(None, settings, Some(443));
    let (mut client, server) = tokio::io::duplex(4096);
    let remote = "192.0.2.7:5000".parse().expect("an address");
    let serving = tokio::spawn(plain.serve(server, Some(remote)));
    let request = b"GET /a?hush=hush HTTP/1.1\r\nHost: localhost\r\n\r\n";
    client.write_all(request).await.expect("it reads");
    let mut told = String::new();
    let answer = client.read_to_string(&mut told).await;
    answer.expect("it answers and closes");
    serving.await.expect("it does not panic");
    assert!(told.starts_with("HTTP/1.1 308 "), "{told}");
    assert!(told.contains("x-content-type-options: nosniff"), "{told}");
    assert!(!told.contains("strict-transport-security"), "{told}");
    let line = heard.line().await;
    for (name, value) in [
        ("addr", "192.0.2.7:5000"),
        ("who", "-"),
        ("method", "GET"),
        ("path", "/a"),
        ("status", "308"),
        ("bytes", "0"),
        ("alpn", "-"),
    ] {
        assert_eq!(line.field(name), Some(value), "{name}");
    }
}
