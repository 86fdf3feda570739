//! Converts the host's answers for the isolate.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_runtime::{DeferredReply, OpError, OpReply, ValueSink};
use alknet_worker::{CborBody, FrameBlob, SealedMapping, WorkerFault, WorkerFrameError};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::limits::VALUE_BYTES_MAX;
use crate::wire::{self, Json, WireReply};

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

    fn write(self, sink: &mut dyn ValueSink) -> Result<(), OpError> {
        // It counts until the script's own value is there.
        let WaitingValue { value, mapped, .. } = &self.0?;
        let unsendable = |error: WorkerFrameError| unsendable(&error);
        let file = match wire::read(value).map_err(unsendable)? {
            WireReply::<IgnoredAny>::Json(_) => None,
            WireReply::Mixed(_, tail) => {
                let bytes = match mapped {
                    Some(mapped) => mapped.clone(),
                    None => tail.read(&[], u64::MAX).map_err(unsendable)?.into(),
                };
                sink.bytes(bytes);
                None
            }
            WireReply::File(..) => {
                let bytes = mapped.clone().ok_or_else(gone)?;
                let length = bytes.len();
                sink.bytes(bytes);
                Some(length)
            }
        };
        wire::send_reply(value, sink, file).map_err(unsendable)
    }
}

/// The error of an operation that waits until the script takes it. Another server may have chosen its details.
#[derive(Debug)]
pub(super) struct ArrivedFault {
    fault: WorkerFault,
    _counted: Option<WaitingBytes>,
}

impl ArrivedFault {
    /// An error of the worker itself, without details.
    pub(super) fn bare(code: &str, message: String) -> Self {
        let fault = WorkerFault {
            code: code.to_owned(),
            message,
            details: CborBody::default(),
        };
        Self {
            fault,
            _counted: None,
        }
    }

    /// Without room for its details, the error has none.
    pub(super) fn new(mut fault: WorkerFault, waiting: &Arc<WaitingAnswers>) -> Self {
        let counted = waiting.enter(fault.details.as_bytes().len()).ok();
        if counted.is_none() {
            fault.details = CborBody::default();
        }
        Self {
            fault,
            _counted: counted,
        }
    }
}

/// An answer, or the error of the operation, for the isolate.
#[derive(Debug)]
struct DeferredAnswer(Result<ArrivedValue, ArrivedFault>);

impl DeferredReply for DeferredAnswer {
    fn write(self: Box<Self>, sink: &mut dyn ValueSink) -> Result<(), OpError> {
        match self.0 {
            Ok(value) => value.write(sink),
            Err(failed) => Err(op_error(&failed.fault)),
        }
    }
}

/// The answer in the form for the isolate, which reads it once the script takes it.
pub(super) fn deferred_reply(answer: Result<ArrivedValue, ArrivedFault>) -> OpReply {
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
struct WireError<D> {
    code: String,
    message: String,
    #[serde(default)]
    retryable: bool,
    #[serde(default = "Option::default")]
    details: Option<D>,
    #[serde(default)]
    path: String,
}

impl<D> WireError<D> {
    fn into_error(self, details: impl FnOnce(D) -> Value) -> OpError {
        OpError {
            retryable: self.retryable,
            details: Box::new(self.details.map(details).unwrap_or_default()),
            path: self.path,
            ..OpError::new(self.code, self.message)
        }
    }
}

/// Without its details, if these are more than a value may be.
fn op_error(fault: &WorkerFault) -> OpError {
    if let Ok(error) = wire::read::<WireError<Json>>(&fault.details) {
        return error.into_error(|Json(details)| details);
    }
    match wire::read::<WireError<IgnoredAny>>(&fault.details) {
        Ok(error) => error.into_error(|_| Value::Null),
        Err(_) => OpError::new(&fault.code, &fault.message),
    }
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
    use crate::wire::PartsText;

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
        let mut sink = PartsText::with_limit(1);
        first.write(&mut sink).expect("an answer");
        assert_eq!(sink.text, format!("{text:?} "));
        // The first one waits no more, and the third one never did.
        let fourth = arrive();
        assert!(second.refusal().is_none() && fourth.refusal().is_none());
        assert!(arrive().refusal().is_some());
    }

    /// Details of an error wait as answers do: without room for them the error comes alone.
    #[test]
    fn details_of_errors_wait_while_there_is_room() {
        let error = OpError {
            retryable: true,
            details: Box::new(json!("x".repeat(100))),
            path: "a/b".to_owned(),
            ..OpError::new("CONFLICT", "another change was first")
        };
        let fault = || WorkerFault {
            code: error.code.clone(),
            message: error.message.clone(),
            details: wire::body(&error).expect("CBOR"),
        };
        let waiting = WaitingAnswers::new(fault().details.as_bytes().len());
        let first = ArrivedFault::new(fault(), &waiting);
        let second = ArrivedFault::new(fault(), &waiting);
        assert_eq!(op_error(&first.fault), error);
        let bare = OpError::new("CONFLICT", "another change was first");
        assert_eq!(op_error(&second.fault), bare);
    }

    #[test]
    fn an_error_loses_details_that_are_more_than_a_value_may_be() {
        let many = vec![Value::Null; 100_000];
        let error = OpError {
            retryable: true,
            details: Box::new(json!(many)),
            path: "a/b".to_owned(),
            ..OpError::new("CONFLICT", "another change was first")
        };
        let fault = WorkerFault {
            code: error.code.clone(),
            message: error.message.clone(),
            details: wire::body(&error).expect("CBOR"),
        };
        let without = OpError {
            details: Box::default(),
            ..error
        };
        assert_eq!(op_error(&fault), without);
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
