//! Events that a hub passes on to a requester that does not take them: they wait at the peer, or count for that
//! requester, and block no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::*;
use alknet_core::{Carriage, Connection, Metrics, RecvStream, SendStream};
use alknet_test_support::deadline;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::common::*;
use crate::farm::attached;

const MIB: f64 = (1 << 20) as f64;

/// Bytes of an event.
const EVENT_BYTES: usize = 100 << 10;
/// The number of events that a peer makes when its reader takes one and no more: the first credit is for two, two
/// such events are the bound in flight, and the source makes one more ahead.
const MADE_MAX: usize = 4;
/// Events that the reader takes once it goes on.
const MORE: usize = 40;
/// Subscriptions whose events the test leaves unread.
const LEFT: usize = 8;

/// A hub on a machine with so much memory.
pub(super) fn hub(memory_bytes: u64) -> CallTestNode {
    let registry = Registry::builder().build().expect("no operations");
    let dispatcher = Dispatcher::new(registry)
        .with_memory(memory_bytes)
        .with_imports(ImportOptions::default())
        .with_routing();
    CallTestNode::with_dispatcher(dispatcher, Arc::default())
}

/// Bytes that count as unread there.
fn unread(node: &CallTestNode) -> f64 {
    let mut metrics = Metrics::default();
    node.dispatcher.collect(&mut metrics);
    metrics.values()["alknet_call_unread_bytes"]
}

/// A worker with endless events, and the number it made.
fn worker() -> (CallTestNode, Arc<AtomicUsize>) {
    let made: Arc<AtomicUsize> = Arc::default();
    let counted = Arc::clone(&made);
    let follow = HandlerKind::stream(move |_, _| {
        let counted = Arc::clone(&counted);
        stream::repeat_with(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok::<_, CallError>(json!("x".repeat(EVENT_BYTES)))
        })
    });
    let spec = OperationSpec::subscription("jobs/follow", "For tests.");
    let registry = Registry::builder().with(Registration::new(spec, follow));
    let registry = registry.build().expect("every rule is kept");
    let worker = CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default());
    (worker, made)
}

/// Subscribes to an operation of the peer `w1`, with room for one event.
pub(super) async fn follow(connection: &Connection, id: &str, operation: &str) -> RawPeer {
    let mut peer = RawPeer::new(connection.clone()).await;
    let payload = json!({ "operationId": operation, "peer": "w1", "window": 1 });
    peer.send(EventKind::Requested, id, payload).await;
    peer
}

#[tokio::test]
async fn a_peer_makes_no_more_events_than_are_taken() {
    for carriage in CARRIAGES {
        let hub = hub(64 << 20);
        let (worker, made) = worker();
        let _link = worker.join(&hub, carriage, identity("w1", &[]));
        attached(&hub, &["w1"]).await;
        let who = Some(identity("user", &["peer:route:w1"]));
        let (dialled, _) = hub.serve(Carriage::Memory, who);
        let mut user = follow(&dialled, "1", "jobs/follow").await;
        assert_eq!(user.event().await.0, EventKind::Responded);
        // No event shows that nothing comes: the test waits for the time in which it would.
        sleep(deadline(Duration::from_millis(300))).await;
        let made = made.load(Ordering::SeqCst);
        assert!(made <= MADE_MAX, "{carriage:?}: {made}");
        let counted = unread(&hub);
        assert!(counted <= 3.0 * EVENT_BYTES as f64, "{counted}");
        // They come as the reader takes them, by the credit that the hub passes on.
        let more = json!({ "n": MORE });
        user.send(EventKind::Credit, "1", more).await;
        for _ in 0..MORE {
            assert_eq!(user.event().await.0, EventKind::Responded, "{carriage:?}");
        }
    }
}

/// A peer that ignores credit. It sends events of `jobs/flood` for as long as the hub takes them, and one of
/// `jobs/begin` without its last byte; it reports when the hub stops reading a stream of either.
fn floods(connection: Connection, stopped: mpsc::UnboundedSender<()>) {
    tokio::spawn(async move {
        while let Ok((send, recv)) = connection.accept_bi().await {
            tokio::spawn(flood(send, recv, stopped.clone()));
        }
    });
}

async fn flood(mut send: SendStream, mut recv: RecvStream, stopped: mpsc::UnboundedSender<()>) {
    let mut frames = FrameReader::new();
    while let Ok(Some(chunk)) = recv.read_chunk(64 << 10).await {
        frames.push(chunk);
        while let Some(frame) = frames.next_frame(64 << 20).expect("a good hub") {
            let body = FrameBody::parse(frame).expect("a good hub");
            let event = Envelope::parse(&body.envelope, 64).expect("a good hub");
            if event.kind != EventKind::Requested {
                continue;
            }
            let payload: Value = serde_json::from_str(event.payload).expect("JSON");
            let says = |output: &Value| {
                let payload = json!({ "output": output }).to_string();
                encode_event(EventKind::Responded, &event.id, &payload)
            };
            let answer = match payload["operationId"].as_str().unwrap_or_default() {
                "/services/list" => listing(&["jobs/flood", "jobs/begin", "jobs/name"]),
                "/services/schema" => specs(&payload["input"]),
                "/jobs/name" => json!("w1"),
                "/jobs/flood" => {
                    let one = says(&json!("x".repeat(EVENT_BYTES)));
                    while send.write_chunk(one.clone()).await.is_ok() {}
                    let _ = stopped.send(());
                    return;
                }
                "/jobs/begin" => {
                    let whole = says(&json!("x".repeat(9 * EVENT_BYTES)));
                    let _ = send.write_chunk(whole.slice(..whole.len() - 1)).await;
                    let _ = send.stopped().await;
                    let _ = stopped.send(());
                    return;
                }
                // The peer reports no changes.
                _ => continue,
            };
            let bytes: Bytes = says(&answer);
            if send.write_chunk(bytes).await.is_err() {
                return;
            }
        }
    }
}

/// The specs of the requested names.
pub(super) fn specs(input: &Value) -> Value {
    let names = input["names"].as_array().cloned().unwrap_or_default();
    let spec = |name: &Value| match name.as_str().unwrap_or_default() {
        "jobs/name" => OperationSpec::query("jobs/name", "For tests."),
        name => OperationSpec::subscription(name, "For tests."),
    };
    json!({ "specs": names.iter().map(spec).collect::<Vec<_>>() })
}

/// A hub on a small machine with such a peer, and the peer's reports.
async fn flooded() -> (CallTestNode, mpsc::UnboundedReceiver<()>) {
    // 8 MiB for the node, half of that for an identity, and half of that for forwarded events.
    let hub = hub(64 << 20);
    let (dialled, _) = hub.serve(Carriage::Memory, Some(identity("w1", &[])));
    let (says, stopped) = mpsc::unbounded_channel();
    floods(dialled, says);
    attached(&hub, &["w1"]).await;
    (hub, stopped)
}

/// Leaves subscriptions unread, over two connections.
async fn leave(hub: &CallTestNode, operation: &str) -> Vec<RawPeer> {
    let serve = || {
        let who = Some(identity("eve", &["peer:route:w1"]));
        hub.serve(Carriage::Memory, who).0
    };
    let connections = [serve(), serve()];
    let mut left = Vec::new();
    for n in 0..LEFT {
        left.push(follow(&connections[n % 2], &n.to_string(), operation).await);
    }
    left
}

/// Its operation answers another requester.
async fn is_answered(hub: &CallTestNode) {
    let who = Some(identity("ada", &["peer:route:w1"]));
    let ada = hub.client(Carriage::Memory, who);
    let options = CallOptions {
        peer: Some("w1".to_owned()),
        ..CallOptions::default()
    };
    let answer = soon(ada.call_with("jobs/name", &Value::Null, &options)).await;
    assert_eq!(answer.expect("it is there").value(), &json!("w1"));
}

#[tokio::test]
async fn unread_forwarded_subscriptions_end_and_are_read_no_further() {
    let (hub, mut stopped) = flooded().await;
    let mut left = leave(&hub, "jobs/flood").await;
    for n in 0..LEFT {
        let one = soon(stopped.recv()).await;
        one.unwrap_or_else(|| panic!("{n} are stopped"));
    }
    let counted = unread(&hub);
    assert!(counted <= 2.2 * MIB, "{counted}");
    assert!(hub.dispatcher.stats().unread_bytes_full >= LEFT as u64);
    is_answered(&hub).await;
    // The events that had arrived are still there, and then the reason.
    for (n, peer) in left.iter_mut().enumerate() {
        let credit = json!({ "n": 100 });
        peer.send(EventKind::Credit, &n.to_string(), credit).await;
        let mut events = 0;
        let (kind, payload) = loop {
            let (kind, _, payload) = peer.event().await;
            if kind != EventKind::Responded {
                break (kind, payload);
            }
            events += 1;
        };
        assert_eq!(kind, EventKind::Error, "{payload}");
        assert_eq!(payload["code"], "OVERLOADED", "{payload}");
        assert!(events < 10, "{events}");
    }
    let read = async {
        while unread(&hub) > 0.0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(read).await;
}

/// The last byte of each never comes.
#[tokio::test]
async fn events_being_made_count_for_their_recipient() {
    let (hub, mut stopped) = flooded().await;
    let left = leave(&hub, "jobs/begin").await;
    // Two of them are nearly all that there is room for.
    for n in 0..LEFT - 2 {
        let one = soon(stopped.recv()).await;
        one.unwrap_or_else(|| panic!("{n} are stopped"));
    }
    let counted = unread(&hub);
    assert!(counted <= 2.2 * MIB, "{counted}");
    is_answered(&hub).await;
    drop(left);
}
