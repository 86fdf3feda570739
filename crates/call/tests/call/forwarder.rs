//! Operations that pass requests on to a peer which their input names, and the health of peers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alknet_call::limits::PeerTimeouts;
use alknet_call::*;
use alknet_core::{
    AuthToken, Carriage, CloseCode, Identity, IdentityProvider, PeerId, PeerKey, memory_pair,
};
use alknet_test_support::deadline;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::common::*;
use crate::farm::{Farm, attached, farm_of};

/// A worker that reports its name, fails, counts and hangs.
fn worker(id: &'static str) -> CallTestNode {
    let probe: Arc<OperationProbe> = Arc::default();
    let p = Arc::clone(&probe);
    let mut full = OperationSpec::mutation("work/full", "Has no room.");
    full.error_schemas.push(ErrorDef {
        code: "DISK_FULL".to_owned(),
        description: String::new(),
        schema: json!({}),
        http_status: None,
    });
    let count = OperationSpec::subscription("work/count", "Counts.").with_scope("work:count");
    let registry = Registry::builder()
        .with(Registration::new(
            OperationSpec::query("work/name", "Says who it is."),
            HandlerKind::once(move |input, _| async move {
                Ok(json!({ "is": id, "input": input.value() }))
            }),
        ))
        .with(Registration::new(
            OperationSpec::query("work/secret", "For few.").with_scope("work:secret"),
            HandlerKind::once(move |_, _| async move { Ok(json!(id)) }),
        ))
        .with(
            Registration::new(
                full,
                HandlerKind::once(|_, _| async {
                    Err::<Value, _>(CallError::operation("DISK_FULL", "no room"))
                }),
            )
            .open(),
        )
        .with(Registration::new(
            OperationSpec::query("work/hang", "Waits."),
            HandlerKind::once(move |_, _| {
                let guard = ProbeGuard::new(&p);
                async move {
                    guard.0.release.notified().await;
                    Ok(json!(id))
                }
            }),
        ))
        .with(takes(&probe, "work/pay", Idempotence::No))
        .with(takes(&probe, "work/charge", Idempotence::Keyed))
        .with(busy(&probe))
        .with(Registration::new(
            count,
            HandlerKind::stream(move |_, _| {
                futures_util::stream::unfold(0u64, move |n| async move {
                    if n > 0 {
                        std::future::pending::<()>().await;
                    }
                    Some((Ok(json!({ "is": id, "n": n })), n + 1))
                })
            }),
        ));
    let registry = registry.build().expect("every rule is kept");
    CallTestNode::with_dispatcher(Dispatcher::new(registry).with_node(id), probe)
}

/// A mutation that does its work and does not answer.
fn takes(probe: &Arc<OperationProbe>, name: &str, idempotent: Idempotence) -> Registration {
    let probe = Arc::clone(probe);
    let takes = HandlerKind::once(move |_, _| {
        let guard = ProbeGuard::new(&probe);
        async move {
            guard.0.release.notified().await;
            Ok(json!("done"))
        }
    });
    let mut spec = OperationSpec::mutation(name, "Takes its time.");
    spec.idempotent = idempotent;
    Registration::new(spec, takes).open()
}

/// A mutation that does not begin, for want of room.
fn busy(probe: &Arc<OperationProbe>) -> Registration {
    let probe = Arc::clone(probe);
    let busy = HandlerKind::once(move |_, _| {
        let _guard = ProbeGuard::new(&probe);
        async { Err::<Value, _>(CallError::new(ErrorCode::Overloaded, "no room now")) }
    });
    Registration::new(OperationSpec::mutation("work/busy", "Has no room."), busy).open()
}

/// `go:*` for every peer, `go:w2` for one.
fn way(peer: Option<&str>) -> AccessControl {
    let scopes = ["go:everywhere".to_owned()];
    let there = peer.map(|peer| format!("go:{peer}"));
    AccessControl {
        required_scopes_any: Some(scopes.into_iter().chain(there).collect()),
        ..AccessControl::default()
    }
}

fn forwarder(input: &CallBody) -> (CallForwarder, CallBody) {
    let asked = input.value();
    let operation = asked["operation"].as_str().unwrap_or_default();
    let forwarder = match asked["peer"].as_str() {
        Some(peer) => CallForwarder::to(peer, operation, way),
        None => {
            let not = asked["not"].as_str().map(str::to_owned);
            CallForwarder::to_any(
                move |peer| Some(peer.as_str()) != not.as_deref(),
                operation,
                way,
            )
        }
    };
    let input = input
        .member("input")
        .unwrap_or_else(|| CallBody::json(&Value::Null).expect("JSON"));
    (forwarder, input)
}

fn hub(identities: Option<Arc<dyn IdentityProvider>>, patience: PeerTimeouts) -> CallTestNode {
    let call = OperationSpec::mutation("farm/call", "Passes a call on.").with_identity();
    let follow = OperationSpec::subscription("farm/follow", "Passes it on.").with_identity();
    let inner = OperationSpec::query("farm/inner", "Composes what passes on.");
    let mut once = OperationSpec::mutation("farm/once", "Passes a call on once.").with_identity();
    once.idempotent = Idempotence::Keyed;
    let passes_on = HandlerKind::once(|input: CallBody, ctx: Ctx| {
        let (forwarder, input) = forwarder(&input);
        async move { forwarder.call(input, &ctx).await }
    });
    let mut order = OperationSpec::mutation("farm/order", "Charges at any peer.").with_identity();
    order.idempotent = Idempotence::Keyed;
    let charges = HandlerKind::once(|_, ctx: Ctx| async move {
        let options = InvokeOptions {
            idempotency_key: Some("charge".to_owned()),
            ..InvokeOptions::on(PeerRef::Any)
        };
        let env = ctx.env();
        let charged = env.invoke_with("work/charge", &Value::Null, &options).await;
        Ok::<CallOutput, CallError>(charged?.into())
    });
    let authority = CompositionAuthority::new("order", ["*"]);
    let reach = ScopedPeerEnv::new(["work/charge"]);
    let registry = Registry::builder()
        .with(Registration::new(order, charges).composing(authority, reach))
        .with(Registration::new(once, passes_on).passing_errors_on())
        .with(
            Registration::new(
                call,
                HandlerKind::once(|input: CallBody, ctx: Ctx| {
                    let (forwarder, input) = forwarder(&input);
                    async move { forwarder.call(input, &ctx).await }
                }),
            )
            .passing_errors_on(),
        )
        .with(
            Registration::new(
                follow,
                HandlerKind::stream(|input: CallBody, ctx: Ctx| {
                    let (forwarder, input) = forwarder(&input);
                    forwarder.subscribe(input, &ctx)
                }),
            )
            .passing_errors_on(),
        )
        .with(
            Registration::new(
                inner,
                HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
                    let answer = ctx.env().invoke("farm/call", input.value()).await?;
                    Ok(CallOutput::from(answer))
                }),
            )
            .composing(
                CompositionAuthority::new("inner", ["*"]),
                ScopedPeerEnv::new(["farm/call"]),
            ),
        )
        .build()
        .expect("every rule is kept");
    let mut dispatcher = Dispatcher::new(registry)
        .with_imports(ImportOptions::default())
        .with_patience(patience);
    if let Some(identities) = identities {
        dispatcher = dispatcher.with_identities(identities);
    }
    CallTestNode::with_dispatcher(dispatcher, Arc::default())
}

pub(crate) async fn farm(carriage: Carriage) -> Farm {
    farm_of(hub(None, PeerTimeouts::default()), worker, carriage).await
}

async fn call(client: &CallConnection, input: Value) -> Result<Value, String> {
    let answer = soon(client.call("farm/call", &input)).await;
    answer
        .map(|body| body.value().clone())
        .map_err(|error| error.code.name().to_owned())
}

fn refused(code: &str) -> Result<Value, String> {
    Err(code.to_owned())
}

#[tokio::test]
async fn the_way_is_checked_before_a_peer_is_looked_for() {
    for carriage in CARRIAGES {
        let farm = farm(carriage).await;
        let ask = async |scopes: &[&str], peer: &str, operation: &str| {
            let client = farm.hub.client(carriage, Some(identity("user", scopes)));
            let input = json!({ "peer": peer, "operation": operation, "input": [12345678901234567890u64, {"a": 1}] });
            call(&client, input).await
        };
        let answer = ask(&["go:w2"], "w2", "work/name").await.expect("an answer");
        assert_eq!(answer["is"], "w2");
        assert_eq!(answer["input"], json!([12345678901234567890u64, {"a": 1}]));
        for (scopes, peer, operation, code) in [
            (&["go:w1"][..], "w2", "work/name", "FORBIDDEN"),
            (&[][..], "w9", "work/name", "FORBIDDEN"),
            (&["go:everywhere"][..], "w9", "work/name", "NOT_FOUND"),
            (&["go:everywhere"][..], "*", "work/name", "NOT_FOUND"),
            (&["go:w2"][..], "w2", "work/none", "NOT_FOUND"),
            (&["go:w2"][..], "w2", "services/list", "NOT_FOUND"),
            // The peer's operation has its own rule, which the caller has to satisfy here.
            (&["go:w2"][..], "w2", "work/secret", "FORBIDDEN"),
            (&["work:secret"][..], "w2", "work/secret", "FORBIDDEN"),
            (
                &["go:w2", "work:count"][..],
                "w2",
                "work/count",
                "INVALID_OPERATION_TYPE",
            ),
            // Its own errors pass through, though the hub's operation declares none.
            (&["go:w2"][..], "w2", "work/full", "DISK_FULL"),
        ] {
            let answer = ask(scopes, peer, operation).await;
            assert_eq!(answer, refused(code), "{scopes:?} {operation} on {peer}");
        }
        let both = ask(&["go:w2", "work:secret"], "w2", "work/secret").await;
        assert_eq!(both, Ok(json!("w2")));
        let long = "x/".to_owned() + &"y".repeat(4000);
        assert_eq!(ask(&["go:w2"], "w2", &long).await, refused("NOT_FOUND"));
        let unknown_peer = farm.hub.client(carriage, None);
        let input = json!({ "peer": "w2", "operation": "work/name" });
        assert_eq!(call(&unknown_peer, input).await, refused("UNAUTHENTICATED"));
    }
}

#[tokio::test]
async fn a_silent_peer_and_an_unknown_peer_give_different_errors() {
    let farm = farm(Carriage::Memory).await;
    let who = identity("user", &["go:everywhere"]);
    let client = farm.hub.client(Carriage::Memory, Some(who));
    for (peer, operation, reason) in [
        ("w9", "work/name", "unknown_peer"),
        ("w2", "work/none", "unknown_operation"),
    ] {
        let input = json!({ "peer": peer, "operation": operation });
        let answer = soon(client.call("farm/call", &input)).await;
        let error = answer.expect_err("it is not there");
        assert_eq!(error.code, ErrorCode::NotFound, "{peer}: {error}");
        let details = error.details.expect("a reason");
        assert_eq!(details["reason"], reason, "{peer}");
    }
}

#[tokio::test]
async fn any_is_the_least_busy_of_those_that_suit_and_may_be_reached() {
    let farm = farm(Carriage::Memory).await;
    let client = |scopes: &[&str]| {
        farm.hub
            .client(Carriage::Memory, Some(identity("user", scopes)))
    };
    let everywhere = client(&["go:everywhere"]);
    let name = json!({ "operation": "work/name" });
    // The peers take turns while none of them has a call in flight.
    let mut turns = Vec::new();
    for _ in 0..6 {
        turns.push(call(&everywhere, name.clone()).await.expect("an answer")["is"].clone());
    }
    turns.sort_by_key(Value::to_string);
    assert_eq!(json!(turns), json!(["w1", "w1", "w2", "w2", "w3", "w3"]));
    let busy: Vec<_> = ["w1", "w3"]
        .map(|name| {
            let user = everywhere.clone();
            let input = json!({ "peer": name, "operation": "work/hang" });
            tokio::spawn(async move { user.call("farm/call", &input).await })
        })
        .into();
    farm.workers[0].probe.wait(|p| &p.started, 1).await;
    farm.workers[2].probe.wait(|p| &p.started, 1).await;
    for _ in 0..3 {
        let answer = call(&everywhere, name.clone()).await.expect("an answer");
        assert_eq!(answer["is"], "w2");
    }
    // The suitable peers come first, however busy they are.
    let not = json!({ "operation": "work/name", "not": "w2" });
    let answer = call(&everywhere, not.clone()).await.expect("an answer");
    assert_ne!(answer["is"], "w2");
    // A user that may go to one peer only is routed there, and learns nothing of the others.
    let one = client(&["go:w1"]);
    assert_eq!(
        call(&one, name.clone()).await.expect("an answer")["is"],
        "w1"
    );
    let none = json!({ "operation": "work/none" });
    assert_eq!(call(&one, none.clone()).await, refused("FORBIDDEN"));
    assert_eq!(call(&everywhere, none).await, refused("NOT_FOUND"));
    assert_eq!(call(&client(&[]), name).await, refused("FORBIDDEN"));
    let other = client(&["go:w2"]);
    assert_eq!(call(&other, not).await, refused("FORBIDDEN"));
    busy.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_query_of_any_peer_survives_the_loss_of_its_peer() {
    for carriage in CARRIAGES {
        let farm = farm(carriage).await;
        let user = farm
            .hub
            .client(carriage, Some(identity("user", &["go:everywhere"])));
        let hang = |input: Value| {
            let user = user.clone();
            tokio::spawn(async move { user.call("farm/call", &input).await })
        };
        let named = hang(json!({ "peer": "w1", "operation": "work/hang" }));
        farm.workers[0].probe.wait(|p| &p.started, 1).await;
        farm.links[1].close(CloseCode::Normal, "");
        attached(&farm.hub, &["w1", "w3"]).await;
        // The other peer is idle, so the call chooses it; then that peer goes.
        let any = hang(json!({ "operation": "work/hang" }));
        farm.workers[2].probe.wait(|p| &p.started, 1).await;
        farm.links[2].close(CloseCode::Normal, "");
        farm.workers[0].probe.wait(|p| &p.started, 2).await;
        farm.links[0].close(CloseCode::Normal, "");
        for lost in [named, any] {
            let outcome = soon(lost).await.expect("no panic");
            assert_eq!(outcome.expect_err("lost").code, ErrorCode::Unavailable);
        }
    }
}

/// The input holds this while a part of it lives.
#[derive(Debug)]
struct InputGuard;

impl InputMemory for InputGuard {
    fn take(&self, _: usize) -> Result<(), CallError> {
        Ok(())
    }

    fn give_back(&self, _: usize) {}
}

/// A requester may be in league with a peer that reads forwarded requests and answers none.
#[tokio::test]
async fn an_input_that_was_passed_on_is_not_kept_until_the_answer_comes() {
    let farm = farm(Carriage::Memory).await;
    let (connection, _other) = memory_pair(ALPN);
    let gate = LocalCaller::new(&farm.hub.dispatcher, &connection, None);
    let kept = Arc::new(InputGuard);
    let asks = |operation: &'static str, input: Value| LocalRequest {
        input: Some(input.to_string().into()),
        memory: Some(Arc::clone(&kept) as Arc<dyn InputMemory>),
        identity: Some(identity("user", &["go:everywhere", "work:count"])),
        ..LocalRequest::new("1", operation)
    };
    let until_alone = async || {
        let alone = async {
            while Arc::strong_count(&kept) > 1 {
                tokio::task::yield_now().await;
            }
        };
        soon(alone).await;
    };
    let hang = json!({ "peer": "w1", "operation": "work/hang", "input": "long" });
    let incoming = asks("farm/call", hang);
    let asking = gate.clone();
    let call = tokio::spawn(async move { asking.call(incoming).await.is_ok() });
    let probe = &farm.workers[0].probe;
    probe.wait(|p| &p.started, 1).await;
    until_alone().await;
    assert!(!call.is_finished());
    probe.release.notify_one();
    assert!(soon(call).await.expect("no panic"));

    let count = json!({ "peer": "w1", "operation": "work/count", "input": "long" });
    let events = gate.subscribe(asks("farm/follow", count));
    let mut events = events.expect("it begins");
    assert!(soon(events.next()).await.is_some_and(|event| event.is_ok()));
    until_alone().await;
}

#[tokio::test]
async fn composing_a_forwarder_lends_no_right() {
    let farm = farm(Carriage::Memory).await;
    let user = farm
        .hub
        .client(Carriage::Memory, Some(identity("u", &["*"])));
    let input = json!({ "peer": "w1", "operation": "work/name" });
    let refused = soon(user.call("farm/inner", &input)).await;
    assert_eq!(
        refused.expect_err("by whose right?").code,
        ErrorCode::Forbidden
    );
}

/// Knows one token, whose scopes change.
struct ScopeChangeIdentities(watch::Sender<u64>, std::sync::Mutex<Vec<&'static str>>);

impl IdentityProvider for ScopeChangeIdentities {
    fn by_key(&self, _: &PeerKey) -> Option<Arc<Identity>> {
        None
    }

    fn by_token(&self, _: &AuthToken) -> Option<Arc<Identity>> {
        Some(identity("user", &self.1.lock().expect("no panics")))
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

#[tokio::test]
async fn a_subscription_that_was_passed_on_ends_with_the_right_to_it() {
    // Without the way, or without the right to the operation there.
    for left in [["work:count"], ["go:w1"]] {
        let both = vec!["go:w1", "work:count"];
        let changing = Arc::new(ScopeChangeIdentities(watch::Sender::new(0), both.into()));
        let hub = hub(Some(Arc::clone(&changing) as _), PeerTimeouts::default());
        let worker = worker("w1");
        let _link = worker.join(&hub, Carriage::Memory, identity("w1", &[]));
        attached(&hub, &["w1"]).await;
        let user = hub.client(Carriage::Memory, None);
        let options = CallOptions {
            timeout: None,
            auth_token: Some("any".to_owned()),
            ..CallOptions::default()
        };
        for input in [
            json!({ "peer": "w1", "operation": "work/count" }),
            json!({ "operation": "work/count" }),
        ] {
            *changing.1.lock().expect("no panics") = vec!["go:w1", "work:count"];
            let events = user.subscribe_with("farm/follow", &input, &options).await;
            let mut events = events.expect("started");
            let first = soon(events.next()).await.expect("an event");
            assert_eq!(first.expect("no error").output.value()["is"], "w1");
            *changing.1.lock().expect("no panics") = left.to_vec();
            changing.0.send_modify(|n| *n += 1);
            let end = soon(events.next()).await.expect("its end");
            assert_eq!(end.expect_err("withdrawn").code, ErrorCode::Forbidden);
            assert!(soon(events.next()).await.is_none());
        }
        let refused = json!({ "peer": "w1", "operation": "work/name" });
        let events = user.subscribe_with("farm/follow", &refused, &options).await;
        let end = soon(events.expect("started").next())
            .await
            .expect("its end");
        assert!(end.is_err());
    }
}

/// A mutation that passes on a query gives its caller the answer by the rights at the time of the answer.
#[tokio::test]
async fn a_forwarded_answer_is_given_by_the_rights_at_its_time() {
    let identities = SilentIdentities::new(&["go:w1"]);
    let hub = hub(Some(Arc::clone(&identities) as _), PeerTimeouts::default());
    let worker = worker("w1");
    let _link = worker.join(&hub, Carriage::Memory, identity("w1", &[]));
    attached(&hub, &["w1"]).await;
    let user = hub.client(Carriage::Memory, None);
    let options = CallOptions {
        auth_token: Some("any".to_owned()),
        ..CallOptions::default()
    };
    let input = json!({ "peer": "w1", "operation": "work/hang" });
    for (n, scopes, told) in [(1, &["go:w1", "other"][..], true), (2, &["other"], false)] {
        identities.set(Some(&["go:w1"]));
        let call = tokio::spawn({
            let (user, input, options) = (user.clone(), input.clone(), options.clone());
            async move { user.call_with("farm/call", &input, &options).await }
        });
        worker.probe.wait(|p| &p.started, n).await;
        identities.set(Some(scopes));
        worker.probe.release.notify_one();
        let answer = soon(call).await.expect("no panic");
        let code = answer.err().map(|refused| refused.code);
        assert_eq!(code, (!told).then_some(ErrorCode::Forbidden), "{scopes:?}");
    }
}

/// Waits until a peer is in this state.
async fn in_state(hub: &CallTestNode, peer: &str, state: Option<PeerState>) {
    let peer: PeerId = peer.parse().expect("a peer id");
    let wait = async {
        // No event announces it: the test polls.
        while hub.dispatcher.peer_states().get(&peer).copied() != state {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(wait).await;
}

#[tokio::test]
async fn a_peer_that_does_not_answer_is_not_chosen_until_it_does() {
    static SILENT: AtomicBool = AtomicBool::new(false);
    // A peer that answers must not count as silent.
    let moment = deadline(Duration::from_millis(40));
    let patience = PeerTimeouts {
        sign_of_life: moment,
        sign_of_life_every: moment,
        ..PeerTimeouts::default()
    };
    let hub = hub(None, patience);
    let (dialled, _) = hub.serve(Carriage::Memory, Some(identity("w1", &[])));
    let answer = |operation: &str, input: &Value| match operation {
        "/services/list" if SILENT.load(Ordering::SeqCst) => Value::Null,
        "/services/list" => listing(&["work/name"]),
        "/services/schema" => {
            let names = input["names"].as_array().cloned().unwrap_or_default();
            let spec = |name: &Value| OperationSpec::query(name.as_str().unwrap_or_default(), "");
            json!({ "specs": names.iter().map(spec).collect::<Vec<_>>() })
        }
        _ => json!({ "is": "w1" }),
    };
    answer_by_hand(dialled.clone(), answer, watch::channel(Value::Null).0);
    in_state(&hub, "w1", Some(PeerState::Ready)).await;
    let who = identity("user", &["go:everywhere"]);
    let user = hub.client(Carriage::Memory, Some(who));
    // A user that only calls serves nothing, and the hub waits for no sign of life from it.
    in_state(&hub, "user", Some(PeerState::Identified)).await;
    let (any, named) = (
        json!({ "operation": "work/name" }),
        json!({ "peer": "w1", "operation": "work/name" }),
    );
    assert!(call(&user, any.clone()).await.is_ok());

    SILENT.store(true, Ordering::SeqCst);
    in_state(&hub, "w1", Some(PeerState::Degraded)).await;
    assert_eq!(call(&user, any.clone()).await, refused("UNAVAILABLE"));
    assert!(call(&user, named.clone()).await.is_ok());
    SILENT.store(false, Ordering::SeqCst);
    in_state(&hub, "w1", Some(PeerState::Ready)).await;
    assert!(call(&user, any).await.is_ok());

    dialled.close(CloseCode::Normal, "");
    in_state(&hub, "w1", None).await;
    assert_eq!(call(&user, named).await, refused("NOT_FOUND"));
}

#[tokio::test]
async fn a_worker_that_says_goodbye_drains() {
    for carriage in CARRIAGES {
        let farm = farm(carriage).await;
        let who = identity("user", &["go:everywhere"]);
        let user = farm.hub.client(carriage, Some(who));
        let running = {
            let user = user.clone();
            let input = json!({ "peer": "w1", "operation": "work/hang" });
            tokio::spawn(async move { user.call("farm/call", &input).await })
        };
        farm.workers[0].probe.wait(|p| &p.started, 1).await;
        let leaving = Arc::clone(&farm.workers[0].dispatcher);
        let drained = tokio::spawn(async move { leaving.drain().await });
        in_state(&farm.hub, "w1", Some(PeerState::Draining)).await;
        for _ in 0..3 {
            let answer = call(&user, json!({ "operation": "work/name" })).await;
            assert_ne!(answer.expect("another")["is"], "w1");
        }
        // The running call there finishes, and then the connection ends.
        farm.workers[0].probe.release.notify_one();
        let answer = soon(running).await.expect("no panic").expect("it finishes");
        assert_eq!(*answer.value(), json!("w1"));
        soon(drained).await.expect("no panic");
        in_state(&farm.hub, "w1", None).await;
        attached(&farm.hub, &["w2", "w3"]).await;
    }
}
