//! `bench`: how fast each kind of matrix multiplication is here.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::device::Device;
use crate::error::Result;
use crate::kernels::{self, MATMULS, Matmul};
use crate::milliseconds;

/// Side lengths are multiples of it, so that every kind can be measured.
const STEP: u64 = 64;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Side of the matrices, a multiple of 64
    #[arg(long, default_value_t = 512, value_parser = side)]
    side: u64,
    /// Repetitions, of which the fastest counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

fn side(text: &str) -> std::result::Result<u64, String> {
    match text.parse() {
        Ok(side) if (STEP..=4096).contains(&side) && side % STEP == 0 => Ok(side),
        _ => Err(format!("not a multiple of {STEP} up to 4096")),
    }
}

/// Prints one line of JSON for each kind.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let device = Device::open()?;
    let n = arguments.side as usize;
    let [a, b] = kernels::exact_matrices(n);
    for kind in MATMULS {
        measure(&device, &kind, n, [&a, &b], arguments.rounds)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(
    device: &Device,
    kind: &Matmul,
    n: usize,
    [a, b]: [&[f32]; 2],
    rounds: u32,
) -> Result<()> {
    let prepared = kind.prepare(device, n, a, b)?;
    let timed = || -> Result<Duration> {
        let started = Instant::now();
        prepared.multiply()?;
        Ok(started.elapsed())
    };
    let first = timed()?;
    let mut best = timed()?;
    for _ in 1..rounds {
        best = best.min(timed()?);
    }
    let operations = 2.0 * (n as f64).powi(3);
    let row = json!({
        "kernel": kind.name,
        "side": n,
        "first_ms": milliseconds(first),
        "best_ms": milliseconds(best),
        "gflops": (operations / best.as_secs_f64() / 1e7).round() / 100.0,
    });
    println!("{row}");
    Ok(())
}
