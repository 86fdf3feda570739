//! Requests that a hub passes on: to which peer, for which identity, and how often.

use std::sync::Arc;

use alknet_call::*;
use alknet_core::{AuthToken, Carriage, CloseCode, Identity, IdentityProvider, PeerId, PeerKey};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use crate::common::*;
use crate::farm::*;

/// A request by hand, for members that the client does not send.
async fn raw(farm: &Farm, who: &[&str], payload: Value) -> (EventKind, Value) {
    let (dialled, _) = farm
        .hub
        .serve(Carriage::Memory, Some(identity("user", who)));
    let mut peer = RawPeer::new(dialled).await;
    peer.send(EventKind::Requested, "1", payload).await;
    loop {
        // The hub lists this side's operations meanwhile.
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
        // A user that may not route does not learn which peers there are.
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
        let (hub, worker) = (hub(), CallTestNode::new());
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
        // The peer gets both from the hub, and still treats them as two.
        let other = charge("other", json!({}));
        let answer = soon(other).await.expect("no panic").expect("an answer");
        assert_eq!(*answer.value(), json!(2));
    }
}

/// Knows the peer `away`, which never connects, by its id and as `attic`.
#[derive(Default)]
struct AbsentPeerIdentities(watch::Sender<u64>);

impl IdentityProvider for AbsentPeerIdentities {
    fn by_key(&self, _: &PeerKey) -> Option<Arc<Identity>> {
        None
    }

    fn by_token(&self, _: &AuthToken) -> Option<Arc<Identity>> {
        None
    }

    fn by_id(&self, id: &PeerId) -> Option<Arc<Identity>> {
        (id.as_str() == "away").then(|| identity("away", &[]))
    }

    fn by_name(&self, name: &str) -> Option<PeerId> {
        (name == "attic").then(|| peer("away"))
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// A hub to which `w1` is attached and which knows `away`.
async fn hub_with_an_absent_peer() -> (CallTestNode, CallTestNode, CallConnection) {
    let none = Registry::builder().build().expect("every rule is kept");
    let dispatcher = Dispatcher::new(none)
        .with_identities(Arc::new(AbsentPeerIdentities::default()))
        .with_imports(ImportOptions::default())
        .with_routing();
    let hub = CallTestNode::with_dispatcher(dispatcher, Arc::default());
    let worker = worker("w1");
    let link = worker.join(&hub, Carriage::Memory, identity("w1", &[]));
    attached(&hub, &["w1"]).await;
    (hub, worker, link)
}

/// The error of a call that names a peer.
async fn error_of(hub: &CallTestNode, who: Option<&[&str]>, name: &str) -> CallError {
    let who = who.map(|scopes| identity("user", scopes));
    let user = hub.client(Carriage::Memory, who);
    let options = CallOptions {
        peer: Some(name.to_owned()),
        ..CallOptions::default()
    };
    let answer = soon(user.call_with("work/none", &json!(1), &options)).await;
    answer.expect_err("no peer serves it")
}

#[tokio::test]
async fn a_requester_that_may_go_to_a_peer_learns_why_the_peer_does_not_answer() {
    let (hub, _worker, _link) = hub_with_an_absent_peer().await;
    for (name, reason, text) in [
        ("w9", "unknown_peer", "knows no peer 'w9'"),
        ("attic", "peer_not_attached", "'attic' is not attached"),
        ("away", "peer_not_attached", "'away' is not attached"),
        (
            "w1",
            "unknown_operation",
            "'w1' serves no operation 'work/none'",
        ),
    ] {
        let error = error_of(&hub, Some(&["peer:route:*"]), name).await;
        assert_eq!(error.code, ErrorCode::NotFound, "{name}");
        assert!(error.message.contains(text), "{name}: {error}");
        let details = error.details.expect("a reason");
        assert_eq!(details["reason"], reason, "{name}");
    }
    let long = "w".repeat(4000);
    let error = error_of(&hub, Some(&["peer:route:*"]), &long).await;
    assert!(error.message.len() < 200, "{error}");
}

/// Only requesters that may go to peers learn which peers there are.
#[tokio::test]
async fn a_requester_without_the_right_to_route_gets_one_answer_for_every_peer() {
    let (hub, _worker, _link) = hub_with_an_absent_peer().await;
    for (who, code) in [
        (Some(&["container:exec"][..]), ErrorCode::Forbidden),
        (None, ErrorCode::Unauthenticated),
    ] {
        let first = error_of(&hub, who, "w9").await;
        assert_eq!(first.code, code);
        for name in ["attic", "away", "w1"] {
            assert_eq!(error_of(&hub, who, name).await, first, "{name}");
        }
    }
}

#[tokio::test]
async fn a_node_that_is_no_hub_forwards_no_call() {
    let node = CallTestNode::new();
    let (dialled, _) = node.serve(Carriage::Memory, Some(identity("user", &["*"])));
    let mut peer = RawPeer::new(dialled).await;
    let payload = json!({"operationId": "test/echo", "peer": "test-node"});
    peer.send(EventKind::Requested, "1", payload.clone()).await;
    let refused = peer.event().await.2;
    assert_eq!(refused["code"], "NOT_FOUND");
    assert_eq!(refused["details"]["reason"], "no_hub");
    // An unknown caller does not learn that the node is not a hub.
    let (dialled, _) = node.serve(Carriage::Memory, None);
    let mut peer = RawPeer::new(dialled).await;
    peer.send(EventKind::Requested, "1", payload).await;
    let refused = peer.event().await.2;
    assert_eq!(refused["code"], "NOT_FOUND");
    assert!(refused.get("details").is_none(), "{refused}");
}

#[tokio::test]
async fn what_was_forwarded_is_not_forwarded_again() {
    let farm = farm(Carriage::Memory).await;
    let payload = json!({
        "operationId": "/container/exec", "peer": "w1", "forwarded_for": {"id": "end-user"},
    });
    let mut may = vec!["peer:route:*", "container:exec"];
    // The node drops the claim of a peer that may not make one; the request is the caller's own.
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

/// A node in between may leave its client unnamed.
#[tokio::test]
async fn a_connection_is_authenticated_by_no_node_in_between() {
    let node = CallTestNode::new();
    let (dialled, _) = node.serve(Carriage::Memory, None);
    let mut peer = RawPeer::new(dialled).await;
    for (hops, kind) in [(1, EventKind::Error), (0, EventKind::Responded)] {
        let payload = json!({
            "operationId": "session/authenticate", "input": { "token": "good" }, "hops": hops,
        });
        peer.send(EventKind::Requested, &format!("{hops}"), payload)
            .await;
        let (answered, _, answer) = peer.event().await;
        assert_eq!(answered, kind, "{answer}");
        if hops > 0 {
            assert_eq!(answer["code"], "FORBIDDEN");
        }
    }
}

/// Two nodes that offer each other's operation as their own. Neither discloses the identity it calls for, so neither
/// can recognise its own requests.
#[tokio::test]
async fn nodes_that_forward_in_a_circle_stop() {
    let circle = |own: &str, others: &str| {
        let export = ReExport::new(OperationType::Query, others, PeerRef::Any).with_name(own);
        let registry = Registry::builder().with(export.into()).build();
        let imports = ImportOptions::default().with_disclose(CallerDisclosure::None);
        let dispatcher = Dispatcher::new(registry.expect("every rule is kept"));
        CallTestNode::with_dispatcher(dispatcher.with_imports(imports), Arc::default())
    };
    let (one, other) = (
        circle("one/ask", "other/ask"),
        circle("other/ask", "one/ask"),
    );
    let _link = one.join(&other, Carriage::Memory, identity("one", &["*"]));
    attached(&other, &["one"]).await;
    attached(&one, &["hub"]).await;
    let user = one.client(Carriage::Memory, Some(identity("user", &["*"])));
    let error = soon(user.call("one/ask", &json!(1))).await;
    let error = error.expect_err("no peer answers it");
    assert_eq!(error.code, ErrorCode::Forbidden, "{error}");
    assert!(error.message.contains("passed on 4 times"), "{error}");

    // Joining the circle late does not help: a request with a number goes on with the next one.
    let farm = farm(Carriage::Memory).await;
    let may = ["peer:route:w1", "container:exec"];
    for (hops, kind) in [(3, EventKind::Responded), (4, EventKind::Error)] {
        let payload = json!({ "operationId": "/container/exec", "peer": "w1", "hops": hops });
        assert_eq!(raw(&farm, &may, payload).await.0, kind, "{hops}");
    }
}

/// How a long request to `w1` ends.
async fn ask_w1(user: &CallConnection, operation: &str, input: &Value) -> Result<(), CallError> {
    let options = CallOptions {
        peer: Some("w1".to_owned()),
        timeout: None,
        ..CallOptions::default()
    };
    if operation == "work/name" {
        let answer = user.call_with(operation, input, &options).await;
        return answer.map(drop);
    }
    let mut events = user.subscribe_with(operation, input, &options).await?;
    events.next().await.expect("an end").map(drop)
}

/// The callers and the peer, which reads nothing, are in league with each other.
#[tokio::test]
async fn requests_that_a_peer_does_not_read_are_refused() {
    let hub = hub();
    let (dialled, _) = hub.serve(Carriage::Memory, Some(identity("w1", &[])));
    let answer = |operation: &str, input: &Value| match operation {
        "/services/list" => listing(&["work/count", "work/name"]),
        _ => {
            let names = input["names"].as_array().cloned().unwrap_or_default();
            let spec = |name: &Value| match name.as_str().unwrap_or_default() {
                "work/count" => OperationSpec::subscription("work/count", "For tests."),
                name => query(name),
            };
            json!({ "specs": names.iter().map(spec).collect::<Vec<_>>() })
        }
    };
    let enough = Arc::new(Notify::new());
    let changes = watch::channel(Value::Null).0;
    answer_by_hand_until(dialled, answer, changes, Arc::clone(&enough));
    attached(&hub, &["w1"]).await;
    enough.notify_one();
    let who = identity("user", &["peer:route:w1"]);
    let user = hub.client(Carriage::Memory, Some(who));
    for operation in ["work/name", "work/count"] {
        let input = json!("x".repeat(600 << 10));
        let asked = (0..16).map(|_| Box::pin(ask_w1(&user, operation, &input)));
        let (first, ..) = soon(futures_util::future::select_all(asked)).await;
        let error = first.expect_err("no peer answers it");
        assert_eq!(error.code, ErrorCode::Overloaded, "{operation}: {error}");
        assert!(error.message.contains("wait to be read"), "{error}");
    }
}

#[tokio::test]
async fn re_exports_have_their_own_rule() {
    let farm = farm(Carriage::Memory).await;
    let user = |scopes: &[&str]| {
        farm.hub
            .client(Carriage::Memory, Some(identity("user", scopes)))
    };
    // The peer's rule applies to the hub, the hub's to the caller.
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
