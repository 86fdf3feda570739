//! A client that claims another address as soon as its handshake is over (RFC 9000, 9.3).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_tls::NodeKey;
use tokio::net::UdpSocket;

use crate::support::{ECHO, EndpointTestNode, hung, quinn_connection};

/// The address that the client claims, of another network than its own.
const CLAIMED: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// Bytes of the longest datagram.
const DATAGRAM_BYTES: usize = 2048;

/// Whether a datagram begins with a long header (RFC 9000, 17.2): those of a handshake do.
fn is_of_handshake(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0)
}

/// Forwards between a client and the node. The client's last datagrams of the handshake wait until it sends the first
/// later one, which goes from the claimed address at once: the node has all of them before it processes any.
/// `answered` counts the node's datagrams to the claimed address.
async fn claims_another_address(
    client: UdpSocket,
    node: SocketAddr,
    answered: Arc<AtomicUsize>,
) -> std::io::Result<()> {
    let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let claimed = UdpSocket::bind((CLAIMED, 0)).await?;
    let (mut from_client, mut to_own, mut to_claimed) = (
        [0; DATAGRAM_BYTES],
        [0; DATAGRAM_BYTES],
        [0; DATAGRAM_BYTES],
    );
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
                    claimed.send_to(datagram, node).await?;
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
            came = claimed.recv_from(&mut to_claimed) => {
                let bytes = came?.0;
                answered.fetch_add(1, Ordering::SeqCst);
                client.send_to(&to_claimed[..bytes], asks.expect("it asked")).await?;
            }
        }
    }
}

/// An address decides which network pays for the handshake and for the connection slot, and whether a share bound to
/// addresses is released.
#[tokio::test]
async fn an_address_that_no_handshake_has_proven_is_not_the_client_s() {
    let node = EndpointTestNode::start();
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, node.server.port()));
    let relay = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let relay = relay.expect("a free port");
    let relay_at = relay.local_addr().expect("it is bound");
    let answered = Arc::<AtomicUsize>::default();
    let relaying = tokio::spawn(claims_another_address(relay, at, Arc::clone(&answered)));
    let key = NodeKey::generate().expect("the system has entropy");
    let client = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
    let connection = quinn_connection(
        &client,
        relay_at,
        (&key, &node.key),
        ECHO,
        quinn::TransportConfig::default(),
    )
    .await;
    let asked = async {
        let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
        send.write_all(b"ping").await.expect("room");
        send.finish().expect("it is open");
        recv.read_to_end(9).await.expect("an echo")
    };
    let echo = tokio::time::timeout(hung(), asked).await;
    assert_eq!(echo.expect("the node answers in time"), b"ping");
    assert!(
        answered.load(Ordering::SeqCst) > 0,
        "the node answers the address that the client claims"
    );
    let all = node.server.connections();
    let believed: Vec<IpAddr> = all
        .iter()
        .filter_map(|live| Some(live.remote_addr?.ip()))
        .collect();
    assert_eq!(believed, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
    relaying.abort();
}
