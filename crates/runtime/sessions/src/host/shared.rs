//! The state of a running session, for other parts of the node.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use alknet_call::limits::OPERATION_BYTES_MAX;
use alknet_runtime::{RuntimeCode, SessionMode};
use alknet_worker::{CallStats, WorkerLease};

use super::lock;
use super::memory::MemoryShare;

/// The operations whose calls are counted by name; calls of further ones are counted together.
const PATHS_MAX: usize = 64;
/// Operations that the log names when a session ends. With names of the longest kind its record stays below 1 KiB.
const NAMED_MAX: usize = 4;
/// The name for the calls of further operations.
const OTHERS: &str = "…";

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It waits for a worker.
    Opening,
    /// No call runs in it.
    Idle,
    /// Calls run in it.
    Running {
        /// The start of the oldest running call.
        since: Instant,
    },
    /// It runs its goodbye.
    Draining,
    /// It has ended.
    Closed(SessionEndReason),
}

impl SessionState {
    /// The name that `runtime/sessions` shows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Idle => "idle",
            Self::Running { .. } => "running",
            Self::Draining => "draining",
            Self::Closed(_) => "closed",
        }
    }
}

/// The reason why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SessionEndReason {
    /// Its owner or an administrator ended it.
    Abort,
    /// Its work was done.
    Done,
    /// It used up its fuel.
    Fuel,
    /// It used up its memory.
    Memory,
    /// The node's policy does not run it.
    Policy,
    /// It exceeded a quota.
    Quota,
    /// It used up its time.
    Timeout,
    /// Its worker is gone.
    WorkerLost,
}

impl SessionEndReason {
    /// The name that `runtime/stats` and the metrics show.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Done => "done",
            Self::Fuel => "fuel",
            Self::Memory => "memory",
            Self::Policy => "policy",
            Self::Quota => "quota",
            Self::Timeout => "timeout",
            Self::WorkerLost => "worker-lost",
        }
    }

    /// The reason for ending the session after a call with this code; `None` if the session
    /// continues.
    pub(super) const fn from_code(code: RuntimeCode) -> Option<Self> {
        match code {
            RuntimeCode::Fuel => Some(Self::Fuel),
            RuntimeCode::Memory => Some(Self::Memory),
            RuntimeCode::Timeout | RuntimeCode::GpuTimeout => Some(Self::Timeout),
            RuntimeCode::WorkerLost => Some(Self::WorkerLost),
            _ => None,
        }
    }
}

impl fmt::Display for SessionEndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The state of one session at one moment.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// The session's number on this node.
    pub id: u64,
    /// The identity that runs it; empty for an unknown peer.
    pub tenant: String,
    /// How long it stays open.
    pub mode: SessionMode,
    /// Its state.
    pub state: SessionState,
    /// When it was opened.
    pub opened: SystemTime,
    /// The process id of its worker; 0 while it has none.
    pub pid: i32,
    /// The number of calls into it that ended.
    pub ended: u64,
    /// The fuel of these calls.
    pub ticks: u64,
    /// Their processor time, as the worker reports it.
    pub cpu: Duration,
    /// Their wall-clock time; calls that run at once count separately.
    pub wall: Duration,
    /// The GPU time of the operations that it called, as their answers report it.
    pub gpu: Duration,
    /// The most observed bytes of its heap.
    pub heap_peak: u64,
    /// The most observed bytes outside its heap.
    pub external_peak: u64,
    /// The calls and subscriptions that it began, by operation.
    pub calls: BTreeMap<String, u64>,
    /// The bytes of its console that were dropped.
    pub log_dropped: u64,
}

/// The state that the actor, the handles and the table share.
#[derive(Debug)]
pub(super) struct SessionShared {
    info: Mutex<SessionInfo>,
    memory: MemoryShare,
    lent: bool,
    /// The lease of a session that waits for a worker.
    lease: Mutex<Option<WorkerLease>>,
    /// The number of its worker's session.
    worker_session: AtomicU64,
    /// Whether something of its worker was refused because others had used up the memory for values.
    met_full: AtomicBool,
    /// Since when no call runs in it. `None` while one does, and before the first one.
    idle_since: Mutex<Option<Instant>>,
    /// The first operations that it called and that exist: a script may call any text.
    called: Mutex<Vec<String>>,
}

impl SessionShared {
    pub(super) fn new(id: u64, tenant: &str, mode: SessionMode, memory: MemoryShare) -> Self {
        let info = SessionInfo {
            id,
            tenant: tenant.to_owned(),
            mode,
            state: SessionState::Opening,
            opened: SystemTime::now(),
            pid: 0,
            ended: 0,
            ticks: 0,
            cpu: Duration::ZERO,
            wall: Duration::ZERO,
            gpu: Duration::ZERO,
            heap_peak: 0,
            external_peak: 0,
            calls: BTreeMap::new(),
            log_dropped: 0,
        };
        Self {
            info: Mutex::new(info),
            memory,
            lent: false,
            lease: Mutex::default(),
            worker_session: AtomicU64::new(0),
            met_full: AtomicBool::new(false),
            idle_since: Mutex::default(),
            called: Mutex::default(),
        }
    }

    /// Sets whether the session runs for others than its tenant.
    pub(super) const fn set_lent(&mut self, lent: bool) {
        self.lent = lent;
    }

    pub(super) const fn is_lent(&self) -> bool {
        self.lent
    }

    /// The share of the node's memory for its values.
    pub(super) fn memory(&self) -> &MemoryShare {
        &self.memory
    }

    pub(super) fn id(&self) -> u64 {
        lock(&self.info).id
    }

    pub(super) fn tenant(&self) -> String {
        lock(&self.info).tenant.clone()
    }

    pub(super) fn mode(&self) -> SessionMode {
        lock(&self.info).mode
    }

    /// The process id of its worker; 0 while it has none.
    pub(super) fn pid(&self) -> i32 {
        lock(&self.info).pid
    }

    /// The number of its worker's session; 0 while it has none.
    pub(super) fn worker_session(&self) -> u64 {
        self.worker_session.load(Ordering::Relaxed)
    }

    /// Since when it waits for its next call. `None` if a call runs, if it has had none yet, or if it has ended.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let is_open = !matches!(lock(&self.info).state, SessionState::Closed(_));
        lock(&self.idle_since).filter(|_| is_open)
    }

    pub(super) fn info(&self) -> SessionInfo {
        lock(&self.info).clone()
    }

    /// Sets the lease that it asks a worker for.
    pub(super) fn set_lease(&self, lease: WorkerLease) {
        *lock(&self.lease) = Some(lease);
    }

    /// The lease that it waits for a worker with, if it [claims](WorkerLease::claim) one.
    pub(super) fn claiming(&self) -> Option<WorkerLease> {
        let lease = lock(&self.lease);
        lease
            .as_ref()
            .filter(|lease| lease.claim().is_some())
            .cloned()
    }

    /// Remembers that something of its worker was refused because others had used up the memory for values.
    pub(super) fn meet_full(&self) {
        // Only the flag matters: it orders no other memory access.
        self.met_full.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_met_full(&self) -> bool {
        self.met_full.load(Ordering::Relaxed)
    }

    pub(super) fn set_worker(&self, pid: i32, session: u64) {
        // Only the number matters: it orders no other memory access.
        self.worker_session.store(session, Ordering::Relaxed);
        {
            let mut info = lock(&self.info);
            info.pid = pid;
            info.state = SessionState::Idle;
        }
        // After the process id, so that another session's search for room finds one of them.
        *lock(&self.lease) = None;
    }

    /// Sets the number of running calls.
    pub(super) fn set_running(&self, calls: usize, draining: bool) {
        *lock(&self.idle_since) = (calls == 0).then(Instant::now);
        let mut info = lock(&self.info);
        info.state = match (info.state, calls) {
            // The session has ended, whatever call still ends in it.
            (closed @ SessionState::Closed(_), _) => closed,
            (_, 0) => SessionState::Idle,
            _ if draining => SessionState::Draining,
            // `since` is the start of the oldest running call, so a further call does not change
            // it.
            (running @ SessionState::Running { .. }, _) => running,
            _ => SessionState::Running {
                since: Instant::now(),
            },
        };
    }

    /// Counts a call that the script began. Returns the total number.
    pub(super) fn count_out(&self, path: &str) -> u64 {
        let mut info = lock(&self.info);
        // A text that is no operation's name may be as long as a frame.
        let is_countable = path.len() <= OPERATION_BYTES_MAX && info.calls.len() < PATHS_MAX;
        let known = info.calls.contains_key(path) || is_countable;
        let path = if known { path } else { OTHERS };
        *info.calls.entry(path.to_owned()).or_default() += 1;
        info.calls.values().sum()
    }

    /// Remembers an operation that was called, for the log. `exists` says whether it is one.
    pub(super) fn note_called(&self, path: &str, exists: impl FnOnce() -> bool) {
        let mut called = lock(&self.called);
        let is_new = || called.iter().all(|known| known != path);
        if called.len() < NAMED_MAX && is_new() && exists() {
            called.push(path.to_owned());
        }
    }

    /// The first operations that it called.
    pub(super) fn called(&self) -> Vec<String> {
        lock(&self.called).clone()
    }

    pub(super) fn count_dropped(&self, bytes: u64) {
        lock(&self.info).log_dropped += bytes;
    }

    /// Adds GPU time of an operation that the script called.
    pub(super) fn count_gpu(&self, time: Duration) {
        let mut info = lock(&self.info);
        info.gpu = info.gpu.saturating_add(time);
    }

    /// Counts a call into the session that ended after this time.
    pub(super) fn count_ended(&self, stats: Option<CallStats>, wall: Duration) {
        let mut info = lock(&self.info);
        info.ended += 1;
        info.wall = info.wall.saturating_add(wall);
        if let Some(stats) = stats {
            info.ticks = info.ticks.saturating_add(stats.ticks);
            info.cpu = info.cpu.saturating_add(Duration::from_micros(stats.cpu_us));
            // A peak is the most of all calls, and not their sum.
            info.heap_peak = info.heap_peak.max(stats.heap_peak);
            info.external_peak = info.external_peak.max(stats.external_peak);
        }
    }

    /// Sets that the session has ended; the first reason stays.
    pub(super) fn close(&self, reason: SessionEndReason) {
        let mut info = lock(&self.info);
        if !matches!(info.state, SessionState::Closed(_)) {
            info.state = SessionState::Closed(reason);
        }
    }

    pub(super) fn reason(&self) -> SessionEndReason {
        match lock(&self.info).state {
            SessionState::Closed(reason) => reason,
            _ => SessionEndReason::Done,
        }
    }
}
