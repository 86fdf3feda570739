//! The host's configuration of its workers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fmt, io};

use crate::limits::{
    ABORT_GRACE, DRAIN_MAX, HEARTBEAT_EVERY, HEARTBEAT_SILENCE_MAX, MEMORY_PERCENT, MEMORY_REST,
    START_CPU_MAX, START_MAX, START_WALL_MAX, TENANT_WORKERS_PART, UNREAD_MAX, WORKERS_MAX,
};
use crate::{Bind, Bytes32, ConfinementLevel, SealedMemfd, WorkerRole};

/// Bytes of one worker: 64 MiB of heap, 256 MiB of external bytes, and 64 MiB for the rest.
const MEMORY_BYTES: u64 = 384 << 20;
/// A tenth of the default weight of a cgroup, and so of the node's.
const CPU_WEIGHT: u32 = 10;
/// Threads of a worker.
const PIDS: u32 = 64;
/// Processor time of one worker in its whole life: many sessions at their hard cap.
const CPU_SECONDS: u64 = 3600;

/// The configuration of all workers.
#[derive(Debug)]
pub struct WorkersConfig {
    /// The executable of workers.
    pub executable: Executable,
    /// Executables of roles that have another one.
    pub programs: Vec<(WorkerRole, Executable)>,
    /// The roles that sessions may have.
    pub roles: Vec<RoleConfig>,
    /// A cgroup of the host, below which workers get theirs.
    pub cgroup: Option<DelegatedCgroup>,
    /// The least level: a worker below it gets no work.
    pub minimum: ConfinementLevel,
    /// Most workers at once, of all roles. One tenant gets a quarter of them.
    pub workers_max: usize,
    /// Bytes of all workers together, and so the most of one. The default is a share of the machine's memory.
    pub memory_bytes: u64,
    /// How long a worker may take to become ready.
    pub start: StartLimits,
    /// Time between heartbeats of a running call.
    pub heartbeat: Duration,
    /// Time for which heartbeats may fail to come.
    pub silence: Duration,
    /// Time that a worker has to answer an abort before the host kills it, without the time in which it waited for a
    /// processor.
    pub abort_grace: Duration,
    /// Time that a service has to dispose of itself when it is drained.
    pub drain: Duration,
    /// Time for which a worker may leave descriptors unread; after twice this time the host kills it.
    pub unread: Duration,
}

impl WorkersConfig {
    /// Workers of every role run the present executable. One of role js is kept warm after the first session of that
    /// role.
    #[must_use]
    pub fn this_executable() -> Self {
        Self {
            executable: Executable::This,
            programs: Vec::new(),
            roles: WorkerRole::ALL.map(RoleConfig::new).to_vec(),
            cgroup: None,
            minimum: ConfinementLevel::ProcessOnly,
            workers_max: WORKERS_MAX,
            memory_bytes: machine_share(),
            start: StartLimits::default(),
            heartbeat: HEARTBEAT_EVERY,
            silence: HEARTBEAT_SILENCE_MAX,
            abort_grace: ABORT_GRACE,
            drain: DRAIN_MAX,
            unread: UNREAD_MAX,
        }
    }

    pub(super) fn role(&self, role: WorkerRole) -> Option<&RoleConfig> {
        self.roles.iter().find(|config| config.role == role)
    }

    /// Most workers of one tenant at once, of all roles together.
    pub(super) fn workers_of_tenant_max(&self) -> usize {
        (self.workers_max / TENANT_WORKERS_PART).max(1)
    }

    /// The part of these that other callers may take by calling the tenant's operations.
    pub(super) fn workers_lent_max(&self) -> usize {
        self.workers_of_tenant_max() / 2
    }

    /// The part of these that one caller may take.
    pub(super) fn workers_of_caller_max(&self) -> usize {
        self.workers_lent_max().div_ceil(2)
    }

    /// What one tenant may have of the workers.
    pub(super) fn tenant_shares(&self) -> TenantShares {
        TenantShares {
            of_tenant: self.workers_of_tenant_max(),
            lent: self.workers_lent_max(),
            of_caller: self.workers_of_caller_max(),
        }
    }

    /// The part of these that only callers without a worker may take.
    pub(super) fn workers_of_first_callers(&self) -> usize {
        self.workers_lent_max() / 4
    }

    /// Bytes that a worker of `role` may hold whose sessions were granted `granted` bytes; 0 means that none was
    /// granted any.
    pub(super) fn memory_of(&self, role: WorkerRole, granted: u64) -> u64 {
        let usual = self.role(role).map_or(u64::MAX, |role| role.memory_bytes);
        let own = match granted {
            0 => usual,
            granted => granted.saturating_add(MEMORY_REST),
        };
        own.min(self.memory_bytes)
    }
}

/// The time that a worker has from its start until it is ready, with its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartLimits {
    /// Wall-clock time. A worker that makes progress has longer: one that uses processor time, or waits for a processor.
    pub idle: Duration,
    /// Processor time of its process, after `idle`.
    pub cpu: Duration,
    /// Wall-clock time in any case.
    pub wall: Duration,
}

impl Default for StartLimits {
    fn default() -> Self {
        Self {
            idle: START_MAX,
            cpu: START_CPU_MAX,
            wall: START_WALL_MAX,
        }
    }
}

/// How many workers one tenant may have at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct TenantShares {
    pub(super) of_tenant: usize,
    /// The part of these for callers of its operations.
    pub(super) lent: usize,
    /// The part of these for one caller.
    pub(super) of_caller: usize,
}

/// The machine's memory for workers. If the kernel does not tell it, workers are bounded by their roles and by what
/// they are granted.
fn machine_share() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| (kib << 10) / 100 * MEMORY_PERCENT)
}

/// The source of the worker's program.
#[derive(Debug)]
pub enum Executable {
    /// A copy of the running executable in sealed memory, for files that can be replaced while the node runs. It
    /// takes its size in memory.
    Copied,
    /// This file.
    File(PathBuf),
    /// The program that this makes for the first worker. It is dropped when the last one has ended, so that its
    /// memory is used only while a worker runs it, and is made again later.
    Made(ProgramMaker),
    /// This memory.
    Memory(SealedMemfd),
    /// The running executable, by `/proc/self/exe`.
    This,
}

/// Makes a program in sealed memory on the thread that starts workers; [`SealedMemfd::program`] does it.
pub struct ProgramMaker(Box<dyn FnMut() -> io::Result<SealedMemfd> + Send>);

impl ProgramMaker {
    /// Calls `make` each time the program is needed.
    #[must_use]
    pub fn new(make: impl FnMut() -> io::Result<SealedMemfd> + Send + 'static) -> Self {
        Self(Box::new(make))
    }

    pub(super) fn make(&mut self) -> io::Result<SealedMemfd> {
        (self.0)()
    }
}

impl fmt::Debug for ProgramMaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProgramMaker")
    }
}

/// A cgroup (version 2) in which the host may make others. The host's own process must be in a different child of its
/// parent, because a group with limits holds no process itself (cgroups(7), "no internal processes").
#[derive(Clone, Debug)]
pub struct DelegatedCgroup {
    /// Its folder.
    pub path: PathBuf,
}

/// Workers of one role.
#[derive(Clone, Debug)]
pub struct RoleConfig {
    /// Role that the worker has for life.
    pub role: WorkerRole,
    /// Workers without a tenant that are kept ready, from the first session of the role on: a host that never opens
    /// one keeps none.
    pub min_idle: usize,
    /// Bytes of one worker whose sessions were granted no memory of their own.
    pub memory_bytes: u64,
    /// Processor time of one worker in its whole life, in seconds.
    pub cpu_seconds: u64,
    /// Most of one processor, in hundredths; `None` is no limit.
    pub cpu_percent: Option<u32>,
    /// Weight of the processors when they are contended; other groups have 100.
    pub cpu_weight: u32,
    /// Most threads of one worker.
    pub pids: u32,
    /// The whole environment. The host's own is not inherited.
    pub environment: Vec<(String, String)>,
    /// Folders that every worker of the role has.
    pub binds: Vec<Bind>,
}

impl RoleConfig {
    /// The defaults: one warm worker for scripts, and none of other roles.
    #[must_use]
    pub fn new(role: WorkerRole) -> Self {
        Self {
            role,
            min_idle: usize::from(role == WorkerRole::Js),
            memory_bytes: MEMORY_BYTES,
            cpu_seconds: CPU_SECONDS,
            cpu_percent: None,
            cpu_weight: CPU_WEIGHT,
            pids: PIDS,
            environment: Vec::new(),
            binds: Vec::new(),
        }
    }
}

/// A request for a session of the pool.
#[derive(Clone, Debug)]
pub struct WorkerLease {
    pub(super) role: WorkerRole,
    pub(super) tenant: String,
    pub(super) alone: bool,
    pub(super) binds: Vec<Bind>,
    pub(super) memory: u64,
    pub(super) lent: bool,
    pub(super) rights: Option<Bytes32>,
    pub(super) caller: Option<String>,
    /// 0 until the lease claims a worker.
    claim: Arc<AtomicU64>,
}

impl WorkerLease {
    /// A session in a worker of `role`, in which no other tenant ever was.
    #[must_use]
    pub fn new(role: WorkerRole, tenant: impl Into<String>) -> Self {
        Self {
            role,
            tenant: tenant.into(),
            alone: false,
            binds: Vec::new(),
            memory: 0,
            lent: false,
            rights: None,
            caller: None,
            claim: Arc::default(),
        }
    }

    /// The place of this lease among those that claim a worker, in the order in which they began to. A lease claims one
    /// from its first refusal with [`WorkerError::Overloaded`](crate::WorkerError::Overloaded) on, or when it gets a
    /// worker that its tenant did not have, which may have to start. `None` for any other lease, such as one that is
    /// refused for its tenant's or its caller's share. Clones of a lease have one place.
    #[must_use]
    pub fn claim(&self) -> Option<u64> {
        // The channel of the supervisor's answers orders this after what the supervisor set before an answer.
        let place = self.claim.load(Ordering::Relaxed);
        (place > 0).then_some(place)
    }

    /// Gives it this place, unless it has one.
    pub(super) fn claims(&self, place: u64) {
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        // A lease that is requested again keeps its place.
        let _ = self.claim.compare_exchange(0, place, set, get);
    }

    /// Marks a session in which other callers have the tenant's code run, as often as they like. Such sessions have
    /// workers of their own, half of those that the tenant may have, so that the tenant keeps the other half.
    #[must_use]
    pub const fn lent(mut self) -> Self {
        self.lent = true;
        self
    }

    /// The caller that a lent session runs for, until it ends or its
    /// [charge](super::Workers::charge_of_lease) does. One caller gets half of the workers for a tenant's callers.
    #[must_use]
    pub fn for_caller(mut self, caller: impl Into<String>) -> Self {
        self.caller = Some(caller.into());
        self
    }

    /// Whether other callers have the tenant's code run in it.
    #[must_use]
    pub const fn is_lent(&self) -> bool {
        self.lent
    }

    /// The session shares its worker only with sessions that have the same rights, of which this is a digest. The host
    /// believes a worker which of its sessions a message belongs to: code that takes over a worker can do whatever any
    /// session there may.
    #[must_use]
    pub const fn with_rights(mut self, digest: Bytes32) -> Self {
        self.rights = Some(digest);
        self
    }

    /// Grants the session `bytes`: its worker may hold as much for it, as far as the machine has it.
    #[must_use]
    pub const fn granted(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// The session shares its worker with no other one, not even of the same tenant.
    #[must_use]
    pub const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Adds a folder, which needs a worker started for this session.
    #[must_use]
    pub fn with(mut self, bind: Bind) -> Self {
        self.binds.push(bind);
        self.alone = true;
        self
    }
}

/// The limits of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// Wall-clock time, with waiting.
    pub wall: Duration,
    /// Processor time.
    pub cpu: Option<Duration>,
    /// GPU time. In role gpu the call counts from its start, in role js+gpu from when the worker reports that the GPU
    /// is busy. In both, time that it reports as not busy does not count. It may lie about that up to the wall-clock
    /// time.
    pub gpu: Option<Duration>,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(30),
            cpu: Some(Duration::from_secs(5)),
            gpu: Some(Duration::from_secs(10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_workers_have_three_quarters_of_the_machine() {
        let meminfo = std::fs::read_to_string("/proc/meminfo").expect("a kernel");
        let total = meminfo.lines().find(|line| line.starts_with("MemTotal:"));
        let digits: String = total.expect("a size").matches(char::is_numeric).collect();
        let bytes = digits.parse::<u64>().expect("KiB") * 1024;
        let share = WorkersConfig::this_executable().memory_bytes;
        let most = bytes / 4 * 3;
        // What is divided is not rounded everywhere alike.
        assert!(
            (most - 128..=most + 128).contains(&share),
            "{share} of {bytes}"
        );
    }
}
