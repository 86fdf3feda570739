//! A node with operations to try, and as much of an HTTP server as carries `/mcp`.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{Dispatcher, LocalCaller};
use alknet_core::{Identity, IdentityKind, PeerId, memory_pair};
use alknet_gateway::{Gateway, HttpCaller, HttpIngress, Quota, RequestId};
use alknet_mcp::{McpOptions, McpServer};
use http::header::AUTHORIZATION;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::fixtures::registry;

/// May do everything.
pub(crate) const ADMIN: &str = "alk_test";
/// May do what every caller may.
pub(crate) const GUEST: &str = "alk_guest";

pub(crate) struct McpTestNode {
    pub(crate) server: Arc<McpServer>,
    pub(crate) port: u16,
    /// Calls of `demo/slow` that run.
    pub(crate) slow: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for McpTestNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The identity that a connection itself proves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum McpTestProof {
    /// The administrator, as by a key.
    Key,
    /// No identity: a token is needed.
    Nothing,
}

impl McpTestNode {
    pub(crate) async fn start(by: McpTestProof, tools: &[&str]) -> Self {
        let (dispatcher, slow) = registry();
        let gateway = Arc::new(Gateway::new(Quota::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let options = McpOptions {
            tools: tools.iter().map(|&tool| tool.to_owned()).collect(),
            hosts: Some(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]),
            origins: vec![
                format!("http://localhost:{port}"),
                format!("http://127.0.0.1:{port}"),
            ],
        };
        let server = Arc::new(McpServer::new(gateway, options));
        let task = tokio::spawn(serve(listener, Arc::clone(&server), dispatcher, by));
        Self {
            server,
            port,
            slow,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }

    /// Sends a message as some client might, and returns status and body.
    pub(crate) async fn post(&self, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let mut stream = self.begin(headers, body).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).expect("a status");
        (status.parse().expect("a number"), body.to_owned())
    }

    /// The same without waiting for the answer.
    pub(crate) async fn begin(&self, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let given = |name: &str| headers.iter().any(|(it, _)| it.eq_ignore_ascii_case(name));
        let mut head = "POST /mcp HTTP/1.1\r\nConnection: close\r\n".to_owned();
        let standard = [
            ("Host", format!("127.0.0.1:{}", self.port)),
            ("Accept", "application/json, text/event-stream".to_owned()),
            ("Content-Type", "application/json".to_owned()),
            ("Authorization", format!("Bearer {ADMIN}")),
            ("Content-Length", body.len().to_string()),
        ];
        for (name, value) in standard.iter().filter(|(name, _)| !given(name)) {
            write!(head, "{name}: {value}\r\n").expect("a string takes it");
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            write!(head, "{name}: {value}\r\n").expect("a string takes it");
        }
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))
            .await
            .expect("it listens");
        let whole = format!("{head}\r\n{body}");
        stream.write_all(whole.as_bytes()).await.expect("it reads");
        stream
    }
}

async fn serve(
    listener: TcpListener,
    server: Arc<McpServer>,
    node: Arc<Dispatcher>,
    by: McpTestProof,
) {
    // The other end has to live as long as the connection does.
    let (_other, connection) = memory_pair(b"h2");
    let gate = LocalCaller::new(&node, &connection, None);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let (server, gate) = (Arc::clone(&server), gate.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (server, gate) = (Arc::clone(&server), gate.clone());
            async move { Ok::<_, Infallible>(answer(request, &server, gate, by).await) }
        });
        tokio::spawn(async move {
            let io = TokioIo::new(stream);
            // A client that breaks off is part of the tests.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await;
        });
    }
}

async fn answer(
    mut request: Request<Incoming>,
    server: &McpServer,
    gate: LocalCaller,
    by: McpTestProof,
) -> Response<alknet_core::MountBody> {
    let token = request.headers().get(AUTHORIZATION);
    let token = token.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let identity = match (token, by) {
        (Some(ADMIN), _) | (None, McpTestProof::Key) => Some(identity("admin", &["*"])),
        (Some(GUEST), _) => Some(identity("guest", &[])),
        _ => None,
    };
    request.extensions_mut().insert(HttpCaller {
        gate,
        identity,
        token: None,
        via: HttpIngress::Http,
        remote: None,
        proved_by: None,
        account: None,
        began: std::time::Instant::now(),
        request_id: RequestId::next(),
    });
    server.respond(request).await
}

pub(crate) fn identity(name: &str, scopes: &[&str]) -> Arc<Identity> {
    Arc::new(Identity {
        id: name.parse::<PeerId>().expect("a name"),
        kind: IdentityKind::Token,
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        resources: std::collections::BTreeMap::new(),
        generation: 0,
    })
}

/// Counts what runs; what is dropped runs no more.
pub(crate) struct McpRunCounter(pub(crate) Arc<AtomicUsize>, pub(crate) watch::Sender<usize>);

impl McpRunCounter {
    pub(crate) fn begin(count: &Arc<AtomicUsize>, told: &watch::Sender<usize>) -> Self {
        told.send_replace(count.fetch_add(1, Ordering::SeqCst) + 1);
        Self(Arc::clone(count), told.clone())
    }
}

impl Drop for McpRunCounter {
    fn drop(&mut self) {
        self.1
            .send_replace(self.0.fetch_sub(1, Ordering::SeqCst) - 1);
    }
}
