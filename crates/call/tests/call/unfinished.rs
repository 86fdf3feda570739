//! Incomplete frames, where a connection ends with its only stream: those of other peers end no frame of a known
//! peer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_call::limits::FRAME_BYTES_FREE;
use alknet_call::*;
use alknet_core::{Carriage, HandlerError, Metrics};
use bytes::Bytes;
use serde_json::json;
use tokio::time::sleep;

use super::request_bytes::{hold, holding};
use crate::common::*;

const MIB: usize = 1 << 20;

/// A frame of 1 MiB without its last byte.
fn almost() -> Bytes {
    let len = u32::try_from(MIB).expect("small");
    let body = "{".repeat(MIB - 1);
    [&len.to_be_bytes()[..], body.as_bytes()].concat().into()
}

fn unfinished(node: &CallTestNode) -> f64 {
    let mut metrics = Metrics::default();
    node.dispatcher.collect(&mut metrics);
    metrics.values()["alknet_call_unfinished_bytes"]
}

/// Two identities with three quarters of the 4 MiB of the smallest node: of the rest no other has more than a
/// thirty-second.
async fn crowd(node: &CallTestNode) -> Vec<RawPeer> {
    let mut peers = Vec::new();
    for (who, frames) in [("eve", 2), ("mallory", 1)] {
        let (dialled, _served) = node.serve(Carriage::Memory, Some(identity(who, &[])));
        for _ in 0..frames {
            let mut peer = RawPeer::new(dialled.clone()).await;
            peer.send_bytes(almost()).await;
            peers.push(peer);
        }
    }
    soon(async {
        while unfinished(node) < (3 * MIB) as f64 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    peers
}

#[tokio::test]
async fn a_long_frame_on_the_only_stream_waits_for_room() {
    let node = holding(0);
    let mut crowd = crowd(&node).await;
    let client = node.client(Carriage::Tcp, Some(identity("ada", &[])));
    let call = hold(&client, None);
    soon(async {
        while node.dispatcher.stats().request_bytes_full == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(node.probe.started.load(Ordering::SeqCst), 0);
    // Mallory's frame is complete, and not JSON.
    let mut ends = crowd.pop().expect("three of them");
    ends.send_bytes(Bytes::from_static(b"}")).await;
    node.probe.wait(|p| &p.started, 1).await;
    node.probe.release.notify_waiters();
    soon(call).await.expect("no panic").expect("released");
    assert_eq!(node.dispatcher.stats().request_bytes_full, 1);
}

/// A frame as short as the longest of an unknown peer, which does not wait.
#[tokio::test]
async fn a_frame_that_is_not_long_has_room_on_the_only_stream() {
    let node = holding(0);
    let _crowd = crowd(&node).await;
    let client = node.client(Carriage::Tcp, Some(identity("ada", &[])));
    let text = json!("x".repeat(FRAME_BYTES_FREE - 1000));
    let input = text.clone();
    let call = tokio::spawn(async move { client.call("test/hold", &input).await });
    node.probe.wait(|p| &p.started, 1).await;
    node.probe.release.notify_waiters();
    soon(call).await.expect("no panic").expect("released");
    assert_eq!(node.dispatcher.stats().request_bytes_full, 0);

    let (dialled, served) = node.serve(Carriage::Tcp, None);
    let mut peer = RawPeer::new(dialled).await;
    let payload = json!({ "operationId": "/test/hold", "input": text }).to_string();
    let mut frame = encode_event(EventKind::Requested, "1", &payload);
    frame.truncate(frame.len() - 1);
    // The node may refuse it before the peer has sent all of it.
    let _ = peer.send.write_chunk(frame).await;
    let served = soon(served).await.expect("no panic");
    let refused = matches!(served, Err(HandlerError::Protocol(_)));
    assert!(refused, "{served:?}");
    assert_eq!(node.dispatcher.stats().request_bytes_full, 1);
}

/// The answer of a worker to a hub is such a frame.
#[tokio::test]
async fn a_long_answer_on_the_only_stream_needs_no_room() {
    let node = holding(0);
    let _crowd = crowd(&node).await;
    let (theirs, ours) = single_pair();
    let known = ours.set_identity(identity("worker", &[]));
    known.expect("it had no identity before");
    let worker = CallClient::new(Arc::clone(&node.dispatcher)).attach(ours, None);
    let (input, long) = (json!(1), json!("x".repeat(900 << 10)));
    let call = worker.call("any/thing", &input);
    let answers = async {
        let mut peer = RawPeer::new(theirs).await;
        let (_, id, _) = peer.event().await;
        let output = json!({ "output": long });
        peer.send(EventKind::Responded, &id, output).await;
        peer
    };
    let (answer, _peer) = tokio::join!(soon(call), answers);
    assert_eq!(answer.expect("an answer").value(), &long);
    assert_eq!(node.dispatcher.stats().request_bytes_full, 0);
}
