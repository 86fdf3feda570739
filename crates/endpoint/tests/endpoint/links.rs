//! Links as they are far out: datagrams that get lost or overtake each other, bytes that arrive in odd pieces. A
//! seed, and not the clock, chooses the fate of each.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Of so many datagrams …
const OF: u64 = 100;
/// … so many get lost,
const LOST: u64 = 3;
/// and so many more are overtaken,
const OVERTAKEN: u64 = 10;
/// by so many at most.
const OVERTAKEN_BY_MAX: u64 = 3;

/// How long a datagram that is to be overtaken waits for others.
const PATIENCE: Duration = Duration::from_millis(20);

/// Most bytes of a stream that arrive together, and the pause after them.
const PIECE_MAX: u64 = 397;
const PAUSE: Duration = Duration::from_millis(1);

/// The largest possible datagram.
const DATAGRAM_MAX: usize = 65_535;

/// Choices that are the same whenever the seed is.
struct LinkRng(u64);

impl LinkRng {
    /// A number below `end`, by the generator splitmix64.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// The counts of a link's losses and delays.
#[derive(Debug, Default)]
pub(crate) struct LinkTally {
    pub(crate) passed: AtomicUsize,
    pub(crate) lost: AtomicUsize,
    pub(crate) overtaken: AtomicUsize,
}

/// A way to a port that loses datagrams and lets them overtake each other, in both directions.
pub(crate) struct LossyUdpLink {
    pub(crate) port: u16,
    pub(crate) tally: Arc<LinkTally>,
}

impl LossyUdpLink {
    /// Each client's datagrams have a fate of their own, by `seed` and by the number of earlier ones.
    pub(crate) async fn to(port: u16, seed: u64) -> Self {
        let front = Arc::new(loopback().await);
        let tally = Arc::new(LinkTally::default());
        let here = front.local_addr().expect("bound").port();
        tokio::spawn(clients(front, port, seed, Arc::clone(&tally)));
        Self { port: here, tally }
    }
}

async fn loopback() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await;
    socket.expect("a free port")
}

/// Takes the clients' datagrams, and makes a way to the port for each client.
async fn clients(front: Arc<UdpSocket>, port: u16, seed: u64, tally: Arc<LinkTally>) {
    let mut ways: HashMap<SocketAddr, mpsc::UnboundedSender<Vec<u8>>> = HashMap::new();
    let mut datagram = vec![0; DATAGRAM_MAX];
    let mut fates = LinkRng(seed);
    loop {
        // An earlier answer to a client that was gone may show as an error here, and means nothing.
        let Ok((bytes, client)) = front.recv_from(&mut datagram).await else {
            continue;
        };
        let way = match ways.entry(client) {
            Entry::Occupied(way) => way.into_mut(),
            Entry::Vacant(none) => {
                let back = Arc::new(loopback().await);
                let there = back.connect((Ipv4Addr::LOCALHOST, port)).await;
                there.expect("loopback has a way");
                let [to, from] = [(); 2].map(|()| LinkRng(fates.below(u64::MAX)));
                let here = DatagramSink::Client(Arc::clone(&front), client);
                let here = direction(from, here, &tally);
                tokio::spawn(answers(Arc::clone(&back), here));
                none.insert(direction(to, DatagramSink::Node(back), &tally))
            }
        };
        // The way lasts as long as its sender, which this map holds.
        let _ = way.send(datagram[..bytes].to_vec());
    }
}

/// A direction of a way: a datagram comes out, or does not.
fn direction(
    fate: LinkRng,
    out: DatagramSink,
    tally: &Arc<LinkTally>,
) -> mpsc::UnboundedSender<Vec<u8>> {
    let (sender, entering) = mpsc::unbounded_channel();
    tokio::spawn(carry(fate, entering, out, Arc::clone(tally)));
    sender
}

/// Takes the node's datagrams to one client.
async fn answers(back: Arc<UdpSocket>, here: mpsc::UnboundedSender<Vec<u8>>) {
    let mut datagram = vec![0; DATAGRAM_MAX];
    loop {
        let Ok(bytes) = back.recv(&mut datagram).await else {
            continue;
        };
        if here.send(datagram[..bytes].to_vec()).is_err() {
            return;
        }
    }
}

/// The exit of a way.
enum DatagramSink {
    Client(Arc<UdpSocket>, SocketAddr),
    Node(Arc<UdpSocket>),
}

impl DatagramSink {
    async fn put(&self, datagram: &[u8]) {
        // A datagram to a peer that is gone is lost.
        let _ = match self {
            Self::Client(socket, to) => socket.send_to(datagram, to).await,
            Self::Node(socket) => socket.send(datagram).await,
        };
    }
}

/// One direction of one client.
async fn carry(
    mut fate: LinkRng,
    mut entering: mpsc::UnboundedReceiver<Vec<u8>>,
    out: DatagramSink,
    tally: Arc<LinkTally>,
) {
    /// A datagram, and how many are yet to overtake it.
    struct DelayedDatagram(Vec<u8>, u64);
    let mut held: Vec<DelayedDatagram> = Vec::new();
    loop {
        let patience = if held.is_empty() {
            Duration::MAX
        } else {
            PATIENCE
        };
        let datagram = match timeout(patience, entering.recv()).await {
            Ok(Some(datagram)) => datagram,
            Ok(None) => return,
            // No datagram comes that could overtake them.
            Err(_) => {
                for DelayedDatagram(datagram, _) in held.drain(..) {
                    tally.passed.fetch_add(1, Ordering::Relaxed);
                    out.put(&datagram).await;
                }
                continue;
            }
        };
        match fate.below(OF) {
            ..LOST => {
                tally.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            choice if choice < LOST + OVERTAKEN => {
                held.push(DelayedDatagram(datagram, 1 + fate.below(OVERTAKEN_BY_MAX)));
                continue;
            }
            _ => {}
        }
        tally.passed.fetch_add(1, Ordering::Relaxed);
        out.put(&datagram).await;
        for waiting in &mut held {
            waiting.1 -= 1;
        }
        for DelayedDatagram(datagram, _) in held.extract_if(.., |held| held.1 == 0) {
            tally.passed.fetch_add(1, Ordering::Relaxed);
            tally.overtaken.fetch_add(1, Ordering::Relaxed);
            out.put(&datagram).await;
        }
    }
}

/// A way to a TCP port on which bytes arrive in odd pieces, with pauses; returns its port. TCP sends lost bytes again
/// itself, so that a bad link has no other effect.
pub(crate) async fn tcp_to(port: u16, seed: u64) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a free port");
    let here = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let mut fates = LinkRng(seed);
        while let Ok((client, _)) = listener.accept().await {
            let node = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
            let node = node.expect("the node listens");
            for stream in [&client, &node] {
                stream.set_nodelay(true).expect("TCP");
            }
            let (from_client, to_client) = client.into_split();
            let (from_node, to_node) = node.into_split();
            let [there, here] = [(); 2].map(|()| LinkRng(fates.below(u64::MAX)));
            tokio::spawn(in_pieces(there, from_client, to_node));
            tokio::spawn(in_pieces(here, from_node, to_client));
        }
    });
    here
}

async fn in_pieces(
    mut fate: LinkRng,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) {
    let mut piece = [0; PIECE_MAX as usize];
    loop {
        let most = 1 + fate.below(PIECE_MAX) as usize;
        match from.read(&mut piece[..most]).await {
            Ok(bytes @ 1..) if to.write_all(&piece[..bytes]).await.is_ok() => sleep(PAUSE).await,
            _ => break,
        }
    }
    let _ = to.shutdown().await;
}
