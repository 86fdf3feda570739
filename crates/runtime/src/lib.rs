//! Scripts: QuickJS isolates with limits for every resource, and the bridge between a script and its host.
//!
//! This crate runs inside a confined worker process. It has no access to processes, sockets or the registry: a
//! script's requests go through the [`IsolateHost`] trait, and the decisions of its owner are an [`IsolateSpec`].
//!
//! The modules: `isolate` makes an engine, runs it in turns and charges it; `globals` has the objects that a script
//! finds; `ops` is its way to the host; `json` converts values; `modules` and `typescript` turn the session's sources
//! into code; `core` has the modules that scripts import.
//!
//! ```
//! use std::future::ready;
//! use std::sync::Arc;
//!
//! use alknet_runtime::{
//!     HostFuture, ConsoleLevel, EnvOperation, Isolate, IsolateHost, IsolateSpec, IsolateWork, Items,
//!     ModuleSet, OpError, OpReply, ScriptCallOptions, ScriptRegistration,
//! };
//! use futures_util::stream;
//! use serde_json::{Value, json};
//!
//! /// The host has one operation, and no script may register another one.
//! struct Host;
//!
//! fn not_found() -> OpError {
//!     OpError::new("NOT_FOUND", "no such operation")
//! }
//!
//! impl IsolateHost for Host {
//!     fn call(
//!         &self,
//!         path: &str,
//!         input: Value,
//!         _: ScriptCallOptions,
//!     ) -> HostFuture<Result<OpReply, OpError>> {
//!         let answer = match (path, input["n"].as_i64()) {
//!             ("demo/double", Some(n)) => Ok(OpReply::Json(json!(n.saturating_mul(2)))),
//!             _ => Err(not_found()),
//!         };
//!         Box::pin(ready(answer))
//!     }
//!
//!     fn subscribe(&self, _: &str, _: Value, _: ScriptCallOptions) -> Items {
//!         Box::pin(stream::iter([Err(not_found())]))
//!     }
//!
//!     fn list(&self, _: &str) -> Vec<EnvOperation> {
//!         Vec::new()
//!     }
//!
//!     fn register(&self, _: ScriptRegistration, _: [u8; 32]) -> HostFuture<Result<(), OpError>> {
//!         Box::pin(ready(Err(OpError::new("FORBIDDEN", "nothing is registered here"))))
//!     }
//!
//!     fn emit(&self, _: u64, _: Value) -> HostFuture<Result<(), OpError>> {
//!         Box::pin(ready(Ok(())))
//!     }
//!
//!     fn log(&self, level: ConsoleLevel, text: &str) {
//!         println!("{level:?}: {text}");
//!     }
//!
//!     fn check(&self, _: &Value, _: &Value) -> Result<(), String> {
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut modules = ModuleSet::new();
//!     modules.insert(
//!         "./main.ts",
//!         "const n: number = 21; export default await ops.call('demo/double', { n });",
//!     )?;
//!     let mut isolate = Isolate::open(IsolateSpec::new(modules), Arc::new(Host))?;
//!     let work = IsolateWork::Module {
//!         module: "./main.ts".to_owned(),
//!     };
//!     let runtime = tokio::runtime::Builder::new_current_thread()
//!         .enable_time()
//!         .build()?;
//!     let outcome = runtime.block_on(isolate.run(work));
//!     assert_eq!(outcome.result?, json!(42));
//!     Ok(())
//! }
//! ```

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
    ConsoleLevel, DeferredReply, EnvOperation, HostFuture, IsolateHost, Items, OpReply,
    ScriptCallOptions, ScriptOperationKind, ScriptRegistration, SinkStopped, ValueSink,
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
pub use typescript::{EvalSite, Import, ImportForm, SourceScan, scan_source};
