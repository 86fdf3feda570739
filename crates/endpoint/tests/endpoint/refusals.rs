//! Refused clients, and the errors about them.

use std::time::Duration;

use alknet_core::Carriage;
use alknet_endpoint::{EndpointDialError, EndpointDialer, EndpointLimits, Target};
use alknet_tls::NodeKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    CARRIAGES, ECHO, EndpointTestNode, KNOWN, PANIC, TCP_ONLY, ask, code, hung, until, works,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_names_both_keys() {
    let node = EndpointTestNode::start();
    let other = NodeKey::generate().expect("a key").public();
    let mut target = node.target();
    target.pins = vec![other];
    let dialer = EndpointDialer::new(None);
    for carriage in [Carriage::Quic, Carriage::Tcp, Carriage::Both] {
        match dialer.dial_over(carriage, &target, ECHO).await {
            Err(EndpointDialError::PinMismatch(mismatch)) => {
                assert_eq!(mismatch.expected, [other]);
                assert_eq!(mismatch.got, node.key.public());
            }
            result => panic!("{carriage}: {result:?}"),
        }
    }
    // One right key among several is enough.
    target.pins.push(node.key.public());
    dialer.dial(&target, ECHO).await.expect("dial");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_protocol_is_named() {
    let node = EndpointTestNode::start();
    let dialer = EndpointDialer::new(None);
    for carriage in [Carriage::Quic, Carriage::Tcp, Carriage::Both] {
        let result = dialer
            .dial_over(carriage, &node.target(), b"alknet/none")
            .await;
        assert!(
            matches!(&result, Err(EndpointDialError::NoProtocol { alpn, .. }) if alpn == "alknet/none"),
            "{carriage}: {result:?}"
        );
    }
    let quic = dialer
        .dial_over(Carriage::Quic, &node.target(), TCP_ONLY)
        .await;
    assert!(
        matches!(quic, Err(EndpointDialError::NoProtocol { .. })),
        "{quic:?}"
    );
    let either = dialer.dial(&node.target(), TCP_ONLY).await.expect("TCP");
    assert_eq!(either.carriage(), Carriage::Tcp);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_server_and_an_untrusted_one_are_refused() {
    let key = NodeKey::generate().expect("a key").public();
    let dialer = EndpointDialer::new(None);
    // Port 1 of loopback, on which no server listens.
    let target: Target = format!("{key}@127.0.0.1:1").parse().expect("a target");
    let result = dialer.dial_over(Carriage::Tcp, &target, ECHO).await;
    assert!(
        matches!(result, Err(EndpointDialError::Unreachable { .. })),
        "{result:?}"
    );
    let target: Target = "127.0.0.1:1".parse().expect("a target");
    let result = dialer.dial(&target, ECHO).await;
    assert!(
        matches!(result, Err(EndpointDialError::UnknownPeer { .. })),
        "{result:?}"
    );
}

/// A public name needs a public certificate, whatever the node holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_a_pin_needs_a_public_certificate() {
    let node = EndpointTestNode::start();
    let target: Target = format!("localhost:{}", node.server.port())
        .parse()
        .expect("a target");
    let dialer = EndpointDialer::new(None);
    for carriage in CARRIAGES {
        let result = dialer.dial_over(carriage, &target, ECHO).await;
        assert!(
            matches!(result, Err(EndpointDialError::Certificate { .. })),
            "{result:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_and_no_key_are_closed_with_code_1() {
    let node = EndpointTestNode::start();
    let unknown_peer = EndpointDialer::new(Some(NodeKey::generate().expect("a key")));
    for dialer in [unknown_peer, EndpointDialer::new(None)] {
        let connection = dialer
            .dial_over(Carriage::Quic, &node.target(), KNOWN)
            .await
            .expect("the handshake succeeds");
        assert_eq!(code(&connection).await, Some(1));
        let connection = dialer
            .dial_over(Carriage::Tcp, &node.target(), KNOWN)
            .await
            .expect("the handshake succeeds");
        assert_ne!(ask(&connection, b"?").await.unwrap_or_default(), "?");
    }
    assert_eq!(node.server.counters().policy_refusals, 4);
    let (friend, _) = node.peer("friend");
    for carriage in CARRIAGES {
        let connection = friend.dial_over(carriage, &node.target(), KNOWN).await;
        let connection = connection.expect("dial");
        assert_eq!(ask(&connection, b"?").await.expect("echo"), "?");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panicking_handler_ends_its_connection_only() {
    let node = EndpointTestNode::start();
    let dialer = EndpointDialer::new(None);
    let echo = dialer.dial(&node.target(), ECHO).await.expect("dial");
    let broken = dialer
        .dial_over(Carriage::Quic, &node.target(), PANIC)
        .await
        .expect("dial");
    assert_eq!(code(&broken).await, Some(7));
    assert_eq!(node.server.counters().handler_panics, 1);
    assert_eq!(ask(&echo, b"still here").await.expect("echo"), "still here");
}

/// Five hundred connections from the caller's own address that never finish their handshake, some silent and some in
/// the middle of a ClientHello.
#[tokio::test(flavor = "multi_thread")]
async fn unfinished_handshakes_disturb_no_other_client() {
    let node = EndpointTestNode::with_limits(EndpointLimits {
        handshake_timeout: hung(),
        ..EndpointLimits::default()
    });
    let mut silent = Vec::new();
    for i in 0..500 {
        let address = ("127.0.0.1", node.server.port());
        let mut tcp = TcpStream::connect(address).await.expect("connect");
        if i % 2 == 0 {
            tcp.write_all(&[22, 3, 1, 2, 0, 1, 0]).await.expect("write");
        }
        silent.push(tcp);
    }
    let dialer = EndpointDialer::new(None);
    for carriage in CARRIAGES {
        works(&node, &dialer, carriage).await;
    }
    assert!(node.server.health().await.ok);
    until(|| node.server.counters().handshakes_evicted >= 500 - 64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_handshake_is_ended_in_time() {
    let node = EndpointTestNode::with_limits(EndpointLimits {
        handshake_timeout: Duration::from_millis(50),
        ..EndpointLimits::default()
    });
    let address = ("127.0.0.1", node.server.port());
    let mut tcp = TcpStream::connect(address).await.expect("connect");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(hung(), tcp.read_to_end(&mut rest)).await;
    assert!(ended.is_ok());
    until(|| node.server.counters().handshakes_timeout == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_answered_with_an_alert() {
    let node = EndpointTestNode::start();
    let address = ("127.0.0.1", node.server.port());
    let mut tcp = TcpStream::connect(address).await.expect("connect");
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("write");
    let mut answer = Vec::new();
    // A reset may overtake the end; the alert record before it decides the test.
    let _ = tcp.read_to_end(&mut answer).await;
    assert_eq!(answer.first(), Some(&21));
}

/// QUIC clients past the limit are asked for proof of their address, give it, and are served.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_proves_its_addresses() {
    let node = EndpointTestNode::with_limits(EndpointLimits {
        unvalidated_handshakes_max: 0,
        ..EndpointLimits::default()
    });
    works(&node, &EndpointDialer::new(None), Carriage::Quic).await;
    // A client that gets no answer for a second sends its first packet again.
    assert!(node.server.counters().handshakes_retried >= 1);
}

/// Few at a time, so that none has to prove its address before.
#[tokio::test(flavor = "multi_thread")]
async fn quic_handshakes_are_charged_without_retry() {
    const BURST: u32 = 20;
    let node = EndpointTestNode::with_limits(EndpointLimits {
        handshake_burst: BURST,
        handshakes_per_second: 1,
        ..EndpointLimits::default()
    });
    let (friend, _) = node.peer("friend");
    // From here on the address has a rate of its own, as one at which the node has seen a known peer.
    works(&node, &friend, Carriage::Quic).await;
    let unknown = EndpointDialer::new(None);
    let serves = async |dials: u32| {
        let mut served = 0;
        for _ in 0..dials {
            let target = node.target();
            let dialled = unknown.dial_over(Carriage::Quic, &target, ECHO).await;
            if let Ok(connection) = dialled {
                let answer = ask(&connection, b"x").await;
                served += u32::from(answer.is_ok_and(|said| said == "x"));
            }
        }
        served
    };
    assert_eq!(serves(BURST - 1).await, BURST - 1);
    // A known peer pays nothing, and leaves no credit that other clients could use: the bucket is all but empty, so
    // that credit would show.
    for _ in 0..2 * BURST {
        works(&node, &friend, Carriage::Quic).await;
    }
    let served = serves(2 * BURST).await;
    // A slow machine earns some credit back meanwhile.
    assert!(served < BURST / 2, "{served} beyond the rate");
}

/// Each costs the node a signature, for known peers as for unknown ones.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_of_a_known_peer_have_a_rate() {
    let node = EndpointTestNode::with_limits(EndpointLimits {
        handshake_burst: 2,
        handshakes_per_second: 1,
        ..EndpointLimits::default()
    });
    let (friend, _) = node.peer("friend");
    for carriage in CARRIAGES {
        // Ten times a network's rate, and more than that for a start.
        let mut served = 0;
        let until = tokio::time::Instant::now() + hung();
        while let Ok(connection) = friend.dial_over(carriage, &node.target(), ECHO).await {
            if !ask(&connection, b"x").await.is_ok_and(|said| said == "x") {
                break;
            }
            served += 1;
            assert!(tokio::time::Instant::now() < until, "{served} and no end");
        }
        assert!(node.server.counters().handshakes_refused > 0);
        println!("figure {carriage}: {served} handshakes");
        // It is a rate: a client that waits gets in again.
        let again = async || match friend.dial_over(carriage, &node.target(), ECHO).await {
            Ok(connection) => ask(&connection, b"x").await.is_ok_and(|said| said == "x"),
            Err(_) => false,
        };
        while !again().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(tokio::time::Instant::now() < until, "it is let in no more");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_have_their_codes() {
    let node = EndpointTestNode::with_limits(EndpointLimits {
        per_peer_max: 1,
        ..EndpointLimits::default()
    });
    let (dialer, _) = node.peer("busy");
    let first = dialer.dial_over(Carriage::Quic, &node.target(), ECHO).await;
    let first = first.expect("dial");
    assert_eq!(ask(&first, b"1").await.expect("echo"), "1");
    let second = dialer.dial_over(Carriage::Quic, &node.target(), ECHO).await;
    assert_eq!(code(&second.expect("dial")).await, Some(2));
    assert_eq!(ask(&first, b"2").await.expect("echo"), "2");

    let node = EndpointTestNode::with_limits(EndpointLimits {
        connections_max: 0,
        ..EndpointLimits::default()
    });
    for carriage in CARRIAGES {
        let result = EndpointDialer::new(None)
            .dial_over(carriage, &node.target(), ECHO)
            .await;
        assert!(
            matches!(result, Err(EndpointDialError::Refused { .. })),
            "{result:?}"
        );
    }
}
