//! An operation's view of its request: whether callers could make it fail, and which of all requests it is.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::limits::COMPOSITION_CHILDREN_MAX;
use alknet_call::*;
use alknet_core::Carriage;
use alknet_test_support::deadline;
use futures_util::future::select_all;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::common::*;
use crate::composition::{authority, node, query};

/// An operation's view after a call below it ended.
#[derive(Debug, PartialEq, Eq)]
struct ExcuseObservation {
    code: String,
    excused: bool,
    hindered: bool,
    number: u64,
}

impl ExcuseObservation {
    fn new<T>(ended: Result<T, CallError>, ctx: &Ctx) -> Self {
        Self {
            code: ended.map_or_else(|error| error.code.name().to_owned(), |_| String::new()),
            excused: ctx.is_excused(),
            hindered: ctx.is_hindered(),
            number: ctx.root_number(),
        }
    }
}

type ObservationReceiver = mpsc::UnboundedReceiver<ExcuseObservation>;

/// An operation that calls the one in its input, reports its view, and fails in its own name.
fn sees(name: &str, seen: &mpsc::UnboundedSender<ExcuseObservation>) -> Registration {
    let seen = seen.clone();
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let seen = seen.clone();
        async move {
            let op = input.value()["op"].as_str().unwrap_or_default();
            let options = InvokeOptions {
                timeout: input.value()["ms"].as_u64().map(Duration::from_millis),
                ..InvokeOptions::default()
            };
            let env = ctx.env();
            let ended = env.invoke_with(op, &input.value()["input"], &options).await;
            // The test may be over, and the send may fail.
            let _ = seen.send(ExcuseObservation::new(ended, &ctx));
            Err::<Value, _>(CallError::internal("in its own name"))
        }
    });
    let reach = ScopedPeerEnv::new(["app/*"]);
    Registration::new(query(name), handler).composing(authority(&[]), reach)
}

/// An operation with more calls at once than one request may have. It reports its view of the first that ended.
fn crowds(name: &str, seen: &mpsc::UnboundedSender<ExcuseObservation>) -> Registration {
    let seen = seen.clone();
    let handler = HandlerKind::once(move |_, ctx: Ctx| {
        let seen = seen.clone();
        async move {
            let env = ctx.env();
            let hangs = || {
                let env = env.clone();
                Box::pin(async move { env.invoke("app/hangs", &Value::Null).await })
            };
            let calls = (0..=COMPOSITION_CHILDREN_MAX).map(|_| hangs());
            let (ended, ..) = select_all(calls).await;
            // The test may be over, and the send may fail.
            let _ = seen.send(ExcuseObservation::new(ended, &ctx));
            Err::<Value, _>(CallError::internal("in its own name"))
        }
    });
    let reach = ScopedPeerEnv::new(["app/hangs"]);
    Registration::new(query(name), handler).composing(authority(&[]), reach)
}

/// An operation that passes the answer on.
fn passes(name: &str) -> Registration {
    let handler = HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
        let op = input.value()["op"].as_str().unwrap_or_default();
        ctx.env().invoke(op, &Value::Null).await
    });
    let reach = ScopedPeerEnv::new(["app/*"]);
    Registration::new(query(name), handler).composing(authority(&[]), reach)
}

fn lab() -> (CallTestNode, ObservationReceiver) {
    let (saw, seen) = mpsc::unbounded_channel();
    let answers = |error: CallError| {
        HandlerKind::once(move |_, _| {
            let error = error.clone();
            async move { Err::<Value, _>(error) }
        })
    };
    let full = CallError::new(ErrorCode::Overloaded, "full");
    let hang = HandlerKind::once(|_, _| std::future::pending::<Result<Value, CallError>>());
    let registry = Registry::builder()
        .with(sees("app/outer", &saw))
        .with(sees("app/inner", &saw))
        .with(crowds("app/crowds", &saw))
        .with(passes("app/passes"))
        .with(Registration::new(query("app/full"), answers(full.clone())))
        .with(Registration::imported(
            query("app/far"),
            answers(full),
            Provenance::FromCall,
        ))
        .with(Registration::new(
            query("app/fails"),
            answers(CallError::internal("no")),
        ))
        .with(Registration::new(query("app/hangs"), hang));
    (node(registry), seen)
}

async fn call(client: &CallConnection, input: &Value, timeout: Option<Duration>) {
    ask(client, "app/outer", input, timeout).await;
}

async fn ask(client: &CallConnection, operation: &str, input: &Value, timeout: Option<Duration>) {
    let options = CallOptions {
        timeout,
        ..CallOptions::default()
    };
    let ended = soon(client.call_with(operation, input, &options)).await;
    ended.expect_err("it fails in its own name");
}

/// Whatever error the operations in between make of it.
#[tokio::test]
async fn want_of_room_excuses_everything_above_and_nothing_else() {
    let (node, mut seen) = lab();
    let client = node.client(Carriage::Memory, None);
    for (op, excused) in [("app/full", true), ("app/fails", false)] {
        let inner = json!({ "op": "app/inner", "input": { "op": op } });
        call(&client, &inner, None).await;
        let (first, second) = (seen.recv().await, seen.recv().await);
        let (first, second) = (first.expect("it ran"), second.expect("it ran"));
        assert_eq!((first.excused, second.excused), (excused, excused), "{op}");
        assert_eq!(second.code, "INTERNAL", "{op}");
        assert_eq!(first.number, second.number, "one request");
    }
}

/// The peer may belong to the author of the failing operation. The caller learns that another try may succeed.
#[tokio::test]
async fn an_answer_of_a_peer_excuses_no_call() {
    let (node, mut seen) = lab();
    let client = node.client(Carriage::Memory, None);
    let far = json!({ "op": "app/far" });
    for asks in [
        far.clone(),
        json!({ "op": "app/passes", "input": far.clone() }),
    ] {
        call(&client, &json!({ "op": "app/inner", "input": asks }), None).await;
        let (first, second) = (seen.recv().await, seen.recv().await);
        let (first, second) = (first.expect("it ran"), second.expect("it ran"));
        assert_eq!(first.code, "OVERLOADED", "{asks}");
        assert_eq!((first.excused, second.excused), (false, false), "{asks}");
        assert_eq!((first.hindered, second.hindered), (true, true), "{asks}");
    }
    // A refusal by this node is its own word, also for a forwarded call.
    let full = json!({ "op": "app/passes", "input": { "op": "app/full" } });
    call(&client, &full, None).await;
    assert!(seen.recv().await.expect("it ran").excused);
}

/// The operation made these calls itself: operations below it need not have.
#[tokio::test]
async fn calls_without_number_do_not_excuse_the_called_operation() {
    let (node, mut seen) = lab();
    let client = node.client(Carriage::Memory, None);
    ask(&client, "app/crowds", &Value::Null, None).await;
    let alone = seen.recv().await.expect("it ran");
    assert_eq!((&*alone.code, alone.excused), ("OVERLOADED", false));
    call(&client, &json!({ "op": "app/crowds" }), None).await;
    let (below, above) = (seen.recv().await, seen.recv().await);
    let (below, above) = (below.expect("it ran"), above.expect("it ran"));
    assert_eq!((&*below.code, below.excused), ("OVERLOADED", true));
    assert_eq!((&*above.code, above.excused), ("INTERNAL", false));
}

#[tokio::test]
async fn a_caller_s_haste_excuses_and_an_operation_s_own_does_not() {
    let (node, mut seen) = lab();
    let client = node.client(Carriage::Memory, None);
    let short = Duration::from_millis(200);
    let hangs = json!({ "op": "app/hangs" });
    for (input, timeout, excused) in [
        (hangs.clone(), Some(short), true),
        (
            json!({ "op": "app/inner", "input": hangs }),
            Some(short),
            true,
        ),
        // The operation itself waits no longer.
        (
            json!({ "op": "app/hangs", "ms": 20 }),
            Some(deadline(10 * short)),
            false,
        ),
        (json!({ "op": "app/hangs", "ms": 20 }), None, false),
    ] {
        call(&client, &input, timeout).await;
        let first = seen.recv().await.expect("it ran");
        assert_eq!(first.code, "TIMEOUT", "{input}");
        assert_eq!(first.excused, excused, "{input}");
        // The haste of one of its callers, if they had the time to see it.
        while seen.try_recv().is_ok() {}
    }
}

/// One call, in the view of the called operation.
#[derive(Debug)]
struct ObservedCall {
    id: String,
    number: u64,
    parent: Option<u64>,
}

impl ObservedCall {
    fn from_ctx(ctx: &Ctx) -> Self {
        Self {
            id: ctx.request_id().to_owned(),
            number: ctx.call_number(),
            parent: ctx.parent_call_number(),
        }
    }
}

/// In the run of an idempotency key, calls have ids that calls of the request have, too.
#[tokio::test]
async fn calls_of_a_keyed_run_differ_from_those_beside_it() {
    let (saw, mut seen) = mpsc::unbounded_channel();
    let leaf = {
        let saw = saw.clone();
        HandlerKind::once(move |_, ctx: Ctx| {
            // The test may be over, and the send may fail.
            let _ = saw.send(ObservedCall::from_ctx(&ctx));
            async { Ok(Value::Null) }
        })
    };
    let keyed = HandlerKind::once(move |_, ctx: Ctx| {
        let _ = saw.send(ObservedCall::from_ctx(&ctx));
        async move { ctx.env().invoke("app/leaf", &Value::Null).await }
    });
    let root = HandlerKind::once(|_, ctx: Ctx| async move {
        let env = ctx.env();
        env.invoke("app/leaf", &Value::Null).await?;
        let options = InvokeOptions {
            idempotency_key: Some("k".to_owned()),
            ..InvokeOptions::default()
        };
        env.invoke_with("app/keyed", &Value::Null, &options).await?;
        Ok::<_, CallError>(json!(ctx.call_number()))
    });
    let mut spec = OperationSpec::mutation("app/keyed", "Calls another.");
    spec.idempotent = Idempotence::Keyed;
    let reach = || ScopedPeerEnv::new(["app/*"]);
    let keyed = Registration::new(spec, keyed).open();
    let registry = Registry::builder()
        .with(Registration::new(query("app/leaf"), leaf))
        .with(keyed.composing(authority(&[]), reach()))
        .with(Registration::new(query("app/root"), root).composing(authority(&[]), reach()));
    let node = node(registry);
    let client = node.client(Carriage::Memory, None);
    let answer = soon(client.call("app/root", &Value::Null)).await;
    let root = answer.expect("it is answered").value().as_u64();
    let mut next = || seen.try_recv().expect("it was called");
    let (beside, run, below) = (next(), next(), next());
    assert_eq!(beside.id, below.id, "that is what ids are worth");
    assert_ne!(beside.number, below.number);
    assert_eq!((beside.parent, run.parent), (root, root));
    assert_eq!(below.parent, Some(run.number));
}

/// Their senders choose the ids.
#[tokio::test]
async fn requests_with_one_id_stay_separate() {
    let (node, mut seen) = lab();
    let (dialled, _accepted) = alknet_core::memory_pair(ALPN);
    let gate = LocalCaller::new(&Arc::clone(&node.dispatcher), &dialled, None);
    let input = bytes::Bytes::from_static(br#"{"op":"app/fails"}"#);
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let mut incoming = LocalRequest::new("same", "app/outer");
        incoming.input = Some(input.clone());
        let ended = soon(gate.call(incoming)).await;
        ended.expect_err("it fails in its own name");
        numbers.push(seen.recv().await.expect("it ran").number);
    }
    assert_ne!(numbers[0], numbers[1]);
}

/// The answer of an operation that lets the error of `op` pass: its own word for it, or `INTERNAL`.
fn lets_pass(name: &str) -> Registration {
    let handler = HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
        let asked = input.value();
        let op = asked["op"].as_str().unwrap_or_default();
        let ended = ctx.env().invoke(op, &Value::Null).await;
        let error = ended.expect_err("it fails");
        // A script may claim any error of the operation that it called.
        let said = asked["says"].as_str();
        let said = said.unwrap_or_else(|| error.code.name());
        let told = ctx.upstream_error(said, &error.message);
        Err::<Value, _>(told.unwrap_or_else(|| CallError::internal("its own fault")))
    });
    let mut spec = query(name);
    spec.error_schemas.push(bad_gateway_def());
    let reach = ScopedPeerEnv::new(["app/*"]);
    Registration::new(spec, handler).composing(authority(&[]), reach)
}

/// A failing server is no fault of the operation that used it, and no other operation can pretend one.
#[tokio::test]
async fn an_error_of_an_imported_server_is_passed_on_as_such() {
    let fails = |name: &str, code: &str, provenance| {
        let error = CallError::operation(code, "the server says no");
        let handler = HandlerKind::once(move |_, _| {
            let error = error.clone();
            async move { Err::<Value, _>(error) }
        });
        Registration::imported(query(name), handler, provenance).passing_errors_on()
    };
    let wrong = HandlerKind::once(|_, _| async { Ok(json!("no number")) });
    let number = query("app/wrong").with_output(json!({ "type": "number" }));
    let registry = Registry::builder()
        .with(lets_pass("app/passes"))
        .with(fails("app/gone", "UNAVAILABLE", Provenance::FromOpenApi))
        .with(fails("app/late", "TIMEOUT", Provenance::FromMcp))
        .with(fails("app/teapot", "HTTP_418", Provenance::FromOpenApi))
        .with(fails("app/tool", "MCP_TOOL_ERROR", Provenance::FromMcp))
        .with(fails("app/own", "UNAVAILABLE", Provenance::Local))
        .with(fails("app/peer", "UNAVAILABLE", Provenance::FromCall))
        .with(Registration::imported(number, wrong, Provenance::FromMcp).checking_output());
    let served = node(registry);
    let client = served.client(Carriage::Memory, None);
    for (op, says, code) in [
        ("app/gone", None, "UNAVAILABLE"),
        ("app/late", None, "TIMEOUT"),
        ("app/teapot", None, BAD_GATEWAY),
        ("app/tool", None, BAD_GATEWAY),
        ("app/wrong", None, BAD_GATEWAY),
        // The operation's own error.
        ("app/own", None, "INTERNAL"),
        // A peer's error may come from a server behind it.
        ("app/peer", None, "UNAVAILABLE"),
        // The server failed in another way.
        ("app/teapot", Some("UNAVAILABLE"), "INTERNAL"),
        ("app/gone", Some("HTTP_404"), "INTERNAL"),
    ] {
        let input = json!({ "op": op, "says": says });
        let ended = soon(client.call("app/passes", &input)).await;
        let error = ended.expect_err("it fails");
        assert_eq!(error.code.name(), code, "{op} {says:?}: {error}");
        assert!(!error.retryable, "{op}: it may have done something");
    }
}

/// Servers report addresses and secrets of the network behind the node, and many callers can make a server fail.
#[tokio::test]
async fn words_of_a_server_are_for_readers_of_the_node() {
    let error = CallError::operation("HTTP_418", "db-7.internal:5432 says no");
    let fails = HandlerKind::once(move |_, _| {
        let error = error.clone();
        async move { Err::<Value, _>(error) }
    });
    let imported = |name: &str, provenance| {
        let own = Registration::imported(query(name), fails.clone(), provenance);
        own.passing_errors_on()
    };
    let registry = Registry::builder()
        .with(lets_pass("app/passes"))
        .with(imported("app/teapot", Provenance::FromOpenApi))
        .with(imported("app/peer", Provenance::FromCall));
    let served = node(registry);
    for (who, op, reads) in [
        (None, "app/teapot", false),
        (None, "app/peer", false),
        (Some(identity("caller", &["call:*"])), "app/teapot", false),
        (Some(identity("caller", &["call:*"])), "app/peer", false),
        (Some(identity("reader", &["node:read"])), "app/teapot", true),
        (Some(identity("reader", &["node:read"])), "app/peer", true),
    ] {
        let client = served.client(Carriage::Memory, who);
        let input = json!({ "op": op });
        let ended = soon(client.call("app/passes", &input)).await;
        let error = ended.expect_err("it fails");
        assert_eq!(error.code.name(), BAD_GATEWAY);
        assert_eq!(error.message.contains("db-7"), reads, "{error}");
        let says_how = error.message.ends_with("answered with status 418");
        assert_eq!(says_how, !reads, "{error}");
    }
}

/// Over HTTP a wrong answer of a server is 502, and a wrong output of this node 500.
#[tokio::test]
async fn a_wrong_output_of_a_server_has_a_status_of_its_own() {
    let wrong = HandlerKind::once(|_, _| async { Ok(json!("no number")) });
    let promises = |name: &str, provenance| {
        let number = query(name).with_output(json!({ "type": "number" }));
        Registration::imported(number, wrong.clone(), provenance).checking_output()
    };
    let registry = Registry::builder()
        .with(promises("app/own", Provenance::Local))
        .with(promises("app/tool", Provenance::FromMcp).with_import_scope());
    let served = node(registry);
    let (dialled, _accepted) = alknet_core::memory_pair(ALPN);
    let gate = LocalCaller::new(&Arc::clone(&served.dispatcher), &dialled, None);
    for (name, status) in [("app/tool", Some(502)), ("app/own", None)] {
        let mut incoming = LocalRequest::new("1", name);
        incoming.identity = Some(identity("caller", &["import:*"]));
        let ended = soon(gate.call(incoming)).await;
        let refused = ended.expect_err("it is no number");
        assert_eq!(refused.error.code, ErrorCode::InvalidOutput, "{name}");
        assert_eq!(refused.http_status, status, "{name}");
    }
}
