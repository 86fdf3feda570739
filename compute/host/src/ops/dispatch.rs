//! `compute/dispatch`: runs a caller's shader.

use std::collections::HashSet;

use alknet_call::{CallBody, CallOutput, Ctx, OperationSpec, Registration};
use alknet_compute_wire::limits::{BINDINGS_MAX, GROUPS_MAX, WGSL_BYTES_MAX};
use alknet_compute_wire::{
    Binding, BindingAccess, ByteSource, ComputeRequest, DispatchReply, ShaderDispatch,
};
use alknet_worker::Bytes32;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::answer::BinaryTail;
use super::{parse, register, schema};
use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::tensor::{TensorArg, TensorSpec};
use crate::turn::{ResultForm, WorkerTurn};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DispatchInput {
    wgsl: String,
    entry: String,
    groups: [u32; 3],
    bindings: Vec<BindingInput>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BindingInput {
    binding: u32,
    access: Option<BindingAccess>,
    arg: Option<Value>,
    out: Option<BindingOutput>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BindingOutput {
    dtype: String,
    shape: Vec<u64>,
    #[serde(rename = "as")]
    wanted: Option<ResultForm>,
}

pub(super) fn operation(compute: &Compute) -> Registration {
    let input = json!({
        "type": "object",
        "required": ["wgsl", "entry", "groups", "bindings"],
        "additionalProperties": false,
        "properties": {
            "wgsl": { "type": "string", "description": "The shader" },
            "entry": { "type": "string", "description": "The entry point of the shader" },
            "groups": { "type": "array", "minItems": 3, "maxItems": 3,
                        "items": { "type": "integer", "minimum": 0, "maximum": GROUPS_MAX } },
            "bindings": { "type": "array", "items": {
                "type": "object",
                "required": ["binding"],
                "additionalProperties": false,
                "properties": {
                    "binding": { "type": "integer", "minimum": 0 },
                    "access": { "enum": ["uniform", "read", "read_write"] },
                    "arg": schema::tensor(),
                    "out": {
                        "type": "object",
                        "required": ["dtype", "shape"],
                        "additionalProperties": false,
                        "properties": { "dtype": { "type": "string" }, "shape": schema::shape(),
                                        "as": schema::wanted() },
                    },
                },
            } },
        }
    });
    let output = json!({
        "type": "object",
        "required": ["outputs", "gpu_ms", "jit_ms"],
        "properties": {
            "outputs": { "type": "object", "additionalProperties": schema::tensor() },
            "gpu_ms": { "type": "number" }, "jit_ms": { "type": "number" },
        }
    });
    let spec = OperationSpec::mutation("compute/dispatch", "Runs a shader that the caller sends.")
        .with_input(input)
        .with_output(output)
        .with_scope("compute:kernel");
    register(compute, spec, run)
}

async fn run(compute: Compute, body: CallBody, ctx: Ctx) -> Result<CallOutput> {
    let input: DispatchInput = parse(&body)?;
    // The cheap checks run before the request takes its turn at the worker.
    check(&input)?;
    let mut args = Vec::with_capacity(input.bindings.len());
    for wanted in &input.bindings {
        args.push(match &wanted.arg {
            Some(arg) => Some(TensorArg::read(&body, arg)?),
            None => None,
        });
    }
    let mut turn = compute.turn(&ctx).await?;
    // All references are resolved together, so that the request has room for all copies before the first is made.
    let mut all: Vec<_> = args.iter_mut().flatten().collect();
    turn.resolve(&mut all).await?;
    let mut bindings = Vec::with_capacity(args.len());
    let mut results = Vec::new();
    for (wanted, arg) in input.bindings.into_iter().zip(args) {
        let (binding, kind) = bind(&mut turn, wanted, arg)?;
        results.extend(binding.to.map(|to| (binding.binding, to, kind)));
        bindings.push(binding);
    }
    one_writer(&bindings)?;
    // The hash of its text identifies a shader that crashes workers.
    let operation: [u8; 32] = Sha256::digest(&input.wgsl).into();
    let ask = ComputeRequest::Dispatch(ShaderDispatch {
        wgsl: input.wgsl,
        entry: input.entry,
        groups: input.groups,
        bindings,
    });
    let done: DispatchReply = turn.ask(&ask, Some(Bytes32(operation))).await?;
    let mut tail = BinaryTail::default();
    let mut outputs = Map::new();
    for (number, sink, kind) in results {
        let bytes = done.outputs.iter().find(|(output, _)| *output == number);
        let bytes = bytes.map(|(_, bytes)| bytes);
        let tensor = tail.tensor(&mut turn, sink, &kind, bytes)?;
        outputs.insert(number.to_string(), tensor);
    }
    let answer = json!({ "outputs": outputs, "gpu_ms": done.gpu_ms, "jit_ms": done.jit_ms });
    Ok(tail.into_output(answer))
}

/// Checks the input as far as possible before a worker is needed.
fn check(input: &DispatchInput) -> Result<()> {
    let refused = |message: String| Error::Shader {
        position: Default::default(),
        message,
    };
    if input.wgsl.len() > WGSL_BYTES_MAX {
        let bytes = input.wgsl.len();
        return Err(refused(format!(
            "a shader may have {WGSL_BYTES_MAX} bytes, not {bytes}"
        )));
    }
    if input.bindings.len() > BINDINGS_MAX {
        let bindings = input.bindings.len();
        return Err(refused(format!(
            "a shader may have {BINDINGS_MAX} bindings, not {bindings}"
        )));
    }
    if input.groups.iter().any(|groups| *groups > GROUPS_MAX) {
        return Err(Error::Shape(format!(
            "at most {GROUPS_MAX} groups in a dimension"
        )));
    }
    let mut seen = HashSet::new();
    match input
        .bindings
        .iter()
        .find(|wanted| !seen.insert(wanted.binding))
    {
        Some(twice) => Err(Error::Shape(format!(
            "binding {} is there twice",
            twice.binding
        ))),
        None => Ok(()),
    }
}

/// One binding, and the type of its tensor. A tensor that the shader may write to and that has no handle is returned
/// to the caller.
fn bind(
    turn: &mut WorkerTurn,
    wanted: BindingInput,
    arg: Option<TensorArg>,
) -> Result<(Binding, TensorSpec)> {
    let number = wanted.binding;
    let (access, from, to, kind) = match (wanted.access, arg, wanted.out) {
        (Some(access), Some(arg), None) => {
            let operand = turn.operand(arg)?;
            let has_handle = matches!(operand.source, ByteSource::Buffer(_));
            // The worker changes a tensor with a handle in place, so its bytes need not come back.
            let back = access == BindingAccess::ReadWrite && !has_handle;
            let to = back.then(|| turn.sink(&operand.kind, None)).transpose()?;
            (access, operand.source, to, operand.kind)
        }
        (None | Some(BindingAccess::ReadWrite), None, Some(out)) => {
            let kind = TensorSpec::from_parts(&out.dtype, out.shape)?;
            let to = turn.sink(&kind, out.wanted)?;
            (
                BindingAccess::ReadWrite,
                ByteSource::Zero(kind.bytes()),
                Some(to),
                kind,
            )
        }
        _ => {
            return Err(Error::Shape(format!(
                "binding {number} has access and arg, or out"
            )));
        }
    };
    let binding = Binding {
        binding: number,
        access,
        from,
        to,
    };
    Ok((binding, kind))
}

/// Checks that a tensor that is written to is bound once, because reading it through another binding is undefined.
fn one_writer(bindings: &[Binding]) -> Result<()> {
    for (at, one) in bindings.iter().enumerate() {
        let ByteSource::Buffer(number) = one.from else {
            continue;
        };
        let others = bindings.iter().skip(at + 1);
        let mut same = others.filter(|other| other.from == ByteSource::Buffer(number));
        let written = |binding: &Binding| binding.access == BindingAccess::ReadWrite;
        if same.any(|other| written(other) || written(one)) {
            return Err(Error::Shape(format!(
                "the tensor of binding {} is bound twice and written to",
                one.binding
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(binding: u32, access: BindingAccess, from: ByteSource) -> Binding {
        Binding {
            binding,
            access,
            from,
            to: None,
        }
    }

    #[test]
    fn a_tensor_has_one_writer_and_no_reader_beside_it() {
        let (read, write) = (BindingAccess::Read, BindingAccess::ReadWrite);
        let bound = |one, other, number| {
            let bindings = [
                binding(0, one, ByteSource::Buffer(1)),
                binding(1, other, ByteSource::Buffer(number)),
            ];
            one_writer(&bindings).is_ok()
        };
        assert!(bound(read, read, 1));
        assert!(bound(write, write, 2));
        assert!(!bound(read, write, 1));
        assert!(!bound(write, read, 1));
    }
}
