//! `tensor/create`, `read`, `write`, `drop`: tensors that stay in the worker.

use alknet_call::{CallOutput, OperationSpec, Registration};
use alknet_compute_wire::{ByteSource, ComputeAck, ComputeRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::BinaryTail;
use super::{parse, register, schema};
use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::limits::READ_BYTES_MAX;
use crate::tenant::UploadData;
use crate::tensor::{self, TensorArg, TensorSpec};

pub(super) fn operations(compute: &Compute) -> Vec<Registration> {
    vec![
        create(compute),
        read(compute),
        write(compute),
        drop_handle(compute),
    ]
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({
        "type": "object",
        "required": required,
        "additionalProperties": false,
        "properties": properties,
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorCreateInput {
    dtype: String,
    shape: Vec<u64>,
    from: Option<Value>,
}

fn create(compute: &Compute) -> Registration {
    let input = object(
        &["dtype", "shape"],
        json!({
            "dtype": { "type": "string" }, "shape": schema::shape(), "from": schema::tensor(),
        }),
    );
    let output = json!({
        "type": "object",
        "required": ["handle", "expires_ms"],
        "properties": { "handle": { "type": "string" }, "expires_ms": { "type": "integer" } },
    });
    let spec = OperationSpec::mutation("tensor/create", "Makes a tensor on the device for a time.")
        .with_input(input)
        .with_output(output)
        .with_scope("compute:run");
    register(compute, spec, |compute, body, ctx| async move {
        let input: TensorCreateInput = parse(&body)?;
        let kind = TensorSpec::from_parts(&input.dtype, input.shape)?;
        let from = input.from.as_ref();
        let mut from = from.map(|from| TensorArg::read(&body, from)).transpose()?;
        let mut turn = compute.turn(&ctx).await?;
        let mut all: Vec<_> = from.iter_mut().collect();
        turn.resolve(&mut all).await?;
        let source = match from {
            Some(from) => {
                let from = turn.operand(from)?;
                same(&kind, &from.kind)?;
                from.source
            }
            None => ByteSource::Zero(kind.bytes()),
        };
        let number = turn.number(&kind)?;
        let ask = ComputeRequest::Create {
            buffer: number,
            from: source,
        };
        let ComputeAck {} = turn.ask(&ask, None).await?;
        // The handle exists only once the worker has the buffer.
        let made = turn.make_handle(number, &kind)?;
        Ok(CallOutput::Value(json!({
            "handle": made["handle"], "expires_ms": made["expires_ms"],
        })))
    })
}

/// Checks that the elements can be copied: the type and the bytes must be equal, the shape may
/// differ.
fn same(kind: &TensorSpec, from: &TensorSpec) -> Result<()> {
    if kind.dtype != from.dtype {
        let (to, from) = (kind.dtype.name(), from.dtype.name());
        return Err(Error::Dtype(format!("a tensor of {to} from one of {from}")));
    }
    if kind.bytes() != from.bytes() {
        let (to, from) = (&kind.shape, &from.shape);
        return Err(Error::Shape(format!(
            "a tensor of {to:?} from one of {from:?}"
        )));
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorReadInput {
    handle: String,
    rows: Option<[u64; 2]>,
}

fn read(compute: &Compute) -> Registration {
    let input = object(
        &["handle"],
        json!({ "handle": { "type": "string" }, "rows": schema::rows() }),
    );
    let output = json!({
        "type": "object",
        "required": ["dtype", "shape", "bytes"],
        "properties": {
            "dtype": { "type": "string" }, "shape": schema::shape(), "bytes": schema::bytes(),
        },
    });
    let spec = OperationSpec::query("tensor/read", "Reads a tensor, or some of its rows.")
        .with_input(input)
        .with_output(output)
        .with_scope("compute:run");
    register(compute, spec, |compute, body, ctx| async move {
        let input: TensorReadInput = parse(&body)?;
        let mut turn = compute.turn(&ctx).await?;
        let (buffer, kind) = turn.find(&input.handle)?;
        // The range is checked by the node, which alone knows the shape.
        let (offset, part) = kind.rows(input.rows)?;
        let len = part.bytes();
        if len > READ_BYTES_MAX {
            return Err(Error::TooLarge(format!(
                "{len} bytes; at most {READ_BYTES_MAX} are read at once, by rows"
            )));
        }
        let ask = ComputeRequest::Read {
            buffer,
            offset,
            len,
        };
        let bytes = turn.exchange(&ask, None).await?;
        // A driver's defect may have taken the worker over, so the length of its result is checked.
        if bytes.len() as u64 != len {
            return Err(Error::Internal("a tensor of another length".to_owned()));
        }
        let mut tail = BinaryTail::default();
        let answer = json!({
            "dtype": part.dtype.name(), "shape": part.shape, "bytes": tail.add(&bytes),
        });
        Ok(tail.into_output(answer))
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorWriteInput {
    handle: String,
    rows: Option<[u64; 2]>,
    bytes: Value,
}

fn write(compute: &Compute) -> Registration {
    let input = object(
        &["handle", "bytes"],
        json!({
            "handle": { "type": "string" }, "rows": schema::rows(), "bytes": schema::bytes(),
        }),
    );
    let spec = OperationSpec::mutation("tensor/write", "Overwrites a tensor, or some of its rows.")
        .with_input(input)
        .with_output(json!({ "type": "object" }))
        .with_scope("compute:run");
    register(compute, spec, |compute, body, ctx| async move {
        let input: TensorWriteInput = parse(&body)?;
        let bytes = tensor::bytes(&body, &input.bytes, usize::MAX)?;
        let mut turn = compute.turn(&ctx).await?;
        let (buffer, kind) = turn.find(&input.handle)?;
        let (offset, part) = kind.rows(input.rows)?;
        if bytes.len() as u64 != part.bytes() {
            return Err(Error::Shape(format!(
                "{} bytes for {:?} of {}, which has {}",
                bytes.len(),
                part.shape,
                part.dtype.name(),
                part.bytes()
            )));
        }
        let from = turn.source(UploadData::Bytes(bytes));
        let ask = ComputeRequest::Write {
            buffer,
            offset,
            from,
        };
        let ComputeAck {} = turn.ask(&ask, None).await?;
        Ok(CallOutput::Value(json!({})))
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorDropInput {
    handle: String,
}

fn drop_handle(compute: &Compute) -> Registration {
    let input = object(&["handle"], json!({ "handle": { "type": "string" } }));
    let spec = OperationSpec::mutation("tensor/drop", "Frees a tensor.")
        .with_input(input)
        .with_output(json!({ "type": "object" }))
        .with_scope("compute:run");
    register(compute, spec, |compute, body, ctx| async move {
        let input: TensorDropInput = parse(&body)?;
        let mut turn = compute.turn(&ctx).await?;
        turn.drop_handle(&input.handle).await?;
        Ok(CallOutput::Value(json!({})))
    })
}
