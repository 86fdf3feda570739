//! Servers that mean no good: each ends in one error, in bounded time and memory.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::{AdapterError, CallError, ErrorCode, ImportMemory, OperationAdapter};
use alknet_mcp::limits::{
    CALLS_MAX, CALLS_OF_ONE_MAX, EVENT_BYTES_MAX, PAGES_MAX, SCHEMA_BYTES_MAX, TOOLS_MAX,
};
use alknet_test_support::deadline;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::imports::{McpImporter, adapter, adapter_in};

/// What a server does with a message.
pub(crate) enum McpServerReply {
    /// This result.
    Result(Value),
    /// This whole body, of this media type.
    Body(&'static str, String),
    /// This, again and again.
    Endless(String),
    /// This result, once it is notified.
    Held(Arc<Notify>, Value),
    /// No answer at all.
    Silence,
    /// What a notification gets.
    Accepted,
    /// A refusal of what a server of an older version does not know.
    NotFound,
}

/// Answers messages as `reply` says, and greetings and notifications as they should be.
pub(crate) async fn server(
    reply: impl Fn(&Value) -> McpServerReply + Send + Sync + 'static,
) -> u16 {
    raw_server(move |message| usual(message).unwrap_or_else(|| reply(message))).await
}

/// What a server of an older version does with greetings and notifications.
pub(crate) fn usual(message: &Value) -> Option<McpServerReply> {
    match message["method"].as_str().unwrap_or_default() {
        "server/discover" => Some(McpServerReply::NotFound),
        "initialize" => Some(McpServerReply::Result(json!({
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "bad", "version": "1"},
        }))),
        _ if message["id"].is_null() => Some(McpServerReply::Accepted),
        _ => None,
    }
}

/// Answers every message as `reply` says.
pub(crate) async fn raw_server(
    reply: impl Fn(&Value) -> McpServerReply + Send + Sync + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let reply = Arc::new(reply);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(exchange(stream, Arc::clone(&reply)));
        }
    });
    port
}

async fn exchange(stream: TcpStream, reply: Arc<impl Fn(&Value) -> McpServerReply + Send + Sync>) {
    let mut stream = BufReader::new(stream);
    let (mut line, mut length, mut first) = (String::new(), 0, String::new());
    while stream.read_line(&mut line).await.is_ok_and(|n| n > 2) {
        let lower = line.to_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        if first.is_empty() {
            first = std::mem::take(&mut line);
        }
        line.clear();
    }
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    let empty = |status: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    };
    if !first.starts_with("POST") {
        return drop(stream.write_all(empty("405 No").as_bytes()).await);
    }
    let message: Value = serde_json::from_slice(&body).expect("JSON");
    let whole = |kind: &str, body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let result = |result: Value| {
        let body = json!({"jsonrpc": "2.0", "id": message["id"], "result": result});
        whole("application/json", &body.to_string())
    };
    let text = match reply(&message) {
        McpServerReply::Result(value) => result(value),
        McpServerReply::Body(kind, body) => whole(kind, &body),
        McpServerReply::Endless(part) => {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
            let mut sent = stream.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                sent = stream.write_all(part.as_bytes()).await;
            }
            return;
        }
        McpServerReply::Held(released, value) => {
            released.notified().await;
            result(value)
        }
        McpServerReply::Silence => std::future::pending().await,
        McpServerReply::Accepted => empty("202 Fine"),
        McpServerReply::NotFound => empty("404 No"),
    };
    drop(stream.write_all(text.as_bytes()).await);
}

pub(crate) fn tool(name: &str) -> Value {
    json!({"name": name, "inputSchema": {"type": "object"}})
}

async fn listed(reply: impl Fn(&Value) -> McpServerReply + Send + Sync + 'static) -> AdapterError {
    let port = server(reply).await;
    adapter(port, None)
        .import()
        .await
        .expect_err("it is refused")
}

#[tokio::test]
async fn lists_without_end() {
    let pages = |message: &Value| {
        let page = message["params"]["cursor"].as_str().unwrap_or("0");
        let next = page.parse::<usize>().expect("a number") + 1;
        McpServerReply::Result(
            json!({"tools": [tool(&format!("t{page}"))], "nextCursor": next.to_string()}),
        )
    };
    assert_eq!(
        listed(pages).await,
        AdapterError::TooLarge("pages of tools")
    );
    const { assert!(PAGES_MAX < TOOLS_MAX) };
    let many = |_: &Value| {
        let tools: Vec<_> = (0..=TOOLS_MAX).map(|n| tool(&format!("t{n}"))).collect();
        McpServerReply::Result(json!({"tools": tools}))
    };
    assert_eq!(listed(many).await, AdapterError::TooLarge("tools"));
    let large = |_: &Value| {
        let about = "x".repeat(SCHEMA_BYTES_MAX);
        let tools: Vec<_> = (0..40)
            .map(|n| json!({"name": format!("t{n}"), "inputSchema": {"type": "object"}, "description": about}))
            .collect();
        McpServerReply::Result(json!({"tools": tools}))
    };
    assert_eq!(listed(large).await, AdapterError::TooLarge("schemas"));
}

#[tokio::test]
async fn answers_that_are_none() {
    for body in ["", "{", "[]", "null", "{\"jsonrpc\":\"2.0\"}"] {
        let body = body.to_owned();
        let error = listed(move |_| McpServerReply::Body("application/json", body.clone())).await;
        assert!(matches!(error, AdapterError::Transport(_)), "{error}");
    }
    let error = listed(|_| McpServerReply::Body("text/html", "<p>hello</p>".to_owned())).await;
    assert!(matches!(error, AdapterError::Transport(_)), "{error}");
    let error = listed(|_| McpServerReply::Result(json!({"tools": 7}))).await;
    assert!(matches!(error, AdapterError::Transport(_)), "{error}");
}

#[tokio::test]
async fn streams_that_never_end() {
    let error = listed(|_| McpServerReply::Endless("x".repeat(1 << 16))).await;
    assert!(
        error.to_string().contains("cannot be reached") || error.to_string().contains("within"),
        "{error}"
    );
    let comments = ": still here\n\n".repeat(1 << 12);
    let error = listed(move |_| McpServerReply::Endless(comments.clone())).await;
    assert!(matches!(error, AdapterError::Transport(_)), "{error}");
    const { assert!(EVENT_BYTES_MAX > 1 << 16) };
}

/// A node with the tools of a server that lists two, and answers calls as `reply` says.
pub(crate) async fn importer(
    reply: impl Fn(&Value) -> McpServerReply + Send + Sync + 'static,
) -> McpImporter {
    importer_in(&ImportMemory::default(), reply).await
}

pub(crate) async fn importer_in(
    memory: &ImportMemory,
    reply: impl Fn(&Value) -> McpServerReply + Send + Sync + 'static,
) -> McpImporter {
    let port = server(move |message| listing(message).unwrap_or_else(|| reply(message))).await;
    importer_at(memory, port).await
}

/// A list of two tools, for who asks for one.
pub(crate) fn listing(message: &Value) -> Option<McpServerReply> {
    (message["method"] == "tools/list").then(|| {
        let mut typed = tool("typed");
        typed["outputSchema"] = json!({
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
        });
        McpServerReply::Result(json!({"tools": [typed, tool("plain")]}))
    })
}

/// A node with the tools of the server at this port.
pub(crate) async fn importer_at(memory: &ImportMemory, port: u16) -> McpImporter {
    let adapter = adapter_in(memory, port, None);
    McpImporter::with_registrations(adapter.import().await.expect("tools"))
}

#[tokio::test]
async fn answers_to_calls_that_are_not_what_was_promised() {
    let node = importer(|message| match message["params"]["name"].as_str() {
        Some("typed") => {
            McpServerReply::Result(json!({"content": [], "structuredContent": {"n": "one"}}))
        }
        _ => McpServerReply::Result(json!({"content": [{"type": "text", "text": "{\"n\":1}"}]})),
    })
    .await;
    let error = node
        .call("typed", json!({}))
        .await
        .expect_err("this is no number");
    assert_eq!(error.code.name(), "INVALID_OUTPUT");
    let text = node.call("plain", json!({})).await.expect("text");
    assert_eq!(text["content"][0]["text"], "{\"n\":1}");

    let node = importer(|_| McpServerReply::Result(json!({"content": []}))).await;
    let error = node
        .call("typed", json!({}))
        .await
        .expect_err("there is nothing");
    assert_eq!(error.code.name(), "INVALID_OUTPUT");
}

#[tokio::test]
async fn an_answer_to_another_request_is_ignored() {
    let other = |id: Value| json!({"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": "a"}]}});
    // An answer with another id answers no call; the connection stays, and the next call has its answer.
    let first = std::sync::atomic::AtomicBool::new(true);
    let node = importer(move |message| {
        let spoiled = first.swap(false, std::sync::atomic::Ordering::SeqCst);
        let id = match spoiled {
            true => json!(9_999_999),
            false => message["id"].clone(),
        };
        McpServerReply::Body("application/json", other(id).to_string())
    })
    .await;
    assert_eq!(at_its_deadline(&node).await.code.name(), "TIMEOUT");
    let answer = node.call("plain", json!({})).await.expect("an answer");
    assert_eq!(answer["content"][0]["text"], "a");
}

#[tokio::test]
async fn a_call_of_a_silent_server_ends_at_its_deadline() {
    let node = importer(|_| McpServerReply::Silence).await;
    assert_eq!(at_its_deadline(&node).await.code.name(), "TIMEOUT");
}

/// How a call ends that the server does not answer. The deadline leaves time to ask the server.
async fn at_its_deadline(node: &McpImporter) -> CallError {
    let limit = deadline(Duration::from_secs(1));
    let call = node.call_within("plain", json!({}), Some(limit));
    let ended = tokio::time::timeout(deadline(Duration::from_secs(60)), call).await;
    let outcome = ended.expect("it ends by itself");
    outcome.expect_err("the server does not answer it")
}

#[tokio::test]
async fn a_server_that_is_gone_is_tried_again_later() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    drop(listener);
    let gone = adapter(port, None);
    for _ in 0..2 {
        let error = gone.import().await.expect_err("no server is there");
        assert!(error.is_temporary(), "{error}");
    }
}

#[tokio::test]
async fn colliding_names_stay_distinct() {
    let port = server(|_| {
        let tools = ["a.b", "a/b", "a_b", "a b", "a.b"].map(tool);
        McpServerReply::Result(json!({ "tools": tools }))
    })
    .await;
    let adapter = adapter(port, None);
    let found = adapter.import().await.expect("tools");
    let names: std::collections::HashSet<_> = found.iter().map(|one| &one.spec().name).collect();
    assert_eq!((found.len(), names.len()), (4, 4), "{names:?}");
    assert_eq!(adapter.left_out().len(), 1, "one was listed twice");
}

/// A list of so many values of two bytes.
fn zeros(count: usize) -> String {
    format!("[{}0]", "0,".repeat(count))
}

/// The protocol's library makes a tree of each, of 72 bytes and more for two.
#[tokio::test]
async fn answers_of_short_values_are_refused_before_they_are_parsed() {
    let many = |message: &Value, list: &str| {
        let id = &message["id"];
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"content\":[],\"structuredContent\":{list}}}}}"
        )
    };
    let memory = ImportMemory::default();
    let node = importer_in(&memory, move |message| {
        let arguments = &message["params"]["arguments"];
        let count = arguments["count"].as_u64().expect("a number");
        let body = many(message, &zeros(count as usize));
        match arguments["stream"] == true {
            true => McpServerReply::Body("text/event-stream", format!("data: {body}\n\n")),
            false => McpServerReply::Body("application/json", body),
        }
    })
    .await;
    for stream in [false, true] {
        let input = json!({"count": 1 << 20, "stream": stream});
        let called = node.call("plain", input);
        let ended = tokio::time::timeout(deadline(Duration::from_secs(60)), called).await;
        let refused = ended
            .expect("it ends by itself")
            .expect_err("they are too many");
        assert_eq!(refused.code, ErrorCode::PayloadTooLarge, "{refused}");
        assert!(refused.message.contains("values"), "{refused}");
        // The connection stays, and what was refused counts no more.
        let input = json!({"count": 100, "stream": stream});
        node.call("plain", input).await.expect("they are few");
    }
    let listing = listed(|message| {
        let schema = format!("{{\"type\":\"object\",\"default\":{}}}", zeros(1 << 20));
        let id = &message["id"];
        McpServerReply::Body(
            "application/json",
            format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"tools\":[{{\"name\":\"a\",\
                 \"inputSchema\":{schema}}}]}}}}"
            ),
        )
    });
    assert_eq!(listing.await, AdapterError::TooLarge("values in its tools"));
    assert_eq!(memory.taken(), 0);
}

#[tokio::test]
async fn calls_of_one_identity_leave_others_places_of_a_server() {
    let node = importer(
        |message| match message["params"]["arguments"]["hangs"] == true {
            true => McpServerReply::Silence,
            false => McpServerReply::Result(json!({"content": []})),
        },
    )
    .await;
    let node = Arc::new(node);
    let mut hanging = JoinSet::new();
    for _ in 0..=CALLS_MAX {
        let node = Arc::clone(&node);
        hanging.spawn(async move { node.call_as("eve", "plain", json!({"hangs": true})).await });
    }
    // The others run until their deadlines.
    for _ in 0..=CALLS_MAX - CALLS_OF_ONE_MAX {
        let ended = tokio::time::timeout(deadline(Duration::from_secs(30)), hanging.join_next());
        let ended = ended
            .await
            .expect("it is refused")
            .expect("there are as many");
        let refused = ended.expect("no panic").expect_err("all places are taken");
        assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
    }
    assert_eq!(hanging.len(), CALLS_OF_ONE_MAX);
    let answered = node.call_as("ada", "plain", json!({})).await;
    answered.expect("another identity has places");
    hanging.shutdown().await;
    // Each is free once the server has its cancellation.
    let again = async {
        while let Err(refused) = node.call_as("eve", "plain", json!({})).await {
            assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let free = tokio::time::timeout(deadline(Duration::from_secs(30)), again);
    free.await.expect("they are free again");
}
