//! `selftest`: compares the adapter's results with the processor's.

use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

use crate::check::{CHECKS, GpuCheckOutcome};
use crate::device::GpuDevice;
use crate::error::Result;
use crate::{info, milliseconds, resident_kib};

/// Runs every check, even after one has failed. Exit code 0 if all results equal the processor's.
pub(crate) fn run(json: bool, started: Instant) -> Result<ExitCode> {
    let device = GpuDevice::open()?;
    let device_kib = resident_kib();
    let mut first = None;
    let mut ok = true;
    let mut rows = Vec::new();
    for (name, check) in CHECKS {
        let begun = Instant::now();
        let outcome = check(&device);
        first.get_or_insert_with(|| started.elapsed());
        // The checks after a failed one run as well, because they tell which feature is at fault.
        ok &= outcome.is_ok();
        rows.push(row(name, &outcome, begun));
    }
    let report = json!({
        "ok": ok,
        "adapter": info::adapter(&device.found),
        "checks": rows,
        "instance_ms": milliseconds(device.instance_time),
        "device_ms": milliseconds(device.device_time),
        "first_result_ms": first.map(milliseconds),
        "device_kib": device_kib,
        "resident_kib": resident_kib(),
    });
    if json {
        say!("{report}");
    } else {
        show(&report);
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn row(name: &str, outcome: &Result<GpuCheckOutcome>, begun: Instant) -> Value {
    let text = match outcome {
        Ok(GpuCheckOutcome::Equal) => "equal".to_owned(),
        Ok(GpuCheckOutcome::NotOffered) => "not offered by this adapter".to_owned(),
        Err(error) => error.to_string(),
    };
    json!({
        "check": name,
        "ok": outcome.is_ok(),
        "outcome": text,
        "ms": milliseconds(begun.elapsed()),
    })
}

fn show(report: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let adapter = &report["adapter"];
    say!(
        "{} ({})",
        text(&adapter["name"]),
        text(&adapter["versions"])
    );
    for row in report["checks"].as_array().into_iter().flatten() {
        say!(
            "  {:8} {:9.1} ms  {}",
            text(&row["check"]),
            row["ms"].as_f64().unwrap_or_default(),
            text(&row["outcome"])
        );
    }
}
