//! The host's side: starts workers, watches, ends and counts them.
//!
//! `watch`, `start_watch`, `pool` and `quarantine` decide: they get times and events and return orders, without a clock or
//! a process. `supervisor` is the thread that carries the orders out and waits only for events. `spawn` is a second
//! thread for slow work (starting and cleaning up), and no worker outlives it. `release` is a third one, which frees the
//! memory of killed workers.

mod abort_grace;
mod cgroup;
mod config;
mod handle;
mod idle_frames;
mod pool;
mod quarantine;
mod release;
mod request;
mod spawn;
mod start_watch;
mod stats;
mod supervisor;
mod unread;
mod watch;
mod worker;

pub use config::{
    CallLimits, DelegatedCgroup, Executable, ProgramMaker, RoleConfig, StartLimits, WorkerLease,
    WorkersConfig,
};
pub use handle::{CallerCharge, WorkerAnswer, WorkerCall, WorkerSession, Workers};
pub use request::{SessionNotice, WorkerRequest};
pub use stats::{OverrunStats, WorkerStats};
pub use supervisor::WORKER_LOSS_TARGET;
pub use unread::{DescriptorPermit, DescriptorQuota};
