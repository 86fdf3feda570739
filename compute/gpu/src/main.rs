//! The program that computes on a GPU, or on the processor through a driver.
//!
//! It holds the Vulkan drivers and no other part of the node: the one binary carries it compressed and starts it from
//! memory as a worker (`docs/driver.md`). A fault in a driver ends this process and not the node.

/// Prints a line on standard output, like `println!`. If the reader has closed it, the program ends.
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
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use serde_json::json;

use crate::error::{Error, Result};

/// The same allocator as in every program of this project.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for a command line that cannot be parsed.
const EXIT_USAGE: u8 = 2;

/// Whether errors are printed as JSON. Set once, when the command line was read.
static ERRORS_AS_JSON: AtomicBool = AtomicBool::new(false);

/// Computes on a GPU, or on the processor as if it were one.
#[derive(Debug, Parser)]
#[command(name = "alknet-gpu", version)]
struct GpuCommandLine {
    /// Print answers and errors as JSON, one value a line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: GpuVerb,
}

#[derive(Debug, Subcommand)]
enum GpuVerb {
    /// Measure kinds of matrix multiplication
    Bench(bench::GpuBenchArgs),
    /// Say which drivers are linked and which adapters they find
    Info,
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
    Selftest,
    /// Compute for the node that started this process; of no use to people
    Worker(worker::GpuWorkerArgs),
}

fn main() -> ExitCode {
    let started = Instant::now();
    // `alknet`, which starts this program, disables transparent huge pages; the matrix kernels gain from them.
    let _ = nix::sys::prctl::set_thp_disable(false);
    let line = match GpuCommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => return end_unparsed(&error),
    };
    ERRORS_AS_JSON.store(line.json, Ordering::Relaxed);
    match run(&line, started) {
        Ok(code) => code,
        Err(error) => {
            show_failure(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Ends a process whose command line cannot be parsed, or only requests help or the version.
fn end_unparsed(error: &clap::Error) -> ExitCode {
    // Standard output or standard error may be closed; the exit code reports the result all the same.
    if !error.use_stderr() {
        error.print().ok();
        return ExitCode::SUCCESS;
    }
    // There is no parsed command line, so its words are searched. Words after `--` are not options.
    let mut options = std::env::args_os().skip(1).take_while(|word| word != "--");
    if options.any(|word| word == "--json") {
        ERRORS_AS_JSON.store(true, Ordering::Relaxed);
        show_error("USAGE", &usage_message(error));
    } else {
        error.print().ok();
    }
    ExitCode::from(EXIT_USAGE)
}

/// The mistake in the command line, without the usage text.
fn usage_message(error: &clap::Error) -> String {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand
    ) {
        return "a verb is missing: see --help".to_owned();
    }
    let rendered = error.render().to_string();
    let text = rendered.strip_prefix("error: ").unwrap_or(&rendered);
    // clap adds the usage after the message, which a program that reads JSON does not need.
    let ends = ["\n\nUsage:", "\n\nFor more information"];
    let end = ends.iter().filter_map(|end| text.find(end)).min();
    error::one_line(&text[..end.unwrap_or(text.len())])
}

fn run(line: &GpuCommandLine, started: Instant) -> Result<ExitCode> {
    match &line.verb {
        GpuVerb::Bench(arguments) => bench::run(arguments),
        GpuVerb::Info => info::run(line.json),
        #[cfg(target_feature = "crt-static")]
        GpuVerb::Resolve { name } => {
            let name = std::ffi::CString::new(name.as_str())
                .map_err(|error| Error::Shader(error.to_string()))?;
            say!("{:#x}", alknet_vulkan::resolve(&name));
            Ok(ExitCode::SUCCESS)
        }
        GpuVerb::Run(arguments) => run::run(arguments, started),
        GpuVerb::Selftest => selftest::run(line.json, started),
        GpuVerb::Worker(arguments) => worker::run(arguments, started),
    }
}

fn write_line(line: std::fmt::Arguments<'_>) {
    let written = writeln!(io::stdout().lock(), "{line}");
    match written.map_err(|error| error.kind()) {
        Ok(()) => {}
        // Rust ignores SIGPIPE, so a reader that closed the pipe shows here (EPIPE, write(2)).
        Err(io::ErrorKind::BrokenPipe) => process::exit(0),
        Err(kind) => {
            show_error("LOCAL", &format!("cannot write: {kind}"));
            process::exit(1);
        }
    }
}

/// Prints an error on standard error.
fn show_failure(error: &Error) {
    show_error(error.code(), &error.to_string());
}

/// Prints an error on standard error: a line of text, or of JSON if the command line has `--json`.
fn show_error(code: &str, message: &str) {
    let line = if ERRORS_AS_JSON.load(Ordering::Relaxed) {
        json!({ "error": { "code": code, "message": message } }).to_string()
    } else {
        format!("alknet-gpu: {message}")
    };
    // The result is dropped, because an error about standard error cannot be shown.
    writeln!(io::stderr(), "{line}").ok();
}

/// Milliseconds with three decimals.
fn milliseconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Memory of this process in RAM, in KiB; `None` if `/proc` is not mounted.
fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
