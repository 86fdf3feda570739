//! Scripts: QuickJS isolates with every limit, and the bridge between a script and its host.
//!
//! This is the part that runs inside a confined worker process. It knows no process, no socket and
//! no registry: what a script asks for goes through the [`IsolateHost`] trait, and what its owner decides
//! comes in as a [`IsolateSpec`].
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

pub use clock::SessionTimeSource;
pub use declarations::declarations;
pub use error::{ModulePosition, OpError, RuntimeCode, ScriptFailure};
pub use host::{
    BoxFuture, ConsoleLevel, EnvOperation, IsolateHost, Items, OpReply, ScriptCallOptions,
    ScriptOperationKind, ScriptRegistration,
};
pub use isolate::{
    ENGINE, EntryOutcome, EntryStats, GlobalGrants, InterruptBudget, Isolate, IsolateHandle,
    IsolateSpec, IsolateWork, SessionMode,
};
pub use json::weight;
pub use limits::IsolateLimits;
pub use modules::{Language, ModuleSet};
pub use ops::{
    CallRecorder, OperationSchemas, REDACTED, RecordedBytes, RecordedCall, RecordedCalls,
    RecorderCapacity, RecorderTicket, Replay, SecretMarks, canonical, redact, tells,
};
pub use typescript::{EvalSite, Import, ImportForm, SourceScan, look};
