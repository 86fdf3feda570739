//! Who is loaded: our node, a bare axum handler, nginx and Caddy.

use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_call::{CallOutput, Dispatcher, HandlerKind, OperationSpec, Registration, Registry};
use alknet_core::config::NodeConfig;
use alknet_core::{AuthToken, HandlerRegistry, Identity, IdentityKind, IdentityProvider, PeerKey};
use alknet_gateway::{Gateway, RequestId};
use alknet_http::{DescriptionSource, HealthSource, HttpHandler, HttpHandlerParts, HttpSettings};
use alknet_tls::{ServerTls, ServerTlsOptions, TlsConfigSlot};
use axum::Router;
use axum::body::Bytes as BodyBytes;
use axum::response::IntoResponse;
use axum::routing::post;
use bytes::Bytes;
use http::header::{
    ALT_SVC, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rcgen::generate_simple_self_signed;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::super::call::measure::failed;
use super::super::call::node::bind;
use super::super::call::sides::{BenchKeys, SideRuntimes};
use super::websocket;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::Result;
use alknet_tasks::sources;

/// The operation that answers with its input.
pub(super) const ECHO: &str = "bench/echo";

/// The token of the benchmark.
pub(super) const TOKEN: &str = "bench";

/// How long another's server may take to start.
const START: Duration = Duration::from_secs(20);

#[derive(Debug, Serialize, Deserialize)]
struct HttpMessage {
    data: String,
}

/// Knows one token.
struct BenchIdentities {
    changed: watch::Sender<u64>,
    known: Arc<Identity>,
}

impl IdentityProvider for BenchIdentities {
    fn by_key(&self, _: &PeerKey) -> Option<Arc<Identity>> {
        None
    }

    fn by_token(&self, token: &AuthToken) -> Option<Arc<Identity>> {
        (token.expose() == TOKEN).then(|| Arc::clone(&self.known))
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

struct NoHealthOrDocument;

impl HealthSource for NoHealthOrDocument {
    fn degraded(&self) -> Option<String> {
        None
    }
}

impl DescriptionSource for NoHealthOrDocument {
    fn text(&self, _: &str) -> Bytes {
        Bytes::from_static(b"{}")
    }
}

/// Our node.
pub(super) struct HttpBenchNode {
    _server: alknet_endpoint::EndpointServer,
    address: SocketAddr,
}

impl HttpBenchNode {
    pub(super) fn start(
        sides: &SideRuntimes,
        keys: &BenchKeys,
        files: &StaticFiles,
    ) -> Result<Self> {
        let message = json!({
            "type": "object",
            "properties": { "data": { "type": "string" } },
            "required": ["data"],
        });
        let echo = OperationSpec::query(ECHO, "Answers with its input.");
        let registry = Registry::builder()
            .with(Registration::new(
                echo.with_input(message).with_scope("bench:call"),
                HandlerKind::once(|input, _| async move {
                    let message: HttpMessage = input.parse()?;
                    CallOutput::json(&message)
                }),
            ))
            .build()
            .map_err(failed("registering the operation"))?;
        let who = Arc::new(BenchIdentities {
            changed: watch::Sender::new(0),
            known: Arc::new(Identity {
                id: TOKEN.parse().map_err(failed("naming the caller"))?,
                kind: IdentityKind::Token,
                scopes: ["bench:call"].into_iter().collect(),
                resources: Default::default(),
                generation: 0,
            }),
        });
        let dispatcher = Dispatcher::new(registry).with_identities(who);
        // A client that asks without a pause would be at its limits at once.
        let text = "[http]\nrequests_per_second = 1000000\nrequests_burst = 1000000\n\
unknown_peer_requests_per_second = 1000000\n";
        let config = NodeConfig::parse(text.as_bytes());
        let config = config.map_err(|errors| failed("configuring")(errors[0].to_string()))?;
        let parts = HttpHandlerParts {
            dispatcher: Arc::new(dispatcher),
            gateway: Arc::new(Gateway::default()),
            settings: HttpSettings::new(&config),
            health: Arc::new(NoHealthOrDocument),
            document: Arc::new(NoHealthOrDocument),
            challenges: None,
            mcp: None,
            page: None,
            websocket: true,
            site: Some(files.folder().to_owned()),
            mounts: Vec::new(),
            routes: Vec::new(),
        };
        let http = HttpHandler::new(parts, true).map_err(failed("putting HTTP together"))?;
        let mut handlers = HandlerRegistry::new();
        handlers
            .register(Arc::new(http))
            .map_err(failed("assembling the node"))?;
        let server = bind(sides, keys, handlers)?;
        Ok(Self {
            address: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), server.port()),
            _server: server,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn token(&self) -> &'static str {
        TOKEN
    }
}

/// Serves TLS over TCP on the servers' runtime.
fn serve<F, Fut>(sides: &SideRuntimes, keys: &BenchKeys, each: F) -> Result<SocketAddr>
where
    F: Fn(tokio_rustls::server::TlsStream<tokio::net::TcpStream>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let alpns: [&[u8]; 2] = [b"h2", b"http/1.1"];
    let tls = ServerTls::new(&keys.server, ServerTlsOptions::default(), &alpns, &alpns);
    let config = tls
        .map_err(failed("preparing TLS"))?
        .quic(TlsConfigSlot::Web);
    let _context = sides.server.enter();
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed("a port"))?;
    // tokio takes a listener from outside only so.
    listener.set_nonblocking(true).map_err(failed("a port"))?;
    let address = listener.local_addr().map_err(failed("a port"))?;
    let listener = TcpListener::from_std(listener).map_err(failed("a port"))?;
    let acceptor = TlsAcceptor::from(config);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, each) = (acceptor.clone(), each.clone());
            tokio::spawn(async move {
                let tuned = stream.set_nodelay(true);
                if let (Ok(()), Ok(stream)) = (tuned, acceptor.accept(stream).await) {
                    each(stream).await;
                }
            });
        }
    });
    Ok(address)
}

/// A handler of axum that does the same work: looks the token up, reads the call, checks the input against
/// its schema, and answers the same, head and body. What it does not do is what a node does besides:
/// it counts nothing against limits, times nothing, and writes no log.
pub(super) struct AxumServer {
    address: SocketAddr,
    /// Its connections end when this is dropped.
    _stop: watch::Sender<()>,
}

#[derive(Deserialize)]
struct AxumCall<'a> {
    operation: &'a str,
    #[serde(borrow)]
    input: &'a serde_json::value::RawValue,
}

impl AxumServer {
    pub(super) fn start(sides: &SideRuntimes, keys: &BenchKeys) -> Result<Self> {
        let schema = json!({
            "type": "object",
            "properties": { "data": { "type": "string" } },
            "required": ["data"],
        });
        let check = jsonschema::validator_for(&schema).map_err(failed("a schema"))?;
        let check = Arc::new(check);
        let call = move |headers: http::HeaderMap, body: BodyBytes| {
            let check = Arc::clone(&check);
            async move { answer(&headers, &body, &check) }
        };
        let router = Router::new().route("/call", post(call));
        let (stop, stopping) = watch::channel(());
        let address = serve(sides, keys, move |stream| {
            let service = TowerToHyperService::new(router.clone());
            let mut stopping = stopping.clone();
            async move {
                // What axum's own loop does: upgrades, CONNECT, and an end in good order.
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http2().enable_connect_protocol();
                let io = TokioIo::new(stream);
                let mut serving = pin!(builder.serve_connection_with_upgrades(io, service));
                // How a client leaves says nothing here.
                tokio::select! {
                    _ = serving.as_mut() => {}
                    _ = stopping.changed() => serving.as_mut().graceful_shutdown(),
                }
            }
        })?;
        Ok(Self {
            address,
            _stop: stop,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

fn answer(
    headers: &http::HeaderMap,
    body: &[u8],
    check: &jsonschema::Validator,
) -> axum::response::Response {
    let token = headers
        .get(http::header::AUTHORIZATION)
        .and_then(|t| t.to_str().ok());
    if token.and_then(|token| token.strip_prefix("Bearer ")) != Some(TOKEN) {
        return http::StatusCode::UNAUTHORIZED.into_response();
    }
    let call: std::result::Result<AxumCall<'_>, _> = serde_json::from_slice(body);
    let Ok(call) = call else {
        return http::StatusCode::BAD_REQUEST.into_response();
    };
    if call.operation.trim_start_matches('/') != ECHO {
        return http::StatusCode::NOT_FOUND.into_response();
    }
    let value: serde_json::Value = serde_json::from_str(call.input.get()).unwrap_or_default();
    if !check.is_valid(&value) {
        return http::StatusCode::UNPROCESSABLE_ENTITY.into_response();
    }
    let message: HttpMessage = match serde_json::from_value(value) {
        Ok(message) => message,
        Err(_) => return http::StatusCode::UNPROCESSABLE_ENTITY.into_response(),
    };
    let output = serde_json::to_string(&message).unwrap_or_default();
    let id = RequestId::next();
    let text = format!(r#"{{"request_id":"{}","output":{output}}}"#, id.as_str());
    let fixed = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (ALT_SVC, "h3=\":443\"; ma=86400"),
    ];
    (fixed, [("x-request-id", id.as_str())], text).into_response()
}

/// The peer of calls over WebSocket.
pub(super) struct WebSocketEcho(SocketAddr);

impl WebSocketEcho {
    pub(super) fn start(sides: &SideRuntimes, keys: &BenchKeys) -> Result<Self> {
        let address = serve(sides, keys, |stream| async {
            // How a client leaves says nothing here.
            let _ = websocket::echo(stream).await;
        })?;
        Ok(Self(address))
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0
    }
}

/// Two files, and a certificate for those who need one as a file.
pub(super) struct StaticFiles(tempfile::TempDir);

impl StaticFiles {
    pub(super) fn make() -> Result<Self> {
        let folder = tempfile::tempdir().map_err(failed("a folder"))?;
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).map_err(failed("writing a file"))
        };
        std::fs::create_dir(folder.path().join("www")).map_err(failed("a folder"))?;
        write("www/small.bin", &[b's'; 1 << 10])?;
        write("www/large.bin", &vec![b'l'; 1 << 20])?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = generate_simple_self_signed(names).map_err(failed("a certificate"))?;
        write("cert.pem", made.cert.pem().as_bytes())?;
        write("key.pem", made.signing_key.serialize_pem().as_bytes())?;
        Ok(Self(folder))
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn folder(&self) -> PathBuf {
        self.root().join("www")
    }

    pub(super) fn path(&self, large: bool) -> &'static str {
        if large { "/large.bin" } else { "/small.bin" }
    }
}

/// Programs of others, which lie in the cache.
pub(super) struct PeerPrograms {
    pub(super) nginx: PathBuf,
    pub(super) caddy: PathBuf,
}

impl PeerPrograms {
    pub(super) fn obtain(cx: &XtaskContext) -> Result<Self> {
        Ok(Self {
            nginx: pinned_program(cx, "nginx")?,
            caddy: pinned_program(cx, "caddy")?,
        })
    }
}

/// A program that is a pinned source by itself.
pub(crate) fn pinned_program(cx: &XtaskContext, name: &str) -> Result<PathBuf> {
    let path = sources::obtain(cx, name)?.path;
    // Sources are kept as data, which does not run.
    let runs = Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, runs).map_err(failed("making a program run"))?;
    Ok(path)
}

/// Another's server, ended when dropped.
pub(crate) struct PeerProcess(Child, SocketAddr);

impl PeerProcess {
    /// Starts it, and waits until it takes connections.
    pub(crate) fn start(mut command: Command, address: SocketAddr) -> Result<Self> {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = Self(child.map_err(failed("starting a server"))?, address);
        let deadline = Instant::now() + START;
        while std::net::TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                return Err(failed("starting a server")("it does not take connections"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(process)
    }

    /// Where it takes connections.
    pub(crate) fn address(&self) -> SocketAddr {
        self.1
    }

    /// Number of the process that was started.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        // One that is gone already needs no signal.
        // In order: nginx then ends its workers, which a killed one leaves behind.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// A number that is free on TCP and UDP at this moment.
pub(crate) fn free_port() -> Result<u16> {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed("a port"))?;
    Ok(listener.local_addr().map_err(failed("a port"))?.port())
}

/// nginx of Debian, tuned as its pages advise.
pub(super) struct NginxServer(PeerProcess);

impl NginxServer {
    pub(super) fn start(program: &Path, files: &StaticFiles) -> Result<Self> {
        let port = free_port()?;
        let root = files.root().display();
        // In the foreground, so that the child is the server; and a connection is not ended after 1,000 requests.
        let text = format!(
            "daemon off; worker_processes auto; pid {root}/nginx.pid; error_log /dev/null;\n\
events {{ worker_connections 4096; }}\n\
http {{ access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000000;\n\
open_file_cache max=1000; client_body_temp_path {root}/n1; proxy_temp_path {root}/n2;\n\
fastcgi_temp_path {root}/n3; uwsgi_temp_path {root}/n4; scgi_temp_path {root}/n5;\n\
server {{ listen 127.0.0.1:{port} ssl http2; ssl_protocols TLSv1.3;\n\
ssl_certificate {root}/cert.pem; ssl_certificate_key {root}/key.pem; root {root}/www; }} }}\n"
        );
        let config = files.root().join("nginx.conf");
        std::fs::write(&config, text).map_err(failed("writing a file"))?;
        let mut command = Command::new(program);
        // Before it reads its configuration, it would open the log of its package.
        command.arg("-c").arg(config).arg("-e").arg("/dev/null");
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        Ok(Self(PeerProcess::start(command, address)?))
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

/// Caddy of Debian.
pub(super) struct CaddyServer(PeerProcess);

impl CaddyServer {
    pub(super) fn start(program: &Path, files: &StaticFiles) -> Result<Self> {
        let port = free_port()?;
        let root = files.root().display();
        // A client that dials an address names no server (RFC 6066 section 3): hence the default name.
        let text = format!(
            "{{\n admin off\n auto_https off\n storage file_system {root}/caddy\n\
 default_sni localhost\n servers {{\n  protocols h1 h2 h3\n }}\n}}\n\
https://localhost:{port}, https://127.0.0.1:{port} {{\n tls {root}/cert.pem {root}/key.pem\n\
 root * {root}/www\n file_server\n}}\n"
        );
        let config = files.root().join("Caddyfile");
        std::fs::write(&config, text).map_err(failed("writing a file"))?;
        let mut command = Command::new(program);
        command
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(config);
        // It keeps files of its own, which are not to lie in the user's home.
        command.env("HOME", files.root());
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        Ok(Self(PeerProcess::start(command, address)?))
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0.address()
    }
}
