//! `compute/info`: describes the device that this node computes with.

use alknet_call::{CallOutput, OperationSpec, Registration};
use alknet_compute_wire::{ComputeRequest, GpuAdapter, GpuWorkerInfo, MachineSpeed};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{parse, register};
use crate::compute::Compute;
use crate::error::Error;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct InfoInput {
    probe: bool,
}

fn spec() -> OperationSpec {
    let input = json!({
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": {
            "probe": { "type": "boolean", "default": false,
                       "description": "Whether to measure the device and the processor; a worker starts if none runs" },
        }
    });
    let output = json!({
        "type": "object",
        "required": ["state", "host_kernels", "shader_cache"],
        "properties": {
            "state": { "enum": ["ready", "unprobed", "none"] },
            "reason": { "type": "string" },
            "adapter": { "type": "object" }, "limits": { "type": "object" },
            "features": { "type": "array" }, "versions": { "type": "object" },
            "selftest": { "type": "object" }, "measured": { "type": "object" },
            "host_kernels": { "type": "array", "items": { "type": "string" } },
            "threads": { "type": "integer" },
            "shader_cache": { "enum": ["none"] },
        }
    });
    OperationSpec::query("compute/info", "Returns what this node computes with.")
        .with_input(input)
        .with_output(output)
        .with_scope("compute:read")
}

pub(super) fn operation(compute: &Compute) -> Registration {
    register(compute, spec(), |compute, input, ctx| async move {
        // A call without an input is a plain question.
        let input: InfoInput = if input.is_null() {
            InfoInput::default()
        } else {
            parse(&input)?
        };
        if input.probe {
            match compute.turn(&ctx).await {
                Ok(mut turn) => {
                    let threads = compute.0.settings.threads;
                    let measured: MachineSpeed =
                        turn.ask(&ComputeRequest::Measure { threads }, None).await?;
                    compute.learn_measured(measured);
                }
                // If no worker can be started, the probe still returns a result, which says why.
                Err(Error::Policy(why) | Error::Worker(why)) => {
                    let mut described = describe(&compute);
                    described["state"] = "none".into();
                    described["reason"] = why.into();
                    return Ok(CallOutput::Value(described));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(CallOutput::Value(describe(&compute)))
    })
}

fn describe(compute: &Compute) -> Value {
    let settings = &compute.0.settings;
    let mut described = json!({
        "state": "unprobed",
        "host_kernels": if settings.host_kernels { json!(["matmul", "sha256"]) } else { json!([]) },
        "threads": settings.threads,
        "shader_cache": "none",
    });
    let Some(info) = compute.info() else {
        return described;
    };
    match &info.adapter {
        None => {
            described["state"] = "none".into();
            described["reason"] = compute.lack(&info).into();
            described["versions"] = json!({ "wgpu": info.wgpu, "naga": info.wgpu });
        }
        Some(adapter) => {
            described["state"] = "ready".into();
            add(&mut described, &info, adapter);
        }
    }
    if let Some(measured) = compute.measured() {
        described["measured"] = json!(measured);
    }
    described
}

fn add(described: &mut Value, info: &GpuWorkerInfo, adapter: &GpuAdapter) {
    let hardware = adapter.class != "cpu";
    described["adapter"] = json!({
        "name": adapter.name,
        "driver": adapter.driver,
        "class": adapter.class,
        "hardware": hardware,
    });
    if let (false, Some(reason)) = (hardware, &info.reason) {
        described["adapter"]["fallback_reason"] = reason.as_str().into();
    }
    described["limits"] = json!(adapter.limits);
    described["features"] = json!(adapter.features);
    described["versions"] = versions(&adapter.versions, &info.wgpu);
    described["selftest"] = json!({
        "ok": true,
        "cold_ms": adapter.check_cold_ms,
        "warm_ms": adapter.check_warm_ms,
        "worker_start_ms": info.start_ms,
    });
}

/// Extracts versions from a driver's description of itself, which is written for people and begins
/// with `Mesa`.
fn versions(driver: &str, wgpu: &str) -> Value {
    let after = |name: &str| {
        let at = driver.find(name)? + name.len();
        let rest = driver[at..].trim_start();
        let end = rest.find(|c: char| c.is_whitespace() || "(),".contains(c));
        let version = &rest[..end.unwrap_or(rest.len())];
        (!version.is_empty()).then(|| version.to_owned())
    };
    let mut versions = json!({ "driver": driver, "wgpu": wgpu, "naga": wgpu });
    for (key, name) in [("mesa", "Mesa"), ("llvm", "LLVM")] {
        if let Some(version) = after(name) {
            versions[key] = version.into();
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A probe measures each time, and no node keeps compiled shaders.
    #[test]
    fn the_schemas_say_what_a_node_does() {
        let spec = spec();
        let probe = &spec.input_schema["properties"]["probe"]["description"];
        let probe = probe.as_str().expect("a text");
        assert!(probe.starts_with("Whether to measure "), "{probe}");
        let cache = &spec.output_schema["properties"]["shader_cache"];
        assert_eq!(cache["enum"], json!(["none"]));
    }

    /// With and without compiling are two figures.
    #[test]
    fn each_time_of_the_self_test_has_its_name() {
        let adapter = GpuAdapter {
            check_cold_ms: 250.0,
            check_warm_ms: 2.0,
            ..GpuAdapter::default()
        };
        let info = GpuWorkerInfo {
            start_ms: 400.0,
            ..GpuWorkerInfo::default()
        };
        let mut told = json!({});
        add(&mut told, &info, &adapter);
        let expected = json!({
            "ok": true, "cold_ms": 250.0, "warm_ms": 2.0, "worker_start_ms": 400.0,
        });
        assert_eq!(told["selftest"], expected);
    }

    #[test]
    fn versions_are_found_in_what_a_driver_says() {
        let found = versions("Mesa 25.0.7 (LLVM 19.1.7)", "30");
        assert_eq!(
            (&found["mesa"], &found["llvm"]),
            (&json!("25.0.7"), &json!("19.1.7"))
        );
        let found = versions("550.54", "30");
        assert_eq!(
            found,
            json!({ "driver": "550.54", "wgpu": "30", "naga": "30" })
        );
        assert_eq!(versions("Mesa", "30")["mesa"], Value::Null);
    }
}
