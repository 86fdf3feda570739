//! A client that sends its first packet behind the handshake from another address (RFC 9000, 9.3).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_core::Carriage;
use alknet_endpoint::{EndpointDialer, Target};
use alknet_tests::TestBench;
use serde_json::Value;
use tokio::net::UdpSocket;
use tokio::task::{JoinSet, block_in_place};

use super::{AttackedNode, CALL, answers, key, within};

/// The forged address, in another network than the client's.
const FORGED: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// Bytes of the longest datagram.
const DATAGRAM_BYTES: usize = 2048;

/// Whether a datagram begins with a long header (RFC 9000, 17.2): those of a handshake do.
fn is_of_handshake(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0)
}

/// Forwards between a client and the node. The client's last datagrams of the handshake wait until it sends the first
/// later one, which goes from the forged address at once: the node has all of them within a moment. `answered` counts
/// the node's datagrams to the forged address.
async fn forges(client: UdpSocket, node: SocketAddr, answered: Arc<AtomicUsize>) -> io::Result<()> {
    let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let forged = UdpSocket::bind((FORGED, 0)).await?;
    let mut from_client = [0; DATAGRAM_BYTES];
    let mut to_own = [0; DATAGRAM_BYTES];
    let mut to_forged = [0; DATAGRAM_BYTES];
    let mut asks = None;
    let mut waiting: Vec<Vec<u8>> = Vec::new();
    let mut has_answered = false;
    loop {
        tokio::select! {
            came = client.recv_from(&mut from_client) => {
                let (bytes, from) = came?;
                let datagram = &from_client[..bytes];
                asks = Some(from);
                if !is_of_handshake(datagram) {
                    for last in waiting.drain(..) {
                        own.send_to(&last, node).await?;
                    }
                    forged.send_to(datagram, node).await?;
                } else if has_answered {
                    waiting.push(datagram.to_vec());
                } else {
                    own.send_to(datagram, node).await?;
                }
            }
            came = own.recv_from(&mut to_own) => {
                let bytes = came?.0;
                has_answered = true;
                client.send_to(&to_own[..bytes], asks.expect("it asked")).await?;
            }
            came = forged.recv_from(&mut to_forged) => {
                let bytes = came?.0;
                answered.fetch_add(1, Ordering::SeqCst);
                client.send_to(&to_forged[..bytes], asks.expect("it asked")).await?;
            }
        }
    }
}

/// The node counts the connection for the network of the address that the handshake has proven.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_address_behind_a_handshake_is_not_the_client_s() {
    let bench = TestBench::new();
    let edge = key();
    let node = bench.host_with(&format!(
        "[[peers]]\npeer_id = \"edge\"\nkeys = [\"{}\"]\nscopes = []\n",
        edge.public()
    ));
    let site = AttackedNode {
        admin: bench.admin(),
        target: node.target().to_owned(),
    };
    let relay = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let relay = relay.expect("a free port");
    let relay_at = relay.local_addr().expect("it is bound");
    let answered = Arc::<AtomicUsize>::default();
    let mut relaying = JoinSet::new();
    relaying.spawn(forges(relay, site.address(), Arc::clone(&answered)));
    let target: Target = relay_at.to_string().parse().expect("an address");
    let target = target.with_pins(site.parsed().pins);
    let edge = EndpointDialer::new(Some(edge));
    let connection = within(edge.dial_over(Carriage::Quic, &target, CALL)).await;
    let connection = connection.expect("its last packets are late");
    answers(&connection).await;
    let forged = answered.load(Ordering::SeqCst);
    assert!(
        forged > 0,
        "the node answered no packet of the forged address"
    );
    let peers = block_in_place(|| {
        site.admin
            .call(&site.target, "peer/list", &Value::Null, &[])
    });
    let peers = peers.json();
    let rows = peers["peers"].as_array().expect("a list");
    let row = rows.iter().find(|row| row["peer_id"] == "edge");
    let connections = &row.expect("the configuration has it")["connections"];
    let address = connections[0]["addr"]
        .as_str()
        .map(str::parse::<SocketAddr>);
    let Some(Ok(address)) = address else {
        panic!("no address: {peers:#}");
    };
    assert_eq!(address.ip(), IpAddr::from(Ipv4Addr::LOCALHOST), "{peers:#}");
}
