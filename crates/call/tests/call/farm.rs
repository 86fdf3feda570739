//! A hub and its workers, for the tests of both.

use std::sync::Arc;

use alknet_call::*;
use alknet_core::{Carriage, PeerId};
use serde_json::{Value, json};

use crate::common::*;

pub(crate) fn peer(id: &str) -> PeerId {
    id.parse().expect("a peer id")
}

pub(crate) fn query(name: &str) -> OperationSpec {
    OperationSpec::query(name, "For tests.")
}

/// A worker that reports its name and the identity it is asked for, counts and hangs.
pub(crate) fn worker(id: &'static str) -> CallTestNode {
    let probe: Arc<OperationProbe> = Arc::default();
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
                let guard = ProbeGuard::new(&p);
                async move {
                    guard.0.release.notified().await;
                    Ok(json!(id))
                }
            }),
        ))
        .with(Registration::new(
            OperationSpec::subscription("work/count", "Counts."),
            HandlerKind::stream(move |input: CallBody, _| {
                let guard = ProbeGuard::new(&q);
                let most = input.parse::<u64>().unwrap_or(0);
                futures_util::stream::unfold((0, guard), move |(n, guard)| async move {
                    (n < most).then(|| (Ok(json!(n)), (n + 1, guard)))
                })
            }),
        ));
    let registry = builder.build().expect("every rule is kept");
    CallTestNode::with_dispatcher(Dispatcher::new(registry).with_node(id), probe)
}

/// An operation of the hub that composes `operation` on the peer in its input.
pub(crate) fn composes(
    name: &str,
    operation: &'static str,
    options: fn(&Value) -> InvokeOptions,
) -> Registration {
    let run = move |input: CallBody, ctx: Ctx| async move {
        let options = options(input.value());
        let answer = ctx
            .env()
            .invoke_with(operation, input.value(), &options)
            .await?;
        Ok(CallOutput::from(answer))
    };
    let authority = CompositionAuthority::new("hub", ["container:exec"]);
    Registration::new(query(name), HandlerKind::once(run)).composing(
        authority,
        ScopedPeerEnv::new(["container/*", "work/*", "node/*", "browser/*"]),
    )
}

pub(crate) fn on(input: &Value) -> InvokeOptions {
    let to = input["to"].as_str().unwrap_or_default();
    InvokeOptions::on(match to {
        "" => PeerRef::Any,
        "turn" => PeerRef::Policy(RoutingPolicy::RoundRobin),
        "least" => PeerRef::Policy(RoutingPolicy::LeastInFlight),
        id => PeerRef::Specific(peer(id)),
    })
}

pub(crate) fn hub() -> CallTestNode {
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
                .with_name("shared/exec")
                .with_scope("shared:exec")
                .into(),
        )
        .with(
            ReExport::new(
                OperationType::Subscription,
                "work/count",
                PeerRef::Specific(peer("w2")),
            )
            .with_name("shared/count")
            .into(),
        )
        .build()
        .expect("every rule is kept");
    let dispatcher = Dispatcher::new(registry)
        .with_imports(ImportOptions::default())
        .with_routing();
    CallTestNode::with_dispatcher(dispatcher, Arc::default())
}

/// Waits until exactly these peers are attached, in this order.
pub(crate) async fn attached(node: &CallTestNode, ids: &[&str]) {
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

pub(crate) struct Farm {
    pub(crate) hub: CallTestNode,
    pub(crate) workers: Vec<CallTestNode>,
    pub(crate) links: Vec<CallConnection>,
}

/// A hub and three workers that dialled it.
pub(crate) async fn farm(carriage: Carriage) -> Farm {
    farm_of(hub(), worker, carriage).await
}

/// The same with other workers.
pub(crate) async fn farm_of(
    hub: CallTestNode,
    worker: fn(&'static str) -> CallTestNode,
    carriage: Carriage,
) -> Farm {
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

pub(crate) async fn ask(client: &CallConnection, operation: &str, input: Value) -> Value {
    let answer = soon(client.call(operation, &input)).await;
    answer.expect(operation).value().clone()
}

pub(crate) async fn code(client: &CallConnection, operation: &str, input: Value) -> String {
    let error = soon(client.call(operation, &input)).await;
    error.expect_err(operation).code.name().to_owned()
}
