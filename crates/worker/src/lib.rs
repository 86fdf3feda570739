//! Worker processes: how they are started, walled in, spoken to, watched and ended.
//!
//! Whatever parses hostile source, runs generated code or maps files runs in a worker: the same
//! executable started again, with one socket and nothing else. A worker that crashes, loops or turns
//! against its host loses its own work and nobody else's. This crate knows no script, no shader and
//! no repository; what a worker does is the role's business, in messages whose bodies it carries
//! unread.
//!
//! The host's side is [`Workers`]: a supervisor thread with its own timers, which owns every worker
//! and answers calls at their limits whatever the worker does. The worker's side is [`enter`], called
//! first thing in `main`, then [`Entered::seal`], after which no system call is left that is not on
//! the role's list.
//!
//! ```no_run
//! # async fn host() -> Result<(), Box<dyn std::error::Error>> {
//! use alknet_worker::{CallLimits, Config, Lease, Request, Role, Workers};
//!
//! let workers = Workers::start(Config::this_executable())?;
//! let mut session = workers.open(Lease::new(Role::Js, "tenant")).await?;
//! let call = session.call(Request::role(b"\xf6".to_vec()), CallLimits::default(), None);
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

pub use error::{CallError, Cause, FrameError, GuestError, Loss, Reason, WorkerError};
pub use frame::{Blob, Body, Decoder, Hash, Mapped, Revocable, Sealed, encode};
pub use guest::{Call as GuestCall, Entered, Guest, Incoming, OnThread, enter, started_as_worker};
pub use host::{
    Answer, Call, CallLimits, Config, Deaths, Delegated, Executable, Lease, Make, Request,
    RoleConfig, Session, Stats, Told, Workers,
};
pub use level::{Gap, Level, Sandbox, Wall};
pub use message::{CallStats, Event, Fault, FromWorker, LogLevel, Reply, ToWorker};
pub use role::{Rights, Role};
pub use setup::{Bind, Namespaces};
pub use sys::give_back_memory;
