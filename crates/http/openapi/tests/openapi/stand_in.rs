//! Calls to a server of the tests' own, which says what it was asked and gives the answers that a test
//! sets.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use alknet_call::{BAD_GATEWAY, ErrorCode};
use alknet_core::{
    Capability, CapabilityBackend, CapabilityError, CapabilityFiller, CapabilityKind, Secret,
    SecretLocation, capability,
};
use alknet_openapi::{FetchError, FromOpenApi, OpenApiOptions, TokenSource, fetch_document};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::{ImportTestNode, dialer};
use crate::secured::TlsFrontend;

/// A server that hears requests and gives the answers that it was given, then an empty one again and
/// again.
#[derive(Clone, Default)]
pub(crate) struct StubServer {
    heard: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<VecDeque<String>>>,
}

impl StubServer {
    pub(crate) fn will_answer(&self, answer: impl Into<String>) {
        self.answers
            .lock()
            .expect("no panic")
            .push_back(answer.into());
    }

    /// What it heard since it was asked last.
    pub(crate) fn heard(&self) -> Vec<String> {
        std::mem::take(&mut *self.heard.lock().expect("no panic"))
    }

    pub(crate) async fn start(&self) -> TlsFrontend {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(server.clone().serve(stream));
            }
        });
        TlsFrontend::before(address).await
    }

    async fn serve(self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        while stream.read_buf(&mut bytes).await? > 0 {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length = length.map_or(0, |length| length.parse().expect("a number"));
            if body.len() < length {
                continue;
            }
            bytes.clear();
            self.heard.lock().expect("no panic").push(text);
            let answer = self.answers.lock().expect("no panic").pop_front();
            let answer = answer.unwrap_or_else(|| "HTTP/1.1 204 No Content\r\n\r\n".to_owned());
            stream.write_all(answer.as_bytes()).await?;
        }
        Ok(())
    }
}

fn answer(status: &str, media: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {media}\r\ncontent-length: {length}\r\n\r\n{body}")
}

pub(crate) fn json_answer(status: &str, body: &Value) -> String {
    answer(status, "application/json; charset=utf-8", &body.to_string())
}

fn document() -> Value {
    let json = |schema: Value| json!({ "content": { "application/json": { "schema": schema } } });
    json!({
        "openapi": "3.1.0",
        "servers": [{ "url": "https://evil.example" }],
        "paths": {
            "/things/{id}": {
                "parameters": [{ "name": "id", "in": "path", "required": true }],
                "get": {
                    "operationId": "getThing",
                    "parameters": [
                        { "name": "id", "in": "query", "schema": { "type": "integer" } },
                        { "name": "X-Trace", "in": "header" },
                        { "name": "session", "in": "cookie" },
                        { "name": "api_key", "in": "query" },
                        { "name": "Authorization", "in": "header" },
                        { "name": "tags", "in": "query", "explode": false,
                          "schema": { "type": "array", "items": { "type": "string" } } },
                    ],
                    "responses": { "200": json(json!({})), "404": json(json!({})) },
                },
                "put": {
                    "operationId": "putThing",
                    "requestBody": { "required": true, "content": {
                        "application/octet-stream": {} } },
                    "responses": { "200": { "content": { "image/png": {} } } },
                },
            },
            "/open": { "get": { "operationId": "open", "security": [],
                "responses": { "200": { "content": { "text/plain": {} } } } } },
            "/make": { "post": { "operationId": "make", "requestBody": json(json!({
                "type": "object" })), "responses": {} } },
            "/events": { "post": { "operationId": "events", "responses": { "200": { "content": {
                "text/event-stream": { "schema": { "type": "object" } } } } } } },
        },
        "components": { "securitySchemes": {
            "k": { "type": "apiKey", "in": "query", "name": "api_key" } } },
    })
}

pub(crate) fn options(secured: &TlsFrontend) -> OpenApiOptions {
    let mut options = OpenApiOptions::new("ns", &format!("https://{}/base/", secured.address));
    options.private = vec!["127.0.0.0/8".parse().expect("a range")];
    options.pins = vec![secured.pin];
    options
}

pub(crate) fn node(options: OpenApiOptions) -> ImportTestNode {
    let document = document().to_string();
    let adapter = FromOpenApi::new(document.into(), options, dialer()).expect("an address");
    ImportTestNode::with_registrations(adapter.registrations().expect("a document"))
}

pub(crate) fn key(
    kind: CapabilityKind,
    power: CapabilityBackend,
) -> (Capability, CapabilityFiller) {
    let (one, filler) = capability("key", kind, Arc::new(|| true));
    filler.fill(power);
    (one, filler)
}

pub(crate) fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_parameter_gets_to_its_place() {
    let server = StubServer::default();
    let node = node(options(&server.start().await));
    let input = json!({
        "id": "a/../b c", "id_query": 7, "X-Trace": "t", "session": "s 1", "tags": ["x", "y z"],
    });
    server.will_answer(json_answer("200 OK", &json!({ "ok": [1, 2.5, null] })));
    let output = node.call("ns/getThing", input).await.expect("an answer");
    assert_eq!(output, json!({ "ok": [1, 2.5, null] }));
    let heard = server.heard().remove(0);
    let line = "GET /base/things/a%2F..%2Fb%20c?id=7&tags=x%2Cy%20z HTTP/1.1\r\n";
    assert!(heard.starts_with(line), "{heard}");
    for header in [
        "x-trace: t\r\n",
        "cookie: session=s%201\r\n",
        "accept: application/json\r\n",
    ] {
        assert!(heard.contains(header), "{header}: {heard}");
    }
    // Neither keys nor what would lead elsewhere come from callers.
    for bad in [
        json!({ "id": ".." }),
        json!({ "id": "." }),
        json!({ "id": "" }),
        json!({ "id": "a", "api_key": "x" }),
        json!({ "id": "a", "Authorization": "x" }),
        json!({ "id": "a", "X-Trace": "x\r\ny: z" }),
        json!({ "id": "a", "id_query": "no number" }),
        json!({}),
        json!(7),
    ] {
        let error = node
            .call("ns/getThing", bad.clone())
            .await
            .expect_err("no request");
        assert_eq!(error.code, ErrorCode::InvalidInput, "{bad}");
    }
    assert!(server.heard().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_base64_both_ways() {
    let server = StubServer::default();
    let node = node(options(&server.start().await));
    server.will_answer(answer("200 OK", "image/png", "\u{1}PNG"));
    let input = json!({ "id": "1", "body": "aGVsbG8=" });
    let output = node.call("ns/putThing", input).await.expect("an answer");
    assert_eq!(output, "AVBORw==");
    let heard = server.heard().remove(0);
    assert!(
        heard.contains("content-type: application/octet-stream\r\n"),
        "{heard}"
    );
    assert!(heard.ends_with("\r\n\r\nhello"), "{heard}");
    let wrong = json!({ "id": "1", "body": "no base64!" });
    let error = node.call("ns/putThing", wrong).await.expect_err("no bytes");
    assert_eq!(error.code, ErrorCode::InvalidInput);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_statuses_are_errors_of_their_own() {
    let server = StubServer::default();
    let node = node(options(&server.start().await));
    for (status, code) in [("404 Not Found", "HTTP_404"), ("418 Teapot", "HTTP_418")] {
        server.will_answer(json_answer(status, &json!({ "message": "no such thing" })));
        let input = json!({ "id": "1" });
        let error = node.call("ns/getThing", input).await.expect_err("a status");
        assert_eq!(error.code.name(), code);
        assert!(error.message.ends_with(": no such thing"), "{error}");
        let details = error.details.expect("details");
        assert_eq!(details["body"]["message"], "no such thing");
    }
    // A mutation is not sent again.
    server.heard();
    server.will_answer("HTTP/1.1 503 Busy\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n");
    let error = node.call("ns/make", json!({})).await.expect_err("a status");
    // Some servers answer so that have made the change.
    assert_eq!((error.code.name(), error.retryable), ("HTTP_503", false));
    assert_eq!(server.heard().len(), 1);
    // A query is.
    server.will_answer("HTTP/1.1 503 Busy\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n");
    server.will_answer(answer("200 OK", "text/plain", "12"));
    assert_eq!(node.call("ns/open", json!(null)).await, Ok(json!("12")));
    assert_eq!(server.heard().len(), 2);
    // An answer that says it is JSON and is not.
    server.will_answer(answer("200 OK", "application/json", "{"));
    let error = node.call("ns/make", json!({})).await.expect_err("no JSON");
    assert_eq!(error.code.name(), BAD_GATEWAY);
    assert!(error.message.contains("cannot be read"), "{error}");
}

/// Servers often differ from their descriptions, and the caller reads the answer itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_fit_its_schema_is_passed_on() {
    let server = StubServer::default();
    let mut described = document();
    let schema = json!({ "type": "object", "required": ["id", "text"],
        "properties": { "id": { "type": "integer" } } });
    described["paths"]["/things/{id}"]["get"]["responses"]["200"] =
        json!({ "content": { "application/json": { "schema": schema } } });
    let options = options(&server.start().await);
    let adapter = FromOpenApi::new(described.to_string().into(), options, dialer());
    let adapter = adapter.expect("an address");
    let registrations = adapter.registrations().expect("a document");
    let node = ImportTestNode::with_registrations(registrations);
    let odd = json!({ "id": "x" });
    server.will_answer(json_answer("200 OK", &odd));
    let answer = node.call("ns/getThing", json!({ "id": "1" })).await;
    assert_eq!(answer, Ok(odd));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_credential_goes_to_its_place_and_no_further() {
    let server = StubServer::default();
    let secured = server.start().await;
    let placed = |location, name: &str| {
        let (name, key) = (name.to_owned(), secret("hush&1"));
        CapabilityBackend::ApiKey {
            location,
            name,
            key,
        }
    };
    let user = "u".to_owned();
    let password = secret("p");
    for (kind, power, shown) in [
        (
            CapabilityKind::Bearer,
            CapabilityBackend::Bearer(secret("hush")),
            "authorization: Bearer hush\r\n",
        ),
        (
            CapabilityKind::Basic,
            CapabilityBackend::Basic { user, password },
            "authorization: Basic dTpw\r\n",
        ),
        (
            CapabilityKind::ApiKey,
            placed(SecretLocation::Header, "x-key"),
            "x-key: hush&1\r\n",
        ),
        (
            CapabilityKind::ApiKey,
            placed(SecretLocation::Query, "k"),
            "/base/make?k=hush%261 HTTP",
        ),
        (
            CapabilityKind::ApiKey,
            placed(SecretLocation::Cookie, "k"),
            "cookie: k=hush&1\r\n",
        ),
    ] {
        let (one, filler) = key(kind, power);
        let mut options = options(&secured);
        options.credential = Some(one);
        let node = node(options);
        node.call("ns/make", json!({})).await.expect("an answer");
        let heard = server.heard().remove(0);
        assert!(heard.contains(shown), "{shown}: {heard}");
        // Where the operation needs no credential, the node sends none.
        node.call("ns/open", json!(null)).await.expect("an answer");
        assert!(!server.heard().remove(0).contains(shown));
        filler.empty(CapabilityError::Locked);
        let error = node.call("ns/make", json!({})).await.expect_err("locked");
        assert_eq!(
            (error.code, error.retryable),
            (ErrorCode::Unavailable, true)
        );
        assert!(server.heard().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn access_tokens_are_asked_for_when_needed() {
    let server = StubServer::default();
    let secured = server.start().await;
    let (user, password) = ("id".to_owned(), secret("s"));
    let (one, filler) = key(
        CapabilityKind::Basic,
        CapabilityBackend::Basic { user, password },
    );
    let mut options = options(&secured);
    options.credential = Some(one);
    options.tokens = Some(TokenSource {
        url: format!("https://{}/token", secured.address),
        scopes: vec!["a".to_owned(), "b&c".to_owned()],
    });
    let node = node(options);
    let granted = |token: &str| {
        let body = json!({ "access_token": token, "token_type": "Bearer", "expires_in": 3600 });
        json_answer("200 OK", &body)
    };
    server.will_answer(granted("one"));
    for _ in 0..2 {
        node.call("ns/make", json!({})).await.expect("an answer");
    }
    let heard = server.heard();
    assert_eq!(heard.len(), 3, "{heard:#?}");
    assert!(
        heard[0].starts_with("POST /token HTTP/1.1\r\n"),
        "{}",
        heard[0]
    );
    assert!(heard[0].contains("authorization: Basic aWQ6cw==\r\n"));
    assert!(heard[0].ends_with("grant_type=client_credentials&scope=a+b%26c"));
    assert!(heard[1].contains("authorization: Bearer one\r\n") && !heard[1].contains("aWQ6cw"));
    // Taken back before its time: another one is asked for, once.
    server.will_answer(answer("401 Unauthorized", "text/plain", ""));
    server.will_answer(granted("two"));
    node.call("ns/make", json!({})).await.expect("an answer");
    let heard = server.heard();
    assert_eq!(heard.len(), 3, "{heard:#?}");
    assert!(heard[2].contains("authorization: Bearer two\r\n"));
    // Once the vault is locked, the node does not use the token that it holds.
    filler.empty(CapabilityError::Locked);
    let error = node.call("ns/make", json!({})).await.expect_err("locked");
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(server.heard().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_events_one_by_one() {
    let server = StubServer::default();
    let node = node(options(&server.start().await));
    let events = "data: {\"n\": 1}\n\nevent: end\nid: 9\ndata: [DONE]\n\n";
    server.will_answer(answer("200 OK", "text/event-stream; charset=utf-8", events));
    let all = node.events("ns/events", json!(null)).await;
    assert_eq!(
        all,
        [
            json!({ "event": "message", "data": { "n": 1 } }),
            json!({ "event": "end", "id": "9", "data": "[DONE]" }),
        ]
    );
    server.will_answer(json_answer("200 OK", &json!({ "whole": true })));
    let all = node.events("ns/events", json!(null)).await;
    assert_eq!(
        all,
        [json!({ "event": "message", "data": { "whole": true } })]
    );
    assert!(server.heard()[0].contains("accept: text/event-stream\r\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_place_that_is_not_listed_is_asked() {
    let server = StubServer::default();
    let secured = server.start().await;
    // Why a server cannot be reached is for those who read the node.
    let code = |options: OpenApiOptions| async {
        let node = node(options);
        let error = node.call_as("reader", None, "ns/open", json!(null)).await;
        error.expect_err("refused").to_string()
    };
    let mut private = options(&secured);
    private.private.clear();
    assert!(code(private).await.contains("no public address"));
    // By a name as well: what it resolves to counts.
    let mut named = options(&secured);
    named.private.clear();
    named.base_url = format!("https://localhost:{}", secured.address.port());
    assert!(code(named).await.contains("no public address"));
    let mut unpinned = options(&secured);
    unpinned.pins.clear();
    assert!(code(unpinned).await.contains("pinned key"));
    assert!(server.heard().is_empty());
    // A redirect elsewhere is not followed, one to the same place is.
    let node = node(options(&secured));
    server.will_answer("HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n");
    server.will_answer(answer("200 OK", "text/plain", "there"));
    assert_eq!(node.call("ns/open", json!(null)).await, Ok(json!("there")));
    server.will_answer(
        "HTTP/1.1 302 Found\r\nlocation: https://evil.example/\r\ncontent-length: 0\r\n\r\n",
    );
    let refused = node.call_as("reader", None, "ns/open", json!(null)).await;
    let error = refused.expect_err("elsewhere");
    assert!(error.message.contains("evil.example"), "{error}");
    for bad in [
        "http://api.example",
        "https://u:p@api.example",
        "https://x/?a",
        "/x",
        "https://",
    ] {
        let options = OpenApiOptions::new("ns", bad);
        assert!(
            FromOpenApi::new("".into(), options, dialer()).is_err(),
            "{bad}"
        );
    }
}

async fn fetched(at: &TlsFrontend, options: &OpenApiOptions) -> Result<Bytes, FetchError> {
    let url = format!("https://{}/openapi.json", at.address);
    fetch_document(&url, options, dialer()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_fetched_by_the_rules_of_their_server() {
    let (server, other) = (StubServer::default(), StubServer::default());
    let (secured, elsewhere) = (server.start().await, other.start().await);
    let (one, filler) = key(
        CapabilityKind::Bearer,
        CapabilityBackend::Bearer(secret("hush")),
    );
    let mut options = options(&secured);
    options.credential = Some(one);
    let text = document().to_string();
    server.will_answer(json_answer("200 OK", &document()));
    let found = fetched(&secured, &options).await.expect("a document");
    assert_eq!(found, text);
    let heard = server.heard().remove(0);
    let line = "GET /openapi.json HTTP/1.1\r\n";
    let shown = "authorization: Bearer hush\r\n";
    assert!(heard.starts_with(line) && heard.contains(shown), "{heard}");
    server.will_answer(answer("404 Not Found", "text/plain", ""));
    let error = fetched(&secured, &options).await.expect_err("none");
    assert!(matches!(error, FetchError::Status { .. }), "{error}");
    assert_eq!(server.heard().len(), 1);
    // The node accepts the pinned key from this server only, and dials no other address.
    let error = fetched(&elsewhere, &options).await.expect_err("no pin");
    assert!(error.to_string().contains("pinned key"), "{error}");
    options.private.clear();
    let error = fetched(&secured, &options).await;
    let error = error.expect_err("on this computer").to_string();
    assert!(error.contains("no public address"), "{error}");
    options.private = vec!["127.0.0.0/8".parse().expect("a range")];
    filler.empty(CapabilityError::Locked);
    let error = fetched(&secured, &options).await.expect_err("locked");
    assert!(!error.to_string().contains("hush"), "{error}");
    assert!(server.heard().is_empty() && other.heard().is_empty());
}
