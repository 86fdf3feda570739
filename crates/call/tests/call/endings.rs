//! How connections end, and the fate of the calls on them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_call::limits::PeerTimeouts;
use alknet_call::*;
use alknet_core::{AuthToken, CloseCode, Connection, memory_pair};
use alknet_test_support::deadline;
use serde_json::{Value, json};

use crate::common::*;

#[tokio::test]
async fn a_lost_connection_fails_what_is_in_flight() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, None);
        let call = client.call("test/hang", &Value::Null);
        let mut events = client
            .subscribe("test/silent", &Value::Null)
            .await
            .expect("started");
        tokio::pin!(call);
        tokio::select! {
            _ = &mut call => panic!("it hangs"),
            () = node.probe.wait(|p| &p.started, 2) => {}
        }
        client.close(CloseCode::Normal, "");
        assert_eq!(
            soon(call).await.expect_err("lost").code,
            ErrorCode::Unavailable
        );
        let event = soon(events.next()).await.expect("the end");
        assert_eq!(event.expect_err("lost").code, ErrorCode::Unavailable);
        node.probe.wait(|p| &p.dropped, 2).await;
        let error = soon(client.call("test/echo", &json!(1)))
            .await
            .expect_err("lost");
        assert_eq!(error.code, ErrorCode::Unavailable);
    }
}

#[tokio::test]
async fn draining_lets_running_calls_finish() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let (dialled, served) = node.serve(carriage, None);
        let client = CallClient::without_operations().attach(dialled, None);
        let call = client.call("test/hang", &Value::Null);
        tokio::pin!(call);
        tokio::select! {
            _ = &mut call => panic!("it hangs"),
            () = node.probe.wait(|p| &p.started, 1) => {}
        }
        let dispatcher = Arc::clone(&node.dispatcher);
        let drained = tokio::spawn(async move { dispatcher.drain().await });
        let told = async {
            while !client.is_draining() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = &mut call => panic!("it hangs"),
            () = soon(told) => {}
        }
        let error = soon(client.call("test/echo", &json!(1)))
            .await
            .expect_err("draining");
        assert_eq!(
            (error.code, error.retry_after_ms),
            (ErrorCode::Unavailable, Some(5000))
        );
        node.probe.release.notify_one();
        let answer = soon(call).await.expect("finished");
        assert_eq!(*answer.value(), json!("released"));
        soon(drained).await.expect("drains");
        soon(served).await.expect("no panic").expect("a good end");
    }
}

/// The node's own calls hold its connections as well, and no longer than until their answers.
#[tokio::test]
async fn a_drain_ends_with_the_last_call_of_the_node_itself() {
    for carriage in CARRIAGES {
        let later = Registration::new(
            OperationSpec::query("test/later", "Asks back when it has answered."),
            HandlerKind::once(|_, ctx: Ctx| async move {
                let caller = ctx.caller();
                tokio::spawn(async move { caller.call("client/double", &json!(1)).await });
                Ok(Value::Null)
            }),
        );
        let registry = Registry::builder().with(later).build().expect("valid");
        let probe: Arc<OperationProbe> = Arc::default();
        let node = CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::clone(&probe));
        let (dialled, served) = node.serve(carriage, None);
        let client = hanging(&probe).attach(dialled, None);
        let answer = soon(client.call("test/later", &Value::Null)).await;
        answer.expect("an answer");
        probe.wait(|p| &p.started, 1).await;
        let dispatcher = Arc::clone(&node.dispatcher);
        let drained = tokio::spawn(async move { dispatcher.drain().await });
        let told = async {
            while !client.is_draining() {
                tokio::task::yield_now().await;
            }
        };
        soon(told).await;
        probe.release.notify_one();
        soon(drained).await.expect("drains");
        soon(served).await.expect("no panic").expect("a good end");
    }
}

#[tokio::test]
async fn an_idle_node_drains_at_once() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, None);
        soon(client.call("test/echo", &json!(1)))
            .await
            .expect("an echo");
        soon(node.dispatcher.drain()).await;
        soon(client.closed()).await;
    }
}

#[tokio::test]
async fn dropping_the_server_future_leaves_nothing_running() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let (dialled, served) = node.serve(carriage, None);
        let client = CallClient::without_operations().attach(dialled, None);
        let call = client.call("test/hang", &Value::Null);
        let _events = client
            .subscribe("test/silent", &Value::Null)
            .await
            .expect("started");
        tokio::pin!(call);
        tokio::select! {
            _ = &mut call => panic!("it hangs"),
            () = node.probe.wait(|p| &p.started, 2) => {}
        }
        served.abort();
        node.probe.wait(|p| &p.dropped, 2).await;
    }
}

/// On a connection with one stream, the end of the stream would only mean that no more requests come.
#[tokio::test]
async fn dropping_a_connection_ends_its_calls() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let (dialled, served) = node.serve(carriage, None);
        let client = CallClient::without_operations().attach(dialled, None);
        let mut events = client
            .subscribe("test/silent", &Value::Null)
            .await
            .expect("started");
        node.probe.wait(|p| &p.started, 1).await;
        drop(client);
        let event = soon(events.next()).await.expect("the end");
        assert_eq!(event.expect_err("over").code, ErrorCode::Unavailable);
        node.probe.wait(|p| &p.dropped, 1).await;
        soon(served).await.expect("no panic").expect("a good end");
    }
}

#[tokio::test]
async fn dropping_a_reconnecting_client_ends_its_calls() {
    for carriage in CARRIAGES {
        let dialer = TestDialer::new(carriage, None);
        let kept: Arc<Mutex<Vec<Subscription>>> = Arc::default();
        let keep = Arc::clone(&kept);
        let on_connect: OnConnect = Arc::new(move |connection: CallConnection| {
            let keep = Arc::clone(&keep);
            Box::pin(async move {
                let events = connection.subscribe("test/silent", &Value::Null).await?;
                keep.lock().expect("no panics here").push(events);
                Ok(())
            })
        });
        let peer = dialer.reconnecting(Some(on_connect));
        soon(peer.connection()).await.expect("connected");
        let probe = &dialer.node.probe;
        probe.wait(|p| &p.started, 1).await;
        drop(peer);
        probe.wait(|p| &p.dropped, 1).await;
    }
}

/// A client whose only operation waits for its release.
fn hanging(probe: &Arc<OperationProbe>) -> CallClient {
    let p = Arc::clone(probe);
    let hangs = Registration::new(
        OperationSpec::query("client/double", "Takes its time."),
        HandlerKind::once(move |_, _| {
            let guard = ProbeGuard::new(&p);
            async move {
                guard.0.release.notified().await;
                Ok(Value::Null)
            }
        }),
    );
    let registry = Registry::builder().with(hangs).build().expect("valid");
    CallClient::new(Arc::new(Dispatcher::new(registry)))
}

#[tokio::test]
async fn the_side_that_accepted_takes_its_calls_along_too() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let (dialled, served) = node.serve(carriage, None);
        let probe: Arc<OperationProbe> = Arc::default();
        let client = hanging(&probe).attach(dialled, None);
        let token = AuthToken::new("good".to_owned());
        soon(client.authenticate(&token)).await.expect("known");
        let caller = client.clone();
        let asked = tokio::spawn(async move { caller.call("test/back", &json!(1)).await });
        probe.wait(|p| &p.started, 1).await;
        node.tokens.revoke("good");
        probe.wait(|p| &p.dropped, 1).await;
        let error = soon(asked).await.expect("no panic").expect_err("revoked");
        assert_eq!(error.code, ErrorCode::Unavailable);
        soon(served).await.expect("no panic").expect("a good end");
    }
}

/// A peer that takes no more bytes cannot get a notice, and must not mistake the end of the stream for one in order.
#[tokio::test]
async fn a_peer_that_does_not_listen_is_cut_off() {
    let (dialled, accepted) = single_pair();
    let patience = PeerTimeouts {
        goodbye: deadline(Duration::from_millis(30)),
        ..PeerTimeouts::default()
    };
    let dispatcher = Dispatcher::new(Registry::empty()).with_patience(patience);
    let client = CallClient::new(Arc::new(dispatcher)).attach(dialled, None);
    let long = json!("x".repeat(2 * SINGLE_BUFFER_BYTES));
    let call = client.call("test/echo", &long);
    tokio::pin!(call);
    for _ in 0..20 {
        assert!(futures_util::poll!(call.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    client.close(CloseCode::Normal, "");
    soon(client.closed()).await;
    let (_send, mut recv) = accepted.accept_bi().await.expect("a stream");
    let end = loop {
        match soon(recv.read_chunk(64 << 10)).await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(end.is_err(), "it looks whole");
}

/// The client has no task left then that could notify the node.
#[tokio::test]
async fn a_runtime_that_ends_takes_its_calls_along() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let (dialled, _served) = node.serve(carriage, None);
        let probe = Arc::clone(&node.probe);
        let leave = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let client = CallClient::without_operations().attach(dialled, None);
                let _events = client
                    .subscribe("test/silent", &Value::Null)
                    .await
                    .expect("started");
                probe.wait(|p| &p.started, 1).await;
            });
        };
        let left = tokio::task::spawn_blocking(leave);
        soon(left).await.expect("no panic");
        node.probe.wait(|p| &p.dropped, 1).await;
    }
}

/// A connection that closes loses the bytes on the way, and no task watches a stream that has ended.
#[tokio::test]
async fn a_drain_waits_for_answers_that_are_on_their_way() {
    let node = CallTestNode::patient();
    let (dialled, accepted, wire) = held_pair();
    let served = node.serve_end(&accepted, None);
    let client = CallClient::without_operations().attach(dialled, None);
    let options = CallOptions {
        route: CallRoute::Stream,
        ..CallOptions::default()
    };
    let one = json!(1);
    let call = client.call_with("test/echo", &one, &options);
    tokio::pin!(call);
    tokio::select! {
        _ = &mut call => panic!("nothing was delivered"),
        () = soon(wire.finished(1)) => {}
    }
    let dispatcher = Arc::clone(&node.dispatcher);
    let drained = tokio::spawn(async move { dispatcher.drain().await });
    // More time than a node takes that does not wait.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    wire.deliver();
    let answer = soon(call).await.expect("the answer");
    assert_eq!(*answer.value(), json!(1));
    soon(drained).await.expect("drains");
    soon(served).await.expect("no panic").expect("a good end");
}

/// The client's next stream with a request, and the id of the request.
async fn asked(accepted: &Connection) -> (RawPeer, String) {
    let (send, recv) = soon(accepted.accept_bi()).await.expect("the client asks");
    let mut peer = RawPeer::on(accepted.clone(), send, recv);
    let (kind, id, _) = peer.event().await;
    assert_eq!(kind, EventKind::Requested);
    (peer, id)
}

/// Answers may come on another stream than the request's, so the end of a stream ends no request while the peer goes
/// on. A peer that drains has sent by then every answer that it will send.
#[tokio::test]
async fn a_request_on_a_stream_that_a_draining_peer_ends_fails_at_once() {
    for drains in [true, false] {
        let (dialled, accepted) = memory_pair(ALPN);
        let client = CallClient::without_operations().attach(dialled, None);
        let options = |route| CallOptions {
            route,
            timeout: None,
            ..CallOptions::default()
        };
        let (one, two) = (json!(1), json!(2));
        let apart = options(CallRoute::Stream);
        let first = client.call_with("test/echo", &one, &apart);
        tokio::pin!(first);
        let (mut goes_on, first_id) = tokio::select! {
            _ = &mut first => panic!("nothing was answered"),
            asked = asked(&accepted) => asked,
        };
        let together = options(CallRoute::Shared);
        let second = client.call_with("test/echo", &two, &together);
        tokio::pin!(second);
        let (mut ends, second_id) = tokio::select! {
            _ = &mut second => panic!("nothing was answered"),
            asked = asked(&accepted) => asked,
        };
        if drains {
            let leaves = json!({ "reason": "shutdown", "drain_ms": 60_000 });
            ends.send(EventKind::Goaway, "-", leaves).await;
            ends.send.finish().expect("the only end");
            let error = soon(second).await.expect_err("no peer answers it");
            assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
            assert!(error.retryable, "{error}");
        } else {
            ends.send.finish().expect("the only end");
            let answer = json!({ "output": two });
            goes_on.send(EventKind::Responded, &second_id, answer).await;
            let answer = soon(second).await.expect("on the other stream");
            assert_eq!(*answer.value(), two);
        }
        let answer = json!({ "output": one });
        goes_on.send(EventKind::Responded, &first_id, answer).await;
        assert_eq!(*soon(first).await.expect("it is answered").value(), one);
    }
}

/// A peer whose newer connection takes over may send a request before it gets the notice: the request fails at its
/// caller by the end of the stream, and must not run.
#[tokio::test]
async fn a_request_behind_the_end_of_its_stream_does_not_run() {
    let node = CallTestNode::new();
    let (dialled, accepted) = memory_pair(ALPN);
    let _served = node.serve_end(&accepted, None);
    let mut peer = RawPeer::new(dialled).await;
    peer.request("1", "/test/echo", json!(1)).await;
    assert_eq!(peer.event().await.2, json!({ "output": 1 }));
    // The running call keeps the connection open.
    let mut runs = RawPeer::new(peer.connection.clone()).await;
    runs.request("2", "/test/hang", Value::Null).await;
    node.probe.wait(|p| &p.started, 1).await;
    assert!(accepted.ask_to_drain());
    while let Some((kind, ..)) = peer.recv().await.expect("it ends in order") {
        assert_eq!(kind, EventKind::Goaway);
    }
    peer.request("3", "/test/hang", Value::Null).await;
    let ignored = async {
        while node.dispatcher.stats().ignored == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(ignored).await;
    assert_eq!(node.probe.started.load(Ordering::SeqCst), 1);
    node.probe.release.notify_waiters();
}

/// A peer may open a stream before it reads the notice of the drain. Its requests must fail at once, and not when the
/// running ones have ended, which may take as long as the drain.
#[tokio::test]
async fn a_request_on_a_stream_opened_during_the_drain_fails_at_once() {
    for supersedes in [false, true] {
        let node = CallTestNode::new();
        let (dialled, accepted) = memory_pair(ALPN);
        let _served = node.serve_end(&accepted, None);
        let mut runs = RawPeer::new(dialled).await;
        runs.request("1", "/test/hang", Value::Null).await;
        node.probe.wait(|p| &p.started, 1).await;
        let dispatcher = Arc::clone(&node.dispatcher);
        if supersedes {
            assert!(accepted.ask_to_drain());
        } else {
            tokio::spawn(async move { dispatcher.drain().await });
        }
        assert_eq!(runs.event().await.0, EventKind::Goaway);
        let mut late = RawPeer::new(runs.connection.clone()).await;
        late.request("2", "/test/echo", Value::Null).await;
        let mut notified = false;
        // The stream ends while the other request runs.
        while let Some((kind, _, payload)) = late.recv().await.expect("it ends in order") {
            match kind {
                EventKind::Goaway => notified = true,
                EventKind::Error => assert_eq!(payload["code"], "UNAVAILABLE"),
                // Only a node that stops refuses what it reads before its own end of the stream.
                kind => assert_eq!((kind, supersedes), (EventKind::Responded, true)),
            }
        }
        assert!(notified, "the peer learns why the stream ended");
        node.probe.release.notify_one();
        let (kind, id, answer) = runs.event().await;
        assert_eq!((kind, id.as_str()), (EventKind::Responded, "1"));
        assert_eq!(answer, json!({ "output": "released" }));
    }
}
