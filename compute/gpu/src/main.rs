//! The program that computes on a GPU, and on a processor as if it were one.
//!
//! It holds the Vulkan drivers and nothing else: the one binary carries it compressed and starts it
//! from memory as a worker of its own when something is to be computed (`docs/driver.md`). Everything
//! that could go wrong in a driver goes wrong in this process and not in the node.

/// A line on standard output, as by `println!`. Who reads no further has seen enough: the program ends.
macro_rules! say {
    ($($line:tt)*) => { $crate::write_line(format_args!($($line)*)) };
}

mod bench;
mod check;
mod device;
mod error;
mod host;
mod info;
mod kernels;
mod run;
mod selftest;
#[cfg(all(target_arch = "x86_64", target_feature = "crt-static"))]
mod startup;
mod worker;

use std::io::{self, Write};
use std::process::{self, ExitCode};
use std::time::Instant;

use clap::{Parser, Subcommand};

use crate::error::Result;

/// As in every program of this project.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Computes on a GPU, or on the processor as if it were one.
#[derive(Debug, Parser)]
#[command(name = "alknet-gpu", version)]
struct GpuCommandLine {
    #[command(subcommand)]
    verb: GpuVerb,
}

#[derive(Debug, Subcommand)]
enum GpuVerb {
    /// Measure kinds of matrix multiplication
    Bench(bench::GpuBenchArgs),
    /// Say which drivers are linked and which adapters they find
    Info(info::GpuInfoArgs),
    /// Say whether code that a driver generates may call a function; one that it may not ends the
    /// process with exit code 70, as it does in a shader
    #[cfg(target_feature = "crt-static")]
    Resolve {
        /// The function's name
        name: String,
    },
    /// Run shaders from files, one after the other
    Run(run::ShaderRunArgs),
    /// Compare the results of known kernels with the processor's
    Selftest(selftest::GpuSelftestArgs),
    /// Compute for the node that started this process; of no use to people
    Worker(worker::GpuWorkerArgs),
}

fn main() -> ExitCode {
    let started = Instant::now();
    // `alknet`, which starts this program, does without pages of 2 MiB; what is multiplied gains by them.
    let _ = nix::sys::prctl::set_thp_disable(false);
    let line = GpuCommandLine::parse();
    match run(&line.verb, started) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("alknet-gpu: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(verb: &GpuVerb, started: Instant) -> Result<ExitCode> {
    match verb {
        GpuVerb::Bench(arguments) => bench::run(arguments),
        GpuVerb::Info(arguments) => info::run(arguments),
        #[cfg(target_feature = "crt-static")]
        GpuVerb::Resolve { name } => {
            let name = std::ffi::CString::new(name.as_str())
                .map_err(|error| error::Error::Shader(error.to_string()))?;
            say!("{:#x}", alknet_vulkan::resolve(&name));
            Ok(ExitCode::SUCCESS)
        }
        GpuVerb::Run(arguments) => run::run(arguments, started),
        GpuVerb::Selftest(arguments) => selftest::run(arguments, started),
        GpuVerb::Worker(arguments) => worker::run(arguments, started),
    }
}

fn write_line(line: std::fmt::Arguments<'_>) {
    let written = writeln!(io::stdout().lock(), "{line}");
    match written.map_err(|error| error.kind()) {
        Ok(()) => {}
        Err(io::ErrorKind::BrokenPipe) => process::exit(0),
        Err(kind) => {
            eprintln!("alknet-gpu: cannot write: {kind}");
            process::exit(1);
        }
    }
}

/// Thousandths of a second, for people and programs to read.
fn milliseconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Memory that this process has in RAM, in KiB; none where `/proc` is not there to say so.
fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
