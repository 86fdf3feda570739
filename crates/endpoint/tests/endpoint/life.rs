//! Connections from their first byte to their last.

use std::time::{Duration, Instant};

use alknet_core::{Carriage, CloseCode, CloseReason, StreamCode, StreamError};
use alknet_endpoint::{EndpointDialError, EndpointDialer, Target};
use alknet_test_support::{deadline, took};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::support::{
    CARRIAGES, ECHO, EndpointTestNode, KNOWN, ask, code, hung, stream, until, works,
};

#[tokio::test(flavor = "multi_thread")]
async fn large_data_crosses_both_carriages() {
    let node = EndpointTestNode::start();
    let (dialer, _) = node.peer("friend");
    let data = Bytes::from((0..3_000_000u32).map(|i| i as u8).collect::<Vec<_>>());
    for carriage in CARRIAGES {
        let connection = dialer.dial_over(carriage, &node.target(), ECHO).await;
        let connection = connection.expect("dial");
        assert_eq!(connection.carriage(), carriage);
        let (mut send, mut recv) = stream(&connection).await;
        let writer = {
            let data = data.clone();
            tokio::spawn(async move {
                send.write_chunk(data).await.expect("write");
                send.finish().expect("finish");
                send
            })
        };
        let mut back = Vec::new();
        recv.read_to_end(&mut back).await.expect("read");
        assert!(back == data, "{carriage}: {} bytes came back", back.len());
        writer.await.expect("the writer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_connection_has_one_stream() {
    let node = EndpointTestNode::start();
    let dialer = EndpointDialer::new(None);
    let connection = dialer.dial_over(Carriage::Tcp, &node.target(), ECHO).await;
    let connection = connection.expect("dial");
    assert!(!connection.is_multi());
    assert!(matches!(
        connection.open_bi().await,
        Err(StreamError::Unsupported)
    ));
    let (mut send, mut recv) = connection.accept_bi().await.expect("the stream");
    send.write_all(b"x").await.expect("write");
    send.shutdown().await.expect("shutdown");
    assert!(send.write_all(b"y").await.is_err());
    let mut back = String::new();
    recv.read_to_string(&mut back).await.expect("read");
    assert_eq!(back, "x");
    assert_eq!(
        connection.closed().await,
        CloseReason::Peer(None, String::new())
    );
    assert!(matches!(
        connection.accept_bi().await,
        Err(StreamError::Closed(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_never_looks_like_an_end() {
    let node = EndpointTestNode::start();
    let dialer = EndpointDialer::new(None);
    for carriage in CARRIAGES {
        let connection = dialer.dial_over(carriage, &node.target(), ECHO).await;
        let connection = connection.expect("dial");
        let (mut send, mut recv) = stream(&connection).await;
        send.write_chunk(Bytes::from_static(b"half a mess"))
            .await
            .expect("write");
        assert!(recv.read_chunk(99).await.expect("read").is_some());
        send.reset(StreamCode::Cancelled);
        if carriage == Carriage::Tcp {
            assert!(recv.read_chunk(99).await.is_err());
        }
    }
    works(&node, &dialer, Carriage::Both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exported_secrets_depend_on_their_label() {
    let node = EndpointTestNode::start();
    let dialer = EndpointDialer::new(None);
    for carriage in CARRIAGES {
        let connection = dialer.dial_over(carriage, &node.target(), ECHO).await;
        let connection = connection.expect("dial");
        let (mut a, mut b) = ([0; 32], [0; 32]);
        connection
            .export_keying_material(b"EXPORTER-a", b"", &mut a)
            .expect("export");
        connection
            .export_keying_material(b"EXPORTER-b", b"", &mut b)
            .expect("export");
        assert_ne!(a, b);
    }
}

/// How soon connections of a removed peer end, as docs/endpoint.md has it.
const REMOVED_WITHIN: Duration = Duration::from_secs(1);

/// Answers to the other peer that may come before: some tens of milliseconds on a machine at rest, and proportionally
/// more on a busy one.
const ANSWERED_BEFORE: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_peer_loses_its_live_connections() {
    let node = EndpointTestNode::start();
    let (gone, key) = node.peer("gone");
    let (kept, _) = node.peer("kept");
    let quic = gone
        .dial_over(Carriage::Quic, &node.target(), KNOWN)
        .await
        .expect("dial");
    let tcp = gone
        .dial_over(Carriage::Tcp, &node.target(), KNOWN)
        .await
        .expect("dial");
    let other = kept.dial(&node.target(), KNOWN).await.expect("dial");
    let (_send, mut recv) = stream(&tcp).await;
    assert_eq!(ask(&quic, b"in").await.expect("echo"), "in");
    assert_eq!(ask(&other, b"in").await.expect("echo"), "in");
    let began = Instant::now();
    node.peers.remove(&key);
    // The change itself ends them, and no later task: the other peer gets a few answers at the most before.
    let mut answered = 0;
    loop {
        tokio::select! {
            biased;
            _ = quic.closed() => break,
            () = std::future::ready(()) => {}
        }
        assert!(answered < ANSWERED_BEFORE, "the connection goes on");
        assert_eq!(ask(&other, b"stay").await.expect("echo"), "stay");
        answered += 1;
    }
    assert_eq!(code(&quic).await, Some(1));
    let end = timeout(hung(), recv.read_chunk(9)).await.expect("an end");
    assert!(!matches!(end, Ok(Some(_))));
    took(
        "a removed peer's connections end",
        REMOVED_WITHIN,
        began.elapsed(),
    );
    assert_eq!(ask(&other, b"stay").await.expect("echo"), "stay");
    until(|| node.server.counters().revoked >= 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_cuts_what_does_not_end_and_takes_nothing_new() {
    let node = EndpointTestNode::start();
    let dialer = EndpointDialer::new(None);
    let idle = dialer
        .dial_over(Carriage::Quic, &node.target(), ECHO)
        .await
        .expect("dial");
    assert_eq!(ask(&idle, b"1").await.expect("echo"), "1");
    let done = dialer
        .dial_over(Carriage::Tcp, &node.target(), ECHO)
        .await
        .expect("dial");
    assert_eq!(ask(&done, b"2").await.expect("echo"), "2");
    until(|| node.server.counters().connections_open == 1).await;
    let drain = node.server.drain(Duration::from_millis(300));
    let drained = timeout(deadline(Duration::from_secs(10)), drain).await;
    assert_eq!(drained.expect("it does not wait for ever").cut, 1);
    assert_eq!(code(&idle).await, Some(CloseCode::Shutdown.code().into()));
    assert_eq!(node.server.counters().connections_open, 0);
    let late = dialer.dial_over(Carriage::Tcp, &node.target(), ECHO).await;
    assert!(
        matches!(late, Err(EndpointDialError::Unreachable { .. })),
        "{late:?}"
    );
}

/// The drain waits for other clients, which the node serves to their end.
#[tokio::test(flavor = "multi_thread")]
async fn a_draining_server_accepts_no_connection() {
    let node = EndpointTestNode::start();
    let dialer = EndpointDialer::new(None);
    let inside = dialer
        .dial_over(Carriage::Quic, &node.target(), ECHO)
        .await
        .expect("dial");
    assert_eq!(ask(&inside, b"1").await.expect("echo"), "1");
    let late = async {
        for carriage in CARRIAGES {
            let target = node.target();
            let late = dialer.dial_over(carriage, &target, ECHO);
            // A refusal, or no answer: a node that accepts a client does so long before.
            let late = timeout(deadline(Duration::from_millis(500)), late).await;
            assert!(!matches!(late, Ok(Ok(_))), "{carriage}: {late:?}");
        }
        assert_eq!(ask(&inside, b"2").await.expect("echo"), "2");
        inside.close(CloseCode::Normal, "");
    };
    let drain = timeout(hung(), node.server.drain(10 * hung()));
    let (drained, ()) = tokio::join!(drain, late);
    let drained = drained.expect("it ends with the last connection");
    assert_eq!((drained.finished, drained.cut), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_drains_at_once() {
    let node = EndpointTestNode::start();
    let drained = timeout(hung(), node.server.drain(10 * hung())).await;
    assert_eq!(drained.expect("no waiting").cut, 0);
    assert_eq!(node.server.health().await.detail, "draining");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_listed_and_counted() {
    let node = EndpointTestNode::start();
    let (dialer, key) = node.peer("friend");
    let connection = dialer.dial(&node.target(), ECHO).await.expect("dial");
    assert_eq!(ask(&connection, b"x").await.expect("echo"), "x");
    let all = node.server.connections();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].key, Some(key));
    assert_eq!(all[0].peer.as_ref().map(|p| p.as_str()), Some("friend"));
    assert_eq!(&*all[0].alpn, ECHO);
    let counters = node.server.counters();
    assert_eq!((counters.connections_open, counters.handshakes_ok), (1, 1));
    connection.close(CloseCode::Normal, "");
    dialer.close().await;
    until(|| node.server.counters().connections_open == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_is_one_number_for_both_families() {
    let node = EndpointTestNode::start();
    let dialer = EndpointDialer::new(None);
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let target: Target = format!("{host}:{}", node.server.port())
            .parse()
            .expect("a target");
        let target = target.with_pins([node.key.public()]);
        for carriage in CARRIAGES {
            let connection = dialer.dial_over(carriage, &target, ECHO).await;
            let connection = connection.unwrap_or_else(|e| panic!("{target} {carriage}: {e}"));
            assert_eq!(ask(&connection, b"x").await.expect("echo"), "x");
        }
    }
}
