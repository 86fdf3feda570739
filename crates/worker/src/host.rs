//! The host's side: who starts workers, watches them, ends them and counts.
//!
//! `watch`, `pool` and `quarantine` decide: times and events in, orders out, no clock and no process.
//! `supervisor` is the thread that carries the orders out and never waits for anything but events;
//! `spawn` is a second thread for what takes its time (starting, cleaning up), which is also the one
//! whose end no worker survives.

mod cgroup;
mod config;
mod handle;
mod pool;
mod quarantine;
mod spawn;
mod stats;
mod supervisor;
mod watch;
mod worker;

pub use config::{
    CallLimits, DelegatedCgroup, Executable, ProgramMaker, RoleConfig, WorkerLease, WorkersConfig,
};
pub use handle::{SessionNotice, WorkerAnswer, WorkerCall, WorkerRequest, WorkerSession, Workers};
pub use stats::{OverrunStats, WorkerStats};
