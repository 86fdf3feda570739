//! Requesters that would fill the node with their requests: running ones, and incomplete ones.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use alknet_call::*;
use alknet_core::{Carriage, CloseCode, StreamError};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::common::*;

/// A node on a machine with so much memory, with a keyed mutation that waits.
pub(super) fn holding(memory_bytes: u64) -> CallTestNode {
    let probe: Arc<OperationProbe> = Arc::default();
    let p = Arc::clone(&probe);
    let mut spec = OperationSpec::mutation("test/hold", "Waits.");
    spec.idempotent = Idempotence::Keyed;
    let hold = HandlerKind::once(move |_, _| {
        let guard = ProbeGuard::new(&p);
        async move {
            guard.0.release.notified().await;
            Ok(Value::Null)
        }
    });
    let p = Arc::clone(&probe);
    let tree = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let tree = ctx.counted_tree(input);
        let p = Arc::clone(&p);
        async move {
            let (value, _counted) = tree?;
            let guard = ProbeGuard::new(&p);
            guard.0.release.notified().await;
            Ok(value["n"].clone())
        }
    });
    let p = Arc::clone(&probe);
    let follow = HandlerKind::stream(move |_, _| {
        let guard = ProbeGuard::new(&p);
        // It uses nothing of its input, and never ends.
        stream::iter([Ok(json!("begun"))])
            .chain(stream::pending())
            .inspect(move |_: &Result<Value, CallError>| _ = &guard)
    });
    let registry = Registry::builder()
        .with(Registration::new(spec, hold).open())
        .with(Registration::new(OperationSpec::query("test/tree", "Makes a tree."), tree).open())
        .with(
            Registration::new(
                OperationSpec::subscription("test/follow", "Goes on for ever."),
                follow,
            )
            .open(),
        );
    let registry = registry.build().expect("every rule is kept");
    let dispatcher = Dispatcher::new(registry).with_memory(memory_bytes);
    CallTestNode::with_dispatcher(dispatcher, probe)
}

/// Calls `test/hold` with an input that is nearly as long as a frame may be.
pub(super) fn hold(
    client: &CallConnection,
    key: Option<&str>,
) -> tokio::task::JoinHandle<Result<CallBody, CallError>> {
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

async fn code(call: tokio::task::JoinHandle<Result<CallBody, CallError>>) -> ErrorCode {
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
    // A short request does not count.
    let short = tokio::spawn(async move { client.call("test/hold", &json!(1)).await });
    node.probe.wait(|p| &p.started, 34).await;
    node.probe.release.notify_waiters();
    for call in calls.into_iter().chain([short]) {
        soon(call).await.expect("no panic").expect("released");
    }
}

/// A requester gives up each request, and its run goes on: repeated with new keys, this would soon fill the node.
#[tokio::test]
async fn runs_without_a_caller_keep_their_bytes_counted() {
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
    // There is no room over another connection either.
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

/// Lists of short values, whose trees are thirty times as long as their frames.
#[tokio::test]
async fn trees_of_inputs_count_with_the_requests_of_their_sender() {
    // 8 MiB for the node, and half of that for an identity.
    let node = holding(64 << 20);
    let client = node.client(Carriage::Memory, Some(identity("peer", &[])));
    let other = node.client(Carriage::Memory, Some(identity("other", &[])));
    let ask = |client: &CallConnection| {
        let client = client.clone();
        tokio::spawn(async move {
            let input = json!({ "n": 7, "list": vec![0; 11_000] });
            client.call("test/tree", &input).await
        })
    };
    // A tree has 1.6 MB, and the identity 4 MiB.
    let mut calls = vec![ask(&client), ask(&client)];
    node.probe.wait(|p| &p.started, 2).await;
    for _ in 0..10 {
        assert_eq!(code(ask(&client)).await, ErrorCode::Overloaded);
    }
    assert_eq!(node.dispatcher.stats().request_bytes_full, 10);
    calls.push(ask(&other));
    node.probe.wait(|p| &p.started, calls.len()).await;
    node.probe.release.notify_waiters();
    for call in calls {
        let answer = soon(call).await.expect("no panic").expect("released");
        assert_eq!(answer.value(), &json!(7));
    }
    // The counted bytes are given back.
    let again = ask(&client);
    node.probe.wait(|p| &p.started, 4).await;
    node.probe.release.notify_waiters();
    soon(again).await.expect("no panic").expect("released");
}

/// Four identities hold padded subscriptions for as long as they live.
#[tokio::test]
async fn subscriptions_that_do_not_end_leave_room_for_requests_of_others() {
    // 8 MiB for the node: 2 MiB for subscriptions, and half a MiB for those of one identity.
    let node = holding(64 << 20);
    let padding = json!("x".repeat(64 << 10));
    let (mut clients, mut held) = (Vec::new(), Vec::new());
    let mut begun = Vec::new();
    for who in ["eve", "mallory", "trudy", "craig"] {
        let client = node.client(Carriage::Memory, Some(identity(who, &[])));
        let mut own = 0;
        for _ in 0..20 {
            let events = soon(client.subscribe("test/follow", &padding)).await;
            let mut events = events.expect("it is sent");
            match soon(events.next()).await.expect("an event") {
                Ok(_) => own += 1,
                Err(refused) => assert_eq!(refused.code, ErrorCode::Overloaded),
            }
            held.push(events);
        }
        begun.push(own);
        clients.push(client);
    }
    assert!(
        begun[..3].iter().all(|own| (5..8).contains(own)),
        "{begun:?}"
    );
    assert!(begun[3] < 5, "{begun:?}");
    // A request of 1 MiB for each of three others, and a short subscription.
    let before = node.probe.started.load(Ordering::SeqCst);
    let mut calls = Vec::new();
    for who in ["ada", "bob", "cal"] {
        let client = node.client(Carriage::Memory, Some(identity(who, &[])));
        calls.push(hold(&client, None));
        node.probe.wait(|p| &p.started, before + calls.len()).await;
    }
    let client = node.client(Carriage::Memory, Some(identity("dan", &[])));
    let mut events = soon(client.subscribe("test/follow", &json!(1)))
        .await
        .expect("sent");
    assert!(soon(events.next()).await.expect("an event").is_ok());
    node.probe.release.notify_waiters();
    for call in calls {
        soon(call).await.expect("no panic").expect("released");
    }
}

/// A frame of 1 MiB without its last byte, on each of many streams.
#[tokio::test]
async fn frames_that_do_not_end_are_bounded_and_leave_others_room() {
    // The smallest node: 4 MiB for it, and half of that for an identity.
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
            // The node may refuse it before the peer has sent all of it.
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
    // The node reads a frame that has its room to the end, which is not JSON.
    end_all.notify_waiters();
    for _ in 0..2 {
        let end = soon(ends.join_next())
            .await
            .expect("twelve")
            .expect("no panic");
        assert!(matches!(end, Err(StreamError::Reset(5))), "{end:?}");
    }
}
