//! A node with small test protocols, and the peers it knows.

use std::collections::HashMap;
use std::future::Ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, AuthToken, BoxFuture, Carriage, CloseReason, Connection,
    HandlerError, HandlerRegistry, Identity, IdentityKind, IdentityProvider, PeerKey,
    ProtocolHandler, RecvStream, SendStream,
};
use alknet_endpoint::{EndpointDialer, EndpointLimits, EndpointServer, ServerOptions, Target};
use alknet_test_support::deadline;
use alknet_tls::{ClientTls, ClientTlsOptions, NodeKey, RemoteHost, ServerTlsOptions};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};

/// Repeats every stream back once it has ended.
pub(crate) const ECHO: &[u8] = b"alknet/echo";
/// Repeats every stream back, for known keys only.
pub(crate) const KNOWN: &[u8] = b"alknet/known";
/// ALPN of a handler that panics.
pub(crate) const PANIC: &[u8] = b"alknet/panic";
/// Reads the first bytes of each stream, waits, and then sends without end.
pub(crate) const ENDLESS: &[u8] = b"alknet/endless";
/// Offered on TCP only.
pub(crate) const TCP_ONLY: &[u8] = b"alknet/tcp-only";
/// Answers the first bytes of each stream with the client's key and peer id.
pub(crate) const WHOAMI: &[u8] = b"alknet/whoami";
/// The same for browsers.
pub(crate) const HTTP: &[u8] = b"h2";
/// The same for clients of HTTP/3.
pub(crate) const HTTP3: &[u8] = b"h3";

/// How long any step may take before a test calls it hung.
pub(crate) fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}

/// Dials a node with quinn itself, whose client has this transport. `keys` are the client's and the node's.
pub(crate) async fn quinn_connection(
    endpoint: &quinn::Endpoint,
    address: SocketAddr,
    keys: (&NodeKey, &NodeKey),
    alpn: &[u8],
    transport: quinn::TransportConfig,
) -> quinn::Connection {
    let (client, node) = keys;
    let tls = ClientTls::new(ClientTlsOptions {
        key: Some(client.clone()),
        ..ClientTlsOptions::default()
    });
    let place = RemoteHost::Ip(Ipv4Addr::LOCALHOST.into());
    let remote = tls.remote(None, &[node.public()], place).expect("a pin");
    let config = remote.attempts(place, alpn).swap_remove(0);
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("TLS 1.3");
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    endpoint
        .connect_with(config, address, &remote.server_name(place).to_str())
        .expect("a valid configuration")
        .await
        .expect("a connection")
}

#[derive(Default)]
pub(crate) struct EndpointTestIdentities {
    known: Mutex<HashMap<PeerKey, Arc<Identity>>>,
    changed: watch::Sender<u64>,
}

impl EndpointTestIdentities {
    pub(crate) fn add(&self, key: PeerKey, id: &str) {
        let identity = Identity {
            id: id.parse().expect("a peer id"),
            kind: IdentityKind::Peer,
            scopes: ["*"].into_iter().collect(),
            resources: Default::default(),
            generation: 1,
        };
        self.known
            .lock()
            .expect("no test panics here")
            .insert(key, Arc::new(identity));
        self.changed.send_modify(|n| *n += 1);
    }

    pub(crate) fn remove(&self, key: &PeerKey) {
        self.known.lock().expect("no test panics here").remove(key);
        self.changed.send_modify(|n| *n += 1);
    }
}

impl IdentityProvider for EndpointTestIdentities {
    fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>> {
        self.known
            .lock()
            .expect("no test panics here")
            .get(key)
            .cloned()
    }

    fn by_token(&self, _token: &AuthToken) -> Option<Arc<Identity>> {
        None
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// A protocol that is a function.
pub(crate) struct FnHandler<F>(pub(crate) Vec<AlpnSpec>, pub(crate) F);

impl<F, R> ProtocolHandler for FnHandler<F>
where
    F: Fn(Connection, AuthContext) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    fn alpns(&self) -> &[AlpnSpec] {
        &self.0
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        Box::pin((self.1)(connection, auth))
    }
}

async fn echo(connection: Connection, _auth: AuthContext) -> Result<(), HandlerError> {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX).await {
            if send.write_chunk(chunk).await.is_err() {
                break;
            }
        }
        let _ = send.finish();
    }
    Ok(())
}

/// How the protocol without an end goes on, for a test.
pub(crate) struct EndlessSender {
    /// Streams whose first bytes the handler has read.
    pub(crate) requests: AtomicU64,
    /// Each stream takes one permit before it sends.
    pub(crate) starts: Semaphore,
    /// Bytes that the streams have taken from the handler.
    pub(crate) taken: AtomicU64,
}

async fn sends_endlessly(
    connection: Connection,
    endless: Arc<EndlessSender>,
) -> Result<(), HandlerError> {
    let chunk = Bytes::from_static(&[0; 16 << 10]);
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        if !matches!(recv.read_chunk(99).await, Ok(Some(_))) {
            continue;
        }
        endless.requests.fetch_add(1, Ordering::Relaxed);
        let start = endless.starts.acquire().await;
        start.expect("it is never closed").forget();
        while send.write_chunk(chunk.clone()).await.is_ok() {
            let bytes = chunk.len() as u64;
            endless.taken.fetch_add(bytes, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// The handler panics before it returns a future.
fn panics(_connection: Connection, _auth: AuthContext) -> Ready<Result<(), HandlerError>> {
    panic!("as asked")
}

async fn tell(connection: Connection, auth: AuthContext) -> Result<(), HandlerError> {
    let key = auth
        .key
        .map_or_else(|| "no key".to_owned(), |key| key.to_string());
    let peer = auth
        .identity
        .map_or_else(|| "unknown".to_owned(), |i| i.id.to_string());
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        if let Ok(Some(_)) = recv.read_chunk(99).await {
            send.write_chunk(format!("{key} {peer}\n").into())
                .await
                .ok();
            send.finish().ok();
        }
    }
    Ok(())
}

pub(crate) fn spec(id: &'static [u8], auth: AuthNeed, carriage: Carriage) -> AlpnSpec {
    AlpnSpec {
        auth,
        carriage,
        ..AlpnSpec::new(id)
    }
}

pub(crate) struct EndpointTestNode {
    pub(crate) server: EndpointServer,
    pub(crate) key: NodeKey,
    pub(crate) peers: Arc<EndpointTestIdentities>,
    pub(crate) endless: Arc<EndlessSender>,
}

impl EndpointTestNode {
    pub(crate) fn start() -> Self {
        Self::with_limits(EndpointLimits::default())
    }

    pub(crate) fn with_limits(limits: EndpointLimits) -> Self {
        Self::with(ServerOptions {
            limits,
            ..ServerOptions::default()
        })
    }

    pub(crate) fn with_tls(tls: ServerTlsOptions) -> Self {
        Self::with(ServerOptions {
            tls,
            ..ServerOptions::default()
        })
    }

    fn with(options: ServerOptions) -> Self {
        let mut registry = HandlerRegistry::new();
        let both = Carriage::Both;
        let echoing = vec![
            spec(ECHO, AuthNeed::Late, both),
            spec(KNOWN, AuthNeed::Tls, both),
            spec(TCP_ONLY, AuthNeed::Open, Carriage::Tcp),
        ];
        let telling = vec![
            spec(WHOAMI, AuthNeed::Late, both),
            spec(HTTP, AuthNeed::Late, both),
            spec(HTTP3, AuthNeed::Late, Carriage::Quic),
        ];
        let panicking = vec![spec(PANIC, AuthNeed::Open, both)];
        let endless = Arc::new(EndlessSender {
            requests: AtomicU64::new(0),
            starts: Semaphore::new(0),
            taken: AtomicU64::new(0),
        });
        let of_node = Arc::clone(&endless);
        let sends = move |connection, _auth| sends_endlessly(connection, Arc::clone(&of_node));
        let handlers: [Arc<dyn ProtocolHandler>; 4] = [
            Arc::new(FnHandler(vec![spec(ENDLESS, AuthNeed::Late, both)], sends)),
            Arc::new(FnHandler(echoing, echo)),
            Arc::new(FnHandler(telling, tell)),
            Arc::new(FnHandler(panicking, panics)),
        ];
        for handler in handlers {
            registry.register(handler).expect("register");
        }
        let key = NodeKey::generate().expect("a key");
        let peers = Arc::new(EndpointTestIdentities::default());
        let options = ServerOptions { port: 0, ..options };
        let server = EndpointServer::bind(options, &key, registry, Arc::clone(&peers) as _)
            .expect("a free port");
        Self {
            server,
            key,
            peers,
            endless,
        }
    }

    pub(crate) fn target(&self) -> Target {
        let target: Target = format!("{}:{}", Ipv4Addr::LOCALHOST, self.server.port())
            .parse()
            .expect("a target");
        target.with_pins([self.key.public()])
    }

    /// A dialer whose key the node knows as `id`.
    pub(crate) fn peer(&self, id: &str) -> (EndpointDialer, PeerKey) {
        let key = NodeKey::generate().expect("a key");
        self.peers.add(key.public(), id);
        (EndpointDialer::new(Some(key.clone())), key.public())
    }
}

pub(crate) async fn stream(connection: &Connection) -> (SendStream, RecvStream) {
    if connection.is_multi() {
        connection.open_bi().await.expect("open")
    } else {
        connection.accept_bi().await.expect("the one stream")
    }
}

/// Sends `text` on a stream and reads the whole answer.
pub(crate) async fn ask(connection: &Connection, text: &[u8]) -> std::io::Result<String> {
    let (mut send, mut recv) = stream(connection).await;
    send.write_all(text).await?;
    send.shutdown().await?;
    let mut answer = String::new();
    recv.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Waits until the condition holds. A client may know how its handshake ended before the node has counted it.
pub(crate) async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        // No event announces it: the test polls.
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(hung(), waiting).await;
    waited.expect("it becomes so in time");
}

pub(crate) async fn works(node: &EndpointTestNode, dialer: &EndpointDialer, carriage: Carriage) {
    let connection = dialer
        .dial_over(carriage, &node.target(), ECHO)
        .await
        .expect("dial");
    assert_eq!(ask(&connection, b"ping").await.expect("echo"), "ping");
}

pub(crate) async fn code(connection: &Connection) -> Option<u64> {
    match tokio::time::timeout(hung(), connection.closed()).await {
        Ok(CloseReason::Peer(code, _)) => code,
        other => panic!("{other:?}"),
    }
}

pub(crate) const CARRIAGES: [Carriage; 2] = [Carriage::Quic, Carriage::Tcp];
