//! What goes wrong while promoted operations run, and with what is kept.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::{
    CallBody, CallError, CallOptions, CallOutput, CompositionAuthority, Ctx, ErrorCode,
    HandlerKind, Idempotence, OperationSpec, Provenance, Registration, ScopedPeerEnv,
};
use alknet_promotion::{PromotionConfig, PromotionStore, PromotionStoreError};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::*;

#[tokio::test]
async fn three_lost_workers_set_an_operation_aside_until_another_version() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    node.promote(&says("a", &json!(1))).await;
    node.isolates.lose.store(3, Ordering::SeqCst);
    for _ in 0..3 {
        let lost = node
            .call("cal", "js/a", &json!({}))
            .await
            .expect_err("lost");
        assert_eq!((lost.code, lost.retryable), (ErrorCode::Unavailable, true));
        assert_eq!(lost.details.expect("a code")["code"], "E_WORKER_LOST");
    }
    let aside = node
        .call("cal", "js/a", &json!({}))
        .await
        .expect_err("set aside");
    assert_eq!(
        (aside.code, aside.retryable),
        (ErrorCode::Unavailable, false)
    );
    node.promote(&says("a", &json!(2))).await;
    assert_eq!(node.call("cal", "js/a", &json!({})).await, Ok(json!(2)));
}

/// A caller of another operation of the author can end the worker as often as it likes: it gives up calls in code that
/// no abort reaches. More such losses than set an operation aside, and than a version may have errors.
#[tokio::test]
async fn workers_lost_beside_calls_of_others_do_not_speak_against_an_operation() {
    const LOSSES: usize = 30;
    let folder = folder();
    let config = PromotionConfig {
        rollback_on_errors: true,
        ..live()
    };
    let node = PromotionNode::start(folder.path(), config).await;
    for answer in [1, 2] {
        node.promote(&says("a", &json!(answer))).await;
    }
    node.isolates.beside_others.store(true, Ordering::SeqCst);
    node.isolates.lose.store(LOSSES, Ordering::SeqCst);
    for _ in 0..LOSSES {
        let lost = node.call("cal", "js/a", &json!({})).await;
        let lost = lost.expect_err("lost");
        assert_eq!((lost.code, lost.retryable), (ErrorCode::Unavailable, true));
    }
    assert_eq!(node.call("cal", "js/a", &json!({})).await, Ok(json!(2)));
    let versions = json!({ "path": "js/a" });
    let told = node.call("eve", "ops/proposals", &versions).await;
    let told = told.expect("known");
    assert_eq!(told["versions"][0]["errors"], 0, "{told}");
}

/// Fails for every odd number.
fn odd(text: &str) -> DraftBundle {
    let source = format!(
        "export const run = (n) => {{ if (n % 2) throw new Error('odd'); return '{text}' }};"
    );
    DraftBundle::new("odd", &source).test(json!({ "input": 2, "expect": { "output": text } }))
}

async fn many(node: &PromotionNode, each: impl Fn(u32) -> u32) {
    let client = node.client("cal");
    for n in 0..60 {
        soon(client.call("js/odd", &json!(each(n)))).await.ok();
    }
}

#[tokio::test]
async fn a_version_that_fails_more_often_is_taken_back_where_that_is_wanted() {
    for rollback_on_errors in [false, true] {
        let folder = folder();
        let config = PromotionConfig {
            rollback_on_errors,
            ..live()
        };
        let node = PromotionNode::start(folder.path(), config).await;
        node.promote(&odd("one")).await;
        many(&node, |n| 2 * n).await;
        node.promote(&odd("two")).await;
        many(&node, |n| n).await;
        let versions = json!({ "path": "js/odd" });
        let expected = if rollback_on_errors { 1 } else { 2 };
        let told = soon(async {
            loop {
                let told = node
                    .call("eve", "ops/proposals", &versions)
                    .await
                    .expect("known");
                if told["active"] == expected && told["versions"][0]["errors"] != 0 {
                    break told;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(told["versions"][0]["errors"], 21, "one more than may");
        assert_eq!(told["current"], expected);
        let text = if rollback_on_errors { "one" } else { "two" };
        assert_eq!(node.call("cal", "js/odd", &json!(2)).await, Ok(json!(text)));
        if rollback_on_errors {
            let id = told["versions"][0]["id"].clone();
            let one = node
                .call("eve", "ops/proposals", &json!({ "id": id }))
                .await;
            let record = one.expect("known")["record"].clone();
            let last = record
                .as_array()
                .expect("a list")
                .last()
                .expect("an entry")
                .clone();
            assert_eq!(
                (&last["who"], &last["did"]),
                (&json!("node"), &json!("rollback"))
            );
        }
    }
}

/// Calls the operation that its input names, and lets the error pass.
fn asks(name: &str, uses: &str, answer: u32) -> DraftBundle {
    let source = format!(
        "export const run = async (op) => {{ if (op) await ops.call(op, true); return {answer}; }};"
    );
    DraftBundle::new(name, &source)
        .uses(&[uses, "door/full"])
        .test(json!({ "input": null, "expect": { "output": answer } }))
}

/// Promotes an operation that calls `door`, and two versions of one that calls `uses`.
async fn promote_between(node: &PromotionNode, door: &str, uses: &str) {
    let source = format!(
        "export const run = async (go) => {{ if (go) await ops.call('{door}'); return 0; }};"
    );
    let between = DraftBundle::new("between", &source)
        .uses(&[door])
        .test(json!({ "input": null, "expect": { "output": 0 } }));
    node.identities
        .set("ada", &["ops:propose", "config:read", "call:js:between"]);
    node.promote(&between).await;
    for answer in [1, 2] {
        node.promote(&asks("asks", uses, answer)).await;
    }
}

/// The caller itself may have taken the room.
#[tokio::test]
async fn want_of_room_below_a_version_does_not_speak_against_it() {
    let folder = folder();
    let config = PromotionConfig {
        rollback_on_errors: true,
        ..live()
    };
    let node = PromotionNode::start(folder.path(), config).await;
    promote_between(&node, "door/full", "js/between").await;
    let client = node.client("cal");
    for op in ["door/full", "js/between"] {
        for _ in 0..30 {
            let refused = soon(client.call("js/asks", &json!(op))).await;
            let refused = refused.expect_err(op);
            // As what it is, through every operation that let it pass.
            assert_eq!(refused.code, ErrorCode::Overloaded, "{op}");
            assert!(refused.retryable && refused.retry_after_ms.is_some());
        }
    }
    let versions = json!({ "path": "js/asks" });
    let told = node.call("eve", "ops/proposals", &versions).await;
    let told = told.expect("known");
    assert_eq!(told["active"], 2, "{told}");
    assert_eq!(told["versions"][0]["errors"], 0, "{told}");
    // What it does wrong itself does.
    for _ in 0..30 {
        let unknown = soon(client.call("js/asks", &json!("no/such"))).await;
        assert_eq!(unknown.expect_err("unknown").code, ErrorCode::Internal);
    }
    soon(async {
        while node
            .call("eve", "ops/proposals", &versions)
            .await
            .expect("known")["active"]
            != 1
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// The peer may be its author's, or in league with its author.
#[tokio::test]
async fn what_a_peer_answers_does_not_excuse_a_version() {
    for op in ["door/far", "js/between"] {
        let folder = folder();
        let config = PromotionConfig {
            rollback_on_errors: true,
            ..live()
        };
        let node = PromotionNode::start(folder.path(), config).await;
        promote_between(&node, "door/far", op).await;
        let client = node.client("cal");
        // One more than may.
        for _ in 0..21 {
            let refused = soon(client.call("js/asks", &json!(op))).await;
            let refused = refused.expect_err(op);
            // It may be tried again all the same.
            assert_eq!(refused.code, ErrorCode::Overloaded, "{op}");
            assert!(refused.retryable, "{op}");
        }
        let versions = json!({ "path": "js/asks" });
        let told = soon(async {
            loop {
                let told = node.call("eve", "ops/proposals", &versions).await;
                let told = told.expect("known");
                if told["active"] == 1 {
                    break told;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(told["versions"][0]["errors"], 21, "{told}");
    }
}

/// The server of an import fails, and the script lets its error pass.
#[tokio::test]
async fn a_server_that_fails_is_no_fault_of_the_node() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let source = "export const run = async (op) => { if (op) await ops.call(op); return 0; };";
    let bundle = DraftBundle::new("asks", source)
        .uses(&["door/gone", "door/late", "door/odd"])
        .test(json!({ "input": null, "expect": { "output": 0 } }));
    node.promote(&bundle).await;
    let client = node.client("cal");
    for (op, code) in [
        ("door/gone", "UNAVAILABLE"),
        ("door/late", "TIMEOUT"),
        ("door/odd", "HTTP_502"),
        // No server was asked: that is the script's own fault.
        ("door/none", "INTERNAL"),
    ] {
        let refused = soon(client.call("js/asks", &json!(op))).await;
        let refused = refused.expect_err(op);
        assert_eq!(refused.code.name(), code, "{op}: {refused}");
        let details = refused.details.expect("what was called");
        assert_eq!(details["path"], op, "{details}");
        assert_eq!(details["line"], 1, "{details}");
    }
    let spec = client.schema("js/asks").await.expect("a spec");
    let declared = spec.error_schemas.iter().find(|it| it.code == "HTTP_502");
    assert_eq!(declared.and_then(|it| it.http_status), Some(502));
}

/// What it calls ends before it, by the time that its caller gave it.
#[tokio::test]
async fn a_caller_in_haste_does_not_speak_against_a_version() {
    let folder = folder();
    let config = PromotionConfig {
        rollback_on_errors: true,
        ..live()
    };
    let node = PromotionNode::start(folder.path(), config).await;
    for answer in [1, 2] {
        node.promote(&asks("asks", "door/stuck", answer)).await;
    }
    let client = node.client("cal");
    let options = CallOptions {
        timeout: Some(Duration::from_millis(60)),
        ..CallOptions::default()
    };
    let mut calls = JoinSet::new();
    for _ in 0..60 {
        let (client, options) = (client.clone(), options.clone());
        calls.spawn(async move {
            let input = json!("door/stuck");
            soon(client.call_with("js/asks", &input, &options)).await
        });
        // An isolate is a thread.
        if calls.len() == 4 {
            let ended = calls.join_next().await.expect("one of them");
            ended.expect("no panic").expect_err("it has no time");
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("no panic").expect_err("it has no time");
    }
    let versions = json!({ "path": "js/asks" });
    let told = node.call("eve", "ops/proposals", &versions).await;
    let told = told.expect("known");
    assert_eq!(
        (&told["active"], &told["versions"][0]["errors"]),
        (&json!(2), &json!(0))
    );
}

/// An imported mutation: its server makes the payment, and the answer finds no room in this node.
fn pay(paid: &Arc<AtomicUsize>) -> Registration {
    let paid = Arc::clone(paid);
    let pay = HandlerKind::once(move |_, ctx: Ctx| {
        ctx.set_sent(true);
        paid.fetch_add(1, Ordering::SeqCst);
        let no_capacity = CallError::new(ErrorCode::Overloaded, "no room for the answer");
        async { Err::<Value, _>(no_capacity) }
    });
    let spec = OperationSpec::mutation("bank/pay", "Pays.");
    Registration::imported(spec, pay, Provenance::FromOpenApi).open()
}

/// A keyed mutation of the program that calls the promoted one.
fn order() -> Registration {
    let order = HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
        let paid = ctx.env().invoke("js/pay", input.value()).await?;
        Ok::<CallOutput, CallError>(paid.into())
    });
    let mut spec = OperationSpec::mutation("shop/order", "Pays once for a key.");
    spec.idempotent = Idempotence::Keyed;
    let authority = CompositionAuthority::new("shop", ["*"]);
    let reach = ScopedPeerEnv::new(["js/*"]);
    Registration::new(spec, order)
        .composing(authority, reach)
        .open()
}

/// It says that it may be called again only where nothing was paid.
#[tokio::test]
async fn a_promoted_mutation_whose_answer_found_no_room_is_not_called_again() {
    for hides in [false, true] {
        let folder = folder();
        let identities = Arc::new(PromotionIdentities::default());
        identities.set("ada", &["ops:propose"]);
        identities.set("eve", &["ops:promote"]);
        identities.set("cal", &["call:*"]);
        let paid = Arc::default();
        let program = vec![pay(&paid), order()];
        let node = PromotionNode::start_with(folder.path(), live(), identities, program).await;
        let throws = if hides { "new Error('no')" } else { "e" };
        let source = format!(
            "export const run = async (go) => {{
                try {{ if (go) await ops.call('bank/pay'); }} catch (e) {{ throw {throws}; }}
                return 0;
            }};"
        );
        let mut draft = DraftBundle::new("pay", &source)
            .uses(&["bank/pay"])
            .test(json!({ "input": null, "expect": { "output": 0 } }));
        draft.content.spec.kind = serde_json::from_value(json!("mutation")).expect("a kind");
        node.promote(&draft).await;
        let client = node.client("cal");
        let options = CallOptions {
            idempotency_key: Some("k".to_owned()),
            ..CallOptions::default()
        };
        let expected = match hides {
            true => ErrorCode::Internal,
            false => ErrorCode::Overloaded,
        };
        for _ in 0..2 {
            let ended = soon(client.call_with("shop/order", &json!(true), &options)).await;
            let error = ended.expect_err("the answer found no room");
            assert_eq!(
                (&error.code, error.retryable),
                (&expected, false),
                "{error}"
            );
        }
        assert_eq!(paid.load(Ordering::SeqCst), 1);
        // Called by itself it says the same.
        let error = node.call("cal", "js/pay", &json!(true)).await;
        let error = error.expect_err("the answer found no room");
        assert_eq!((error.code, error.retryable), (expected, false));
    }
}

/// The payment is made and answered, and a peer that the operation asks after that says that it has no room.
#[tokio::test]
async fn a_promoted_mutation_that_has_paid_is_not_called_again_for_a_later_step() {
    for hides in [false, true] {
        let folder = folder();
        let identities = Arc::new(PromotionIdentities::default());
        identities.set("ada", &["ops:propose"]);
        identities.set("eve", &["ops:promote"]);
        identities.set("cal", &["call:*"]);
        let paid: Arc<AtomicUsize> = Arc::default();
        let counted = Arc::clone(&paid);
        let pays = HandlerKind::once(move |_, ctx: Ctx| {
            ctx.set_sent(true);
            counted.fetch_add(1, Ordering::SeqCst);
            async { Ok(json!("paid")) }
        });
        let spec = OperationSpec::mutation("bank/pay", "Pays.");
        let pays = Registration::imported(spec, pays, Provenance::FromOpenApi).open();
        let mut program = program();
        program.extend([pays, order()]);
        let node = PromotionNode::start_with(folder.path(), live(), identities, program).await;
        let throws = if hides { "new Error('no')" } else { "e" };
        let source = format!(
            "export const run = async (go) => {{
                if (!go) return 0;
                await ops.call('bank/pay');
                try {{ await ops.call('door/far'); }} catch (e) {{ throw {throws}; }}
                return 0;
            }};"
        );
        let mut draft = DraftBundle::new("pay", &source)
            .uses(&["bank/pay", "door/far"])
            .test(json!({ "input": null, "expect": { "output": 0 } }));
        draft.content.spec.kind = serde_json::from_value(json!("mutation")).expect("a kind");
        node.promote(&draft).await;
        let client = node.client("cal");
        let options = CallOptions {
            idempotency_key: Some("k".to_owned()),
            ..CallOptions::default()
        };
        let expected = match hides {
            true => ErrorCode::Internal,
            false => ErrorCode::Overloaded,
        };
        for _ in 0..2 {
            let ended = soon(client.call_with("shop/order", &json!(true), &options)).await;
            let error = ended.expect_err("a later step found no room");
            assert_eq!(
                (&error.code, error.retryable),
                (&expected, false),
                "{error}"
            );
        }
        assert_eq!(paid.load(Ordering::SeqCst), 1);
        // Called by itself it says the same.
        let error = node.call("cal", "js/pay", &json!(true)).await;
        let error = error.expect_err("a later step found no room");
        assert_eq!((error.code, error.retryable), (expected, false));
    }
}

#[tokio::test]
async fn what_a_script_does_not_declare_is_no_code_of_its_operation() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let source = "export const run = (how) => {
        if (how === 'op') throw new OpError('SECRET_CODE', 'no');
        if (how === 'error') throw new TypeError('no');
        if (how === 'encode') return NaN;
        if (how === 'fuel') for (;;);
        if (how === 'shape') return 'text';
        return 1;
    };";
    let mut draft = DraftBundle::new("how", source).test(json!({ "expect": { "output": 1 } }));
    draft.content.spec.output = json!({ "type": "number" });
    node.promote(&draft).await;
    for (how, code, inner) in [
        ("op", "INTERNAL", json!("SECRET_CODE")),
        ("error", "INTERNAL", json!("E_EXCEPTION")),
        ("encode", "INVALID_OUTPUT", json!("E_ENCODE")),
        ("fuel", "FUEL_EXHAUSTED", json!("E_FUEL")),
        ("shape", "INVALID_OUTPUT", Value::Null),
    ] {
        let error = node
            .call("cal", "js/how", &json!(how))
            .await
            .expect_err(how);
        let told = error.details.map_or(Value::Null, |it| it["code"].clone());
        assert_eq!((error.code.name(), told), (code, inner), "{how}");
    }
}

#[tokio::test]
async fn a_file_that_is_none_of_ours_or_damaged_is_refused() {
    let folder = folder();
    let open = |name: &str| PromotionStore::open(&folder.path().join(name)).err();
    fs::write(folder.path().join("text"), "x".repeat(8_000)).expect("room");
    assert!(matches!(
        open("text"),
        Some(PromotionStoreError::Damaged(_))
    ));
    fs::create_dir(folder.path().join("folder")).expect("room");
    assert!(matches!(
        open("folder"),
        Some(PromotionStoreError::Unusable(_))
    ));
    let other = rusqlite::Connection::open(folder.path().join("other")).expect("a file");
    other.execute_batch("CREATE TABLE t (a)").expect("room");
    drop(other);
    assert!(matches!(
        open("other"),
        Some(PromotionStoreError::Unusable(_))
    ));
    let path = folder.path().join("promotion.db");
    let held = PromotionStore::open(&path).expect("ours");
    assert!(
        matches!(open("promotion.db"), Some(PromotionStoreError::Unusable(_))),
        "held"
    );
    drop(held);
    let newer = rusqlite::Connection::open(&path).expect("a file");
    newer.pragma_update(None, "user_version", 2).expect("room");
    drop(newer);
    assert_eq!(open("promotion.db"), Some(PromotionStoreError::Newer(2)));
}

/// A bundle that was changed in the file is not run, and the others are.
#[tokio::test]
async fn what_was_changed_in_the_file_is_left_out() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    node.promote(&says("good", &json!(1))).await;
    node.promote(&says("bad", &json!(2))).await;
    let file = node.file.clone();
    node.stop().await;
    let change = rusqlite::Connection::open(&file).expect("a file");
    let sql = "UPDATE proposals SET document = replace(document, '(2)', '(3)') WHERE name = 'bad'";
    assert_eq!(change.execute(sql, []), Ok(1));
    let audit = change.execute("DELETE FROM audit", []);
    assert!(audit.is_err(), "the record is only added to");
    drop(change);
    let node = PromotionNode::start(folder.path(), live()).await;
    let left_out = node.promotion.left_out();
    assert_eq!(left_out.len(), 1);
    assert_eq!(
        (left_out[0].path.as_str(), left_out[0].version),
        ("js/bad", 1)
    );
    assert!(
        left_out[0].reason.contains("signature"),
        "{}",
        left_out[0].reason
    );
    assert_eq!(node.call("cal", "js/good", &json!({})).await, Ok(json!(1)));
    assert_eq!(
        node.code("cal", "js/bad", &json!({})).await,
        ErrorCode::NotFound
    );
}
