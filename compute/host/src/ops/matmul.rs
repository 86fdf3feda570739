//! `compute/matmul`: the product of two matrices.

use std::time::Instant;

use alknet_call::{CallBody, CallOutput, Ctx, OperationSpec, Registration};
use alknet_compute_wire::limits::SIDE_MAX;
use alknet_compute_wire::{ComputeRequest, KernelReply, KernelVariant, MatmulRequest, Matrix};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::BinaryTail;
use super::{parse, register, schema};
use crate::choose::{KernelKind, VariantReason};
use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::tensor::{ComputeDtype, TensorArg, TensorSpec};
use crate::turn::{Operand, ResultForm};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MatmulInput {
    a: Value,
    b: Value,
    a_view: Option<MatrixViewInput>,
    b_view: Option<MatrixViewInput>,
    #[serde(default)]
    variant: VariantChoice,
    #[serde(rename = "as")]
    wanted: Option<ResultForm>,
}

/// A matrix inside a tensor. Offset and strides count elements.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MatrixViewInput {
    #[serde(default)]
    offset: u64,
    shape: [u64; 2],
    strides: [i64; 2],
}

/// The variant that the caller wants.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum VariantChoice {
    #[default]
    Auto,
    Host,
    Wgsl,
}

impl VariantChoice {
    /// The variant, if the caller named one.
    pub(super) const fn variant(self) -> Option<KernelVariant> {
        match self {
            Self::Auto => None,
            Self::Host => Some(KernelVariant::Host),
            Self::Wgsl => Some(KernelVariant::Wgsl),
        }
    }
}

pub(super) fn operation(compute: &Compute) -> Registration {
    let view = json!({
        "type": "object",
        "required": ["shape", "strides"],
        "additionalProperties": false,
        "properties": {
            "offset": { "type": "integer", "minimum": 0, "default": 0 },
            "shape": { "type": "array", "minItems": 2, "maxItems": 2,
                       "items": { "type": "integer", "minimum": 0 } },
            "strides": { "type": "array", "minItems": 2, "maxItems": 2,
                         "items": { "type": "integer" } },
        }
    });
    let input = json!({
        "type": "object",
        "required": ["a", "b"],
        "additionalProperties": false,
        "properties": {
            "a": schema::tensor(), "b": schema::tensor(),
            "a_view": view, "b_view": view,
            "variant": schema::variant(), "as": schema::wanted(),
        }
    });
    let output = json!({
        "type": "object",
        "required": ["product", "variant", "chosen", "ms", "jit_ms"],
        "properties": {
            "product": schema::tensor(),
            "variant": { "enum": ["host", "wgsl"] },
            "chosen": { "enum": ["asked", "class", "measured", "trial"] },
            "ms": { "type": "number" }, "jit_ms": { "type": "number" },
        }
    });
    let spec = OperationSpec::query(
        "compute/matmul",
        "Multiplies two matrices of 32-bit floats.",
    )
    .with_input(input)
    .with_output(output)
    .with_scope("compute:run");
    register(compute, spec, run)
}

async fn run(compute: Compute, body: CallBody, ctx: Ctx) -> Result<CallOutput> {
    let input: MatmulInput = parse(&body)?;
    let mut a = TensorArg::read(&body, &input.a)?;
    let mut b = TensorArg::read(&body, &input.b)?;
    let mut turn = compute.turn(&ctx).await?;
    turn.resolve(&mut [&mut a, &mut b]).await?;
    let a = matrix(turn.operand(a)?, input.a_view)?;
    let b = matrix(turn.operand(b)?, input.b_view)?;
    if a.columns != b.rows {
        return Err(Error::Shape(format!(
            "{} by {} times {} by {}",
            a.rows, a.columns, b.rows, b.columns
        )));
    }
    let kind = TensorSpec::new(ComputeDtype::F32, vec![a.rows.into(), b.columns.into()])?;
    let operations = 2.0 * f64::from(a.rows) * f64::from(a.columns) * f64::from(b.columns);
    let (variant, why) = match input.variant.variant() {
        Some(variant) => (variant, VariantReason::Asked),
        None => compute.choose(KernelKind::Matmul, operations, turn.info()),
    };
    let to = turn.sink(&kind, input.wanted)?;
    let ask = ComputeRequest::Matmul(MatmulRequest {
        a,
        b,
        variant,
        threads: compute.0.settings.threads,
        to,
    });
    let asked = Instant::now();
    let done: KernelReply = turn.ask(&ask, None).await?;
    compute.record(
        KernelKind::Matmul,
        operations,
        variant,
        // A worker compiles a kernel once in its life; counting that would make the shader look
        // slow.
        done.ms - done.jit_ms,
        asked.elapsed(),
    );
    let mut tail = BinaryTail::default();
    let product = tail.tensor(&mut turn, to, &kind, done.bytes.as_ref())?;
    Ok(tail.into_output(json!({
        "product": product,
        "variant": variant,
        "chosen": why,
        "ms": done.ms,
        "jit_ms": done.jit_ms,
    })))
}

fn matrix(operand: Operand, view: Option<MatrixViewInput>) -> Result<Matrix> {
    let Operand { source, kind } = operand;
    if kind.dtype != ComputeDtype::F32 {
        let name = kind.dtype.name();
        return Err(Error::Dtype(format!("matrices are F32, not {name}")));
    }
    // Without a view the tensor itself must be a matrix.
    let view = match view {
        Some(view) => view,
        None => whole(&kind)?,
    };
    let side = |side: u64| {
        let known = u32::try_from(side).ok().filter(|side| *side <= SIDE_MAX);
        known
            .ok_or_else(|| Error::Shape(format!("a side may have {SIDE_MAX} elements, not {side}")))
    };
    Ok(Matrix {
        rows: side(view.shape[0])?,
        columns: side(view.shape[1])?,
        offset: view.offset,
        strides: view.strides,
        from: source,
    })
}

fn whole(kind: &TensorSpec) -> Result<MatrixViewInput> {
    let [rows, columns] = kind.shape[..] else {
        return Err(Error::Shape(format!(
            "a matrix has two dimensions, not {}; a view makes one of any tensor",
            kind.shape.len()
        )));
    };
    Ok(MatrixViewInput {
        offset: 0,
        shape: [rows, columns],
        // A shape is checked to fit a tensor, so the fallback is not reached.
        strides: [i64::try_from(columns).unwrap_or(i64::MAX), 1],
    })
}
