//! Many finished and unfinished handshakes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use alknet_core::{Carriage, Connection, RecvStream, SendStream};
use alknet_endpoint::{EndpointDialError, EndpointDialer, Target};
use alknet_tests::{BootVariant, RawTcpConnection, TestBench, curl, wire};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinSet, block_in_place};

use super::{AttackedNode, CALL, answers, count, key, key_of, within};

/// Connections that never finish their handshake, in a test run and in `cargo xtask soak hostile`:
/// more than may be in progress.
const CROWD: [usize; 2] = [250, 500];

/// Handshakes that one address may have in progress on TCP, and all unproven ones on QUIC, as in
/// docs/endpoint.md.
const HANDSHAKES_AT_ONCE: usize = 64;

/// Few at a time, so that none has to prove its address first.
#[tokio::test(flavor = "multi_thread")]
async fn quic_handshakes_are_charged_without_retry() {
    const BURST: usize = 5;
    const DIALLED_MIN: usize = 40;
    let bench = TestBench::new();
    let limits = format!("[limits]\nhandshake_burst = {BURST}\nhandshakes_per_second = 1\n");
    let node = bench.host_with(&limits);
    let site = AttackedNode {
        admin: bench.admin(),
        target: node.target().to_owned(),
    };
    // A known peer pays nothing, and adds no credit that others could use.
    let admin = EndpointDialer::new(Some(key_of(bench.admin())));
    for _ in 0..DIALLED_MIN {
        answers(&site.dial(&admin, Carriage::Quic).await).await;
    }
    let unknown_peer = EndpointDialer::new(Some(key()));
    let began = Instant::now();
    let until = began + super::hung();
    let (mut served, mut dialled) = (0, 0);
    // One more for each second that this takes. On a slow machine these are many, and the client dials until there are
    // twice as many dials: otherwise a node without the charge could pass.
    let most = loop {
        let target = site.parsed();
        let dial = within(unknown_peer.dial_over(Carriage::Quic, &target, CALL)).await;
        if let Ok(connection) = dial {
            served += usize::from(is_answered(&connection).await);
        }
        dialled += 1;
        let earned = began.elapsed().as_secs() as usize + 1;
        let most = BURST + earned;
        if dialled >= DIALLED_MIN.max(2 * most) {
            break most;
        }
        let now = Instant::now();
        assert!(now < until, "{dialled} dials are too few beside {most}");
    };
    assert!((1..=most).contains(&served), "{served} of {most}");
    let refused = &site.info(&[])["endpoint"]["handshakes_refused"];
    assert!(refused.as_u64() > Some(0), "{refused}");
}

/// By a peer without rights, whose handshakes still cost the node a signature each.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_of_a_known_peer_have_a_rate() {
    /// No more than the burst: handshakes in progress are charged until their peer is known.
    const TOGETHER: usize = 4;
    let bench = TestBench::new();
    let edge = key();
    let node = bench.host_with(&format!(
        "[limits]\nhandshake_burst = 4\nhandshakes_per_second = 1\n\n\
         [[peers]]\npeer_id = \"edge\"\nkeys = [\"{}\"]\nscopes = []\n",
        edge.public()
    ));
    let target: Target = node.target().parse().expect("the node's own target");
    let edge = Arc::new(EndpointDialer::new(Some(edge)));
    let (mut served, mut refused) = (0, 0);
    let until = Instant::now() + super::hung();
    // Ten per second are free, and forty in a burst.
    while refused == 0 {
        let mut dials = JoinSet::new();
        for _ in 0..TOGETHER {
            let (edge, target) = (Arc::clone(&edge), target.clone());
            dials.spawn(async move {
                match within(edge.dial_over(Carriage::Quic, &target, CALL)).await {
                    Ok(connection) => is_answered(&connection).await,
                    Err(_) => false,
                }
            });
        }
        while let Some(was_served) = dials.join_next().await {
            match was_served.expect("no panic") {
                true => served += 1,
                false => refused += 1,
            }
        }
        assert!(Instant::now() < until, "{served} handshakes");
    }
    println!("figure handshakes of a known peer: {served}");
    // After its time, the administrator behind the same address sees the counters.
    let site = AttackedNode {
        admin: bench.admin(),
        target: node.target().to_owned(),
    };
    let admin = EndpointDialer::new(Some(key_of(bench.admin())));
    let served_again = async || match admin.dial_over(Carriage::Quic, &site.parsed(), CALL).await {
        Ok(connection) => is_answered(&connection).await,
        Err(_) => false,
    };
    while !served_again().await {
        tokio::time::sleep(super::LOOK_AGAIN).await;
        assert!(Instant::now() < until, "the administrator is kept out");
    }
    let refused = &site.info(&[])["endpoint"]["handshakes_refused"];
    assert!(refused.as_u64() > Some(0), "{refused}");
}

/// A known peer with the least rights shows its key at many addresses. Each address then has as
/// many handshakes as it may have, and sends nothing on them.
#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_a_known_peer_do_not_take_every_handshake() {
    const ADDRESSES: u8 = 8;
    let bench = TestBench::new();
    let eve = bench.user("eve");
    let config = format!(
        "[limits]\nhandshake_burst = 10000\nhandshakes_per_second = 10000\n\
         [[peers]]\npeer_id = \"eve\"\nkeys = [\"{}\"]\n",
        eve.identity()
    );
    let node = bench.host_with(&config);
    let site = AttackedNode {
        admin: bench.admin(),
        target: node.target().to_owned(),
    };
    let target = &site.parsed();
    let from = |n: u8| Ipv4Addr::new(127, 0, n, 1);
    let silent = |n: u8| {
        let all = (0..HANDSHAKES_AT_ONCE).map(move |_| RawTcpConnection::tcp(target, from(n)));
        all.map(|tcp| tcp.expect("the node accepts"))
    };
    block_in_place(|| {
        let mut shown = Vec::new();
        for n in 1..=ADDRESSES {
            let key = Some(key_of(&eve));
            let peer = RawTcpConnection::connect(target, from(n), key, CALL);
            let mut peer = peer.expect("she is known");
            let ask = wire::request("1", "services/list", &json!({ "limit": 1 }));
            peer.say(&ask).expect("it is taken");
            assert_eq!(peer.event().expect("an answer")["type"], "call.responded");
            shown.push(peer);
        }
        // Half of the addresses take all handshakes that exist.
        let mut held: Vec<_> = (1..=ADDRESSES / 2).flat_map(silent).collect();
        // From a client that the node has never seen.
        let honest = RawTcpConnection::tcp(target, from(99)).expect("the node accepts");
        held.extend((ADDRESSES / 2 + 1..=ADDRESSES).flat_map(silent));
        let honest = RawTcpConnection::over(honest, target, None, CALL);
        let mut honest = honest.expect("its handshake was not ended for another");
        let ask = wire::request("1", "services/list", &json!({ "limit": 1 }));
        honest.say(&ask).expect("it is taken");
        assert_eq!(honest.event().expect("an answer")["type"], "call.responded");
        drop((held, shown));
    });
    site.serves();
}

/// Connections of each key of a crowd: as many as a peer may have.
const EACH: usize = 16;
/// Places of a node that such a crowd fills.
const PLACES: usize = 2 * EACH;

/// Two keys of one host, as an invitation for several lets in, with as many connections as they may have, and together
/// all that the node serves.
struct KnownCrowd {
    keys: [NodeKey; 2],
}

impl KnownCrowd {
    fn new() -> Self {
        Self {
            keys: [key(), key()],
        }
    }

    /// Entries of a document that lets them in.
    fn entries(&self) -> String {
        let named = ["eve", "mallory"].iter().zip(&self.keys);
        let entries = named.map(|(name, key)| {
            let key = key.public();
            format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = []\n")
        });
        entries.collect()
    }

    /// Takes all places.
    async fn connect(&self, target: &Target) -> Vec<CallingConnection> {
        let mut held = Vec::new();
        for key in &self.keys {
            let dialer = EndpointDialer::new(Some(key.clone()));
            for at in 0..EACH {
                let carriage = super::CARRIAGES[at % super::CARRIAGES.len()];
                let dialled = within(dialer.dial_over(carriage, target, CALL)).await;
                held.push(CallingConnection::open(dialled.expect("it is known")).await);
            }
        }
        held
    }

    /// Each key connects once more. Returns the connections that the node serves.
    async fn connect_again(&self, target: &Target) -> Vec<CallingConnection> {
        let mut served = Vec::new();
        for key in &self.keys {
            let dialer = EndpointDialer::new(Some(key.clone()));
            let again = within(dialer.dial_over(Carriage::Tcp, target, CALL)).await;
            if let Ok(connection) = again {
                served.extend(CallingConnection::try_open(connection).await);
            }
        }
        served
    }
}

/// The administrator comes later than the crowd, with no connection.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_have_every_place_keep_no_administrator_out() {
    let bench = TestBench::new();
    let crowd = KnownCrowd::new();
    let entries = crowd.entries();
    let node = bench.host_with(&format!("[limits]\nconnections = {PLACES}\n\n{entries}"));
    let target: Target = node.target().parse().expect("the node's own target");
    let mut held = crowd.connect(&target).await;
    let admin = EndpointDialer::new(Some(key_of(bench.admin())));
    for carriage in super::CARRIAGES {
        let dialled = within(admin.dial_over(carriage, &target, CALL)).await;
        let connection = dialled.expect("the handshake goes on");
        held.push(CallingConnection::open(connection).await);
    }
    // None of the crowd gets a place back: then it would have more than the others.
    let again = crowd.connect_again(&target).await;
    assert_eq!(again.len(), 0);
    for connection in &mut held[PLACES..] {
        connection.answers().await;
    }
}

/// This administrator has no key, but a token over HTTPS, and is unknown until the node reads the token.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_have_every_place_keep_no_token_out() {
    const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const OK: &str = "HTTP/1.1 200 OK";
    let bench = TestBench::new();
    let crowd = KnownCrowd::new();
    let entries = crowd.entries();
    let limits = "[limits]\nhandshake_burst = 10000\nhandshakes_per_second = 10000\n";
    let config = format!("{limits}connections = {PLACES}\n\n{entries}");
    let node = block_in_place(|| bench.host_with(&config));
    let made = block_in_place(|| node.call("token/make", &json!({ "scopes": ["node:read"] })));
    let token = made["token"].as_str().expect("a token");
    let target: Target = node.target().parse().expect("the node's own target");
    let held = crowd.connect(&target).await;
    // A browser connects before it sends a request.
    let browser = block_in_place(|| {
        RawTcpConnection::connect(&target, Ipv4Addr::LOCALHOST, None, b"http/1.1")
    });
    let mut browser = browser.expect("the handshake goes on");
    block_in_place(|| {
        browser.say(HEALTH).expect("the node reads");
        let head = browser.hear(OK.len()).expect("the node has a place");
        assert_eq!(String::from_utf8_lossy(&head), OK);
    });
    // The key that lost no connection may replace one of its own, and the other one gets none.
    let again = crowd.connect_again(&target).await;
    assert!(again.len() <= 1, "{} connections", again.len());
    let call = json!({ "operation": "/node/info" }).to_string();
    let (bearer, len) = (format!("Authorization: Bearer {token}"), call.len());
    let request = format!(
        "POST /call HTTP/1.1\r\nHost: localhost\r\n{bearer}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{call}"
    );
    block_in_place(|| {
        browser.say(request.as_bytes()).expect("the node reads");
        let mut rest = Vec::new();
        while let Ok(more) = browser.hear(1) {
            rest.extend(more);
        }
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.contains(OK), "{rest}");
    });
    // Each run of curl is another connection, which is unknown at first.
    let url = format!("https://{}/call", target.address());
    for _ in 0..3 {
        let answered = block_in_place(|| curl(&url, &["--header", &bearer, "--json", &call]));
        assert_eq!(answered.status, 200, "{answered:?}");
    }
    drop((held, again));
}

/// A connection and a stream of calls, which stays open: over TCP a connection ends with its only stream.
struct CallingConnection {
    _connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

impl CallingConnection {
    async fn open(connection: Connection) -> Self {
        let held = Self::try_open(connection).await;
        held.expect("the node serves the connection")
    }

    /// `None` if the node ends the connection.
    async fn try_open(connection: Connection) -> Option<Self> {
        let (send, recv) = wire::stream(&connection).await.ok()?;
        let mut held = Self {
            _connection: connection,
            send,
            recv,
        };
        held.try_answers().await.then_some(held)
    }

    /// The node answers a call that every peer may make.
    async fn answers(&mut self) {
        assert!(self.try_answers().await, "the connection ended");
    }

    async fn try_answers(&mut self) -> bool {
        let request = wire::request("1", "services/list", &Value::Null);
        if self.send.write_chunk(request.into()).await.is_err() {
            return false;
        }
        let Some(event) = within(wire::event_or_end(&mut self.recv)).await else {
            return false;
        };
        assert_eq!(event["type"], "call.responded", "{event}");
        true
    }
}

/// Whether the node answers a call that every peer may make.
pub(super) async fn is_answered(connection: &Connection) -> bool {
    let Ok((mut send, mut recv)) = wire::stream(connection).await else {
        return false;
    };
    let request = wire::request("1", "services/list", &Value::Null);
    let asked = send.write_chunk(request.into()).await.is_ok();
    asked && matches!(within(recv.read_chunk(1)).await, Ok(Some(_)))
}

/// Where a member of a crowd stops.
#[derive(Clone, Copy, Debug)]
enum StallPoint {
    /// Connects by TCP.
    AtOnce,
    /// Sends half a ClientHello.
    WithinHello,
    /// Sends a whole ClientHello and never answers the node's.
    AfterHello,
    /// Sends QUIC's first packets and receives no answer.
    Quic,
}

const SILENCES: [StallPoint; 4] = [
    StallPoint::AtOnce,
    StallPoint::WithinHello,
    StallPoint::AfterHello,
    StallPoint::Quic,
];

/// Connections that never finish their handshake, while this is kept.
struct StalledHandshakes {
    tcp: Vec<TcpStream>,
    quic: JoinSet<Result<Connection, EndpointDialError>>,
    _relay: JoinSet<()>,
}

impl StalledHandshakes {
    /// One for each of `silences`, all held open together.
    async fn gather(site: &AttackedNode<'_>, silences: impl Iterator<Item = StallPoint>) -> Self {
        let hello = client_hello(site).await;
        let mut relay = JoinSet::new();
        let blind = one_way(site.address(), &mut relay).await;
        let target: Target = blind.to_string().parse().expect("an address");
        let target = target.with_pins(site.parsed().pins);
        let dialer = Arc::new(EndpointDialer::new(None));
        let mut crowd = Self {
            tcp: Vec::new(),
            quic: JoinSet::new(),
            _relay: relay,
        };
        for silence in silences {
            let words: &[u8] = match silence {
                StallPoint::AtOnce => &[],
                StallPoint::WithinHello => &hello[..hello.len() / 2],
                StallPoint::AfterHello => &hello,
                StallPoint::Quic => {
                    let (dialer, target) = (Arc::clone(&dialer), target.clone());
                    let dial = async move { dialer.dial_over(Carriage::Quic, &target, CALL).await };
                    crowd.quic.spawn(dial);
                    continue;
                }
            };
            // One after the other, because a virtual machine's network loses packets of many at
            // once, and keeps a connection open that the machine has never seen.
            let dialled = TcpStream::connect(site.address()).await;
            let mut tcp = dialled.expect("the node accepts");
            // The end of an earlier one may reset this one's bytes.
            tcp.write_all(words).await.ok();
            crowd.tcp.push(tcp);
        }
        crowd
    }

    /// Waits until each has ended: ended by the node on TCP, and by itself on UDP, where the node
    /// sends nothing.
    async fn disperse(mut self) {
        let mut rest = Vec::new();
        for mut tcp in self.tcp {
            // A reset is an end too.
            within(tcp.read_to_end(&mut rest)).await.ok();
        }
        while let Some(dialled) = within(self.quic.join_next()).await {
            let dialled = dialled.expect("no panic");
            assert!(
                matches!(dialled, Err(EndpointDialError::TimedOut { .. })),
                "{dialled:?}"
            );
        }
    }
}

/// The first bytes of this project's client.
async fn client_hello(site: &AttackedNode<'_>) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let here = listener.local_addr().expect("it is bound").to_string();
    let target: Target = here.parse().expect("an address");
    let target = target.with_pins(site.parsed().pins);
    let dialer = EndpointDialer::new(None);
    let hear = async {
        let (mut tcp, _) = listener.accept().await.expect("a client dials");
        // A TLS record: type, version, length (RFC 8446 section 5.1).
        let mut hello = vec![0; 5];
        tcp.read_exact(&mut hello).await.expect("a record");
        let len = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
        hello.resize(5 + len, 0);
        tcp.read_exact(&mut hello[5..]).await.expect("a record");
        hello
    };
    tokio::select! {
        hello = hear => hello,
        dialled = dialer.dial_over(Carriage::Tcp, &target, CALL) => panic!("{dialled:?}"),
    }
}

/// An address that forwards datagrams to `node` and drops the answers.
async fn one_way(node: SocketAddr, tasks: &mut JoinSet<()>) -> SocketAddr {
    let free = async || UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let (inside, outside) = (free().await, free().await);
    let address = inside.local_addr().expect("it is bound");
    tasks.spawn(async move {
        let mut datagram = vec![0; 2048];
        while let Ok((len, _)) = inside.recv_from(&mut datagram).await {
            outside.send_to(&datagram[..len], node).await.ok();
        }
    });
    address
}

/// A crowd, and a caller beside it.
async fn a_crowd_shuts_no_known_peer_out(site: &AttackedNode<'_>, kinds: &[StallPoint]) {
    let many = count(CROWD[0], CROWD[1]);
    let before = site.info(&[])["endpoint"].clone();
    let began = Instant::now();
    let crowd = StalledHandshakes::gather(site, kinds.iter().copied().cycle().take(many)).await;
    // Some are in progress, within the limits, and the others were ended for them. While many come
    // at once, slightly more than the limit are in progress: 68 of 64 were seen.
    let under_way = kinds.len().min(2) * HANDSHAKES_AT_ONCE;
    site.served_until_handshakes_end(&before, many, under_way + under_way / 8, began)
        .await;
    site.serves();
    crowd.disperse().await;
    site.serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_crowds_at_the_host() {
    let bench = TestBench::new();
    let (_node, site) = AttackedNode::on_host(&bench);
    for _ in 0..count(1, 20) {
        for silence in SILENCES {
            a_crowd_shuts_no_known_peer_out(&site, &[silence]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_crowds_at_the_appliance() {
    let bench = TestBench::new();
    let node = block_in_place(|| bench.snapshot(BootVariant::MicrovmErofs).restore());
    let site = AttackedNode {
        admin: bench.admin(),
        target: node.target(),
    };
    for _ in 0..count(1, 20) {
        a_crowd_shuts_no_known_peer_out(&site, &SILENCES).await;
    }
    let info = site.info(&[]);
    assert_eq!(info["node_restarts"], 0, "{info}");
    block_in_place(|| node.end());
}
