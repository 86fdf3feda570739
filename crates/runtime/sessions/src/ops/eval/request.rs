//! The input and the output of `runtime/eval`, in the form of the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use alknet_call::CallError;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::host::SessionLimits;
use crate::limits::REPL_NAME_BYTES_MAX;

/// The input of `runtime/eval`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::ops) struct EvalRequest {
    /// Lines of a REPL, or the only module of a script.
    pub(super) source: Option<String>,
    /// The modules by specifier.
    #[serde(default)]
    pub(super) modules: BTreeMap<String, String>,
    /// The module to evaluate.
    pub(super) main: Option<String>,
    /// The REPL that the lines belong to.
    pub(super) repl: Option<String>,
    /// Whether the REPL ends with this.
    #[serde(default)]
    pub(super) end: bool,
    /// The operations that the script may call; without it, all that the node allows.
    pub(super) uses: Option<Vec<String>>,
    #[serde(default)]
    pub(super) limits: EvalLimits,
    /// Whether the answer lists the calls that the script made, with their answers.
    #[serde(default)]
    pub(super) record: bool,
    /// A seed of 64 hexadecimal digits. With it, the script gives the same answer each time, and
    /// its time begins in 1970.
    pub(super) seed: Option<String>,
}

/// The limits of the script; an absent one has its default.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvalLimits {
    wall_ms: Option<u64>,
    cpu_ms: Option<u64>,
    fuel_ticks: Option<u64>,
    heap_bytes: Option<usize>,
    external_bytes: Option<usize>,
    stack_bytes: Option<usize>,
    calls: Option<u64>,
}

impl EvalLimits {
    pub(super) fn limits(&self) -> SessionLimits {
        let mut limits = SessionLimits::default();
        let runtime = &mut limits.runtime;
        let ms = |ms: u64| Duration::from_millis(ms);
        runtime.cpu = self.cpu_ms.map_or(runtime.cpu, ms);
        runtime.fuel_ticks = self.fuel_ticks.unwrap_or(runtime.fuel_ticks);
        runtime.heap_bytes = self.heap_bytes.unwrap_or(runtime.heap_bytes);
        runtime.external_bytes = self.external_bytes.unwrap_or(runtime.external_bytes);
        runtime.stack_bytes = self.stack_bytes.unwrap_or(runtime.stack_bytes);
        runtime.calls = self.calls.unwrap_or(runtime.calls);
        limits.wall = self.wall_ms.map_or(limits.wall, ms);
        limits
    }
}

pub(in crate::ops) fn schema() -> Value {
    let whole = json!({ "type": "integer", "minimum": 1 });
    json!({
        "type": "object",
        "properties": {
            "source": { "type": "string" },
            "modules": { "type": "object", "additionalProperties": { "type": "string" } },
            "main": { "type": "string" },
            "repl": { "type": "string", "minLength": 1, "maxLength": REPL_NAME_BYTES_MAX },
            "end": { "type": "boolean" },
            "uses": { "type": "array", "items": { "type": "string" } },
            "limits": {
                "type": "object",
                "properties": {
                    "wall_ms": whole, "cpu_ms": whole, "fuel_ticks": whole, "heap_bytes": whole,
                    "external_bytes": whole, "stack_bytes": whole, "calls": whole,
                },
                "additionalProperties": false,
            },
            "record": {
                "type": "boolean",
                "description": "Whether to return the calls that the script makes, in the form that tests take",
            },
            "seed": { "type": "string", "pattern": "^[0-9a-f]{64}$" },
        },
        "additionalProperties": false,
    })
}

/// The output of `runtime/eval`.
pub(in crate::ops) fn output_schema() -> Value {
    let call = json!({
        "type": "object",
        "properties": {
            "path": { "type": "string" }, "input": {}, "output": {},
            "bytes": { "type": "string", "contentEncoding": "base64" },
            "error": { "type": "object" },
        },
        "required": ["path"],
    });
    json!({
        "type": "object",
        "properties": {
            "value": { "description": "The default export, or the value of the lines" },
            "shown": { "type": ["string", "null"], "description": "The value as a REPL shows it" },
            "console": { "type": "array", "items": { "type": "object" } },
            "stats": { "type": "object" },
            "calls": {
                "type": "array", "items": call,
                "description": "With record: the calls of the script, without secrets",
            },
            "calls_left_out": {
                "type": "integer", "minimum": 0,
                "description": "With record: how many calls the list leaves out",
            },
        },
        "required": ["value", "shown", "console", "stats"],
    })
}

pub(super) fn seed_of(text: &str) -> Result<[u8; 32], CallError> {
    let hash = blake3::Hash::from_hex(text);
    hash.map(|hash| *hash.as_bytes())
        .map_err(|_| CallError::invalid_input("a seed has 64 hexadecimal digits"))
}
