//! Operations that a node imported from servers: callers reach them by the scope of each, and operations of the node
//! by their own authority.

use std::sync::Arc;

use alknet_call::*;
use alknet_core::{Carriage, Identity};
use serde_json::{Value, json};

use crate::common::*;
use crate::farm::attached;

/// An imported operation with this outcome.
fn imported(name: &str, outcome: Result<Value, CallError>) -> Registration {
    let handler = HandlerKind::once(move |_, _| {
        let outcome = outcome.clone();
        async move { outcome }
    });
    let spec = OperationSpec::query(name, "A server's.").internal();
    Registration::imported(spec, handler, Provenance::FromOpenApi).passing_errors_on()
}

/// An imported operation that callers reach by its scope.
fn imported_with_scope(name: &str) -> Registration {
    imported(name, Ok(json!("of the server"))).with_import_scope()
}

/// An operation of the program that calls the one in its input, by these scopes.
fn uses(name: &str, scopes: &[&str]) -> Registration {
    let handler = HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
        let op = input.value().as_str().unwrap_or_default();
        Ok::<CallOutput, CallError>(ctx.env().invoke(op, &Value::Null).await?.into())
    });
    Registration::new(OperationSpec::query(name, "Calls another."), handler)
        .passing_errors_on()
        .composing(
            CompositionAuthority::new(name, scopes),
            ScopedPeerEnv::new(["api/*"]),
        )
}

fn node(program: impl IntoIterator<Item = Registration>) -> CallTestNode {
    let mut builder = Registry::builder();
    for registration in program {
        builder.add(registration);
    }
    let registry = builder.build().expect("every rule is kept");
    CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default())
}

fn holder(scopes: &[&str]) -> Option<Arc<Identity>> {
    Some(identity("holder", scopes))
}

async fn names(client: &CallConnection) -> Vec<String> {
    let found = soon(client.operations("api/")).await.expect("a listing");
    found.into_iter().map(|it| it.name).collect()
}

async fn call_value(
    client: &CallConnection,
    name: &str,
    input: &Value,
) -> Result<Value, CallError> {
    let answer = soon(client.call(name, input)).await;
    answer.map(|body| body.value().clone())
}

async fn refused(client: &CallConnection, name: &str) -> CallError {
    let answer = call_value(client, name, &Value::Null).await;
    answer.expect_err("the caller lacks the scope")
}

#[tokio::test]
async fn callers_reach_and_see_an_imported_operation_by_its_scope() {
    let node = node([]);
    let inner = imported("api/inner", Ok(json!("for operations alone")));
    let all = vec![
        imported_with_scope("api/note"),
        imported_with_scope("api/tag"),
        inner,
    ];
    node.dispatcher
        .import("api", all)
        .expect("no name is taken");
    for (scopes, seen) in [
        (&["import:api:note"][..], &["api/note"][..]),
        (&["import:api:*"], &["api/note", "api/tag"]),
        (&["*"], &["api/note", "api/tag"]),
        (
            &["import:api", "import:*:note", "import:app:*", "call:*"],
            &[],
        ),
    ] {
        let client = node.client(Carriage::Memory, holder(scopes));
        assert_eq!(names(&client).await, seen, "{scopes:?}");
        for name in ["api/note", "api/tag"] {
            let (answer, schema) = (
                call_value(&client, name, &Value::Null).await,
                soon(client.schema(name)).await,
            );
            let is_seen = seen.contains(&name);
            assert_eq!(schema.is_ok(), is_seen, "{scopes:?} {name}");
            match answer {
                Ok(answer) => assert!(is_seen && answer == "of the server", "{scopes:?} {name}"),
                Err(error) => {
                    let scope = import_scope(name);
                    assert!(!is_seen, "{scopes:?} {name}: {error}");
                    assert_eq!(error.code, ErrorCode::Forbidden, "{error}");
                    assert!(error.message.contains(&scope), "{error}");
                    let details = json!({ "missing_scopes": [scope] });
                    assert_eq!(error.details.as_deref(), Some(&details), "{error}");
                }
            }
        }
        // No scope leads to an operation that is not offered.
        let error = refused(&client, "api/inner").await;
        assert_eq!(error.code, ErrorCode::NotFound, "{error}");
    }
}

/// An unknown caller does not even learn which servers the node uses.
#[tokio::test]
async fn an_unknown_caller_gets_the_answer_of_a_name_that_is_none() {
    let node = node([]);
    let import = node
        .dispatcher
        .import("api", vec![imported_with_scope("api/note")]);
    import.expect("no name is taken");
    let client = node.client(Carriage::Memory, None);
    assert!(names(&client).await.is_empty());
    let [there, absent] = [
        refused(&client, "api/note").await,
        refused(&client, "api/absent").await,
    ];
    assert_eq!(there.code, ErrorCode::NotFound, "{there}");
    let same = absent.message.replace("api/absent", "api/note");
    assert_eq!((there.message, there.details), (same, absent.details));
}

#[tokio::test]
async fn an_operation_calls_an_imported_one_by_its_own_scopes_alone() {
    let node = node([
        uses("app/may", &["import:api:note"]),
        uses("app/may-not", &["import:api:tag"]),
    ]);
    let import = node
        .dispatcher
        .import("api", vec![imported_with_scope("api/note")]);
    import.expect("no name is taken");
    let note = json!("api/note");
    // The scopes of the caller add nothing and remove nothing.
    for scopes in [&["*"][..], &["import:api:*"], &[]] {
        let client = node.client(Carriage::Memory, holder(scopes));
        let answer = call_value(&client, "app/may", &note).await;
        assert_eq!(answer, Ok(json!("of the server")), "{scopes:?}");
        let refused = call_value(&client, "app/may-not", &note).await;
        let error = refused.expect_err("the operation lacks the scope");
        assert_eq!(error.code, ErrorCode::Forbidden, "{error}");
        let lacks = "it lacks the scope 'import:api:note'";
        assert!(error.message.contains(lacks), "{error}");
    }
}

#[tokio::test]
async fn watchers_hear_of_imports_that_they_may_call() {
    let node = node([]);
    let [holder, other] = [&["import:api:*"][..], &["import:app:*"]]
        .map(|scopes| node.client(Carriage::Memory, holder(scopes)));
    let mut watches = Vec::new();
    for client in [&holder, &other] {
        let watch = soon(client.subscribe("services/watch", &json!({}))).await;
        watches.push(watch.expect("started"));
    }
    let mut heard = async || {
        let mut heard = Vec::new();
        for watch in &mut watches {
            let event = soon(watch.next()).await.expect("more").expect("an event");
            let change: RegistryChange = event.output.parse().expect("a change");
            assert_eq!(change.registry, node.dispatcher.registry().digest());
            heard.push((change.added, change.removed));
        }
        heard
    };
    let nothing: (Vec<String>, Vec<String>) = Default::default();
    let note = vec!["api/note".to_owned()];
    assert_eq!(heard().await, [nothing.clone(), nothing.clone()]);
    let import = node
        .dispatcher
        .import("api", vec![imported_with_scope("api/note")]);
    import.expect("no name is taken");
    assert_eq!(heard().await, [(note.clone(), Vec::new()), nothing.clone()]);
    node.dispatcher.import("api", Vec::new()).expect("nothing");
    assert_eq!(heard().await, [(Vec::new(), note), nothing]);
}

/// Addresses behind the node, and their faults, are in its log. The server's answer is the caller's.
#[tokio::test]
async fn why_a_server_is_not_reached_is_for_readers_of_the_node() {
    let fails = |name: &str, error: CallError| imported(name, Err(error)).with_import_scope();
    let node = node([uses("app/uses", &["*"])]);
    let locked = CallError::unavailable("the vault is locked");
    let missing = CallError::operation("HTTP_404", "no note db-7");
    let all = vec![
        fails("api/gone", CallError::unavailable("db-7:80 is gone")),
        fails(
            "api/late",
            CallError::new(ErrorCode::Timeout, "db-7:80 is late"),
        ),
        fails(
            "api/locked",
            locked.with_details(json!({ "reason": "vault_locked" })),
        ),
        fails(
            "api/missing",
            missing.with_details(json!({ "status": 404 })),
        ),
    ];
    node.dispatcher
        .import("api", all)
        .expect("no name is taken");
    for (scopes, reads) in [
        (&["import:api:*"][..], false),
        (&["import:api:*", "node:read"], true),
    ] {
        let client = node.client(Carriage::Memory, holder(scopes));
        for (name, code, words, is_cause) in [
            ("api/gone", "UNAVAILABLE", "cannot be reached", true),
            ("api/late", "TIMEOUT", "did not answer in time", true),
            ("api/locked", "UNAVAILABLE", "the vault is locked", false),
            ("api/missing", "HTTP_404", "no note db-7", false),
        ] {
            let input = json!(name);
            for error in [
                refused(&client, name).await,
                call_value(&client, "app/uses", &input)
                    .await
                    .expect_err("it fails"),
            ] {
                assert_eq!(error.code.name(), code, "{name}");
                let is_told = error.message.contains("db-7:80");
                assert_eq!(is_told, reads && is_cause, "{name}: {error}");
                let is_said = error.message.contains(words);
                assert_eq!(is_said, !(reads && is_cause), "{name}: {error}");
            }
        }
    }
}

/// An operation that calls one of the peer in its input, as a caller's script may.
fn routes(name: &str, scopes: &[&str]) -> Registration {
    let handler = HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
        let peer = input.value().as_str().map(str::parse).transpose();
        let peer = peer.expect("an id").map(PeerRef::Specific);
        let options = InvokeOptions {
            peer,
            ..InvokeOptions::default()
        };
        let env = ctx.env();
        let answer = env.invoke_with("api/note", &Value::Null, &options).await?;
        Ok::<CallOutput, CallError>(answer.into())
    });
    Registration::new(OperationSpec::query(name, "Calls a peer's."), handler).composing(
        CompositionAuthority::new(name, scopes),
        ScopedPeerEnv::default().with_routing(),
    )
}

/// It needs the same rights as a request from outside: the scope for the way, and that of the operation.
#[tokio::test]
async fn what_a_peer_imported_is_reached_there_by_its_scope_and_that_of_the_way() {
    let worker = node([]);
    let import = worker
        .dispatcher
        .import("api", vec![imported_with_scope("api/note")]);
    import.expect("no name is taken");
    let registry = Registry::builder()
        .with(routes("app/may", &["peer:route:worker", "import:api:note"]))
        .with(routes("app/no-way", &["peer:route:other", "import:api:*"]))
        .with(routes("app/no-scope", &["peer:route:*", "import:app:*"]));
    let registry = registry.build().expect("every rule is kept");
    let dispatcher = Dispatcher::new(registry).with_imports(ImportOptions::default());
    let hub = CallTestNode::with_dispatcher(dispatcher, Arc::default());
    let _joined = worker.join(&hub, Carriage::Memory, identity("worker", &[]));
    attached(&hub, &["worker"]).await;
    let client = hub.client(Carriage::Memory, holder(&["*"]));
    let there = json!("worker");
    let answer = call_value(&client, "app/may", &there).await;
    assert_eq!(answer, Ok(json!("of the server")));
    let error = async |name: &str, peer: &Value| {
        let answer = call_value(&client, name, peer).await;
        answer.expect_err("it lacks something")
    };
    let no_scope = error("app/no-scope", &there).await;
    assert_eq!(no_scope.code, ErrorCode::Forbidden, "{no_scope}");
    assert!(no_scope.message.contains("'import:api:note'"), "{no_scope}");
    // A script that may not go there does not learn which peers there are.
    let no_way = error("app/no-way", &there).await;
    assert_eq!(no_way.code, ErrorCode::Forbidden, "{no_way}");
    assert!(no_way.message.contains("'peer:route:'"), "{no_way}");
    assert_eq!(error("app/no-way", &json!("nobody")).await, no_way);
    // A call that names no peer goes nowhere.
    for name in ["app/may", "app/no-way"] {
        let error = error(name, &Value::Null).await;
        assert_eq!(error.code, ErrorCode::NotFound, "{name}: {error}");
    }
}

/// An operation that calls `target` as a script of `runtime/eval` would: of the peer in its input, or of any peer.
fn script(name: &str, target: &'static str, scopes: &[&str]) -> Registration {
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| async move {
        let peer = match input.value().as_str() {
            None => None,
            Some("any") => Some(PeerRef::Any),
            Some(id) => Some(PeerRef::Specific(id.parse().expect("an id"))),
        };
        let options = InvokeOptions {
            peer,
            ..InvokeOptions::default()
        };
        let env = ctx.env();
        let answer = env.invoke_with(target, &Value::Null, &options).await?;
        Ok::<CallOutput, CallError>(answer.into())
    });
    let reach = ScopedPeerEnv::new(["api/*", "app/*", "own/*"]).with_routing();
    Registration::new(OperationSpec::query(name, "A script."), handler)
        .composing(CompositionAuthority::new(name, scopes), reach)
}

/// An operation of another node, open to all there.
fn foreign(name: &str) -> Registration {
    let answer = HandlerKind::once(|_, _| async { Ok(json!("of another node")) });
    Registration::new(OperationSpec::query(name, "Another node's."), answer)
}

/// A worker serves an operation that the hub does not import, or not yet: it would get the requests that a script
/// sends to the server.
#[tokio::test]
async fn no_peer_replaces_a_server_of_the_node() {
    let worker = node(["api/note", "app/note"].map(foreign));
    let mut builder = Registry::builder()
        .with(script("js/no-way", "api/note", &["peer:route:other"]))
        .with(script("js/way", "api/note", &["peer:route:worker"]))
        .with(script("js/other", "app/note", &[]));
    builder.keep_for_server("api");
    let registry = builder.build().expect("every rule is kept");
    let dispatcher = Dispatcher::new(registry).with_imports(ImportOptions::default());
    let hub = CallTestNode::with_dispatcher(dispatcher, Arc::default());
    let _joined = worker.join(&hub, Carriage::Memory, identity("worker", &[]));
    attached(&hub, &["worker"]).await;
    let client = hub.client(Carriage::Memory, holder(&["*"]));
    let there = json!("worker");
    for unnamed in [&Value::Null, &json!("any")] {
        for name in ["js/no-way", "js/way"] {
            let refused = call_value(&client, name, unnamed).await;
            let error = refused.expect_err("nothing is imported");
            assert_eq!(error.code, ErrorCode::NotFound, "{name} {unnamed}: {error}");
        }
        // Names of another namespace go to the peer that serves them.
        let answer = call_value(&client, "js/other", unnamed).await;
        assert_eq!(answer, Ok(json!("of another node")), "{unnamed}");
    }
    let refused = call_value(&client, "js/no-way", &there).await;
    let error = refused.expect_err("it lacks the scope for the way");
    assert_eq!(error.code, ErrorCode::Forbidden, "{error}");
    assert!(error.message.contains("'peer:route:'"), "{error}");
    let answer = call_value(&client, "js/way", &there).await;
    assert_eq!(answer, Ok(json!("of another node")));
    // The imported operation is reached as before.
    let server = imported("api/note", Ok(json!("of the server")));
    let import = hub.dispatcher.import("api", vec![server]);
    import.expect("no name is taken");
    let answer = call_value(&client, "js/no-way", &Value::Null).await;
    assert_eq!(answer, Ok(json!("of the server")));
}

/// A worker without scopes serves what the node took back, or does not have yet, and waits for a call that names no peer.
/// It would get the input, and forge the answer.
#[tokio::test]
async fn no_peer_takes_the_place_of_the_nodes_own_operations() {
    let worker = node(["own/pay", "app/note"].map(foreign));
    let pinned = {
        let spec = OperationSpec::query("js/pinned", "Has a peer.");
        let handler = HandlerKind::once(|_, ctx: Ctx| async move {
            let answer = ctx.env().invoke("own/pay", &Value::Null).await?;
            Ok::<CallOutput, CallError>(answer.into())
        });
        let reach = ScopedPeerEnv::default().pinned("worker".parse().expect("an id"), "own/pay");
        Registration::new(spec, handler)
            .composing(CompositionAuthority::new("js/pinned", [""; 0]), reach)
    };
    let mut builder = Registry::builder()
        .with(script("js/pay", "own/pay", &[]))
        .with(script("js/way", "own/pay", &["peer:route:worker"]))
        .with(script("js/other", "app/note", &[]))
        .with(pinned);
    builder.keep_for_node("own");
    let registry = builder.build().expect("every rule is kept");
    let dispatcher = Dispatcher::new(registry).with_imports(ImportOptions::default());
    let hub = CallTestNode::with_dispatcher(dispatcher, Arc::default());
    let _joined = worker.join(&hub, Carriage::Memory, identity("worker", &[]));
    attached(&hub, &["worker"]).await;
    let client = hub.client(Carriage::Memory, holder(&["*"]));
    for unnamed in [&Value::Null, &json!("any")] {
        let refused = call_value(&client, "js/pay", unnamed).await;
        let error = refused.expect_err("the node has no such operation");
        assert_eq!(error.code, ErrorCode::NotFound, "{unnamed}: {error}");
        let answer = call_value(&client, "js/other", unnamed).await;
        assert_eq!(answer, Ok(json!("of another node")), "{unnamed}");
    }
    // A script that names the peer and has the scope for the way, or an operation that is pinned to it, means it.
    for (name, input) in [("js/way", json!("worker")), ("js/pinned", Value::Null)] {
        let answer = call_value(&client, name, &input).await;
        assert_eq!(answer, Ok(json!("of another node")), "{name}");
    }
    // The worker admits the hub, and knows nothing of the script's rights. A worker that does not exist looks the same.
    for there in ["worker", "stranger"] {
        let refused = call_value(&client, "js/pay", &json!(there)).await;
        let error = refused.expect_err("it lacks the scope for the way");
        assert_eq!(error.code, ErrorCode::Forbidden, "{there}: {error}");
        assert!(error.message.contains("'peer:route:'"), "{there}: {error}");
    }
}

/// An author's script that calls a server would send its input to the caller of the script.
#[tokio::test]
async fn no_caller_replaces_a_server_of_the_node() {
    let reads = HandlerKind::once(|_, ctx: Ctx| async move {
        let imported = ctx.caller().import(&ImportOptions::default()).await;
        let imported = imported.map_err(|error| CallError::internal(error.to_string()))?;
        Ok::<Value, CallError>(json!(imported.operations))
    });
    let reads = Registration::new(OperationSpec::query("app/import", "Reads."), reads);
    let mut builder = Registry::builder()
        .with(reads)
        .with(script("js/kept", "api/note", &[]))
        .with(script("js/own", "own/note", &[]))
        .with(script("js/other", "app/note", &[]));
    builder.keep_for_server("api").keep_for_node("own");
    let registry = builder.build().expect("every rule is kept");
    let node = CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default());
    let mut theirs = Registry::builder();
    for name in ["api/note", "app/note", "own/note"] {
        theirs.add(foreign(name));
    }
    let theirs = Dispatcher::new(theirs.build().expect("every rule is kept"));
    let (dialled, _) = node.serve(Carriage::Memory, None);
    let client = CallClient::new(Arc::new(theirs)).attach(dialled, None);
    let read = call_value(&client, "app/import", &Value::Null).await;
    assert_eq!(read, Ok(json!(3)));
    let answer = call_value(&client, "js/other", &Value::Null).await;
    assert_eq!(answer, Ok(json!("of another node")));
    for name in ["js/kept", "js/own"] {
        let refused = call_value(&client, name, &Value::Null).await;
        let error = refused.expect_err("neither the server nor the node has it");
        assert_eq!(error.code, ErrorCode::NotFound, "{name}: {error}");
    }
}

/// The caller could not tell a misspelt name from a server that the node has not reached yet.
#[tokio::test]
async fn a_call_to_an_import_that_was_not_read_says_so() {
    let mut builder = Registry::builder().with(script("js/kept", "api/note", &[]));
    builder.keep_for_server("api");
    let registry = builder.build().expect("every rule is kept");
    let node = CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default());
    let known = node.client(Carriage::Memory, holder(&["call:it"]));
    let unknown = node.client(Carriage::Memory, None);
    let message = async |client: &CallConnection, name: &str| {
        let refused = call_value(client, name, &Value::Null).await;
        let error = refused.expect_err("nothing is imported");
        assert_eq!(error.code, ErrorCode::NotFound, "{name}: {error}");
        error.message
    };
    for name in ["api/note", "/api/note", "js/kept"] {
        let text = message(&known, name).await;
        assert!(text.contains("'api/note' yet"), "{name}: {text}");
        assert!(text.contains("problem import-failed"), "{name}: {text}");
    }
    for (client, name) in [(&known, "app/note"), (&unknown, "api/note")] {
        assert_eq!(
            message(client, name).await,
            CallError::not_found(name).message
        );
    }
    let server = imported("api/note", Ok(json!("of the server")));
    let import = node.dispatcher.import("api", vec![server]);
    import.expect("no name is taken");
    let text = message(&known, "api/node").await;
    assert_eq!(
        text,
        CallError::not_found("api/node").message,
        "it was read"
    );
}
