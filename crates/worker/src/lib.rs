//! Worker processes: how they are started, walled in, spoken to, watched and ended.
//!
//! Whatever parses hostile source, runs generated code or maps files runs in a worker: the same executable started
//! again, with one socket and nothing else. A worker that crashes, loops or turns against its host loses its own work
//! only. This crate knows no script, no shader and no repository; what a worker does is the role's business, in
//! messages whose bodies it carries unread.
//!
//! The host's side is [`Workers`]: a supervisor thread with its own timers, which owns every worker
//! and answers calls at their limits whatever the worker does. The worker's side is [`enter`], called
//! first thing in `main`, then [`ConfinedGuest::seal`], after which no system call is left that is not on
//! the role's list.
//!
//! ```no_run
//! # async fn host() -> Result<(), Box<dyn std::error::Error>> {
//! use alknet_worker::{CallLimits, WorkersConfig, WorkerLease, WorkerRequest, WorkerRole, Workers};
//!
//! let workers = Workers::start(WorkersConfig::this_executable())?;
//! let mut session = workers.open(WorkerLease::new(WorkerRole::Js, "tenant")).await?;
//! let call = session.call(WorkerRequest::role(b"\xf6".to_vec()), CallLimits::default(), None);
//! let answer = call.await?;
//! # let _ = answer;
//! # Ok(())
//! # }
//! ```
//!
//! `docs/workers.md` has the tables: walls, levels, limits and what each reason of an end means.

mod confine;
mod error;
mod frame;
mod guest;
mod host;
mod level;
pub mod limits;
mod message;
mod role;
mod setup;
mod sys;

pub use error::{
    GuestError, LimitCause, WorkerCallError, WorkerEndReason, WorkerError, WorkerFrameError,
    WorkerLoss,
};
pub use frame::{
    Bytes32, CborBody, Decoder, FrameBlob, RevocableMemfd, SealedMapping, SealedMemfd, encode,
};
pub use guest::{
    ConfinedGuest, Guest, GuestCall, GuestInput, ThreadCallGuard, enter, started_as_worker,
};
pub use host::{
    CallLimits, DelegatedCgroup, Executable, OverrunStats, ProgramMaker, RoleConfig, SessionNotice,
    WorkerAnswer, WorkerCall, WorkerLease, WorkerRequest, WorkerSession, WorkerStats, Workers,
    WorkersConfig,
};
pub use level::{ConfinementLevel, Gap, Sandbox, Wall};
pub use message::{
    CallStats, FromWorkerMessage, ToWorkerMessage, WorkerEvent, WorkerFault, WorkerLogLevel,
    WorkerReply,
};
pub use role::{Rights, WorkerRole};
pub use setup::{Bind, Namespaces};
pub use sys::give_back_memory;
