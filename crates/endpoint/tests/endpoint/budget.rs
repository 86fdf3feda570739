//! The cost that a peer may cause before and after the node knows it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alknet_core::{
    AlpnSpec, AuthContext, AuthToken, BoxFuture, Connection, HandlerError, HandlerRegistry,
    Identity, IdentityKind, IdentityProvider, PeerKey, ProtocolHandler, StreamBudget,
};
use alknet_endpoint::{EndpointServer, ServerOptions};
use alknet_test_support::deadline;
use alknet_tls::{ClientTls, ClientTlsOptions, NodeKey, RemoteHost};
use tokio::sync::watch;

const ALPN: &[u8] = b"alknet/hoard";

/// Streams that an attacker tries to open, and bytes that it sends on each.
const STREAMS: usize = 1000;
const BYTES: usize = 64 << 10;

/// Bytes of the window of a connection that the node does not read: an unknown peer's, and a known one's.
const UNKNOWN_WINDOW: u64 = 64 << 10;
const KNOWN_WINDOW: u64 = 2 << 20;

static PIECE: [u8; 1024] = [7; 1024];

/// How long any step may take before the test calls it hung.
fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}

/// How long the server takes no byte before the test concludes that it takes none.
const QUIET: Duration = Duration::from_millis(500);

/// The limit of the memory for both ends together.
const GROWTH_MAX: u64 = 4 << 20;

/// Takes every stream and reads none.
struct NonReadingHandler([AlpnSpec; 1], Arc<AtomicUsize>);

impl ProtocolHandler for NonReadingHandler {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.0
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        _auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        Box::pin(async move {
            let mut kept = Vec::new();
            while let Ok(stream) = connection.accept_bi().await {
                kept.push(stream);
                self.1.store(kept.len(), Ordering::Relaxed);
            }
            Ok(())
        })
    }
}

/// Knows one key.
struct OneKeyIdentities(PeerKey, watch::Sender<u64>);

impl IdentityProvider for OneKeyIdentities {
    fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>> {
        let identity = Identity {
            id: "friend".parse().expect("a peer id"),
            kind: IdentityKind::Peer,
            scopes: ["*"].into_iter().collect(),
            resources: Default::default(),
            generation: 1,
        };
        (*key == self.0).then(|| Arc::new(identity))
    }

    fn by_token(&self, _token: &AuthToken) -> Option<Arc<Identity>> {
        None
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.1.subscribe()
    }
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        * 1024
}

/// A client that holds next to nothing itself.
async fn connect(port: u16, server: PeerKey, key: NodeKey) -> quinn::Connection {
    let tls = ClientTls::new(ClientTlsOptions {
        key: Some(key),
        ..ClientTlsOptions::default()
    });
    let place = RemoteHost::Ip(Ipv4Addr::LOCALHOST.into());
    let remote = tls.remote(None, &[server], place).expect("a pin");
    let config = remote.attempts(place, ALPN).swap_remove(0);
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("TLS 1.3");
    let mut transport = quinn::TransportConfig::default();
    transport.send_window(64 << 10);
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into()).expect("a socket");
    endpoint
        .connect_with(
            config,
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            &remote.server_name(place).to_str(),
        )
        .expect("a valid configuration")
        .await
        .expect("a connection")
}

/// Opens streams and fills them until `expected` bytes are out and a while longer; returns the bytes that the server
/// took, and the tasks that hold the streams.
async fn fill(
    connection: &quinn::Connection,
    expected: u64,
) -> (u64, Vec<tokio::task::JoinHandle<()>>) {
    let (progress, mut sent) = watch::channel(0u64);
    let progress = Arc::new(progress);
    let mut tasks = Vec::new();
    for _ in 0..STREAMS {
        let (connection, progress) = (connection.clone(), Arc::clone(&progress));
        tasks.push(tokio::spawn(async move {
            let Ok((mut send, _recv)) = connection.open_bi().await else {
                return;
            };
            let mut left = BYTES;
            while left > 0 {
                let Ok(written) = send.write(&PIECE[..left.min(PIECE.len())]).await else {
                    return;
                };
                left -= written;
                progress.send_modify(|sent| *sent += written as u64);
            }
            // The stream stays open: its end would let the next one in.
            std::future::pending().await
        }));
    }
    let enough = tokio::time::timeout(hung(), sent.wait_for(|sent| *sent >= expected))
        .await
        .is_ok();
    assert!(enough, "only {} bytes of {expected}", *progress.borrow());
    // No event shows that the server takes no more: bytes beyond its limits would come while bytes still come, or
    // soon after.
    while tokio::time::timeout(deadline(QUIET), sent.changed())
        .await
        .is_ok()
    {}
    let taken = *progress.borrow();
    (taken, tasks)
}

#[test]
fn an_unknown_peer_costs_little_and_a_known_one_gets_its_budget() {
    let name = "budget::an_unknown_peer_costs_little_and_a_known_one_gets_its_budget";
    alknet_test_support::alone(name, measure);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn measure() {
    let opened = Arc::new(AtomicUsize::new(0));
    let mut registry = HandlerRegistry::new();
    let handler = NonReadingHandler([AlpnSpec::new(ALPN)], Arc::clone(&opened));
    registry.register(Arc::new(handler)).expect("register");
    let key = NodeKey::generate().expect("a key");
    let friend = NodeKey::generate().expect("a key");
    let peers = OneKeyIdentities(friend.public(), watch::channel(0).0);
    let options = ServerOptions {
        port: 0,
        ..ServerOptions::default()
    };
    let server =
        EndpointServer::bind(options, &key, registry, Arc::new(peers)).expect("a free port");

    // One connection first, so that one-time allocations come before the measurement.
    let warm = connect(
        server.port(),
        key.public(),
        NodeKey::generate().expect("a key"),
    )
    .await;
    warm.close(0u32.into(), b"");
    let before = resident();
    let unknown_peer = NodeKey::generate().expect("a key");
    let unknown_peer = connect(server.port(), key.public(), unknown_peer).await;
    let budget = StreamBudget::UNAUTHENTICATED;
    let (taken, held) = fill(&unknown_peer, UNKNOWN_WINDOW).await;
    assert_eq!(taken, UNKNOWN_WINDOW);
    let streams = opened.load(Ordering::Relaxed);
    assert!(
        (1..=budget.bidi_streams as usize).contains(&streams),
        "{streams} streams"
    );
    let grown = resident().saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{grown} bytes for one unknown peer");
    unknown_peer.close(0u32.into(), b"");
    held.into_iter().for_each(|task| task.abort());

    let friend = connect(server.port(), key.public(), friend).await;
    // Twice as much as its window takes.
    let streams = StreamBudget::AUTHENTICATED.bidi_streams as usize;
    assert_eq!((streams * BYTES) as u64, 2 * KNOWN_WINDOW);
    let (taken, held) = fill(&friend, KNOWN_WINDOW).await;
    assert_eq!(taken, KNOWN_WINDOW);
    let least = (KNOWN_WINDOW / BYTES as u64) as usize;
    let accepted = async {
        // No event announces it: the test polls.
        while opened.load(Ordering::Relaxed) < least {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let accepted = tokio::time::timeout(hung(), accepted).await;
    let opened = opened.load(Ordering::Relaxed);
    assert!((least..=streams).contains(&opened), "{opened} {accepted:?}");
    held.into_iter().for_each(|task| task.abort());
}
