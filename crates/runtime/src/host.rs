//! The other side of a script: the node behind the worker's socket, or a test.
//!
//! The host enforces all rights. The runtime obeys its own limits so that an honest worker answers
//! with a clear code; they do not confine a hostile worker.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::future::Future;

use crate::error::OpError;

/// A boxed future, which an object-safe trait needs.
pub type HostFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;
/// The items of a subscription, in order; the stream ends after the first error.
pub type Items = Pin<Box<dyn Stream<Item = Result<OpReply, OpError>> + Send + 'static>>;

/// The answer of an operation.
#[derive(Debug)]
pub enum OpReply {
    /// A JSON value.
    Json(Value),
    /// Bytes that are not copied: the script sees them as an immutable `ArrayBuffer`.
    Bytes(Bytes),
    /// A value with bytes: each `{"$bin": [offset, length]}` in it becomes an immutable
    /// `ArrayBuffer` of that part.
    Mixed(Value, Bytes),
    /// An answer that is read when the script takes it.
    Deferred(Box<dyn DeferredReply>),
}

/// An answer in an encoded form. Many answers may wait for a script that computes, and a tree of one takes many times
/// the memory of its encoded form, outside the heap: so the script's own value is made of the encoded form directly.
pub trait DeferredReply: fmt::Debug + Send {
    /// Writes the value into `sink`, and before it the bytes that `{"$bin": [offset, length]}` in it refers to.
    ///
    /// # Errors
    /// The operation failed, its answer is not one that a script can take, or the sink has stopped.
    fn write(self: Box<Self>, sink: &mut dyn ValueSink) -> Result<(), OpError>;
}

/// The sink takes no more: the value does not fit, or its parts make no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value does not fit into what is left of the script's heap")]
pub struct SinkStopped;

/// Takes a JSON value part by part, in the order of its text.
///
/// Each method fails with [`SinkStopped`] once the sink takes no more.
pub trait ValueSink {
    /// The bytes that `{"$bin": [offset, length]}` in the value refers to. They come before the value.
    fn bytes(&mut self, bytes: Bytes);
    /// `null`.
    fn null(&mut self) -> Result<(), SinkStopped>;
    /// `true` or `false`.
    fn boolean(&mut self, value: bool) -> Result<(), SinkStopped>;
    /// A number as scripts have them.
    fn number(&mut self, value: f64) -> Result<(), SinkStopped>;
    /// A text.
    fn text(&mut self, value: &str) -> Result<(), SinkStopped>;
    /// A list: its items follow, then [`end`](Self::end).
    fn begin_list(&mut self) -> Result<(), SinkStopped>;
    /// An object: a [`name`](Self::name) and a value for each member follow, then [`end`](Self::end).
    fn begin_object(&mut self) -> Result<(), SinkStopped>;
    /// The name of the next member.
    fn name(&mut self, name: &str) -> Result<(), SinkStopped>;
    /// The end of the list or object that began last.
    fn end(&mut self) -> Result<(), SinkStopped>;
}

/// The options of a call, with the names of the call protocol.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptCallOptions {
    /// The peer that must answer; without it, the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// How long the host waits, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The key by which a repeated call counts as the same call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// The kind of an operation.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ScriptOperationKind {
    /// It changes nothing.
    Query,
    /// It changes something.
    Mutation,
    /// It answers with items until it ends.
    Subscription,
}

/// An operation in the session's environment.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EnvOperation {
    /// The name, `namespace/operation`.
    pub path: String,
    /// The kind of the operation.
    pub kind: ScriptOperationKind,
    /// The JSON Schema of the input.
    pub input: Value,
    /// The JSON Schema of the output, or of one item.
    pub output: Value,
    /// A description for people.
    #[serde(default)]
    pub description: String,
}

/// An operation that a script offers in its own session.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptRegistration {
    /// The name; callers use `js/<name>`.
    pub name: String,
    /// The JSON Schema of the input.
    #[serde(default = "anything")]
    pub input: Value,
    /// The JSON Schema of the output, or of one item.
    #[serde(default = "anything")]
    pub output: Value,
    /// The codes that it may fail with, each with the schema of its details.
    #[serde(default)]
    pub errors: serde_json::Map<String, Value>,
    /// The operations that it calls.
    #[serde(default)]
    pub uses: Vec<String>,
    /// The kind of the operation.
    pub kind: ScriptOperationKind,
    /// A description for people.
    #[serde(default)]
    pub description: String,
}

fn anything() -> Value {
    Value::Bool(true)
}

/// The level of a line of `console`.
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

/// The other side of an isolate. No method blocks: work that takes time returns a future, and
/// dropping the future aborts the work.
pub trait IsolateHost: Send + Sync + 'static {
    /// Calls an operation of the session's environment. An operation outside it fails like one that
    /// does not exist.
    fn call(
        &self,
        path: &str,
        input: Value,
        options: ScriptCallOptions,
    ) -> HostFuture<Result<OpReply, OpError>>;

    /// Like `call`, with bytes beside the input, which `{"$bin": [offset, length]}` in it refers to.
    /// With `map`, the answer may be a file's bytes, which are not copied.
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

    /// Opens a subscription. The isolate buffers at most [`crate::limits::UNACKNOWLEDGED`] items
    /// that the script did not take, and polls for no more until it takes one.
    fn subscribe(&self, path: &str, input: Value, options: ScriptCallOptions) -> Items;

    /// The operations that the session may call and whose path begins with `prefix`.
    fn list(&self, prefix: &str) -> Vec<EnvOperation>;

    /// Offers an operation. `script` identifies the specification and the source (see
    /// [`crate::ops::script_id`]).
    fn register(
        &self,
        registration: ScriptRegistration,
        script: [u8; 32],
    ) -> HostFuture<Result<(), OpError>>;

    /// Sends one item of a subscription that a script serves. The future resolves when the next one
    /// may follow.
    fn emit(&self, entry: u64, item: Value) -> HostFuture<Result<(), OpError>>;

    /// Writes a line of `console`.
    fn log(&self, level: ConsoleLevel, text: &str);

    /// Checks whether `value` matches `schema`.
    ///
    /// # Errors
    /// The first location that does not match.
    fn check(&self, schema: &Value, value: &Value) -> Result<(), String>;

    /// Waits for a timer of a session with real time.
    fn sleep(&self, time: Duration) -> HostFuture<()> {
        Box::pin(tokio::time::sleep(time))
    }
}
