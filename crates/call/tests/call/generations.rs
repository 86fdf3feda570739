//! Promoted operations: installed while the node serves, announced to watchers, and replaced without disturbing
//! running calls.

use std::sync::Arc;

use alknet_call::*;
use alknet_core::Carriage;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::common::*;

/// Answers with `text`.
fn says(name: &str, text: &'static str) -> Registration {
    let spec = OperationSpec::query(name, "For tests.");
    Registration::new(
        spec,
        HandlerKind::once(move |_, _| async move { Ok(json!(text)) }),
    )
}

fn node(registrations: impl IntoIterator<Item = Registration>) -> CallTestNode {
    let mut builder = Registry::builder();
    for registration in registrations {
        builder.add(registration);
    }
    let registry = builder.build().expect("every rule is kept");
    CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default())
}

fn client(node: &CallTestNode) -> CallConnection {
    node.client(Carriage::Memory, Some(identity("reader", &[])))
}

async fn asked(client: &CallConnection, name: &str) -> Result<Value, ErrorCode> {
    let answer = soon(client.call(name, &json!({}))).await;
    answer
        .map(|body| body.value().clone())
        .map_err(|error| error.code)
}

async fn names(client: &CallConnection) -> Vec<String> {
    let found = soon(client.operations("app/")).await.expect("a listing");
    found.into_iter().map(|it| it.name).collect()
}

#[tokio::test]
async fn a_generation_replaces_another_as_a_whole() {
    let node = node([says("app/fixed", "program")]);
    let client = client(&node);
    let before = node.dispatcher.registry().digest();
    let first = node
        .dispatcher
        .promote(1, vec![says("app/one", "1"), says("app/two", "1")]);
    assert_eq!(first.expect("installed").number(), 1);
    assert_eq!(names(&client).await, ["app/fixed", "app/one", "app/two"]);
    assert_eq!(asked(&client, "app/one").await, Ok(json!("1")));
    let spec = soon(client.schema("app/one")).await.expect("a spec");
    assert_eq!(spec.name, "app/one");
    assert_ne!(node.dispatcher.registry().digest(), before);
    let second = node.dispatcher.promote(2, vec![says("app/one", "2")]);
    second.expect("installed");
    assert_eq!(names(&client).await, ["app/fixed", "app/one"]);
    assert_eq!(asked(&client, "app/one").await, Ok(json!("2")));
    assert_eq!(asked(&client, "app/two").await, Err(ErrorCode::NotFound));
    node.dispatcher.promote(3, Vec::new()).expect("nothing");
    assert_eq!(node.dispatcher.registry().digest(), before);
}

#[tokio::test]
async fn nothing_of_the_program_is_replaced() {
    let node = node([says("app/fixed", "program")]);
    let twice = [says("app/a", "1"), says("app/a", "2")];
    let bad = ["app/fixed", "node/info", "services/list", "ops/promote"].map(|it| says(it, "x"));
    let all = bad.into_iter().chain(twice).collect();
    let now = node.dispatcher.promote(1, all).expect("the rest is fine");
    assert_eq!(now.rejected().len(), 5);
    let client = client(&node);
    assert_eq!(asked(&client, "app/fixed").await, Ok(json!("program")));
    assert_eq!(asked(&client, "app/a").await, Ok(json!("1")));
    assert_eq!(asked(&client, "node/info").await, Err(ErrorCode::NotFound));
}

#[tokio::test]
async fn what_runs_finishes_with_what_it_began_with() {
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let waiting = {
        let (entered, go) = (Arc::clone(&entered), Arc::clone(&go));
        HandlerKind::once(move |_, ctx: Ctx| {
            let (entered, go) = (Arc::clone(&entered), Arc::clone(&go));
            async move {
                let first = ctx.env().invoke("app/part", &json!({})).await?;
                entered.notify_one();
                go.notified().await;
                let second = ctx.env().invoke("app/part", &json!({})).await?;
                Ok(json!([first.value(), second.value()]))
            }
        })
    };
    let slow = Registration::new(OperationSpec::query("app/slow", ""), waiting).composing(
        CompositionAuthority::new("slow", [""; 0]),
        ScopedPeerEnv::new(["app/part"]),
    );
    let node = node([]);
    let old = vec![slow.clone(), says("app/part", "old")];
    node.dispatcher.promote(1, old).expect("installed");
    let client = client(&node);
    let call = asked(&client, "app/slow");
    let swap = async {
        soon(entered.notified()).await;
        let new = vec![says("app/part", "new")];
        node.dispatcher.promote(2, new).expect("installed");
        go.notify_one();
    };
    let (answer, ()) = tokio::join!(call, swap);
    assert_eq!(answer, Ok(json!(["old", "old"])));
    assert_eq!(asked(&client, "app/part").await, Ok(json!("new")));
    assert_eq!(asked(&client, "app/slow").await, Err(ErrorCode::NotFound));
}

#[tokio::test]
async fn watchers_and_peers_hear_of_it() {
    let node = node([]);
    let client = client(&node);
    let mut events = soon(client.subscribe("services/watch", &json!({})))
        .await
        .expect("started");
    let mut next = async || -> RegistryChange {
        let event = soon(events.next()).await.expect("more").expect("an event");
        event.output.parse().expect("a change")
    };
    let first = next().await;
    assert_eq!(first.registry, node.dispatcher.registry().digest());
    // A hub that imports its peers' operations reads them again.
    let hub = CallTestNode::with_dispatcher(
        Dispatcher::new(Registry::builder().build().expect("empty"))
            .with_imports(ImportOptions::default()),
        Arc::default(),
    );
    let lister = hub.client(
        Carriage::Memory,
        Some(identity("boss", &["peer:list", "app:read"])),
    );
    let mut heard = soon(lister.subscribe("services/watch", &json!({})))
        .await
        .expect("started");
    let _joined = node.join(&hub, Carriage::Memory, identity("worker", &[]));
    let internal = Registration::new(
        OperationSpec::query("app/inner", "").internal(),
        HandlerKind::once(|_, _| async { Ok(json!(1)) }),
    );
    let promoted = vec![says("app/one", "1"), internal];
    let now = node.dispatcher.promote(7, promoted).expect("installed");
    let change = next().await;
    assert_eq!(change.added, ["app/one"]);
    assert_eq!(change.registry, now.digest());
    loop {
        let event = soon(heard.next()).await.expect("more").expect("an event");
        let change: RegistryChange = event.output.parse().expect("a change");
        if change.added.iter().any(|name| name == "app/one") {
            assert_eq!(change.peer, Some("worker".parse().expect("a peer id")));
            break;
        }
    }
    node.dispatcher.promote(8, Vec::new()).expect("nothing");
    assert_eq!(next().await.removed, ["app/one"]);
}
