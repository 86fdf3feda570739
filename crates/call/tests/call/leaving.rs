//! Subscriptions that a hub passes on while the peer that serves them drains: the credit for them travels on another
//! stream than the events.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::limits::{WINDOW_FORWARDED, WINDOW_FORWARDED_MAX};
use alknet_call::*;
use alknet_core::{Carriage, Connection, PeerId, RecvStream, SendStream};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

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

/// A subscription without an end of its own, and a subscription and a call that end once the test releases them.
fn following(release: &CancellationToken) -> CallTestNode {
    let events = HandlerKind::stream(|_, ctx: Ctx| {
        let end = ctx.draining();
        stream::once(async { Ok(json!("begun")) }).chain(stream::once(async { Err(end.await) }))
    });
    let held = release.clone();
    let steps = HandlerKind::stream(move |_, _| {
        let held = held.clone();
        let last = async move {
            held.cancelled().await;
            Ok::<_, CallError>(json!("released"))
        };
        stream::once(async { Ok(json!("begun")) }).chain(stream::once(last))
    });
    let held = release.clone();
    let waits = HandlerKind::once(move |_, _| {
        let held = held.clone();
        async move {
            held.cancelled().await;
            Ok::<_, CallError>(json!("released"))
        }
    });
    let subscription = |name| OperationSpec::subscription(name, "For tests.");
    let registry = Registry::builder()
        .with(Registration::new(subscription("jobs/events"), events))
        .with(Registration::new(subscription("jobs/steps"), steps))
        .with(Registration::new(
            OperationSpec::query("jobs/wait", "For tests."),
            waits,
        ))
        .build();
    let registry = registry.expect("every rule is kept");
    CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default())
}

/// Subscribes to an operation, of a peer if it is named, and waits for the first event.
async fn subscribe(client: &CallConnection, operation: &str, peer: Option<&str>) -> Subscription {
    let options = CallOptions {
        timeout: None,
        peer: peer.map(str::to_owned),
        ..CallOptions::default()
    };
    let events = client.subscribe_with(operation, &Value::Null, &options);
    let mut events = events.await.expect("started");
    let first = soon(events.next()).await.expect("an event");
    first.expect("no error");
    events
}

/// The next item of the subscription is the error of a drain.
async fn expect_end_by_drain(events: &mut Subscription, what: &str) {
    let end = soon(events.next()).await.expect("the end");
    let error = end.expect_err("it did not end by itself");
    assert_eq!(error.code, ErrorCode::Unavailable, "{what}: {error}");
    assert!(error.message.contains("shutting down"), "{what}: {error}");
}

/// The drain waits for a call, which can end, and not for streams of events, which cannot.
#[tokio::test]
async fn streams_of_events_end_before_a_running_call() {
    for carriage in CARRIAGES {
        let release = CancellationToken::new();
        let node = following(&release);
        let client = node.client(carriage, None);
        let mut streams = Vec::new();
        for name in ["jobs/events", "services/watch"] {
            let events = subscribe(&client, name, None).await;
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
            expect_end_by_drain(&mut events, name).await;
        }
        assert!(!call.is_finished() && !drained.is_finished(), "it waits");
        release.cancel();
        let answer = soon(call).await.expect("no panic").expect("finished");
        assert_eq!(*answer.value(), json!("released"));
        soon(drained).await.expect("no panic");
    }
}

/// A hub that drains does not wait for a stream of a worker that has no end, and waits for one that has.
#[tokio::test]
async fn a_stream_that_a_draining_hub_passes_on_ends_like_its_own() {
    for carriage in CARRIAGES {
        let release = CancellationToken::new();
        let hub = hub(64 << 20);
        let worker = following(&release);
        let _link = worker.join(&hub, carriage, identity("w1", &[]));
        attached(&hub, &["w1"]).await;
        let client = hub.client(carriage, Some(identity("user", &["peer:route:w1"])));
        let mut events = subscribe(&client, "jobs/events", Some("w1")).await;
        let mut steps = subscribe(&client, "jobs/steps", Some("w1")).await;
        let leaving = Arc::clone(&hub.dispatcher);
        let drained = tokio::spawn(async move { leaving.drain().await });
        expect_end_by_drain(&mut events, "jobs/events").await;
        assert!(!drained.is_finished(), "{carriage:?}: it waits");
        release.cancel();
        let last = soon(steps.next()).await.expect("an event");
        let last = last.expect("it was let finish");
        assert_eq!(*last.output.value(), json!("released"), "{carriage:?}");
        assert!(soon(steps.next()).await.is_none(), "{carriage:?}");
        soon(drained).await.expect("no panic");
    }
}

/// A client may read to the end what it asked for itself after it announced that it stops.
#[tokio::test]
async fn only_what_a_stopping_peer_passes_on_ends() {
    let node = following(&CancellationToken::new());
    let (dialled, _) = node.serve(Carriage::Memory, None);
    let mut peer = RawPeer::new(dialled).await;
    for (id, hops) in [("own", 0), ("forwarded", 1)] {
        let payload = json!({ "operationId": "jobs/events", "window": 9, "hops": hops });
        peer.send(EventKind::Requested, id, payload).await;
        let (kind, of, payload) = peer.event().await;
        assert_eq!((kind, &*of), (EventKind::Responded, id), "{payload}");
    }
    // A newer connection replaces this one, and the requests on it go on.
    let superseded = json!({ "reason": "a newer connection of this peer took over" });
    peer.send(EventKind::Goaway, "-", superseded).await;
    peer.request("first", "services/list", Value::Null).await;
    assert_eq!(peer.event().await.1, "first");
    let stops = json!({ "reason": "the node is shutting down" });
    peer.send(EventKind::Goaway, "-", stops).await;
    let (kind, id, payload) = peer.event().await;
    assert_eq!((kind, &*id), (EventKind::Error, "forwarded"), "{payload}");
    assert_eq!(payload["code"], "UNAVAILABLE", "{payload}");
    peer.request("second", "services/list", Value::Null).await;
    assert_eq!(peer.event().await.1, "second");
}
