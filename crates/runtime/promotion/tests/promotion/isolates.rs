//! Scripts in isolates, each on a thread of its own: what sessions do in workers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use alknet_call::{BoxStream, Env, ErrorCode};
use alknet_core::BoxFuture;
use alknet_promotion::{
    InstalledService, Invoker, PromotedInvocation, TestRunner, TrialResult, TrialRun,
};
use alknet_runtime::{
    ConsoleLevel, EntryOutcome, EntryStats, EnvOperation, Isolate, IsolateHandle, IsolateHost,
    IsolateSpec, IsolateWork, Items, OpError, OpReply, Replay, RuntimeCode, ScriptCallOptions,
    ScriptFailure, ScriptRegistration,
};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

/// Runs everything.
#[derive(Default)]
pub(crate) struct Isolates {
    /// Calls whose worker is said to be lost from now on.
    pub(crate) lose: AtomicUsize,
    /// Whether other calls ran in the workers that are said to be lost.
    pub(crate) beside_others: AtomicBool,
    /// Whether calls do not end.
    pub(crate) hang: AtomicBool,
    /// How many of those have begun.
    pub(crate) hanging: watch::Sender<usize>,
    /// The services that were last said to be in place.
    pub(crate) services: Mutex<BTreeMap<String, InstalledService>>,
}

impl TestRunner for Isolates {
    fn run(&self, run: TrialRun) -> BoxFuture<'static, TrialResult> {
        let host = Arc::new(Replay::new(&run.calls, Arc::new(EmptyHost)));
        let done = RunningIsolate::begin(run.spec(), host, run.steps);
        Box::pin(async move {
            let outcome = done.end().await;
            TrialResult {
                result: outcome.result,
                ticks: outcome.stats.ticks,
            }
        })
    }
}

impl Invoker for Isolates {
    fn invoke(&self, call: PromotedInvocation) -> BoxFuture<'static, Result<Value, ScriptFailure>> {
        let lose = |n: usize| n.checked_sub(1);
        let lost = self
            .lose
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose);
        if lost.is_ok() {
            let mut failure = ScriptFailure::new(RuntimeCode::WorkerLost, "the worker ended");
            failure.excused = self.beside_others.load(Ordering::SeqCst);
            return Box::pin(std::future::ready(Err(failure)));
        }
        if self.hang.load(Ordering::SeqCst) {
            self.hanging.send_modify(|n| *n += 1);
            return Box::pin(std::future::pending());
        }
        let done = begin(call, None);
        Box::pin(async move { done.end().await.result })
    }

    fn in_place(&self, services: BTreeMap<String, InstalledService>) {
        *self.services.lock().expect("no panic") = services;
    }

    fn subscribe(&self, call: PromotedInvocation) -> BoxStream<Result<Value, ScriptFailure>> {
        let (items, taken) = mpsc::channel(1);
        let done = begin(call, Some(items));
        let state = (taken, Some(done));
        Box::pin(stream::unfold(state, |(mut taken, done)| async move {
            if let Some(item) = taken.recv().await {
                return Some((Ok(item), (taken, done)));
            }
            let failure = done?.end().await.result.err()?;
            Some((Err(failure), (taken, None)))
        }))
    }
}

fn begin(call: PromotedInvocation, items: Option<mpsc::Sender<Value>>) -> RunningIsolate {
    let mut spec = IsolateSpec::new(alknet_runtime::ModuleSet::new());
    spec.modules = Arc::clone(&call.code.modules);
    spec.frozen = call.code.frozen;
    let host = EnvHost {
        env: call.ctx.env(),
        items,
    };
    RunningIsolate::begin(spec, Arc::new(host), call.code.steps(call.input))
}

/// An isolate that runs.
struct RunningIsolate {
    outcome: oneshot::Receiver<EntryOutcome>,
    remote: IsolateStop,
}

/// Stops an isolate when its caller has given up.
struct IsolateStop(std::sync::mpsc::Receiver<IsolateHandle>);

impl Drop for IsolateStop {
    fn drop(&mut self) {
        if let Ok(remote) = self.0.try_recv() {
            remote.stop(RuntimeCode::Abort);
        }
    }
}

impl RunningIsolate {
    fn begin(spec: IsolateSpec, host: Arc<dyn IsolateHost>, steps: Vec<IsolateWork>) -> Self {
        let (done, outcome) = oneshot::channel();
        let (tell, remote) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            let last = runtime.expect("a runtime").block_on(async {
                let mut isolate = match Isolate::open(spec, host) {
                    Ok(isolate) => isolate,
                    Err(failure) => return failed(failure),
                };
                tell.send(isolate.remote()).ok();
                let mut last = failed(ScriptFailure::new(RuntimeCode::Limit, "nothing to do"));
                for step in steps {
                    last = isolate.run(step).await;
                    if last.result.is_err() {
                        break;
                    }
                }
                last
            });
            done.send(last).ok();
        });
        Self {
            outcome,
            remote: IsolateStop(remote),
        }
    }

    async fn end(self) -> EntryOutcome {
        let lost = |_| {
            failed(ScriptFailure::new(
                RuntimeCode::WorkerLost,
                "the thread ended",
            ))
        };
        let outcome = self.outcome.await.unwrap_or_else(lost);
        drop(self.remote);
        outcome
    }
}

fn failed(failure: ScriptFailure) -> EntryOutcome {
    EntryOutcome {
        entry: 0,
        result: Err(failure),
        shown: None,
        stats: EntryStats::default(),
    }
}

/// A host that calls through the environment of a promoted operation.
struct EnvHost {
    env: Env,
    items: Option<mpsc::Sender<Value>>,
}

impl IsolateHost for EnvHost {
    fn call(
        &self,
        path: &str,
        input: Value,
        _: ScriptCallOptions,
    ) -> alknet_runtime::HostFuture<Result<OpReply, OpError>> {
        let (env, path) = (self.env.clone(), path.to_owned());
        Box::pin(async move {
            let answer = env.invoke(&path, &input).await;
            let answer = answer.map(|body| OpReply::Json(body.value().clone()));
            answer.map_err(|error| OpError {
                retryable: error.retryable,
                path,
                details: error.details.unwrap_or_default(),
                ..OpError::new(error.code.name(), error.message)
            })
        })
    }

    fn subscribe(&self, path: &str, _: Value, _: ScriptCallOptions) -> Items {
        let code = ErrorCode::NotFound;
        let error = OpError::new(code.name(), format!("no subscription '{path}'"));
        Box::pin(stream::iter([Err(error)]))
    }

    fn list(&self, _: &str) -> Vec<EnvOperation> {
        Vec::new()
    }

    fn register(
        &self,
        _: ScriptRegistration,
        _: [u8; 32],
    ) -> alknet_runtime::HostFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn emit(&self, _: u64, item: Value) -> alknet_runtime::HostFuture<Result<(), OpError>> {
        let items = self.items.clone();
        Box::pin(async move {
            let gone = || OpError::new("ABORTED", "no reader takes items");
            let items = items.ok_or_else(gone)?;
            items.send(item).await.map_err(|_| gone())
        })
    }

    fn log(&self, _: ConsoleLevel, _: &str) {}

    fn check(&self, _: &Value, _: &Value) -> Result<(), String> {
        Ok(())
    }
}

/// Where nothing is to be had.
struct EmptyHost;

impl IsolateHost for EmptyHost {
    fn call(
        &self,
        _: &str,
        _: Value,
        _: ScriptCallOptions,
    ) -> alknet_runtime::HostFuture<Result<OpReply, OpError>> {
        Box::pin(std::future::pending())
    }

    fn subscribe(&self, _: &str, _: Value, _: ScriptCallOptions) -> Items {
        Box::pin(stream::empty())
    }

    fn list(&self, _: &str) -> Vec<EnvOperation> {
        Vec::new()
    }

    fn register(
        &self,
        _: ScriptRegistration,
        _: [u8; 32],
    ) -> alknet_runtime::HostFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn emit(&self, _: u64, _: Value) -> alknet_runtime::HostFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn log(&self, _: ConsoleLevel, _: &str) {}

    fn check(&self, _: &Value, _: &Value) -> Result<(), String> {
        Ok(())
    }
}
