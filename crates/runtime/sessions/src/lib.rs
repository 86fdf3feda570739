//! Script sessions: isolates in confined workers, and the node's operations for them.
//!
//! [`guest`] is the code of a worker of the role `js`: it turns frames into calls of an isolate, and the isolate's
//! requests into frames. [`ScriptSessions`] is the node's side: it opens sessions in workers, enforces what each may
//! call, reads their output, and ends them. The node treats the worker as hostile: it checks all messages of the
//! worker, and relies on nothing that it cannot check.
//!
//! `docs/sessions.md` has the tables.
//!
//! The example is a program that is both a node and its workers. It is not run with the other examples, because it
//! starts processes of its own executable.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use std::sync::Arc;
//!
//! use alknet_call::{ALPN, CallClient, CallHandler, Dispatcher, Registry};
//! use alknet_core::{AuthContext, Identity, IdentityKind, ProtocolHandler, memory_pair};
//! use alknet_sessions::{ScriptSessions, SessionsConfig, guest, operations};
//! use alknet_worker::{WorkerRole, Workers, WorkersConfig, started_as_worker};
//! use serde_json::json;
//!
//! fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
//!     // Before anything else: a worker is this executable, started again.
//!     if started_as_worker() {
//!         return Ok(guest::run(WorkerRole::Js));
//!     }
//!     tokio::runtime::Runtime::new()?.block_on(node())?;
//!     Ok(ExitCode::SUCCESS)
//! }
//!
//! /// A node with the operations of sessions, and a caller who may run scripts.
//! async fn node() -> Result<(), Box<dyn std::error::Error>> {
//!     let workers = Workers::start(WorkersConfig::this_executable())?;
//!     let sessions = ScriptSessions::new(workers, SessionsConfig::default());
//!     let mut registry = Registry::builder();
//!     // Scripts reach these operations, with the scopes of the caller who runs them.
//!     for operation in operations(&sessions, ["runtime/*"]) {
//!         registry.add(operation);
//!     }
//!     let dispatcher = Arc::new(Dispatcher::new(registry.build()?));
//!     let handler = Arc::new(CallHandler::new(dispatcher));
//!
//!     let caller = Identity {
//!         id: "ada".parse()?,
//!         kind: IdentityKind::Peer,
//!         scopes: ["runtime:debug"].iter().collect(),
//!         resources: Default::default(),
//!         generation: 0,
//!     };
//!     let (dialled, accepted) = memory_pair(ALPN);
//!     let auth = AuthContext {
//!         identity: Some(Arc::new(caller)),
//!         key: None,
//!         alpn: ALPN.into(),
//!         sni: None,
//!         remote_addr: None,
//!         carriage: accepted.carriage(),
//!         early_data: false,
//!     };
//!     tokio::spawn(handler.handle(accepted, auth));
//!
//!     let connection = CallClient::without_operations().attach(dialled, None);
//!     let script = json!({ "source": "export default [1, 2, 3].map((n) => 2 * n)" });
//!     let answer = connection.call("runtime/eval", &script).await?;
//!     assert_eq!(answer.value()["value"], json!([2, 4, 6]));
//!     sessions.workers().shutdown().await;
//!     Ok(())
//! }
//! ```

pub mod guest;
mod host;
pub mod limits;
mod ops;
mod wire;

pub use host::{
    CONSOLE_TARGET, Console, PeerSelector, ReplayOutcome, SESSION_END_TARGET, ScriptService,
    ScriptSession, ScriptSessions, SessionConsoleLine, SessionEndReason, SessionGrant,
    SessionGrants, SessionInfo, SessionLimits, SessionOutput, SessionSpec, SessionState,
    SessionsConfig, TensorFiles, YieldedItems, declared_errors, to_call_error,
};
pub use ops::operations;
