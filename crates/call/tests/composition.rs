//! Operations that call operations: by whose authority, how far, and how they end.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_call::limits::{COMPOSITION_CHILDREN_MAX, COMPOSITION_DEPTH_MAX};
use alknet_call::*;
use alknet_core::Carriage;
use common::*;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

/// An operation that calls whatever its input names: `{"op", "input"?}`.
fn calls(name: &str, authority: CompositionAuthority, reach: ScopedPeerEnv) -> Registration {
    let spec = OperationSpec::query(name, "Calls another.");
    Registration::new(spec, HandlerKind::once(relay)).composing(authority, reach)
}

async fn relay(input: Body, ctx: Ctx) -> Result<Output, CallError> {
    let op = input.value()["op"].as_str().unwrap_or_default();
    let answer = ctx.env().invoke(op, &input.value()["input"]).await?;
    Ok(answer.into())
}

fn query(name: &str) -> OperationSpec {
    OperationSpec::query(name, "For tests.")
}

/// Answers with what it sees of its context.
fn mirror(spec: OperationSpec) -> Registration {
    Registration::new(
        spec,
        HandlerKind::once(|_, ctx: Ctx| async move {
            let secret = ctx.capabilities().get::<String>();
            Ok(json!({
                "id": ctx.request_id(),
                "parent": ctx.parent_request_id(),
                "root": ctx.root_request_id(),
                "internal": ctx.internal(),
                "identity": ctx.identity().map(|who| who.id.to_string()),
                "forwarded_for": ctx.forwarded_for(),
                "trace": ctx.trace(),
                "secret": secret.as_deref(),
                "authority": ctx.env().authority().map(|own| own.label.to_string()),
                "left_ms": ctx.deadline().map(|at| {
                    at.duration_since(tokio::time::Instant::now()).as_millis() as u64
                }),
            }))
        }),
    )
}

fn node(builder: RegistryBuilder) -> Node {
    let registry = builder.build().expect("every rule is kept");
    Node::of(Dispatcher::new(registry), Arc::default())
}

fn authority(scopes: &[&str]) -> CompositionAuthority {
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
        // The caller has no fs:read: the operation it may call has.
        assert_eq!(code(&client, "fs/read", json!(null)).await, "FORBIDDEN");
        let read = json!({"op": "fs/read"});
        let answer = soon(client.call("app/good", &read))
            .await
            .expect("by authority");
        assert_eq!(answer.value()["identity"], "guest");
        assert_eq!(answer.value()["internal"], true);
        // The other way round: what the caller may do is of no use to the operation.
        let reader = node.client(carriage, Some(identity("reader", &["fs:read"])));
        soon(reader.call("fs/read", &json!(null)))
            .await
            .expect("its scope");
        assert_eq!(code(&reader, "app/weak", read.clone()).await, "FORBIDDEN");
        assert_eq!(code(&reader, "app/far", read).await, "NOT_FOUND");
        // Internal operations exist for operations only.
        assert_eq!(code(&reader, "fs/secret", json!(null)).await, "NOT_FOUND");
        let secret = json!({"op": "/fs/secret"});
        soon(client.call("app/good", &secret))
            .await
            .expect("reachable by composition");
        let missing = json!({"op": "fs/missing"});
        assert_eq!(code(&client, "app/good", missing).await, "NOT_FOUND");
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
        // And nothing of the request reaches what is called below it.
        let good = client.call_with("app/good", &read, &options);
        let seen = soon(good).await.expect("by authority");
        assert_eq!(seen.value()["forwarded_for"], Value::Null);
        assert_eq!(seen.value()["trace"], Value::Null);
        assert_eq!(seen.value()["identity"], "guest");
    }
}

#[tokio::test]
async fn everybody_works_with_what_they_were_registered_with() {
    let with = |name: &str, secret: &str, label| {
        let registration = mirror(query(name).internal());
        let scopes: [&str; 0] = [];
        registration
            .with_capabilities(Capabilities::new(secret.to_owned()))
            .composing(
                CompositionAuthority::new(label, scopes),
                ScopedPeerEnv::default(),
            )
    };
    let parent = calls("app/parent", authority(&[]), ScopedPeerEnv::new(["app/*"]));
    let node = node(
        Registry::builder()
            .with(parent.with_capabilities(Capabilities::new("the parent's".to_owned())))
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
    let options = CallOptions {
        timeout: Some(Duration::from_secs(5)),
        ..CallOptions::default()
    };
    let nested = json!({"op": "app/one", "input": {"op": "app/mirror"}});
    let answer = soon(client.call_with("app/two", &nested, &options)).await;
    let left = answer.expect("in time").value()["left_ms"]
        .as_u64()
        .expect("a deadline");
    // Two hops below five seconds, each less five milliseconds.
    assert!(left <= 4990, "{left}");
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
    let probe: Arc<Probe> = Arc::default();
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
                    let guard = Guard::new(&p);
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
    let echo = |_: Body, _: Ctx| async { Ok(Value::Null) };
    let events = |_: Body, _: Ctx| stream::empty::<Result<Value, CallError>>();
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

/// Calls `width` of itself, `depth` levels deep; the leaves hang. `spawned` calls from tasks that
/// nobody awaits.
fn tree(probe: &Arc<Probe>, width: u64) -> Registration {
    let probe = Arc::clone(probe);
    Registration::new(
        query("app/tree"),
        HandlerKind::once(move |input: Body, ctx: Ctx| {
            let guard = Guard::new(&probe);
            async move {
                let _guard = guard;
                let depth = input.value()["depth"].as_u64().unwrap_or_default();
                if depth == 0 {
                    return std::future::pending::<Result<Value, CallError>>().await;
                }
                let spawned = input.value()["spawned"].as_bool().unwrap_or_default();
                let input = json!({"depth": depth - 1, "spawned": spawned});
                if !spawned {
                    let env = ctx.env();
                    join_all((0..width).map(|_| env.invoke("app/tree", &input))).await;
                    return Ok(Value::Null);
                }
                for _ in 0..width {
                    let (env, input) = (ctx.env(), input.clone());
                    tokio::spawn(async move { env.invoke("app/tree", &input).await });
                }
                std::future::pending().await
            }
        }),
    )
    .composing(authority(&[]), ScopedPeerEnv::new(["app/tree"]))
}

#[tokio::test]
async fn a_thousand_descendants_end_with_their_root() {
    // Two below each, nine deep: 1022 below one, within what one request may have.
    const DEPTH: u32 = 9;
    const ALL: usize = 2usize.pow(DEPTH + 1) - 1;
    for carriage in CARRIAGES {
        for spawned in [false, true] {
            for by_abort in [true, false] {
                let probe: Arc<Probe> = Arc::default();
                let node = node(Registry::builder().with(tree(&probe, 2)));
                let client = node.client(carriage, None);
                let caller = client.clone();
                let input = json!({"depth": DEPTH, "spawned": spawned});
                let call = tokio::spawn(async move { caller.call("app/tree", &input).await });
                probe.wait(|p| &p.started, ALL).await;
                if by_abort {
                    call.abort();
                } else {
                    client.close(alknet_core::CloseCode::Normal, "");
                }
                probe.wait(|p| &p.dropped, ALL).await;
                assert_eq!(probe.started.load(Ordering::SeqCst), ALL);
            }
        }
    }
}

/// What a tree of calls did.
#[derive(Default)]
struct Seen {
    finished: AtomicUsize,
    refused: Mutex<Vec<ErrorCode>>,
}

fn continuing(probe: &Arc<Probe>, seen: &Arc<Seen>) -> RegistryBuilder {
    let (p, s) = (Arc::clone(probe), Arc::clone(seen));
    let reach = || ScopedPeerEnv::new(["app/*"]);
    let slow = Registration::new(
        query("app/slow").internal(),
        HandlerKind::once(move |_, ctx: Ctx| {
            let (guard, seen) = (Guard::new(&p), Arc::clone(&s));
            async move {
                guard.0.release.notified().await;
                // Nothing new starts below a request that is over.
                let late = ctx.env().invoke("app/echo", &json!(1)).await;
                if let Err(error) = late {
                    seen.refused.lock().expect("no panics").push(error.code);
                }
                seen.finished.fetch_add(1, Ordering::SeqCst);
                Ok(Value::Null)
            }
        }),
    );
    let starts = |name: &str, on_abort| {
        Registration::new(
            query(name),
            HandlerKind::once(move |_, ctx: Ctx| async move {
                let options = InvokeOptions {
                    on_abort,
                    ..InvokeOptions::default()
                };
                let env = ctx.env();
                let slow = env.invoke_with("app/slow", &Value::Null, &options).await;
                slow.map(|_| Value::Null)
            }),
        )
        .composing(authority(&[]), reach())
    };
    Registry::builder()
        .with(slow.composing(authority(&[]), reach()))
        .with(starts("app/continue", OnAbort::ContinueRunning))
        .with(starts("app/dependent", OnAbort::AbortDependents))
        .with(mirror(query("app/echo").internal()))
}

#[tokio::test]
async fn who_continues_finishes_and_starts_nothing_new() {
    for carriage in CARRIAGES {
        for by_abort in [true, false] {
            let (probe, seen): (Arc<Probe>, Arc<Seen>) = Default::default();
            let node = node(continuing(&probe, &seen));
            let client = node.client(carriage, None);
            let calls = ["app/continue", "app/dependent"].map(|operation| {
                let client = client.clone();
                tokio::spawn(async move { client.call(operation, &Value::Null).await })
            });
            probe.wait(|p| &p.started, 2).await;
            if by_abort {
                calls.iter().for_each(|call| call.abort());
            } else {
                client.close(alknet_core::CloseCode::Normal, "");
            }
            // The dependent one is dropped; the other waits to be released.
            probe.wait(|p| &p.dropped, 1).await;
            probe.release.notify_one();
            probe.wait(|p| &p.dropped, 2).await;
            assert_eq!(seen.finished.load(Ordering::SeqCst), 1);
            assert_eq!(
                *seen.refused.lock().expect("no panics"),
                [ErrorCode::Aborted]
            );
        }
    }
}

#[tokio::test]
async fn who_continues_answers_whoever_waits() {
    let (probe, seen): (Arc<Probe>, Arc<Seen>) = Default::default();
    let node = node(continuing(&probe, &seen));
    let client = node.client(Carriage::Memory, None);
    let call = client.call("app/continue", &Value::Null);
    let release = async {
        probe.wait(|p| &p.started, 1).await;
        probe.release.notify_one();
    };
    let (answer, ()) = soon(async { tokio::join!(call, release) }).await;
    answer.expect("it finished");
    assert!(seen.refused.lock().expect("no panics").is_empty());
}

#[tokio::test]
async fn who_continues_still_has_a_deadline() {
    let (probe, seen): (Arc<Probe>, Arc<Seen>) = Default::default();
    let node = node(continuing(&probe, &seen));
    let client = node.client(Carriage::Memory, None);
    let options = CallOptions {
        timeout: Some(Duration::from_millis(200)),
        ..CallOptions::default()
    };
    let caller = client.clone();
    let call = tokio::spawn(async move {
        caller
            .call_with("app/continue", &Value::Null, &options)
            .await
    });
    probe.wait(|p| &p.started, 1).await;
    call.abort();
    probe.wait(|p| &p.dropped, 1).await;
    assert_eq!(seen.finished.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_session_stays_within_what_opened_it() {
    let reach = || ScopedPeerEnv::new(["fs/*", "app/*"]);
    let sandbox = Registration::new(
        query("app/sandbox"),
        HandlerKind::once(|_, ctx: Ctx| async move {
            let env = ctx.env();
            let wider = Session::open(&env, authority(&["fs:write"]), ScopedPeerEnv::default());
            let further = Session::open(&env, authority(&[]), ScopedPeerEnv::new(["x/y"]));
            let session = Session::open(
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
            // A curated operation called by the session does not reach the session's own.
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
    // Nobody outside ever sees them.
    assert_eq!(code(&client, "js/one", json!(null)).await, "NOT_FOUND");
    let listed = soon(client.operations("js")).await.expect("a listing");
    assert!(listed.is_empty());
}
