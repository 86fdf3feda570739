//! Keyed mutations: however often a request with one `idempotency_key` comes, it runs once.
//!
//! The run belongs to no connection. A requester that goes away, or loses its connection, only
//! stops to wait: the work ends or meets its deadline, and whoever asks again with the same key
//! joins it or is told how it ended.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use alknet_core::{BoxFuture, Identity, PeerId};
use data_encoding::HEXLOWER;
use futures_util::FutureExt;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::body::{Body, Output};
use crate::call_tree::Hindrance;
use crate::compiled::Compiled;
use crate::compose::Child;
use crate::context::Ctx;
use crate::dispatcher::Dispatcher;
use crate::envelope::Request as Payload;
use crate::error::{CallError, ErrorCode};
use crate::handler::OnceHandler;
use crate::idempotency::{Begin, Name, Owner, Results, Room, Serial};
use crate::limits::{
    IDEMPOTENCY_BYTES, IDEMPOTENCY_ENTRIES, IDEMPOTENCY_ENTRY_BYTES, IDEMPOTENCY_RESULT_BYTES,
    IDEMPOTENCY_TIME,
};
use crate::link::Link;
use crate::request::panicked;
use crate::spec::{Idempotence, OperationSpec, OperationType};
use crate::sync::lock;
use crate::tape::{Digest, digest};

type Outcome = Result<Output, CallError>;
type Waiting = watch::Receiver<Option<Ended>>;

/// How a run ended.
#[derive(Clone, Debug)]
struct Ended {
    outcome: Outcome,
    /// What was refused for want of room in the course of it, or ended because a caller left it too little time.
    hindrance: Hindrance,
}

/// Every keyed mutation of a node that runs, and the results of those that ended.
#[derive(Debug)]
pub(crate) struct KeyedCalls {
    results: Mutex<Results<Waiting, Outcome>>,
    /// What the times of `results` are counted from.
    start: Instant,
    running: TaskTracker,
}

impl Default for KeyedCalls {
    fn default() -> Self {
        Self::new(IDEMPOTENCY_BYTES)
    }
}

impl KeyedCalls {
    /// For a node that has room for results of so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let room = Room {
            time: IDEMPOTENCY_TIME,
            entries: IDEMPOTENCY_ENTRIES,
            bytes,
        };
        Self {
            results: Mutex::new(Results::new(room)),
            start: Instant::now(),
            running: TaskTracker::new(),
        }
    }

    /// Resolves once nothing runs any more.
    pub(crate) async fn drained(&self) {
        self.running.close();
        self.running.wait().await;
    }
}

/// Whether requests of `spec` may carry a key that counts.
pub(crate) fn is_keyed(spec: &OperationSpec) -> bool {
    spec.op_type == OperationType::Mutation && spec.idempotent == Idempotence::Keyed
}

/// What the result of a request is found by; `None` when it has no key, or the key means nothing here.
pub(crate) fn name(
    link: &Link,
    operation: &Compiled,
    identity: Option<&Identity>,
    payload: &Payload<'_>,
) -> Option<Name> {
    let key = payload.idempotency_key.as_deref();
    let key = key.filter(|_| is_keyed(&operation.spec))?;
    Some(Name {
        owner: owner(link, identity),
        operation: operation.spec.name.as_str().into(),
        peer: payload.peer.as_deref().map(Into::into),
        key: key.into(),
    })
}

/// The same for a call of an operation by another, which belongs to whoever asked for that.
pub(crate) fn begin_child(
    child: &Child,
    peer: Option<&PeerId>,
    input: &Body,
) -> Result<Option<Keyed>, CallError> {
    let Some(key) = child.key.clone() else {
        return Ok(None);
    };
    let link = child.root.link();
    let name = Name {
        owner: owner(link, child.root.identity().map(AsRef::as_ref)),
        operation: child.operation.spec.name.as_str().into(),
        peer: peer.map(|peer| peer.to_string().into()),
        key,
    };
    begin(link, &child.operation, name, input).map(Some)
}

/// Looks up what a request has to do. It has its place by then, and its input fits: the whole of that is looked at.
pub(crate) fn begin(
    link: &Link,
    operation: &Arc<Compiled>,
    name: Name,
    input: &Body,
) -> Result<Keyed, CallError> {
    let hash = hash(input)?;
    let name = Arc::new(name);
    let calls = &link.dispatcher.keyed;
    let (outcome, waiting) = watch::channel(None);
    let begun = lock(&calls.results).begin(calls.start.elapsed(), &name, hash, waiting.clone());
    let step = match begun {
        Begin::Conflict => {
            let message = "the idempotency_key was used with another input; take a new key";
            return Err(CallError::new(ErrorCode::Conflict, message));
        }
        Begin::Full => {
            let what = "calls with an idempotency_key run at once for an identity";
            return Err(CallError::overloaded(what, IDEMPOTENCY_ENTRIES));
        }
        Begin::Ended(outcome) => Step::Ended(outcome),
        Begin::Join(waiting) => Step::Wait(waiting),
        Begin::Run(serial) => {
            let mut run = Run {
                dispatcher: Arc::clone(&link.dispatcher),
                operation: Arc::clone(operation),
                entered: false,
                name,
                serial,
                outcome,
            };
            run.enter()?;
            Step::Run(run, waiting)
        }
    };
    Ok(Keyed(step))
}

/// A key that holds `name` as well, as long as a key may be: equal keys under two names stay two.
pub(crate) fn key_for(name: &str, key: &str) -> String {
    let mut hash = Sha256::new();
    // No peer id, key string or operation's name has this byte, so no two pairs are the same text.
    hash.update(name);
    hash.update([0u8]);
    hash.update(key);
    HEXLOWER.encode(&hash.finalize())
}

fn owner(link: &Link, identity: Option<&Identity>) -> Owner {
    match (identity, link.info.key) {
        (Some(identity), _) => Owner::Known(identity.id.clone()),
        (None, Some(key)) => Owner::Key(key),
        (None, None) => Owner::Connection(link.info.id),
    }
}

/// What a request with a key does instead of running its handler.
pub(crate) struct Keyed(Step);

enum Step {
    Ended(Outcome),
    Run(Run, Waiting),
    Wait(Waiting),
}

impl Keyed {
    /// The handler of this one request: runs `handler`, or waits for whoever does.
    pub(crate) fn handler(self, handler: Arc<dyn OnceHandler>) -> Arc<dyn OnceHandler> {
        Arc::new(Once {
            step: Mutex::new(Some(self.0)),
            handler,
        })
    }
}

struct Once {
    step: Mutex<Option<Step>>,
    handler: Arc<dyn OnceHandler>,
}

impl OnceHandler for Once {
    fn call(self: Arc<Self>, input: Body, ctx: Ctx) -> BoxFuture<'static, Outcome> {
        let waiting = match lock(&self.step).take() {
            Some(Step::Ended(outcome)) => return Box::pin(std::future::ready(outcome)),
            Some(Step::Wait(waiting)) => waiting,
            Some(Step::Run(run, waiting)) => {
                run.start(Arc::clone(&self.handler), input, ctx.detached());
                waiting
            }
            None => {
                let error = CallError::internal("a keyed call was started twice");
                return Box::pin(std::future::ready(Err(error)));
            }
        };
        Box::pin(wait(waiting, ctx))
    }
}

async fn wait(mut waiting: Waiting, ctx: Ctx) -> Outcome {
    let ended = waiting.wait_for(Option::is_some).await;
    match ended.ok().and_then(|ended| ended.clone()) {
        Some(Ended { outcome, hindrance }) => {
            // Whoever began it, it was run for this request as well.
            ctx.hinder(hindrance);
            outcome
        }
        None => Err(CallError::unavailable(
            "the first call with this idempotency_key did not begin; try again",
        )),
    }
}

/// The one run of a key, counted like any other call of its operation. Dropped before its end, it
/// never was.
struct Run {
    dispatcher: Arc<Dispatcher>,
    operation: Arc<Compiled>,
    entered: bool,
    name: Arc<Name>,
    serial: Serial,
    outcome: watch::Sender<Option<Ended>>,
}

impl Run {
    fn enter(&mut self) -> Result<(), CallError> {
        self.operation.enter()?;
        self.entered = true;
        Ok(())
    }

    fn start(self, handler: Arc<dyn OnceHandler>, input: Body, ctx: Ctx) {
        let running = self.dispatcher.keyed.running.clone();
        running.spawn(async move {
            let outcome = work(handler, input, &ctx).await;
            // What the handler left running is over with its call, as everywhere.
            ctx.end();
            let hindrance = ctx.root().tree().hindrance_itself();
            self.end(outcome, hindrance);
        });
    }

    fn end(self, outcome: Outcome, hindrance: Hindrance) {
        let (kept, outcome) = keep(outcome, hindrance != Hindrance::None);
        self.settle(kept);
        self.outcome
            .send_replace(Some(Ended { outcome, hindrance }));
    }

    fn settle(&self, kept: Option<(Outcome, usize)>) {
        let calls = &self.dispatcher.keyed;
        let now = calls.start.elapsed();
        lock(&calls.results).end(now, &self.name, self.serial, kept);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Nothing is left to forget where the run has ended: its serial is no longer this one.
        self.settle(None);
        if self.entered {
            self.operation.leave();
        }
    }
}

async fn work(handler: Arc<dyn OnceHandler>, input: Body, ctx: &Ctx) -> Outcome {
    let own = ctx.clone();
    let work = AssertUnwindSafe(async move { handler.call(input, own).await }).catch_unwind();
    let outcome = match ctx.deadline() {
        Some(deadline) => match tokio::time::timeout_at(deadline, work).await {
            Ok(outcome) => outcome,
            Err(_) => return Err(CallError::timeout()),
        },
        None => work.await,
    };
    outcome.unwrap_or_else(|_| Err(panicked(ctx.root(), ctx.operation())))
}

/// What to remember of an outcome, and the outcome in a form that is cheap to copy. Failures that
/// may be gone next time are not remembered: a retry is meant to run again. So is what failed where something below it
/// was `hindered`, such as a call that found no room, whatever the code that called makes of that.
fn keep(outcome: Outcome, hindered: bool) -> (Option<(Outcome, usize)>, Outcome) {
    match outcome.and_then(measured) {
        Ok((output, bytes)) if bytes <= IDEMPOTENCY_RESULT_BYTES => {
            let kept = (Ok(output.clone()), bytes + IDEMPOTENCY_ENTRY_BYTES);
            (Some(kept), Ok(output))
        }
        Ok((output, bytes)) => (
            Some((Err(too_long(bytes)), IDEMPOTENCY_ENTRY_BYTES)),
            Ok(output),
        ),
        Err(error) if error.retryable => (None, Err(error)),
        // One of that code which is not retryable has run: there was no room for its answer.
        Err(error) if hindered && error.code != ErrorCode::Overloaded => (None, Err(error)),
        Err(error) => {
            let details = error.details.as_ref().map_or(0, |d| d.to_string().len());
            let bytes = error.message.len() + details;
            if bytes > IDEMPOTENCY_RESULT_BYTES {
                let kept = (Err(too_long(bytes)), IDEMPOTENCY_ENTRY_BYTES);
                return (Some(kept), Err(error));
            }
            let kept = (Err(error.clone()), bytes + IDEMPOTENCY_ENTRY_BYTES);
            (Some(kept), Err(error))
        }
    }
}

fn measured(output: Output) -> Result<(Output, usize), CallError> {
    Ok(match output {
        Output::Value(value) => match Output::json(&value)? {
            Output::Raw(text) => {
                let bytes = text.len();
                (Output::Raw(text), bytes)
            }
            other => (other, 0),
        },
        Output::Raw(text) => {
            let bytes = text.len();
            (Output::Raw(text), bytes)
        }
        Output::MixedText(text, tail) => {
            let bytes = text.len() + tail.len();
            (Output::MixedText(text, tail), bytes)
        }
        Output::Mixed(value, tail) => {
            let bytes = value.to_string().len() + tail.len();
            (Output::Mixed(value, tail), bytes)
        }
    })
}

fn too_long(bytes: usize) -> CallError {
    let message = format!(
        "the call with this idempotency_key has run; its answer of {bytes} bytes was not kept, \
         which ends at {IDEMPOTENCY_RESULT_BYTES}; ask for its effect instead"
    );
    CallError::new(ErrorCode::Conflict, message)
}

/// The same for inputs that mean the same: the order of members does not count.
fn hash(input: &Body) -> Result<Digest, CallError> {
    input.look(|value| digest(&value, input.tail()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use alknet_core::memory_pair;
    use bytes::Bytes;
    use serde_json::Value;

    use super::*;
    use crate::ALPN;
    use crate::handler::HandlerKind;
    use crate::registry::{Registration, Registry};

    fn of(text: &'static str, tail: &'static [u8]) -> Digest {
        let body = Body::from_parts(Bytes::from_static(text.as_bytes()), tail.into());
        hash(&body).expect("JSON")
    }

    #[test]
    fn inputs_that_mean_the_same_hash_the_same() {
        assert_eq!(
            of(r#"{"a":1,"b":[{"c":"x","d":null}]}"#, b""),
            of(r#"{ "b" : [ {"d":null, "\u0063":"x"} ], "a" : 1 }"#, b"")
        );
        let different = [
            of("null", b""),
            of("{}", b""),
            of("[]", b""),
            of("[[]]", b""),
            of("[[],[]]", b""),
            of(r#"["a","b"]"#, b""),
            of(r#"["ab"]"#, b""),
            of(r#"[["a"],"b"]"#, b""),
            of("1", b""),
            of(r#""1""#, b""),
            of("true", b""),
            of("null", b"x"),
        ];
        for (n, hash) in different.iter().enumerate() {
            assert!(!different[..n].contains(hash), "{n}");
        }
    }

    /// It is the clock that makes a result old, and not only the want of room.
    #[tokio::test]
    async fn a_key_runs_again_once_its_result_is_old() {
        for (time, is_old) in [(IDEMPOTENCY_TIME, false), (Duration::from_nanos(1), true)] {
            let mut spec = OperationSpec::mutation("bank/pay", "Runs once for a key.");
            spec.idempotent = Idempotence::Keyed;
            let pay = HandlerKind::once(|_, _| async { Ok(Value::Null) });
            let registry = Registry::builder()
                .with(Registration::new(spec, pay).open())
                .build();
            let mut dispatcher = Dispatcher::new(registry.expect("every rule is kept"));
            let room = Room {
                time,
                entries: IDEMPOTENCY_ENTRIES,
                bytes: IDEMPOTENCY_BYTES,
            };
            dispatcher.keyed.results = Mutex::new(Results::new(room));
            let operation = dispatcher.registry.lookup("bank/pay").expect("there");
            let (dialled, _accepted) = memory_pair(ALPN);
            let link = Link::one_way(dialled, Arc::new(dispatcher), None);
            let begin = || {
                let name = Name {
                    owner: Owner::Connection(link.info.id),
                    operation: "bank/pay".into(),
                    peer: None,
                    key: "k".into(),
                };
                let begun = begin(&link, &operation, name, &Body::null());
                begun.expect("room").0
            };
            let Step::Run(run, _) = begin() else {
                panic!("it never ran");
            };
            run.end(Ok(Output::Value(Value::Null)), Hindrance::None);
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert_eq!(matches!(begin(), Step::Run(..)), is_old, "{time:?}");
        }
    }

    #[test]
    fn answers_too_long_to_keep_leave_a_trace_and_temporary_failures_none() {
        let long = Output::Raw(vec![b'1'; IDEMPOTENCY_RESULT_BYTES + 1].into());
        let (kept, outcome) = keep(Ok(long), false);
        assert!(outcome.is_ok());
        let (kept, _) = kept.expect("a trace");
        assert_eq!(kept.expect_err("no answer").code, ErrorCode::Conflict);
        assert!(keep(Err(CallError::timeout()), false).0.is_none());
        let lasting = CallError::operation("DISK_FULL", "no room");
        assert!(keep(Err(lasting), false).0.is_some());
        let (kept, _) = keep(Ok(Output::Value(Value::Null)), true);
        assert_eq!(kept.expect("an answer").1, 4 + IDEMPOTENCY_ENTRY_BYTES);
    }

    #[test]
    fn what_fails_for_want_of_room_leaves_no_trace_unless_it_has_run() {
        let hidden = || CallError::internal("in its own name");
        assert!(keep(Err(hidden()), true).0.is_none());
        assert!(keep(Err(hidden()), false).0.is_some());
        let mut full = CallError::overloaded("calls at once", 1);
        assert!(keep(Err(full.clone()), true).0.is_none());
        full.retryable = false;
        assert!(keep(Err(full), true).0.is_some());
    }
}
