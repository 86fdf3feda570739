//! What is known of a session while it runs, for those who ask.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use alknet_call::limits::OPERATION_BYTES_MAX;
use alknet_runtime::{RuntimeCode, SessionMode};
use alknet_worker::CallStats;

use super::lock;
use super::memory::MemoryShare;

/// Operations whose calls are counted by name; more are counted together.
const PATHS_MAX: usize = 64;
/// What the rest is counted as.
const OTHERS: &str = "…";

/// Where a session is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It waits for a worker.
    Opening,
    /// No call runs in it.
    Idle,
    /// Calls run in it since then.
    Running {
        /// The oldest of them.
        since: Instant,
    },
    /// It says goodbye.
    Draining,
    /// It is over.
    Closed(SessionEndReason),
}

impl SessionState {
    /// As `runtime/sessions` shows it.
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

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SessionEndReason {
    /// Its owner or an administrator ended it.
    Abort,
    /// Its work was done.
    Done,
    /// Its fuel was used up.
    Fuel,
    /// Its memory was used up.
    Memory,
    /// The node's policy does not run it.
    Policy,
    /// It asked for more than it may.
    Quota,
    /// Its stack was used up.
    Stack,
    /// Its time was used up.
    Timeout,
    /// Its worker is gone.
    WorkerLost,
}

impl SessionEndReason {
    /// As `runtime/stats` and the metrics show it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Done => "done",
            Self::Fuel => "fuel",
            Self::Memory => "memory",
            Self::Policy => "policy",
            Self::Quota => "quota",
            Self::Stack => "stack",
            Self::Timeout => "timeout",
            Self::WorkerLost => "worker-lost",
        }
    }

    /// What a call's end means for its session, where it means its end.
    pub(super) const fn from_code(code: RuntimeCode) -> Option<Self> {
        match code {
            RuntimeCode::Fuel => Some(Self::Fuel),
            RuntimeCode::Memory => Some(Self::Memory),
            RuntimeCode::Stack => Some(Self::Stack),
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

/// One session, as it was at one moment.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its number on this node.
    pub id: u64,
    /// The identity that runs it; empty for an unknown peer.
    pub tenant: String,
    /// How long it lives.
    pub mode: SessionMode,
    /// Where it is.
    pub state: SessionState,
    /// When it was opened.
    pub opened: SystemTime,
    /// Number of its worker's process; 0 while it has none.
    pub pid: i32,
    /// Calls into it that ended.
    pub ended: u64,
    /// Fuel of these.
    pub ticks: u64,
    /// Their time in the processor, as the worker says.
    pub cpu: Duration,
    /// Their time by the clock on the wall; those that run at once count each.
    pub wall: Duration,
    /// Time on the GPU of what it called, as the answers say.
    pub gpu: Duration,
    /// Most bytes of its heap that were seen.
    pub heap_peak: u64,
    /// Most bytes outside its heap.
    pub external_peak: u64,
    /// Calls and subscriptions that it began, by operation.
    pub calls: BTreeMap<String, u64>,
    /// Bytes of its console that were dropped.
    pub log_dropped: u64,
}

/// What the actor, the handles and the table share.
#[derive(Debug)]
pub(super) struct SessionShared {
    info: Mutex<SessionInfo>,
    memory: MemoryShare,
    lent: bool,
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
        }
    }

    /// Whether it runs for others than its tenant.
    pub(super) const fn set_lent(&mut self, lent: bool) {
        self.lent = lent;
    }

    pub(super) const fn is_lent(&self) -> bool {
        self.lent
    }

    /// What its values may take of the node's memory.
    pub(super) fn memory(&self) -> &MemoryShare {
        &self.memory
    }

    pub(super) fn id(&self) -> u64 {
        lock(&self.info).id
    }

    pub(super) fn tenant(&self) -> String {
        lock(&self.info).tenant.clone()
    }

    pub(super) fn info(&self) -> SessionInfo {
        lock(&self.info).clone()
    }

    pub(super) fn set_worker(&self, pid: i32) {
        let mut info = lock(&self.info);
        info.pid = pid;
        info.state = SessionState::Idle;
    }

    /// So many calls run in it now.
    pub(super) fn set_running(&self, calls: usize, draining: bool) {
        let mut info = lock(&self.info);
        info.state = match (info.state, calls) {
            // It is over, whatever still ends in it.
            (closed @ SessionState::Closed(_), _) => closed,
            (_, 0) => SessionState::Idle,
            _ if draining => SessionState::Draining,
            (running @ SessionState::Running { .. }, _) => running,
            _ => SessionState::Running {
                since: Instant::now(),
            },
        };
    }

    /// A call that the script began. Returns how many there were.
    pub(super) fn count_out(&self, path: &str) -> u64 {
        let mut info = lock(&self.info);
        // What is no name of an operation may be as long as a frame.
        let fits = path.len() <= OPERATION_BYTES_MAX && info.calls.len() < PATHS_MAX;
        let known = info.calls.contains_key(path) || fits;
        let path = if known { path } else { OTHERS };
        *info.calls.entry(path.to_owned()).or_default() += 1;
        info.calls.values().sum()
    }

    pub(super) fn count_dropped(&self, bytes: u64) {
        lock(&self.info).log_dropped += bytes;
    }

    /// Something that the script called took so long on the GPU.
    pub(super) fn count_gpu(&self, time: Duration) {
        let mut info = lock(&self.info);
        info.gpu = info.gpu.saturating_add(time);
    }

    /// A call into it ended, so long after it began.
    pub(super) fn count_ended(&self, stats: Option<CallStats>, wall: Duration) {
        let mut info = lock(&self.info);
        info.ended += 1;
        info.wall = info.wall.saturating_add(wall);
        if let Some(stats) = stats {
            info.ticks = info.ticks.saturating_add(stats.ticks);
            info.cpu = info.cpu.saturating_add(Duration::from_micros(stats.cpu_us));
            info.heap_peak = info.heap_peak.max(stats.heap_peak);
            info.external_peak = info.external_peak.max(stats.external_peak);
        }
    }

    /// It is over; the first reason stays.
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
