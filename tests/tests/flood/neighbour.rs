//! An administrator in the network of a crowd that uses up that network's handshakes, with a node's
//! default rates. Only a handshake shows that it is an administrator's, and each costs a signature.
//! At an address that the node has not seen, the administrator gets in when the crowd pauses, or
//! over the carriage that the crowd does not use. At an address that the node has seen, and from
//! any other network, it gets in while the crowd continues. So it does beside crowds of a whole
//! site and of thousands of networks.

use std::io::{self, Read, Write};
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use alknet_call::CallConnection;
use alknet_core::Carriage;
use alknet_test_support::{deadline, took};
use alknet_tests::{TestBench, wire};
use alknet_tls::NodeKey;
use rustls::StreamOwned;
use serde_json::Value;

use super::crowd::{AddressSpread, CROWD, FloodConnections, FloodProgress, GETS_IN_WITHIN};
use super::{FloodNamespaces, FloodNode, KnownClient, among, full, values};

/// An operation that only an administrator may call.
const OPERATION: &str = "node/metrics";
/// Bytes of a frame's length field.
const HEADER_BYTES: usize = 4;
/// Bytes of the longest answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Tries at each address while the crowd continues.
const TRIES: usize = 5;
/// The same far from a crowd that never rests, over each carriage, in a test run and in a campaign.
const TURNS: [usize; 2] = [3, 20];
/// Pause between two tries of a refused neighbour.
const AGAIN: Duration = Duration::from_millis(50);

/// The node's counter of handshakes that exceed a network's rate.
const REFUSED: &str = "alknet_limit_hits_total{limit=\"handshake_rate\"}";
/// How the names of the counters of all limits begin.
const LIMIT_HITS: &str = "alknet_limit_hits_total{";
/// Refused handshakes of the crowd between two tries: one for each of its eight threads.
const REFUSED_EACH: f64 = 8.0;
/// Connections and tries of the crowd between two tries of the administrator.
const GOES_ON: usize = 40;
/// How long the crowd may take for those.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
/// How long the crowd may take to use each of its addresses.
const COMES_WITHIN: Duration = Duration::from_secs(120);

/// An address of the crowd's /56, in another /64. At the first one the node sees the administrator
/// before the crowd comes.
fn beside(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 7, 0, 0, 0, n + 1)
}

/// An address of a site of its own, far from every crowd.
fn far_address(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x1000 + n, 0, 0, 0, 0, 1)
}

/// An address of another site.
fn elsewhere(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0xf, n << 8, 0, 0, 0, 1)
}

/// The administrator, at any address.
struct Administrator {
    ways: Arc<FloodConnections>,
    /// How many addresses of the crowd's network, of others, and of sites far from the crowd it has used.
    used: [u16; 3],
}

impl Administrator {
    fn new(served: &FloodNode, key: NodeKey) -> Self {
        Self {
            ways: Arc::new(FloodConnections::showing(served, Some(key)).with_quic()),
            used: [0, 0, 0],
        }
    }

    /// An address of the crowd's network at which the node has not seen it.
    fn beside(&mut self) -> Ipv6Addr {
        self.used[0] += 1;
        beside(self.used[0])
    }

    /// The same in another network each time.
    fn elsewhere(&mut self) -> Ipv6Addr {
        self.used[1] += 1;
        elsewhere(self.used[1])
    }

    /// The same in another site each time.
    fn far_from_the_crowd(&mut self) -> Ipv6Addr {
        self.used[2] += 1;
        far_address(self.used[2])
    }

    /// Connects over `carriage` and gets an administrator's answer.
    async fn asks(&self, carriage: Carriage, from: Ipv6Addr) -> io::Result<()> {
        let request = wire::request("1", OPERATION, &Value::Null);
        let answer = match carriage {
            Carriage::Quic => self.asks_over_quic(&request, from).await?,
            // It blocks, so as a future it would end before the timeout could be checked.
            _ => {
                let ways = Arc::clone(&self.ways);
                let (answered, answer) = tokio::sync::oneshot::channel();
                // A thread of tokio's pool may not be in this thread's namespace.
                std::thread::spawn(move || answered.send(asks_over_tcp(&ways, &request, from)));
                answer.await.map_err(io::Error::other)??
            }
        };
        let answer: Value = serde_json::from_slice(&answer).map_err(io::Error::other)?;
        match answer["type"].as_str() {
            Some("call.responded") => Ok(()),
            _ => Err(io::Error::other(answer.to_string())),
        }
    }

    async fn asks_over_quic(&self, request: &[u8], from: Ipv6Addr) -> io::Result<Vec<u8>> {
        let (endpoint, connection) = self.ways.connect_quic(from).await?;
        let asked = async {
            let (mut send, mut recv) = connection.open_bi().await.map_err(io::Error::other)?;
            send.write_all(request).await.map_err(io::Error::other)?;
            let mut header = [0; HEADER_BYTES];
            let read = recv.read_exact(&mut header).await;
            read.map_err(io::Error::other)?;
            let mut answer = vec![0; length(header)];
            let read = recv.read_exact(&mut answer).await;
            read.map_err(io::Error::other)?;
            Ok(answer)
        };
        let answer = asked.await;
        connection.close(0u32.into(), b"");
        drop(endpoint);
        answer
    }

    /// How long that takes at the first try.
    async fn gets_in(&self, carriage: Carriage, from: Ipv6Addr) -> Duration {
        let began = Instant::now();
        let asked = tokio::time::timeout(deadline(GETS_IN_WITHIN), self.asks(carriage, from)).await;
        let asked = asked.unwrap_or_else(|_| panic!("{carriage} from {from}: no answer"));
        asked.unwrap_or_else(|error| panic!("{carriage} from {from}: {error}"));
        began.elapsed()
    }

    /// How long that takes a client that retries when it is refused.
    async fn gets_in_at_last(&self, carriage: Carriage, from: Ipv6Addr) -> Duration {
        let began = Instant::now();
        let asks = async {
            while self.asks(carriage, from).await.is_err() {
                tokio::time::sleep(AGAIN).await;
            }
        };
        let asked = tokio::time::timeout(deadline(GETS_IN_WITHIN), asks).await;
        assert!(asked.is_ok(), "{carriage} from {from}: kept out");
        began.elapsed()
    }
}

fn asks_over_tcp(ways: &FloodConnections, request: &[u8], from: Ipv6Addr) -> io::Result<Vec<u8>> {
    let (tcp, tls) = ways.connect(from)?;
    let mut stream = StreamOwned::new(tls, tcp);
    stream.write_all(request)?;
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let mut answer = vec![0; length(header)];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn length(header: [u8; HEADER_BYTES]) -> usize {
    let length = u32::from_be_bytes(header) as usize;
    assert!(length <= ANSWER_BYTES_MAX, "an answer of {length} bytes");
    length
}

/// Runs `beside` while a crowd connects repeatedly, after it has used each of its addresses.
async fn beside_a_crowd(
    crowd: FloodConnections,
    spread: AddressSpread,
    beside: impl AsyncFnOnce(&FloodProgress),
) {
    let (crowd, progress) = (crowd.restless(), Arc::new(FloodProgress::default()));
    let coming = {
        let progress = Arc::clone(&progress);
        std::thread::spawn(move || crowd.come(spread, &progress))
    };
    let until = Instant::now() + deadline(COMES_WITHIN);
    while progress.done.load(Ordering::SeqCst) < full(CROWD) {
        let come = progress.done.load(Ordering::SeqCst);
        assert!(Instant::now() < until, "only {come} of the crowd came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    beside(&progress).await;
    progress.stop.store(true, Ordering::SeqCst);
    coming.join().expect("the crowd came");
}

/// How often connections and handshakes reached a limit of the node.
async fn limit_hits(watch: &CallConnection) -> f64 {
    let values = values(watch).await;
    let values = values.as_object().expect("an object");
    let hits = values
        .iter()
        .filter(|(name, _)| name.starts_with(LIMIT_HITS));
    hits.filter_map(|(_, value)| value.as_f64()).sum()
}

/// Waits until the crowd has made [`GOES_ON`] more connections or tries.
async fn crowd_goes_on(progress: &FloodProgress) {
    let before = progress.done.load(Ordering::SeqCst);
    let until = Instant::now() + deadline(REFUSED_WITHIN);
    while progress.done.load(Ordering::SeqCst) < before + GOES_ON {
        assert!(Instant::now() < until, "the crowd rests");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Total handshakes that exceeded a network's rate.
async fn refused(watch: &CallConnection) -> f64 {
    let refused = values(watch).await[REFUSED].as_f64();
    refused.expect("it is counted")
}

/// Waits until the node has refused [`REFUSED_EACH`] more handshakes, while the administrator makes
/// none. Then the crowd is using up its network's rate, and continues. Returns the total of refused
/// handshakes.
async fn crowd_is_refused(watch: &CallConnection) -> f64 {
    let before = refused(watch).await;
    let rises = async {
        loop {
            let now = refused(watch).await;
            if now >= before + REFUSED_EACH {
                return now;
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    let risen = tokio::time::timeout(deadline(REFUSED_WITHIN), rises).await;
    risen.unwrap_or_else(|_| panic!("the crowd does not use up its rate, {before} were refused"))
}

async fn scenario(admin_state: &Path, served: &FloodNode) {
    const BOTH: [Carriage; 2] = [Carriage::Quic, Carriage::Tcp];
    let (key, _) = NodeKey::load_or_create(&admin_state.join("identity.key")).expect("a key");
    let mut admin = Administrator::new(served, key);
    let seen = beside(0);
    let mut longest = admin.gets_in(Carriage::Tcp, seen).await;
    // From the end of the cable, over a connection made before the crowds.
    let watcher = KnownClient::new(admin_state, &served.target);
    let watch = watcher.connect().await;
    let mut each = [0.0; 2];

    // A crowd that dials only TCP. Each carriage has a separate rate.
    let crowd = FloodConnections::new(served);
    beside_a_crowd(crowd, AddressSpread::OneNetwork, async |_| {
        let before = crowd_is_refused(&watch).await;
        for _ in 0..TRIES {
            let from = admin.beside();
            longest = longest.max(admin.gets_in(Carriage::Quic, from).await);
            // The address at which it was seen first stays one of the last four.
            longest = longest.max(admin.gets_in(Carriage::Tcp, seen).await);
            each[0] = crowd_is_refused(&watch).await - before;
        }
    })
    .await;

    let mut let_in = 0;
    beside_a_crowd(
        FloodConnections::new(served).with_quic(),
        AddressSpread::OneNetwork,
        async |progress| {
            let before = crowd_is_refused(&watch).await;
            for turn in 0..TRIES {
                for carriage in BOTH {
                    longest = longest.max(admin.gets_in(carriage, seen).await);
                    let from = admin.elsewhere();
                    longest = longest.max(admin.gets_in(carriage, from).await);
                }
                let from = admin.beside();
                let asked = admin.asks(BOTH[turn % 2], from);
                let asked = tokio::time::timeout(deadline(GETS_IN_WITHIN), asked).await;
                let_in += usize::from(matches!(asked, Ok(Ok(()))));
                each[1] = crowd_is_refused(&watch).await - before;
            }
            // The crowd keeps its connections, and makes no more.
            progress.halt.store(true, Ordering::SeqCst);
            for carriage in BOTH {
                let from = admin.beside();
                longest = longest.max(admin.gets_in_at_last(carriage, from).await);
            }
        },
    )
    .await;
    println!("figure handshakes refused beside a neighbour, for each crowd: {each:?}");
    println!(
        "figure neighbour of a crowd: in after {} ms at most; {let_in} of {TRIES} tries from unseen addresses of its own \
         network while it went on",
        longest.as_millis()
    );
    took(
        "an administrator beside a crowd of its network",
        GETS_IN_WITHIN,
        longest,
    );
}

/// The crowd is in another /64 of the administrator's /56.
#[test]
fn a_neighbour_of_a_crowd_gets_in_where_it_was_seen_and_elsewhere_when_the_crowd_pauses() {
    if let Some(lab) = FloodNamespaces::new('w').map(FloodNamespaces::crowded) {
        let bench = TestBench::new();
        let served = lab.serve(&bench, "::", "[limits]\nconnections = 512\n");
        let admin = bench.admin().state().to_owned();
        among(&lab, scenario(&admin, &served));
    }
}

/// Beside crowds that connect all the while, half of which begins handshakes and sends nothing more, the administrator
/// comes from a network that the node has never seen, each time from another one.
async fn throughout(admin_state: &Path, served: &FloodNode) {
    let (key, _) = NodeKey::load_or_create(&admin_state.join("identity.key")).expect("a key");
    let mut admin = Administrator::new(served, key);
    // Makes the ends of the cable resolve each other before a crowd comes.
    let from = admin.far_from_the_crowd();
    admin.gets_in(Carriage::Tcp, from).await;
    let watcher = KnownClient::new(admin_state, &served.target);
    let watch = watcher.connect().await;
    for spread in [AddressSpread::OneSite, AddressSpread::Everywhere] {
        let crowd = FloodConnections::new(served).with_quic().half_silent();
        let mut longest = Duration::ZERO;
        let before = limit_hits(&watch).await;
        beside_a_crowd(crowd, spread, async |progress| {
            for _ in 0..full(TURNS) {
                for carriage in [Carriage::Quic, Carriage::Tcp] {
                    let from = admin.far_from_the_crowd();
                    longest = longest.max(admin.gets_in(carriage, from).await);
                }
                crowd_goes_on(progress).await;
            }
            let come = progress.done.load(Ordering::SeqCst);
            println!(
                "figure restless crowd {spread:?}: an unseen administrator got in {} times, after {} ms at most, beside \
                 {come} connections and tries",
                2 * full(TURNS),
                longest.as_millis()
            );
        })
        .await;
        let hits = limit_hits(&watch).await - before;
        println!("figure restless crowd {spread:?}: {hits} of its tries reached a limit");
        assert!(hits > 0.0, "{spread:?}: the crowd found room for all");
        took(
            &format!("an unseen administrator beside a restless crowd {spread:?}"),
            GETS_IN_WITHIN,
            longest,
        );
    }
}

/// With a node's default rates.
#[test]
fn a_host_with_thousands_of_addresses_that_never_rests_lets_an_unseen_administrator_in() {
    if let Some(lab) = FloodNamespaces::new('r').map(FloodNamespaces::crowded) {
        let bench = TestBench::new();
        let served = lab.serve(&bench, "::", "[limits]\nconnections = 512\n");
        let admin = bench.admin().state().to_owned();
        among(&lab, throughout(&admin, &served));
    }
}
