//! Requesters who would fill the node with their requests: those that run, and those that are not complete.

use std::sync::Arc;

use alknet_call::*;
use alknet_core::{Carriage, CloseCode, StreamError};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::common::*;

/// A node on a machine with so much memory, with a keyed mutation that waits.
fn holding(memory_bytes: u64) -> Node {
    let probe: Arc<Probe> = Arc::default();
    let p = Arc::clone(&probe);
    let mut spec = OperationSpec::mutation("test/hold", "Waits.");
    spec.idempotent = Idempotence::Keyed;
    let hold = HandlerKind::once(move |_, _| {
        let guard = Guard::new(&p);
        async move {
            guard.0.release.notified().await;
            Ok(Value::Null)
        }
    });
    let registry = Registry::builder().with(Registration::new(spec, hold).open());
    let registry = registry.build().expect("every rule is kept");
    let dispatcher = Dispatcher::new(registry).with_memory(memory_bytes);
    Node::of(dispatcher, probe)
}

/// Calls `test/hold` with an input that is nearly as long as a frame may be.
fn hold(
    client: &CallConnection,
    key: Option<&str>,
) -> tokio::task::JoinHandle<Result<Body, CallError>> {
    let client = client.clone();
    let options = CallOptions {
        idempotency_key: key.map(str::to_owned),
        ..CallOptions::default()
    };
    tokio::spawn(async move {
        let input = "x".repeat((1 << 20) - 400);
        client.call_with("test/hold", &input, &options).await
    })
}

async fn code(call: tokio::task::JoinHandle<Result<Body, CallError>>) -> ErrorCode {
    let outcome = soon(call).await.expect("no panic");
    outcome.expect_err("refused").code
}

#[tokio::test]
async fn thirty_two_calls_of_1_mib_run_at_once_and_leave_others_room() {
    let node = holding(512 << 20);
    let client = node.client(Carriage::Memory, Some(identity("peer", &[])));
    let other = node.client(Carriage::Memory, Some(identity("other", &[])));
    let mut calls: Vec<_> = (0..32).map(|_| hold(&client, None)).collect();
    node.probe.wait(|p| &p.started, 32).await;
    assert_eq!(code(hold(&client, None)).await, ErrorCode::Overloaded);
    assert_eq!(node.dispatcher.stats().request_bytes_full, 1);
    calls.push(hold(&other, None));
    node.probe.wait(|p| &p.started, 33).await;
    // What is short is not counted.
    let short = tokio::spawn(async move { client.call("test/hold", &json!(1)).await });
    node.probe.wait(|p| &p.started, 34).await;
    node.probe.release.notify_waiters();
    for call in calls.into_iter().chain([short]) {
        soon(call).await.expect("no panic").expect("released");
    }
}

/// A requester gives up each request, and its run goes on: with another one it would soon fill the node.
#[tokio::test]
async fn runs_that_nobody_waits_for_keep_their_bytes_counted() {
    // 8 MiB for the node, and half of that for an identity.
    let node = holding(64 << 20);
    let peer = || node.client(Carriage::Memory, Some(identity("peer", &[])));
    let client = peer();
    for (n, key) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let call = hold(&client, Some(key));
        node.probe.wait(|p| &p.started, n + 1).await;
        call.abort();
    }
    assert_eq!(code(hold(&client, Some("e"))).await, ErrorCode::Overloaded);
    client.close(CloseCode::Normal, "");
    soon(client.closed()).await;
    // Neither is there room over another connection.
    let client = peer();
    assert_eq!(code(hold(&client, Some("e"))).await, ErrorCode::Overloaded);
    node.probe.release.notify_waiters();
    node.probe.wait(|p| &p.dropped, 4).await;
    // There is room once they have ended.
    let again = async {
        loop {
            tokio::select! {
                refused = code(hold(&client, Some("e"))) => {
                    assert_eq!(refused, ErrorCode::Overloaded);
                }
                () = node.probe.wait(|p| &p.started, 5) => break,
            }
        }
    };
    again.await;
}

/// A frame of 1 MiB but for its last byte, on each of many streams.
#[tokio::test]
async fn frames_that_do_not_end_are_bounded_and_leave_others_room() {
    // The least there is: 4 MiB for the node, and half of that for an identity.
    let node = holding(0);
    let (dialled, _served) = node.serve(Carriage::Memory, Some(identity("peer", &[])));
    let almost: Bytes = {
        let len: u32 = 1 << 20;
        let body = "{".repeat((1 << 20) - 1);
        [&len.to_be_bytes()[..], body.as_bytes()].concat().into()
    };
    let (end_all, mut ends) = (Arc::new(Notify::new()), JoinSet::new());
    for _ in 0..12 {
        let (send, recv) = dialled.open_bi().await.expect("a live connection");
        let mut peer = RawPeer::on(dialled.clone(), send, recv);
        let (almost, end_all) = (almost.clone(), Arc::clone(&end_all));
        ends.spawn(async move {
            let asked = end_all.notified();
            // It may be refused before it has said all.
            let _ = peer.send.write_chunk(almost).await;
            let refused = tokio::select! {
                end = peer.recv.read_chunk(1) => Some(end),
                () = asked => None,
            };
            match refused {
                Some(end) => end,
                None => {
                    peer.send_bytes(Bytes::from_static(b"}")).await;
                    peer.recv.read_chunk(1).await
                }
            }
        });
    }
    for _ in 0..10 {
        let end = soon(ends.join_next())
            .await
            .expect("twelve")
            .expect("no panic");
        assert!(matches!(end, Err(StreamError::Reset(2))), "{end:?}");
    }
    assert_eq!(node.dispatcher.stats().request_bytes_full, 10);
    let other = node.client(Carriage::Memory, Some(identity("other", &[])));
    let call = hold(&other, None);
    node.probe.wait(|p| &p.started, 1).await;
    node.probe.release.notify_waiters();
    soon(call).await.expect("no panic").expect("released");
    // What has its room is read to its end, which is no JSON.
    end_all.notify_waiters();
    for _ in 0..2 {
        let end = soon(ends.join_next())
            .await
            .expect("twelve")
            .expect("no panic");
        assert!(matches!(end, Err(StreamError::Reset(5))), "{end:?}");
    }
}
