//! Responses that contain bytes.

use alknet_call::CallOutput;
use alknet_compute_wire::ResultSink;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::tensor::TensorSpec;
use crate::turn::WorkerTurn;

/// Collects the bytes to which a response's `{"$bin":…}` point.
#[derive(Debug, Default)]
pub(super) struct BinaryTail(Vec<u8>);

impl BinaryTail {
    /// Adds bytes and returns their position.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Value {
        let offset = self.0.len();
        self.0.extend_from_slice(bytes);
        json!({ "$bin": [offset, bytes.len()] })
    }

    /// A tensor in the form of its sink.
    pub(super) fn tensor(
        &mut self,
        turn: &mut WorkerTurn,
        sink: ResultSink,
        kind: &TensorSpec,
        bytes: Option<&Bytes>,
    ) -> Result<Value> {
        match (sink, bytes) {
            (ResultSink::Buffer(number), _) => turn.make_handle(number, kind),
            (ResultSink::Answer, Some(bytes)) if bytes.len() as u64 == kind.bytes() => Ok(json!({
                "inline": self.add(bytes),
                "dtype": kind.dtype.name(),
                "shape": kind.shape,
            })),
            (ResultSink::Answer, _) => {
                Err(Error::Internal("a result of another length".to_owned()))
            }
        }
    }

    pub(super) fn into_output(self, value: Value) -> CallOutput {
        CallOutput::Mixed(value, Bytes::from(self.0))
    }
}
