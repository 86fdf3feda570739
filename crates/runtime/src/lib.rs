//! Scripts: QuickJS isolates with every limit, and the bridge between a script and its host.
//!
//! This is the part that runs inside a confined worker process. It knows no process, no socket and
//! no registry: what a script asks for goes through the [`Host`] trait, and what its owner decides
//! comes in as a [`Spec`].
//!
//! The way through the folders: `isolate` makes an engine, runs it in turns and charges it;
//! `globals` is what a script finds; `ops` is how it reaches the host; `json` is what crosses;
//! `modules` and `typescript` turn the session's sources into code; `core` is what scripts import.

mod clock;
mod declarations;
mod error;
mod globals;
mod host;
mod isolate;
mod json;
pub mod limits;
mod math;
mod modules;
pub mod ops;
mod typescript;

pub use clock::Clock;
pub use declarations::declarations;
pub use error::{Code, Failure, OpError, Place};
pub use host::{BoxFuture, CallOptions, Host, Items, Kind, Level, Operation, Registration, Reply};
pub use isolate::{ENGINE, Gauge, Grants, Isolate, Mode, Outcome, Remote, Spec, Stats, Work};
pub use json::weight;
pub use limits::Limits;
pub use modules::{Language, ModuleSet};
pub use ops::{
    Calls, Marks, Noted, REDACTED, Record, Recorded, RecordedBytes, Replay, Room, Schemas,
    canonical, redact, tells,
};
pub use typescript::{Import, Looked, Maker, Via, look};
