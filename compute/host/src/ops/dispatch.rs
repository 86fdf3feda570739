//! `compute/dispatch`: a caller's shader.

use std::collections::HashSet;

use alknet_call::{Body, Ctx, OperationSpec, Output, Registration};
use alknet_compute_wire::limits::{BINDINGS_MAX, GROUPS_MAX, WGSL_BYTES_MAX};
use alknet_compute_wire::{Access, Ask, Binding, Dispatch, Dispatched, Source};
use alknet_worker::Hash;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::answer::Tail;
use super::{parse, register, schema};
use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::tensor::{Arg, Kind};
use crate::turn::{As, Turn};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    wgsl: String,
    entry: String,
    groups: [u32; 3],
    bindings: Vec<Wanted>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    binding: u32,
    access: Option<Access>,
    arg: Option<Value>,
    out: Option<Out>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Out {
    dtype: String,
    shape: Vec<u64>,
    #[serde(rename = "as")]
    wanted: Option<As>,
}

pub(super) fn operation(compute: &Compute) -> Registration {
    let input = json!({
        "type": "object",
        "required": ["wgsl", "entry", "groups", "bindings"],
        "additionalProperties": false,
        "properties": {
            "wgsl": { "type": "string", "description": "The shader" },
            "entry": { "type": "string", "description": "Its entry point" },
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
    let spec = OperationSpec::mutation("compute/dispatch", "Runs a shader of the caller's.")
        .with_input(input)
        .with_output(output)
        .with_scope("compute:kernel");
    register(compute, spec, run)
}

async fn run(compute: Compute, body: Body, ctx: Ctx) -> Result<Output> {
    let input: Input = parse(&body)?;
    check(&input)?;
    let mut args = Vec::with_capacity(input.bindings.len());
    for wanted in &input.bindings {
        args.push(match &wanted.arg {
            Some(arg) => Some(Arg::read(&body, arg)?),
            None => None,
        });
    }
    let mut turn = compute.turn(&ctx).await?;
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
    let operation: [u8; 32] = Sha256::digest(&input.wgsl).into();
    let ask = Ask::Dispatch(Dispatch {
        wgsl: input.wgsl,
        entry: input.entry,
        groups: input.groups,
        bindings,
    });
    let done: Dispatched = turn.ask(&ask, Some(Hash(operation))).await?;
    let mut tail = Tail::default();
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

/// What can be said before a worker is asked for.
fn check(input: &Input) -> Result<()> {
    let refused = |message: String| Error::Shader {
        place: Default::default(),
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

/// One binding, and what its tensor is. What a shader may write to and nobody has a handle for comes
/// back.
fn bind(turn: &mut Turn, wanted: Wanted, arg: Option<Arg>) -> Result<(Binding, Kind)> {
    let number = wanted.binding;
    let (access, from, to, kind) = match (wanted.access, arg, wanted.out) {
        (Some(access), Some(arg), None) => {
            let operand = turn.operand(arg)?;
            let kept = matches!(operand.source, Source::Buffer(_));
            let back = access == Access::ReadWrite && !kept;
            let to = back.then(|| turn.sink(&operand.kind, None)).transpose()?;
            (access, operand.source, to, operand.kind)
        }
        (None | Some(Access::ReadWrite), None, Some(out)) => {
            let kind = Kind::of(&out.dtype, out.shape)?;
            let to = turn.sink(&kind, out.wanted)?;
            (
                Access::ReadWrite,
                Source::Zero(kind.bytes()),
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

/// A tensor that is written to is bound once: what a shader would read of it elsewhere is undefined.
fn one_writer(bindings: &[Binding]) -> Result<()> {
    for (at, one) in bindings.iter().enumerate() {
        let Source::Buffer(number) = one.from else {
            continue;
        };
        let others = bindings.iter().skip(at + 1);
        let mut same = others.filter(|other| other.from == Source::Buffer(number));
        let written = |binding: &Binding| binding.access == Access::ReadWrite;
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

    fn binding(binding: u32, access: Access, from: Source) -> Binding {
        Binding {
            binding,
            access,
            from,
            to: None,
        }
    }

    #[test]
    fn a_tensor_has_one_writer_and_no_reader_beside_it() {
        let (read, write) = (Access::Read, Access::ReadWrite);
        let bound = |one, other, number| {
            let bindings = [
                binding(0, one, Source::Buffer(1)),
                binding(1, other, Source::Buffer(number)),
            ];
            one_writer(&bindings).is_ok()
        };
        assert!(bound(read, read, 1));
        assert!(bound(write, write, 2));
        assert!(!bound(read, write, 1));
        assert!(!bound(write, read, 1));
    }
}
