//! Unread bytes that peers can send, over a path so long that they need large windows.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alknet_core::{
    AlpnSpec, AuthContext, Carriage, Connection, HandlerError, HandlerRegistry, RecvStream,
    SendStream, StreamBudget,
};
use alknet_endpoint::{EndpointLimits, EndpointServer, ServerOptions};
use alknet_test_support::deadline;
use alknet_tls::NodeKey;
use futures_util::future::join_all;
use quinn::congestion::CubicConfig;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{EndpointTestIdentities, FnHandler, hung, quinn_connection};

const ALPN: &[u8] = b"alknet/lake";

const MIB: u64 = 1 << 20;

/// The delay of the node's packets, in which a slow machine sends as much as one at rest.
fn late() -> Duration {
    deadline(Duration::from_millis(400)).min(Duration::from_secs(2))
}

/// How long nothing happens before the test concludes that the node takes, or has, no more.
const QUIET: Duration = Duration::from_millis(500);

/// Streams that a client fills on each connection: together they may have more than a window allows.
const STREAMS: usize = 24;

/// While `reading` is true, reads every stream, or the first one of each connection only. Leaves the rest unread.
#[derive(Clone)]
struct PausableReader {
    first_only: bool,
    reading: watch::Sender<bool>,
    read: Arc<AtomicU64>,
}

impl PausableReader {
    async fn serve(self, connection: Connection) {
        let (mut streams, mut kept) = (JoinSet::new(), Vec::new());
        while let Ok(stream) = connection.accept_bi().await {
            if self.first_only && !streams.is_empty() {
                kept.push(stream);
            } else {
                streams.spawn(self.clone().drink(stream));
            }
        }
    }

    async fn drink(self, (_send, mut recv): (SendStream, RecvStream)) {
        let mut reading = self.reading.subscribe();
        while reading.wait_for(|reading| *reading).await.is_ok() {
            tokio::select! {
                chunk = recv.read_chunk(64 << 10) => match chunk {
                    Ok(Some(chunk)) => {
                        self.read.fetch_add(chunk.len() as u64, Ordering::SeqCst);
                    }
                    _ => return,
                },
                _ = reading.wait_for(|reading| !*reading) => {}
            }
        }
    }

    fn read(&self) -> u64 {
        self.read.load(Ordering::SeqCst)
    }

    /// Waits until no more bytes are read.
    async fn is_empty(&self) {
        let mut before = u64::MAX;
        while before != self.read() {
            before = self.read();
            tokio::time::sleep(deadline(QUIET)).await;
        }
    }
}

/// The way from a client to the node, on which the node's packets arrive late.
struct LongPath {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl LongPath {
    async fn to(port: u16) -> Self {
        let free = async || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await;
            Arc::new(socket.expect("a free port"))
        };
        let (outside, inside) = (free().await, free().await);
        let address = outside.local_addr().expect("it is bound");
        let node = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let cut = Arc::new(AtomicBool::new(false));
        let client: Arc<OnceLock<SocketAddr>> = Arc::default();
        let (heard, mut waiting) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let (outside, inside) = (Arc::clone(&outside), Arc::clone(&inside));
            let (cut, client) = (Arc::clone(&cut), Arc::clone(&client));
            async move {
                let mut datagram = vec![0; 1 << 16];
                while let Ok((len, from)) = outside.recv_from(&mut datagram).await {
                    client.get_or_init(|| from);
                    if !cut.load(Ordering::SeqCst) {
                        inside.send_to(&datagram[..len], node).await.ok();
                    }
                }
            }
        });
        tasks.spawn(async move {
            let mut datagram = vec![0; 1 << 16];
            while let Ok((len, _)) = inside.recv_from(&mut datagram).await {
                let when = Instant::now() + late();
                let _ = heard.send((when, datagram[..len].to_vec()));
            }
        });
        tasks.spawn(async move {
            while let Some((when, datagram)) = waiting.recv().await {
                tokio::time::sleep_until(when).await;
                if let Some(client) = client.get() {
                    outside.send_to(&datagram, client).await.ok();
                }
            }
        });
        Self {
            address,
            cut,
            _tasks: tasks,
        }
    }
}

/// A node with such a reader, and one peer that it knows.
struct WindowTestNode {
    server: EndpointServer,
    key: NodeKey,
    friend: NodeKey,
    lake: PausableReader,
}

impl WindowTestNode {
    fn new(window_bytes: u64, first_only: bool) -> Self {
        let lake = PausableReader {
            first_only,
            reading: watch::Sender::new(true),
            read: Arc::default(),
        };
        let spec = AlpnSpec {
            carriage: Carriage::Quic,
            limits: StreamBudget::CALL,
            ..AlpnSpec::new(ALPN)
        };
        let serving = lake.clone();
        let handle = move |connection: Connection, _auth: AuthContext| {
            let lake = serving.clone();
            async move {
                lake.serve(connection).await;
                Ok::<(), HandlerError>(())
            }
        };
        let mut registry = HandlerRegistry::new();
        let handler = FnHandler(vec![spec], handle);
        registry.register(Arc::new(handler)).expect("register");
        let [key, friend] = [0, 1].map(|_| NodeKey::generate().expect("a key"));
        let peers = EndpointTestIdentities::default();
        peers.add(friend.public(), "friend");
        let options = ServerOptions {
            port: 0,
            limits: EndpointLimits {
                handshake_timeout: hung(),
                window_bytes: usize::try_from(window_bytes).expect("it fits"),
                ..EndpointLimits::default()
            },
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, &key, registry, Arc::new(peers));
        Self {
            server: server.expect("a free port"),
            key,
            friend,
            lake,
        }
    }

    /// Makes so many connections of a peer that send as much as they may, first while the node reads until it has
    /// `read` bytes, and then while it reads nothing; returns how many bytes wait then.
    async fn waits(&self, key: &NodeKey, connections: usize, read: u64) -> u64 {
        let path = LongPath::to(self.server.port()).await;
        let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into());
        let endpoint = endpoint.expect("a socket");
        let sent = Arc::new(AtomicU64::new(0));
        let mut senders = JoinSet::new();
        let connecting = (0..connections).map(|_| self.connect(&endpoint, path.address, key));
        for connection in join_all(connecting).await {
            for _ in 0..STREAMS {
                senders.spawn(pour(connection.clone(), Arc::clone(&sent)));
            }
        }
        let until = Instant::now() + hung();
        let enough = self.lake.read() + read;
        while self.lake.read() < enough {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(Instant::now() < until, "{} of {read}", self.lake.read());
        }
        self.lake.reading.send_replace(false);
        // The node's earlier packets arrive late, and so the client sends late, perhaps a second time.
        let mut before = u64::MAX;
        while before != sent.load(Ordering::SeqCst) {
            before = sent.load(Ordering::SeqCst);
            tokio::time::sleep(late() * 6).await;
        }
        path.cut.store(true, Ordering::SeqCst);
        let before = self.lake.read();
        self.lake.reading.send_replace(true);
        self.lake.is_empty().await;
        self.lake.read() - before
    }

    async fn connect(
        &self,
        endpoint: &quinn::Endpoint,
        address: SocketAddr,
        key: &NodeKey,
    ) -> quinn::Connection {
        let mut transport = quinn::TransportConfig::default();
        let mut congestion = CubicConfig::default();
        // The state of a transfer after a while.
        congestion.initial_window(MIB);
        transport
            .send_window(32 * MIB)
            .congestion_controller_factory(Arc::new(congestion));
        let keys = (key, &self.key);
        quinn_connection(endpoint, address, keys, ALPN, transport).await
    }
}

/// Fills one stream for as long as it may.
async fn pour(connection: quinn::Connection, sent: Arc<AtomicU64>) {
    static PIECE: [u8; 16 << 10] = [7; 16 << 10];
    let Ok((mut send, _recv)) = connection.open_bi().await else {
        return;
    };
    while let Ok(written) = send.write(&PIECE).await {
        sent.fetch_add(written as u64, Ordering::SeqCst);
    }
}

/// As much as before windows were counted: 16 MiB, less the last credit, which the node announces only once it is
/// worth a frame.
#[tokio::test(flavor = "multi_thread")]
async fn one_connection_on_a_long_path_has_its_whole_window() {
    let shore = WindowTestNode::new(64 * MIB, false);
    let waits = shore.waits(&shore.friend, 1, 48 * MIB).await;
    println!("figure window of one connection: {} KiB", waits >> 10);
    assert!((14 * MIB..=16 * MIB).contains(&waits), "{waits}");
    // The node does not know this key.
    let unknown_peer = NodeKey::generate().expect("a key");
    let waits = shore.waits(&unknown_peer, 1, MIB).await;
    assert!((128 << 10..=256 << 10).contains(&waits), "{waits}");
}

/// As many connections as a peer may have, each of which the node read fast.
#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_peer_have_half_of_all_windows() {
    const CONNECTIONS: usize = 16;
    let shore = WindowTestNode::new(16 * MIB, false);
    let waits = shore.waits(&shore.friend, CONNECTIONS, 64 * MIB).await;
    println!("figure windows of one peer: {} KiB", waits >> 10);
    let most = 8 * MIB + CONNECTIONS as u64 * (64 << 10);
    assert!((4 * MIB..=most).contains(&waits), "{waits}");
}

/// Pieces of one byte that the node does not read, each among much that it reads at once.
#[test]
fn little_that_waits_keeps_little_of_what_it_came_with() {
    let name = "windows::little_that_waits_keeps_little_of_what_it_came_with";
    alknet_test_support::alone(name, measure);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn measure() {
    const CONNECTIONS: usize = 16;
    /// For each connection of an unknown peer, beside the one that is read.
    const WAITING: usize = 15;
    /// The library copies them together where there are more: 32 KiB of packets.
    const PIECES: usize = 22;
    /// As many datagrams as a client has the kernel send at once, and a few more.
    static MUCH: [u8; 24 << 10] = [7; 24 << 10];
    /// For each stream 32 KiB of packets, and twice as much for everything else.
    const GROWTH_MAX: u64 = 3 * ((CONNECTIONS * WAITING) as u64 * (32 << 10));

    let shore = WindowTestNode::new(64 * MIB, true);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, shore.server.port()));
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into());
    let endpoint = endpoint.expect("a socket");
    let unknown_peer = NodeKey::generate().expect("a key");
    let send = async |connection: &quinn::Connection, pieces: usize| {
        let (mut much, _) = connection.open_bi().await.expect("a stream");
        much.write_all(&MUCH).await.expect("it is read");
        let mut waiting = Vec::new();
        for _ in 0..WAITING {
            waiting.push(connection.open_bi().await.expect("a stream"));
        }
        for _ in 0..pieces {
            for (send, _) in &mut waiting {
                send.write_all(b"x").await.expect("the window has room");
                much.write_all(&MUCH).await.expect("it is read");
            }
        }
        (much, waiting)
    };
    // This connection causes the one-time allocations.
    let warm = shore.connect(&endpoint, address, &unknown_peer).await;
    let streams = send(&warm, 2).await;
    let before = resident();
    let connecting = (0..CONNECTIONS).map(|_| shore.connect(&endpoint, address, &unknown_peer));
    let connections = join_all(connecting).await;
    let held = join_all(
        connections
            .iter()
            .map(|connection| send(connection, PIECES)),
    )
    .await;
    shore.lake.is_empty().await;
    let grown = resident().saturating_sub(before);
    println!(
        "figure {} pieces of a byte: {} KiB",
        CONNECTIONS * WAITING * PIECES,
        grown >> 10
    );
    assert!(grown <= GROWTH_MAX, "{grown} bytes");
    drop((streams, held));
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
