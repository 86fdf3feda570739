//! What a host says about its workers.

use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use crate::limits::{
    ABORT_GRACE, HEARTBEAT_EVERY, HEARTBEAT_SILENCE_MAX, MEMORY_PERCENT, MEMORY_REST,
    TENANT_WORKERS_PART, WORKERS_MAX,
};
use crate::{Bind, ConfinementLevel, SealedMemfd, WorkerRole};

/// Heap 64 MiB, external bytes 256 MiB, and 64 MiB for the rest.
const MEMORY_BYTES: u64 = 384 << 20;
/// A tenth of the default weight of a cgroup, and so of the node's.
const CPU_WEIGHT: u32 = 10;
/// Threads of a worker.
const PIDS: u32 = 64;
/// Processor time of one worker in its whole life: many sessions at their hard cap.
const CPU_SECONDS: u64 = 3600;

/// Everything about workers.
#[derive(Debug)]
pub struct WorkersConfig {
    /// What is executed.
    pub executable: Executable,
    /// Roles that execute something else.
    pub programs: Vec<(WorkerRole, Executable)>,
    /// The roles that may be asked for.
    pub roles: Vec<RoleConfig>,
    /// A cgroup of the host's own, below which workers get theirs.
    pub cgroup: Option<DelegatedCgroup>,
    /// A worker whose walls are lower gets no work.
    pub minimum: ConfinementLevel,
    /// Workers at once, of all roles. One tenant gets a quarter of them.
    pub workers_max: usize,
    /// Memory of all workers together, bytes, and so the most of one: a share of the machine's unless said.
    pub memory_bytes: u64,
    /// How often a worker shows that a running call is alive.
    pub heartbeat: Duration,
    /// How long it may fail to.
    pub silence: Duration,
    /// How long it has to answer an abort before it is killed.
    pub abort_grace: Duration,
}

impl WorkersConfig {
    /// Workers of every role from the running executable itself; one of role js is kept warm once
    /// there was one.
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
            heartbeat: HEARTBEAT_EVERY,
            silence: HEARTBEAT_SILENCE_MAX,
            abort_grace: ABORT_GRACE,
        }
    }

    pub(super) fn role(&self, role: WorkerRole) -> Option<&RoleConfig> {
        self.roles.iter().find(|config| config.role == role)
    }

    /// Workers of one tenant at once, of all roles together.
    pub(super) fn workers_of_tenant_max(&self) -> usize {
        (self.workers_max / TENANT_WORKERS_PART).max(1)
    }

    /// Of these, those that others may take by calling what is the tenant's.
    pub(super) fn workers_lent_max(&self) -> usize {
        self.workers_of_tenant_max() / 2
    }

    /// What a worker of `role` may hold whose sessions were granted so many bytes, if any was.
    pub(super) fn memory_of(&self, role: WorkerRole, granted: u64) -> u64 {
        let usual = self.role(role).map_or(u64::MAX, |role| role.memory_bytes);
        let own = match granted {
            0 => usual,
            granted => granted.saturating_add(MEMORY_REST),
        };
        own.min(self.memory_bytes)
    }
}

/// What the machine has for workers. Where the kernel does not say, they are bounded by their roles and by
/// what they are granted.
fn machine_share() -> u64 {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = told.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| (kib << 10) / 100 * MEMORY_PERCENT)
}

/// Where the worker's program comes from.
#[derive(Debug)]
pub enum Executable {
    /// A copy of the running executable in sealed memory: for where the file can be replaced while
    /// the node runs. Takes its size in memory.
    Copied,
    /// This file.
    File(PathBuf),
    /// What this makes when the first worker is wanted. It is forgotten when the last has ended, so that its memory is
    /// held only while a worker runs it, and then made again.
    Made(ProgramMaker),
    /// This memory.
    Memory(SealedMemfd),
    /// The running executable, by `/proc/self/exe`.
    This,
}

/// Makes a program in sealed memory, on the thread that starts workers: [`SealedMemfd::program`] does.
pub struct ProgramMaker(Box<dyn FnMut() -> io::Result<SealedMemfd> + Send>);

impl ProgramMaker {
    /// Calls `make` each time the program is wanted.
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

/// A cgroup (version 2) that the host may make others in. The host's own process must be in a
/// different child of its parent, since a group with limits holds no process directly.
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
    /// Workers without a tenant that are kept ready, from the first session of the role on: a host
    /// that never opens one holds none.
    pub min_idle: usize,
    /// Memory of one worker whose sessions were granted none of their own, bytes.
    pub memory_bytes: u64,
    /// Processor time of one worker in its whole life, seconds.
    pub cpu_seconds: u64,
    /// At most so much of one processor, in hundredths; `None` is no limit.
    pub cpu_percent: Option<u32>,
    /// Share of the processors when they are contended; 100 is what others have.
    pub cpu_weight: u32,
    /// Threads of one worker.
    pub pids: u32,
    /// The whole environment; nothing of the host's goes on.
    pub environment: Vec<(String, String)>,
    /// Folders that every worker of the role sees.
    pub binds: Vec<Bind>,
}

impl RoleConfig {
    /// The defaults: one warm worker for scripts, none of others.
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

/// What is asked of the pool.
#[derive(Clone, Debug)]
pub struct WorkerLease {
    pub(super) role: WorkerRole,
    pub(super) tenant: String,
    pub(super) alone: bool,
    pub(super) binds: Vec<Bind>,
    pub(super) memory: u64,
    pub(super) lent: bool,
}

impl WorkerLease {
    /// A session in a worker of `role` that no other tenant is or ever was in.
    #[must_use]
    pub fn new(role: WorkerRole, tenant: impl Into<String>) -> Self {
        Self {
            role,
            tenant: tenant.into(),
            alone: false,
            binds: Vec::new(),
            memory: 0,
            lent: false,
        }
    }

    /// Others than the tenant have its code run, as often as they like: such sessions have workers of their own, half
    /// of those that the tenant may have, so that the tenant keeps the other half.
    #[must_use]
    pub const fn lent(mut self) -> Self {
        self.lent = true;
        self
    }

    /// The session was granted so many bytes: its worker may hold as much for it, as far as the machine has
    /// it.
    #[must_use]
    pub const fn granted(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Shares its worker with no session, not even of the same tenant.
    #[must_use]
    pub const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Sees this folder, in a worker started for this session.
    #[must_use]
    pub fn with(mut self, bind: Bind) -> Self {
        self.binds.push(bind);
        self.alone = true;
        self
    }
}

/// What one call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// By the clock on the wall, waiting included.
    pub wall: Duration,
    /// Of processor time.
    pub cpu: Option<Duration>,
    /// Of time on the GPU: in role gpu the call counts from its start, in role js+gpu from when the worker
    /// says that it is busy; in both, what it says that it is not busy does not count. It may lie about
    /// that up to the wall time.
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
        let told = std::fs::read_to_string("/proc/meminfo").expect("a kernel");
        let total = told.lines().find(|line| line.starts_with("MemTotal:"));
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
