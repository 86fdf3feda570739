//! Calls between this crate's two sides, over both kinds of carriage.

use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_call::*;
use alknet_core::Carriage;
use alknet_test_support::deadline;
use serde_json::{Value, json};

use crate::common::*;

#[tokio::test]
async fn calls_are_answered() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, None);
        for input in [
            json!(null),
            json!({"a": [1, "é", {"b": null}]}),
            json!("x".repeat(20_000)),
        ] {
            let answer = soon(client.call("test/echo", &input))
                .await
                .expect("an echo");
            assert_eq!(*answer.value(), input);
        }
        let n: i32 = soon(client.call_typed("test/typed", &json!({"n": 5})))
            .await
            .expect("typed");
        assert_eq!(n, 5);
    }
}

#[tokio::test]
async fn every_failure_has_its_code() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, Some(identity("guest", &["other"])));
        for (operation, input, code) in [
            ("test/nothing", json!(null), "NOT_FOUND"),
            ("test/internal", json!(null), "NOT_FOUND"),
            ("test/typed", json!({"n": "x"}), "INVALID_INPUT"),
            ("test/typed", json!(null), "INVALID_INPUT"),
            ("test/panic", json!(null), "INTERNAL"),
            ("test/undeclared", json!(null), "INTERNAL"),
            ("test/big", json!(2 << 20), "PAYLOAD_TOO_LARGE"),
            // Access comes before the schema: the input is not a string either.
            ("test/admin", json!(1), "FORBIDDEN"),
        ] {
            let error = soon(client.call(operation, &input))
                .await
                .expect_err(operation);
            assert_eq!(error.code.name(), code, "{operation}");
        }
        assert_eq!(node.dispatcher.stats().panics, 1);
        soon(client.call("test/echo", &json!(1)))
            .await
            .expect("still served");
    }
}

#[tokio::test]
async fn undeclared_codes_are_named_in_the_details() {
    let node = CallTestNode::new();
    let client = node.client(Carriage::Memory, None);
    let error = soon(client.call("test/undeclared", &json!(null)))
        .await
        .expect_err("fails");
    assert_eq!(
        error.details.as_deref(),
        Some(&json!({"code": "DISK_FULL"}))
    );
}

#[tokio::test]
async fn tokens_replace_the_connections_identity() {
    let node = CallTestNode::new();
    let admin = || Some(identity("boss", &["node:admin"]));
    let with = |token: &str| CallOptions {
        auth_token: Some(token.to_owned()),
        ..CallOptions::default()
    };
    let unknown_peer = node.client(Carriage::Memory, None);
    let call = |client: CallConnection, options| async move {
        let input = json!("x");
        soon(client.call_with("test/admin", &input, &options)).await
    };
    let none = CallOptions::default();
    let error = call(unknown_peer.clone(), none.clone())
        .await
        .expect_err("nobody");
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    let answer = call(unknown_peer, with("good"))
        .await
        .expect("the token's identity");
    assert_eq!(*answer.value(), json!("token"));
    let boss = node.client(Carriage::Memory, admin());
    let answer = call(boss.clone(), none).await.expect("the key's identity");
    assert_eq!(*answer.value(), json!("boss"));
    let error = call(boss, with("bad")).await.expect_err("no fall-back");
    assert_eq!(error.code, ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn claims_of_forwarders_need_a_scope_and_change_no_access() {
    let node = CallTestNode::new();
    let options = CallOptions {
        forwarded_for: Some(ForwardedFor::new("admin").with_scopes(vec!["node:admin".to_owned()])),
        trace: Some("00-1-2-01".to_owned()),
        ..CallOptions::default()
    };
    for (scope, seen) in [("other", json!(null)), ("forward:identity", json!("admin"))] {
        let client = node.client(Carriage::Memory, Some(identity("hub", &[scope])));
        let answer = soon(client.call_with("test/context", &json!(null), &options)).await;
        let answer = answer.expect("open to all").value().clone();
        assert_eq!(answer["forwarded_for"]["id"], seen);
        assert_eq!(answer["trace"], "00-1-2-01");
        assert_eq!(answer["deadline"], true);
        let error = soon(client.call_with("test/admin", &json!("x"), &options)).await;
        assert_eq!(error.expect_err("no scope").code, ErrorCode::Forbidden);
    }
}

#[tokio::test]
async fn a_slow_call_delays_no_other_and_its_abort_is_seen_at_once() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, None);
        let options = CallOptions {
            route: CallRoute::Shared,
            ..CallOptions::default()
        };
        let slow = client.call_with("test/hang", &Value::Null, &options);
        tokio::pin!(slow);
        tokio::select! {
            _ = &mut slow => panic!("it hangs"),
            () = node.probe.wait(|p| &p.started, 1) => {}
        }
        for n in 0..20 {
            let input = json!(n);
            let echo = client.call_with("test/echo", &input, &options);
            tokio::select! {
                _ = &mut slow => panic!("it hangs"),
                answer = soon(echo) => assert_eq!(*answer.expect("an echo").value(), json!(n)),
            }
        }
    }
}

#[tokio::test]
async fn dropping_a_call_aborts_it() {
    for carriage in CARRIAGES {
        for route in [CallRoute::Shared, CallRoute::Stream] {
            let node = CallTestNode::new();
            let client = node.client(carriage, None);
            let options = CallOptions {
                route,
                ..CallOptions::default()
            };
            let caller = client.clone();
            let call =
                tokio::spawn(
                    async move { caller.call_with("test/hang", &Value::Null, &options).await },
                );
            node.probe.wait(|p| &p.started, 1).await;
            call.abort();
            node.probe.wait(|p| &p.dropped, 1).await;
        }
    }
}

#[tokio::test]
async fn deadlines_drop_the_handler() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, None);
        let options = CallOptions {
            // Enough time for the handler to start.
            timeout: Some(deadline(Duration::from_millis(20))),
            ..CallOptions::default()
        };
        let error = soon(client.call_with("test/hang", &Value::Null, &options)).await;
        let error = error.expect_err("too late");
        assert_eq!((error.code, error.retryable), (ErrorCode::Timeout, true));
        node.probe.wait(|p| &p.dropped, 1).await;
        let mut silent = client
            .subscribe_with(
                "test/silent",
                &Value::Null,
                &CallOptions {
                    timeout: None,
                    idle: Some(deadline(Duration::from_millis(20))),
                    ..CallOptions::default()
                },
            )
            .await
            .expect("started");
        let error = soon(silent.next())
            .await
            .expect("an event")
            .expect_err("idle");
        assert_eq!(error.code, ErrorCode::Timeout);
        node.probe.wait(|p| &p.dropped, 2).await;
    }
}

/// The client of the other tests ends its calls by itself as well, a moment later, and its abort drops the handler,
/// too. This client only waits.
#[tokio::test]
async fn a_node_keeps_to_the_deadline_of_a_caller_that_only_waits() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let (dialled, _served) = node.serve(carriage, None);
        let mut peer = RawPeer::new(dialled).await;
        // Enough time for the handler to start.
        let enough = deadline(Duration::from_millis(20));
        let payload = json!({
            "operationId": "/test/hang",
            "timeout_ms": u64::try_from(enough.as_millis()).expect("a short time"),
        });
        peer.send(EventKind::Requested, "1", payload).await;
        let (kind, id, error) = peer.event().await;
        assert_eq!((kind, id.as_str()), (EventKind::Error, "1"));
        assert_eq!(error["code"], "TIMEOUT");
        node.probe.wait(|p| &p.dropped, 1).await;
    }
}

#[tokio::test]
async fn subscriptions_deliver_everything_in_order() {
    for carriage in CARRIAGES {
        for route in [CallRoute::Auto, CallRoute::Shared] {
            let node = CallTestNode::new();
            let client = node.client(carriage, None);
            let options = CallOptions {
                timeout: None,
                window: 7,
                route,
                ..CallOptions::default()
            };
            let mut events = client
                .subscribe_with("test/count", &json!(3000), &options)
                .await
                .expect("started");
            for n in 0..3000 {
                let event = soon(events.next()).await.expect("more").expect("an event");
                assert_eq!(*event.output.value(), json!(n));
                assert_eq!(event.dropped, 0);
            }
            assert!(soon(events.next()).await.is_none());
            assert!(soon(events.next()).await.is_none());
        }
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_source_back() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, None);
        let mut events = client
            .subscribe("test/count", &json!(null))
            .await
            .expect("started");
        soon(events.next()).await.expect("more").expect("an event");
        // Other calls go on, and the source stops once every buffer on the way is full.
        let mut before = 0;
        loop {
            for _ in 0..50 {
                soon(client.call("test/echo", &json!(1)))
                    .await
                    .expect("served meanwhile");
            }
            let now = node.probe.yielded.load(Ordering::SeqCst);
            if now == before {
                break;
            }
            before = now;
        }
        assert!(before < 10_000, "{before} events in memory");
        drop(events);
        node.probe.wait(|p| &p.dropped, 1).await;
    }
}

#[tokio::test]
async fn dropping_a_subscription_aborts_it() {
    for carriage in CARRIAGES {
        for operation in ["test/count", "test/silent", "test/lossy"] {
            let node = CallTestNode::new();
            let client = node.client(carriage, None);
            let events = client
                .subscribe(operation, &json!(null))
                .await
                .expect("started");
            node.probe.wait(|p| &p.started, 1).await;
            drop(events);
            node.probe.wait(|p| &p.dropped, 1).await;
            soon(client.call("test/echo", &json!(1)))
                .await
                .expect("still served");
        }
    }
}

#[tokio::test]
async fn errors_and_panics_end_a_subscription() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, None);
        for (operation, code) in [
            ("test/failing", "UNAVAILABLE"),
            ("test/panicking", "INTERNAL"),
        ] {
            let mut events = client
                .subscribe(operation, &json!(null))
                .await
                .expect("started");
            soon(events.next()).await.expect("one").expect("an event");
            let error = soon(events.next())
                .await
                .expect("the end")
                .expect_err("fails");
            assert_eq!(error.code.name(), code);
            assert!(soon(events.next()).await.is_none());
        }
        let mut events = client
            .subscribe("test/nothing", &json!(null))
            .await
            .expect("sent");
        let error = soon(events.next())
            .await
            .expect("the end")
            .expect_err("unknown");
        assert_eq!(error.code, ErrorCode::NotFound);
    }
}

#[tokio::test]
async fn the_other_side_can_call_back() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let (dialled, _served) = node.serve(carriage, None);
        let client = doubling().attach(dialled, None);
        let answer = soon(client.call("test/back", &json!(21)))
            .await
            .expect("both ways");
        assert_eq!(*answer.value(), json!(42));
    }
}

#[tokio::test]
async fn operations_are_listed_for_callers_that_may_call_them() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let guest = node.client(carriage, None);
        let admin = node.client(carriage, Some(identity("boss", &["*"])));
        let names =
            |list: Vec<OperationSummary>| -> Vec<_> { list.into_iter().map(|o| o.name).collect() };
        let seen = names(soon(guest.operations("")).await.expect("a list"));
        assert!(seen.contains(&"services/list".to_owned()) && seen.is_sorted());
        assert!(!seen.contains(&"test/admin".to_owned()));
        assert!(!seen.contains(&"test/internal".to_owned()));
        let all = names(soon(admin.operations("test/")).await.expect("a list"));
        assert!(all.contains(&"test/admin".to_owned()));
        assert!(all.iter().all(|name| name.starts_with("test/")));
        let spec = soon(admin.schema("test/typed")).await.expect("a spec");
        assert_eq!(spec.input_schema["required"], json!(["n"]));
        for hidden in ["test/admin", "test/internal", "test/nothing"] {
            let error = soon(guest.schema(hidden)).await.expect_err(hidden);
            assert_eq!(error.code, ErrorCode::NotFound);
        }
    }
}

#[tokio::test]
async fn listings_come_in_pages() {
    let node = CallTestNode::new();
    let client = node.client(Carriage::Memory, None);
    let all = soon(client.operations("")).await.expect("a list");
    let mut paged = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let input = json!({ "limit": 3, "cursor": cursor });
        let page = soon(client.call("services/list", &input))
            .await
            .expect("a page");
        let page: OperationListing = page.parse().expect("a listing");
        assert!(page.operations.len() <= 3);
        assert_eq!(page.protocol.node, "test-node");
        assert_eq!(page.protocol.max_frame, Some(64 << 10));
        paged.extend(page.operations);
        match page.next {
            Some(next) => cursor = next.into(),
            None => break,
        }
    }
    assert_eq!(paged, all);
    let names = json!({ "names": ["test/echo", "/test/big"] });
    let specs = soon(client.call("services/schema", &names))
        .await
        .expect("specs");
    assert_eq!(specs.value()["specs"][1]["name"], "test/big");
    let list = [json!({ "limit": 0 }), json!({ "limit": 1001 }), json!([])];
    let schema = [
        Value::Null,
        json!([]),
        json!({ "name": 1 }),
        json!({ "name": "test/echo", "names": [] }),
        json!({ "name": null, "names": [] }),
        json!({ "names": vec!["test/echo"; 65] }),
    ];
    let list = list.map(|bad| ("services/list", bad));
    for (operation, bad) in list
        .into_iter()
        .chain(schema.map(|bad| ("services/schema", bad)))
    {
        let error = soon(client.call(operation, &bad)).await.expect_err("bad");
        assert_eq!(error.code, ErrorCode::InvalidInput, "{operation} {bad}");
    }
}

#[tokio::test]
async fn mixed_answers_go_to_peers_that_understand_them() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, None);
        let answer = soon(client.call("test/mixed", &json!(null)))
            .await
            .expect("an answer");
        assert_eq!(*answer.value(), json!({ "data": "YmM=" }));
        // Once the client knows that the node takes binary data, its next request announces that it does, too.
        soon(client.operations("")).await.expect("a list");
        let answer = soon(client.call("test/mixed", &json!(null))).await;
        let answer = answer.expect("an answer");
        let data = answer.binary(&answer.value()["data"]);
        assert_eq!(data.as_deref(), Some(&b"bc"[..]));
    }
}

#[tokio::test]
async fn binary_data_of_a_request_goes_to_peers_that_understand_it() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, None);
        let data = [7; 100_000];
        let input = json!({ "data": { "$bin": [0, data.len()] } });
        let options = CallOptions::default();
        let call = || client.call_with_data("test/sum", &input, &data, &options);
        let error = soon(call()).await.expect_err("the peer may not take it");
        assert_eq!(error.code, ErrorCode::InvalidInput);
        assert!(soon(client.takes_binary()).await.expect("a list"));
        for _ in 0..2 {
            let answer = soon(call()).await.expect("an answer");
            assert_eq!(*answer.value(), json!({ "bytes": 100_000, "sum": 700_000 }));
        }
        // A request without data, on the same connection.
        let answer = soon(client.call("test/sum", &json!({}))).await;
        assert_eq!(answer.expect("an answer").value()["bytes"], 0);
    }
}

#[tokio::test]
async fn many_calls_at_once_find_their_answers() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, Some(identity("peer", &[])));
        let calls = (0..500).map(|n| {
            let client = client.clone();
            async move {
                let answer = client.call("test/echo", &json!(n)).await.expect("an echo");
                assert_eq!(*answer.value(), json!(n));
            }
        });
        soon(futures_util::future::join_all(calls)).await;
        assert_eq!(node.dispatcher.stats().requests, 500);
    }
}
