//! The access log, as whatever keeps the log gets it.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alknet_core::config::NodeConfig;
use alknet_http::Settings;
use alknet_http::port80::Port80;
use http::header::ACCEPT;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Metadata, Subscriber, span};

use super::node::{Node, Told};

/// How long a line may take before a test calls it missing.
const MISSING: Duration = Duration::from_secs(60);

/// One line: its fields in their order.
#[derive(Clone, Debug, Default)]
struct Said(Vec<(&'static str, String)>);

impl Said {
    fn of(&self, name: &str) -> Option<&str> {
        let mut fields = self.0.iter();
        let found = fields.find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> u64 {
        let text = self.of(name).expect("the field is there");
        text.parse().expect("a number")
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}

/// What this thread says.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Said>>>);

impl Heard {
    fn listen() -> (Self, DefaultGuard) {
        let heard = Self::default();
        let guard = tracing::subscriber::set_default(heard.clone());
        (heard, guard)
    }

    fn lines(&self) -> Vec<Said> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.clone()
    }

    /// The only line so far, once it is there.
    async fn line(&self) -> Said {
        let said = async {
            while self.lines().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        let said = tokio::time::timeout(MISSING, said).await;
        said.expect("there is a line for every request");
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.pop().expect("it was there");
        assert!(lines.is_empty(), "one line for a request: {lines:?}");
        line
    }
}

impl Subscriber for Heard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "alknet_access"
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        if !self.enabled(event.metadata()) {
            return;
        }
        let mut said = Said::default();
        event.record(&mut said);
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(said);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

const VERSIONS: [(&str, &str); 2] = [("h1", "http/1.1"), ("h2", "h2")];

/// Holds a line against the answer that it is about.
fn fits(line: &Said, told: &Told) {
    assert_eq!(line.number("status"), u64::from(told.status.as_u16()));
    assert_eq!(line.number("bytes"), told.body.len() as u64, "{line:?}");
    let id = told.header("x-request-id");
    assert!(id.is_none() || line.of("id") == id, "{line:?}");
}

#[tokio::test]
async fn a_call_is_one_line_with_its_operation_and_no_secret() {
    let (heard, _guard) = Heard::listen();
    for (version, alpn) in VERSIONS {
        let node = Node::new("");
        let body = json!({ "operation": "/test/echo", "input": { "hush": "hush" } });
        let path = "/call?hush=hush";
        let told = node.post(version, Some("good"), path, &body).await;
        assert_eq!(told.status, StatusCode::OK);
        let line = heard.line().await;
        fits(&line, &told);
        let names = line.0.iter().map(|(name, _)| *name);
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
            assert_eq!(line.of(name), Some(value), "{version} {name}");
        }
        let text = format!("{line:?}");
        assert!(!text.contains("hush") && !text.contains("good"), "{text}");
    }
}

#[tokio::test]
async fn whoever_is_refused_is_in_it_too() {
    let (heard, _guard) = Heard::listen();
    let node = Node::new("");
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
        assert_eq!(line.of("who"), Some(who), "{path}");
        assert_eq!(line.of("operation"), operation, "{path}");
    }
}

#[tokio::test]
async fn whoever_goes_away_before_the_end_is_told_apart() {
    let (heard, _guard) = Heard::listen();
    for (version, _) in VERSIONS {
        let node = Node::new("");
        let body = json!({ "operation": "/test/wait" });
        let request = node.request(Method::POST, Some("good"), "/call", &body.to_string());
        let mut client = node.client(version).await;
        let asked = tokio::spawn(async move { client.ask(request).await });
        node.until_running(1).await;
        asked.abort();
        let line = heard.line().await;
        assert_eq!(line.number("status"), 499, "{version}");
        assert_eq!(line.number("bytes"), 0, "{version}");
        assert_eq!(line.of("who"), Some("token"), "{version}");
        assert_eq!(line.of("operation"), Some("test/wait"), "{version}");

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
        assert_eq!(line.number("status"), 499, "{version}");
        assert!(line.number("bytes") > 0, "{version}");
        assert_eq!(line.of("operation"), Some("test/count"), "{version}");
    }
}

#[tokio::test]
async fn what_a_head_would_have_brought_is_no_bytes() {
    let (heard, _guard) = Heard::listen();
    for (version, _) in VERSIONS {
        let node = Node::new("");
        let request = node.request(Method::HEAD, None, "/healthz", "");
        let told = node.client(version).await.told(request).await;
        assert_eq!(told.status, StatusCode::OK, "{version}");
        let line = heard.line().await;
        fits(&line, &told);
        assert_eq!(line.of("method"), Some("HEAD"), "{version}");
    }
}

#[tokio::test]
async fn port_80_is_in_it_too() {
    let (heard, _guard) = Heard::listen();
    let settings = Settings::new(&NodeConfig::default());
    let plain = Port80::new(None, settings, Some(443));
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
        assert_eq!(line.of(name), Some(value), "{name}");
    }
}
