//! What stands on the other side of a script: the node, reached over the worker's socket, or a test.
//!
//! The host enforces every right. The runtime asks and obeys its own limits so that an honest
//! worker answers with a clear code; it is not what keeps a hostile one in.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::future::Future;

use crate::error::OpError;

/// A boxed future, as the object-safe trait returns it.
pub type HostFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;
/// The items of a subscription, in order; ends after the first error.
pub type Items = Pin<Box<dyn Stream<Item = Result<OpReply, OpError>> + Send + 'static>>;

/// What an operation answers.
#[derive(Clone, Debug, PartialEq)]
pub enum OpReply {
    /// A JSON value.
    Json(Value),
    /// Bytes that stay where they are: the script sees them as an immutable `ArrayBuffer`.
    Bytes(Bytes),
    /// A value with bytes: each `{"$bin": [offset, length]}` in it becomes an immutable
    /// `ArrayBuffer` over that part of them.
    Mixed(Value, Bytes),
}

/// Options of a call, named as in the call protocol.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptCallOptions {
    /// The peer that shall answer; the node itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// How long the host waits, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Makes a repeated call the same call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// What an operation does to the world.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ScriptOperationKind {
    /// Changes nothing.
    Query,
    /// Changes something.
    Mutation,
    /// Answers with items until it ends.
    Subscription,
}

/// One operation that the session's environment contains.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EnvOperation {
    /// Its name, `namespace/operation`.
    pub path: String,
    /// What it does.
    pub kind: ScriptOperationKind,
    /// JSON Schema of its input.
    pub input: Value,
    /// JSON Schema of its output, or of one item.
    pub output: Value,
    /// For people.
    #[serde(default)]
    pub description: String,
}

/// An operation that a script offers, in its session only.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptRegistration {
    /// `js/<name>` is what it is called by.
    pub name: String,
    /// JSON Schema of its input.
    #[serde(default = "anything")]
    pub input: Value,
    /// JSON Schema of its output, or of one item.
    #[serde(default = "anything")]
    pub output: Value,
    /// Codes it may fail with, each with the schema of its details.
    #[serde(default)]
    pub errors: serde_json::Map<String, Value>,
    /// Operations it calls.
    #[serde(default)]
    pub uses: Vec<String>,
    /// What it does.
    pub kind: ScriptOperationKind,
    /// For people.
    #[serde(default)]
    pub description: String,
}

fn anything() -> Value {
    Value::Bool(true)
}

/// Weight of a line of `console`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleLevel {
    /// `console.debug`.
    Debug,
    /// `console.log`, `console.info`.
    Info,
    /// `console.warn`.
    Warn,
    /// `console.error`.
    Error,
}

/// The other side. Nothing here blocks; what takes time returns a future, and dropping the future
/// aborts what it stands for.
pub trait IsolateHost: Send + Sync + 'static {
    /// Calls an operation of the session's environment. One that is not in it answers exactly as
    /// one that does not exist.
    fn call(
        &self,
        path: &str,
        input: Value,
        options: ScriptCallOptions,
    ) -> HostFuture<Result<OpReply, OpError>>;

    /// The same with bytes beside the input, which `{"$bin": [offset, length]}` in it point into.
    /// With `map`, the answer may come as a file's bytes where they lie.
    fn call_with_bytes(
        &self,
        path: &str,
        input: Value,
        bytes: Bytes,
        map: bool,
    ) -> HostFuture<Result<OpReply, OpError>> {
        let _ = (path, input, bytes, map);
        let error = OpError::new("NOT_FOUND", "bytes go nowhere from here");
        Box::pin(std::future::ready(Err(error)))
    }

    /// Opens a subscription. The isolate holds at most [`crate::limits::UNACKNOWLEDGED`] items
    /// that the script did not take, and polls for no more until it takes one.
    fn subscribe(&self, path: &str, input: Value, options: ScriptCallOptions) -> Items;

    /// What the session may call whose path begins with `prefix`.
    fn list(&self, prefix: &str) -> Vec<EnvOperation>;

    /// Offers an operation. `script` identifies specification and source (see
    /// [`crate::ops::script_id`]).
    fn register(
        &self,
        registration: ScriptRegistration,
        script: [u8; 32],
    ) -> HostFuture<Result<(), OpError>>;

    /// One item of a subscription that a script serves. The future resolves when the next one may
    /// follow.
    fn emit(&self, entry: u64, item: Value) -> HostFuture<Result<(), OpError>>;

    /// A line of `console`.
    fn log(&self, level: ConsoleLevel, text: &str);

    /// Whether `value` fits `schema`; the text says where it does not.
    ///
    /// # Errors
    /// The first place that does not fit.
    fn check(&self, schema: &Value, value: &Value) -> Result<(), String>;

    /// Waits for a timer of a session that follows real time.
    fn sleep(&self, time: Duration) -> HostFuture<()> {
        Box::pin(tokio::time::sleep(time))
    }
}
