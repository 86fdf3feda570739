//! Changes that an imported operation sent to its server: an error that follows does not say that the call may be made
//! again, and an idempotency key does not run again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::*;
use alknet_core::Carriage;
use alknet_test_support::deadline;
use serde_json::json;

use crate::common::*;
use crate::composition::{authority, node};

/// An imported mutation that ends as its input says, and counts its calls.
fn pay(called: &Arc<AtomicUsize>) -> Registration {
    let called = Arc::clone(called);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let called = Arc::clone(&called);
        async move {
            let no_room = || CallError::new(ErrorCode::Overloaded, "no room");
            let how = input.value().as_str().unwrap_or_default();
            ctx.set_sent(how != "refused");
            called.fetch_add(1, Ordering::SeqCst);
            match how {
                "refused" | "no room" => Err(no_room()),
                "unsent" => {
                    ctx.set_sent(false);
                    Err(CallError::unavailable("nothing listens there"))
                }
                "lost" => Err(CallError::unavailable("the connection broke")),
                "silent" => std::future::pending().await,
                _ => Ok(json!("paid")),
            }
        }
    });
    let spec = OperationSpec::mutation("bank/pay", "Pays.").internal();
    Registration::imported(spec, handler, Provenance::FromOpenApi)
}

/// A keyed mutation that pays, and lets an error pass or hides it behind one of its own.
fn order() -> Registration {
    let order = HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
        let silent = input.value()["how"] == "silent";
        let options = InvokeOptions {
            timeout: silent.then(|| deadline(Duration::from_millis(50))),
            ..InvokeOptions::default()
        };
        let env = ctx.env();
        let how = &input.value()["how"];
        let paid = env.invoke_with("bank/pay", how, &options).await;
        let hides = input.value()["hides"] == true;
        let paid = paid.map_err(|error| match hides {
            true => CallError::internal("in its own name"),
            false => error,
        });
        Ok::<CallOutput, CallError>(paid?.into())
    });
    let mut spec = OperationSpec::mutation("shop/order", "Pays once for a key.");
    spec.idempotent = Idempotence::Keyed;
    let reach = ScopedPeerEnv::new(["bank/*"]);
    Registration::new(spec, order)
        .open()
        .composing(authority(&[]), reach)
}

/// What two orders with one key end with, and how often the imported mutation was called.
async fn twice(how: &str, hides: bool) -> ([CallError; 2], usize) {
    let called = Arc::default();
    let registry = Registry::builder().with(pay(&called)).with(order());
    let node = node(registry);
    let client = node.client(Carriage::Memory, Some(identity("peer", &[])));
    let options = CallOptions {
        idempotency_key: Some("k".to_owned()),
        ..CallOptions::default()
    };
    let input = json!({ "how": how, "hides": hides });
    let order = async || {
        let ended = soon(client.call_with("shop/order", &input, &options)).await;
        ended.expect_err(how)
    };
    let errors = [order().await, order().await];
    (errors, called.load(Ordering::SeqCst))
}

#[tokio::test]
async fn what_was_sent_and_not_answered_is_not_sent_again_for_its_key() {
    for (how, code) in [
        ("no room", ErrorCode::Overloaded),
        ("lost", ErrorCode::Unavailable),
        ("silent", ErrorCode::Timeout),
    ] {
        let ([first, second], calls) = twice(how, false).await;
        assert_eq!((&first.code, first.retryable), (&code, false), "{how}");
        assert_eq!((second.code, second.retryable), (code, false), "{how}");
        assert_eq!(calls, 1, "{how}");
        // What hides the error hides nothing from the key.
        let ([first, _], calls) = twice(how, true).await;
        assert_eq!((first.code, calls), (ErrorCode::Internal, 1), "{how}");
    }
}

#[tokio::test]
async fn what_was_not_sent_may_be_asked_for_again() {
    for (how, code) in [
        ("refused", ErrorCode::Overloaded),
        ("unsent", ErrorCode::Unavailable),
    ] {
        let ([first, second], calls) = twice(how, false).await;
        assert_eq!((&first.code, first.retryable), (&code, true), "{how}");
        assert_eq!((second.code, second.retryable), (code, true), "{how}");
        assert_eq!(calls, 2, "{how}");
    }
}

/// The run of a key ends by its own deadline while the server has the change.
#[tokio::test]
async fn a_run_that_ends_while_a_change_is_sent_does_not_come_again() {
    let called: Arc<AtomicUsize> = Arc::default();
    let registry = Registry::builder().with(pay(&called)).with(order());
    let node = node(registry);
    let client = node.client(Carriage::Memory, Some(identity("peer", &[])));
    let order = async |timeout: Duration| {
        let options = CallOptions {
            idempotency_key: Some("k".to_owned()),
            timeout: Some(timeout),
            ..CallOptions::default()
        };
        let input = json!({ "how": "silent" });
        let ended = soon(client.call_with("shop/order", &input, &options)).await;
        ended.expect_err("the server is silent")
    };
    // Shorter than what the operation allows the server.
    let first = order(deadline(Duration::from_millis(20))).await;
    assert_eq!(first.code, ErrorCode::Timeout);
    let second = order(deadline(Duration::from_secs(20))).await;
    assert_eq!((second.code, second.retryable), (ErrorCode::Timeout, false));
    assert_eq!(called.load(Ordering::SeqCst), 1);
}
