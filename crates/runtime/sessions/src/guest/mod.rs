//! Runs a worker of the role `js`: it exchanges frames with its host and runs isolates.
//!
//! Each isolate has a thread of its own, and there are as many threads as a worker may have
//! sessions. A script that computes occupies its thread, and the engine cannot leave a native loop
//! before it ends, so with fewer threads other sessions would wait for such a script. The threads
//! start before the sandbox closes, because the role `js` may start none afterwards. An idle thread
//! costs only the pages of its stack that it has used.
//!
//! The first thread distributes frames and never runs a script, so an answer or an abort arrives
//! whatever the scripts do. One more thread checks the running calls every few milliseconds.

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

use crate::limits::{ANSWERS_WAITING_BYTES_MIN, THREAD_STACK_BYTES, VALUE_BYTES_MAX};
use crate::wire::{self, InvokedExport, LongNamed, SessionOpening};
use bridge::{Bridge, BridgeHost};
use watchdog::CallWatchdog;

/// The exit status of a process that could not become a worker.
const NO_WORKER: u8 = 70;

/// Runs a worker of this role until its host is gone. `alknet worker` calls it after
/// [`alknet_worker::started_as_worker`] and before anything else.
#[must_use]
pub fn run(role: WorkerRole) -> ExitCode {
    run_after(role, || Ok::<_, String>(()))
}

/// Like [`run`], with the caller's own work before the sandbox closes: the role `js+gpu` opens its
/// device there.
#[must_use]
pub fn run_after<E: fmt::Display>(
    role: WorkerRole,
    warm_up: impl FnOnce() -> Result<(), E>,
) -> ExitCode {
    match work(role, warm_up) {
        Ok(never) => match never {},
        Err(error) => {
            // The host keeps the last text that a worker writes.
            eprintln!("{error}");
            ExitCode::from(NO_WORKER)
        }
    }
}

/// A type without values: a worker does not return.
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
            // The wait may end without a reason (std, `Condvar`), so the queue is checked again.
            let slept = self.grown.wait(sessions);
            sessions = slept.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The parts of a session that other threads need.
#[derive(Clone, Debug)]
struct SessionSlot {
    bridge: Arc<Bridge>,
    jobs: mpsc::UnboundedSender<session::SessionJob>,
    /// Set once the isolate exists.
    remote: Arc<OnceLock<IsolateHandle>>,
}

/// Distributes frames to the sessions.
struct FrameDispatcher {
    guest: Guest,
    waiting: Arc<SessionQueue>,
    watchdog: Arc<CallWatchdog>,
    sessions: HashMap<u64, SessionSlot>,
    /// The session of each call that may be aborted.
    calls: HashMap<u64, u64>,
}

impl FrameDispatcher {
    fn new(guest: &Guest) -> std::io::Result<Self> {
        warm_engine(guest)?;
        let waiting = Arc::new(SessionQueue::default());
        let watchdog = Arc::new(CallWatchdog::new(guest.clone()));
        let beating = Arc::clone(&watchdog);
        std::thread::Builder::new()
            .name("pulse".to_owned())
            .spawn(move || beating.run())?;
        for _ in 0..limits::SESSIONS_MAX {
            let (waiting, watchdog, guest) =
                (Arc::clone(&waiting), Arc::clone(&watchdog), guest.clone());
            // The runtime has only timers: without I/O it needs no file descriptor.
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
                            runtime.block_on(session::serve(start, &guest, &watchdog));
                        });
                        if std::panic::catch_unwind(served).is_err() {
                            // The engine's state is unknown after a panic, so the worker ends, and
                            // the host sees a crash.
                            std::process::abort();
                        }
                        give_back_memory();
                    }
                })?;
        }
        Ok(Self {
            guest: guest.clone(),
            waiting,
            watchdog,
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
                let work =
                    work.map(LongNamed::into_value).map(|input| {
                        match InvokedExport::from_op(&op) {
                            Some(InvokedExport { module, export }) => IsolateWork::Export {
                                module,
                                export,
                                input,
                            },
                            None => IsolateWork::Handler { name: op, input },
                        }
                    });
                self.start(sid, call, work);
            }
            ToWorkerMessage::Run { sid, body, .. } => {
                let work = wire::read(&body).map_err(|error| unreadable(&error));
                self.start(sid, call, work);
            }
            ToWorkerMessage::Reply { sid, id, reply } => {
                // The session may have been closed meanwhile.
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
                if let (Some(slot), Ok(message)) = (self.sessions.get(&sid), wire::read(&body)) {
                    slot.bridge.handle_message(message);
                }
            }
            ToWorkerMessage::Abort { id } => self.abort(id),
            ToWorkerMessage::Close { sid, id: Some(_) } => {
                if let Some(call) = call {
                    self.farewell(sid, call);
                }
            }
            ToWorkerMessage::Close { sid, id: None } => self.close(sid),
            // Messages that only a later host sends are ignored.
            _ => {}
        }
        // No frame says that a call has ended.
        let calls = &self.watchdog;
        self.calls.retain(|id, _| calls.knows(*id));
    }

    fn open(&mut self, sid: u64, spec: Result<(IsolateSpec, SessionOpening), ScriptFailure>) {
        let (jobs, queue) = mpsc::unbounded_channel();
        let (operations, heap) = match &spec {
            Ok((spec, opening)) => (opening.operations.clone(), spec.limits.heap_bytes),
            Err(_) => (Vec::new(), 0),
        };
        let waiting_max = heap.max(ANSWERS_WAITING_BYTES_MIN);
        let bridge = Bridge::new(self.guest.clone(), sid, operations, waiting_max);
        let slot = SessionSlot {
            bridge,
            jobs,
            remote: Arc::default(),
        };
        self.watchdog.add_session(sid, Arc::clone(&slot.bridge));
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
                // The watchdog must know the call before the thread gets it, because an unknown
                // call counts as given up.
                self.watchdog.expect(&call);
                // The thread takes jobs as long as the session is open.
                let _ = slot.jobs.send(session::SessionJob::Start(call, work));
            }
            Err(failure) => refuse(&self.guest, &call, &failure),
        }
    }

    /// Fires the `AbortSignal` of a call. The watchdog stops a script that computes a little later.
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
                self.watchdog.expect(&call);
                let _ = slot.jobs.send(session::SessionJob::Dispose(call));
            }
            None => refuse(
                &self.guest,
                &call,
                &ScriptFailure::new(RuntimeCode::Disposed, "the session is closed"),
            ),
        }
    }

    /// Closes a session. Dropping the slot ends the thread's queue, and a script that computes is
    /// stopped.
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
    let no_host = Arc::new(BridgeHost(Bridge::new(guest.clone(), 0, Vec::new(), 0)));
    let isolate = alknet_runtime::Isolate::open(IsolateSpec::new(ModuleSet::new()), no_host);
    isolate.map(drop).map_err(std::io::Error::other)
}

fn unreadable(error: &alknet_worker::WorkerFrameError) -> ScriptFailure {
    ScriptFailure::new(
        RuntimeCode::Encode,
        format!("the host's message is malformed: {error}"),
    )
}

/// The work of evaluating a module of the graph by its name, or lines of a REPL.
fn evaluation(module: String, source: &[u8], hash: [u8; 32]) -> Result<IsolateWork, ScriptFailure> {
    // The hash identifies the code in records and limits, so it must be that of the source.
    if blake3::hash(source).as_bytes() != &hash {
        return Err(ScriptFailure::new(
            RuntimeCode::Limit,
            "the source has another hash",
        ));
    }
    // The text of a module of the graph arrived when the session was opened.
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

/// Answers a call that cannot run, and has used no memory.
fn refuse(guest: &Guest, call: &GuestCall, failure: &ScriptFailure) {
    refuse_after(guest, call, failure, (0, 0));
}

/// Answers a call that ends with an error, with its peaks of heap and of bytes outside it.
fn refuse_after(
    guest: &Guest,
    call: &GuestCall,
    failure: &ScriptFailure,
    (heap, external): (u64, u64),
) {
    // A lost host ends this process.
    let _ = guest.finish(
        call,
        WorkerReply::Err(fault(failure)),
        Vec::new(),
        heap,
        external,
    );
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
