//! What hostile servers, and servers that a peer imports, do to a client.

use super::*;

/// The rule that a peer announces for one of its operations.
fn rule_of(name: &str) -> Value {
    let scopes = |many: usize, bytes: usize| vec!["s".repeat(bytes); many];
    match name {
        "a/most" => json!({
            "required_scopes": scopes(SCOPES_MAX, SCOPE_BYTES_MAX),
            "required_scopes_any": scopes(SCOPES_MAX, SCOPE_BYTES_MAX),
            "resource_type": "s".repeat(SCOPE_BYTES_MAX),
            "resource_action": "s".repeat(SCOPE_BYTES_MAX),
        }),
        "a/million" => json!({ "required_scopes": scopes(200_000, 1) }),
        "a/many" => json!({ "required_scopes": scopes(SCOPES_MAX + 1, 1) }),
        "a/any-many" => json!({ "required_scopes_any": scopes(SCOPES_MAX + 1, 1) }),
        "a/long" => json!({ "required_scopes": scopes(1, SCOPE_BYTES_MAX + 1) }),
        "a/any-long" => json!({ "required_scopes_any": scopes(1, SCOPE_BYTES_MAX + 1) }),
        "a/type" => json!({ "resource_type": "s".repeat(SCOPE_BYTES_MAX + 1) }),
        "a/action" => json!({ "resource_action": "s".repeat(SCOPE_BYTES_MAX + 1) }),
        _ => json!({}),
    }
}

/// A peer announces operations with oversized rules, and an oversized name for their set.
#[tokio::test]
async fn operations_with_large_rules_are_not_imported() {
    const NAMES: [&str; 8] = [
        "a/most",
        "a/million",
        "a/many",
        "a/any-many",
        "a/long",
        "a/any-long",
        "a/type",
        "a/action",
    ];
    let (dialled, accepted) = memory_pair(ALPN);
    let answer = |operation: &str, input: &Value| match operation {
        "/services/list" => listing(&NAMES),
        _ => {
            let name = input["names"][0].as_str().unwrap_or_default();
            let mut spec = json!(OperationSpec::query(name, ""));
            spec["access_control"] = rule_of(name);
            json!({ "specs": [spec] })
        }
    };
    answer_by_hand(accepted, answer, watch::channel(Value::Null).0);
    let client = CallClient::without_operations().attach(dialled, None);
    for name in NAMES {
        let options = ImportOptions::default().with_only(name);
        let imported = soon(from_call(&client, &options)).await;
        match (name, imported) {
            ("a/most", imported) => assert_eq!(imported.expect("as large as may be").len(), 1),
            (_, Err(AdapterError::Schema { path, reason })) => {
                assert!(reason.contains("at most"), "{name}: {path}: {reason}");
            }
            (_, imported) => panic!("{name}: {imported:?}"),
        }
    }
    let (dialled, accepted) = memory_pair(ALPN);
    let answer = |_: &str, _: &Value| {
        let mut page = listing(&["a/b"]);
        page["registry"] = json!("r".repeat(REGISTRY_BYTES_MAX + 1));
        page
    };
    answer_by_hand(accepted, answer, watch::channel(Value::Null).0);
    let client = CallClient::without_operations().attach(dialled, None);
    let refused = soon(from_call(&client, &ImportOptions::default())).await;
    let refused = refused.expect_err("the name is too long");
    assert!(matches!(refused, AdapterError::Schema { path, .. } if path == "/registry"));
}

/// A peer's operations change again and again while a watcher takes one event and no more: the node stores none of
/// the earlier states, and sends the watcher the present one.
#[tokio::test]
async fn a_watcher_that_falls_behind_gets_all_operations() {
    const CHANGES: usize = 10;
    let node = CallTestNode::new();
    let (dialled, _served) =
        node.serve(Carriage::Memory, Some(identity("eve", &["*", "peer:list"])));
    let mut peer = RawPeer::new(dialled).await;
    let payload = json!({ "operationId": "/services/watch", "input": {}, "window": 1 });
    peer.send(EventKind::Requested, "s", payload).await;
    assert_eq!(peer.event().await.0, EventKind::Responded);
    let announcer = node.dispatcher.announcer();
    let worker = "worker".parse().expect("a peer id");
    let serves = |n: usize| {
        let scope = |m: usize| format!("{n}-{m}-{:0>1$}", "", SCOPE_BYTES_MAX - 10);
        let scopes: Vec<_> = (0..SCOPES_MAX).map(scope).collect();
        let spec = |m: usize| {
            let mut spec = OperationSpec::query(&format!("gpu/run{n}-{m}"), "");
            spec.access_control.required_scopes = scopes.clone();
            spec
        };
        (0..200).map(spec).collect::<Vec<_>>()
    };
    for n in 0..CHANGES {
        announcer.peer(&worker, &format!("p{n}"), &serves(n));
    }
    peer.send(EventKind::Credit, "s", json!({ "n": 100 })).await;
    let (_, _, first) = peer.event().await;
    assert_eq!(first["output"]["whole"], true, "it is too far behind");
    let mut known = BTreeSet::new();
    let mut event = first;
    loop {
        let change: RegistryChange =
            serde_json::from_value(event["output"].take()).expect("a change");
        assert_eq!(change.peer.as_ref(), Some(&worker));
        for name in &change.removed {
            assert!(known.remove(name), "{name}");
        }
        known.extend(change.added);
        if change.registry == format!("p{}", CHANGES - 1) {
            break;
        }
        event = peer.event().await.2;
    }
    let now: BTreeSet<_> = serves(CHANGES - 1)
        .into_iter()
        .map(|spec| spec.name)
        .collect();
    assert_eq!(known, now);
}

/// A tree of these details would take 36 MB, 36 times the bytes of its text.
#[tokio::test]
async fn errors_of_peers_cost_no_trees() {
    let zeros = |values: usize| json!(vec![0; values]);
    let omitted = json!({ "omitted": true });
    let text = json!("x".repeat(900 << 10));
    for (sent, read) in [
        (zeros(500_000), omitted.clone()),
        (zeros(2_000), omitted),
        (zeros(1_500), zeros(1_500)),
        (text.clone(), text),
    ] {
        for (carriage, subscribes) in [(Carriage::Memory, false), (Carriage::Tcp, true)] {
            let (dialled, accepted) = match carriage {
                Carriage::Tcp => single_pair(),
                _ => memory_pair(ALPN),
            };
            let client = CallClient::without_operations().attach(dialled, None);
            let input = json!(1);
            let failed = async {
                if subscribes {
                    let mut events = client.subscribe("any/thing", &input).await?;
                    events.next().await.expect("an event").map(drop)
                } else {
                    client.call("any/thing", &input).await.map(drop)
                }
            };
            let payload = json!({
                "code": "CONFLICT",
                "message": "no",
                "retryable": false,
                "details": sent,
                "retry_after_ms": 7,
            });
            let serve = async {
                let mut server = match carriage {
                    Carriage::Tcp => RawPeer::new(accepted).await,
                    _ => {
                        let (send, recv) = accepted.accept_bi().await.expect("a stream");
                        RawPeer::on(accepted, send, recv)
                    }
                };
                let (_, id, _) = server.event().await;
                server.send(EventKind::Error, &id, payload).await;
                server
            };
            let (failed, _server) = tokio::join!(soon(failed), serve);
            let error = failed.expect_err("it failed");
            assert_eq!((error.code, &*error.message), (ErrorCode::Conflict, "no"));
            assert_eq!((error.retryable, error.retry_after_ms), (false, Some(7)));
            assert!(error.details.as_deref() == Some(&read), "{carriage:?}");
        }
    }
}

#[tokio::test]
async fn servers_that_answer_nonsense_do_not_confuse_the_client() {
    for (kind, payload, code) in [
        (EventKind::Completed, json!({}), "INTERNAL"),
        (EventKind::Aborted, json!({ "reason": "no" }), "ABORTED"),
        (EventKind::Error, json!({ "message": 1 }), "INTERNAL"),
        (
            EventKind::Error,
            json!({ "code": "NEWER_CODE" }),
            "NEWER_CODE",
        ),
        (EventKind::Responded, json!([]), "INTERNAL"),
    ] {
        let (dialled, accepted) = single_pair();
        let client = CallClient::without_operations().attach(dialled, None);
        let input = json!(1);
        let call = client.call("any/thing", &input);
        let serve = async {
            let mut server = RawPeer::new(accepted).await;
            let (_, id, request) = server.event().await;
            assert_eq!(request["operationId"], "/any/thing");
            server.send(kind, "999", payload.clone()).await;
            server.send(kind, &id, payload.clone()).await;
            server
        };
        let (answer, _server) = tokio::join!(soon(call), serve);
        let error = answer.expect_err("no answer");
        assert_eq!(error.code.name(), code, "{payload}");
        assert!(!error.retryable);
    }
}

#[tokio::test]
async fn answers_may_come_on_another_stream() {
    let (dialled, accepted) = memory_pair(ALPN);
    let client = CallClient::without_operations().attach(dialled, None);
    let input = json!(1);
    let call = client.call("any/thing", &input);
    let serve = async {
        let (send, recv) = accepted.accept_bi().await.expect("a stream");
        let mut other = RawPeer::new(accepted.clone()).await;
        other
            .send(EventKind::Responded, "1", json!({ "output": "elsewhere" }))
            .await;
        (send, recv, other)
    };
    let (answer, _kept) = tokio::join!(soon(call), serve);
    assert_eq!(*answer.expect("an answer").value(), json!("elsewhere"));
}
