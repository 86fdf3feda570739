//! Keyed mutations: however often a request with one `idempotency_key` comes, it runs once.
//!
//! The run belongs to no connection. A requester that goes away, or loses its connection, only stops waiting: the
//! work ends or meets its deadline, and a requester that repeats the key joins it or gets its result.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use alknet_core::{BoxFuture, Identity, PeerId};
use data_encoding::HEXLOWER;
use futures_util::FutureExt;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::body::{CallBody, CallOutput};
use crate::call_tree::Hindrance;
use crate::compiled::CompiledOperation;
use crate::compose::ChildCall;
use crate::connection::CallConnectionState;
use crate::context::Ctx;
use crate::dispatcher::Dispatcher;
use crate::envelope::RequestPayload as Payload;
use crate::error::{CallError, ErrorCode};
use crate::handler::OnceHandler;
use crate::idempotency::{
    IdempotencyCache, IdempotencyKey, IdempotencyLimits, IdempotencyLookup, IdempotencyOwner,
    Serial,
};
use crate::limits::{
    IDEMPOTENCY_BYTES, IDEMPOTENCY_ENTRIES, IDEMPOTENCY_ENTRY_BYTES, IDEMPOTENCY_RESULT_BYTES,
    IDEMPOTENCY_TIME,
};
use crate::request::panicked;
use crate::spec::{Idempotence, OperationSpec, OperationType};
use crate::sync::lock;
use crate::tape::{Digest, digest};

type KeyedOutcome = Result<CallOutput, CallError>;
type KeyedResultReceiver = watch::Receiver<Option<KeyedResult>>;

/// How a run ended.
#[derive(Clone, Debug)]
struct KeyedResult {
    outcome: KeyedOutcome,
    /// The refusal for want of room, or the lack of time, in the course of the run.
    hindrance: Hindrance,
}

/// Every running keyed mutation of a node, and the results of those that ended.
#[derive(Debug)]
pub(crate) struct KeyedCalls {
    results: Mutex<IdempotencyCache<KeyedResultReceiver, KeyedOutcome>>,
    /// The times of `results` count from this.
    start: Instant,
    running: TaskTracker,
}

impl Default for KeyedCalls {
    fn default() -> Self {
        Self::new(IDEMPOTENCY_BYTES)
    }
}

impl KeyedCalls {
    /// The calls of a node that has room for results of so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let limits = IdempotencyLimits {
            time: IDEMPOTENCY_TIME,
            entries: IDEMPOTENCY_ENTRIES,
            bytes,
        };
        Self {
            results: Mutex::new(IdempotencyCache::new(limits)),
            start: Instant::now(),
            running: TaskTracker::new(),
        }
    }

    /// Resolves once no keyed call runs any more.
    pub(crate) async fn drained(&self) {
        self.running.close();
        self.running.wait().await;
    }
}

/// Whether a key of a request of `spec` counts.
pub(crate) fn is_keyed(spec: &OperationSpec) -> bool {
    spec.op_type == OperationType::Mutation && spec.idempotent == Idempotence::Keyed
}

/// The name of a request's result; `None` when the request has no key, or the key means nothing here.
pub(crate) fn name(
    state: &CallConnectionState,
    operation: &CompiledOperation,
    identity: Option<&Identity>,
    payload: &Payload<'_>,
) -> Option<IdempotencyKey> {
    let key = payload.idempotency_key.as_deref();
    let key = key.filter(|_| is_keyed(&operation.spec))?;
    Some(IdempotencyKey {
        owner: owner(state, identity),
        operation: operation.spec.name.as_str().into(),
        peer: payload.peer.as_deref().map(Into::into),
        key: key.into(),
    })
}

/// Like `begin`, for a call of an operation by another. The key belongs to the requester from outside.
pub(crate) fn begin_child(
    child: &ChildCall,
    peer: Option<&PeerId>,
    input: &CallBody,
) -> Result<Option<KeyedExecution>, CallError> {
    let Some(key) = child.key.clone() else {
        return Ok(None);
    };
    let state = child.root.connection_state();
    let name = IdempotencyKey {
        owner: owner(state, child.root.identity().map(AsRef::as_ref)),
        operation: child.operation.spec.name.as_str().into(),
        peer: peer.map(|peer| peer.to_string().into()),
        key,
    };
    begin(state, &child.operation, name, input).map(Some)
}

/// Looks up what a request has to do. The request has its permit and a valid input by then: hashing goes through the
/// whole input.
pub(crate) fn begin(
    state: &CallConnectionState,
    operation: &Arc<CompiledOperation>,
    name: IdempotencyKey,
    input: &CallBody,
) -> Result<KeyedExecution, CallError> {
    let hash = hash(input)?;
    let name = Arc::new(name);
    let calls = &state.dispatcher.keyed;
    let (outcome, waiting) = watch::channel(None);
    // One lookup under one lock: two requests with the key cannot both run.
    let begun = lock(&calls.results).begin(calls.start.elapsed(), &name, hash, waiting.clone());
    let step = match begun {
        IdempotencyLookup::Conflict => {
            let message = "the idempotency_key was used with another input; take a new key";
            return Err(CallError::new(ErrorCode::Conflict, message));
        }
        IdempotencyLookup::Full => {
            let what = "calls with an idempotency_key run at once for an identity";
            return Err(CallError::overloaded(what, IDEMPOTENCY_ENTRIES));
        }
        IdempotencyLookup::Ended(outcome) => KeyedStep::Ended(outcome),
        IdempotencyLookup::Join(waiting) => KeyedStep::Wait(waiting),
        IdempotencyLookup::Run(serial) => {
            let mut run = KeyedRun {
                dispatcher: Arc::clone(&state.dispatcher),
                operation: Arc::clone(operation),
                entered: false,
                name,
                serial,
                outcome,
            };
            // Where the operation is full, dropping the run forgets the entry.
            run.enter()?;
            KeyedStep::Run(run, waiting)
        }
    };
    Ok(KeyedExecution(step))
}

/// A key that includes `name`, no longer than a key may be: equal keys under two names stay two.
pub(crate) fn key_for(name: &str, key: &str) -> String {
    let mut hash = Sha256::new();
    // No peer id, key string or operation's name has this byte, so no two pairs are the same text.
    hash.update(name);
    hash.update([0u8]);
    hash.update(key);
    HEXLOWER.encode(&hash.finalize())
}

fn owner(state: &CallConnectionState, identity: Option<&Identity>) -> IdempotencyOwner {
    match (identity, state.info.key) {
        // A known identity has one set of keys over all its connections.
        (Some(identity), _) => IdempotencyOwner::Known(identity.id.clone()),
        (None, Some(key)) => IdempotencyOwner::Key(key),
        (None, None) => IdempotencyOwner::Connection(state.info.id),
    }
}

/// What a request with a key does instead of running its handler.
pub(crate) struct KeyedExecution(KeyedStep);

enum KeyedStep {
    Ended(KeyedOutcome),
    Run(KeyedRun, KeyedResultReceiver),
    Wait(KeyedResultReceiver),
}

impl KeyedExecution {
    /// The handler of this one request: runs `handler`, or waits for the request that runs it.
    pub(crate) fn handler(self, handler: Arc<dyn OnceHandler>) -> Arc<dyn OnceHandler> {
        Arc::new(KeyedHandler {
            step: Mutex::new(Some(self.0)),
            handler,
        })
    }
}

struct KeyedHandler {
    step: Mutex<Option<KeyedStep>>,
    handler: Arc<dyn OnceHandler>,
}

impl OnceHandler for KeyedHandler {
    fn call(self: Arc<Self>, input: CallBody, ctx: Ctx) -> BoxFuture<'static, KeyedOutcome> {
        let waiting = match lock(&self.step).take() {
            Some(KeyedStep::Ended(outcome)) => return Box::pin(std::future::ready(outcome)),
            Some(KeyedStep::Wait(waiting)) => waiting,
            Some(KeyedStep::Run(run, waiting)) => {
                // Detached: the run goes on when this requester leaves.
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

async fn wait(mut waiting: KeyedResultReceiver, ctx: Ctx) -> KeyedOutcome {
    let ended = waiting.wait_for(Option::is_some).await;
    match ended.ok().and_then(|ended| ended.clone()) {
        Some(KeyedResult { outcome, hindrance }) => {
            // The run was made for this request as well, whichever request began it.
            ctx.hinder(hindrance);
            outcome
        }
        None => Err(CallError::unavailable(
            "the first call with this idempotency_key did not begin; try again",
        )),
    }
}

/// The one run of a key, which counts like any other call of its operation. A run that is dropped before its end
/// counts as never begun.
struct KeyedRun {
    dispatcher: Arc<Dispatcher>,
    operation: Arc<CompiledOperation>,
    entered: bool,
    name: Arc<IdempotencyKey>,
    serial: Serial,
    outcome: watch::Sender<Option<KeyedResult>>,
}

impl KeyedRun {
    fn enter(&mut self) -> Result<(), CallError> {
        self.operation.enter()?;
        // Only a run that has the permit gives one back when it is dropped.
        self.entered = true;
        Ok(())
    }

    fn start(self, handler: Arc<dyn OnceHandler>, input: CallBody, ctx: Ctx) {
        let running = self.dispatcher.keyed.running.clone();
        running.spawn(async move {
            let outcome = work(handler, input, &ctx).await;
            // The work that the handler left running ends with the call, as everywhere.
            ctx.end();
            let tree = ctx.root().tree();
            self.end(outcome, tree.hindrance_itself(), tree.changes().any());
        });
    }

    /// `changed` says whether the run sent a change to a server, so that it must not run again.
    fn end(self, outcome: KeyedOutcome, hindrance: Hindrance, changed: bool) {
        let hindered = hindrance != Hindrance::None && !changed;
        let outcome = outcome.map_err(|error| match changed {
            true => error.not_retryable(),
            false => error,
        });
        let (stored, outcome) = split_remembered(outcome, hindered);
        // Before the waiters get the outcome: one that repeats the key at once finds the result.
        self.settle(stored);
        self.outcome
            .send_replace(Some(KeyedResult { outcome, hindrance }));
    }

    fn settle(&self, stored: Option<(KeyedOutcome, usize)>) {
        let calls = &self.dispatcher.keyed;
        let now = calls.start.elapsed();
        lock(&calls.results).end(now, &self.name, self.serial, stored);
    }
}

impl Drop for KeyedRun {
    fn drop(&mut self) {
        // A run that has ended has another serial: there is nothing left to forget.
        self.settle(None);
        if self.entered {
            self.operation.leave();
        }
    }
}

async fn work(handler: Arc<dyn OnceHandler>, input: CallBody, ctx: &Ctx) -> KeyedOutcome {
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

/// The part of an outcome to remember, and the outcome in a form that is cheap to copy. It does not remember failures
/// that may be gone next time: a retry is meant to run again. Nor does it remember a failure where a call below was
/// `hindered`, such as one that found no room, whatever the calling code makes of that.
fn split_remembered(
    outcome: KeyedOutcome,
    hindered: bool,
) -> (Option<(KeyedOutcome, usize)>, KeyedOutcome) {
    match outcome.and_then(measured) {
        Ok((output, bytes)) if bytes <= IDEMPOTENCY_RESULT_BYTES => {
            let stored = (Ok(output.clone()), bytes + IDEMPOTENCY_ENTRY_BYTES);
            (Some(stored), Ok(output))
        }
        // A longer result leaves a mark, so that a retry does not run the call again.
        Ok((output, bytes)) => (
            Some((Err(too_long(bytes)), IDEMPOTENCY_ENTRY_BYTES)),
            Ok(output),
        ),
        // A retry is meant to run again.
        Err(error) if error.retryable => (None, Err(error)),
        // A call with this code that is not retryable has run: there was no room for its answer.
        Err(error) if hindered && error.code != ErrorCode::Overloaded => (None, Err(error)),
        Err(error) => {
            // A tree may take 75 times the bytes of its text, and the peer of a hub chose it.
            let bytes = error.kept_bytes();
            // Operations choose the length of their messages: a stored one is bounded like a result.
            if bytes > IDEMPOTENCY_RESULT_BYTES {
                let short = error.abridged();
                let bytes = short.kept_bytes() + IDEMPOTENCY_ENTRY_BYTES;
                return (Some((Err(short), bytes)), Err(error));
            }
            let stored = (Err(error.clone()), bytes + IDEMPOTENCY_ENTRY_BYTES);
            (Some(stored), Err(error))
        }
    }
}

fn measured(output: CallOutput) -> Result<(CallOutput, usize), CallError> {
    Ok(match output {
        CallOutput::Value(value) => match CallOutput::json(&value)? {
            CallOutput::Raw(text) => {
                let bytes = text.len();
                (CallOutput::Raw(text), bytes)
            }
            other => (other, 0),
        },
        CallOutput::Raw(text) => {
            let bytes = text.len();
            (CallOutput::Raw(text), bytes)
        }
        CallOutput::MixedText(text, tail) => {
            let bytes = text.len() + tail.len();
            (CallOutput::MixedText(text, tail), bytes)
        }
        CallOutput::Mixed(value, tail) => {
            let bytes = value.to_string().len() + tail.len();
            (CallOutput::Mixed(value, tail), bytes)
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

/// Equal for inputs that mean the same: the order of members does not count.
fn hash(input: &CallBody) -> Result<Digest, CallError> {
    input.read_tape(|value| digest(&value, input.tail()))
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

    fn digest_of(text: &'static str, tail: &'static [u8]) -> Digest {
        let body = CallBody::from_parts(Bytes::from_static(text.as_bytes()), tail.into());
        hash(&body).expect("JSON")
    }

    #[test]
    fn inputs_that_mean_the_same_hash_the_same() {
        assert_eq!(
            digest_of(r#"{"a":1,"b":[{"c":"x","d":null}]}"#, b""),
            digest_of(r#"{ "b" : [ {"d":null, "\u0063":"x"} ], "a" : 1 }"#, b"")
        );
        let different = [
            digest_of("null", b""),
            digest_of("{}", b""),
            digest_of("[]", b""),
            digest_of("[[]]", b""),
            digest_of("[[],[]]", b""),
            digest_of(r#"["a","b"]"#, b""),
            digest_of(r#"["ab"]"#, b""),
            digest_of(r#"[["a"],"b"]"#, b""),
            digest_of("1", b""),
            digest_of(r#""1""#, b""),
            digest_of("true", b""),
            digest_of("null", b"x"),
        ];
        for (n, hash) in different.iter().enumerate() {
            assert!(!different[..n].contains(hash), "{n}");
        }
    }

    /// The clock makes a result old, and not only the want of room.
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
            let limits = IdempotencyLimits {
                time,
                entries: IDEMPOTENCY_ENTRIES,
                bytes: IDEMPOTENCY_BYTES,
            };
            dispatcher.keyed.results = Mutex::new(IdempotencyCache::new(limits));
            let operation = dispatcher.registry.lookup("bank/pay").expect("there");
            let (dialled, _accepted) = memory_pair(ALPN);
            let state = CallConnectionState::one_way(dialled, Arc::new(dispatcher), None);
            let begin = || {
                let name = IdempotencyKey {
                    owner: IdempotencyOwner::Connection(state.info.id),
                    operation: "bank/pay".into(),
                    peer: None,
                    key: "k".into(),
                };
                let begun = begin(&state, &operation, name, &CallBody::null());
                begun.expect("room").0
            };
            let KeyedStep::Run(run, _) = begin() else {
                panic!("it never ran");
            };
            run.end(Ok(CallOutput::Value(Value::Null)), Hindrance::None, false);
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert_eq!(matches!(begin(), KeyedStep::Run(..)), is_old, "{time:?}");
        }
    }

    #[test]
    fn answers_too_long_to_keep_leave_a_trace_and_temporary_failures_none() {
        let long = CallOutput::Raw(vec![b'1'; IDEMPOTENCY_RESULT_BYTES + 1].into());
        let (stored, outcome) = split_remembered(Ok(long), false);
        assert!(outcome.is_ok());
        let (stored, _) = stored.expect("a trace");
        assert_eq!(stored.expect_err("no answer").code, ErrorCode::Conflict);
        assert!(
            split_remembered(Err(CallError::timeout()), false)
                .0
                .is_none()
        );
        let lasting = CallError::operation("DISK_FULL", "no room");
        assert!(split_remembered(Err(lasting), false).0.is_some());
        let (stored, _) = split_remembered(Ok(CallOutput::Value(Value::Null)), true);
        assert_eq!(stored.expect("an answer").1, 4 + IDEMPOTENCY_ENTRY_BYTES);
    }

    /// A list of short values: some bytes of text, and 72 of a tree for each.
    #[test]
    fn errors_count_by_the_memory_of_their_details() {
        let failed = |values: usize| {
            let details = Value::from(vec![0; values]);
            CallError::operation("DISK_FULL", "no room").with_details(details)
        };
        let (stored, outcome) = split_remembered(Err(failed(4_000)), false);
        assert_eq!(outcome.expect_err("it failed"), failed(4_000));
        let (stored, bytes) = stored.expect("a trace");
        assert_eq!(stored.expect_err("it failed"), failed(4_000).abridged());
        assert!(bytes < 2 * IDEMPOTENCY_ENTRY_BYTES + 512, "{bytes}");
        let (stored, _) = split_remembered(Err(failed(300)), false);
        let (stored, bytes) = stored.expect("a trace");
        assert_eq!(stored.expect_err("it failed"), failed(300));
        assert!(bytes >= 300 * size_of::<Value>(), "{bytes}");
        let endless = CallError::operation(&"N".repeat(IDEMPOTENCY_RESULT_BYTES), "no room");
        let (stored, _) = split_remembered(Err(endless), false);
        let (stored, bytes) = stored.expect("a trace");
        assert_eq!(stored.expect_err("it failed").code, ErrorCode::Internal);
        assert!(bytes < 2 * IDEMPOTENCY_ENTRY_BYTES, "{bytes}");
    }

    #[test]
    fn what_fails_for_want_of_room_leaves_no_trace_unless_it_has_run() {
        let hidden = || CallError::internal("in its own name");
        assert!(split_remembered(Err(hidden()), true).0.is_none());
        assert!(split_remembered(Err(hidden()), false).0.is_some());
        let mut full = CallError::overloaded("calls at once", 1);
        assert!(split_remembered(Err(full.clone()), true).0.is_none());
        full.retryable = false;
        assert!(split_remembered(Err(full), true).0.is_some());
    }
}
