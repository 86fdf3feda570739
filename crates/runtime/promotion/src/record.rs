//! Fixtures made of real calls.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_runtime::{
    BoxFuture, CallOptions, Host, Items, Level, OpError, Operation, Recorded, RecordedBytes,
    Registration, Reply,
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};

use crate::limits::{RECORDED_BYTES_MAX, RECORDED_MAX};
use crate::schema;

/// A host that writes down what is called through it, without secrets: what the schema of the called
/// operation marks by `"x-secret": true` is redacted before it is kept. Calls with bytes, or
/// answered with them, are not kept, for no JSON says them.
pub struct Recorder {
    host: Arc<dyn Host>,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    calls: Vec<Recorded>,
    bytes: usize,
    left_out: usize,
}

impl Kept {
    fn keep(&mut self, call: Recorded) {
        let bytes = call.bytes.as_ref().map_or(0, |it| it.0.len());
        if self.calls.len() < RECORDED_MAX && self.bytes + bytes <= RECORDED_BYTES_MAX {
            self.bytes += bytes;
            self.calls.push(call);
        } else {
            self.left_out += 1;
        }
    }
}

impl Recorder {
    /// In front of `host`.
    #[must_use]
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self {
            host,
            kept: Arc::default(),
        }
    }

    /// What was called so far, in the order of the answers: `calls` of a test case.
    #[must_use]
    pub fn calls(&self) -> Vec<Recorded> {
        lock(&self.kept).calls.clone()
    }

    /// How many calls were not kept: those that sent bytes, and those beyond [`RECORDED_MAX`] or
    /// [`RECORDED_BYTES_MAX`].
    #[must_use]
    pub fn left_out(&self) -> usize {
        lock(&self.kept).left_out
    }

    /// What the called operation says about its input and output; `false` marks nothing.
    fn schemas(&self, path: &str) -> (Value, Value) {
        let mut listed = self.host.list(path).into_iter();
        let found = listed.find(|it| it.path == path);
        found.map_or((Value::Bool(false), Value::Bool(false)), |it| {
            (it.input, it.output)
        })
    }
}

impl Host for Recorder {
    fn call(
        &self,
        path: &str,
        mut input: Value,
        options: CallOptions,
    ) -> BoxFuture<Result<Reply, OpError>> {
        let (of_input, of_output) = self.schemas(path);
        let answer = self.host.call(path, input.clone(), options);
        schema::redact(&of_input, &mut input);
        let (path, kept) = (path.to_owned(), Arc::clone(&self.kept));
        Box::pin(answer.map(move |answer| {
            let mut call = Recorded {
                path,
                input,
                output: None,
                bytes: None,
                error: None,
            };
            match &answer {
                Ok(reply) => match said(reply, &of_output) {
                    Some((output, bytes)) => (call.output, call.bytes) = (Some(output), bytes),
                    None => {
                        lock(&kept).left_out += 1;
                        return answer;
                    }
                },
                Err(error) => call.error = Some(error.clone()),
            }
            lock(&kept).keep(call);
            answer
        }))
    }

    fn call_with_bytes(
        &self,
        path: &str,
        input: Value,
        bytes: Bytes,
        map: bool,
    ) -> BoxFuture<Result<Reply, OpError>> {
        lock(&self.kept).left_out += 1;
        self.host.call_with_bytes(path, input, bytes, map)
    }

    /// The record has the items as one array, once the subscription ends or is left.
    fn subscribe(&self, path: &str, mut input: Value, options: CallOptions) -> Items {
        let (of_input, of_output) = self.schemas(path);
        let items = self.host.subscribe(path, input.clone(), options);
        schema::redact(&of_input, &mut input);
        let mut written = Written {
            call: Recorded {
                path: path.to_owned(),
                input,
                output: None,
                bytes: None,
                error: None,
            },
            items: Vec::new(),
            kept: Arc::clone(&self.kept),
        };
        Box::pin(items.map(move |item| {
            match &item {
                Ok(Reply::Json(item)) if written.items.len() < RECORDED_MAX => {
                    let mut item = item.clone();
                    schema::redact(&of_output, &mut item);
                    written.items.push(item);
                }
                Ok(_) => {}
                Err(error) => written.call.error = Some(error.clone()),
            }
            item
        }))
    }

    fn list(&self, prefix: &str) -> Vec<Operation> {
        self.host.list(prefix)
    }

    fn register(
        &self,
        registration: Registration,
        script: [u8; 32],
    ) -> BoxFuture<Result<(), OpError>> {
        self.host.register(registration, script)
    }

    fn emit(&self, entry: u64, item: Value) -> BoxFuture<Result<(), OpError>> {
        self.host.emit(entry, item)
    }

    fn log(&self, level: Level, text: &str) {
        self.host.log(level, text);
    }

    fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        self.host.check(schema, value)
    }

    fn sleep(&self, time: std::time::Duration) -> BoxFuture<()> {
        self.host.sleep(time)
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

/// The items of a subscription, kept when it is over.
struct Written {
    call: Recorded,
    items: Vec<Value>,
    kept: Arc<Mutex<Kept>>,
}

impl Drop for Written {
    fn drop(&mut self) {
        let mut call = Recorded {
            output: Some(Value::Array(std::mem::take(&mut self.items))),
            ..self.call.clone()
        };
        if call.error.is_some() {
            call.output = None;
        }
        lock(&self.kept).keep(call);
    }
}

/// What an answer said, without its secrets; `None` where it points to bytes that it has not.
fn said(reply: &Reply, schema: &Value) -> Option<(Value, Option<RecordedBytes>)> {
    let (mut output, bytes) = match reply {
        Reply::Json(output) => (output.clone(), None),
        Reply::Bytes(bytes) => (json!({ "$bin": [0, bytes.len()] }), Some(bytes)),
        Reply::Mixed(output, bytes) => (output.clone(), Some(bytes)),
    };
    schema::redact(schema, &mut output);
    // What nothing points to any more may have been a secret.
    let Some(bytes) = bytes else {
        return Some((output, None));
    };
    let mut kept = Vec::new();
    gather(&mut output, bytes, &mut kept)?;
    Some((output, Some(RecordedBytes(kept.into()))))
}

/// Copies what `value` points to from `bytes` to the end of `kept`, and points there.
fn gather(value: &mut Value, bytes: &[u8], kept: &mut Vec<u8>) -> Option<()> {
    if let Some(place) = value.get_mut("$bin") {
        let (offset, len): (usize, usize) = serde_json::from_value(place.take()).ok()?;
        let part = bytes.get(offset..offset.checked_add(len)?)?;
        *place = json!([kept.len(), len]);
        kept.extend_from_slice(part);
        return Some(());
    }
    match value {
        Value::Array(items) => items
            .iter_mut()
            .try_for_each(|item| gather(item, bytes, kept)),
        Value::Object(members) => members
            .values_mut()
            .try_for_each(|member| gather(member, bytes, kept)),
        _ => Some(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
