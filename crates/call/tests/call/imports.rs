//! Imports from a peer that tells the truth, and from one that does not.

use std::sync::Arc;

use alknet_call::limits::IMPORT_OPERATIONS_MAX;
use alknet_call::*;
use alknet_core::{Carriage, memory_pair};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::common::*;

fn query(name: &str) -> OperationSpec {
    OperationSpec::query(name, "For tests.")
}

fn echo(spec: OperationSpec) -> Registration {
    Registration::new(
        spec,
        HandlerKind::once(|input, _| async move { Ok(CallOutput::Raw(input.raw().clone())) }),
    )
}

/// A client of a node that serves these, as a known peer.
fn client(specs: impl IntoIterator<Item = OperationSpec>) -> CallConnection {
    let mut builder = Registry::builder();
    for spec in specs {
        builder.add(echo(spec));
    }
    let registry = builder.build_lazily().expect("every rule is kept");
    let node = CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default());
    node.client(Carriage::Memory, Some(identity("reader", &[])))
}

async fn import(
    client: &CallConnection,
    options: ImportOptions,
) -> Result<Vec<String>, AdapterError> {
    let found = soon(from_call(client, &options)).await?;
    let mut names: Vec<_> = found
        .iter()
        .map(|registration| {
            assert_eq!(registration.provenance(), Provenance::FromCall);
            assert_eq!(registration.spec().visibility, Visibility::Internal);
            registration.spec().name.clone()
        })
        .collect();
    names.sort();
    Ok(names)
}

#[tokio::test]
async fn everything_a_peer_tells_is_read_whatever_its_size() {
    // Three pages, and batches that are too long for a frame.
    let text = "x".repeat(3 << 10);
    let specs =
        (0..600).map(|n| query(&format!("many/op{n}")).with_output(json!({ "description": text })));
    let names = import(&client(specs), ImportOptions::default()).await;
    assert_eq!(names.expect("within the budget").len(), 600);
    let text = "x".repeat(40 << 10);
    let specs =
        (0..64).map(|n| query(&format!("big/op{n}")).with_output(json!({ "description": text })));
    let names = import(&client(specs), ImportOptions::default()).await;
    assert_eq!(names.expect("in parts").len(), 64);
}

#[tokio::test]
async fn a_peer_that_tells_too_much_is_cut_off() {
    let most = IMPORT_OPERATIONS_MAX;
    let names = |count: usize| (0..count).map(|n| query(&format!("many/op{n}")));
    let found = import(&client(names(most)), ImportOptions::default()).await;
    assert_eq!(found.expect("as many as may be").len(), most);
    let refused = import(&client(names(most + 1)), ImportOptions::default()).await;
    assert_eq!(refused, Err(AdapterError::TooLarge("operations")));
    let text = "x".repeat(100 << 10);
    let specs =
        (0..50).map(|n| query(&format!("big/op{n}")).with_output(json!({ "description": text })));
    let refused = import(&client(specs), ImportOptions::default()).await;
    assert_eq!(refused, Err(AdapterError::TooLarge("schemas")));
}

#[tokio::test]
async fn names_are_chosen_and_prefixed() {
    let client = client(["a/one", "a/two", "b/one"].map(query));
    let names = |options| import(&client, options);
    let all = names(ImportOptions::default()).await.expect("imported");
    assert_eq!(all, ["a/one", "a/two", "b/one"]);
    let some = ImportOptions::default().with_only("a/").with_prefix("/w1");
    assert_eq!(
        names(some).await.expect("imported"),
        ["w1/a/one", "w1/a/two"]
    );
    let deep = ImportOptions::default().with_prefix("w1/x/y");
    let refused = names(deep).await.expect_err("four segments at most");
    assert!(matches!(refused, AdapterError::Schema { path, .. } if path.starts_with("/a/")));
}

#[tokio::test]
async fn adapters_are_one_trait() {
    let client = client([query("a/one")]);
    let adapters: [Box<dyn OperationAdapter>; 2] = [
        Box::new(FromCall::new(
            Caller::clone(&client),
            ImportOptions::default(),
        )),
        Box::new(FromJsonSchema::new(vec![query("b/one")])),
    ];
    for adapter in &adapters {
        assert_eq!(soon(adapter.import()).await.expect("imported").len(), 1);
    }
}

#[tokio::test]
async fn what_is_only_described_is_checked_and_never_called() {
    let described = FromJsonSchema::new(vec![
        query("plan/one").with_input(json!({"type": "integer"})),
    ]);
    let mut builder = Registry::builder();
    for registration in described.registrations().expect("valid") {
        builder.add(registration);
    }
    builder.add(
        Registration::new(
            query("app/try"),
            HandlerKind::once(|_, ctx: Ctx| async move {
                let outcome = ctx.env().invoke("plan/one", &1).await;
                Ok(json!(outcome.expect_err("nothing is there").code.name()))
            }),
        )
        .composing(
            CompositionAuthority::new("app", ["*"]),
            ScopedPeerEnv::new(["plan/*"]),
        ),
    );
    let registry = builder.build().expect("valid");
    assert!(registry.validate("plan/one", &json!(1)).is_ok());
    let wrong = registry
        .validate("plan/one", &json!("x"))
        .expect_err("no number");
    assert_eq!(wrong.code, ErrorCode::InvalidInput);
    let node = CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default());
    let client = node.client(Carriage::Memory, None);
    let error = soon(client.call("plan/one", &json!(1)))
        .await
        .expect_err("no code");
    assert_eq!(error.code, ErrorCode::NotFound);
    let answer = soon(client.call("app/try", &json!(null)))
        .await
        .expect("it runs");
    assert_eq!(*answer.value(), "NOT_FOUND");
}

/// A peer that answers every request as the test chooses.
fn liar(answer: fn(&str, &Value) -> Value) -> CallConnection {
    let (dialled, accepted) = memory_pair(ALPN);
    answer_by_hand(accepted, answer, watch::channel(Value::Null).0);
    CallClient::without_operations().attach(dialled, None)
}

async fn refusal(answer: fn(&str, &Value) -> Value) -> AdapterError {
    let client = liar(answer);
    let outcome = import(&client, ImportOptions::default()).await;
    outcome.expect_err("it lies")
}

#[tokio::test]
async fn each_false_announcement_has_its_own_error() {
    let twice = refusal(|_, _| listing(&["a/b", "a/b"])).await;
    assert_eq!(
        twice,
        AdapterError::Collision {
            name: "a/b".to_owned()
        }
    );
    let endless = refusal(|_, _| json!({"operations": [], "next": "x"})).await;
    assert!(matches!(endless, AdapterError::Schema { path, .. } if path == "/next"));
    let circle = refusal(|_, _| {
        let mut page = listing(&["a/b"]);
        page["next"] = json!("a/b");
        page
    });
    assert!(matches!(circle.await, AdapterError::Collision { .. }));
    let other = refusal(|operation, _| match operation {
        "/services/list" => listing(&["a/b"]),
        _ => json!({"specs": [OperationSpec::query("a/c", "")]}),
    });
    assert!(matches!(other.await, AdapterError::Schema { path, .. } if path == "/a/b"));
    let more = refusal(|operation, _| match operation {
        "/services/list" => listing(&["a/b"]),
        _ => json!({"specs": [OperationSpec::query("a/b", ""), OperationSpec::query("a/c", "")]}),
    });
    assert!(matches!(more.await, AdapterError::Schema { path, .. } if path == "/a/c"));
    let double = refusal(|operation, _| match operation {
        "/services/list" => listing(&["a/b"]),
        _ => json!({"specs": [OperationSpec::query("a/b", ""), OperationSpec::query("a/b", "")]}),
    });
    assert!(matches!(double.await, AdapterError::Collision { .. }));
    let nonsense = refusal(|_, _| json!({"operations": 7})).await;
    assert!(matches!(nonsense, AdapterError::Schema { .. }));
    let shadow = refusal(|operation, _| match operation {
        "/services/list" => listing(&["a/b"]),
        _ => {
            let mut spec = OperationSpec::query("a/b", "");
            spec.error_schemas = vec![ErrorDef {
                code: "TIMEOUT".to_owned(),
                description: String::new(),
                schema: Value::Null,
                http_status: None,
            }];
            json!({ "specs": [spec] })
        }
    });
    assert!(matches!(shadow.await, AdapterError::Schema { path, .. } if path == "/a/b"));
}

#[tokio::test]
async fn each_refusal_has_its_own_error() {
    let forbidden = refusal(|_, _| json!({"code": "FORBIDDEN"})).await;
    assert!(matches!(forbidden, AdapterError::Unauthorized(_)) && !forbidden.is_temporary());
    let silent = refusal(|_, _| json!({"code": "NOT_FOUND"})).await;
    assert_eq!(silent, AdapterError::Unsupported);
    let busy = refusal(|_, _| json!({"code": "OVERLOADED", "retryable": true})).await;
    assert!(busy.is_temporary());
    // Removed between the listing and the request: the node imports the others.
    let client = liar(|operation, input| match operation {
        "/services/list" => listing(&["a/b", "a/gone"]),
        _ if input["names"] == json!(["a/b"]) => {
            json!({"specs": [OperationSpec::query("a/b", "")]})
        }
        _ => json!({"code": "NOT_FOUND"}),
    });
    let names = import(&client, ImportOptions::default()).await;
    assert_eq!(names.expect("the others"), ["a/b"]);
}

#[tokio::test]
async fn a_remote_schema_is_compiled_late_and_never_fetched() {
    let registry = Registry::builder()
        .with(Registration::new(
            query("app/import"),
            HandlerKind::once(|_, ctx: Ctx| async move {
                let imported = ctx.caller().import(&ImportOptions::default()).await;
                imported
                    .map(|imported| json!(imported.operations))
                    .map_err(|error| CallError::internal(error.to_string()))
            }),
        ))
        .with(
            Registration::new(
                query("app/call"),
                HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
                    let op = input.value()["op"].as_str().unwrap_or_default();
                    let answer = ctx.env().invoke(op, &input.value()["input"]).await?;
                    Ok(CallOutput::from(answer))
                }),
            )
            .composing(
                CompositionAuthority::new("app", ["*"]),
                ScopedPeerEnv::new(["far/*"]),
            ),
        )
        .build()
        .expect("valid");
    let node = CallTestNode::with_dispatcher(Dispatcher::new(registry), Arc::default());
    let mut theirs = Registry::builder();
    for (name, schema) in [
        ("far/ref", json!({"$ref": "http://127.0.0.1:9/x.json"})),
        ("far/file", json!({"$ref": "file:///etc/hostname"})),
        ("far/number", json!({"type": "integer"})),
    ] {
        theirs.add(echo(query(name).with_input(schema)));
    }
    let theirs = Dispatcher::new(theirs.build_lazily().expect("valid"));
    let (dialled, _) = node.serve(Carriage::Memory, None);
    let client = CallClient::new(Arc::new(theirs)).attach(dialled, None);
    let call = |op: &'static str, input: Value| {
        let client = client.clone();
        async move {
            let input = json!({"op": op, "input": input});
            soon(client.call("app/call", &input)).await
        }
    };
    let imported = soon(client.call("app/import", &Value::Null))
        .await
        .expect("imported");
    assert_eq!(*imported.value(), 3);
    for op in ["far/ref", "far/file"] {
        let refused = call(op, json!(1)).await.expect_err("not fetched");
        assert_eq!(refused.code, ErrorCode::Internal);
    }
    let wrong = call("far/number", json!("x"))
        .await
        .expect_err("checked here");
    assert_eq!(wrong.code, ErrorCode::InvalidInput);
    assert_eq!(
        *call("far/number", json!(4)).await.expect("an echo").value(),
        4
    );
}
