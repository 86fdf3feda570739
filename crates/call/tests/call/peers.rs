//! A hub and its workers: importing, choosing, loss.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alknet_call::limits::IMPORT_DEBOUNCE;
use alknet_call::*;
use alknet_core::{Carriage, CloseCode, CloseReason};
use alknet_test_support::{deadline, took};
use serde_json::{Value, json};

use crate::common::*;
use crate::farm::*;

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
        // A caller that named the peer learns of its loss; the hub asks the next peer for a query of any peer.
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
async fn a_peer_never_replaces_an_operation_of_the_node() {
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
    let hub = CallTestNode::with_dispatcher(dispatcher, Arc::default());
    let worker = worker("w1");
    let _link = worker.join(&hub, Carriage::Memory, identity("w1", &[]));
    attached(&hub, &["w1"]).await;
    let user = hub.client(Carriage::Memory, None);
    assert_eq!(ask(&user, "node/info", json!(null)).await, "the hub's own");
    assert_eq!(ask(&user, "farm/info", json!(null)).await, "the hub's own");
    assert_eq!(ask(&user, "farm/any", json!({})).await, "w1");
    // An operation that only the peer has is not an operation of the hub.
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
            let (ended, what) = (Instant::now(), ["the end of a connection", "an abort"]);
            if by_abort {
                call.abort();
            } else {
                user.close(CloseCode::Normal, "");
            }
            probe.wait(|p| &p.dropped, before + 1).await;
            let what = what[usize::from(by_abort)];
            took(
                &format!("{what} reaches a third node in one process over {carriage:?}"),
                Duration::from_millis(100),
                ended.elapsed(),
            );
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
        // It keeps its position among the peers, and new calls go over the new connection.
        attached(&farm.hub, &["w1", "w2", "w3"]).await;
        let caller = user.clone();
        let second =
            tokio::spawn(async move { caller.call("farm/hang", &json!({"to": "w1"})).await });
        again.probe.wait(|p| &p.started, 1).await;
        // The running call on the old connection finishes.
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

/// The hub may route a call to a connection just before a newer one replaces it, and the call may reach it just after
/// it was found idle and ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_is_lost_while_a_peer_connects_again_and_again() {
    const CALLERS: usize = 8;
    const TIMES: usize = 200;
    let farm = farm(Carriage::Memory).await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let user = farm.hub.client(Carriage::Memory, None);
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = ask(&user, "farm/exec", json!({"to": "w1"})).await;
                    assert_eq!(answer["worker"], "w1");
                }
            })
        })
        .collect();
    let mut older = farm.links[0].clone();
    let mut workers = Vec::new();
    for _ in 0..TIMES {
        let again = worker("w1");
        let newer = again.join(&farm.hub, Carriage::Memory, identity("w1", &[]));
        soon(older.closed()).await;
        workers.push(again);
        older = newer;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        soon(caller).await.expect("every call was answered");
    }
}

#[tokio::test]
async fn time_that_is_left_goes_along() {
    let farm = farm(Carriage::Memory).await;
    let user = farm.hub.client(Carriage::Memory, None);
    let options = CallOptions {
        // Enough time for the handler on the other node to start.
        timeout: Some(deadline(Duration::from_millis(100))),
        ..CallOptions::default()
    };
    let input = json!({"to": "w1"});
    let error = soon(user.call_with("farm/hang", &input, &options)).await;
    assert_eq!(error.expect_err("too late").code, ErrorCode::Timeout);
    farm.workers[0].probe.wait(|p| &p.dropped, 1).await;
}

#[tokio::test]
async fn peers_without_a_name_stay_with_their_connection() {
    let hub = CallTestNode::with_dispatcher(
        Dispatcher::new(
            Registry::builder()
                .with(Registration::new(
                    query("farm/import"),
                    HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
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
    // One name is taken: the node imports nothing.
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

/// The answer of `services/schema` for the requested names.
fn specs(input: &Value) -> Value {
    let names = input["names"].as_array().cloned().unwrap_or_default();
    let spec = |name: &Value| query(name.as_str().unwrap_or_default());
    json!({ "specs": names.iter().map(spec).collect::<Vec<_>>() })
}

#[tokio::test]
async fn what_a_peer_changes_is_read_again() {
    static NAMES: Mutex<&[&str]> = Mutex::new(&["work/one"]);
    let hub = hub();
    let (dialled, _) = hub.serve(Carriage::Memory, Some(identity("w1", &[])));
    let changes = tokio::sync::watch::channel(Value::Null).0;
    let answer = |operation: &str, input: &Value| match operation {
        "/services/list" => listing(*NAMES.lock().expect("no panics")),
        _ => specs(input),
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

/// A peer ends its stream of changes right after it reported a change, or reports at once that it supports none.
#[tokio::test]
async fn a_peer_that_ends_its_watch_is_read_no_more_often() {
    static READS: Mutex<Vec<Instant>> = Mutex::new(Vec::new());
    let answer = |operation: &str, input: &Value| match operation {
        "/services/list" => {
            READS.lock().expect("no panics").push(Instant::now());
            listing(&["work/one"])
        }
        _ => specs(input),
    };
    for said in [
        json!({ "registry": "another", "ends": true }),
        json!({ "code": "UNAVAILABLE", "message": "not now", "retryable": true }),
    ] {
        READS.lock().expect("no panics").clear();
        let hub = hub();
        let (dialled, _) = hub.serve(Carriage::Memory, Some(identity("w1", &[])));
        let mut attaches = hub.dispatcher.peers().changes();
        let changes = tokio::sync::watch::channel(said.clone()).0;
        answer_by_hand(dialled.clone(), answer, changes);
        let reads = || READS.lock().expect("no panics").clone();
        soon(async {
            while reads().len() < 3 {
                attaches.changed().await.expect("the hub lives");
            }
        })
        .await;
        dialled.close(CloseCode::Normal, "");
        attached(&hub, &[]).await;
        let reads = reads();
        for pair in reads.windows(2) {
            let between = pair[1] - pair[0];
            assert!(between >= IMPORT_DEBOUNCE, "{said}: {between:?}");
        }
    }
}
