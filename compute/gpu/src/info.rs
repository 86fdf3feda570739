//! `info`: which drivers are linked, and which adapters they find.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::device;
use crate::error::{Error, Result};

/// Prints the drivers and adapters; on one line if `json` is set. The absence of drivers or adapters is a result, not
/// an error.
pub(crate) fn run(json: bool) -> Result<ExitCode> {
    let info = info()?;
    if json {
        say!("{info}");
    } else {
        say!("{info:#}");
    }
    Ok(ExitCode::SUCCESS)
}

fn info() -> Result<Value> {
    let drivers = alknet_vulkan::DRIVERS.iter().map(|driver| driver.name);
    let drivers: Vec<_> = drivers.collect();
    let found = match device::inventory() {
        // Without a driver there is nothing to list, which is an answer as well.
        Err(Error::NoDriver) => {
            return Ok(json!({
                "version": env!("CARGO_PKG_VERSION"),
                "drivers": drivers,
                "adapters": [],
                "message": Error::NoDriver.to_string(),
            }));
        }
        found => found?,
    };
    let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
    let adapters: Vec<_> = found.adapters.iter().map(adapter).collect();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "drivers": drivers,
        "adapters": adapters,
        "without_hardware": found.idle,
        "errors": errors,
    }))
}

/// The adapter's row. The best adapter, which the program uses, comes first.
pub(crate) fn adapter(found: &alknet_vulkan::DriverAdapter) -> Value {
    let info = &found.info;
    let limits = found.adapter.limits();
    let capabilities = found.adapter.get_downlevel_capabilities();
    let features = found.adapter.features();
    let features: Vec<_> = features.iter_names().map(|(name, _)| name).collect();
    json!({
        "driver": found.driver,
        "name": info.name,
        "class": format!("{:?}", info.device_type),
        "vendor": info.vendor,
        "device": info.device,
        "made_by": info.driver,
        "versions": info.driver_info,
        "subgroup": [info.subgroup_min_size, info.subgroup_max_size],
        "webgpu": capabilities.is_webgpu_compliant(),
        "half_floats": capabilities.flags.contains(wgpu::DownlevelFlags::SHADER_F16_IN_F32),
        "features": features,
        "limits": {
            "buffer_bytes": limits.max_buffer_size,
            "storage_binding_bytes": limits.max_storage_buffer_binding_size,
            "storage_bindings": limits.max_storage_buffers_per_shader_stage,
            "workgroup_invocations": limits.max_compute_invocations_per_workgroup,
            "workgroup_bytes": limits.max_compute_workgroup_storage_size,
            "workgroups_per_dimension": limits.max_compute_workgroups_per_dimension,
        },
    })
}
