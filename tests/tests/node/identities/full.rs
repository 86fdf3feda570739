//! A node of which known peers have every place.

use alknet_core::Carriage;
use alknet_endpoint::EndpointLimits;
use alknet_tls::NodeKey;

use super::lab::{IdentityLab, LabClient, TestIdentity, document};

/// A node with so many places.
fn limits(connections_max: u32) -> EndpointLimits {
    EndpointLimits {
        connections_max,
        ..EndpointLimits::default()
    }
}

/// The connections of `clients` on which the node still answers a call of a known peer.
async fn working(clients: &[LabClient]) -> usize {
    let mut working = 0;
    for client in clients {
        working += usize::from(client.work().await.is_ok());
    }
    working
}

/// A client without a known key, as that of a token's holder is until it shows the token.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_client_gets_a_place_of_the_peer_that_has_the_most() {
    const PLACES: usize = 4;
    let (edge, other) = (TestIdentity::new("edge"), TestIdentity::new("other"));
    let lab = IdentityLab::start(
        &document(&[edge.clone(), other.clone()]),
        limits(PLACES as u32),
    );
    let mut all = Vec::new();
    for _ in 0..PLACES {
        all.push(lab.connect(&edge.key, Carriage::Quic).await);
    }
    assert_eq!(working(&all).await, PLACES);
    let unknown = NodeKey::generate().expect("a key");
    let first = lab.connect(&unknown, Carriage::Quic).await;
    let refused = first.work().await.expect_err("it has no identity");
    assert_eq!(refused.code.name(), "UNAUTHENTICATED");
    assert_eq!(working(&all).await, PLACES - 1);

    // The peer does not take the place back, though it may have more connections.
    let back = lab.try_connect(&edge.key, Carriage::Quic).await;
    if let Ok(back) = &back {
        assert!(back.work().await.is_err());
    }
    // Neither does a peer that has none.
    let others = lab.connect(&other.key, Carriage::Quic).await;
    others.work().await.expect("it gets one of the other peer");
    assert_eq!(working(&all).await, PLACES - 2);
    let refused = first.work().await.expect_err("it has no identity");
    assert_eq!(refused.code.name(), "UNAUTHENTICATED");
    // Of so many places one is for unknown clients.
    let second = lab.try_connect(&unknown, Carriage::Quic).await;
    if let Ok(second) = &second {
        assert!(second.work().await.is_err());
    }
    assert_eq!(working(&all).await, PLACES - 2);
}

/// The connection is dead, which the node does not know, and each other peer has one place.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_of_a_peer_replaces_its_own_on_a_full_node() {
    let edge = TestIdentity::new("edge").with("max_connections = 1");
    let other = TestIdentity::new("other");
    let lab = IdentityLab::start(&document(&[edge.clone(), other.clone()]), limits(2));
    let others = [lab.connect(&other.key, Carriage::Quic).await];
    let older = lab.connect(&edge.key, Carriage::Quic).await;
    older.work().await.expect("allowed");
    assert_eq!(working(&others).await, 1);
    let mut newer = Vec::new();
    for carriage in [Carriage::Tcp, Carriage::Quic] {
        newer.push(lab.connect(&edge.key, carriage).await);
        let newest = newer.last().expect("it was added above");
        newest.work().await.expect("the newest is served");
    }
    assert_eq!(older.code().await, Some(4));
    assert_eq!(working(&others).await, 1);
    assert_eq!(lab.server.counters().evicted, 0);
    // A client without a connection ends none of them.
    let unknown = NodeKey::generate().expect("a key");
    if let Ok(refused) = lab.try_connect(&unknown, Carriage::Quic).await {
        assert!(refused.work().await.is_err());
    }
    assert_eq!(working(&others).await, 1);
    assert_eq!(working(&newer[1..]).await, 1);
}
