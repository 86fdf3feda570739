//! One session on its thread: the isolate, and the calls that run in it.

use std::collections::HashMap;
use std::sync::Arc;

use alknet_runtime::{
    EntryOutcome, Isolate, IsolateHost, IsolateSpec, IsolateWork, RecordedCall, Replay,
    RuntimeCode, ScriptFailure,
};
use alknet_worker::{Guest, GuestCall, ThreadCallGuard, WorkerReply};
use serde_json::Value;
use tokio::sync::mpsc;

use super::bridge::{Bridge, BridgeHost, FinalReply};
use super::watchdog::CallWatchdog;
use super::{SessionSlot, fault};
use crate::wire::{self, CallResult, Json};

/// A session that waits for a thread.
#[derive(Debug)]
pub(super) struct SessionStart {
    pub(super) spec: Result<GuestSessionSpec, ScriptFailure>,
    pub(super) slot: SessionSlot,
    pub(super) queue: mpsc::UnboundedReceiver<SessionJob>,
}

/// How a session begins.
#[derive(Debug)]
pub(super) struct GuestSessionSpec {
    pub(super) spec: IsolateSpec,
    /// The module that a service's goodbye calls.
    pub(super) main: Option<String>,
    /// The recorded answers to its calls, which replace the host's.
    pub(super) record: Option<Vec<RecordedCall>>,
}

impl GuestSessionSpec {
    fn isolate(self, bridge: &Arc<Bridge>) -> Result<(Isolate, Option<String>), ScriptFailure> {
        let side: Arc<dyn IsolateHost> = Arc::new(BridgeHost(Arc::clone(bridge)));
        let host = match self.record {
            Some(record) => Arc::new(Replay::new(&record, side)),
            None => side,
        };
        Ok((Isolate::open(self.spec, host)?, self.main))
    }
}

/// A job for a session's thread.
#[derive(Debug)]
pub(super) enum SessionJob {
    /// Begin a call.
    Start(GuestCall, IsolateWork),
    /// Say goodbye: return what a successor needs.
    Dispose(GuestCall),
}

impl SessionJob {
    fn call(&self) -> &GuestCall {
        match self {
            Self::Start(call, _) | Self::Dispose(call) => call,
        }
    }
}

struct ActiveCall {
    call: GuestCall,
    /// While this lives, the thread's time counts as the call's.
    _here: ThreadCallGuard,
    farewell: bool,
}

/// Runs a session until its host closes it.
pub(super) async fn serve(start: SessionStart, guest: &Guest, watchdog: &CallWatchdog) {
    let SessionStart { spec, slot, queue } = start;
    // The dispatcher holds the other end of the queue, and this end must not keep it open.
    let SessionSlot {
        bridge,
        jobs,
        remote,
    } = slot;
    drop(jobs);
    match spec.and_then(|begin| begin.isolate(&bridge)) {
        Ok((isolate, main)) => {
            // No other code sets it.
            let _ = remote.set(isolate.remote());
            let mut session = GuestSession {
                isolate,
                main,
                bridge,
                guest,
                watchdog,
                active: HashMap::new(),
            };
            session.run(queue).await;
            // The isolate makes no more calls while it is dropped.
            session.bridge.close();
            session.leave();
        }
        Err(failure) => refuse_all(queue, guest, watchdog, &failure).await,
    }
}

/// Answers each call of a session that could not be opened with the reason.
async fn refuse_all(
    mut queue: mpsc::UnboundedReceiver<SessionJob>,
    guest: &Guest,
    watchdog: &CallWatchdog,
    failure: &ScriptFailure,
) {
    while let Some(job) = queue.recv().await {
        if watchdog.end(job.call().id()) {
            super::refuse(guest, job.call(), failure);
        }
    }
}

struct GuestSession<'a> {
    isolate: Isolate,
    main: Option<String>,
    bridge: Arc<Bridge>,
    guest: &'a Guest,
    watchdog: &'a CallWatchdog,
    active: HashMap<u64, ActiveCall>,
}

impl GuestSession<'_> {
    async fn run(&mut self, mut queue: mpsc::UnboundedReceiver<SessionJob>) {
        loop {
            tokio::select! {
                // The order matters: many outcomes must not delay the end of the session.
                biased;
                job = queue.recv() => match job {
                    Some(job) => self.begin(job),
                    None => return,
                },
                outcome = self.isolate.next() => self.finish(outcome),
            }
            if self.bridge.has_lines() {
                self.watchdog.has_lines();
            }
        }
    }

    /// Ends the running calls of a closed session; the host counts them until then.
    fn leave(&mut self) {
        let left: Vec<u64> = self.active.keys().copied().collect();
        for id in left {
            let failure = ScriptFailure::new(RuntimeCode::Abort, "the session was closed");
            self.answer(id, Err(failure), 0, 0);
        }
    }

    fn begin(&mut self, job: SessionJob) {
        let (call, work, farewell) = match job {
            SessionJob::Start(call, work) => (call, work, false),
            SessionJob::Dispose(call) => {
                let work = IsolateWork::Export {
                    module: self.main.clone().unwrap_or_default(),
                    export: "dispose".to_owned(),
                    input: Value::Null,
                };
                (call, work, true)
            }
        };
        let id = call.id();
        if !self.watchdog.begin(id, &self.isolate.remote()) {
            // The call was given up before it began.
            return;
        }
        let active = ActiveCall {
            _here: call.on_this_thread(),
            call,
            farewell,
        };
        self.active.insert(id, active);
        if farewell && self.main.is_none() {
            return self.answer(id, Ok((Value::Null, None)), 0, 0);
        }
        if let IsolateWork::Handler { name, input } = &work
            && let Err(failure) = self.bridge.check_input(name, input)
        {
            return self.answer(id, Err(failure), 0, 0);
        }
        self.bridge.serves(id);
        self.isolate.start(id, work);
    }

    fn finish(&mut self, outcome: EntryOutcome) {
        let (ticks, external) = (outcome.stats.ticks, outcome.stats.external_peak);
        let mut result = outcome.result.map(|value| (value, outcome.shown));
        let farewell = self
            .active
            .get(&outcome.entry)
            .is_some_and(|active| active.farewell);
        // A service without `dispose` leaves no state.
        if farewell && matches!(&result, Err(failure) if failure.code == RuntimeCode::NotFound) {
            result = Ok((Value::Null, None));
        }
        self.answer(outcome.entry, result, ticks, external);
    }

    fn answer(
        &mut self,
        id: u64,
        result: Result<(Value, Option<String>), ScriptFailure>,
        ticks: u64,
        external: u64,
    ) {
        let Some(active) = self.active.remove(&id) else {
            return;
        };
        self.bridge.served(id);
        let mut fds = Vec::new();
        let reply = match result {
            Ok((value, shown)) => {
                let done = CallResult {
                    value: Json(value),
                    shown,
                    calls: self.bridge.calls(),
                };
                wire::blob(&done, &mut fds).map_or_else(
                    |error| {
                        let text = format!("the answer cannot be sent: {error}");
                        WorkerReply::Err(fault(&ScriptFailure::new(RuntimeCode::Encode, text)))
                    },
                    WorkerReply::Ok,
                )
            }
            Err(failure) => WorkerReply::Err(fault(&failure)),
        };
        if !self.watchdog.end(id) {
            // The watchdog has answered the call, because the script did not react to the abort.
            return;
        }
        active.call.progress(ticks, external);
        // The calls of a session share a heap. An answer that is refused has a peak as well: it may be the reason.
        let heap = self.isolate.heap_peak();
        self.bridge.finish(FinalReply {
            guest: self.guest.clone(),
            call: active.call,
            reply,
            fds,
            heap,
            external,
        });
    }
}
