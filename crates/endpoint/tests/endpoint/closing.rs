//! Ended connections, which the library for QUIC keeps for a while with all bytes that came on them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{Carriage, CloseCode, PeerKey};
use alknet_endpoint::{EndpointDialer, EndpointLimits, Target};
use alknet_test_support::deadline;
use alknet_tls::{ClientTls, ClientTlsOptions, NodeKey, RemoteHost};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::crypto::{self, Session};
use quinn::{ConnectError, ConnectionError, Side, TransportConfig};
use quinn_proto::transport_parameters::TransportParameters;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::relief::is_served;
use crate::support::{ECHO, EndpointTestNode, ask, hung, quinn_connection, until};

/// Connections that the unknown peers of one network may have.
const MOST: usize = 3;

/// The delay of every packet on the way at rest, in each direction: the library keeps an ended connection for some
/// ten times that, in which others have to connect.
const SLOW: Duration = Duration::from_millis(80);

/// Connections that the node has and does not serve before every client has to prove its address, as docs/endpoint.md
/// has it.
const UNSERVED: usize = 128;

/// An address of another network than that of the other clients: one known peer connects from it.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// TLS of a client that announces the longest delay of acknowledgements that the protocol allows: the library keeps
/// its ended connections for three times as long.
struct LongDelay(Arc<QuicClientConfig>);

impl crypto::ClientConfig for LongDelay {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        /// `max_ack_delay` (RFC 9000, 18.2) of 2^14 - 1 milliseconds: its number, the length, and the value.
        const MAX_ACK_DELAY: [u8; 4] = [0x0b, 2, 0x7f, 0xff];
        let mut bytes = Vec::new();
        params.write(&mut bytes);
        bytes.extend(MAX_ACK_DELAY);
        let params = TransportParameters::read(Side::Server, &mut &bytes[..]);
        let params = params.expect("a server takes them");
        crypto::ClientConfig::start_session(Arc::clone(&self.0), version, server_name, &params)
    }
}

/// A client with that delay.
struct LongDelayClient {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    node: SocketAddr,
    name: String,
}

impl LongDelayClient {
    /// It expects this key of the node.
    fn new(node: &EndpointTestNode, key: Option<NodeKey>, believed: PeerKey) -> Self {
        let tls = ClientTls::new(ClientTlsOptions {
            key,
            ..ClientTlsOptions::default()
        });
        let place = RemoteHost::Ip(Ipv4Addr::LOCALHOST.into());
        let remote = tls.remote(None, &[believed], place).expect("a pin");
        let config = remote.attempts(place, ECHO).swap_remove(0);
        let tls = QuicClientConfig::try_from(config).expect("TLS 1.3");
        let late = LongDelay(Arc::new(tls));
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            endpoint: quinn::Endpoint::client(local).expect("a socket"),
            config: quinn::ClientConfig::new(Arc::new(late)),
            node: SocketAddr::from((Ipv4Addr::LOCALHOST, node.server.port())),
            name: remote.server_name(place).to_str().into_owned(),
        }
    }

    async fn dial(&self) -> Result<quinn::Connection, ConnectionError> {
        let config = self.config.clone();
        let connecting = self.endpoint.connect_with(config, self.node, &self.name);
        let connecting = connecting.expect("a valid configuration");
        let connected = tokio::time::timeout(hung(), connecting).await;
        connected.expect("the node answers")
    }
}

fn few() -> EndpointTestNode {
    EndpointTestNode::with_limits(EndpointLimits {
        per_address_max: u32::try_from(MOST).expect("few"),
        ..EndpointLimits::default()
    })
}

/// Checks that a known peer gets in over QUIC from another network, at which the node has not seen it.
async fn serves_a_friend_from_elsewhere(node: &EndpointTestNode) {
    let key = NodeKey::generate().expect("a key");
    node.peers.add(key.public(), "friend");
    let endpoint = quinn::Endpoint::client((ELSEWHERE, 0).into()).expect("a socket");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, node.server.port()));
    let (keys, transport) = ((&key, &node.key), TransportConfig::default());
    let connection = quinn_connection(&endpoint, address, keys, ECHO, transport).await;
    let (mut send, mut recv) = connection.open_bi().await.expect("open");
    send.write_all(b"x").await.expect("write");
    send.finish().expect("finish");
    let answer = tokio::time::timeout(hung(), recv.read_to_end(1)).await;
    assert_eq!(answer.expect("in time").expect("echo"), b"x");
}

async fn loopback() -> Arc<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await;
    Arc::new(socket.expect("a free port"))
}

/// A slow way to a port, for one socket.
async fn slow_way(port: u16) -> u16 {
    let (front, back) = (loopback().await, loopback().await);
    let node = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let here = front.local_addr().expect("bound").port();
    let (client, clients) = watch::channel(None);
    let (from, to) = (Arc::clone(&front), Arc::clone(&back));
    tokio::spawn(async move {
        let mut bytes = vec![0; 65_535];
        while let Ok((length, address)) = from.recv_from(&mut bytes).await {
            client.send_replace(Some(address));
            let (to, bytes) = (Arc::clone(&to), bytes[..length].to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(deadline(SLOW)).await;
                to.send_to(&bytes, node).await
            });
        }
    });
    tokio::spawn(async move {
        let mut bytes = vec![0; 65_535];
        while let Ok((length, _)) = back.recv_from(&mut bytes).await {
            let (to, bytes) = (Arc::clone(&front), bytes[..length].to_vec());
            let client = clients.borrow().expect("it was heard");
            tokio::spawn(async move {
                tokio::time::sleep(deadline(SLOW)).await;
                to.send_to(&bytes, client).await
            });
        }
    });
    here
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_library_keeps_of_ended_connections_counts_for_whose_they_were() {
    let node = few();
    let (friend, _) = node.peer("friend");
    let address = format!(
        "{}:{}",
        Ipv4Addr::LOCALHOST,
        slow_way(node.server.port()).await
    );
    let slow: Target = address.parse().expect("a target");
    let slow = slow.with_pins([node.key.public()]);
    let unknown_peer = EndpointDialer::new(None);
    let mut connections = Vec::new();
    for _ in 0..MOST {
        let dialled = unknown_peer.dial_over(Carriage::Quic, &slow, ECHO).await;
        let connection = dialled.expect("it may have as many");
        assert_eq!(ask(&connection, b"1").await.expect("echo"), "1");
        connections.push(connection);
    }
    for connection in connections {
        connection.close(CloseCode::Normal, "");
    }
    until(|| node.server.closing() == MOST).await;
    // Over a fast way, as another client of that network.
    assert!(!is_served(&node, &EndpointDialer::new(None), Carriage::Quic).await);
    assert!(is_served(&node, &friend, Carriage::Quic).await);
    until(|| node.server.closing() == 0).await;
    let again = is_served(&node, &EndpointDialer::new(None), Carriage::Quic).await;
    assert!(again, "they are let in again");
}

/// The client ends each handshake itself, as a forger does with foreign addresses, and leaves the library a state for
/// some 50 seconds.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_fail_leave_a_bounded_number_of_connections() {
    /// The number of begun handshakes.
    const DIALS: usize = 250;
    /// The number that the library may keep: of unproven addresses, and of the network once it has to prove its
    /// addresses. A few may be in progress beside them.
    const KEPT: usize = UNSERVED + 2 * MOST + 16;
    let node = few();
    let another = NodeKey::generate().expect("a key").public();
    let client = LongDelayClient::new(&node, None, another);
    let mut most = 0;
    for n in 0..DIALS {
        client.dial().await.expect_err("the node has another key");
        let unserved = node.server.unserved();
        assert!(unserved <= KEPT, "{unserved} are kept after {n}");
        most = most.max(unserved);
    }
    println!("figure connections kept and not served: {most}");
    assert!(most > 2 * MOST, "the library keeps none of them");
    serves_a_friend_from_elsewhere(&node).await;
}

/// The network has used its connection slots, and the client goes on to finish handshakes.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_refused_count_and_are_refused_before_their_handshake() {
    /// Fewer than a network's burst of handshakes.
    const DIALS: usize = 30;
    let node = few();
    let client = LongDelayClient::new(&node, None, node.key.public());
    let mut held = Vec::new();
    for _ in 0..MOST {
        held.push(client.dial().await.expect("it may have as many"));
    }
    until(|| node.server.connections().len() == MOST).await;
    let mut finished = 0;
    for _ in 0..DIALS {
        let before = node.server.closing();
        if let Ok(connection) = client.dial().await {
            finished += 1;
            held.push(connection);
            until(|| node.server.closing() > before).await;
        }
        let closing = node.server.closing();
        assert!(closing <= 2 * MOST, "{closing} are kept");
    }
    assert!((2 * MOST..DIALS).contains(&finished), "{finished}");
    serves_a_friend_from_elsewhere(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_quic_keeps_of_a_peer_refuses_it_over_quic_only() {
    let node = few();
    let key = NodeKey::generate().expect("a key");
    node.peers.add(key.public(), "friend");
    let client = LongDelayClient::new(&node, Some(key.clone()), node.key.public());
    for _ in 0..MOST {
        let connection = client.dial().await.expect("it is known");
        until(|| node.server.connections().len() == 1).await;
        connection.close(0u32.into(), b"");
        until(|| node.server.connections().is_empty()).await;
    }
    let friend = EndpointDialer::new(Some(key));
    // The endpoint may be about to count the last one.
    let refused = async { while is_served(&node, &friend, Carriage::Quic).await {} };
    let refused = tokio::time::timeout(hung(), refused).await;
    refused.expect("it has too many that are kept");
    assert!(is_served(&node, &friend, Carriage::Tcp).await);
}
