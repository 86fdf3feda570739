//! Which connections end where memory runs short, and which clients get in meanwhile.

use std::time::Duration;

use alknet_core::{Carriage, Connection};
use alknet_endpoint::{EndpointDialer, ReliefScope};
use bytes::Bytes;

use crate::support::{CARRIAGES, ECHO, EndpointTestNode, ask, code, hung, until};

/// Connections of unknown peers over each carriage.
const UNKNOWN: usize = 4;

/// Connections of a known peer that holds the memory.
const KNOWN: usize = 4;

async fn dial(node: &EndpointTestNode, dialer: &EndpointDialer, carriage: Carriage) -> Connection {
    let dialled = dialer.dial_over(carriage, &node.target(), ECHO).await;
    dialled.expect("the handshake succeeds")
}

pub(crate) async fn is_served(
    node: &EndpointTestNode,
    dialer: &EndpointDialer,
    carriage: Carriage,
) -> bool {
    let Ok(connection) = dialer.dial_over(carriage, &node.target(), ECHO).await else {
        return false;
    };
    // It may have ended already.
    let stream = match connection.is_multi() {
        true => connection.open_bi().await,
        false => connection.accept_bi().await,
    };
    let Ok((mut send, mut recv)) = stream else {
        return false;
    };
    let said = send.write_chunk(Bytes::from_static(b"x")).await.is_ok() && send.finish().is_ok();
    said && matches!(recv.read_chunk(1).await, Ok(Some(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_peers_end_before_known_ones_and_come_in_again_later() {
    let node = EndpointTestNode::start();
    let unknown_peer = EndpointDialer::new(None);
    let (friend, _) = node.peer("friend");
    let known = dial(&node, &friend, Carriage::Quic).await;
    assert_eq!(ask(&known, b"1").await.expect("echo"), "1");
    let mut unknown = Vec::new();
    for carriage in CARRIAGES {
        for _ in 0..UNKNOWN {
            unknown.push(dial(&node, &unknown_peer, carriage).await);
        }
    }
    let all = 2 * UNKNOWN;
    until(|| node.server.connections().len() == all + 1).await;

    // A quarter each time, and no known peer while there are others. While memory is short none of them gets in, and
    // a known peer does.
    let mut ended = 0;
    for carriage in CARRIAGES {
        assert!(is_served(&node, &friend, carriage).await, "{carriage}");
        let more = node.server.relieve(4, ReliefScope::UnknownFirst);
        assert_eq!(more, (all - ended).div_ceil(4));
        ended += more;
        assert!(
            !is_served(&node, &unknown_peer, carriage).await,
            "{carriage}"
        );
    }
    while ended < all {
        let more = node.server.relieve(4, ReliefScope::UnknownFirst);
        assert!((1..=all - ended).contains(&more), "{more} of {all}");
        ended += more;
    }
    for connection in unknown.iter().filter(|it| it.is_multi()) {
        assert_eq!(code(connection).await, Some(2));
    }
    assert_eq!(ask(&known, b"2").await.expect("echo"), "2");
    until(|| node.server.connections().len() == 1).await;
    assert_eq!(node.server.counters().relieved, all as u64);

    // Known peers end only at the last level.
    assert_eq!(node.server.relieve(4, ReliefScope::Unknown), 0);
    assert_eq!(ask(&known, b"3").await.expect("echo"), "3");
    assert_eq!(node.server.relieve(4, ReliefScope::UnknownFirst), 1);
    assert_eq!(code(&known).await, Some(2));

    // Then other clients get in again.
    let again = async {
        while !is_served(&node, &unknown_peer, Carriage::Quic).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let again = tokio::time::timeout(hung(), again).await;
    again.expect("they are let in again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_peer_does_not_hide_behind_unknown_ones_at_the_last() {
    let node = EndpointTestNode::start();
    let unknown_peer = EndpointDialer::new(None);
    let (hider, _) = node.peer("hider");
    let mut held = Vec::new();
    for carriage in CARRIAGES {
        for _ in 0..UNKNOWN {
            held.push(dial(&node, &unknown_peer, carriage).await);
        }
    }
    for _ in 0..KNOWN {
        held.push(dial(&node, &hider, Carriage::Quic).await);
    }
    let of = |known: bool| {
        let all = node.server.connections();
        all.iter().filter(|it| it.peer.is_some() == known).count()
    };
    let all = 2 * UNKNOWN;
    until(|| (of(false), of(true)) == (all, KNOWN)).await;

    // A part of both ends in one round, and in the next.
    assert_eq!(node.server.relieve(2, ReliefScope::All), all / 2 + 1);
    until(|| (of(false), of(true)) == (all / 2, KNOWN - 1)).await;
    assert_eq!(node.server.relieve(2, ReliefScope::All), all / 4 + 1);
    until(|| (of(false), of(true)) == (all / 4, KNOWN - 2)).await;

    // Before the last level, known peers come after unknown ones.
    let first = ReliefScope::UnknownFirst;
    assert_eq!(node.server.relieve(2, first), all / 8);
    until(|| (of(false), of(true)) == (all / 8, KNOWN - 2)).await;
    assert_eq!(held.len(), all + KNOWN);
}
