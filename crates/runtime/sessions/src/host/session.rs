//! What the rest of the node holds of a session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_call::Env;
use alknet_core::BoxFuture;
use alknet_runtime::{Code, Failure, Record, Work};
use alknet_worker::{Body, CallLimits, CallStats, Hash, Reply, Request};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::actor::{Asked, Command, Item, Start};
use super::failure::{is_relieved, of_call, of_fault};
use super::memory::{Held, Refused};
use super::shared::{Reason, Shared};
use super::{SessionInfo, SessionLimits};
use crate::limits::UNACKNOWLEDGED;
use crate::wire::{self, Done};

/// An open session. Clones are the same; when the last one is gone, so is the session.
#[derive(Clone, Debug)]
pub struct Session {
    pub(super) entrance: Entrance,
    layer: Arc<alknet_call::Session>,
    /// What keeps the session open.
    _commands: mpsc::UnboundedSender<Command>,
}

/// The way into a session, which does not keep it open.
#[derive(Clone, Debug)]
pub(super) struct Entrance {
    pub(super) shared: Arc<Shared>,
    commands: mpsc::WeakUnboundedSender<Command>,
    limits: CallLimits,
    bundle: Hash,
}

/// What a call into a session came to.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its value.
    pub value: Value,
    /// The same as a REPL shows it.
    pub shown: Option<String>,
    /// Calls that the session has made so far, by the worker's own account.
    pub calls: u64,
    /// What it took, by the worker's own account.
    pub stats: CallStats,
    /// The value counts as the session's until this is gone.
    _held: Arc<Held>,
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: mpsc::UnboundedSender<Command>,
        layer: alknet_call::Session,
        limits: SessionLimits,
        bundle: Hash,
    ) -> Self {
        let entrance = Entrance {
            shared,
            commands: commands.downgrade(),
            limits: CallLimits {
                wall: limits.wall,
                cpu: Some(limits.runtime.cpu),
                gpu: Some(limits.gpu),
            },
            bundle,
        };
        Self {
            entrance,
            layer: Arc::new(layer),
            _commands: commands,
        }
    }

    pub(super) fn layer(&self) -> Arc<alknet_call::Session> {
        Arc::clone(&self.layer)
    }

    /// Its number on this node.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.entrance.shared.id()
    }

    /// What is known of it now.
    #[must_use]
    pub fn info(&self) -> SessionInfo {
        self.entrance.shared.info()
    }

    /// Runs something in it, in the course of the request that `env` belongs to. Dropping the future
    /// aborts it: its `AbortSignal` fires, and what it called is aborted.
    ///
    /// # Errors
    /// What the script ends with.
    pub async fn run(&self, env: &Env, work: Work) -> Result<Ran, Failure> {
        let env = self.layer.env(env);
        self.entrance
            .enter(Asked::Call(request(work)?), Some(env), None)
            .await
    }

    /// The same for what yields items, which are taken one by one.
    ///
    /// # Errors
    /// The input cannot travel.
    pub fn follow(&self, env: &Env, work: Work) -> Result<Following, Failure> {
        let env = self.layer.env(env);
        Ok(self.entrance.follow(Asked::Call(request(work)?), env))
    }

    /// Lets a service say goodbye: its `dispose` is called, at most 500 ms; what that answers is for
    /// its successor.
    ///
    /// # Errors
    /// What the script ends with.
    pub async fn dispose(&self, env: &Env) -> Result<Ran, Failure> {
        let env = self.layer.env(env);
        self.entrance.enter(Asked::Farewell, Some(env), None).await
    }

    /// The same in the course of no request: its `dispose` can call nothing.
    ///
    /// # Errors
    /// What the script ends with.
    pub async fn farewell(&self) -> Result<Ran, Failure> {
        self.entrance.enter(Asked::Farewell, None, None).await
    }

    /// Ends it and every call in it.
    pub fn kill(&self) {
        self.entrance.close(Reason::Abort);
    }

    /// Who follows its console from now on, beside the log.
    pub fn set_console(&self, console: Option<super::Console>) {
        self.entrance.send(Command::Console(console));
    }

    /// Where the calls that it makes are written down from now on: all of them, with their answers,
    /// but for what the schemas of the called operations mark as secret.
    pub fn set_record(&self, record: Option<Record>) {
        self.entrance.send(Command::Record(record));
    }
}

impl Entrance {
    /// Calls an operation that the session registered.
    pub(super) async fn invoke(&self, name: &str, input: &Value, env: Env) -> Result<Ran, Failure> {
        let asked = Asked::Call(handler(name, input)?);
        self.enter(asked, Some(env), None).await
    }

    /// The same for one that yields items, which the receiver takes one by one.
    pub(super) fn follow_operation(
        &self,
        name: &str,
        input: &Value,
        env: Env,
    ) -> Result<Following, Failure> {
        Ok(self.follow(Asked::Call(handler(name, input)?), env))
    }

    fn follow(&self, asked: Asked, env: Env) -> Following {
        let (items, taken) = mpsc::channel(UNACKNOWLEDGED);
        let entrance = self.clone();
        let ended = Box::pin(async move { entrance.enter(asked, Some(env), Some(items)).await });
        Following {
            entrance: self.clone(),
            ended: Some(ended),
            items: taken,
        }
    }

    async fn enter(
        &self,
        asked: Asked,
        env: Option<Env>,
        items: Option<mpsc::Sender<Item>>,
    ) -> Result<Ran, Failure> {
        let over = || Failure::new(Code::Disposed, "the session is over");
        let course = env.clone();
        let (begun, call) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let began = Instant::now();
        let start = Start {
            asked,
            limits: self.limits,
            bundle: self.bundle,
            env,
            items,
            begun,
            stop,
        };
        if !self.send(Command::Start(Box::new(start))) {
            return Err(over());
        }
        let call = self.answered(call).await.ok_or_else(over)?;
        let mut guard = Entered {
            entrance: self,
            id: Some(call.id()),
        };
        let outcome = tokio::select! {
            biased;
            // Leaving gives the call up.
            Ok(failure) = stopped => {
                self.shared.count_ended(None, began.elapsed());
                return Err(self.judged(failure, false));
            }
            outcome = call => outcome,
        };
        // What the script said before it ended comes first.
        if let Some(id) = guard.id.take() {
            let (heard, everything) = oneshot::channel();
            if self.send(Command::Ended(id, Some(heard))) {
                // Without an answer the session is over, and nothing more comes.
                let _ = self.answered(everything).await;
            }
        }
        self.ran(outcome, course.as_ref(), began.elapsed())
    }

    fn ran(
        &self,
        outcome: Result<alknet_worker::Answer, alknet_worker::CallError>,
        course: Option<&Env>,
        wall: Duration,
    ) -> Result<Ran, Failure> {
        let (failure, stats) = match outcome {
            Ok(answer) => match answer.reply {
                Reply::Ok(blob) => match self.shared.memory().open::<Done>(blob, &answer.fds) {
                    Ok((done, held)) => {
                        self.shared.count_ended(Some(answer.stats), wall);
                        return Ok(Ran {
                            value: done.value.0,
                            shown: done.shown,
                            calls: done.calls,
                            stats: answer.stats,
                            _held: Arc::new(held),
                        });
                    }
                    Err(full @ (Refused::Full | Refused::TooMuch)) => {
                        if let (Refused::Full, Some(env)) = (full, course) {
                            env.excuse();
                        }
                        let text = full.error("result").message;
                        (Failure::new(Code::Quota, text), Some(answer.stats))
                    }
                    Err(Refused::Wrong) => {
                        // No honest worker says that.
                        self.close(Reason::WorkerLost);
                        let text = "the worker's answer is none";
                        (Failure::new(Code::WorkerLost, text), None)
                    }
                },
                Reply::Err(fault) => (of_fault(&fault), Some(answer.stats)),
            },
            Err(error) => {
                if is_relieved(&error) {
                    self.close(Reason::WorkerLost);
                }
                (of_call(&error), None)
            }
        };
        self.shared.count_ended(stats, wall);
        Err(self.judged(failure, stats.is_some()))
    }

    /// After a limit nothing of the session is used again.
    fn judged(&self, failure: Failure, answered: bool) -> Failure {
        // A worker that answers with an abort that nobody asked for was stopped for another call.
        let failure = match (failure.code, answered) {
            (Code::Abort, true) => {
                let text = "the session ended with another of its calls";
                Failure::new(Code::WorkerLost, text)
            }
            _ => failure,
        };
        if let Some(reason) = Reason::of(failure.code) {
            self.close(reason);
        }
        failure
    }

    fn close(&self, reason: Reason) {
        self.shared.close(reason);
        self.send(Command::Close(reason));
    }

    /// What the actor answers to a command; `None` where it ended without. The channel drops what lies in it
    /// once, when the actor goes: a command that is put in at that moment stays there, and the way back with
    /// it, for as long as the session has a holder.
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

    fn send(&self, command: Command) -> bool {
        let commands = self.commands.upgrade();
        commands.is_some_and(|commands| commands.send(command).is_ok())
    }
}

/// A call that runs; one that is dropped before its end is over as well.
struct Entered<'a> {
    entrance: &'a Entrance,
    id: Option<u64>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.entrance.send(Command::Ended(id, None));
        }
    }
}

/// Items that a script yields.
pub struct Following {
    entrance: Entrance,
    ended: Option<BoxFuture<'static, Result<Ran, Failure>>>,
    items: mpsc::Receiver<Item>,
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following")
            .field("entrance", &self.entrance)
            .finish_non_exhaustive()
    }
}

impl Following {
    /// The next item; `None` once the script has ended well.
    pub async fn next(&mut self) -> Option<Result<Value, Failure>> {
        loop {
            let Some(ended) = &mut self.ended else {
                // What was said before the end is all there is.
                return self.items.recv().await.map(|item| Ok(item.value));
            };
            tokio::select! {
                biased;
                item = self.items.recv() => match item {
                    Some(item) => {
                        self.entrance.send(Command::Taken(item.call));
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

pub(super) fn request(work: Work) -> Result<Request, Failure> {
    let evaluate = |module: String, source: Vec<u8>| Request::Eval {
        module,
        source_hash: Hash(*blake3::hash(&source).as_bytes()),
        source,
    };
    Ok(match work {
        // The text of a module came when the session was opened.
        Work::Module { module } => evaluate(module, Vec::new()),
        Work::Script { source } if !source.is_empty() => {
            evaluate("./repl".to_owned(), source.into_bytes())
        }
        Work::Handler { name, input } => handler(&name, &input)?,
        other => Request::Role {
            body: Body::from_cbor(wire::pack(&other).map_err(|error| unsendable(&error))?),
        },
    })
}

fn handler(name: &str, input: &Value) -> Result<Request, Failure> {
    Ok(Request::Invoke {
        op: name.to_owned(),
        input: wire::pack(input).map_err(|error| unsendable(&error))?,
    })
}

fn unsendable(error: &alknet_worker::FrameError) -> Failure {
    Failure::new(Code::Encode, format!("the input cannot travel: {error}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use alknet_runtime::Mode;
    use alknet_test_support::deadline;
    use tokio::time::timeout;

    use super::super::memory::Memory;
    use super::*;

    /// The actor ended while a command was put into its queue, which keeps it.
    #[tokio::test]
    async fn a_call_that_the_actor_never_saw_ends_with_it() {
        let (commands, mut queue) = mpsc::unbounded_channel();
        let entrance = Entrance {
            shared: Arc::new(Shared::new(1, "", Mode::Repl, Memory::default().share(""))),
            commands: commands.downgrade(),
            limits: CallLimits {
                wall: Duration::MAX,
                cpu: None,
                gpu: None,
            },
            bundle: Hash([0; 32]),
        };
        let entering =
            tokio::spawn(async move { entrance.enter(Asked::Farewell, None, None).await });
        let start = queue.recv().await.expect("the call begins");
        queue.close();
        let ended = timeout(deadline(Duration::from_secs(10)), entering).await;
        let outcome = ended.expect("it ends").expect("no panic");
        assert_eq!(
            outcome.expect_err("the session is over").code,
            Code::Disposed
        );
        drop((start, commands));
    }
}
