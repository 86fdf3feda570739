//! Changes that an imported operation sent to its server: a later error does not say that the caller may repeat the
//! call, and an idempotency key does not run again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::*;
use alknet_core::Carriage;
use alknet_test_support::deadline;
use serde_json::{Value, json};

use crate::common::*;
use crate::composition::{authority, node};

/// An imported mutation that ends as its input says, and counts its calls.
fn pay(called: &Arc<AtomicUsize>) -> Registration {
    let called = Arc::clone(called);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let called = Arc::clone(&called);
        async move {
            let no_capacity = || CallError::new(ErrorCode::Overloaded, "no room");
            let how = input.value().as_str().unwrap_or_default();
            ctx.set_sent(how != "refused");
            called.fetch_add(1, Ordering::SeqCst);
            match how {
                "refused" | "no room" => Err(no_capacity()),
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

/// The outcomes of two orders with one key, and how often they called the imported mutation.
async fn twice(how: &str, hides: bool) -> ([CallError; 2], usize) {
    twice_at("shop/order", &json!({ "how": how, "hides": hides })).await
}

/// The same for this operation.
async fn twice_at(operation: &str, input: &Value) -> ([CallError; 2], usize) {
    let called = Arc::default();
    let registry = Registry::builder()
        .with(pay(&called))
        .with(order())
        .with(full())
        .with(cart("shop/cart", Idempotence::Keyed))
        .with(cart("shop/inner", Idempotence::No))
        .with(counter());
    let node = node(registry);
    let client = node.client(Carriage::Memory, Some(identity("peer", &[])));
    let options = CallOptions {
        idempotency_key: Some("k".to_owned()),
        ..CallOptions::default()
    };
    let order = async || {
        let ended = soon(client.call_with(operation, input, &options)).await;
        ended.expect_err(operation)
    };
    let errors = [order().await, order().await];
    (errors, called.load(Ordering::SeqCst))
}

/// A peer's query that always reports a lack of room.
fn full() -> Registration {
    let full = HandlerKind::once(|_, _| async {
        Err::<Value, _>(CallError::new(ErrorCode::Overloaded, "always full"))
    });
    let spec = OperationSpec::query("bank/full", "Has no room.");
    Registration::imported(spec, full, Provenance::FromCall)
}

/// A mutation that pays, and then calls a peer that has no room.
fn cart(name: &str, idempotent: Idempotence) -> Registration {
    let cart = HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
        let env = ctx.env();
        env.invoke("bank/pay", &json!("well")).await?;
        let asked = env.invoke("bank/full", &Value::Null).await;
        let asked = asked.map_err(|error| match input.value() == "hides" {
            true => CallError::internal("in its own name"),
            false => error,
        });
        Ok::<CallOutput, CallError>(asked?.into())
    });
    let mut spec = OperationSpec::mutation(name, "Pays, and does more.");
    spec.idempotent = idempotent;
    Registration::new(spec, cart)
        .open()
        .composing(authority(&[]), ScopedPeerEnv::new(["bank/*"]))
}

/// A keyed mutation that has another one pay.
fn counter() -> Registration {
    let counter = HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
        let paid = ctx.env().invoke("shop/inner", input.value()).await;
        // The error of the other one does not say that the caller may repeat it.
        let paid = paid.inspect_err(|error| assert!(!error.retryable, "{error}"));
        Ok::<CallOutput, CallError>(paid?.into())
    });
    let mut spec = OperationSpec::mutation("shop/desk", "Has another one pay.");
    spec.idempotent = Idempotence::Keyed;
    Registration::new(spec, counter)
        .open()
        .composing(authority(&[]), ScopedPeerEnv::new(["shop/*"]))
}

/// The server has made the change and confirmed it; a later step finds no room, which a hostile peer can claim at any
/// time.
#[tokio::test]
async fn a_change_that_was_made_is_not_made_again_for_a_later_step() {
    for at in ["shop/cart", "shop/desk"] {
        for (input, code) in [
            (json!("passes"), ErrorCode::Overloaded),
            (json!("hides"), ErrorCode::Internal),
        ] {
            let ([first, second], calls) = twice_at(at, &input).await;
            assert_eq!((&first.code, first.retryable), (&code, false), "{at}");
            assert_eq!((&second.code, second.retryable), (&code, false), "{at}");
            assert_eq!(calls, 1, "{at} {input}");
        }
    }
}

/// Without a key, too, the error is no reason to repeat the call.
#[tokio::test]
async fn an_error_after_a_change_does_not_say_that_the_call_may_be_repeated() {
    let ([first, _], calls) = twice_at("shop/inner", &Value::Null).await;
    assert_eq!(
        (first.code, first.retryable),
        (ErrorCode::Overloaded, false)
    );
    assert_eq!(first.retry_after_ms, None);
    assert_eq!(calls, 2, "no key counts for it");
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
        // Hiding the error hides nothing from the key.
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
    // Shorter than the time that the operation allows the server.
    let first = order(deadline(Duration::from_millis(20))).await;
    assert_eq!(first.code, ErrorCode::Timeout);
    let second = order(deadline(Duration::from_secs(20))).await;
    assert_eq!((second.code, second.retryable), (ErrorCode::Timeout, false));
    assert_eq!(called.load(Ordering::SeqCst), 1);
}
