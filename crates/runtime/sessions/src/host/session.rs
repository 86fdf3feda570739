//! The handle of a session for the rest of the node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_call::Env;
use alknet_core::BoxFuture;
use alknet_runtime::{CallRecorder, IsolateWork, RuntimeCode, ScriptFailure};
use alknet_worker::{Bytes32, CallLimits, CallStats, CborBody, WorkerReply, WorkerRequest};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::actor::{CallStart, SessionCommand, SessionRequest, YieldedItem};
use super::failure::{is_relieved, of_call, of_fault};
use super::memory::{MemoryReservation, MemoryShare, ReadRefusal};
use super::shared::{SessionEndReason, SessionShared, SessionState};
use super::{SessionInfo, SessionLimits};
use crate::limits::UNACKNOWLEDGED;
use crate::wire::{self, CallResult, InvokedExport};

/// An open session. Clones are the same session, which ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct ScriptSession {
    pub(super) weak_session: WeakSession,
    layer: Arc<alknet_call::SandboxSession>,
    /// This sender keeps the session open.
    commands: mpsc::UnboundedSender<SessionCommand>,
}

/// A handle that does not keep the session open.
#[derive(Clone, Debug)]
pub(super) struct WeakSession {
    pub(super) shared: Arc<SessionShared>,
    commands: mpsc::WeakUnboundedSender<SessionCommand>,
    limits: CallLimits,
    operation: Option<Bytes32>,
}

/// The result of a call into a session.
#[derive(Clone, Debug)]
pub struct SessionOutput {
    /// The value.
    pub value: Value,
    /// The value in the form that a REPL shows.
    pub shown: Option<String>,
    /// The number of calls that the session has made so far, as the worker reports it.
    pub calls: u64,
    /// The resources that the call used, as the worker reports them.
    pub stats: CallStats,
    /// The value counts against the session's memory until this is dropped.
    held: Arc<MemoryReservation>,
}

impl SessionOutput {
    /// Bytes of the node's memory that the value takes.
    pub(super) fn bytes(&self) -> usize {
        self.held.bytes()
    }
}

impl ScriptSession {
    pub(super) fn new(
        shared: Arc<SessionShared>,
        commands: mpsc::UnboundedSender<SessionCommand>,
        layer: alknet_call::SandboxSession,
        limits: SessionLimits,
        operation: Option<Bytes32>,
    ) -> Self {
        let weak_session = WeakSession {
            shared,
            commands: commands.downgrade(),
            limits: CallLimits {
                wall: limits.wall,
                cpu: Some(limits.runtime.cpu),
                gpu: Some(limits.gpu),
            },
            operation,
        };
        Self {
            weak_session,
            layer: Arc::new(layer),
            commands,
        }
    }

    pub(super) fn layer(&self) -> Arc<alknet_call::SandboxSession> {
        Arc::clone(&self.layer)
    }

    /// The session's number on this node.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.weak_session.shared.id()
    }

    /// The current state of the session.
    #[must_use]
    pub fn info(&self) -> SessionInfo {
        self.weak_session.shared.info()
    }

    /// Runs work in the session for the request that `env` belongs to. Dropping the future aborts it: its
    /// `AbortSignal` fires, and its calls are aborted.
    ///
    /// # Errors
    /// The script's failure.
    pub async fn run(&self, env: &Env, work: IsolateWork) -> Result<SessionOutput, ScriptFailure> {
        let env = self.layer.env(env);
        self.weak_session
            .enter(SessionRequest::Call(request(work)?), Some(env), None)
            .await
    }

    /// Like [`run`](Self::run), for work that yields items, which the caller takes one by one.
    ///
    /// # Errors
    /// The input cannot be sent.
    pub fn follow(&self, env: &Env, work: IsolateWork) -> Result<YieldedItems, ScriptFailure> {
        let env = self.layer.env(env);
        Ok(self
            .weak_session
            .follow(SessionRequest::Call(request(work)?), env))
    }

    /// Calls the `dispose` of a service, for at most 500 ms. The result is for its successor.
    ///
    /// # Errors
    /// The script's failure.
    pub async fn dispose(&self, env: &Env) -> Result<SessionOutput, ScriptFailure> {
        let env = self.layer.env(env);
        self.weak_session
            .enter(SessionRequest::Farewell, Some(env), None)
            .await
    }

    /// Like `dispose`, with room that the node takes for the result before it calls `dispose`. `None` without such
    /// room: then it calls nothing, and the state stays in the session. The room is that of a service that rests: if
    /// neither its successor nor its old code begins, the state may have to wait for the next call.
    pub(super) async fn hand_over(
        &self,
        env: &Env,
    ) -> Option<Result<SessionOutput, ScriptFailure>> {
        let reservation = self.weak_session.shared.memory().for_successor().ok()?;
        let env = Some(self.layer.env(env));
        let left = self.weak_session.leave(env, reservation);
        Some(left.await)
    }

    /// Like `hand_over`, without a request, for a service whose session ends for others: `dispose` can call nothing.
    pub(super) async fn rest(&self) -> Option<Result<SessionOutput, ScriptFailure>> {
        let reservation = self.weak_session.shared.memory().for_rest().ok()?;
        let left = self.weak_session.leave(None, reservation);
        Some(left.await)
    }

    /// Whether the session has ended.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.info().state, SessionState::Closed(_))
    }

    /// The share of the node's memory for its values.
    pub(super) fn memory(&self) -> &MemoryShare {
        self.weak_session.shared.memory()
    }

    /// Whether something of its script was refused because others had used up the memory for values.
    pub(super) fn has_met_full(&self) -> bool {
        self.weak_session.shared.has_met_full()
    }

    /// The number of its worker's session.
    pub(super) fn worker_session(&self) -> u64 {
        self.weak_session.shared.worker_session()
    }

    /// Like `dispose`, without a request: the script can call nothing.
    ///
    /// # Errors
    /// The script's failure.
    pub async fn farewell(&self) -> Result<SessionOutput, ScriptFailure> {
        self.weak_session
            .enter(SessionRequest::Farewell, None, None)
            .await
    }

    /// Ends the session and all calls in it.
    pub fn kill(&self) {
        self.weak_session.close(SessionEndReason::Abort);
    }

    /// Ends a session whose work is done, and waits until its worker has one session less.
    pub(super) async fn end(&self) {
        self.weak_session.close(SessionEndReason::Done);
        // The actor drops its worker before its queue.
        self.commands.closed().await;
    }

    /// Sets the listener of the session's console, in addition to the log.
    pub fn set_console(&self, console: Option<super::Console>) {
        self.weak_session.send(SessionCommand::Console(console));
    }

    /// Sets the recorder of the session's calls. It records all calls with their answers, except what the schemas of
    /// the called operations mark as secret.
    pub fn set_record(&self, record: Option<CallRecorder>) {
        self.weak_session.send(SessionCommand::Record(record));
    }
}

impl WeakSession {
    /// Calls an operation that the session registered.
    pub(super) async fn invoke(
        &self,
        name: &str,
        input: &Value,
        env: Env,
    ) -> Result<SessionOutput, ScriptFailure> {
        let request = SessionRequest::Call(invocation(name.to_owned(), input)?);
        self.enter(request, Some(env), None).await
    }

    /// Like `invoke`, for an operation that yields items, which the receiver takes one by one.
    pub(super) fn follow_operation(
        &self,
        name: &str,
        input: &Value,
        env: Env,
    ) -> Result<YieldedItems, ScriptFailure> {
        Ok(self.follow(
            SessionRequest::Call(invocation(name.to_owned(), input)?),
            env,
        ))
    }

    fn follow(&self, request: SessionRequest, env: Env) -> YieldedItems {
        let (items, taken) = mpsc::channel(UNACKNOWLEDGED);
        let weak_session = self.clone();
        let ended =
            Box::pin(async move { weak_session.enter(request, Some(env), Some(items)).await });
        YieldedItems {
            weak_session: self.clone(),
            ended: Some(ended),
            items: taken,
        }
    }

    async fn enter(
        &self,
        request: SessionRequest,
        env: Option<Env>,
        items: Option<mpsc::Sender<YieldedItem>>,
    ) -> Result<SessionOutput, ScriptFailure> {
        self.enter_with(request, env, items, None).await
    }

    /// Calls the `dispose` of a service. `reservation` is for the result.
    async fn leave(
        &self,
        env: Option<Env>,
        reservation: MemoryReservation,
    ) -> Result<SessionOutput, ScriptFailure> {
        self.enter_with(SessionRequest::Farewell, env, None, Some(reservation))
            .await
    }

    /// Calls the session. The result takes its memory from `reservation`, if the caller has taken it before.
    async fn enter_with(
        &self,
        request: SessionRequest,
        env: Option<Env>,
        items: Option<mpsc::Sender<YieldedItem>>,
        reservation: Option<MemoryReservation>,
    ) -> Result<SessionOutput, ScriptFailure> {
        let over = || ScriptFailure::new(RuntimeCode::Disposed, "the session is over");
        let course = env.clone();
        let (begun, call) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let began = Instant::now();
        let start = CallStart {
            request,
            limits: self.limits,
            operation: self.operation,
            env,
            items,
            begun,
            stop,
        };
        if !self.send(SessionCommand::Start(Box::new(start))) {
            return Err(over());
        }
        let call = self.answered(call).await.ok_or_else(over)?;
        let mut guard = EnteredCall {
            weak_session: self,
            id: Some(call.id()),
        };
        let outcome = tokio::select! {
            biased;
            // Dropping the guard on this path gives the call up.
            Ok(failure) = stopped => {
                self.shared.count_ended(None, began.elapsed());
                return Err(self.judged(failure, None));
            }
            outcome = call => outcome,
        };
        // The actor may see that the worker is gone, and not why.
        if let Err(error) = &outcome
            && let Some(reason) = SessionEndReason::from_code(of_call(error).code)
        {
            self.shared.close(reason);
        }
        // Messages that the script sent before the end are handled first.
        if let Some(id) = guard.id.take() {
            let (heard, everything) = oneshot::channel();
            if self.send(SessionCommand::Ended(id, Some(heard))) {
                // Without a reply, the session has ended, and no more messages come.
                let _ = self.answered(everything).await;
            }
        }
        self.ran(outcome, course.as_ref(), began.elapsed(), reservation)
    }

    fn ran(
        &self,
        outcome: Result<alknet_worker::WorkerAnswer, alknet_worker::WorkerCallError>,
        course: Option<&Env>,
        wall: Duration,
        reservation: Option<MemoryReservation>,
    ) -> Result<SessionOutput, ScriptFailure> {
        let beside_abort = outcome.as_ref().ok().map(|answer| answer.beside_abort);
        let (failure, stats) = match outcome {
            Ok(answer) => match answer.reply {
                WorkerReply::Ok(blob) => {
                    let read = match reservation {
                        Some(reservation) => reservation.open::<CallResult>(blob, &answer.fds),
                        None => self.shared.memory().open(blob, &answer.fds),
                    };
                    match read {
                        Ok((done, held)) => {
                            self.shared.count_ended(Some(answer.stats), wall);
                            return Ok(SessionOutput {
                                value: done.value.0,
                                shown: done.shown,
                                calls: done.calls,
                                stats: answer.stats,
                                held: Arc::new(held),
                            });
                        }
                        Err(full @ (ReadRefusal::Full | ReadRefusal::TooMuch)) => {
                            if let (ReadRefusal::Full, Some(env)) = (full, course) {
                                env.excuse();
                            }
                            let text = full.error("result").message;
                            (
                                ScriptFailure::new(RuntimeCode::Quota, text),
                                Some(answer.stats),
                            )
                        }
                        Err(ReadRefusal::Wrong) => {
                            // An honest worker never sends this.
                            self.close(SessionEndReason::WorkerLost);
                            let text = "the worker's answer is malformed";
                            (ScriptFailure::new(RuntimeCode::WorkerLost, text), None)
                        }
                    }
                }
                WorkerReply::Err(fault) => (of_fault(&fault), Some(answer.stats)),
            },
            Err(error) => {
                // The code of this failure says that there was no room, which alone would leave the session open.
                if is_relieved(&error) {
                    self.close(SessionEndReason::WorkerLost);
                }
                (of_call(&error), None)
            }
        };
        self.shared.count_ended(stats, wall);
        Err(self.judged(failure, beside_abort))
    }

    /// Closes the session after a failure that ends it: after a limit, no part of it is used again. `beside_abort` is
    /// that of the worker's answer, if there is one.
    fn judged(&self, failure: ScriptFailure, beside_abort: Option<bool>) -> ScriptFailure {
        let failure = match (failure.code, beside_abort) {
            // The host has requested no abort of this call, so the worker was stopped for another one. The caller of
            // that one gave it up, and the script did nothing wrong in this one.
            (RuntimeCode::Abort, Some(true)) => {
                self.close(SessionEndReason::Abort);
                let text = "the session ended with another of its calls";
                ScriptFailure::new(RuntimeCode::WorkerLost, text).excuse()
            }
            // The host has requested no abort at all. An honest worker never says this.
            (RuntimeCode::Abort, Some(false)) => {
                let text = "the worker claims an abort that the node did not request";
                ScriptFailure::new(RuntimeCode::WorkerLost, text)
            }
            _ => failure,
        };
        if let Some(reason) = SessionEndReason::from_code(failure.code) {
            self.close(reason);
        }
        failure
    }

    fn close(&self, reason: SessionEndReason) {
        self.shared.close(reason);
        self.send(SessionCommand::Close(reason));
    }

    /// The actor's reply to a command; `None` if the actor ended without one. A channel drops its content only once,
    /// when the actor ends: a command that is sent at that moment stays in it, and so does the sender of its reply,
    /// for as long as the session has a holder. So this also waits for the channel to close.
    async fn answered<T>(&self, answer: oneshot::Receiver<T>) -> Option<T> {
        let Some(commands) = self.commands.upgrade() else {
            return answer.await.ok();
        };
        tokio::select! {
            biased;
            answer = answer => answer.ok(),
            () = commands.closed() => None,
        }
    }

    fn send(&self, command: SessionCommand) -> bool {
        let commands = self.commands.upgrade();
        commands.is_some_and(|commands| commands.send(command).is_ok())
    }
}

/// A running call. If it is dropped before its end, the call ends too.
struct EnteredCall<'a> {
    weak_session: &'a WeakSession,
    id: Option<u64>,
}

impl Drop for EnteredCall<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.weak_session.send(SessionCommand::Ended(id, None));
        }
    }
}

/// The items that a script yields.
pub struct YieldedItems {
    weak_session: WeakSession,
    ended: Option<BoxFuture<'static, Result<SessionOutput, ScriptFailure>>>,
    items: mpsc::Receiver<YieldedItem>,
}

impl std::fmt::Debug for YieldedItems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("YieldedItems")
            .field("entrance", &self.weak_session)
            .finish_non_exhaustive()
    }
}

impl YieldedItems {
    /// The next item; `None` once the script has ended without a failure.
    pub async fn next(&mut self) -> Option<Result<Value, ScriptFailure>> {
        loop {
            let Some(ended) = &mut self.ended else {
                // Only the items from before the end are left.
                return self.items.recv().await.map(|item| Ok(item.value));
            };
            tokio::select! {
                // Items come before the end.
                biased;
                item = self.items.recv() => match item {
                    Some(item) => {
                        self.weak_session.send(SessionCommand::Taken(item.call));
                        return Some(Ok(item.value));
                    }
                    None => {
                        let outcome = ended.await;
                        self.ended = None;
                        return outcome.err().map(Err);
                    }
                },
                outcome = &mut *ended => {
                    self.ended = None;
                    if let Err(failure) = outcome {
                        return Some(Err(failure));
                    }
                }
            }
        }
    }
}

pub(super) fn request(work: IsolateWork) -> Result<WorkerRequest, ScriptFailure> {
    let evaluate = |module: String, source: Vec<u8>| WorkerRequest::Eval {
        module,
        source_hash: Bytes32(*blake3::hash(&source).as_bytes()),
        source,
    };
    Ok(match work {
        // The text of a module arrived when the session was opened.
        IsolateWork::Module { module } => evaluate(module, Vec::new()),
        // The worker would treat an empty text as the name of a module.
        IsolateWork::Script { source } if !source.is_empty() => {
            evaluate("./repl".to_owned(), source.into_bytes())
        }
        IsolateWork::Handler { name, input } => invocation(name, &input)?,
        // An input may be longer than a frame, in which everything else of the request travels.
        IsolateWork::Export {
            module,
            export,
            input,
        } => invocation(InvokedExport { module, export }.to_op(), &input)?,
        other => WorkerRequest::Role {
            body: CborBody::from_cbor(wire::pack(&other).map_err(|error| unsendable(&error))?),
        },
    })
}

fn invocation(op: String, input: &Value) -> Result<WorkerRequest, ScriptFailure> {
    Ok(WorkerRequest::Invoke {
        op,
        input: wire::pack(input).map_err(|error| unsendable(&error))?,
    })
}

fn unsendable(error: &alknet_worker::WorkerFrameError) -> ScriptFailure {
    ScriptFailure::new(
        RuntimeCode::Encode,
        format!("the input cannot travel: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use alknet_runtime::SessionMode;
    use alknet_test_support::deadline;
    use tokio::time::timeout;

    use super::super::memory::SessionMemoryPool;
    use super::*;

    /// The actor ended while a command was put into its queue, which keeps it.
    #[tokio::test]
    async fn a_call_that_the_actor_never_saw_ends_with_it() {
        let (commands, mut queue) = mpsc::unbounded_channel();
        let weak_session = WeakSession {
            shared: Arc::new(SessionShared::new(
                1,
                "",
                SessionMode::Repl,
                SessionMemoryPool::default().share(""),
            )),
            commands: commands.downgrade(),
            limits: CallLimits {
                wall: Duration::MAX,
                cpu: None,
                gpu: None,
            },
            operation: None,
        };
        let entering = tokio::spawn(async move {
            weak_session
                .enter(SessionRequest::Farewell, None, None)
                .await
        });
        let start = queue.recv().await.expect("the call begins");
        queue.close();
        let ended = timeout(deadline(Duration::from_secs(10)), entering).await;
        let outcome = ended.expect("it ends").expect("no panic");
        assert_eq!(
            outcome.expect_err("the session is over").code,
            RuntimeCode::Disposed
        );
        drop((start, commands));
    }
}
