//! `run`: runs shaders from files, one after the other in one process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

use crate::device::GpuDevice;
use crate::error::{Error, Result};
use crate::{milliseconds, resident_kib};

/// Largest buffer, in words: 64 MiB.
const WORDS_MAX: u32 = 1 << 24;

/// Words of the result that are printed.
const SHOWN: usize = 8;

/// The override that differs between repetitions, if a shader has it.
const ROUND: &str = "round";

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShaderRunArgs {
    /// Files of WGSL; each has an entry point `main` and one binding, a storage buffer of words
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Groups to dispatch
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    groups: u32,
    /// Words in the buffer; each holds its index at first
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=i64::from(WORDS_MAX)))]
    words: u32,
    /// Compile, run and drop each shader so often; an override `round: u32` counts along, so that
    /// each repetition is another shader to the driver
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeat: u32,
}

/// Prints one line of JSON for each file, with or without `--json`. An invalid shader does not prevent the next one
/// from running; the exit code is then 1.
pub(crate) fn run(arguments: &ShaderRunArgs, started: Instant) -> Result<ExitCode> {
    let device = GpuDevice::open()?;
    let mut ok = true;
    for file in &arguments.files {
        let row = match run_file(&device, arguments, file, started) {
            Ok(row) => row,
            Err(error) => {
                ok = false;
                json!({ "file": file, "error": error.to_string() })
            }
        };
        say!("{row}");
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn run_file(
    device: &GpuDevice,
    arguments: &ShaderRunArgs,
    file: &Path,
    started: Instant,
) -> Result<Value> {
    let wgsl = fs::read_to_string(file).map_err(|source| Error::Read {
        path: file.display().to_string(),
        source,
    })?;
    let counts = wgsl.contains(&format!("override {ROUND}"));
    let input: Vec<u32> = (0..arguments.words).collect();
    let buffer = device.upload(bytemuck::cast_slice(&input))?;
    let begun = Instant::now();
    let mut first_ms = None;
    let mut first_result_ms = None;
    let mut resident = Vec::new();
    for round in 0..arguments.repeat {
        let constants = [(ROUND, f64::from(round))];
        let kernel = device.kernel(&wgsl, if counts { &constants } else { &[] })?;
        device.dispatch(&kernel, &[&buffer], [arguments.groups, 1, 1])?;
        if first_ms.is_none() {
            first_ms = Some(milliseconds(begun.elapsed()));
            // Reading waits for the device, so the time includes the first result.
            device.read(&buffer)?;
            first_result_ms = Some(milliseconds(started.elapsed()));
        }
        // Ten points are enough to show growth of memory.
        if round % arguments.repeat.div_ceil(10) == 0 || round + 1 == arguments.repeat {
            resident.push(resident_kib());
        }
    }
    let result = device.read(&buffer)?;
    let words: Vec<u32> = result
        .chunks_exact(size_of::<u32>())
        .take(SHOWN)
        .map(bytemuck::pod_read_unaligned)
        .collect();
    Ok(json!({
        "file": file,
        "device_ms": milliseconds(device.device_time),
        "first_ms": first_ms,
        "first_result_ms": first_result_ms,
        "all_ms": milliseconds(begun.elapsed()),
        "resident_kib": resident,
        "words": words,
        "words_left_out": (arguments.words as usize).saturating_sub(SHOWN),
    }))
}
