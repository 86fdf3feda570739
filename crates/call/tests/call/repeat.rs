//! Calls made together, repeated, and made over another connection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_call::limits::PeerLimits;
use alknet_call::*;
use alknet_core::{Carriage, CloseCode};
use alknet_test_support::deadline;
use serde_json::{Value, json};

use crate::common::*;

fn keyed(key: &str) -> CallOptions {
    CallOptions {
        idempotency_key: Some(key.to_owned()),
        ..CallOptions::default()
    }
}

fn started(node: &CallTestNode) -> usize {
    node.probe.started.load(Ordering::SeqCst)
}

/// Starts `test/charge` with `key`; it waits for its release.
fn charge(
    client: &CallConnection,
    key: &str,
) -> tokio::task::JoinHandle<Result<CallBody, CallError>> {
    let (client, options) = (client.clone(), keyed(key));
    tokio::spawn(async move {
        let input = json!({ "wait": true });
        client.call_with("test/charge", &input, &options).await
    })
}

#[tokio::test]
async fn a_key_runs_once_for_each_identity() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let peer = || node.client(carriage, Some(identity("peer", &[])));
        let first = peer();
        let call = async |client: &CallConnection, key: &str, input: Value| {
            soon(client.call_with("test/charge", &input, &keyed(key))).await
        };
        let answer = call(&first, "a", json!({ "n": 1, "m": 2 }))
            .await
            .expect("runs");
        assert_eq!(*answer.value(), json!(1));
        // Over another connection, and however the input is written.
        let again = call(&peer(), "a", json!({ "m": 2, "n": 1 })).await;
        assert_eq!(*again.expect("the same answer").value(), json!(1));
        let error = call(&first, "a", json!({ "n": 2 }))
            .await
            .expect_err("another input");
        assert_eq!((error.code, error.retryable), (ErrorCode::Conflict, false));
        let other = call(&first, "b", json!({ "n": 2 }))
            .await
            .expect("another key");
        assert_eq!(*other.value(), json!(2));
        let user = node.client(carriage, Some(identity("other", &[])));
        let other = call(&user, "a", json!({ "n": 2 }))
            .await
            .expect("another identity");
        assert_eq!(*other.value(), json!(3));
        // Two unknown peers are not one.
        let (one, two) = (node.client(carriage, None), node.client(carriage, None));
        for (client, n) in [(&one, 4), (&one, 4), (&two, 5)] {
            let answer = call(client, "a", json!({})).await.expect("an unknown peer");
            assert_eq!(*answer.value(), json!(n));
        }
        // Without a key, and where keys mean nothing, every call runs.
        for n in [6, 7] {
            let answer = soon(first.call("test/charge", &json!({}))).await;
            assert_eq!(*answer.expect("runs").value(), json!(n));
        }
        for n in [8, 9] {
            let options = keyed("a");
            let answer = soon(first.call_with("test/flaky-mutation", &json!(0), &options)).await;
            assert_eq!(*answer.expect("runs").value(), json!(n));
        }
    }
}

/// The node compares a key with its earlier input only once the request has its permit and a valid input: until then,
/// going through the whole input would be wasted work.
#[tokio::test]
async fn what_has_no_room_or_does_not_fit_is_not_compared_with_what_its_key_was_used_for() {
    let mut spec = OperationSpec::mutation("bank/pay", "Runs once for a key.")
        .with_input(json!({ "type": "object" }));
    spec.idempotent = Idempotence::Keyed;
    let pay = HandlerKind::once(|_, _| async { Ok(json!("paid")) });
    let hold = HandlerKind::once(|_, _| std::future::pending::<Result<Value, CallError>>());
    let registry = Registry::builder()
        .with(Registration::new(spec, pay).open())
        .with(Registration::new(
            OperationSpec::query("bank/hold", "Does not end."),
            hold,
        ));
    let limits = PeerLimits {
        requests: 1,
        ..PeerLimits::AUTHENTICATED
    };
    let registry = registry.build().expect("every rule is kept");
    let node = CallTestNode::with_dispatcher(
        Dispatcher::new(registry).with_limits(limits),
        Arc::default(),
    );
    for carriage in CARRIAGES {
        let (dialled, _served) = node.serve(carriage, Some(identity("peer", &[])));
        let mut peer = RawPeer::new(dialled).await;
        let pay = async |peer: &mut RawPeer, input: Value| {
            let payload = json!({
                "operationId": "/bank/pay", "input": input, "idempotency_key": "k",
            });
            peer.send(EventKind::Requested, "pay", payload).await;
            let (_, id, told) = peer.event().await;
            assert_eq!(id, "pay");
            told.get("code").unwrap_or_else(|| &told["output"]).clone()
        };
        assert_eq!(pay(&mut peer, json!({ "n": 1 })).await, "paid");
        assert_eq!(pay(&mut peer, json!({ "n": 2 })).await, "CONFLICT");
        // Both have another input than the key's first.
        assert_eq!(pay(&mut peer, json!("another")).await, "INVALID_INPUT");
        peer.request("hold", "/bank/hold", Value::Null).await;
        assert_eq!(pay(&mut peer, json!({ "n": 2 })).await, "OVERLOADED");
        peer.send(EventKind::Aborted, "hold", json!({})).await;
        assert_eq!(pay(&mut peer, json!({ "n": 1 })).await, "paid");
    }
}

/// An operation that calls a keyed mutation with the keys in its input, one after the other.
fn shop() -> RegistryBuilder {
    let order = HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
        let mut answers = Vec::new();
        for key in input.value().as_array().into_iter().flatten() {
            let options = InvokeOptions {
                idempotency_key: key.as_str().map(str::to_owned),
                ..InvokeOptions::default()
            };
            let paid = ctx
                .env()
                .invoke_with("bank/pay", &json!({}), &options)
                .await;
            answers.push(match paid {
                Ok(answer) => answer.value().clone(),
                Err(error) => json!(error.code.name()),
            });
        }
        Ok(Value::Array(answers))
    });
    let spec = OperationSpec::mutation("shop/order", "Pays.").with_scope("shop");
    let authority = CompositionAuthority::new("shop", ["*"]);
    let order = Registration::new(spec, order).composing(authority, ScopedPeerEnv::new(["bank/*"]));
    let mut spec = OperationSpec::mutation("bank/pay", "Runs once for a key.").with_scope("shop");
    spec.idempotent = Idempotence::Keyed;
    spec.concurrency = Some(1);
    let paid = Arc::new(AtomicUsize::new(0));
    let pay = HandlerKind::once(move |_, _| {
        let paid = Arc::clone(&paid);
        async move { Ok(json!(paid.fetch_add(1, Ordering::SeqCst) + 1)) }
    });
    Registry::builder()
        .with(order)
        .with(Registration::new(spec, pay))
}

#[tokio::test]
async fn a_key_of_a_call_between_operations_runs_once_for_each_requester() {
    for carriage in CARRIAGES {
        let node = crate::composition::node(shop());
        let client = |who: &str| node.client(carriage, Some(identity(who, &["shop"])));
        let (one, two) = (client("one"), client("two"));
        let order = async |client: &CallConnection, keys: Value| {
            let answer = soon(client.call("shop/order", &keys)).await;
            answer.expect("ordered").value().clone()
        };
        assert_eq!(order(&one, json!(["a", "a", "b"])).await, json!([1, 1, 2]));
        // In another request, for another requester, and without a key.
        assert_eq!(order(&one, json!(["b", "a"])).await, json!([2, 1]));
        assert_eq!(order(&two, json!(["a"])).await, json!([3]));
        assert_eq!(order(&one, json!([null, null])).await, json!([4, 5]));
        // The requester's own key is another one.
        let own = soon(one.call_with("bank/pay", &json!({}), &keyed("a"))).await;
        assert_eq!(*own.expect("runs").value(), json!(6));
        let refused = json!(["INVALID_INPUT", "INVALID_INPUT"]);
        assert_eq!(order(&one, json!(["", "k".repeat(65)])).await, refused);
        assert_eq!(order(&one, json!(["c"])).await, json!([7]));
    }
}

/// A shop whose orders run once for a key, and fail in their own name where paying does.
struct Shop {
    node: CallTestNode,
    /// How paying ends: without room, for good, or well.
    paying: Arc<Mutex<&'static str>>,
    orders: Arc<AtomicUsize>,
}

impl Shop {
    fn open() -> Self {
        let paying = Arc::new(Mutex::new("well"));
        let orders = Arc::new(AtomicUsize::new(0));
        let pays = Arc::clone(&paying);
        let pay = HandlerKind::once(move |_, _| {
            let pays = *pays.lock().expect("no panics here");
            async move {
                match pays {
                    "full" => Err(CallError::new(ErrorCode::Overloaded, "full")),
                    "fails" => Err(CallError::internal("no")),
                    _ => Ok(json!("paid")),
                }
            }
        });
        let full = HandlerKind::once(|_, _| async {
            Err::<Value, _>(CallError::new(ErrorCode::Overloaded, "always"))
        });
        let ordered = Arc::clone(&orders);
        let order = HandlerKind::once(move |_, ctx: Ctx| {
            ordered.fetch_add(1, Ordering::SeqCst);
            async move {
                let paid = ctx.env().invoke("bank/pay", &Value::Null).await;
                let paid = paid.map(CallOutput::from);
                paid.map_err(|_| CallError::internal("in its own name"))
            }
        });
        // Its own call has no key, and its order has.
        let counter = HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
            let env = ctx.env();
            if input.value() == "busy" {
                let refused = env.invoke("bank/full", &Value::Null).await;
                refused.expect_err("it never has room");
            }
            let options = InvokeOptions {
                idempotency_key: Some("k".to_owned()),
                ..InvokeOptions::default()
            };
            let ordered = env.invoke_with("shop/order", &Value::Null, &options).await;
            ordered.map(CallOutput::from)
        });
        let mut keyed = OperationSpec::mutation("shop/order", "Pays.").with_scope("shop");
        keyed.idempotent = Idempotence::Keyed;
        let spec = OperationSpec::mutation("shop/desk", "Orders.").with_scope("shop");
        let authority = || CompositionAuthority::new("shop", ["*"]);
        let reach = || ScopedPeerEnv::new(["bank/*", "shop/*"]);
        let registry = Registry::builder()
            .with(Registration::new(spec, counter).composing(authority(), reach()))
            .with(Registration::new(keyed, order).composing(authority(), reach()))
            .with(Registration::new(
                OperationSpec::query("bank/pay", "For tests."),
                pay,
            ))
            .with(Registration::new(
                OperationSpec::query("bank/full", "For tests."),
                full,
            ));
        Self {
            node: crate::composition::node(registry),
            paying,
            orders,
        }
    }

    /// Orders under the same key, and returns the outcome and the number of orders.
    async fn order(&self, at: &str, input: &Value, paying: &'static str) -> (String, usize) {
        *self.paying.lock().expect("no panics here") = paying;
        let one = identity("one", &["shop"]);
        let client = self.node.client(Carriage::Memory, Some(one));
        let options = keyed("k");
        let ordered = soon(client.call_with(at, input, &options)).await;
        let told = match ordered {
            Ok(answer) => answer.value().as_str().unwrap_or_default().to_owned(),
            Err(error) => error.code.name().to_owned(),
        };
        (told, self.orders.load(Ordering::SeqCst))
    }
}

/// A requester that repeats the key may find room, whatever error the operation made of the refusal.
#[tokio::test]
async fn that_there_was_no_room_is_not_kept_for_a_key() {
    for at in ["shop/order", "shop/desk"] {
        let shop = Shop::open();
        for (paying, told, orders) in [
            ("full", "INTERNAL", 1),
            ("full", "INTERNAL", 2),
            ("well", "paid", 3),
            ("full", "paid", 3),
        ] {
            let ordered = shop.order(at, &Value::Null, paying).await;
            assert_eq!(ordered, (told.to_owned(), orders), "{at} {paying}");
        }
        // A permanent failure is stored, also where another part of the request found no room.
        for input in [Value::Null, json!("busy")] {
            let shop = Shop::open();
            for paying in ["fails", "well"] {
                let ordered = shop.order(at, &input, paying).await;
                assert_eq!(ordered, ("INTERNAL".to_owned(), 1), "{at} {input} {paying}");
            }
        }
    }
}

/// A list of short values takes 36 times the bytes of its text as a tree, which is what a node keeps.
#[tokio::test]
async fn errors_are_kept_up_to_the_memory_of_their_trees() {
    let mut spec = OperationSpec::mutation("test/fail", "Fails once for a key.");
    spec.idempotent = Idempotence::Keyed;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let fail = HandlerKind::once(move |input, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let error = CallError::new(ErrorCode::Conflict, "no");
            Err::<Value, _>(error.with_details(json!(vec![0; input.parse()?])))
        }
    });
    let registry = Registry::builder().with(Registration::new(spec, fail).open());
    let dispatcher = Dispatcher::new(registry.build().expect("every rule is kept"));
    let node = CallTestNode::with_dispatcher(dispatcher, Arc::default());
    let client = node.client(Carriage::Memory, Some(identity("peer", &[])));
    for (values, again) in [
        (300, json!(vec![0; 300])),
        (1_500, json!({ "omitted": true })),
    ] {
        let fails = async || {
            let (input, options) = (json!(values), keyed(&values.to_string()));
            let error = soon(client.call_with("test/fail", &input, &options)).await;
            let error = error.expect_err("it fails");
            assert_eq!((error.code, &*error.message), (ErrorCode::Conflict, "no"));
            error.details.map(|details| *details)
        };
        assert_eq!(fails().await, Some(json!(vec![0; values])));
        assert_eq!(fails().await, Some(again));
    }
    assert_eq!(runs.load(Ordering::SeqCst), 2, "each key runs once");
}

#[tokio::test]
async fn duplicates_join_the_running_call_when_a_caller_leaves() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let peer = || node.client(carriage, Some(identity("peer", &[])));
        let (first, second) = (peer(), peer());
        let begun = charge(&first, "k");
        node.probe.wait(|p| &p.started, 1).await;
        // One may run at a time, and requests that join it do not count.
        let joined = charge(&second, "k");
        let error = soon(second.call_with("test/charge", &json!({}), &keyed("other"))).await;
        assert_eq!(
            error.expect_err("one at a time").code,
            ErrorCode::Overloaded
        );
        // Neither an abort nor a lost connection reaches the run.
        begun.abort();
        first.close(CloseCode::Normal, "");
        soon(first.closed()).await;
        let late = charge(&peer(), "k");
        soon(second.call("test/echo", &json!(1)))
            .await
            .expect("served");
        assert_eq!(node.probe.dropped.load(Ordering::SeqCst), 0);
        node.probe.release.notify_one();
        for waiting in [joined, late] {
            let answer = soon(waiting).await.expect("no panic").expect("an answer");
            assert_eq!(*answer.value(), json!(1));
        }
        assert_eq!(started(&node), 1);
        // Its permit is free again.
        soon(second.call_with("test/charge", &json!({}), &keyed("other")))
            .await
            .expect("runs");
    }
}

#[tokio::test]
async fn a_run_that_met_its_deadline_may_run_again() {
    let node = CallTestNode::new();
    let client = node.client(Carriage::Memory, Some(identity("peer", &[])));
    let input = json!({ "wait": true });
    let options = CallOptions {
        // Enough time for the handler to start.
        timeout: Some(deadline(Duration::from_millis(20))),
        ..keyed("k")
    };
    for n in 1..=2 {
        let error = soon(client.call_with("test/charge", &input, &options)).await;
        assert_eq!(error.expect_err("too late").code, ErrorCode::Timeout);
        node.probe.wait(|p| &p.dropped, n).await;
        assert_eq!(started(&node), n);
    }
}

#[tokio::test]
async fn a_drain_waits_for_runs_without_a_caller() {
    let node = CallTestNode::new();
    let client = node.client(Carriage::Memory, Some(identity("peer", &[])));
    let begun = charge(&client, "k");
    node.probe.wait(|p| &p.started, 1).await;
    begun.abort();
    let dispatcher = Arc::clone(&node.dispatcher);
    let mut drained = tokio::spawn(async move { dispatcher.drain().await });
    soon(client.closed()).await;
    assert!(futures_util::poll!(&mut drained).is_pending());
    node.probe.release.notify_one();
    soon(drained).await.expect("drains");
    assert_eq!(node.probe.dropped.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn only_what_is_safe_is_tried_again() {
    for (operation, needed, tries, works) in [
        ("test/flaky", 3, 3, true),
        ("test/flaky", 4, 4, true),
        ("test/flaky", 5, 4, false),
        ("test/flaky-mutation", 2, 1, false),
    ] {
        let node = CallTestNode::new();
        let client = node.client(Carriage::Memory, None);
        let options = CallOptions::default();
        let answer = soon(client.call_retrying(operation, &json!(needed), &options)).await;
        assert_eq!(answer.is_ok(), works, "{operation} {needed}");
        assert_eq!(started(&node), tries, "{operation} {needed}");
    }
    // The client makes a key where the call needs one, and the end of its time ends the tries.
    let node = CallTestNode::new();
    let client = node.client(Carriage::Memory, None);
    let options = CallOptions::default();
    for n in [1, 2] {
        let answer = soon(client.call_retrying("test/charge", &json!({}), &options)).await;
        assert_eq!(*answer.expect("its own key").value(), json!(n));
    }
    let short = CallOptions {
        timeout: Some(deadline(Duration::from_secs(10))),
        ..CallOptions::default()
    };
    soon(client.call_retrying("test/flaky", &json!(NOT_SOON), &short))
        .await
        .expect_err("no time for another try");
    assert_eq!(started(&node), 3);
}

#[tokio::test]
async fn a_batch_is_one_write_and_every_call_has_its_outcome() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, None);
        let mut batch = client.batch();
        batch
            .add("test/echo", &json!(1))
            .add("test/nothing", &Value::Null)
            .add("test/typed", &json!({ "n": "x" }))
            .add("test/echo", &json!("x".repeat(10_000)))
            .add("test/echo", &"x".repeat(2 << 20));
        assert_eq!((batch.len(), batch.is_empty()), (5, false));
        let outcomes = soon(batch.send()).await;
        let codes: Vec<_> = outcomes
            .iter()
            .map(|outcome| outcome.as_ref().map_or_else(|e| e.code.name(), |_| "ok"))
            .collect();
        assert_eq!(
            codes,
            [
                "ok",
                "NOT_FOUND",
                "INVALID_INPUT",
                "ok",
                "PAYLOAD_TOO_LARGE"
            ]
        );
        assert!(soon(client.batch().send()).await.is_empty());
        client.close(CloseCode::Normal, "");
        soon(client.closed()).await;
        let mut late = client.batch();
        late.add("test/echo", &json!(1));
        let outcomes = soon(late.send()).await;
        assert_eq!(
            outcomes[0].as_ref().expect_err("lost").code,
            ErrorCode::Unavailable
        );
    }
    let (dialled, accepted) = single_pair();
    let client = CallClient::without_operations().attach(dialled, None);
    let mut batch = client.batch();
    for n in 0..20 {
        batch.add("any/thing", &json!(n));
    }
    let sent = tokio::spawn(batch.send());
    let (_send, mut recv) = accepted.accept_bi().await.expect("the stream");
    let mut frames = FrameReader::new();
    let chunk = soon(recv.read_chunk(64 << 10)).await.expect("bytes");
    frames.push(chunk.expect("no end"));
    let whole = std::iter::from_fn(|| frames.next_frame(1 << 20).expect("frames"));
    assert_eq!(whole.count(), 20);
    sent.abort();
}

#[tokio::test]
async fn a_keyed_mutation_over_a_lost_connection_runs_once() {
    for carriage in CARRIAGES {
        let dialer = TestDialer::new(carriage, Some(identity("peer", &[])));
        let peer = dialer.reconnecting(None);
        let call = tokio::spawn({
            let peer = peer.clone();
            async move { peer.call("test/charge", &json!({ "wait": true })).await }
        });
        dialer.node.probe.wait(|p| &p.started, 1).await;
        dialer.hang_up(CloseCode::Internal);
        let requests = dialer.node.dispatcher.stats().requests;
        let again = async {
            while dialer.node.dispatcher.stats().requests < requests + 2 {
                tokio::task::yield_now().await;
            }
        };
        soon(again).await;
        dialer.node.probe.release.notify_one();
        let answer = soon(call).await.expect("no panic").expect("an answer");
        assert_eq!(*answer.value(), json!(1));
        assert_eq!(started(&dialer.node), 1);
        assert_eq!(dialer.dials.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn calls_wait_for_a_connection_and_others_are_not_repeated() {
    let dialer = TestDialer::new(Carriage::Memory, Some(identity("peer", &[])));
    dialer.failing.store(2, Ordering::SeqCst);
    let peer = dialer.reconnecting(None);
    let answer = soon(peer.call("test/echo", &json!(5))).await;
    assert_eq!(*answer.expect("the third dial works").value(), json!(5));
    assert_eq!(dialer.dials.load(Ordering::SeqCst), 3);
    let mutation = tokio::spawn({
        let peer = peer.clone();
        async move { peer.call("test/flaky-mutation", &json!(99)).await }
    });
    let error = soon(mutation).await.expect("no panic");
    assert_eq!(error.expect_err("not yet").code, ErrorCode::Unavailable);
    assert_eq!(started(&dialer.node), 1);
    dialer.failing.store(usize::MAX, Ordering::SeqCst);
    dialer.hang_up(CloseCode::Internal);
    let short = CallOptions {
        timeout: Some(Duration::from_millis(50)),
        ..CallOptions::default()
    };
    let error = soon(peer.call_with("test/echo", &json!(1), &short)).await;
    assert_eq!(error.expect_err("nobody").code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn every_connection_is_prepared_before_it_is_used() {
    let dialer = TestDialer::new(Carriage::Memory, None);
    let prepared = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&prepared);
    let on_connect: OnConnect = Arc::new(move |connection: CallConnection| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            connection.operations("test/").await?;
            // The first try fails, and the client repeats it over another connection.
            if n == 0 {
                return Err(CallError::internal("the import failed"));
            }
            Ok(())
        })
    });
    let peer = dialer.reconnecting(Some(on_connect));
    soon(peer.call("test/echo", &json!(1)))
        .await
        .expect("served");
    assert_eq!(prepared.load(Ordering::SeqCst), 2);
    dialer.hang_up(CloseCode::Internal);
    soon(peer.call("test/echo", &json!(1)))
        .await
        .expect("served");
    assert_eq!(prepared.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_peer_that_refuses_reconnection_is_not_dialled_again() {
    let dialer = TestDialer::new(Carriage::Memory, None);
    let peer = dialer.reconnecting(None);
    soon(peer.call("test/echo", &json!(1)))
        .await
        .expect("served");
    dialer.hang_up(CloseCode::Policy);
    let ended = async {
        while peer.connection().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon(ended).await;
    let error = soon(peer.call("test/echo", &json!(1)))
        .await
        .expect_err("for good");
    assert_eq!(
        (error.code, error.retryable),
        (ErrorCode::Unavailable, false)
    );
    assert_eq!(dialer.dials.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn subscriptions_go_on_where_they_can_and_end_where_they_cannot() {
    for carriage in CARRIAGES {
        let dialer = TestDialer::new(carriage, Some(identity("peer", &[])));
        let peer = dialer.reconnecting(None);
        let mut events = soon(peer.subscribe("test/resumable", &Value::Null))
            .await
            .expect("started");
        let mut other = soon(peer.subscribe("test/silent", &Value::Null))
            .await
            .expect("started");
        for n in 0..300 {
            let event = soon(events.next()).await.expect("more").expect("an event");
            assert_eq!(*event.output.value(), json!(n));
            if n % 100 == 50 {
                dialer.hang_up(CloseCode::Internal);
            }
        }
        assert_eq!(dialer.dials.load(Ordering::SeqCst), 4);
        let end = soon(other.next()).await.expect("the end");
        assert_eq!(end.expect_err("lost").code, ErrorCode::Unavailable);
        assert!(soon(other.next()).await.is_none());
    }
}
