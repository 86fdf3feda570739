//! Scripts in isolates, each on a thread of its own: what sessions do in workers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use alknet_call::{BoxStream, Env, ErrorCode};
use alknet_core::BoxFuture;
use alknet_promotion::{InPlace, Invocation, Invoker, Ran, Run, TestRunner};
use alknet_runtime::{
    CallOptions, Code, Failure, Host, Isolate, Items, Level, OpError, Operation, Outcome,
    Registration, Remote, Replay, Reply, Spec, Stats, Work,
};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

/// Runs everything.
#[derive(Default)]
pub(crate) struct Isolates {
    /// Calls whose worker is said to be lost from now on.
    pub(crate) lose: AtomicUsize,
    /// Whether calls do not end.
    pub(crate) hang: AtomicBool,
    /// How many of those have begun.
    pub(crate) hanging: watch::Sender<usize>,
    /// The services that were last said to be in place.
    pub(crate) services: Mutex<BTreeMap<String, InPlace>>,
}

impl TestRunner for Isolates {
    fn run(&self, run: Run) -> BoxFuture<'static, Ran> {
        let host = Arc::new(Replay::new(&run.calls, Arc::new(Nothing)));
        let done = Running::begin(run.spec(), host, run.steps);
        Box::pin(async move {
            let outcome = done.end().await;
            Ran {
                result: outcome.result,
                ticks: outcome.stats.ticks,
            }
        })
    }
}

impl Invoker for Isolates {
    fn invoke(&self, call: Invocation) -> BoxFuture<'static, Result<Value, Failure>> {
        let lose = |n: usize| n.checked_sub(1);
        let lost = self
            .lose
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose);
        if lost.is_ok() {
            let failure = Failure::new(Code::WorkerLost, "the worker ended");
            return Box::pin(std::future::ready(Err(failure)));
        }
        if self.hang.load(Ordering::SeqCst) {
            self.hanging.send_modify(|n| *n += 1);
            return Box::pin(std::future::pending());
        }
        let done = begin(call, None);
        Box::pin(async move { done.end().await.result })
    }

    fn in_place(&self, services: BTreeMap<String, InPlace>) {
        *self.services.lock().expect("no panic") = services;
    }

    fn subscribe(&self, call: Invocation) -> BoxStream<Result<Value, Failure>> {
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

fn begin(call: Invocation, items: Option<mpsc::Sender<Value>>) -> Running {
    let mut spec = Spec::new(alknet_runtime::ModuleSet::new());
    spec.modules = Arc::clone(&call.code.modules);
    spec.frozen = call.code.frozen;
    let host = Through {
        env: call.ctx.env(),
        items,
    };
    Running::begin(spec, Arc::new(host), call.code.steps(call.input))
}

/// An isolate that runs.
struct Running {
    outcome: oneshot::Receiver<Outcome>,
    remote: Stop,
}

/// Stops an isolate when nobody waits for it any more.
struct Stop(std::sync::mpsc::Receiver<Remote>);

impl Drop for Stop {
    fn drop(&mut self) {
        if let Ok(remote) = self.0.try_recv() {
            remote.stop(Code::Abort);
        }
    }
}

impl Running {
    fn begin(spec: Spec, host: Arc<dyn Host>, steps: Vec<Work>) -> Self {
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
                let mut last = failed(Failure::new(Code::Limit, "nothing to do"));
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
            remote: Stop(remote),
        }
    }

    async fn end(self) -> Outcome {
        let lost = |_| failed(Failure::new(Code::WorkerLost, "the thread ended"));
        let outcome = self.outcome.await.unwrap_or_else(lost);
        drop(self.remote);
        outcome
    }
}

fn failed(failure: Failure) -> Outcome {
    Outcome {
        entry: 0,
        result: Err(failure),
        shown: None,
        stats: Stats::default(),
    }
}

/// A host that calls through the environment of a promoted operation.
struct Through {
    env: Env,
    items: Option<mpsc::Sender<Value>>,
}

impl Host for Through {
    fn call(
        &self,
        path: &str,
        input: Value,
        _: CallOptions,
    ) -> alknet_runtime::BoxFuture<Result<Reply, OpError>> {
        let (env, path) = (self.env.clone(), path.to_owned());
        Box::pin(async move {
            let answer = env.invoke(&path, &input).await;
            let answer = answer.map(|body| Reply::Json(body.value().clone()));
            answer.map_err(|error| OpError {
                retryable: error.retryable,
                path,
                details: error.details.unwrap_or_default(),
                ..OpError::new(error.code.name(), error.message)
            })
        })
    }

    fn subscribe(&self, path: &str, _: Value, _: CallOptions) -> Items {
        let code = ErrorCode::NotFound;
        let error = OpError::new(code.name(), format!("no subscription '{path}'"));
        Box::pin(stream::iter([Err(error)]))
    }

    fn list(&self, _: &str) -> Vec<Operation> {
        Vec::new()
    }

    fn register(
        &self,
        _: Registration,
        _: [u8; 32],
    ) -> alknet_runtime::BoxFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn emit(&self, _: u64, item: Value) -> alknet_runtime::BoxFuture<Result<(), OpError>> {
        let items = self.items.clone();
        Box::pin(async move {
            let gone = || OpError::new("ABORTED", "nobody takes items");
            let items = items.ok_or_else(gone)?;
            items.send(item).await.map_err(|_| gone())
        })
    }

    fn log(&self, _: Level, _: &str) {}

    fn check(&self, _: &Value, _: &Value) -> Result<(), String> {
        Ok(())
    }
}

/// Where nothing is to be had.
struct Nothing;

impl Host for Nothing {
    fn call(
        &self,
        _: &str,
        _: Value,
        _: CallOptions,
    ) -> alknet_runtime::BoxFuture<Result<Reply, OpError>> {
        Box::pin(std::future::pending())
    }

    fn subscribe(&self, _: &str, _: Value, _: CallOptions) -> Items {
        Box::pin(stream::empty())
    }

    fn list(&self, _: &str) -> Vec<Operation> {
        Vec::new()
    }

    fn register(
        &self,
        _: Registration,
        _: [u8; 32],
    ) -> alknet_runtime::BoxFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn emit(&self, _: u64, _: Value) -> alknet_runtime::BoxFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn log(&self, _: Level, _: &str) {}

    fn check(&self, _: &Value, _: &Value) -> Result<(), String> {
        Ok(())
    }
}
