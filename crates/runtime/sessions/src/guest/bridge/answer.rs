//! The isolate's form of what the host answers.

use std::os::fd::OwnedFd;

use alknet_runtime::{OpError, Reply};
use alknet_worker::{Blob, Body, Fault, FrameError, Mapped};
use bytes::Bytes;
use serde_json::Value;

use crate::limits::VALUE_BYTES_MAX;
use crate::wire::{self, Answer};

/// The isolate's form of an answer.
pub(super) fn answered(blob: Blob, fds: &[OwnedFd]) -> Result<Reply, OpError> {
    let answer: Answer<Value> = wire::open(blob, fds).map_err(|error| unsendable(&error))?;
    Ok(match answer {
        Answer::Json(value) => Reply::Json(value),
        Answer::Mixed(value, tail) => {
            let mapped = tail.mapped(fds).map_err(|error| unsendable(&error))?;
            let bytes = match mapped {
                Some(mapped) => Bytes::from_owner(mapped),
                None => tail
                    .read(fds, u64::MAX)
                    .map_err(|error| unsendable(&error))?
                    .into(),
            };
            Reply::Mixed(value, bytes)
        }
        Answer::File(value, at) => {
            let fd = fds.get(at).ok_or_else(gone)?.try_clone();
            let fd = fd.map_err(|error| unsendable(&error.into()))?;
            let mapped = Mapped::of_file(fd).map_err(|error| unsendable(&error))?;
            let bytes = Bytes::from_owner(mapped);
            let mut value = value;
            if let Some(members) = value.as_object_mut() {
                // `tensor.open` looks for the whole file here.
                let whole = serde_json::json!({ "$bin": [0, bytes.len()] });
                members.insert("file".to_owned(), whole);
            }
            Reply::Mixed(value, bytes)
        }
    })
}

/// A value in this worker's own memory. The host wrote it into memory that counts as the host's for as long as
/// it is open here, and a script that computes would leave it there.
pub(super) fn taken(value: Blob, fds: &mut Vec<OwnedFd>) -> Blob {
    let Blob::Sealed { at, .. } = value else {
        return value;
    };
    match value.clone().read(fds, VALUE_BYTES_MAX) {
        Ok(bytes) => {
            // The host puts it last, so that no other place among them changes.
            if at + 1 == fds.len() {
                fds.pop();
            }
            Blob::Inline(Body::from_cbor(bytes))
        }
        // What is wrong with it is said when it is opened.
        Err(_) => value,
    }
}

pub(super) fn op_error(fault: &Fault) -> OpError {
    wire::read(&fault.details).unwrap_or_else(|_| OpError::new(&fault.code, &fault.message))
}

pub(super) fn unsendable(error: &FrameError) -> OpError {
    OpError::new("INVALID_INPUT", format!("the value cannot travel: {error}"))
}

pub(super) fn gone() -> OpError {
    OpError::new("ABORTED", "the session is over")
}
