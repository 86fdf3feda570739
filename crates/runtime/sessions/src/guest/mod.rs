//! What a worker of role `js` runs: frames on one side, isolates on the other.
//!
//! Each isolate has a thread of its own, of as many as a worker may have sessions. A script that
//! computes holds its thread, and a native loop of the engine cannot be left before it ends: with
//! fewer threads the siblings of such a script would wait with it. The threads are started before
//! the walls close, because role `js` may start none afterwards; what an idle one costs is the pages
//! of its stack that it has touched.
//!
//! The first thread hands frames out and never runs a script, so that an answer or an abort arrives
//! whatever the scripts do. One more looks at the running calls every few milliseconds.

mod bridge;
mod session;
mod watchdog;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use alknet_runtime::{
    IsolateHandle, IsolateSpec, IsolateWork, ModuleSet, RuntimeCode, ScriptFailure,
};
use alknet_worker::{
    Guest, GuestCall, GuestError, GuestInput, ToWorkerMessage, WorkerFault, WorkerReply,
    WorkerRole, enter, give_back_memory, limits,
};
use tokio::sync::mpsc;

use crate::limits::{THREAD_STACK_BYTES, VALUE_BYTES_MAX};
use crate::wire::{self, SessionOpening};
use bridge::{Bridge, BridgeHost};
use watchdog::CallWatchdog;

/// What the process of a worker ends with when it could not become one.
const NO_WORKER: u8 = 70;

/// Runs a worker of this role until its host is gone. For `alknet worker`, after
/// [`alknet_worker::started_as_worker`] and before anything else.
#[must_use]
pub fn run(role: WorkerRole) -> ExitCode {
    run_after(role, || Ok::<_, String>(()))
}

/// The same with work of the caller's own before the walls close: role `js+gpu` opens its device
/// there.
#[must_use]
pub fn run_after<E: fmt::Display>(
    role: WorkerRole,
    warm_up: impl FnOnce() -> Result<(), E>,
) -> ExitCode {
    match work(role, warm_up) {
        Ok(never) => match never {},
        Err(error) => {
            // The host keeps what a worker writes last.
            eprintln!("{error}");
            ExitCode::from(NO_WORKER)
        }
    }
}

/// No value: a worker does not return.
enum Never {}

fn work<E: fmt::Display>(
    role: WorkerRole,
    warm_up: impl FnOnce() -> Result<(), E>,
) -> Result<Never, GuestError> {
    let entered = enter(role)?;
    let (guest, office) = entered.seal(|guest| {
        warm_up().map_err(|error| error.to_string())?;
        FrameDispatcher::new(guest).map_err(|error| error.to_string())
    })?;
    let mut office = office;
    loop {
        office.take(guest.next());
    }
}

/// Sessions that wait for a thread.
#[derive(Debug, Default)]
struct SessionQueue {
    sessions: Mutex<VecDeque<session::SessionStart>>,
    grown: Condvar,
}

impl SessionQueue {
    fn push(&self, start: session::SessionStart) {
        lock(&self.sessions).push_back(start);
        self.grown.notify_one();
    }

    fn pop(&self) -> session::SessionStart {
        let mut sessions = lock(&self.sessions);
        loop {
            if let Some(start) = sessions.pop_front() {
                return start;
            }
            // It may wake up without a reason (std, `Condvar`): the queue is looked at again.
            let slept = self.grown.wait(sessions);
            sessions = slept.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What another thread needs of a session.
#[derive(Clone, Debug)]
struct SessionSlot {
    bridge: Arc<Bridge>,
    jobs: mpsc::UnboundedSender<session::SessionJob>,
    /// Set once the isolate is there.
    remote: Arc<OnceLock<IsolateHandle>>,
}

/// Hands frames out.
struct FrameDispatcher {
    guest: Guest,
    waiting: Arc<SessionQueue>,
    pulse: Arc<CallWatchdog>,
    sessions: HashMap<u64, SessionSlot>,
    /// The session of each call that may be aborted.
    calls: HashMap<u64, u64>,
}

impl FrameDispatcher {
    fn new(guest: &Guest) -> std::io::Result<Self> {
        warm_engine(guest)?;
        let waiting = Arc::new(SessionQueue::default());
        let pulse = Arc::new(CallWatchdog::new(guest.clone()));
        let beating = Arc::clone(&pulse);
        std::thread::Builder::new()
            .name("pulse".to_owned())
            .spawn(move || beating.run())?;
        for _ in 0..limits::SESSIONS_MAX {
            let (waiting, pulse, guest) = (Arc::clone(&waiting), Arc::clone(&pulse), guest.clone());
            // Timers only: without input and output of its own it needs no descriptor.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()?;
            std::thread::Builder::new()
                .name("isolate".to_owned())
                .stack_size(THREAD_STACK_BYTES)
                .spawn(move || {
                    loop {
                        let start = waiting.pop();
                        let served = std::panic::AssertUnwindSafe(|| {
                            runtime.block_on(session::serve(start, &guest, &pulse));
                        });
                        if std::panic::catch_unwind(served).is_err() {
                            // The engine's state is unknown after a panic. The host sees a crash.
                            std::process::abort();
                        }
                        give_back_memory();
                    }
                })?;
        }
        Ok(Self {
            guest: guest.clone(),
            waiting,
            pulse,
            sessions: HashMap::new(),
            calls: HashMap::new(),
        })
    }

    fn take(&mut self, incoming: GuestInput) {
        let GuestInput {
            message, fds, call, ..
        } = incoming;
        match message {
            ToWorkerMessage::Open {
                sid,
                caps,
                limits,
                seed,
                clock,
                ..
            } => {
                let spec = opening(&caps, &limits, &clock, &fds, seed.map(|seed| seed.0));
                self.open(sid, spec);
            }
            ToWorkerMessage::Eval {
                sid,
                module,
                source_hash,
                source,
                ..
            } => {
                let source = source.read(&fds, VALUE_BYTES_MAX);
                let work = source
                    .map_err(|error| unreadable(&error))
                    .and_then(|source| evaluation(module, &source, source_hash.0));
                self.start(sid, call, work);
            }
            ToWorkerMessage::Invoke { sid, op, input, .. } => {
                let work = wire::open(input, &fds).map_err(|error| unreadable(&error));
                let work = work.map(|input| IsolateWork::Handler { name: op, input });
                self.start(sid, call, work);
            }
            ToWorkerMessage::Run { sid, body, .. } => {
                let work = wire::read(&body).map_err(|error| unreadable(&error));
                self.start(sid, call, work);
            }
            ToWorkerMessage::Reply { sid, id, reply } => {
                // It may have been closed meanwhile.
                if let Some(slot) = self.sessions.get(&sid) {
                    slot.bridge.replied(id, reply, fds);
                }
            }
            ToWorkerMessage::Event { sid, id, event } => {
                if let Some(slot) = self.sessions.get(&sid) {
                    slot.bridge.happened(id, event, fds);
                }
            }
            ToWorkerMessage::Tell { sid, body } => {
                if let (Some(slot), Ok(told)) = (self.sessions.get(&sid), wire::read(&body)) {
                    slot.bridge.handle_message(told);
                }
            }
            ToWorkerMessage::Abort { id } => self.abort(id),
            ToWorkerMessage::Close { sid, id: Some(_) } => {
                if let Some(call) = call {
                    self.farewell(sid, call);
                }
            }
            ToWorkerMessage::Close { sid, id: None } => self.close(sid),
            // What a later host may say.
            _ => {}
        }
        // No frame says that a call has ended.
        let calls = &self.pulse;
        self.calls.retain(|id, _| calls.knows(*id));
    }

    fn open(&mut self, sid: u64, spec: Result<(IsolateSpec, SessionOpening), ScriptFailure>) {
        let (jobs, queue) = mpsc::unbounded_channel();
        let operations = match &spec {
            Ok((_, opening)) => opening.operations.clone(),
            Err(_) => Vec::new(),
        };
        let bridge = Bridge::new(self.guest.clone(), sid, operations);
        let slot = SessionSlot {
            bridge,
            jobs,
            remote: Arc::default(),
        };
        self.pulse.add_session(sid, Arc::clone(&slot.bridge));
        self.waiting.push(session::SessionStart {
            spec: spec.map(|(spec, opening)| session::GuestSessionSpec {
                spec,
                main: opening.main,
                record: opening.record,
            }),
            slot: slot.clone(),
            queue,
        });
        self.sessions.insert(sid, slot);
    }

    fn start(
        &mut self,
        sid: u64,
        call: Option<GuestCall>,
        work: Result<IsolateWork, ScriptFailure>,
    ) {
        let Some(call) = call else { return };
        let Some(slot) = self.sessions.get(&sid) else {
            return refuse(
                &self.guest,
                &call,
                &ScriptFailure::new(RuntimeCode::Disposed, "the session is closed"),
            );
        };
        match work {
            Ok(work) => {
                self.calls.insert(call.id(), sid);
                // Before the thread has it: a call that is not expected counts as given up.
                self.pulse.expect(&call);
                // The thread takes jobs as long as the session is open.
                let _ = slot.jobs.send(session::SessionJob::Start(call, work));
            }
            Err(failure) => refuse(&self.guest, &call, &failure),
        }
    }

    /// Its `AbortSignal` fires. A script that computes is stopped by the pulse a little later.
    fn abort(&mut self, id: u64) {
        let slot = self.calls.get(&id).and_then(|sid| self.sessions.get(sid));
        if let Some(remote) = slot.and_then(|slot| slot.remote.get()) {
            remote.abort(id);
        }
    }

    fn farewell(&mut self, sid: u64, call: GuestCall) {
        match self.sessions.get(&sid) {
            Some(slot) => {
                self.calls.insert(call.id(), sid);
                self.pulse.expect(&call);
                let _ = slot.jobs.send(session::SessionJob::Dispose(call));
            }
            None => refuse(
                &self.guest,
                &call,
                &ScriptFailure::new(RuntimeCode::Disposed, "the session is closed"),
            ),
        }
    }

    /// Dropping the slot ends the thread's queue; a script that computes is stopped.
    fn close(&mut self, sid: u64) {
        if let Some(slot) = self.sessions.remove(&sid) {
            slot.bridge.close();
            if let Some(remote) = slot.remote.get() {
                remote.stop(RuntimeCode::Abort);
            }
        }
    }
}

/// Makes an engine once, so that the first session finds everything in memory.
fn warm_engine(guest: &Guest) -> std::io::Result<()> {
    let no_host = Arc::new(BridgeHost(Bridge::new(guest.clone(), 0, Vec::new())));
    let isolate = alknet_runtime::Isolate::open(IsolateSpec::new(ModuleSet::new()), no_host);
    isolate.map(drop).map_err(std::io::Error::other)
}

fn unreadable(error: &alknet_worker::WorkerFrameError) -> ScriptFailure {
    ScriptFailure::new(
        RuntimeCode::Encode,
        format!("the host's message is malformed: {error}"),
    )
}

/// A module of the graph by its name, or lines of a REPL.
fn evaluation(module: String, source: &[u8], hash: [u8; 32]) -> Result<IsolateWork, ScriptFailure> {
    if blake3::hash(source).as_bytes() != &hash {
        return Err(ScriptFailure::new(
            RuntimeCode::Limit,
            "the source has another hash",
        ));
    }
    // The text of a module of the graph came when the session was opened.
    if source.is_empty() {
        return Ok(IsolateWork::Module { module });
    }
    let source = std::str::from_utf8(source)
        .map_err(|_| ScriptFailure::new(RuntimeCode::Limit, "the source is no UTF-8"))?;
    Ok(IsolateWork::Script {
        source: source.to_owned(),
    })
}

fn opening(
    caps: &alknet_worker::CborBody,
    limits: &alknet_worker::CborBody,
    clock: &alknet_worker::CborBody,
    fds: &[std::os::fd::OwnedFd],
    seed: Option<[u8; 32]>,
) -> Result<(IsolateSpec, SessionOpening), ScriptFailure> {
    let of = |error| unreadable(&error);
    let blob: alknet_worker::FrameBlob = wire::read(caps).map_err(of)?;
    let mut opening: SessionOpening =
        wire::unpack(&blob.read(fds, u64::MAX).map_err(of)?).map_err(of)?;
    let mut modules = ModuleSet::new();
    for (name, text, language) in std::mem::take(&mut opening.modules) {
        modules.insert_as(&name, text, language)?;
    }
    for (name, full) in std::mem::take(&mut opening.imports) {
        modules.map(name, full);
    }
    let mut spec = IsolateSpec::new(modules);
    spec.limits = wire::read(limits).map_err(of)?;
    spec.clock = wire::read(clock).map_err(of)?;
    spec.seed = seed;
    spec.seeded_crypto = opening.seeded_crypto;
    spec.mode = opening.mode;
    spec.grants = opening.grants;
    spec.frozen = opening.frozen;
    Ok((spec, opening))
}

/// Answers a call that goes nowhere.
fn refuse(guest: &Guest, call: &GuestCall, failure: &ScriptFailure) {
    // A host that is gone ends this process.
    let _ = guest.finish(call, WorkerReply::Err(fault(failure)), Vec::new(), 0, 0);
}

/// A failure in the protocol's form.
fn fault(failure: &ScriptFailure) -> WorkerFault {
    WorkerFault {
        code: failure.code.name().to_owned(),
        message: failure.message.clone(),
        details: wire::body(failure).unwrap_or_default(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
