//! The iroh endpoint beside the one port, reached with iroh itself and with this project's dialler.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_core::{Carriage, CloseCode, DialRequest, Dialer as _, PeerKey, PeerVerification};
use alknet_endpoint::{EndpointDialError, EndpointDialer, EndpointLimits, IrohOptions, Target};
use alknet_test_support::deadline;
use alknet_tls::NodeKey;
use bytes::Bytes;
use iroh::endpoint::{
    ConnectError, ConnectingError, Connection, ConnectionError, QuicTransportConfig, presets,
};
use iroh::{Endpoint, EndpointAddr, EndpointId, SecretKey};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::matrix::classic;
use crate::support::{
    ECHO, ENDLESS, EndpointTestNode, KNOWN, PANIC, TCP_ONLY, WHOAMI, ask, code, hung, stream, until,
};

/// The number of turns of a runtime with one thread in which each of its tasks passes on its packets: a packet of
/// iroh's goes from its connection to the task of the remote, and from there to the socket.
const TURNS: usize = 16;

/// QUIC's code for the TLS alert `no_application_protocol` (RFC 9001 section 8.1).
const NO_APPLICATION_PROTOCOL: u64 = 0x178;

struct IrohNode {
    node: EndpointTestNode,
    address: SocketAddr,
}

impl IrohNode {
    async fn start() -> Self {
        Self::with(EndpointLimits::default(), Vec::new()).await
    }

    async fn with(limits: EndpointLimits, relays: Vec<String>) -> Self {
        let mut node = EndpointTestNode::with_limits(limits);
        let options = IrohOptions {
            relays,
            ..on_loopback()
        };
        let key = node.key.clone();
        let added = node.server.add_iroh(&key, &options).await;
        added.expect("a free port");
        let address = node.server.iroh_addresses()[0];
        Self { node, address }
    }

    fn target(&self) -> Target {
        let target: Target = self.address.to_string().parse().expect("a target");
        target.with_pins([self.node.key.public()])
    }

    fn address(&self) -> EndpointAddr {
        address(&self.node.key, self.address)
    }

    async fn dial(&self, dialer: &EndpointDialer, alpn: &[u8]) -> alknet_core::Connection {
        let dialled = dialer.dial_over(Carriage::Iroh, &self.target(), alpn).await;
        dialled.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// A free port of loopback, and no relays.
pub(crate) fn on_loopback() -> IrohOptions {
    IrohOptions {
        addrs: vec![Ipv4Addr::LOCALHOST.into()],
        port: 0,
        relays: Vec::new(),
    }
}

/// The address of a node, in iroh's form.
pub(crate) fn address(key: &NodeKey, address: SocketAddr) -> EndpointAddr {
    EndpointAddr::new(id(key)).with_ip_addr(address)
}

fn id(key: &NodeKey) -> EndpointId {
    let PeerKey::Ed25519(bytes) = key.public() else {
        panic!("an Ed25519 key")
    };
    EndpointId::from_bytes(&bytes).expect("a key")
}

/// A client made by iroh itself, without relays.
pub(crate) async fn stock(key: &NodeKey) -> Endpoint {
    let builder = Endpoint::builder(presets::Minimal);
    let client = builder.secret_key(SecretKey::from_bytes(key.seed()));
    client.bind().await.expect("a socket")
}

/// Sends `text` on a stream and reads the whole answer.
async fn ask_stock(connection: &Connection, text: &[u8]) -> String {
    let (mut send, mut recv) = connection.open_bi().await.expect("open");
    send.write_all(text).await.expect("write");
    send.finish().expect("finish");
    let answer = recv.read_to_end(1 << 20).await.expect("read");
    String::from_utf8(answer).expect("text")
}

async fn code_stock(connection: &Connection) -> u64 {
    match tokio::time::timeout(hung(), connection.closed()).await {
        Ok(ConnectionError::ApplicationClosed(close)) => close.error_code.into_inner(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_reaches_a_handler_by_key() {
    let node = IrohNode::start().await;
    let key = NodeKey::generate().expect("a key");
    let client = stock(&key).await;
    let connection = client.connect(node.address(), WHOAMI).await;
    let connection = connection.expect("connect");
    assert_eq!(connection.remote_id(), id(&node.node.key));
    let public = key.public();
    let answer = ask_stock(&connection, b"?").await;
    assert_eq!(answer, format!("{public} unknown\n"));
    let counters = node.node.server.counters();
    assert_eq!((counters.connections_iroh, counters.handshakes_ok), (1, 1));
    let all = node.node.server.connections();
    assert_eq!(
        (all[0].carriage, all[0].key),
        (Carriage::Iroh, Some(public))
    );
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_is_one_peer_on_every_carriage() {
    let node = IrohNode::start().await;
    let (dialer, key) = node.node.peer("friend");
    for carriage in [Carriage::Quic, Carriage::Tcp, Carriage::Iroh] {
        let target = match carriage {
            Carriage::Iroh => node.target(),
            _ => node.node.target(),
        };
        let connection = dialer.dial_over(carriage, &target, WHOAMI).await;
        let connection = connection.unwrap_or_else(|error| panic!("{carriage}: {error}"));
        assert_eq!(connection.carriage(), carriage);
        let answer = ask(&connection, b"?").await.expect("an answer");
        assert_eq!(answer, format!("{key} friend\n"), "{carriage}");
    }
    dialer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_peer_is_turned_away_where_a_known_key_is_needed() {
    let node = IrohNode::start().await;
    let unknown_peer = stock(&NodeKey::generate().expect("a key")).await;
    let connection = unknown_peer.connect(node.address(), KNOWN).await;
    assert_eq!(code_stock(&connection.expect("connect")).await, 1);
    assert_eq!(node.node.server.counters().policy_refusals, 1);
    unknown_peer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_key_that_was_dialled_answers() {
    let node = IrohNode::start().await;
    let dialer = EndpointDialer::new(None);
    let dial = async |target: &Target| dialer.dial_over(Carriage::Iroh, target, ECHO).await;
    let other = NodeKey::generate().expect("a key").public();
    let bare: Target = node.address.to_string().parse().expect("a target");
    let wrong = bare.clone().with_pins([other]);
    let refused = dial(&wrong).await;
    assert!(
        matches!(refused, Err(EndpointDialError::OtherKey { expected, .. }) if expected == other),
        "{refused:?}"
    );
    // Of two keys, as while a node changes its own, the one that it has.
    let both = wrong.with_pins([node.node.key.public()]);
    let connection = dial(&both).await.expect("one of two");
    assert_eq!(ask(&connection, b"x").await.expect("echo"), "x");
    for unknown_peer in [bare.clone(), bare.with_pins([PeerKey::Spki([1; 32])])] {
        let refused = dial(&unknown_peer).await;
        assert!(
            matches!(refused, Err(EndpointDialError::UnknownPeer { .. })),
            "{refused:?}"
        );
    }
    let stock = stock(&NodeKey::generate().expect("a key")).await;
    let wrong = NodeKey::generate().expect("a key");
    let address = address(&wrong, node.address);
    assert!(stock.connect(address, ECHO).await.is_err());
    stock.close().await;
    dialer.close().await;
}

/// The same for a protocol that is offered on TCP only. The client need not wait for its timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_an_unserved_alpn_gets_an_alert() {
    let node = IrohNode::start().await;
    let dialer = EndpointDialer::new(None);
    let target = node.target();
    for alpn in [TCP_ONLY, b"alknet/nothing"] {
        let refused = dialer.dial_over(Carriage::Iroh, &target, alpn).await;
        assert!(
            matches!(&refused, Err(EndpointDialError::NoProtocol { alpn: said, .. }) if said.as_bytes() == alpn),
            "{refused:?}"
        );
    }
    dialer.close().await;
    until(|| node.node.server.counters().handshakes_failed == 2).await;
    assert_eq!(node.node.server.counters().connections_iroh, 0);
}

/// A client whose ClientHello takes two packets and one whose ClientHello takes one: the node answers the second at
/// once.
#[tokio::test(flavor = "multi_thread")]
async fn iroh_gets_an_alert_for_an_unserved_alpn() {
    let node = IrohNode::start().await;
    for (provider, retried) in [(alknet_tls::provider(), 1), (classic(), 0)] {
        let before = node.node.server.counters();
        let builder = Endpoint::builder(presets::Minimal).crypto_provider(provider);
        let client = builder.bind().await.expect("a socket");
        let refused = client.connect(node.address(), b"alknet/nothing").await;
        let alert = match refused {
            Err(ConnectError::Connecting {
                source: ConnectingError::ConnectionError { source, .. },
                ..
            }) => match source {
                ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!(alert, NO_APPLICATION_PROTOCOL);
        let connection = client.connect(node.address(), WHOAMI).await;
        let answer = ask_stock(&connection.expect("connect"), b"?").await;
        assert!(answer.ends_with("unknown\n"), "{answer}");
        until(|| node.node.server.counters().handshakes_failed > before.handshakes_failed).await;
        let after = node.node.server.counters();
        assert_eq!(
            after.handshakes_retried,
            before.handshakes_retried + 2 * retried
        );
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dialler_without_a_key_shows_none_of_its_own() {
    let node = IrohNode::start().await;
    let own = NodeKey::generate().expect("a key");
    node.node.peers.add(own.public(), "friend");
    let dialer = EndpointDialer::new(Some(own.clone()));
    let target = node.target();
    let expect = PeerVerification::Pinned(target.pins.clone());
    let mut request = DialRequest::new(target, expect, WHOAMI);
    request.carriage = Carriage::Iroh;
    let shown = dialer.connect(request.clone()).await.expect("dial");
    let answer = ask(&shown.connection, b"?").await.expect("an answer");
    assert_eq!(answer, format!("{} friend\n", own.public()));
    assert_eq!(shown.keys, [node.node.key.public()]);
    request.present_key = false;
    let hidden = dialer.connect(request).await.expect("dial");
    let answer = ask(&hidden.connection, b"?").await.expect("an answer");
    assert!(answer.ends_with(" unknown\n") && !answer.contains(&own.public().to_string()));
    dialer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_data_crosses() {
    let node = IrohNode::start().await;
    let (dialer, _) = node.node.peer("friend");
    let data = Bytes::from((0..3_000_000u32).map(|i| i as u8).collect::<Vec<_>>());
    let connection = node.dial(&dialer, ECHO).await;
    let (mut send, mut recv) = stream(&connection).await;
    let writer = {
        let mut chunks: Vec<_> = (0..3)
            .map(|n| data.slice(n * 1_000_000..(n + 1) * 1_000_000))
            .collect();
        tokio::spawn(async move {
            send.write_chunks(&mut chunks).await.expect("write");
            send.finish().expect("finish");
            send.stopped().await.expect("the connection lives")
        })
    };
    let mut back = Vec::new();
    recv.read_to_end(&mut back).await.expect("read");
    assert!(back == data, "{} bytes came back", back.len());
    assert_eq!(writer.await.expect("the writer"), None);
    assert!(connection.rtt().is_some());
    let mut secret = [0; 32];
    connection
        .export_keying_material(b"EXPORTER-a", b"", &mut secret)
        .expect("export");
    assert_ne!(secret, [0; 32]);
    dialer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_peer_loses_its_connection_and_a_ticket_does_not_bring_it_back() {
    let node = IrohNode::start().await;
    let (gone, kept) = (
        NodeKey::generate().expect("a key"),
        NodeKey::generate().expect("a key"),
    );
    node.node.peers.add(gone.public(), "gone");
    node.node.peers.add(kept.public(), "kept");
    let (client, other) = (stock(&gone).await, stock(&kept).await);
    let live = client
        .connect(node.address(), KNOWN)
        .await
        .expect("connect");
    let stays = other.connect(node.address(), KNOWN).await.expect("connect");
    assert_eq!(ask_stock(&live, b"in").await, "in");
    assert_eq!(ask_stock(&stays, b"in").await, "in");
    node.node.peers.remove(&gone.public());
    assert_eq!(code_stock(&live).await, 1);
    assert_eq!(ask_stock(&stays, b"stay").await, "stay");
    until(|| node.node.server.counters().revoked == 1).await;
    // The session of its ticket names its key again, and the node looks the key up again.
    let again = client.connect(node.address(), KNOWN).await;
    assert_eq!(code_stock(&again.expect("connect")).await, 1);
    client.close().await;
    other.close().await;
}

/// Does `work` while `other` runs as well.
fn beside<T>(other: &Runtime, work: impl FnOnce() -> T) -> T {
    let (done, over) = oneshot::channel::<()>();
    std::thread::scope(move |scope| {
        scope.spawn(move || {
            // It ends in an error: no task ever sends.
            let _ = other.block_on(over);
        });
        let result = work();
        drop(done);
        result
    })
}

/// An attacker that sends early data may repeat the bytes of another client. Each side has a runtime of its own,
/// which stops until the test lets it go on: the node has all of the early data, and not the client's last flight.
#[test]
fn early_data_waits_for_the_end_of_the_handshake() {
    let [here, there] = [(); 2].map(|()| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().expect("a runtime")
    });
    let node = there.block_on(IrohNode::start());
    let key = NodeKey::generate().expect("a key");
    node.node.peers.add(key.public(), "friend");
    let first = async {
        // Its ClientHello takes one packet, and the node answers that with its whole flight.
        let builder = Endpoint::builder(presets::Minimal).crypto_provider(classic());
        let client = builder.secret_key(SecretKey::from_bytes(key.seed()));
        let client = client.bind().await.expect("a socket");
        let first = client.connect(node.address(), WHOAMI).await;
        let answer = ask_stock(&first.expect("connect"), b"?").await;
        assert!(answer.contains("friend"), "{answer}");
        client
    };
    let first = async { tokio::time::timeout(hung(), first).await };
    let client = beside(&there, || here.block_on(first)).expect("it is served");
    let before = node.node.server.counters();

    let (early, mut recv) = here.block_on(async {
        let connecting = client
            .connect_with_opts(node.address(), WHOAMI, Default::default())
            .await
            .expect("a connection is begun");
        let early = connecting
            .into_0rtt()
            .unwrap_or_else(|_| panic!("a ticket"));
        let (mut send, recv) = early.open_bi().await.expect("open");
        send.write_all(b"?").await.expect("write");
        send.finish().expect("finish");
        // All of it leaves: it is in packets, which other tasks of this runtime bring to the socket.
        until(|| early.stats().frame_tx.stream > 0).await;
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        (early, recv)
    });
    // Less time than a handshake has, however busy the machine is.
    there.block_on(async { tokio::time::sleep(Duration::from_millis(200)).await });
    let held = node.node.server.counters();
    assert_eq!(held.handshakes_ok, before.handshakes_ok, "it was let in");
    assert_eq!(held.handshakes_retried, before.handshakes_retried);

    let rest = async move {
        early.handshake_completed().await.expect("the handshake");
        let answer = recv.read_to_end(999).await.expect("read");
        assert_eq!(answer, format!("{} friend\n", key.public()).as_bytes());
        client.close().await;
    };
    let rest = async { tokio::time::timeout(hung(), rest).await };
    beside(&there, || here.block_on(rest)).expect("it is answered");
    let after = node.node.server.counters();
    assert_eq!(after.handshakes_ok, before.handshakes_ok + 1);
    there.block_on(async { drop(node) });
}

/// A client that permits the node to send much, and acknowledges nothing: its runtime stands still from its request on.
#[test]
fn what_a_client_does_not_acknowledge_waits_up_to_a_bound() {
    /// Bytes that wait on one connection (docs/endpoint.md).
    const WAITING_MAX: u64 = 1 << 20;
    /// Bytes that the client permits the node to send.
    const PERMITTED: u32 = 8 << 20;
    /// How long the node's stream takes nothing before the test concludes that it is full.
    const QUIET: Duration = Duration::from_millis(500);
    let [here, there] = [(); 2].map(|()| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().expect("a runtime")
    });
    let node = there.block_on(IrohNode::start());
    let asks = async {
        let transport = QuicTransportConfig::builder()
            .stream_receive_window(PERMITTED.into())
            .receive_window(PERMITTED.into())
            .build();
        let builder = Endpoint::builder(presets::Minimal).transport_config(transport);
        let client = builder.bind().await.expect("a socket");
        let connection = client.connect(node.address(), ENDLESS).await;
        let connection = connection.expect("connect");
        let (mut send, recv) = connection.open_bi().await.expect("open");
        send.write_all(b"?").await.expect("write");
        let asked = &node.node.endless.requests;
        until(|| asked.load(Ordering::Relaxed) == 1).await;
        (client, connection, send, recv)
    };
    let asks = async { tokio::time::timeout(hung(), asks).await };
    let _unread = beside(&there, || here.block_on(asks)).expect("it is connected");

    let endless = &node.node.endless;
    let taken = || endless.taken.load(Ordering::Relaxed);
    endless.starts.add_permits(1);
    let waiting = there.block_on(async {
        until(|| taken() > 0).await;
        loop {
            let before = taken();
            tokio::time::sleep(deadline(QUIET)).await;
            if taken() == before || before > WAITING_MAX {
                break taken();
            }
        }
    });
    println!(
        "figure bytes that wait on an iroh connection: {} KiB",
        waiting >> 10
    );
    assert!(waiting <= WAITING_MAX, "{waiting} bytes wait");
    there.block_on(async { drop(node) });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_iroh_connections_and_takes_nothing_new() {
    let node = IrohNode::start().await;
    let client = stock(&NodeKey::generate().expect("a key")).await;
    let idle = client.connect(node.address(), ECHO).await.expect("connect");
    assert_eq!(ask_stock(&idle, b"1").await, "1");
    let drained = node.node.server.drain(Duration::from_millis(300)).await;
    assert_eq!((drained.finished, drained.cut), (0, 1));
    assert_eq!(
        code_stock(&idle).await,
        u64::from(CloseCode::Shutdown.code())
    );
    assert_eq!(node.node.server.counters().connections_open, 0);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_its_own_connection_only() {
    let node = IrohNode::start().await;
    let dialer = EndpointDialer::new(None);
    let other = node.dial(&dialer, ECHO).await;
    let panics = node.dial(&dialer, PANIC).await;
    assert_eq!(code(&panics).await, Some(7));
    assert_eq!(ask(&other, b"x").await.expect("echo"), "x");
    assert_eq!(node.node.server.counters().handler_panics, 1);
    assert!(node.node.server.health().await.ok);
    dialer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_one_limit_over_all_carriages() {
    let limits = EndpointLimits {
        per_peer_max: 2,
        ..EndpointLimits::default()
    };
    let node = IrohNode::with(limits, Vec::new()).await;
    let (dialer, _) = node.node.peer("friend");
    let mut inside = Vec::new();
    for carriage in [Carriage::Quic, Carriage::Tcp] {
        let connection = dialer.dial_over(carriage, &node.node.target(), ECHO).await;
        let connection = connection.expect("dial");
        let (mut send, mut recv) = stream(&connection).await;
        send.write_chunk(Bytes::from_static(b"x"))
            .await
            .expect("write");
        assert!(recv.read_chunk(1).await.expect("read").is_some());
        inside.push((connection, send, recv));
    }
    let third = node.dial(&dialer, ECHO).await;
    assert_eq!(code(&third).await, Some(2));
    assert_eq!(node.node.server.counters().peer_limit_hits, 1);
    drop(inside);
    dialer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_an_unproven_address_is_asked_for_proof() {
    let limits = EndpointLimits {
        unvalidated_handshakes_max: 0,
        ..EndpointLimits::default()
    };
    let node = IrohNode::with(limits, Vec::new()).await;
    let dialer = EndpointDialer::new(None);
    let connection = node.dial(&dialer, ECHO).await;
    assert_eq!(ask(&connection, b"x").await.expect("echo"), "x");
    assert!(node.node.server.counters().handshakes_retried >= 1);
    dialer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_relays_are_dialled() {
    /// First byte of a TLS handshake.
    const HANDSHAKE: u8 = 0x16;
    let relay = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("https://{}", relay.local_addr().expect("bound"));
    let node = IrohNode::with(EndpointLimits::default(), vec![url]).await;
    let dialled = tokio::time::timeout(hung(), relay.accept()).await;
    let (mut tcp, _) = dialled.expect("the node dials").expect("accept");
    assert_eq!(tcp.read_u8().await.expect("a byte"), HANDSHAKE);
    // Direct addresses work all the same.
    let dialer = EndpointDialer::new(None);
    let connection = node.dial(&dialer, ECHO).await;
    assert_eq!(ask(&connection, b"x").await.expect("echo"), "x");
    dialer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_bound_says_why() {
    let mut node = EndpointTestNode::start();
    let key = node.key.clone();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let options = |port, relay: &str| IrohOptions {
        port,
        relays: vec![relay.to_owned()],
        ..on_loopback()
    };
    for wrong in [options(port, "https://192.0.2.1"), options(0, "no url")] {
        let refused = node.server.add_iroh(&key, &wrong).await;
        let said = refused.expect_err("nothing is served").to_string();
        assert!(said.contains("iroh.port"), "{said}");
    }
    assert!(node.server.iroh_addresses().is_empty());
}
