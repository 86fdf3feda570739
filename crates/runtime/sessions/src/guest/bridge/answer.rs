//! Converts the host's answers for the isolate.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_runtime::{DeferredReply, OpError, OpReply};
use alknet_worker::{
    CborBody, FrameBlob, SealedMapping, WorkerFault, WorkerFrameError, give_back_memory,
};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::limits::VALUE_BYTES_MAX;
use crate::wire::{self, LongNamed, WireReply};

/// An answer with more bytes may have a tree for which the memory is to be there.
const LONG_ANSWER_BYTES: usize = 64 << 10;

/// The bytes of a session's answers that its script has not taken.
#[derive(Debug)]
pub(super) struct WaitingAnswers {
    bytes: AtomicUsize,
    most: usize,
}

impl WaitingAnswers {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: AtomicUsize::new(0),
            most,
        })
    }

    /// Counts an answer, if there is room for it.
    fn enter(self: &Arc<Self>, bytes: usize) -> Result<WaitingBytes, OpError> {
        let counted = WaitingBytes {
            of: Arc::clone(self),
            bytes,
        };
        // Only the number matters: it orders no other memory access.
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        match before.saturating_add(bytes) > self.most {
            true => Err(OpError::new(
                "QUOTA_EXCEEDED",
                "the answers that the script has not taken have too many bytes",
            )),
            false => Ok(counted),
        }
    }
}

/// An answer that counts until this is dropped.
#[derive(Debug)]
struct WaitingBytes {
    of: Arc<WaitingAnswers>,
    bytes: usize,
}

impl Drop for WaitingBytes {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An answer of the host's that waits, in its encoded form, until the script takes it.
#[derive(Debug)]
pub(super) struct ArrivedValue(Result<WaitingValue, OpError>);

#[derive(Debug)]
struct WaitingValue {
    /// In this worker's own memory.
    value: CborBody,
    /// What came in descriptors beside it, which were mapped and closed.
    mapped: Option<Bytes>,
    _counted: WaitingBytes,
}

impl ArrivedValue {
    /// Takes a value off its descriptors at once. A script that computes takes no answer, and those of all its calls
    /// would use up the descriptors of the worker.
    pub(super) fn new(
        value: FrameBlob,
        mut fds: Vec<OwnedFd>,
        waiting: &Arc<WaitingAnswers>,
    ) -> Self {
        let bytes = usize::try_from(value.len()).unwrap_or(usize::MAX);
        Self(waiting.enter(bytes).and_then(|counted| {
            let value = taken(value, &mut fds).map_err(|error| unsendable(&error))?;
            let mapped = match fds.is_empty() {
                true => None,
                false => mapped_bytes(&value, &fds)?,
            };
            Ok(WaitingValue {
                value,
                mapped,
                _counted: counted,
            })
        }))
    }

    /// Whether there was no room for it, or it is not one that a script can take.
    pub(super) fn refusal(&self) -> Option<OpError> {
        self.0.as_ref().err().cloned()
    }

    fn read(self) -> Result<(Value, Option<Bytes>), OpError> {
        let WaitingValue { value, mapped, .. } = self.0?;
        if value.as_bytes().len() > LONG_ANSWER_BYTES {
            // Other isolates may have freed the trees of their answers, and still hold the memory.
            give_back_memory();
        }
        let answer: WireReply<LongNamed> =
            wire::read(&value).map_err(|error| unsendable(&error))?;
        Ok(match answer {
            WireReply::Json(value) => (value.into_value(), None),
            WireReply::Mixed(value, tail) => {
                let bytes = match mapped {
                    Some(mapped) => mapped,
                    None => tail
                        .read(&[], u64::MAX)
                        .map_err(|error| unsendable(&error))?
                        .into(),
                };
                (value.into_value(), Some(bytes))
            }
            WireReply::File(value, _) => {
                let bytes = mapped.ok_or_else(gone)?;
                let mut value = value.into_value();
                if let Some(members) = value.as_object_mut() {
                    // `tensor.open` looks for the whole file here.
                    let whole = serde_json::json!({ "$bin": [0, bytes.len()] });
                    members.insert("file".to_owned(), whole);
                }
                (value, Some(bytes))
            }
        })
    }
}

/// An answer, or the error of the operation, for the isolate.
#[derive(Debug)]
struct DeferredAnswer(Result<ArrivedValue, WorkerFault>);

impl DeferredReply for DeferredAnswer {
    fn read(self: Box<Self>) -> Result<(Value, Option<Bytes>), OpError> {
        match self.0 {
            Ok(value) => value.read(),
            Err(fault) => Err(op_error(&fault)),
        }
    }
}

/// The answer in the form for the isolate, which reads it once the script takes it.
pub(super) fn deferred_reply(answer: Result<ArrivedValue, WorkerFault>) -> OpReply {
    OpReply::Deferred(Box::new(DeferredAnswer(answer)))
}

/// What is in descriptors beside a value.
fn mapped_bytes(value: &CborBody, fds: &[OwnedFd]) -> Result<Option<Bytes>, OpError> {
    let answer: WireReply<IgnoredAny> = wire::read(value).map_err(|error| unsendable(&error))?;
    let mapped = match answer {
        WireReply::Json(_) => return Ok(None),
        WireReply::Mixed(_, tail) => tail.mapped(fds).map_err(|error| unsendable(&error))?,
        WireReply::File(_, at) => {
            let fd = fds.get(at).ok_or_else(gone)?.try_clone();
            let fd = fd.map_err(|error| unsendable(&error.into()))?;
            Some(SealedMapping::of_file(fd).map_err(|error| unsendable(&error))?)
        }
    };
    Ok(mapped.map(Bytes::from_owner))
}

/// Moves a value into this worker's own memory. The host wrote it into memory that counts against the host for as
/// long as it is open here, and a script that computes for long would keep it open.
fn taken(value: FrameBlob, fds: &mut Vec<OwnedFd>) -> Result<CborBody, WorkerFrameError> {
    let at = match value {
        FrameBlob::Inline(value) => return Ok(value),
        FrameBlob::Sealed { at, .. } => at,
    };
    let bytes = value.read(fds, VALUE_BYTES_MAX)?;
    // The host puts the descriptor last, so removing it changes no other index.
    if at + 1 == fds.len() {
        fds.pop();
    }
    Ok(CborBody::from_cbor(bytes))
}

/// The error of an operation, whose details another server may have chosen.
#[derive(Deserialize)]
struct WireError {
    code: String,
    message: String,
    #[serde(default)]
    retryable: bool,
    #[serde(default)]
    details: Option<LongNamed>,
    #[serde(default)]
    path: String,
}

impl WireError {
    fn into_error(self) -> OpError {
        OpError {
            retryable: self.retryable,
            details: Box::new(self.details.map(LongNamed::into_value).unwrap_or_default()),
            path: self.path,
            ..OpError::new(self.code, self.message)
        }
    }
}

fn op_error(fault: &WorkerFault) -> OpError {
    wire::read::<WireError>(&fault.details).map_or_else(
        |_| OpError::new(&fault.code, &fault.message),
        WireError::into_error,
    )
}

pub(super) fn unsendable(error: &WorkerFrameError) -> OpError {
    OpError::new("INVALID_INPUT", format!("the value cannot travel: {error}"))
}

pub(super) fn gone() -> OpError {
    OpError::new("ABORTED", "the session is over")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn blob(text: &str) -> FrameBlob {
        let value = wire::body(&WireReply::Json(json!(text))).expect("CBOR");
        FrameBlob::Inline(value)
    }

    #[test]
    fn answers_wait_while_there_is_room() {
        let text = "x".repeat(100);
        let bytes = usize::try_from(blob(&text).len()).expect("few");
        let waiting = WaitingAnswers::new(2 * bytes);
        let arrive = || ArrivedValue::new(blob(&text), Vec::new(), &waiting);
        let (first, second, third) = (arrive(), arrive(), arrive());
        let refused = third.refusal().expect("there is no room");
        assert_eq!(refused.code, "QUOTA_EXCEEDED");
        let read = first.read().expect("an answer");
        assert_eq!(read, (json!(text), None));
        // The first one waits no more, and the third one never did.
        let fourth = arrive();
        assert!(second.refusal().is_none() && fourth.refusal().is_none());
        assert!(arrive().refusal().is_some());
    }

    #[test]
    fn an_error_keeps_all_its_parts() {
        let error = OpError {
            retryable: true,
            details: Box::new(json!({ "a": [[0], {}] })),
            path: "a/b".to_owned(),
            ..OpError::new("CONFLICT", "another change was first")
        };
        let fault = |details| WorkerFault {
            code: error.code.clone(),
            message: error.message.clone(),
            details,
        };
        let details = wire::body(&error).expect("CBOR");
        assert_eq!(op_error(&fault(details)), error);
        let bare = OpError::new("CONFLICT", "another change was first");
        assert_eq!(op_error(&fault(CborBody::default())), bare);
    }
}
