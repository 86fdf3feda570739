//! Connections that ended, and that the library for QUIC keeps for a while with all that came on them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{Carriage, CloseCode};
use alknet_endpoint::{Dialer, Limits, Target};
use alknet_test_support::deadline;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::relief::is_served;
use crate::support::{ECHO, Node, ask, hung, until};

/// Connections that the unknown peers of one network may have.
const MOST: usize = 3;

/// How long everything takes on the way at rest, in each direction: the library keeps what ended for some ten times that,
/// in which others have to ask.
const SLOW: Duration = Duration::from_millis(80);

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
    let node = Node::with_limits(Limits {
        per_address_max: u32::try_from(MOST).expect("few"),
        ..Limits::default()
    });
    let (friend, _) = node.peer("friend");
    let address = format!(
        "{}:{}",
        Ipv4Addr::LOCALHOST,
        slow_way(node.server.port()).await
    );
    let slow: Target = address.parse().expect("a target");
    let slow = slow.with_pins([node.key.public()]);
    let nobody = Dialer::new(None);
    let mut connections = Vec::new();
    for _ in 0..MOST {
        let dialled = nobody.dial_over(Carriage::Quic, &slow, ECHO).await;
        let connection = dialled.expect("it may have as many");
        assert_eq!(ask(&connection, b"1").await.expect("echo"), "1");
        connections.push(connection);
    }
    for connection in connections {
        connection.close(CloseCode::Normal, "");
    }
    until(|| node.server.closing() == MOST).await;
    // Over a way that is not slow, as another client of that network.
    assert!(!is_served(&node, &Dialer::new(None), Carriage::Quic).await);
    assert!(is_served(&node, &friend, Carriage::Quic).await);
    let again = async {
        while !is_served(&node, &Dialer::new(None), Carriage::Quic).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let again = tokio::time::timeout(hung(), again).await;
    again.expect("they are let in again");
}
