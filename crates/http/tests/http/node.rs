//! A node without a port, and clients of it.

mod client;
mod operations;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::{CallError, ErrorCode};
use alknet_call::{
    CallOutput, Dispatcher, ErrorDef, HandlerKind, OperationSpec, Registration, Registry,
};
use alknet_core::config::NodeConfig;
use alknet_core::{
    AuthContext, AuthToken, BoxError, BoxFuture, Carriage, CloseCode, CloseReason, Connection,
    ConnectionInfo, HandlerError, HttpMount, Identity, IdentityKind, IdentityProvider, MountBody,
    PeerKey, ProtocolHandler, RecvStream, SendStream, StreamError, StreamSource, memory_pair,
};
use alknet_gateway::{Gateway, HttpCaller};
use alknet_http::limits::HttpTimeouts;
use alknet_http::{
    DescriptionSource, HealthSource, HttpHandler, HttpHandlerParts, HttpSettings, MountResponder,
    PublicReachability, RouteError,
};
use alknet_test_support::deadline;
use axum::Extension;
use axum::body::Body;
use axum::routing::{MethodRouter, get, post};
use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) use client::{HttpTestClient, HttpTestResponse, ServeTask, UnfinishedRequest};
use operations::registry;

pub(crate) const VERSIONS: [&str; 2] = ["h1", "h2"];

/// A connection that comes from an address.
struct AddressedConnection(Connection);

impl AddressedConnection {
    fn at(address: SocketAddr, connection: Connection, alpn: &[u8]) -> Connection {
        let info = ConnectionInfo {
            alpn: alpn.into(),
            carriage: Carriage::Memory,
            sni: None,
            remote_addr: Some(address),
            local_addr: None,
            dialled: false,
        };
        Connection::from_source(Box::new(Self(connection)), info)
    }
}

impl StreamSource for AddressedConnection {
    fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(self.0.accept_bi())
    }

    fn open_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(self.0.open_bi())
    }

    fn is_multi(&self) -> bool {
        true
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.0.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(self.0.closed())
    }
}

/// How long anything may take before a test calls it hung.
pub(crate) fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}

struct HttpTestIdentities {
    changes: watch::Sender<u64>,
    revoked: AtomicBool,
}

impl IdentityProvider for HttpTestIdentities {
    fn by_key(&self, _: &PeerKey) -> Option<Arc<Identity>> {
        None
    }

    fn by_token(&self, token: &AuthToken) -> Option<Arc<Identity>> {
        let (id, scopes): (&str, &[&str]) = match token.expose() {
            "good" if !self.revoked.load(Ordering::SeqCst) => ("token", &[]),
            "admin" => ("admin", &["admin"]),
            "other" => ("other", &[]),
            _ => return None,
        };
        Some(Arc::new(Identity {
            id: id.parse().expect("an id"),
            kind: IdentityKind::Token,
            scopes: scopes.iter().collect(),
            resources: Default::default(),
            generation: 0,
        }))
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

struct AlwaysHealthy;

impl HealthSource for AlwaysHealthy {
    fn degraded(&self) -> Option<String> {
        None
    }
}

impl DescriptionSource for AlwaysHealthy {
    fn text(&self, digest: &str) -> Bytes {
        json!({ "openapi": "3.1.0", "x": digest })
            .to_string()
            .into()
    }
}

/// Reads what it is sent, and says whether that came to an end.
struct BodyReadProbe;

impl MountResponder for BodyReadProbe {
    fn respond(
        &self,
        request: Request<MountBody>,
        _: HttpCaller,
    ) -> BoxFuture<'_, Response<MountBody>> {
        Box::pin(async {
            let status = read(request.into_body()).await;
            let body = Full::<Bytes>::default().map_err(|never| -> BoxError { match never {} });
            let mut response = Response::new(MountBody::new(body));
            *response.status_mut() = status;
            response
        })
    }
}

async fn read(body: impl http_body::Body) -> StatusCode {
    let read = body.collect().await;
    read.map_or(StatusCode::BAD_REQUEST, |_| StatusCode::OK)
}

pub(crate) struct HttpTestNode {
    http: Arc<HttpHandler>,
    gateway: Arc<Gateway>,
    dropped: Arc<AtomicUsize>,
    ran: Arc<AtomicUsize>,
    who: Arc<HttpTestIdentities>,
}

impl HttpTestNode {
    pub(crate) fn new(config: &str) -> Self {
        Self::make(
            config,
            HttpTimeouts::default(),
            None,
            Vec::new(),
            Vec::new(),
        )
        .expect("no two mounts have one path")
    }

    /// One on a machine with so much memory.
    pub(crate) fn on(memory_bytes: u64) -> Self {
        let node = Self::new("");
        let settings = HttpSettings::new(&NodeConfig::default()).for_memory(memory_bytes);
        node.http.set(settings);
        node
    }

    /// Bytes of requests and answers that are under way.
    pub(crate) fn bytes(&self) -> usize {
        self.gateway.bytes()
    }

    /// Waits until so many are.
    pub(crate) async fn until_bytes(&self, bytes: usize) {
        let wait = async {
            while self.bytes() != bytes {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(hung(), wait).await;
        waited.unwrap_or_else(|_| panic!("{} bytes, not {bytes}", self.bytes()));
    }

    /// One on a machine with so much memory, with a site.
    pub(crate) fn with_site(memory_bytes: u64, folder: PathBuf, config: &str) -> Self {
        let site = Some(folder);
        let patience = HttpTimeouts::default();
        let node = Self::make_with(site, config, patience, None, Vec::new(), Vec::new());
        let node = node.expect("no two mounts have one path");
        let config = NodeConfig::parse(config.as_bytes()).expect("a configuration");
        node.http
            .set(HttpSettings::new(&config).for_memory(memory_bytes));
        node
    }

    /// Asks for this over HTTP/1.1 from an address, hears the beginning of the answer, which has its status, and
    /// reads no more while it keeps the connection.
    pub(crate) async fn leaves(
        &self,
        address: SocketAddr,
        path: &str,
    ) -> (String, UnfinishedRequest) {
        let (dialled, served) = self.dial_from(Some(address), b"http/1.1");
        let (mut send, mut recv) = dialled.open_bi().await.expect("a stream");
        let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        send.write_all(text.as_bytes()).await.expect("it reads");
        let mut status = [0; 12];
        let heard = tokio::time::timeout(hung(), recv.read_exact(&mut status)).await;
        heard.expect("it hangs").expect("it answers");
        let begun = UnfinishedRequest {
            send,
            _recv: recv,
            _dialled: dialled,
            _served: served,
        };
        (String::from_utf8_lossy(&status).into_owned(), begun)
    }

    /// Says this over HTTP/1.1, and keeps the connection.
    pub(crate) async fn begins(&self, text: &str) -> UnfinishedRequest {
        let (dialled, served) = self.dial(b"http/1.1");
        let (mut send, recv) = dialled.open_bi().await.expect("a stream");
        send.write_all(text.as_bytes()).await.expect("it reads");
        UnfinishedRequest {
            send,
            _recv: recv,
            _dialled: dialled,
            _served: served,
        }
    }

    /// One that has other patience, and parts of others that read bodies: the page, tools, `/mine`.
    pub(crate) fn patient(patience: HttpTimeouts) -> Self {
        let route = post(|request: Request<Body>| read(request.into_body()));
        let reader: Arc<dyn MountResponder> = Arc::new(BodyReadProbe);
        let routes = vec![("/mine", route)];
        Self::make("", patience, Some(reader), routes, Vec::new())
            .expect("no two mounts have one path")
    }

    /// One with views of other parts.
    pub(crate) fn with_mounts(mounts: Vec<Arc<dyn HttpMount>>) -> Self {
        Self::make("", HttpTimeouts::default(), None, Vec::new(), mounts)
            .expect("no two mounts have one path")
    }

    /// One with this configuration, and views of other parts.
    pub(crate) fn with_config_and_mounts(config: &str, mounts: Vec<Arc<dyn HttpMount>>) -> Self {
        Self::make(config, HttpTimeouts::default(), None, Vec::new(), mounts)
            .expect("no two mounts have one path")
    }

    pub(crate) fn with_route(path: &'static str) -> Result<Self, RouteError> {
        let route = get(|Extension(caller): Extension<HttpCaller>| async move {
            caller
                .identity
                .map_or_else(|| "unknown".to_owned(), |who| who.id.to_string())
        });
        let routes = vec![(path, route)];
        Self::make("", HttpTimeouts::default(), None, routes, Vec::new())
    }

    fn make(
        config: &str,
        patience: HttpTimeouts,
        reader: Option<Arc<dyn MountResponder>>,
        routes: Vec<(&'static str, MethodRouter)>,
        mounts: Vec<Arc<dyn HttpMount>>,
    ) -> Result<Self, RouteError> {
        Self::make_with(None, config, patience, reader, routes, mounts)
    }

    fn make_with(
        site: Option<PathBuf>,
        config: &str,
        patience: HttpTimeouts,
        reader: Option<Arc<dyn MountResponder>>,
        routes: Vec<(&'static str, MethodRouter)>,
        mounts: Vec<Arc<dyn HttpMount>>,
    ) -> Result<Self, RouteError> {
        let config = NodeConfig::parse(config.as_bytes()).expect("a configuration");
        let (dropped, ran) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let who = Arc::new(HttpTestIdentities {
            changes: watch::Sender::new(0),
            revoked: AtomicBool::new(false),
        });
        let dispatcher =
            Dispatcher::new(registry(&dropped, &ran)).with_identities(Arc::clone(&who) as _);
        let gateway = Arc::new(Gateway::default());
        let parts = HttpHandlerParts {
            dispatcher: Arc::new(dispatcher),
            gateway: Arc::clone(&gateway),
            settings: HttpSettings::new(&config).with_patience(patience),
            health: Arc::new(AlwaysHealthy),
            document: Arc::new(AlwaysHealthy),
            challenges: None,
            mcp: reader.clone(),
            page: reader,
            websocket: true,
            site,
            mounts,
            routes,
        };
        Ok(Self {
            http: Arc::new(HttpHandler::new(parts, true)?),
            gateway,
            dropped,
            ran,
            who,
        })
    }

    /// The token "good" belongs to no identity from now on.
    pub(crate) fn revoke(&self) {
        self.who.revoked.store(true, Ordering::SeqCst);
        self.who.changes.send_modify(|n| *n += 1);
    }

    /// It was seen so from outside.
    pub(crate) fn seen(&self, reachability: PublicReachability) {
        self.http.set_reachability(reachability);
    }

    /// How often `test/change` ran.
    pub(crate) fn ran(&self) -> usize {
        self.ran.load(Ordering::SeqCst)
    }

    pub(crate) fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }

    /// Waits until so many calls run.
    pub(crate) async fn until_running(&self, calls: u32) {
        let wait = async {
            while self.gateway.running().0 != calls {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(hung(), wait).await.expect("it hangs");
    }

    /// A connection, and what serves it.
    fn dial(&self, alpn: &'static [u8]) -> (Connection, JoinHandle<Result<(), HandlerError>>) {
        self.dial_from(None, alpn)
    }

    /// The same, from this address.
    fn dial_from(
        &self,
        address: Option<SocketAddr>,
        alpn: &'static [u8],
    ) -> (Connection, JoinHandle<Result<(), HandlerError>>) {
        let (dialled, accepted) = memory_pair(alpn);
        let accepted = match address {
            Some(address) => AddressedConnection::at(address, accepted, alpn),
            None => accepted,
        };
        let ServeTask(served) = self.serve(accepted, address);
        (dialled, served)
    }

    /// Serves the node's end of a connection from this address.
    pub(crate) fn serve(&self, accepted: Connection, address: Option<SocketAddr>) -> ServeTask {
        let auth = AuthContext {
            identity: None,
            key: None,
            alpn: accepted.alpn().into(),
            sni: None,
            remote_addr: address,
            carriage: Carriage::Memory,
            early_data: false,
        };
        let handler = Arc::clone(&self.http);
        ServeTask(tokio::spawn(handler.handle(accepted, auth)))
    }

    /// Says this over HTTP/1.1, and hears until it has heard `end`.
    pub(crate) async fn hears(&self, text: &str, end: &str) -> String {
        let (dialled, _served) = self.dial(b"http/1.1");
        let work = async {
            let (mut send, mut recv) = dialled.open_bi().await.expect("a stream");
            send.write_all(text.as_bytes()).await.expect("it reads");
            let mut heard = Vec::new();
            while !String::from_utf8_lossy(&heard).contains(end) {
                let read = recv.read_buf(&mut heard).await.expect("it answers");
                assert_ne!(read, 0, "{}", String::from_utf8_lossy(&heard));
            }
            String::from_utf8(heard).expect("text")
        };
        tokio::time::timeout(hung(), work).await.expect("it hangs")
    }

    /// Says `begin`, and then `piece` again and again until the node ends the connection; what it heard then. The node
    /// has to end it before it was sent so many bytes.
    pub(crate) async fn floods(
        &self,
        alpn: &'static [u8],
        begin: &[u8],
        piece: &[u8],
        most: usize,
    ) -> Vec<u8> {
        let (dialled, served) = self.dial(alpn);
        let work = async {
            let (mut send, mut recv) = dialled.open_bi().await.expect("a stream");
            send.write_all(begin).await.expect("it reads");
            let mut sent = begin.len();
            while send.write_all(piece).await.is_ok() {
                sent += piece.len();
                assert!(sent < most, "the node reads on");
            }
            ServeTask(served).ended().await;
            let mut heard = Vec::new();
            // How it ends says nothing more.
            let _ = recv.read_to_end(&mut heard).await;
            heard
        };
        tokio::time::timeout(hung(), work).await.expect("it hangs")
    }

    /// Says each of these over one connection of HTTP/1.1, waits for `pause` in between, and hears what comes
    /// until the node ends it.
    pub(crate) async fn says(&self, texts: &[&str], pause: Duration) -> String {
        let (dialled, _served) = self.dial(b"http/1.1");
        let (mut send, mut recv) = dialled.open_bi().await.expect("a stream");
        let saying = async {
            for text in texts {
                tokio::time::sleep(pause).await;
                send.write_all(text.as_bytes()).await.expect("it reads");
            }
        };
        let mut heard = Vec::new();
        let work = async { tokio::join!(saying, recv.read_to_end(&mut heard)) };
        let (_, ended) = tokio::time::timeout(hung(), work).await.expect("it hangs");
        ended.expect("it ends");
        String::from_utf8(heard).expect("text")
    }

    /// Says `begin`, and then what `piece` makes, with a pause before each, until the node ends the connection. How
    /// often that was, and what was heard.
    pub(crate) async fn repeats(
        &self,
        alpn: &'static [u8],
        begin: &[u8],
        mut piece: impl FnMut(u32) -> Vec<u8>,
        pause: Duration,
    ) -> (u32, Vec<u8>) {
        let (dialled, served) = self.dial(alpn);
        let (mut send, mut recv) = dialled.open_bi().await.expect("a stream");
        let saying = async {
            let mut said = 0;
            let mut text = begin.to_vec();
            while send.write_all(&text).await.is_ok() {
                said += 1;
                tokio::time::sleep(pause).await;
                text = piece(said);
            }
            said
        };
        let mut heard = Vec::new();
        let work = async { tokio::join!(saying, recv.read_to_end(&mut heard)) };
        // How it ends says nothing more.
        let (said, _) = tokio::time::timeout(hung(), work).await.expect("it hangs");
        ServeTask(served).ended().await;
        (said, heard)
    }

    pub(crate) async fn client(&self, version: &'static str) -> HttpTestClient {
        self.connect(version).await.0
    }

    /// A client, and what serves it.
    pub(crate) async fn connect(&self, version: &'static str) -> (HttpTestClient, ServeTask) {
        let alpn: &[u8] = if version == "h1" { b"http/1.1" } else { b"h2" };
        let (dialled, served) = self.dial(alpn);
        let served = ServeTask(served);
        let (send, recv) = dialled.open_bi().await.expect("a stream");
        let io = TokioIo::new(tokio::io::join(recv, send));
        if version == "h1" {
            let (sender, connection) = http1::handshake(io).await.expect("HTTP/1.1");
            tokio::spawn(async move {
                let _dialled = dialled;
                connection.await
            });
            return (HttpTestClient::H1(sender), served);
        }
        let made = http2::handshake(TokioExecutor::new(), io).await;
        let (sender, connection) = made.expect("HTTP/2");
        tokio::spawn(async move {
            let _dialled = dialled;
            connection.await
        });
        (HttpTestClient::H2(sender), served)
    }

    pub(crate) fn request(
        &self,
        method: Method,
        token: Option<&str>,
        path: &str,
        body: &str,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://localhost{path}"))
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = Full::new(Bytes::from(body.to_owned()));
        request.body(body).expect("a request")
    }

    pub(crate) async fn post(
        &self,
        version: &'static str,
        token: Option<&str>,
        path: &str,
        body: &Value,
    ) -> HttpTestResponse {
        let request = self.request(Method::POST, token, path, &body.to_string());
        self.client(version).await.response(request).await
    }

    pub(crate) async fn get(
        &self,
        version: &'static str,
        token: Option<&str>,
        path: &str,
    ) -> HttpTestResponse {
        let request = self.request(Method::GET, token, path, "");
        self.client(version).await.response(request).await
    }

    pub(crate) fn subscribe(&self, token: &str, body: &Value) -> Request<Full<Bytes>> {
        let mut request = self.request(Method::POST, Some(token), "/subscribe", &body.to_string());
        let kind = "text/event-stream".parse().expect("a header");
        request.headers_mut().insert(ACCEPT, kind);
        request
    }

    pub(crate) async fn events(
        &self,
        version: &'static str,
        token: &str,
        body: &Value,
    ) -> HttpTestResponse {
        let request = self.subscribe(token, body);
        self.client(version).await.response(request).await
    }
}
