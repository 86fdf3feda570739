//! A connection to a server of the newest version.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use alknet_call::ImportMemory;
use alknet_core::{
    BoxFuture, DialAllowList, DialError, DialErrorKind, DialRequest, DialedConnection, Dialer,
};
use alknet_http_client::{ClientOptions, HttpClient};
use rmcp::model::{JsonObject, ServerResult};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::param_headers::ParamHeaders;
use super::remote::{McpRemote, McpToolTarget};
use super::{McpImport, lock};

/// Refuses every dial: the server of these tests is reached without TLS.
#[derive(Debug)]
struct RefusingMcpDialer;

impl Dialer for RefusingMcpDialer {
    fn connect(&self, _request: DialRequest) -> BoxFuture<'_, Result<DialedConnection, DialError>> {
        let error = DialError::new(DialErrorKind::Local, "nothing is dialled here");
        Box::pin(std::future::ready(Err(error)))
    }
}

/// A server that lists other tools each time, and answers a call with a list as well.
#[derive(Default)]
struct NewestMcpServer {
    listings: AtomicUsize,
    /// The head of the last request that called a tool.
    called: Mutex<String>,
}

impl NewestMcpServer {
    /// A connection to it.
    async fn remote(self: &Arc<Self>, memory: &ImportMemory) -> McpRemote {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let server = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = Arc::clone(&server);
                tokio::spawn(async move { server.exchange(stream).await });
            }
        });
        let options = ClientOptions {
            reach: DialAllowList::Anywhere,
            plain: vec![format!("127.0.0.1:{port}").parse().expect("a place")],
            ..ClientOptions::default()
        };
        let import = McpImport {
            namespace: "tools".to_owned(),
            url: format!("http://127.0.0.1:{port}/mcp"),
            credential: None,
            only: Vec::new(),
        };
        let client = HttpClient::new(Arc::new(RefusingMcpDialer), options);
        McpRemote::new(client, import, memory.share())
    }

    async fn exchange(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        while stream.read_line(&mut head).await.is_ok_and(|n| n > 2) {
            let line = head.lines().next_back().unwrap_or_default().to_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let message: Value = serde_json::from_slice(&body).expect("JSON");
        let method = message["method"].as_str().unwrap_or_default();
        if method == "tools/call" {
            *lock(&self.called) = head.to_lowercase();
        }
        let (kind, body) = self.answer(method, &message["id"]);
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        drop(stream.write_all(answer.as_bytes()).await);
    }

    /// Every second listing is an event of a stream.
    fn answer(&self, method: &str, id: &Value) -> (&'static str, String) {
        let answer = |result: Value| json!({"jsonrpc": "2.0", "id": id, "result": result});
        if method == "server/discover" {
            let discovered = json!({
                "resultType": "complete",
                "supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}},
                "ttlMs": 0,
                "cacheScope": "private",
            });
            return ("application/json", answer(discovered).to_string());
        }
        let listing = self.listings.fetch_add(1, Ordering::SeqCst);
        let tool = |n: usize| {
            json!({
                "name": format!("tool_{listing}_{n}"),
                "inputSchema": {"type": "object", "default": vec![0; 100]},
            })
        };
        let tools: Vec<_> = (0..10).map(tool).collect();
        let list = answer(json!({"resultType": "complete", "tools": tools}));
        match listing % 2 {
            0 => ("application/json", list.to_string()),
            _ => ("text/event-stream", format!("data: {list}\n\n")),
        }
    }
}

fn object(value: Value) -> JsonObject {
    match value {
        Value::Object(members) => members,
        other => panic!("{other} is no object"),
    }
}

/// The library keeps the schemas of each list that it recognises, by the names of the tools.
#[tokio::test]
async fn a_connection_keeps_no_schema_of_tools_with_ever_new_names() {
    let memory = ImportMemory::default();
    let remote = Arc::new(NewestMcpServer::default()).remote(&memory).await;
    let mut schemas = Vec::new();
    for listing in 0..50 {
        let counted = remote.answer_meter();
        let list = remote.list(&counted).await.expect("a list");
        assert!(list.takes_headers, "this version is the newest");
        let names: Vec<_> = list
            .tools
            .iter()
            .map(|tool| tool.name.to_string())
            .collect();
        let expected: Vec<_> = (0..10).map(|n| format!("tool_{listing}_{n}")).collect();
        assert_eq!(names, expected);
        let listed = list
            .tools
            .iter()
            .map(|tool| Arc::downgrade(&tool.input_schema));
        schemas.extend(listed);
    }
    let kept = schemas.iter().filter(|schema| schema.strong_count() > 0);
    assert_eq!(kept.count(), 0, "of {}", schemas.len());
}

#[tokio::test]
async fn a_list_that_answers_a_call_is_no_list_either() {
    let memory = ImportMemory::default();
    let remote = Arc::new(NewestMcpServer::default()).remote(&memory).await;
    let tool = McpToolTarget {
        name: "a".to_owned(),
        typed: false,
        headers: ParamHeaders::default(),
    };
    for _ in 0..2 {
        let counted = remote.answer_meter();
        let answer = remote
            .ask(&tool, None, &counted, None)
            .await
            .expect("an answer");
        assert!(
            matches!(answer, ServerResult::CustomResult(_)),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_server_gets_the_headers_that_its_schema_asks_for() {
    let memory = ImportMemory::default();
    let server = Arc::new(NewestMcpServer::default());
    let remote = server.remote(&memory).await;
    let schema = json!({"properties": {"region": {"type": "string", "x-mcp-header": "Region"}}});
    let tool = McpToolTarget {
        name: "a".to_owned(),
        typed: false,
        headers: ParamHeaders::from_schema(&object(schema)).expect("headers"),
    };
    let counted = remote.answer_meter();
    let arguments = object(json!({"region": "eu", "text": "none"}));
    let answer = remote.ask(&tool, Some(arguments), &counted, None).await;
    answer.expect("an answer");
    let called = lock(&server.called);
    assert!(called.contains("\r\nmcp-param-region: eu\r\n"), "{called}");
}
