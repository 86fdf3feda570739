//! Converts the host's answers for the isolate.

use std::os::fd::OwnedFd;

use alknet_runtime::{OpError, OpReply};
use alknet_worker::{CborBody, FrameBlob, SealedMapping, WorkerFault, WorkerFrameError};
use bytes::Bytes;

use crate::limits::VALUE_BYTES_MAX;
use crate::wire::{self, LongNamed, WireReply};

/// A value of the host's that waits until the script takes it.
#[derive(Debug)]
pub(super) enum ArrivedValue {
    /// In this worker's own memory.
    Own(FrameBlob),
    /// It had descriptors, which were mapped and closed.
    Opened(Result<OpReply, OpError>),
}

impl ArrivedValue {
    /// Takes a value off its descriptors at once. A script that computes takes no answer, and those of all its calls
    /// would use up the descriptors of the worker.
    pub(super) fn new(value: FrameBlob, mut fds: Vec<OwnedFd>) -> Self {
        let value = taken(value, &mut fds);
        match fds.is_empty() {
            true => Self::Own(value),
            false => Self::Opened(answered(value, &fds)),
        }
    }

    /// The isolate's form of it.
    pub(super) fn into_reply(self) -> Result<OpReply, OpError> {
        match self {
            Self::Own(value) => answered(value, &[]),
            Self::Opened(reply) => reply,
        }
    }
}

/// The isolate's form of an answer.
fn answered(blob: FrameBlob, fds: &[OwnedFd]) -> Result<OpReply, OpError> {
    let answer: WireReply<LongNamed> = wire::open(blob, fds).map_err(|error| unsendable(&error))?;
    Ok(match answer {
        WireReply::Json(value) => OpReply::Json(value.into_value()),
        WireReply::Mixed(value, tail) => {
            let mapped = tail.mapped(fds).map_err(|error| unsendable(&error))?;
            let bytes = match mapped {
                Some(mapped) => Bytes::from_owner(mapped),
                None => tail
                    .read(fds, u64::MAX)
                    .map_err(|error| unsendable(&error))?
                    .into(),
            };
            OpReply::Mixed(value.into_value(), bytes)
        }
        WireReply::File(value, at) => {
            let fd = fds.get(at).ok_or_else(gone)?.try_clone();
            let fd = fd.map_err(|error| unsendable(&error.into()))?;
            let mapped = SealedMapping::of_file(fd).map_err(|error| unsendable(&error))?;
            let bytes = Bytes::from_owner(mapped);
            let mut value = value.into_value();
            if let Some(members) = value.as_object_mut() {
                // `tensor.open` looks for the whole file here.
                let whole = serde_json::json!({ "$bin": [0, bytes.len()] });
                members.insert("file".to_owned(), whole);
            }
            OpReply::Mixed(value, bytes)
        }
    })
}

/// Moves a value into this worker's own memory. The host wrote it into memory that counts against the host for as
/// long as it is open here, and a script that computes for long would keep it open.
fn taken(value: FrameBlob, fds: &mut Vec<OwnedFd>) -> FrameBlob {
    let FrameBlob::Sealed { at, .. } = value else {
        return value;
    };
    match value.clone().read(fds, VALUE_BYTES_MAX) {
        Ok(bytes) => {
            // The host puts the descriptor last, so removing it changes no other index.
            if at + 1 == fds.len() {
                fds.pop();
            }
            FrameBlob::Inline(CborBody::from_cbor(bytes))
        }
        // The error is reported when the value is opened.
        Err(_) => value,
    }
}

pub(super) fn op_error(fault: &WorkerFault) -> OpError {
    wire::read(&fault.details).unwrap_or_else(|_| OpError::new(&fault.code, &fault.message))
}

pub(super) fn unsendable(error: &WorkerFrameError) -> OpError {
    OpError::new("INVALID_INPUT", format!("the value cannot travel: {error}"))
}

pub(super) fn gone() -> OpError {
    OpError::new("ABORTED", "the session is over")
}
