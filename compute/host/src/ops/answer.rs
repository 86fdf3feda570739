//! Answers with bytes in them.

use alknet_call::Output;
use alknet_compute_wire::Sink;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::tensor::Kind;
use crate::turn::Turn;

/// Collects the bytes that an answer's `{"$bin":…}` point into.
#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    /// Adds bytes and says where they are.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Value {
        let offset = self.0.len();
        self.0.extend_from_slice(bytes);
        json!({ "$bin": [offset, bytes.len()] })
    }

    /// A tensor where its sink put it.
    pub(super) fn tensor(
        &mut self,
        turn: &mut Turn,
        sink: Sink,
        kind: &Kind,
        bytes: Option<&Bytes>,
    ) -> Result<Value> {
        match (sink, bytes) {
            (Sink::Buffer(number), _) => turn.keep(number, kind),
            (Sink::Answer, Some(bytes)) if bytes.len() as u64 == kind.bytes() => Ok(json!({
                "inline": self.add(bytes),
                "dtype": kind.dtype.name(),
                "shape": kind.shape,
            })),
            (Sink::Answer, _) => Err(Error::Internal("a result of another length".to_owned())),
        }
    }

    pub(super) fn into_output(self, value: Value) -> Output {
        Output::Mixed(value, Bytes::from(self.0))
    }
}
