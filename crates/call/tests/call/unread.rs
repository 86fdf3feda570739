//! Peers that read none of their answers, over many connections.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::limits::PeerTimeouts;
use alknet_call::*;
use alknet_core::{Carriage, CloseCode, Connection, Metrics, StreamError};
use alknet_test_support::deadline;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::common::*;

const MIB: f64 = (1 << 20) as f64;

/// More bytes than one stream has on the way.
const UNDER_WAY_MAX: usize = 2 << 20;

/// Bytes of a long answer, and of an event.
const ANSWER_BYTES: usize = 900 << 10;
const EVENT_BYTES: usize = 100 << 10;

/// The most bytes of an error without its details.
const ABRIDGED_BYTES: usize = 1 << 10;

/// A node on a machine with so much memory, with long answers and endless events.
fn node(memory_bytes: u64, patience: PeerTimeouts) -> CallTestNode {
    let long = HandlerKind::once(|_, _| async { Ok(json!("x".repeat(ANSWER_BYTES))) });
    let echo =
        HandlerKind::once(
            |input: CallBody, _| async move { Ok(CallOutput::Raw(input.raw().clone())) },
        );
    let follow = HandlerKind::stream(|_, _| {
        stream::repeat_with(|| Ok::<_, CallError>(json!("x".repeat(EVENT_BYTES))))
    });
    // An operation of a peer behind a hub fails with any error that the peer chooses.
    let fail = HandlerKind::once(|_, _| async {
        let error = CallError::new(ErrorCode::Conflict, "no");
        Err::<Value, _>(error.with_details(json!("x".repeat(ANSWER_BYTES))))
    });
    // Written out, each number takes 18 bytes: more than a frame in all.
    let grow = HandlerKind::once(|_, _| async {
        let error = CallError::new(ErrorCode::Conflict, "no");
        Err::<Value, _>(error.with_details(json!(vec![1e15; 60_000])))
    });
    let query = |name| OperationSpec::query(name, "For tests.");
    let events = OperationSpec::subscription("test/follow", "For tests.");
    let registry = Registry::builder()
        .with(Registration::new(query("test/long"), long).open())
        .with(Registration::new(query("test/echo"), echo).open())
        .with(Registration::new(query("test/fail"), fail).open())
        .with(Registration::new(query("test/grow"), grow).open())
        .with(Registration::new(events, follow).open());
    let registry = registry.build().expect("every rule is kept");
    let dispatcher = Dispatcher::new(registry)
        .with_memory(memory_bytes)
        .with_patience(patience);
    CallTestNode::with_dispatcher(dispatcher, Arc::default())
}

fn unread(node: &CallTestNode) -> f64 {
    let mut metrics = Metrics::default();
    node.dispatcher.collect(&mut metrics);
    metrics.values()["alknet_call_unread_bytes"]
}

/// Resolves once the number of unread bytes satisfies `are`.
async fn until(node: &CallTestNode, are: impl Fn(f64) -> bool) {
    let all = async {
        while !are(unread(node)) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(all).await;
}

/// Sends requests on so many streams, one on each.
async fn ask(connection: &Connection, operation: &str, streams: usize) -> Vec<RawPeer> {
    let mut peers = Vec::new();
    for n in 0..streams {
        let mut peer = RawPeer::new(connection.clone()).await;
        peer.request(&n.to_string(), operation, Value::Null).await;
        peer.send.finish().expect("open");
        peers.push(peer);
    }
    peers
}

#[tokio::test]
async fn answers_unread_on_many_connections_are_bounded_for_their_identity() {
    // 8 MiB for the node, and half of that for an identity. Each connection alone may have 8 MiB.
    let node = node(64 << 20, PeerTimeouts::default());
    let (mut connections, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let (dialled, _) = node.serve(Carriage::Memory, Some(identity("peer", &[])));
        peers.extend(ask(&dialled, "/test/long", 4).await);
        connections.push(dialled);
    }
    let refused = async {
        while node.dispatcher.stats().unread_bytes_full < 24 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(refused).await;
    let counted = unread(&node);
    assert!((2.0 * MIB..=4.0 * MIB).contains(&counted), "{counted}");
    // Another identity gets its answer, and the same one gets short answers.
    let other = node.client(Carriage::Memory, Some(identity("other", &[])));
    let answer = soon(other.call("test/long", &Value::Null)).await;
    let answer = answer.expect("there is room for others");
    assert_eq!(answer.raw().len(), ANSWER_BYTES + 2);
    let same = node.client(Carriage::Memory, Some(identity("peer", &[])));
    let short = soon(same.call("test/echo", &json!(1))).await;
    assert_eq!(short.expect("short").value(), &json!(1));
    let refused = soon(same.call("test/long", &Value::Null)).await;
    let refused = refused.expect_err("its room is taken");
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(refused.retryable && refused.retry_after_ms.is_some());
    // The client reads to its end every answer that was not refused.
    let mut answered = 0;
    for peer in &mut peers {
        let (kind, _, payload) = peer.event().await;
        match kind {
            EventKind::Responded => answered += 1,
            _ => assert_eq!(payload["code"], "OVERLOADED"),
        }
    }
    assert!((3..=8).contains(&answered), "{answered}");
    until(&node, |bytes| bytes == 0.0).await;
    let answer = soon(same.call("test/long", &Value::Null)).await;
    answer.expect("all of it was read");
}

/// Errors are as long as answers, and count like them. One that has no room loses its details.
#[tokio::test]
async fn errors_that_no_client_reads_are_bounded() {
    const ERRORS: usize = 32;
    // As above.
    let node = node(64 << 20, PeerTimeouts::default());
    let (mut connections, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let (dialled, _) = node.serve(Carriage::Memory, Some(identity("peer", &[])));
        peers.extend(ask(&dialled, "/test/fail", ERRORS / 8).await);
        connections.push(dialled);
    }
    let failed = async {
        while node.dispatcher.stats().errors < ERRORS as u64 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(failed).await;
    let counted = unread(&node);
    let most = 4.0 * MIB + (ERRORS * ABRIDGED_BYTES) as f64;
    assert!((2.0 * MIB..=most).contains(&counted), "{counted}");
    // Another identity gets the whole error.
    let other = node.client(Carriage::Memory, Some(identity("other", &[])));
    let error = soon(other.call("test/fail", &Value::Null)).await;
    let details = error.expect_err("it fails").details.expect("all of it");
    assert_eq!(details.as_str().map(str::len), Some(ANSWER_BYTES));
    let mut whole = 0;
    for peer in &mut peers {
        let (kind, _, payload) = peer.event().await;
        assert_eq!(kind, EventKind::Error);
        assert_eq!(
            (&payload["code"], &payload["message"]),
            (&json!("CONFLICT"), &json!("no"))
        );
        match payload["details"].is_string() {
            true => whole += 1,
            false => assert_eq!(payload["details"], json!({ "omitted": true })),
        }
    }
    assert!((3..=8).contains(&whole), "{whole}");
    until(&node, |bytes| bytes == 0.0).await;
}

/// A peer's own reader would end the connection, with all calls on it.
#[tokio::test]
async fn an_error_longer_than_a_frame_ends_no_connection() {
    let node = node(64 << 20, PeerTimeouts::default());
    for carriage in CARRIAGES {
        let client = node.client(carriage, Some(identity("peer", &[])));
        let error = soon(client.call("test/grow", &Value::Null)).await;
        let error = error.expect_err("it fails");
        assert_eq!(error.code, ErrorCode::Conflict, "{carriage:?}: {error}");
        assert_eq!(error.details.as_deref(), Some(&json!({ "omitted": true })));
        let answer = soon(client.call("test/echo", &json!(1))).await;
        assert_eq!(answer.expect("it goes on").value(), &json!(1));
    }
}

/// The length of its event shows when the event exists: the event waits, and a short one does not.
#[tokio::test]
async fn an_event_that_finds_no_room_comes_when_there_is_some() {
    // The smallest node: 4 MiB for it, and half of that for an identity.
    let node = node(0, PeerTimeouts::default());
    let who = || Some(identity("peer", &[]));
    let (dialled, _) = node.serve(Carriage::Memory, who());
    let paused = ask(&dialled, "/test/follow", 40).await;
    until(&node, |bytes| bytes >= 2.0 * MIB).await;
    let same = node.client(Carriage::Memory, who());
    let mut late = soon(same.subscribe("test/follow", &Value::Null))
        .await
        .expect("it is sent");
    // No event shows that nothing comes: the test waits for the time in which it would.
    let moment = deadline(Duration::from_millis(300));
    assert!(timeout(moment, late.next()).await.is_err());
    let counted = unread(&node);
    assert!(counted <= 2.0 * MIB + 2.0 * EVENT_BYTES as f64, "{counted}");
    let short = soon(same.call("test/echo", &json!(1))).await;
    assert_eq!(short.expect("short").value(), &json!(1));
    let other = node.client(Carriage::Memory, Some(identity("other", &[])));
    let mut events = soon(other.subscribe("test/follow", &Value::Null))
        .await
        .expect("it is sent");
    for _ in 0..10 {
        let event = soon(events.next()).await.expect("an event");
        event.expect("there is room for others");
    }
    drop(paused);
    dialled.close(CloseCode::Normal, "");
    let event = soon(late.next()).await.expect("an event");
    event.expect("there is room again");
}

/// A subscription on a stream of its own may wait for its reader, while its identity has room.
#[tokio::test]
async fn a_paused_reader_without_room_loses_its_own_streams_only() {
    let moment = deadline(Duration::from_millis(30));
    let patience = PeerTimeouts {
        blocked_stream: moment,
        ..PeerTimeouts::default()
    };
    let node = node(0, patience);
    let serve = |id: &str| node.serve(Carriage::Memory, Some(identity(id, &[]))).0;
    let (honest, greedy) = (serve("honest"), serve("greedy"));
    let mut patient = ask(&honest, "/test/follow", 2).await;
    sleep(3 * moment).await;
    let mut paused = ask(&greedy, "/test/follow", 40).await;
    until(&node, |bytes| bytes >= 2.0 * MIB).await;
    let end = async {
        let ends = paused.iter_mut().map(|peer| {
            Box::pin(async move {
                // It reads nothing until it is too late, and then the bytes on the way: a stream that goes on has
                // more.
                sleep(4 * moment).await;
                let mut under_way = 0;
                let mut end = Ok(Some(Bytes::new()));
                while under_way < UNDER_WAY_MAX
                    && let Ok(Some(bytes)) = &end
                {
                    under_way += bytes.len();
                    end = peer.recv.read_chunk(1 << 20).await;
                }
                match end {
                    Ok(Some(_)) => std::future::pending().await,
                    end => end,
                }
            })
        });
        futures_util::future::select_all(ends).await.0
    };
    let end = soon(end).await;
    assert!(matches!(end, Err(StreamError::Reset(8))), "{end:?}");
    for peer in &mut patient {
        for _ in 0..10 {
            let (kind, ..) = peer.event().await;
            assert_eq!(kind, EventKind::Responded);
        }
    }
}
