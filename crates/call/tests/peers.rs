//! A hub and its workers: importing, routing, forwarding, loss.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_call::*;
use alknet_core::{Carriage, CloseCode, CloseReason, PeerId};
use common::*;
use serde_json::{Value, json};

fn peer(id: &str) -> PeerId {
    id.parse().expect("a peer id")
}

fn query(name: &str) -> OperationSpec {
    OperationSpec::query(name, "For tests.")
}

/// A worker that says its name, tells for whom, counts and hangs.
fn worker(id: &'static str) -> Node {
    let probe: Arc<Probe> = Arc::default();
    let (p, q) = (Arc::clone(&probe), Arc::clone(&probe));
    let exec = OperationSpec::mutation("container/exec", "Runs.").with_scope("container:exec");
    let builder = Registry::builder()
        .with(Registration::new(
            exec,
            HandlerKind::once(move |input, ctx: Ctx| async move {
                Ok(json!({
                    "worker": id,
                    "input": input.value(),
                    "by": ctx.identity().map(|who| who.id.to_string()),
                    "for": ctx.forwarded_for(),
                    "limited": ctx.deadline().is_some(),
                }))
            }),
        ))
        .with(Registration::new(
            query("node/info"),
            HandlerKind::once(move |_, _| async move { Ok(json!(id)) }),
        ))
        .with(Registration::new(
            query("work/hang"),
            HandlerKind::once(move |_, _| {
                let guard = Guard::new(&p);
                async move {
                    guard.0.release.notified().await;
                    Ok(json!(id))
                }
            }),
        ))
        .with(Registration::new(
            OperationSpec::subscription("work/count", "Counts."),
            HandlerKind::stream(move |input: Body, _| {
                let guard = Guard::new(&q);
                let most = input.parse::<u64>().unwrap_or(0);
                futures_util::stream::unfold((0, guard), move |(n, guard)| async move {
                    (n < most).then(|| (Ok(json!(n)), (n + 1, guard)))
                })
            }),
        ));
    let registry = builder.build().expect("every rule is kept");
    Node::of(Dispatcher::new(registry).with_node(id), probe)
}

/// An operation of the hub that composes `operation` on the peer its input says.
fn composes(
    name: &str,
    operation: &'static str,
    options: fn(&Value) -> InvokeOptions,
) -> Registration {
    let run = move |input: Body, ctx: Ctx| async move {
        let options = options(input.value());
        let answer = ctx
            .env()
            .invoke_with(operation, input.value(), &options)
            .await?;
        Ok(Output::from(answer))
    };
    let authority = CompositionAuthority::new("hub", ["container:exec"]);
    Registration::new(query(name), HandlerKind::once(run)).composing(
        authority,
        ScopedPeerEnv::new(["container/*", "work/*", "node/*", "browser/*"]),
    )
}

fn on(input: &Value) -> InvokeOptions {
    let to = input["to"].as_str().unwrap_or_default();
    InvokeOptions::on(match to {
        "" => PeerRef::Any,
        "turn" => PeerRef::Policy(RoutingPolicy::RoundRobin),
        "least" => PeerRef::Policy(RoutingPolicy::LeastInFlight),
        id => PeerRef::Specific(peer(id)),
    })
}

fn hub() -> Node {
    let registry = Registry::builder()
        .with(composes("farm/exec", "container/exec", on))
        .with(composes("farm/hang", "work/hang", on))
        .with(composes("farm/count", "work/count", on))
        .with(composes("farm/info", "node/info", |_| {
            InvokeOptions::default()
        }))
        .with(composes("farm/keyed", "node/info", |input| {
            let key = input["key"].as_str().unwrap_or_default().into();
            InvokeOptions::on(PeerRef::Policy(RoutingPolicy::Affinity(key)))
        }))
        .with(
            ReExport::new(OperationType::Mutation, "container/exec", PeerRef::Any)
                .named("shared/exec")
                .with_scope("shared:exec")
                .into(),
        )
        .with(
            ReExport::new(
                OperationType::Subscription,
                "work/count",
                PeerRef::Specific(peer("w2")),
            )
            .named("shared/count")
            .into(),
        )
        .build()
        .expect("every rule is kept");
    let dispatcher = Dispatcher::new(registry)
        .with_imports(ImportOptions::default())
        .with_routing();
    Node::of(dispatcher, Arc::default())
}

/// Waits until exactly these peers are attached, in this order.
async fn attached(node: &Node, ids: &[&str]) {
    let mut changes = node.dispatcher.peers().changes();
    let wait = async {
        loop {
            changes.borrow_and_update();
            let now = node.dispatcher.peers().ids();
            if now.iter().map(PeerId::as_str).eq(ids.iter().copied()) {
                return;
            }
            changes.changed().await.expect("the node lives");
        }
    };
    soon(wait).await;
}

struct Farm {
    hub: Node,
    workers: Vec<Node>,
    links: Vec<CallConnection>,
}

/// A hub and three workers that dialled it.
async fn farm(carriage: Carriage) -> Farm {
    let hub = hub();
    let mut farm = Farm {
        hub,
        workers: Vec::new(),
        links: Vec::new(),
    };
    let names = ["w1", "w2", "w3"];
    for (n, name) in names.into_iter().enumerate() {
        let worker = worker(name);
        farm.links
            .push(worker.join(&farm.hub, carriage, identity(name, &[])));
        farm.workers.push(worker);
        attached(&farm.hub, &names[..=n]).await;
    }
    farm
}

async fn ask(client: &CallConnection, operation: &str, input: Value) -> Value {
    let answer = soon(client.call(operation, &input)).await;
    answer.expect(operation).value().clone()
}

async fn code(client: &CallConnection, operation: &str, input: Value) -> String {
    let error = soon(client.call(operation, &input)).await;
    error.expect_err(operation).code.name().to_owned()
}

#[tokio::test]
async fn one_peer_any_peer_and_peers_in_turn() {
    for carriage in CARRIAGES {
        let farm = farm(carriage).await;
        let user = farm.hub.client(carriage, Some(identity("user", &[])));
        for name in ["w1", "w2", "w3"] {
            let answer = ask(&user, "farm/exec", json!({"to": name})).await;
            assert_eq!(answer["worker"], name);
            assert_eq!(answer["by"], "hub");
            assert_eq!(answer["for"], json!({"id": "user"}));
            assert_eq!(answer["limited"], true);
        }
        assert_eq!(
            code(&user, "farm/exec", json!({"to": "w9"})).await,
            "NOT_FOUND"
        );
        assert_eq!(ask(&user, "farm/exec", json!({})).await["worker"], "w1");
        let mut turns = Vec::new();
        for _ in 0..6 {
            turns.push(ask(&user, "farm/exec", json!({"to": "turn"})).await["worker"].clone());
        }
        assert_eq!(turns[..3], turns[3..]);
        turns.sort_by_key(Value::to_string);
        assert_eq!(json!(turns), json!(["w1", "w1", "w2", "w2", "w3", "w3"]));
        let input = json!({"to": "w1"});
        assert_eq!(
            code(&user, "farm/count", input).await,
            "INVALID_OPERATION_TYPE"
        );
    }
}

#[tokio::test]
async fn keys_stay_with_their_peer_when_another_leaves() {
    let farm = farm(Carriage::Memory).await;
    let user = farm.hub.client(Carriage::Memory, None);
    let places = |user: CallConnection| async move {
        let mut places = Vec::new();
        for key in 0..24 {
            let input = json!({"key": key.to_string()});
            places.push(ask(&user, "farm/keyed", input).await);
        }
        places
    };
    let before = places(user.clone()).await;
    assert_eq!(before, places(user.clone()).await);
    farm.links[1].close(CloseCode::Normal, "");
    attached(&farm.hub, &["w1", "w3"]).await;
    let after = places(user).await;
    for (before, after) in before.iter().zip(&after) {
        assert!(
            before == after || before == "w2",
            "{before} moved to {after}"
        );
        assert_ne!(after, "w2");
    }
}

#[tokio::test]
async fn the_least_busy_peer_is_chosen() {
    let farm = farm(Carriage::Memory).await;
    let user = farm.hub.client(Carriage::Memory, None);
    let busy: Vec<_> = ["w1", "w3"]
        .map(|name| {
            let user = user.clone();
            tokio::spawn(async move { user.call("farm/hang", &json!({"to": name})).await })
        })
        .into();
    farm.workers[0].probe.wait(|p| &p.started, 1).await;
    farm.workers[2].probe.wait(|p| &p.started, 1).await;
    for _ in 0..3 {
        let answer = ask(&user, "farm/exec", json!({"to": "least"})).await;
        assert_eq!(answer["worker"], "w2");
    }
    busy.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn the_loss_of_a_peer_is_survived() {
    for carriage in CARRIAGES {
        let farm = farm(carriage).await;
        let user = farm.hub.client(carriage, None);
        let hang = |to: &str| {
            let (user, input) = (user.clone(), json!({"to": to}));
            tokio::spawn(async move { user.call("farm/hang", &input).await })
        };
        let (named, any) = (hang("w1"), hang(""));
        farm.workers[0].probe.wait(|p| &p.started, 2).await;
        farm.links[0].close(CloseCode::Normal, "");
        attached(&farm.hub, &["w2", "w3"]).await;
        // Whoever named the peer learns of its loss; a query of any peer is asked of the next.
        let lost = soon(named)
            .await
            .expect("no panic")
            .expect_err("it is gone");
        assert_eq!((lost.code, lost.retryable), (ErrorCode::Unavailable, true));
        farm.workers[1].probe.wait(|p| &p.started, 1).await;
        farm.workers[1].probe.release.notify_one();
        let answer = soon(any).await.expect("no panic").expect("asked again");
        assert_eq!(*answer.value(), "w2");
        // From now on the second is the first.
        assert_eq!(ask(&user, "farm/exec", json!({})).await["worker"], "w2");
        assert_eq!(
            code(&user, "farm/exec", json!({"to": "w1"})).await,
            "NOT_FOUND"
        );
    }
}

#[tokio::test]
async fn a_peer_never_takes_the_place_of_an_operation_of_the_node() {
    let own = Registration::new(
        query("node/info"),
        HandlerKind::once(|_, _| async { Ok(json!("the hub's own")) }),
    );
    let registry = Registry::builder()
        .with(own)
        .with(composes("farm/info", "node/info", |_| {
            InvokeOptions::default()
        }))
        .with(composes("farm/any", "node/info", on))
        .build()
        .expect("valid");
    let dispatcher = Dispatcher::new(registry).with_imports(ImportOptions::default());
    let hub = Node::of(dispatcher, Arc::default());
    let worker = worker("w1");
    let _link = worker.join(&hub, Carriage::Memory, identity("w1", &[]));
    attached(&hub, &["w1"]).await;
    let user = hub.client(Carriage::Memory, None);
    assert_eq!(ask(&user, "node/info", json!(null)).await, "the hub's own");
    assert_eq!(ask(&user, "farm/info", json!(null)).await, "the hub's own");
    assert_eq!(ask(&user, "farm/any", json!({})).await, "w1");
    // What only the peer has is no operation of the hub.
    assert_eq!(code(&user, "work/hang", json!(null)).await, "NOT_FOUND");
    let names: Vec<_> = soon(user.operations(""))
        .await
        .expect("a listing")
        .into_iter()
        .map(|operation| operation.name)
        .collect();
    assert!(
        !names.iter().any(|name| name.starts_with("work/")),
        "{names:?}"
    );
}

#[tokio::test]
async fn peers_are_listed_for_those_who_may_and_as_far_as_they_may() {
    let farm = farm(Carriage::Memory).await;
    let client = |scopes: &[&str]| {
        farm.hub
            .client(Carriage::Memory, Some(identity("user", scopes)))
    };
    let names = |listed: &Value| -> Vec<String> {
        let operations = listed["operations"].as_array().expect("a list");
        let name = |o: &Value| o["name"].as_str().expect("a name").to_owned();
        operations.iter().map(name).collect()
    };
    assert_eq!(
        code(&client(&[]), "services/list-peers", json!(null)).await,
        "FORBIDDEN"
    );
    let some = ask(&client(&["peer:list"]), "services/list-peers", json!(null)).await;
    let some = some["peers"].as_array().expect("a list").clone();
    let ids: Vec<_> = some.iter().map(|peer| peer["peer"].clone()).collect();
    assert_eq!(json!(ids), json!(["w1", "w2", "w3"]));
    assert_eq!(some[0]["online"], true);
    assert_eq!(names(&some[0]), ["node/info", "work/count", "work/hang"]);
    let more = client(&["peer:list", "container:exec"]);
    let one = ask(&more, "services/list-peers", json!({"peer": "w2"})).await;
    assert_eq!(one["peers"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        names(&one["peers"][0]),
        ["container/exec", "node/info", "work/count", "work/hang"]
    );
}

/// A request by hand, for members that the client does not send.
async fn raw(farm: &Farm, who: &[&str], payload: Value) -> (EventKind, Value) {
    let (dialled, _) = farm
        .hub
        .serve(Carriage::Memory, Some(identity("user", who)));
    let mut peer = RawPeer::new(dialled).await;
    peer.send(EventKind::Requested, "1", payload).await;
    loop {
        // The hub asks what we serve meanwhile.
        let (kind, id, payload) = peer.event().await;
        if id == "1" {
            return (kind, payload);
        }
    }
}

#[tokio::test]
async fn a_request_may_name_the_peer_it_goes_to() {
    let farm = farm(Carriage::Memory).await;
    let request =
        |operation: &str, peer: &str| json!({"operationId": operation, "input": 7, "peer": peer});
    let may = ["peer:route:w2", "container:exec"];
    let (kind, answer) = raw(&farm, &may, request("/container/exec", "w2")).await;
    assert_eq!(kind, EventKind::Responded, "{answer}");
    assert_eq!(answer["output"]["worker"], "w2");
    assert_eq!(answer["output"]["input"], 7);
    assert_eq!(answer["output"]["for"], json!({"id": "user"}));
    let user = farm
        .hub
        .client(Carriage::Memory, Some(identity("user", &may)));
    let options = CallOptions {
        peer: Some("w2".to_owned()),
        ..CallOptions::default()
    };
    let answer = soon(user.call_with("container/exec", &json!(8), &options)).await;
    assert_eq!(answer.expect("routed").value()["input"], 8);
    let cases: [(&[&str], &str, &str, &str); 8] = [
        (&["peer:route:w2"], "container/exec", "w2", "FORBIDDEN"),
        (&["container:exec"], "container/exec", "w2", "FORBIDDEN"),
        (
            &["container:exec", "peer:route:w1"],
            "container/exec",
            "w2",
            "FORBIDDEN",
        ),
        // Whoever may not route learns nothing of who is there.
        (&["container:exec"], "container/exec", "w9", "FORBIDDEN"),
        (&["peer:route:*"], "container/exec", "w9", "NOT_FOUND"),
        (&["peer:route:*"], "container/exec", "*", "NOT_FOUND"),
        (&["peer:route:w2"], "work/nothing", "w2", "NOT_FOUND"),
        (&["peer:route:w2"], "services/list", "w2", "NOT_FOUND"),
    ];
    for (who, operation, peer, code) in cases {
        let (kind, answer) = raw(&farm, who, request(operation, peer)).await;
        assert_eq!(kind, EventKind::Error, "{operation} on {peer}: {answer}");
        assert_eq!(answer["code"], code, "{who:?} {operation} on {peer}");
    }
}

#[tokio::test]
async fn a_forwarded_mutation_whose_answer_is_lost_runs_once() {
    for carriage in CARRIAGES {
        let (hub, worker) = (hub(), Node::new());
        let link = worker.join(&hub, carriage, identity("w1", &[]));
        attached(&hub, &["w1"]).await;
        let charge = |name: &'static str, input: Value| {
            let who = Some(identity(name, &["peer:route:w1"]));
            let user = hub.client(carriage, who);
            let options = CallOptions {
                peer: Some("w1".to_owned()),
                idempotency_key: Some("k".to_owned()),
                ..CallOptions::default()
            };
            tokio::spawn(async move { user.call_with("test/charge", &input, &options).await })
        };
        let first = charge("user", json!({ "wait": true }));
        worker.probe.wait(|p| &p.started, 1).await;
        link.close(CloseCode::Internal, "lost");
        let lost = soon(first).await.expect("no panic");
        assert_eq!(lost.expect_err("lost").code, ErrorCode::Unavailable);
        attached(&hub, &[]).await;
        worker.probe.release.notify_one();
        let _link = worker.join(&hub, carriage, identity("w1", &[]));
        attached(&hub, &["w1"]).await;
        let again = charge("user", json!({ "wait": true }));
        let answer = soon(again).await.expect("no panic").expect("an answer");
        assert_eq!(*answer.value(), json!(1), "the first run answers");
        // The peer hears both from the hub, and takes them for two all the same.
        let other = charge("other", json!({}));
        let answer = soon(other).await.expect("no panic").expect("an answer");
        assert_eq!(*answer.value(), json!(2));
    }
}

#[tokio::test]
async fn nobody_routes_through_a_node_that_is_no_hub() {
    let node = Node::new();
    let (dialled, _) = node.serve(Carriage::Memory, Some(identity("user", &["*"])));
    let mut peer = RawPeer::new(dialled).await;
    let payload = json!({"operationId": "test/echo", "peer": "test-node"});
    peer.send(EventKind::Requested, "1", payload).await;
    assert_eq!(peer.event().await.2["code"], "NOT_FOUND");
}

#[tokio::test]
async fn what_was_forwarded_is_not_forwarded_again() {
    let farm = farm(Carriage::Memory).await;
    let payload = json!({
        "operationId": "/container/exec", "peer": "w1", "forwarded_for": {"id": "end-user"},
    });
    let mut may = vec!["peer:route:*", "container:exec"];
    // The claim of somebody who may not make one is dropped; the request is the caller's own.
    let (_, answer) = raw(&farm, &may, payload.clone()).await;
    assert_eq!(answer["output"]["for"], json!({"id": "user"}));
    may.push("forward:identity");
    let (kind, answer) = raw(&farm, &may, payload.clone()).await;
    assert_eq!(
        (kind, &answer["code"]),
        (EventKind::Error, &json!("FORBIDDEN"))
    );
    may.push("hub:transit");
    let (_, answer) = raw(&farm, &may, payload).await;
    assert_eq!(answer["output"]["for"], json!({"id": "end-user"}));
}

#[tokio::test]
async fn re_exports_have_their_own_rule() {
    let farm = farm(Carriage::Memory).await;
    let user = |scopes: &[&str]| {
        farm.hub
            .client(Carriage::Memory, Some(identity("user", scopes)))
    };
    // The peer's rule is about the hub, the hub's about the caller.
    assert_eq!(
        code(&user(&["container:exec"]), "shared/exec", json!(1)).await,
        "FORBIDDEN"
    );
    let sharer = user(&["shared:exec"]);
    assert_eq!(ask(&sharer, "shared/exec", json!(1)).await["worker"], "w1");
    let names: Vec<_> = soon(sharer.operations("shared")).await.expect("a listing");
    assert_eq!(names.len(), 2);
    let mut events = soon(sharer.subscribe("shared/count", &json!(3)))
        .await
        .expect("started");
    for n in 0..3 {
        let event = soon(events.next())
            .await
            .expect("an event")
            .expect("no error");
        assert_eq!(*event.output.value(), json!(n));
    }
    assert!(soon(events.next()).await.is_none());
    farm.workers[1].probe.wait(|p| &p.dropped, 1).await;
    farm.links[1].close(CloseCode::Normal, "");
    attached(&farm.hub, &["w1", "w3"]).await;
    let mut events = soon(sharer.subscribe("shared/count", &json!(3)))
        .await
        .expect("started");
    let error = soon(events.next())
        .await
        .expect("an event")
        .expect_err("no such peer");
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn an_abort_reaches_a_grandchild_on_a_third_node() {
    for carriage in CARRIAGES {
        let farm = farm(carriage).await;
        let user = farm.hub.client(carriage, None);
        for by_abort in [true, false] {
            let probe = &farm.workers[2].probe;
            let before = probe.dropped.load(Ordering::SeqCst);
            let caller = user.clone();
            let call =
                tokio::spawn(async move { caller.call("farm/hang", &json!({"to": "w3"})).await });
            probe.wait(|p| &p.started, before + 1).await;
            if by_abort {
                call.abort();
            } else {
                user.close(CloseCode::Normal, "");
            }
            probe.wait(|p| &p.dropped, before + 1).await;
        }
    }
}

#[tokio::test]
async fn the_newest_connection_of_a_peer_takes_over() {
    for carriage in CARRIAGES {
        let farm = farm(carriage).await;
        let user = farm.hub.client(carriage, None);
        let caller = user.clone();
        let running =
            tokio::spawn(async move { caller.call("farm/hang", &json!({"to": "w1"})).await });
        farm.workers[0].probe.wait(|p| &p.started, 1).await;
        let mut changes = farm.hub.dispatcher.peers().changes();
        changes.borrow_and_update();
        let again = worker("w1");
        let newer = again.join(&farm.hub, carriage, identity("w1", &[]));
        soon(changes.changed()).await.expect("the hub lives");
        // It keeps its place among the peers, and new calls go over the new connection.
        attached(&farm.hub, &["w1", "w2", "w3"]).await;
        let caller = user.clone();
        let second =
            tokio::spawn(async move { caller.call("farm/hang", &json!({"to": "w1"})).await });
        again.probe.wait(|p| &p.started, 1).await;
        // What runs on the old one finishes.
        farm.workers[0].probe.release.notify_one();
        soon(running).await.expect("no panic").expect("it finishes");
        let closed = soon(farm.links[0].closed()).await;
        if let CloseReason::Peer(Some(code), _) = closed {
            assert_eq!(code, u64::from(CloseCode::Superseded.code()));
        }
        // The end of the old connection is not the end of the peer.
        again.probe.release.notify_one();
        soon(second).await.expect("no panic").expect("it finishes");
        attached(&farm.hub, &["w1", "w2", "w3"]).await;
        newer.close(CloseCode::Normal, "");
        attached(&farm.hub, &["w2", "w3"]).await;
    }
}

#[tokio::test]
async fn time_that_is_left_goes_along() {
    let farm = farm(Carriage::Memory).await;
    let user = farm.hub.client(Carriage::Memory, None);
    let options = CallOptions {
        timeout: Some(Duration::from_millis(100)),
        ..CallOptions::default()
    };
    let input = json!({"to": "w1"});
    let error = soon(user.call_with("farm/hang", &input, &options)).await;
    assert_eq!(error.expect_err("too late").code, ErrorCode::Timeout);
    farm.workers[0].probe.wait(|p| &p.dropped, 1).await;
}

#[tokio::test]
async fn peers_without_a_name_stay_with_their_connection() {
    let hub = Node::of(
        Dispatcher::new(
            Registry::builder()
                .with(Registration::new(
                    query("farm/import"),
                    HandlerKind::once(|input: Body, ctx: Ctx| async move {
                        let mut options = ImportOptions::default();
                        if let Some(prefix) = input.value()["prefix"].as_str() {
                            options = options.with_prefix(prefix);
                        }
                        match ctx.caller().import(&options).await {
                            Ok(imported) => Ok(json!([imported.peer, imported.operations])),
                            Err(AdapterError::Collision { name }) => Ok(json!(name)),
                            Err(error) => Err(CallError::internal(error.to_string())),
                        }
                    }),
                ))
                .with(composes("farm/info", "node/info", |_| {
                    InvokeOptions::default()
                }))
                .with(composes("farm/page", "browser/node/info", |_| {
                    InvokeOptions::default()
                }))
                .with(Registration::new(
                    query("node/info"),
                    HandlerKind::once(|_, _| async { Ok(json!("the hub's own")) }),
                ))
                .build()
                .expect("valid"),
        ),
        Arc::default(),
    );
    let browser = worker("browser");
    let (dialled, _) = hub.serve(Carriage::Memory, None);
    let page = CallClient::new(Arc::clone(&browser.dispatcher)).attach(dialled, None);
    // One name is taken: nothing is imported.
    assert_eq!(ask(&page, "farm/import", json!({})).await, "node/info");
    assert_eq!(code(&page, "farm/page", json!(null)).await, "NOT_FOUND");
    let imported = ask(&page, "farm/import", json!({"prefix": "browser"})).await;
    assert_eq!(imported, json!([null, 3]));
    assert_eq!(ask(&page, "farm/page", json!(null)).await, "browser");
    assert!(hub.dispatcher.peers().ids().is_empty());
    assert_eq!(ask(&page, "farm/info", json!(null)).await, "the hub's own");
    let other = hub.client(Carriage::Memory, None);
    assert_eq!(code(&other, "farm/page", json!(null)).await, "NOT_FOUND");
}

#[tokio::test]
async fn what_a_peer_changes_is_read_again() {
    static NAMES: std::sync::Mutex<&[&str]> = std::sync::Mutex::new(&["work/one"]);
    let hub = hub();
    let (dialled, _) = hub.serve(Carriage::Memory, Some(identity("w1", &[])));
    let changes = tokio::sync::watch::channel(Value::Null).0;
    let answer = |operation: &str, input: &Value| match operation {
        "/services/list" => listing(*NAMES.lock().expect("no panics")),
        _ => {
            let names = input["names"].as_array().cloned().unwrap_or_default();
            let spec = |name: &Value| query(name.as_str().unwrap_or_default());
            json!({ "specs": names.iter().map(spec).collect::<Vec<_>>() })
        }
    };
    answer_by_hand(dialled, answer, changes.clone());
    attached(&hub, &["w1"]).await;
    let reader = hub.client(Carriage::Memory, Some(identity("reader", &["peer:list"])));
    let served = || async {
        let listed = ask(&reader, "services/list-peers", json!(null)).await;
        listed["peers"][0]["operations"].as_array().map(Vec::len)
    };
    assert_eq!(served().await, Some(1));
    let mut attaches = hub.dispatcher.peers().changes();
    attaches.borrow_and_update();
    *NAMES.lock().expect("no panics") = &["work/one", "work/two"];
    changes.send_replace(json!({ "registry": "another" }));
    soon(attaches.changed()).await.expect("the hub lives");
    assert_eq!(served().await, Some(2));
}
