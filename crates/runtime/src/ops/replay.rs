//! A host that answers from a record.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::error::OpError;
use crate::host::{
    ConsoleLevel, EnvOperation, HostFuture, IsolateHost, Items, OpReply, ScriptCallOptions,
    ScriptRegistration,
};

/// One call and its answer.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedCall {
    /// The operation.
    pub path: String,
    /// The input.
    #[serde(default)]
    pub input: Value,
    /// The output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
    /// The bytes of the answer, or of all items of a subscription: `{"$bin": [offset, length]}` in `output` refers to
    /// them, as in [`OpReply::Mixed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<RecordedBytes>,
    /// The failure; a subscription may have had items before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<OpError>,
}

/// The bytes of a record, in base64 (RFC 4648 section 4) in JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedBytes(pub Bytes);

impl Serialize for RecordedBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for RecordedBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes.into()))
    }
}

/// Answers each call with the record's next answer for the same path and input. A call that is not
/// in the record fails with `NOT_FOUND`.
pub struct Replay {
    answers: Mutex<BTreeMap<String, VecDeque<RecordedCall>>>,
    /// The host that checks schemas.
    real: Arc<dyn IsolateHost>,
    lines: Mutex<Vec<String>>,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").finish_non_exhaustive()
    }
}

impl Replay {
    /// A host for `record`; it uses `real` only to check schemas.
    #[must_use]
    pub fn new(record: &[RecordedCall], real: Arc<dyn IsolateHost>) -> Self {
        let mut answers: BTreeMap<String, VecDeque<RecordedCall>> = BTreeMap::new();
        for call in record {
            answers
                .entry(key(&call.path, &call.input))
                .or_default()
                .push_back(call.clone());
        }
        Self {
            answers: Mutex::new(answers),
            real,
            lines: Mutex::default(),
        }
    }

    /// The lines that the script wrote to its console.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn next(&self, path: &str, input: &Value) -> Result<RecordedCall, OpError> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        // Each recorded answer is used once, so repeated calls get their answers in the recorded
        // order.
        let next = answers
            .get_mut(&key(path, input))
            .and_then(VecDeque::pop_front);
        next.ok_or_else(|| OpError::new("NOT_FOUND", "the record has no such call"))
    }
}

fn answer(call: RecordedCall) -> Result<OpReply, OpError> {
    let output = call.output.unwrap_or_default();
    match (call.error, call.bytes) {
        (Some(error), _) => Err(error),
        (None, Some(RecordedBytes(bytes))) => Ok(OpReply::Mixed(output, bytes)),
        (None, None) => Ok(OpReply::Json(output)),
    }
}

fn item_reply(item: Value, bytes: Option<&RecordedBytes>) -> OpReply {
    match bytes {
        Some(RecordedBytes(bytes)) => OpReply::Mixed(item, bytes.clone()),
        None => OpReply::Json(item),
    }
}

fn key(path: &str, input: &Value) -> String {
    // In the canonical form, the order of an object's members makes no difference.
    format!("{path}\n{}", super::canonical(input))
}

impl IsolateHost for Replay {
    fn call(
        &self,
        path: &str,
        input: Value,
        _: ScriptCallOptions,
    ) -> HostFuture<Result<OpReply, OpError>> {
        let answer = self.next(path, &input).and_then(answer);
        Box::pin(std::future::ready(answer))
    }

    /// The record has the items as one array.
    fn subscribe(&self, path: &str, input: Value, _: ScriptCallOptions) -> Items {
        let items = match self.next(path, &input) {
            Ok(RecordedCall {
                output: Some(Value::Array(items)),
                bytes,
                error,
                ..
            }) => {
                let items = items
                    .into_iter()
                    .map(|item| Ok(item_reply(item, bytes.as_ref())));
                items.chain(error.map(Err)).collect()
            }
            // A record without a list of items answers with one item, or with its failure.
            other => vec![other.and_then(answer)],
        };
        Box::pin(stream::iter(items))
    }

    fn list(&self, _: &str) -> Vec<EnvOperation> {
        Vec::new()
    }

    fn register(&self, _: ScriptRegistration, _: [u8; 32]) -> HostFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn emit(&self, _: u64, _: Value) -> HostFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn log(&self, _: ConsoleLevel, text: &str) {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text.to_owned());
    }

    fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        self.real.check(schema, value)
    }
}
