//! `compute/sha256`: hashes many messages at once.

use std::time::Instant;

use alknet_call::{CallBody, CallOutput, Ctx, OperationSpec, Registration};
use alknet_compute_wire::limits::MESSAGES_MAX;
use alknet_compute_wire::{ComputeRequest, KernelReply, Sha256Request};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::BinaryTail;
use super::matmul::VariantChoice;
use super::{parse, register, schema};
use crate::choose::{KernelKind, VariantReason};
use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::tenant::UploadData;
use crate::tensor::{ComputeDtype, TensorArg, TensorSpec};
use crate::turn::{Operand, ResultForm, WorkerTurn};

/// Bytes of a digest.
const DIGEST: u64 = 32;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sha256Input {
    data: Value,
    offsets: Option<Value>,
    #[serde(default)]
    variant: VariantChoice,
    #[serde(rename = "as")]
    wanted: Option<ResultForm>,
}

pub(super) fn operation(compute: &Compute) -> Registration {
    let input = json!({
        "type": "object",
        "required": ["data"],
        "additionalProperties": false,
        "properties": {
            "data": schema::tensor(), "offsets": schema::tensor(),
            "variant": schema::variant(), "as": schema::wanted(),
        }
    });
    let output = json!({
        "type": "object",
        "required": ["digests", "variant", "chosen", "ms", "jit_ms"],
        "properties": {
            "digests": schema::tensor(),
            "variant": { "enum": ["host", "wgsl"] },
            "chosen": { "enum": ["asked", "class", "measured", "trial"] },
            "ms": { "type": "number" }, "jit_ms": { "type": "number" },
        }
    });
    let spec = OperationSpec::query("compute/sha256", "Hashes messages with SHA-256.")
        .with_input(input)
        .with_output(output)
        .with_scope("compute:run");
    register(compute, spec, run)
}

async fn run(compute: Compute, body: CallBody, ctx: Ctx) -> Result<CallOutput> {
    let input: Sha256Input = parse(&body)?;
    let mut data = TensorArg::read(&body, &input.data)?;
    let offsets = input.offsets.as_ref();
    let mut offsets = offsets
        .map(|offsets| TensorArg::read(&body, offsets))
        .transpose()?;
    let mut turn = compute.turn(&ctx).await?;
    let mut all: Vec<_> = [&mut data].into_iter().chain(&mut offsets).collect();
    turn.resolve(&mut all).await?;
    let data = turn.operand(data)?;
    if data.kind.dtype != ComputeDtype::U8 {
        let name = data.kind.dtype.name();
        return Err(Error::Dtype(format!("messages are U8, not {name}")));
    }
    let offsets = match offsets {
        Some(offsets) => turn.operand(offsets)?,
        None => rows(&mut turn, &data.kind)?,
    };
    let messages = messages(&offsets.kind)?;
    let kind = TensorSpec::new(ComputeDtype::U8, vec![messages, DIGEST])?;
    let operations = data.kind.bytes() as f64;
    let (variant, why) = match input.variant.variant() {
        Some(variant) => (variant, VariantReason::Asked),
        None => compute.choose(KernelKind::Sha256, operations, turn.info()),
    };
    let to = turn.sink(&kind, input.wanted)?;
    let ask = ComputeRequest::Sha256(Sha256Request {
        data: data.source,
        offsets: offsets.source,
        variant,
        to,
    });
    let asked = Instant::now();
    let done: KernelReply = turn.ask(&ask, None).await?;
    compute.record(
        KernelKind::Sha256,
        operations,
        variant,
        done.ms - done.jit_ms,
        asked.elapsed(),
    );
    let mut tail = BinaryTail::default();
    let digests = tail.tensor(&mut turn, to, &kind, done.bytes.as_ref())?;
    Ok(tail.into_output(json!({
        "digests": digests,
        "variant": variant,
        "chosen": why,
        "ms": done.ms,
        "jit_ms": done.jit_ms,
    })))
}

/// The offsets if the caller gives none: a message for each row, or one message if the tensor has
/// no rows.
fn rows(turn: &mut WorkerTurn, kind: &TensorSpec) -> Result<Operand> {
    let (messages, each) = match kind.shape.len() {
        0 | 1 => (1, kind.bytes()),
        _ => (kind.shape[0], kind.row_bytes()),
    };
    if messages > MESSAGES_MAX as u64 {
        return Err(too_many());
    }
    let offsets = (0..=messages).flat_map(|row| {
        // The limit of a tensor is far below 4 GiB, so the fallback is not reached.
        u32::try_from(row * each).unwrap_or(u32::MAX).to_le_bytes()
    });
    let bytes: Bytes = offsets.collect::<Vec<_>>().into();
    let kind = TensorSpec::new(ComputeDtype::U32, vec![messages + 1])?;
    let source = turn.source(UploadData::Bytes(bytes));
    Ok(Operand { source, kind })
}

/// The number of messages between these offsets.
fn messages(offsets: &TensorSpec) -> Result<u64> {
    if offsets.dtype != ComputeDtype::U32 || offsets.shape.len() != 1 {
        return Err(Error::Dtype("offsets are U32 in one dimension".to_owned()));
    }
    let messages = offsets.shape[0].saturating_sub(1);
    if messages > MESSAGES_MAX as u64 {
        return Err(too_many());
    }
    Ok(messages)
}

fn too_many() -> Error {
    Error::TooLarge(format!("more than {MESSAGES_MAX} messages at once"))
}
