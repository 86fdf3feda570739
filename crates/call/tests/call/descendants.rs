//! The fate of the calls below a request that ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_call::*;
use alknet_core::Carriage;
use alknet_test_support::deadline;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::common::*;
use crate::composition::{authority, mirror, node, query};

/// Calls `width` of itself, `depth` levels deep; the leaves hang. With `spawned` it calls from tasks that it does not
/// await.
fn tree(probe: &Arc<OperationProbe>, width: u64) -> Registration {
    let probe = Arc::clone(probe);
    Registration::new(
        query("app/tree"),
        HandlerKind::once(move |input: CallBody, ctx: Ctx| {
            let guard = ProbeGuard::new(&probe);
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
    // Two calls below each, nine levels deep: 1022 below one request, within the limit.
    const DEPTH: u32 = 9;
    const ALL: usize = 2usize.pow(DEPTH + 1) - 1;
    for carriage in CARRIAGES {
        for spawned in [false, true] {
            for by_abort in [true, false] {
                let probe: Arc<OperationProbe> = Arc::default();
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

/// The observed steps of a tree of calls.
#[derive(Default)]
struct TreeObservation {
    finished: AtomicUsize,
    refused: Mutex<Vec<ErrorCode>>,
}

fn continuing(probe: &Arc<OperationProbe>, seen: &Arc<TreeObservation>) -> RegistryBuilder {
    let (p, s) = (Arc::clone(probe), Arc::clone(seen));
    let reach = || ScopedPeerEnv::new(["app/*"]);
    let slow = Registration::new(
        query("app/slow").internal(),
        HandlerKind::once(move |_, ctx: Ctx| {
            let (guard, seen) = (ProbeGuard::new(&p), Arc::clone(&s));
            async move {
                guard.0.release.notified().await;
                // No new call starts below a request that is over.
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
            let (probe, seen): (Arc<OperationProbe>, Arc<TreeObservation>) = Default::default();
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
            // The dependent call is dropped; the other waits for its release.
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
async fn the_continuing_call_answers_every_waiting_caller() {
    let (probe, seen): (Arc<OperationProbe>, Arc<TreeObservation>) = Default::default();
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
    let (probe, seen): (Arc<OperationProbe>, Arc<TreeObservation>) = Default::default();
    let node = node(continuing(&probe, &seen));
    let client = node.client(Carriage::Memory, None);
    let options = CallOptions {
        // Enough time for the handler to start.
        timeout: Some(deadline(Duration::from_millis(200))),
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
