//! Script sessions: isolates in confined workers on one side, the node's operations on the other.
//!
//! [`guest`] is what a worker of role `js` runs: it turns frames into calls of an isolate and an
//! isolate's wishes into frames. [`ScriptSessions`] is the node's side: it opens sessions in workers,
//! enforces what each may call, follows what they write, and ends them. The worker is taken to be
//! hostile: whatever it says is checked here, and nothing that it keeps to itself is relied upon.
//!
//! `docs/sessions.md` has the tables.

pub mod guest;
mod host;
pub mod limits;
mod ops;
mod wire;

pub use host::{
    Console, PeerSelector, ReplayOutcome, ScriptService, ScriptSession, ScriptSessions,
    SessionConsoleLine, SessionEndReason, SessionGrant, SessionGrants, SessionInfo, SessionLimits,
    SessionOutput, SessionSpec, SessionState, SessionsConfig, TensorFiles, YieldedItems,
    declared_errors, to_call_error,
};
pub use ops::operations;
