//! The thread that owns every worker: it reads their messages, keeps their limits and ends them.
//!
//! It is an OS thread with its own timers: a busy executor would run it late, and a limit that is late does not hold.
//! It never waits for a worker: it reads sockets and pipes as far as they are filled, queues frames within bounds,
//! and leaves starting and cleaning up to the spawner.

mod ending;
mod incoming;
mod memory;
mod opening;
mod sending;
mod starting;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

use super::handle::{EncodedFrame, OpenedSession, SupervisorCommand};
use super::pool::WorkerPool;
use super::quarantine::OperationCrashes;
use super::release::MemoryReleaser;
use super::spawn::SpawnJob;
use super::stats::StatsCounter;
use super::watch::{CallWatch, WatchOrder, once};
use super::worker::{ReplyTo, RunningWorkerCall, WorkerProcess, WorkerState};
use super::{CallLimits, WorkerLease, WorkersConfig};
use crate::limits::{CALLS_IN_MAX, KILL_READS_MAX, READ_TURN_BYTES};
use crate::sys::{can_run, process_cpu_us};
use crate::{
    Bytes32, FromWorkerMessage, Sandbox, ToWorkerMessage, WorkerCallError, WorkerEndReason,
    WorkerError, WorkerRole,
};

pub use ending::WORKER_LOSS_TARGET;
pub(super) use opening::{check_binds, workers_claimed};

/// Most events of one wait.
const EVENTS: usize = 64;
/// The token of an event: a worker's number times the number of kinds, plus the kind.
const KINDS: u64 = 4;
const SOCKET: u64 = 0;
const PROCESS: u64 = 1;
const OUTPUT: u64 = 2;
const WAKE: u64 = u64::MAX;
/// Time for which a shutdown waits for the last workers.
const GOODBYE: Duration = Duration::from_secs(2);

/// A tenant whose workers ended for the machine's memory.
#[derive(Clone, Copy, Debug)]
struct RecentRelief {
    /// The time at which this is forgotten.
    until: u64,
    /// Whether it happened twice before it was forgotten: until then the tenant gets no worker.
    again: bool,
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct WorkerSupervisor {
    config: WorkersConfig,
    commands: Receiver<SupervisorCommand>,
    wake: Arc<OwnedFd>,
    jobs: Sender<SpawnJob>,
    stats: Arc<Mutex<StatsCounter>>,
    epoll: OwnedFd,
    began: Instant,
    pool: WorkerPool,
    /// Workers that the spawner is starting, and whether they have folders.
    starting: HashMap<u64, (WorkerRole, bool)>,
    /// Roles that sessions have had: only of these are workers kept ready.
    used: HashSet<WorkerRole>,
    workers: BTreeMap<u64, WorkerProcess>,
    sandboxes: HashMap<u64, Sandbox>,
    sessions: HashMap<u64, OpenSession>,
    next_session: u64,
    waiting: Vec<LeaseWaiter>,
    /// How many leases have claimed a worker so far.
    claims: u64,
    pauses: HashMap<WorkerRole, StartBackoff>,
    /// Tenants whose workers ended for the machine's memory a moment ago.
    relieved: HashMap<String, RecentRelief>,
    crashes: OperationCrashes,
    releaser: MemoryReleaser,
    /// Set once the supervisor shuts down.
    ending: Option<WorkerEnding>,
}

/// An open session.
#[derive(Debug)]
struct OpenSession {
    worker: u64,
    /// Bytes that were granted to it.
    granted: u64,
    /// The callers that something in it runs for, by the numbers of their charges.
    charges: Vec<(u64, String)>,
    inbox: mpsc::Sender<(FromWorkerMessage, Vec<OwnedFd>)>,
    /// Bytes that wait in the inbox.
    unread: Arc<AtomicUsize>,
    /// Calls and subscriptions of the worker that the host has not ended.
    calls_out: HashSet<u64>,
    /// Bytes that it may still log, and the time at which they were computed.
    log: (u64, u64),
    /// Whether the host asked the worker to stop a call of it.
    aborted: bool,
}

/// A caller that waits for a worker.
#[derive(Debug)]
struct LeaseWaiter {
    lease: WorkerLease,
    /// The worker that is started for it, if it needs one of its own.
    worker: Option<u64>,
    reply: oneshot::Sender<Result<OpenedSession, WorkerError>>,
}

/// The pause after a failed start, in which no worker of the role is started.
#[derive(Debug)]
struct StartBackoff {
    until: u64,
    next: Duration,
    /// The confinement, if it was below the minimum.
    sandbox: Option<Sandbox>,
}

#[derive(Debug)]
struct WorkerEnding {
    by: u64,
    tell: Vec<oneshot::Sender<()>>,
}

impl WorkerSupervisor {
    pub(super) fn new(
        config: WorkersConfig,
        commands: Receiver<SupervisorCommand>,
        wake: Arc<OwnedFd>,
        jobs: Sender<SpawnJob>,
        stats: Arc<Mutex<StatsCounter>>,
    ) -> Result<Self, WorkerError> {
        let setup = |error: Errno| WorkerError::Supervisor(error.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(setup)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, &*wake, data, epoll::EventFlags::IN).map_err(setup)?;
        Ok(Self {
            config,
            commands,
            wake,
            jobs,
            stats,
            epoll,
            began: Instant::now(),
            pool: WorkerPool::default(),
            starting: HashMap::new(),
            used: HashSet::new(),
            workers: BTreeMap::new(),
            sandboxes: HashMap::new(),
            sessions: HashMap::new(),
            next_session: 0,
            waiting: Vec::new(),
            claims: 0,
            pauses: HashMap::new(),
            relieved: HashMap::new(),
            crashes: OperationCrashes::default(),
            releaser: MemoryReleaser::start().map_err(WorkerError::Supervisor)?,
            ending: None,
        })
    }

    /// Runs until the last handle is dropped or the shutdown is done.
    pub(super) fn run(mut self) {
        let mut scratch = vec![0; READ_TURN_BYTES];
        self.fill();
        loop {
            // Messages are read before limits are checked: a heartbeat may wait unread.
            for (worker, kind) in self.events() {
                self.event(worker, kind, &mut scratch);
            }
            while let Ok(command) = self.commands.try_recv() {
                self.command(command);
            }
            self.keep_time(&mut scratch);
            if self.is_over() {
                return;
            }
        }
    }

    /// Microseconds since the thread began.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn count(&self) -> MutexGuard<'_, StatsCounter> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something happens or is due.
    fn events(&self) -> Vec<(u64, u64)> {
        let left = self.deadline().map(|at| at.saturating_sub(self.now()));
        let left = left.map(Duration::from_micros);
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut space = [MaybeUninit::uninit(); EVENTS];
        // An error is a signal that interrupted the wait, or one that waiting would not change.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut space[..], left.as_ref()) else {
            return Vec::new();
        };
        let tokens: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
        if tokens.contains(&WAKE) {
            let mut counter = [0; 8];
            // The counter may be empty already. In both cases it is quiet now.
            let _ = rustix::io::read(&*self.wake, &mut counter);
        }
        let of_workers = tokens.into_iter().filter(|token| *token != WAKE);
        of_workers
            .map(|token| (token / KINDS, token % KINDS))
            .collect()
    }

    fn event(&mut self, worker: u64, kind: u64, scratch: &mut [u8]) {
        match kind {
            SOCKET => {
                self.read(worker, scratch);
            }
            PROCESS => self.process_ended(worker, scratch),
            _ => self.listen(worker, scratch),
        }
    }

    fn command(&mut self, command: SupervisorCommand) {
        match command {
            SupervisorCommand::Abort { sid, id } => self.give_up(sid, id),
            SupervisorCommand::Call {
                sid,
                id,
                frame,
                limits,
                operation,
                farewell,
                reply,
            } => {
                let running = (limits, operation, farewell);
                if let Err((error, reply)) = self.call(sid, id, frame, running, reply) {
                    // The caller may have gone.
                    let _ = reply.send(Err(error));
                }
            }
            SupervisorCommand::Charge(charge) => {
                let charged = self.charge(charge.sid, charge.id, charge.caller);
                // The caller may have gone: then it discharges what it has charged.
                let _ = charge.reply.send(charged);
            }
            SupervisorCommand::Close { sid } => self.close(sid),
            SupervisorCommand::Discharge { sid, id } => self.discharge(sid, id),
            SupervisorCommand::Kill { sid } => {
                if let Some(worker) = self.sessions.get(&sid).map(|open| open.worker) {
                    self.end(worker, WorkerEndReason::Abort, "its session was killed");
                }
            }
            SupervisorCommand::Open { lease, reply } => self.open(lease, reply),
            SupervisorCommand::Release { operation, reply } => {
                let was_in = self.crashes.release(&operation);
                self.count().now.quarantined = self.crashes.len() as u64;
                let _ = reply.send(was_in);
            }
            SupervisorCommand::Relieve { least, reply } => {
                let ended = self.relieve(least);
                // The caller may have gone.
                let _ = reply.send(ended);
            }
            SupervisorCommand::Shutdown { done } => self.shut_down(done),
            SupervisorCommand::Started { worker, born } => self.started(worker, born),
            SupervisorCommand::Tell { sid, frame, ends } => self.tell(sid, frame, ends),
        }
    }

    /// Sends a call to the worker of its session.
    fn call(
        &mut self,
        sid: u64,
        id: u64,
        frame: EncodedFrame,
        (limits, operation, farewell): (CallLimits, Option<Bytes32>, bool),
        reply: ReplyTo,
    ) -> Result<(), (WorkerCallError, ReplyTo)> {
        let now = self.now();
        let silence = u64::try_from(self.config.silence.as_micros()).unwrap_or(u64::MAX);
        // The check comes first: a quarantined operation must not reach any worker.
        if operation.is_some_and(|operation| self.is_quarantined(sid, operation)) {
            return Err((WorkerCallError::Quarantined, reply));
        }
        let open = self.sessions.get(&sid);
        let Some((number, worker)) = open
            .map(|open| open.worker)
            .and_then(|number| Some((number, self.workers.get_mut(&number)?)))
        else {
            return Err((WorkerCallError::SessionClosed, reply));
        };
        // Each call costs a check at every turn of this thread.
        if worker.calls.len() >= CALLS_IN_MAX {
            return Err((WorkerCallError::Busy, reply));
        }
        let process = worker.cpu_us().unwrap_or(0);
        let grace = u64::try_from(self.config.abort_grace.as_micros()).unwrap_or(u64::MAX);
        let mut watch = CallWatch::new(now, limits, silence, process, worker.role.is_gpu_only())
            .with_grace(grace);
        if farewell {
            watch = watch.draining();
        }
        let running = RunningWorkerCall {
            sid,
            watch,
            operation,
            reply,
        };
        worker.calls.insert(id, running);
        worker.idle_frames.begun();
        worker.queue(frame, false);
        self.flush(number);
        Ok(())
    }

    fn give_up(&mut self, sid: u64, id: u64) {
        let now = self.now();
        let Some(open) = self.sessions.get(&sid) else {
            return;
        };
        if let Some(worker) = self.workers.get_mut(&open.worker)
            && let Some(running) = worker.calls.get_mut(&id)
        {
            running.watch.give_up(now);
        }
    }

    fn tell(&mut self, sid: u64, frame: EncodedFrame, ends: Option<u64>) {
        let Some(open) = self.sessions.get_mut(&sid) else {
            return;
        };
        ends.map(|id| open.calls_out.remove(&id));
        let number = open.worker;
        if let Some(worker) = self.workers.get_mut(&number) {
            worker.queue(frame, false);
            self.flush(number);
        }
    }

    fn close(&mut self, sid: u64) {
        let now = self.now();
        let Some(open) = self.sessions.remove(&sid) else {
            return;
        };
        self.count().now.sessions = self.sessions.len() as u64;
        self.pool.release(open.worker, now);
        for (_, caller) in &open.charges {
            self.pool.release_caller(open.worker, caller);
        }
        if let Some(worker) = self.workers.get_mut(&open.worker) {
            worker.sessions.retain(|session| *session != sid);
            worker.granted = worker.granted.saturating_sub(open.granted);
            worker.tell(&ToWorkerMessage::Close { sid, id: None }, false);
            for running in worker
                .calls
                .values_mut()
                .filter(|running| running.sid == sid)
            {
                running.watch.give_up(now);
            }
            self.flush(open.worker);
        }
        self.serve();
    }

    /// Does everything that is due.
    fn keep_time(&mut self, scratch: &mut [u8]) {
        let now = self.now();
        let numbers: Vec<u64> = self.workers.keys().copied().collect();
        let mut reads = KILL_READS_MAX;
        for number in numbers {
            self.look_at_unread(number, now);
            self.keep_time_of(number, now, &mut reads, scratch);
        }
        while let Some(worker) = self.pool.expired(now) {
            self.end(worker, WorkerEndReason::Idle, "");
        }
        // A worker that starts now would have to end at once.
        if self.ending.is_none() {
            self.fill();
        }
    }

    fn keep_time_of(&mut self, number: u64, now: u64, reads: &mut u32, scratch: &mut [u8]) {
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        match worker.state {
            WorkerState::Starting(_) => self.look_at_start(number, now),
            WorkerState::Leaving { by } if now >= by => {
                // A worker that the kernel kills closes its channel early in its end, and may have much memory to
                // free.
                if worker.ran_out_of_memory() {
                    self.end(
                        number,
                        WorkerEndReason::Memory,
                        "its group had no memory left",
                    );
                } else {
                    self.end(
                        number,
                        WorkerEndReason::ClosedChannel,
                        "it closed its channel",
                    );
                }
            }
            WorkerState::Ready => {
                worker.note_read();
                let pid = worker.pid();
                // However many calls a worker has, /proc is read once: no worker may keep this thread busy.
                let (used, wants) = (once(|| process_cpu_us(pid)), once(|| can_run(pid)));
                let mut killed = Vec::new();
                let mut aborts = Vec::new();
                for (id, running) in &mut worker.calls {
                    match running.watch.order(now, &used, &wants) {
                        Some(WatchOrder::Abort) => {
                            if let Some(open) = self.sessions.get_mut(&running.sid) {
                                open.aborted = true;
                            }
                            aborts.push(*id);
                        }
                        Some(WatchOrder::Kill(cause)) => killed.push((*id, cause)),
                        None => {}
                    }
                }
                for id in &aborts {
                    worker.tell(&ToWorkerMessage::Abort { id: *id }, true);
                }
                if !aborts.is_empty() {
                    self.flush(number);
                }
                if killed.is_empty() {
                    self.check_memory(number, now);
                } else {
                    self.kill_for(number, &killed, reads, scratch);
                }
            }
            _ => {}
        }
    }

    /// The next time at which something is due.
    fn deadline(&self) -> Option<u64> {
        let of_workers = self
            .workers
            .values()
            .filter_map(|worker| match worker.state {
                WorkerState::Starting(watch) => Some(watch.at()),
                WorkerState::Leaving { by } => Some(by),
                WorkerState::Ready => worker
                    .calls
                    .values()
                    .map(|call| call.watch.deadline())
                    .chain(worker.look_at())
                    .min(),
                // Its pidfd reports when it has ended.
                WorkerState::Dying(..) => None,
            });
        let pauses = self.pauses.values().map(|pause| pause.until);
        // A pause that is over would be due at once, again and again.
        let pauses = pauses.filter(|until| *until > self.now());
        of_workers
            .chain(pauses)
            .chain(self.pool.deadline())
            .chain(self.ending.as_ref().map(|ending| ending.by))
            .min()
    }

    fn shut_down(&mut self, done: Option<oneshot::Sender<()>>) {
        let by = self
            .now()
            .saturating_add(u64::try_from(GOODBYE.as_micros()).unwrap_or(0));
        // A second request does not put off the end that the first one began.
        let ending = self.ending.get_or_insert_with(|| WorkerEnding {
            by,
            tell: Vec::new(),
        });
        ending.tell.extend(done);
        for waiting in self.waiting.drain(..) {
            let _ = waiting.reply.send(Err(WorkerError::Stopped));
        }
        let numbers: Vec<u64> = self.workers.keys().copied().collect();
        for number in numbers {
            self.end(number, WorkerEndReason::Shutdown, "");
        }
    }

    /// Whether all workers have ended. A worker that the spawner still starts ends with its thread.
    fn is_over(&mut self) -> bool {
        let now = self.now();
        let Some(ending) = &mut self.ending else {
            return false;
        };
        let gone = self.workers.is_empty() && self.starting.is_empty();
        // Workers have a bounded time to end, and the node must stop after it in any case.
        if !gone && now < ending.by {
            return false;
        }
        for tell in ending.tell.drain(..) {
            let _ = tell.send(());
        }
        true
    }

    /// Adds a worker's descriptors to the epoll set.
    fn listen_to(&self, number: u64, worker: &WorkerProcess) -> Result<(), Errno> {
        let data = |kind| epoll::EventData::new_u64(number * KINDS + kind);
        let readable = epoll::EventFlags::IN;
        epoll::add(&self.epoll, worker.socket().as_fd(), data(SOCKET), readable)?;
        epoll::add(&self.epoll, worker.pidfd().as_fd(), data(PROCESS), readable)?;
        epoll::add(&self.epoll, worker.output().as_fd(), data(OUTPUT), readable)
    }
}
