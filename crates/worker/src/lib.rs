//! Worker processes: starting, confining, calling, watching and ending them.
//!
//! Code that parses hostile source, runs generated code or maps files runs in a worker: the same executable started
//! again, with one socket and nothing else. A worker that crashes, loops or turns against its host loses only its own
//! work. This crate knows no script, no shader and no repository. The role defines what a worker does, in messages
//! whose bodies this crate passes on unread.
//!
//! The host's side is [`Workers`]: a supervisor thread with its own timers, which owns every worker and answers calls
//! at their limits whatever the worker does. The worker's side is [`enter`], which `main` calls first, then
//! [`ConfinedGuest::seal`], after which only the system calls on the role's list are left.
//!
//! The example is not run with the other examples: it starts processes of its own executable.
//!
//! ```no_run
//! use alknet_worker::{
//!     CallLimits, CborBody, FrameBlob, GuestError, ToWorkerMessage, WorkerLease, WorkerReply,
//!     WorkerRequest, WorkerRole, Workers, WorkersConfig, enter, started_as_worker,
//! };
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Before anything else: a worker is this executable, started again.
//!     if started_as_worker() {
//!         return Ok(work()?);
//!     }
//!     tokio::runtime::Runtime::new()?.block_on(host())
//! }
//!
//! /// The host sends a number, and has its double from a worker.
//! async fn host() -> Result<(), Box<dyn std::error::Error>> {
//!     let workers = Workers::start(WorkersConfig::this_executable())?;
//!     let session = workers.open(WorkerLease::new(WorkerRole::Js, "tenant")).await?;
//!     let request = WorkerRequest::role(CborBody::encode(&21_u64)?.into_bytes());
//!     let answer = session.call(request, CallLimits::default(), None).await?;
//!     let WorkerReply::Ok(FrameBlob::Inline(body)) = answer.reply else {
//!         return Err("the worker did not answer with a number".into());
//!     };
//!     assert_eq!(body.read::<u64>()?, 42);
//!     workers.shutdown().await;
//!     Ok(())
//! }
//!
//! /// The worker doubles numbers. It ends with its host.
//! fn work() -> Result<(), GuestError> {
//!     let confined = enter(WorkerRole::Js)?;
//!     // Threads and devices are made here; after it, nothing new can be opened.
//!     let (guest, ()) = confined.seal(|_| Ok::<_, GuestError>(()))?;
//!     loop {
//!         let incoming = guest.next();
//!         if let (ToWorkerMessage::Run { body, .. }, Some(call)) = (incoming.message, incoming.call) {
//!             let _charged = call.on_this_thread();
//!             let double = 2 * u64::from(body.read::<u32>()?);
//!             let reply = WorkerReply::Ok(FrameBlob::Inline(CborBody::encode(&double)?));
//!             guest.finish(&call, reply, Vec::new(), 0, 0)?;
//!         }
//!     }
//! }
//! ```
//!
//! `docs/workers.md` has the tables: layers, levels, limits and what each reason of an end means.

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
    CallLimits, CallerCharge, DelegatedCgroup, DescriptorPermit, DescriptorQuota, Executable,
    OverrunStats, ProgramMaker, RoleConfig, SessionNotice, StartLimits, WORKER_LOSS_TARGET,
    WorkerAnswer, WorkerCall, WorkerLease, WorkerRequest, WorkerSession, WorkerStats, Workers,
    WorkersConfig,
};
pub use level::{ConfinementGap, ConfinementLevel, Sandbox, SandboxLayer};
pub use message::{
    CallStats, FromWorkerMessage, ToWorkerMessage, WorkerEvent, WorkerFault, WorkerLogLevel,
    WorkerReply,
};
pub use role::{Rights, WorkerRole};
pub use setup::{Bind, Namespaces};
pub use sys::give_back_memory;
