//! Subscriptions that a hub passes on while the peer that serves them drains: the credit for them travels on another
//! stream than the events.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::limits::{WINDOW_FORWARDED, WINDOW_FORWARDED_MAX};
use alknet_call::*;
use alknet_core::{Carriage, Connection, PeerId, RecvStream, SendStream};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;

use super::passed_on::{follow, hub, specs};
use crate::common::*;
use crate::farm::attached;

/// The number of events until the subscription is over. Half of them are more than the highest credit at once, and
/// again as many.
const EVENTS: u32 = 8 * WINDOW_FORWARDED_MAX;

/// A worker that counts as far as that.
fn counting() -> CallTestNode {
    let event = |n: u32| Ok::<_, CallError>(json!(n));
    let count = HandlerKind::stream(move |_, _| stream::iter((0..EVENTS).map(event)));
    let spec = OperationSpec::subscription("jobs/count", "For tests.");
    let registration = Registration::new(spec, count);
    let registry = Registry::builder().with(registration).build();
    let registry = registry.expect("every rule is kept");
    CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default())
}

/// Resolves when the hub knows that its peer drains.
async fn drain_seen(hub: &CallTestNode) {
    let peer: PeerId = "w1".parse().expect("a peer id");
    let wait = async {
        // No event announces it: the test polls.
        while hub.dispatcher.peer_states().get(&peer).copied() != Some(PeerState::Draining) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(wait).await;
}

#[tokio::test]
async fn what_is_passed_on_goes_on_while_the_peer_drains() {
    for carriage in CARRIAGES {
        let hub = hub(64 << 20);
        let worker = counting();
        let _link = worker.join(&hub, carriage, identity("w1", &[]));
        attached(&hub, &["w1"]).await;
        let who = Some(identity("user", &["peer:route:w1"]));
        let (dialled, _) = hub.serve(Carriage::Memory, who);
        let mut user = follow(&dialled, "1", "jobs/count").await;
        assert_eq!(user.event().await.0, EventKind::Responded);
        let leaving = Arc::clone(&worker.dispatcher);
        let drained = tokio::spawn(async move { leaving.drain().await });
        drain_seen(&hub).await;
        let credit = json!({ "n": EVENTS });
        user.send(EventKind::Credit, "1", credit).await;
        for n in 1..EVENTS / 2 {
            let (kind, _, payload) = user.event().await;
            assert_eq!(kind, EventKind::Responded, "{n} {carriage:?}: {payload}");
            assert_eq!(payload["output"], json!(n), "{carriage:?}");
        }
        assert!(!drained.is_finished(), "it waits for what it serves");
        user.send(EventKind::Aborted, "1", json!({})).await;
        // No call keeps it any longer.
        soon(drained).await.expect("no panic");
    }
}

/// A peer that drains by ending every stream on which it could get credit, and reports the credit that it gets.
fn leaves(
    connection: Connection,
    drains: watch::Receiver<bool>,
    credit: mpsc::UnboundedSender<Value>,
) {
    tokio::spawn(async move {
        while let Ok((send, recv)) = connection.accept_bi().await {
            tokio::spawn(leave(send, recv, drains.clone(), credit.clone()));
        }
    });
}

async fn leave(
    mut send: SendStream,
    mut recv: RecvStream,
    mut drains: watch::Receiver<bool>,
    credit: mpsc::UnboundedSender<Value>,
) {
    let mut frames = FrameReader::new();
    let mut said = false;
    loop {
        let drained = async { drop(drains.wait_for(|drains| *drains).await) };
        let chunk = tokio::select! {
            biased;
            () = drained, if !said => {
                said = true;
                let goaway = encode_event(EventKind::Goaway, "-", "{}");
                let _ = send.write_chunk(goaway).await;
                let _ = send.finish();
                continue;
            }
            chunk = recv.read_chunk(64 << 10) => chunk,
        };
        let Ok(Some(chunk)) = chunk else {
            // A stream of one request stays for its answer.
            return std::future::pending().await;
        };
        frames.push(chunk);
        while let Some(frame) = frames.next_frame(64 << 20).expect("a good hub") {
            let body = FrameBody::parse(frame).expect("a good hub");
            let event = Envelope::parse(&body.envelope, 64).expect("a good hub");
            let payload: Value = serde_json::from_str(event.payload).expect("JSON");
            if event.kind == EventKind::Credit {
                let _ = credit.send(payload["n"].clone());
                continue;
            }
            let answer = match payload["operationId"].as_str().unwrap_or_default() {
                "/services/list" => listing(&["jobs/count"]),
                "/services/schema" => specs(&payload["input"]),
                "/jobs/count" => json!(0),
                // The peer reports no changes.
                _ => continue,
            };
            let output = json!({ "output": answer }).to_string();
            let bytes = encode_event(EventKind::Responded, &event.id, &output);
            let _ = send.write_chunk(bytes).await;
        }
    }
}

#[tokio::test]
async fn a_draining_peer_gets_all_credit_in_advance() {
    let hub = hub(64 << 20);
    let (dialled, _) = hub.serve(Carriage::Memory, Some(identity("w1", &[])));
    let drains = watch::Sender::new(false);
    let (says, mut credit) = mpsc::unbounded_channel();
    leaves(dialled, drains.subscribe(), says);
    attached(&hub, &["w1"]).await;
    let who = Some(identity("user", &["peer:route:w1"]));
    let (dialled, _) = hub.serve(Carriage::Memory, who);
    let mut user = follow(&dialled, "1", "jobs/count").await;
    assert_eq!(user.event().await.0, EventKind::Responded);
    let first = soon(credit.recv()).await.expect("one was taken");
    assert_eq!(first, json!(WINDOW_FORWARDED_MAX + 1 - WINDOW_FORWARDED));
    drains.send_replace(true);
    let all = soon(credit.recv()).await.expect("it is not heard later");
    assert_eq!(all, json!(WINDOW_FORWARDED_MAX));
}

/// An operation without an end of its own, and one that ends once the test releases it.
fn following(release: &Arc<Notify>) -> CallTestNode {
    let events = HandlerKind::stream(|_, ctx: Ctx| {
        let end = ctx.draining();
        stream::once(async { Ok(json!("begun")) }).chain(stream::once(async { Err(end.await) }))
    });
    let held = Arc::clone(release);
    let waits = HandlerKind::once(move |_, _| {
        let held = Arc::clone(&held);
        async move {
            held.notified().await;
            Ok::<_, CallError>(json!("released"))
        }
    });
    let spec = OperationSpec::subscription("jobs/events", "For tests.");
    let registry = Registry::builder()
        .with(Registration::new(spec, events))
        .with(Registration::new(
            OperationSpec::query("jobs/wait", "For tests."),
            waits,
        ))
        .build();
    let registry = registry.expect("every rule is kept");
    CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default())
}

/// The drain waits for a call, which can end, and not for streams of events, which cannot.
#[tokio::test]
async fn streams_of_events_end_before_a_running_call() {
    for carriage in CARRIAGES {
        let release = Arc::new(Notify::new());
        let node = following(&release);
        let client = node.client(carriage, None);
        let mut streams = Vec::new();
        for name in ["jobs/events", "services/watch"] {
            let events = client.subscribe(name, &Value::Null).await;
            let mut events = events.expect("started");
            let first = soon(events.next()).await.expect("an event");
            first.expect("no error");
            streams.push((name, events));
        }
        let caller = client.clone();
        let call = tokio::spawn(async move { caller.call("jobs/wait", &Value::Null).await });
        let dispatcher = Arc::clone(&node.dispatcher);
        let running = async {
            // No event announces it: the test polls.
            while dispatcher.running() < 3 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        soon(running).await;
        let leaving = Arc::clone(&node.dispatcher);
        let drained = tokio::spawn(async move { leaving.drain().await });
        for (name, mut events) in streams {
            let end = soon(events.next()).await.expect("the end");
            let error = end.expect_err("it did not end by itself");
            assert_eq!(error.code, ErrorCode::Unavailable, "{name}: {error}");
            assert!(error.message.contains("shutting down"), "{name}: {error}");
        }
        assert!(!call.is_finished() && !drained.is_finished(), "it waits");
        release.notify_one();
        let answer = soon(call).await.expect("no panic").expect("finished");
        assert_eq!(*answer.value(), json!("released"));
        soon(drained).await.expect("no panic");
    }
}
