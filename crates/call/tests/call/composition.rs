//! Operations that call operations: their authority, their reach, and how they end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_call::limits::{COMPOSITION_CHILDREN_MAX, COMPOSITION_DEPTH_MAX};
use alknet_call::*;
use alknet_core::{Capabilities, CapabilityBackend, CapabilityKind, Carriage, Secret, capability};
use alknet_test_support::deadline;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::common::*;

/// An operation that calls the one that its input names: `{"op", "input"?}`.
fn calls(name: &str, authority: CompositionAuthority, reach: ScopedPeerEnv) -> Registration {
    let spec = OperationSpec::query(name, "Calls another.");
    Registration::new(spec, HandlerKind::once(relay)).composing(authority, reach)
}

async fn relay(input: CallBody, ctx: Ctx) -> Result<CallOutput, CallError> {
    let op = input.value()["op"].as_str().unwrap_or_default();
    let answer = ctx.env().invoke(op, &input.value()["input"]).await?;
    Ok(answer.into())
}

pub(crate) fn query(name: &str) -> OperationSpec {
    OperationSpec::query(name, "For tests.")
}

/// Answers with the context that it sees.
pub(crate) fn mirror(spec: OperationSpec) -> Registration {
    Registration::new(
        spec,
        HandlerKind::once(|_, ctx: Ctx| async move {
            let secret = ctx.capabilities().get("door").and_then(|door| {
                door.with_bytes(|bytes| String::from_utf8_lossy(bytes).into_owned())
            });
            Ok(json!({
                "id": ctx.request_id(),
                "parent": ctx.parent_request_id(),
                "root": ctx.root_request_id(),
                "internal": ctx.internal(),
                "identity": ctx.identity().map(|who| who.id.to_string()),
                "forwarded_for": ctx.forwarded_for(),
                "trace": ctx.trace(),
                "secret": secret.ok(),
                "authority": ctx.env().authority().map(|own| own.label.to_string()),
                "by": ctx.calling_authority().map(|by| by.label.to_string()),
                "left_ms": ctx.deadline().map(|at| {
                    at.duration_since(tokio::time::Instant::now()).as_millis() as u64
                }),
            }))
        }),
    )
}

/// The right to know this secret.
fn door(secret: &str) -> Capabilities {
    let (door, filler) = capability("door", CapabilityKind::Bytes, Arc::new(|| true));
    filler.fill(CapabilityBackend::Bytes(Secret::new(
        secret.as_bytes().to_vec(),
    )));
    Capabilities::new([door])
}

pub(crate) fn node(builder: RegistryBuilder) -> CallTestNode {
    let registry = builder.build().expect("every rule is kept");
    CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default())
}

pub(crate) fn authority(scopes: &[&str]) -> CompositionAuthority {
    CompositionAuthority::new("test", scopes)
}

async fn code(client: &CallConnection, operation: &str, input: Value) -> String {
    let error = soon(client.call(operation, &input)).await;
    error.expect_err(operation).code.name().to_owned()
}

fn files() -> RegistryBuilder {
    Registry::builder()
        .with(mirror(query("fs/read").with_scope("fs:read")))
        .with(mirror(query("fs/secret").internal()))
        .with(calls(
            "app/good",
            authority(&["fs:read"]),
            ScopedPeerEnv::new(["fs/*"]),
        ))
        .with(calls(
            "app/weak",
            authority(&["other"]),
            ScopedPeerEnv::new(["fs/read"]),
        ))
        .with(calls(
            "app/far",
            authority(&["*"]),
            ScopedPeerEnv::new(["other/read"]),
        ))
        .with(mirror(query("app/bare")))
}

#[tokio::test]
async fn composition_works_by_authority_and_only_within_its_reach() {
    for carriage in CARRIAGES {
        let node = node(files());
        let client = node.client(carriage, Some(identity("guest", &["nothing"])));
        // The caller lacks fs:read, and the operation that it may call has it.
        assert_eq!(code(&client, "fs/read", json!(null)).await, "FORBIDDEN");
        let read = json!({"op": "fs/read"});
        let answer = soon(client.call("app/good", &read))
            .await
            .expect("by authority");
        assert_eq!(answer.value()["identity"], "guest");
        assert_eq!(answer.value()["internal"], true);
        assert_eq!(answer.value()["by"], "test");
        // The other way round: the caller's rights are of no use to the operation.
        let reader = node.client(carriage, Some(identity("reader", &["fs:read"])));
        soon(reader.call("fs/read", &json!(null)))
            .await
            .expect("its scope");
        assert_eq!(code(&reader, "app/weak", read.clone()).await, "FORBIDDEN");
        assert_eq!(code(&reader, "app/far", read).await, "NOT_FOUND");
        // Only operations can call internal operations.
        assert_eq!(code(&reader, "fs/secret", json!(null)).await, "NOT_FOUND");
        let secret = json!({"op": "/fs/secret"});
        soon(client.call("app/good", &secret))
            .await
            .expect("reachable by composition");
        let missing = json!({"op": "fs/missing"});
        assert_eq!(code(&client, "app/good", missing).await, "NOT_FOUND");
    }
}

/// An operation acts on behalf of a caller who may do more than its author.
#[tokio::test]
async fn an_operation_learns_only_what_it_may_call_itself() {
    let lists = || ScopedPeerEnv::new(["services/*", "fs/*"]);
    let node = node(
        files()
            .with(calls("app/lists", authority(&["fs:read"]), lists()))
            .with(calls("app/blind", authority(&["other"]), lists())),
    );
    let client = node.client(Carriage::Memory, Some(identity("reader", &["fs:read"])));
    let guest = node.client(Carriage::Memory, Some(identity("guest", &["nothing"])));
    let list = json!({"op": "services/list", "input": {"prefix": "fs/"}});
    let schema = json!({"op": "services/schema", "input": {"name": "fs/read"}});
    for (client, operation, is_shown) in [
        (&client, "app/lists", true),
        (&client, "app/blind", false),
        (&guest, "app/lists", false),
    ] {
        let listed = soon(client.call(operation, &list)).await.expect("a list");
        let names: Vec<_> = listed.value()["operations"]
            .as_array()
            .expect("a list")
            .iter()
            .collect();
        assert_eq!(names.len(), usize::from(is_shown), "{operation}: {names:?}");
        let shown = soon(client.call(operation, &schema)).await;
        assert_eq!(shown.is_ok(), is_shown, "{operation}: {shown:?}");
    }
    // Every operation sees the operations that every caller may call.
    let open = json!({"op": "services/schema", "input": {"name": "app/bare"}});
    assert!(soon(client.call("app/blind", &open)).await.is_ok());
}

/// A subscription that passes on the events of `services/watch`.
fn watches(name: &str, scopes: &[&str]) -> Registration {
    let spec = OperationSpec::subscription(name, "Watches.");
    let handler = HandlerKind::stream(|_, ctx: Ctx| {
        let input = CallBody::json(&json!({})).expect("JSON");
        let options = InvokeOptions::default();
        let followed = ctx.env().follow("services/watch", input, &options);
        followed.expect("it may watch")
    });
    Registration::new(spec, handler)
        .composing(authority(scopes), ScopedPeerEnv::new(["services/*"]))
}

/// An operation watches on behalf of a caller who may do more than its author, and of one who may do less.
#[tokio::test]
async fn an_operation_that_watches_learns_only_what_it_may_call_itself() {
    let node = node(
        Registry::builder()
            .with(watches("app/sees", &["fs:read", "peer:list"]))
            .with(watches("app/blind", &["other"])),
    );
    let may_all = identity("reader", &["fs:read", "peer:list"]);
    let client = node.client(Carriage::Memory, Some(may_all));
    let guest = node.client(Carriage::Memory, Some(identity("guest", &["nothing"])));
    let mut all = Vec::new();
    for (client, operation, sees) in [
        (&client, "app/sees", true),
        (&client, "app/blind", false),
        (&guest, "app/sees", false),
    ] {
        let events = soon(client.subscribe(operation, &Value::Null)).await;
        let mut events = events.expect("it is sent");
        soon(events.next()).await.expect("more").expect("a hash");
        all.push((events, sees));
    }
    let announcer = node.dispatcher.announcer();
    let closed = query("fs/read").with_scope("fs:read");
    let worker = "worker".parse().expect("a peer id");
    announcer.peer(&worker, "p1", [&query("gpu/run"), &closed]);
    let own: Vec<_> = node.dispatcher.registry().specs().cloned().collect();
    announcer.own("h2", own.iter().chain([&closed, &query("fs/open")]));
    announcer.own("h3", &own);
    for (mut events, sees) in all {
        let mut next = async || -> RegistryChange {
            let event = soon(events.next()).await.expect("more").expect("an event");
            event.output.parse().expect("a change")
        };
        let mut names = vec!["fs/open"];
        if sees {
            // Changes of peers come first, and only to an operation that may list them.
            let change = next().await;
            assert_eq!(change.peer.as_ref(), Some(&worker));
            assert_eq!(change.added, ["fs/read", "gpu/run"]);
            names.push("fs/read");
        }
        // A slow reader gets both changes as one, which leaves only the hash.
        let mut change = next().await;
        assert_eq!(change.peer, None);
        while change.registry != "h3" {
            assert_eq!(change.added, names);
            change = next().await;
        }
        assert!(change.added.is_empty());
        assert!(
            change.removed.is_empty() || change.removed == names,
            "{change:?}"
        );
    }
}

#[tokio::test]
async fn a_forged_originator_changes_nothing() {
    let node = node(files());
    let admin = ForwardedFor::new("admin").with_scopes(vec!["*".to_owned(), "fs:read".to_owned()]);
    let options = CallOptions {
        forwarded_for: Some(admin),
        trace: Some("00-1-2-01".to_owned()),
        ..CallOptions::default()
    };
    for scopes in [&["nothing"][..], &["forward:identity"]] {
        let client = node.client(Carriage::Memory, Some(identity("guest", scopes)));
        let direct = client.call_with("fs/read", &Value::Null, &options);
        let refused = soon(direct).await.expect_err("no scope");
        assert_eq!(refused.code, ErrorCode::Forbidden);
        let read = json!({"op": "fs/read"});
        let weak = client.call_with("app/weak", &read, &options);
        assert_eq!(
            soon(weak).await.expect_err("no authority").code,
            ErrorCode::Forbidden
        );
        // The call below gets nothing of the request either.
        let good = client.call_with("app/good", &read, &options);
        let seen = soon(good).await.expect("by authority");
        assert_eq!(seen.value()["forwarded_for"], Value::Null);
        assert_eq!(seen.value()["trace"], Value::Null);
        assert_eq!(seen.value()["identity"], "guest");
    }
}

#[tokio::test]
async fn each_operation_works_with_what_it_was_registered_with() {
    let with = |name: &str, secret: &str, label| {
        let registration = mirror(query(name).internal());
        let scopes: [&str; 0] = [];
        registration.with_capabilities(door(secret)).composing(
            CompositionAuthority::new(label, scopes),
            ScopedPeerEnv::default(),
        )
    };
    let parent = calls("app/parent", authority(&[]), ScopedPeerEnv::new(["app/*"]));
    let node = node(
        Registry::builder()
            .with(parent.with_capabilities(door("the parent's")))
            .with(with("app/child", "the child's", "child"))
            .with(mirror(query("app/bare").internal())),
    );
    let client = node.client(Carriage::Memory, None);
    let call = |op: &str| {
        let input = json!({"op": op});
        let client = client.clone();
        async move {
            soon(client.call("app/parent", &input))
                .await
                .expect("reachable")
        }
    };
    let child = call("app/child").await;
    assert_eq!(child.value()["secret"], "the child's");
    assert_eq!(child.value()["authority"], "child");
    let bare = call("app/bare").await;
    assert_eq!(bare.value()["secret"], Value::Null);
    assert_eq!(bare.value()["authority"], Value::Null);
    let (root, id) = (&bare.value()["root"], &bare.value()["id"]);
    assert_eq!(&bare.value()["parent"], root);
    assert_eq!(
        id.as_str(),
        root.as_str().map(|root| format!("{root}.1")).as_deref()
    );
}

#[tokio::test]
async fn a_child_has_what_is_left_of_its_parents_time() {
    let node = node(
        Registry::builder()
            .with(calls(
                "app/two",
                authority(&[]),
                ScopedPeerEnv::new(["app/*"]),
            ))
            .with(calls(
                "app/one",
                authority(&[]),
                ScopedPeerEnv::new(["app/*"]),
            ))
            .with(mirror(query("app/mirror"))),
    );
    let client = node.client(Carriage::Memory, None);
    let limit = deadline(Duration::from_secs(5));
    let options = CallOptions {
        timeout: Some(limit),
        ..CallOptions::default()
    };
    let nested = json!({"op": "app/one", "input": {"op": "app/mirror"}});
    let answer = soon(client.call_with("app/two", &nested, &options)).await;
    let left = answer.expect("in time").value()["left_ms"]
        .as_u64()
        .expect("a deadline");
    // Two hops below the limit, each less five milliseconds.
    assert!(u128::from(left) + 10 <= limit.as_millis(), "{left}");
    let hurried = CallOptions {
        timeout: Some(Duration::from_millis(4)),
        ..CallOptions::default()
    };
    let late = soon(client.call_with("app/two", &nested, &hurried)).await;
    assert_eq!(late.expect_err("nothing is left").code, ErrorCode::Timeout);
}

#[tokio::test]
async fn circles_and_crowds_are_bounded() {
    let own: ScopedPeerEnv = ScopedPeerEnv::new(["app/*"]);
    let reach = own.clone();
    let hang = query("app/hang").internal();
    let probe: Arc<OperationProbe> = Arc::default();
    let p = Arc::clone(&probe);
    let node = node(
        Registry::builder()
            .with(
                Registration::new(
                    query("app/circle"),
                    HandlerKind::once(|_, ctx: Ctx| async move {
                        let inner = ctx.env().invoke("app/circle", &Value::Null).await;
                        match inner {
                            Ok(depth) => Ok(json!(depth.parse::<usize>()? + 1)),
                            Err(error) if error.code == ErrorCode::Internal => Ok(json!(0)),
                            Err(error) => Err(error),
                        }
                    }),
                )
                .composing(authority(&[]), own.clone()),
            )
            .with(
                Registration::new(
                    query("app/crowd"),
                    HandlerKind::once(|_, ctx: Ctx| async move {
                        let env = ctx.env();
                        let many = (0..=COMPOSITION_CHILDREN_MAX)
                            .map(|_| env.invoke("app/hang", &Value::Null));
                        let mut all: stream::FuturesUnordered<_> = many.collect();
                        let first = all.next().await;
                        let error = first.expect("one too many").expect_err("it is refused");
                        Ok(json!(error.code.name()))
                    }),
                )
                .composing(authority(&[]), reach),
            )
            .with(Registration::new(
                hang,
                HandlerKind::once(move |_, _| {
                    let guard = ProbeGuard::new(&p);
                    async move {
                        let _guard = guard;
                        std::future::pending::<Result<Value, CallError>>().await
                    }
                }),
            )),
    );
    let client = node.client(Carriage::Memory, None);
    let depth = soon(client.call("app/circle", &Value::Null))
        .await
        .expect("bounded");
    assert_eq!(
        depth.parse::<usize>().expect("a number"),
        COMPOSITION_DEPTH_MAX
    );
    let answer = soon(client.call("app/crowd", &Value::Null))
        .await
        .expect("bounded");
    assert_eq!(*answer.value(), "OVERLOADED");
    probe.wait(|p| &p.dropped, COMPOSITION_CHILDREN_MAX).await;
    assert_eq!(
        probe.started.load(Ordering::SeqCst),
        COMPOSITION_CHILDREN_MAX
    );
}

#[tokio::test]
async fn what_is_called_is_checked_like_any_call() {
    let mut single = query("app/single").internal();
    single.concurrency = Some(1);
    let numbers = query("app/number")
        .internal()
        .with_input(json!({"type": "integer"}));
    let echo = |_: CallBody, _: Ctx| async { Ok(Value::Null) };
    let events = |_: CallBody, _: Ctx| stream::empty::<Result<Value, CallError>>();
    let node = node(
        Registry::builder()
            .with(calls(
                "app/calls",
                authority(&[]),
                ScopedPeerEnv::new(["app/*"]),
            ))
            .with(Registration::new(numbers, HandlerKind::once(echo)))
            .with(Registration::new(
                OperationSpec::subscription("app/events", "").internal(),
                HandlerKind::stream(events),
            ))
            .with(Registration::new(
                query("app/panic").internal(),
                HandlerKind::once(|_, _| async {
                    if true {
                        panic!("on purpose");
                    }
                    Ok(Value::Null)
                }),
            ))
            .with(Registration::new(
                query("app/undeclared").internal(),
                HandlerKind::once(|_, _| async {
                    Err::<Value, _>(CallError::operation("DISK_FULL", "no room"))
                }),
            ))
            .with(
                Registration::new(single, HandlerKind::once(relay))
                    .composing(authority(&[]), ScopedPeerEnv::new(["app/*"])),
            )
            .with(mirror(query("app/mirror").internal())),
    );
    let client = node.client(Carriage::Memory, None);
    let call = |op: &str, input: Value| json!({"op": op, "input": input});
    for (input, expected) in [
        (call("app/number", json!("x")), "INVALID_INPUT"),
        (call("app/events", json!(null)), "INVALID_OPERATION_TYPE"),
        (call("app/panic", json!(null)), "INTERNAL"),
        (call("app/undeclared", json!(null)), "INTERNAL"),
        (
            call("app/single", call("app/single", json!(null))),
            "OVERLOADED",
        ),
    ] {
        assert_eq!(code(&client, "app/calls", input).await, expected);
    }
    let free = call("app/single", call("app/mirror", json!(null)));
    soon(client.call("app/calls", &free))
        .await
        .expect("its place is free again");
    assert_eq!(node.dispatcher.stats().panics, 1);
}

#[tokio::test]
async fn a_session_stays_within_what_opened_it() {
    let reach = || ScopedPeerEnv::new(["fs/*", "app/*"]);
    let sandbox = Registration::new(
        query("app/sandbox"),
        HandlerKind::once(|_, ctx: Ctx| async move {
            let env = ctx.env();
            let wider =
                SandboxSession::open(&env, authority(&["fs:write"]), ScopedPeerEnv::default());
            let further = SandboxSession::open(&env, authority(&[]), ScopedPeerEnv::new(["x/y"]));
            let session = SandboxSession::open(
                &env,
                authority(&["fs:read"]),
                ScopedPeerEnv::new(["fs/read", "app/outer"]),
            )
            .map_err(|error| CallError::internal(error.to_string()))?;
            let own = |name| Registration::new(query(name), HandlerKind::once(relay));
            let taken = session.register(own("fs/read"));
            let reserved = session.register(own("node/info"));
            for name in ["js/one", "js/two"] {
                session
                    .register(own(name))
                    .map_err(|error| CallError::internal(error.to_string()))?;
            }
            let inner = session.env(&env);
            let through = |op: &str| json!({"op": "js/two", "input": {"op": op}});
            let read = inner.invoke("js/one", &through("fs/read")).await?;
            let unlisted = inner.invoke("js/one", &through("fs/secret")).await;
            // A curated operation that the session calls does not reach the session's own operations.
            let outer = inner.invoke("app/outer", &json!({"op": "js/one"})).await;
            let outside = env.invoke("js/one", &Value::Null).await;
            let codes = [unlisted, outer, outside]
                .map(|outcome| outcome.expect_err("out of reach").code.name().to_owned());
            Ok(json!({
                "refused": [
                    wider.is_err(), further.is_err(), taken.is_err(), reserved.is_err(),
                ],
                "read": read.value()["internal"],
                "codes": codes,
            }))
        }),
    );
    let node = node(
        files()
            .with(sandbox.composing(authority(&["fs:read"]), reach()))
            .with(calls(
                "app/outer",
                authority(&["*"]),
                ScopedPeerEnv::new(["fs/*"]),
            )),
    );
    let client = node.client(Carriage::Memory, None);
    let answer = soon(client.call("app/sandbox", &Value::Null))
        .await
        .expect("it runs");
    assert_eq!(answer.value()["refused"], json!([true, true, true, true]));
    assert_eq!(answer.value()["read"], true);
    assert_eq!(
        answer.value()["codes"],
        json!(["NOT_FOUND", "NOT_FOUND", "NOT_FOUND"])
    );
    // A peer outside never sees them.
    assert_eq!(code(&client, "js/one", json!(null)).await, "NOT_FOUND");
    let listed = soon(client.operations("js")).await.expect("a listing");
    assert!(listed.is_empty());
}
