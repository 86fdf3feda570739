//! Operations of every kind, for the clients of these tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{CallError, CallOutput, HandlerKind, OperationSpec, Registration, Registry};
use futures_util::stream;
use serde_json::{Value, json};

/// Scope that a caller needs for them.
pub(crate) const SCOPE: &str = "demo";

/// The counters of the operations.
#[derive(Debug, Default)]
struct HandlerCounts {
    /// Events made.
    made: AtomicUsize,
    /// Handlers that run and wait.
    running: AtomicUsize,
}

/// A running handler.
struct RunningHandler(Arc<HandlerCounts>);

impl RunningHandler {
    fn new(counts: &Arc<HandlerCounts>) -> Self {
        counts.running.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for RunningHandler {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// All of them.
pub(crate) fn operations() -> Registry {
    let counts = Arc::new(HandlerCounts::default());
    Registry::builder()
        .with(once("demo/echo", |input, _| async move {
            Ok(CallOutput::from(input))
        }))
        .with(state(&counts))
        .with(hang(&counts))
        .with(count(&counts))
        .with(once("demo/back", |input, ctx| async move {
            let (operation, input) = asked(input.value())?;
            let answer = ctx.caller().call(&operation, &input).await?;
            Ok(answer.into())
        }))
        .with(once("demo/back-stream", |input, ctx| async move {
            let (operation, input) = asked(input.value())?;
            let mut events = ctx.caller().subscribe(&operation, &input).await?;
            let mut seen = 0u64;
            while let Some(event) = events.next().await {
                event?;
                seen += 1;
            }
            CallOutput::json(&seen)
        }))
        .build()
        .expect("correct operations")
}

fn query(name: &str) -> OperationSpec {
    OperationSpec::query(name, "For tests.").with_scope(SCOPE)
}

fn once<F, Fut>(name: &str, handler: F) -> Registration
where
    F: Fn(alknet_call::CallBody, alknet_call::Ctx) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<CallOutput, CallError>> + Send + 'static,
{
    Registration::new(query(name), HandlerKind::once(handler))
}

/// What the caller must have.
fn asked(input: &Value) -> Result<(String, Value), CallError> {
    let operation = input["operation"].as_str();
    let operation = operation.ok_or_else(|| CallError::invalid_input("no operation"))?;
    Ok((operation.to_owned(), input["input"].clone()))
}

fn state(counts: &Arc<HandlerCounts>) -> Registration {
    let counts = Arc::clone(counts);
    once("demo/state", move |_, _| {
        let read = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        let state = json!({ "made": read(&counts.made), "running": read(&counts.running) });
        std::future::ready(CallOutput::json(&state))
    })
}

fn hang(counts: &Arc<HandlerCounts>) -> Registration {
    let counts = Arc::clone(counts);
    once("demo/hang", move |_, _| {
        let running = RunningHandler::new(&counts);
        async move {
            let _running = running;
            std::future::pending().await
        }
    })
}

fn count(counts: &Arc<HandlerCounts>) -> Registration {
    let counts = Arc::clone(counts);
    let spec = OperationSpec::subscription("demo/count", "Counts from 0.").with_scope(SCOPE);
    let handler = HandlerKind::stream(move |input, _| {
        let most = input.value().as_u64().unwrap_or(u64::MAX);
        let running = RunningHandler::new(&counts);
        stream::unfold((0, running), move |(n, running)| async move {
            (n < most).then(|| {
                running.0.made.fetch_add(1, Ordering::SeqCst);
                (Ok::<Value, CallError>(json!(n)), (n + 1, running))
            })
        })
    });
    Registration::new(spec, handler)
}
