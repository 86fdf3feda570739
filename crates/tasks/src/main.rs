//! What the project's commands do. `cargo xtask` gets the machine ready and starts this.

mod bench;
mod binary;
mod cached;
mod context;
mod digest;
mod driver;
mod failed;
mod failure;
mod fuzz;
mod gpu;
mod image;
mod kernel;
mod node;
mod scratch;
mod soak;
mod sources;
mod strangers;
mod terminal;
mod test;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::context::Context;
use crate::failure::Result;

/// The binary's own: a benchmark with another one would measure another binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The commands of this project.
#[derive(Debug, Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    version,
    disable_help_subcommand = true
)]
struct CommandLine {
    /// Folder to look for sources in before any other place
    #[arg(long, global = true, value_name = "DIR")]
    sources: Option<PathBuf>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measure, and print rows; exit code 0 whatever the figures
    Bench(bench::Arguments),
    /// A process of the benchmark of HTTP
    #[command(hide = true, subcommand)]
    BenchIdle(bench::IdlePart),
    /// Build Vulkan drivers and the program that uses them, or find them in the cache, and say where
    Driver(driver::Arguments),
    /// Write image files and their manifest
    Image(image::Arguments),
    /// Build the kernel, or find it in the cache, and say where it is
    Kernel,
    /// Get everything the other commands need, and stop there
    Setup,
    /// Run the long campaigns at full count, and write a summary
    Soak(soak::Arguments),
    /// Everything continuous integration runs
    Test(test::Arguments),
    /// Boot the appliance in QEMU, make one call, stay with its console
    Up(up::Arguments),
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    match run(line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(line: CommandLine) -> Result<()> {
    let mut cx = Context::from_environment(line.sources)?;
    match line.task {
        Task::Bench(arguments) => bench::run(&mut cx, &arguments),
        Task::BenchIdle(part) => bench::idle(&part),
        Task::Driver(arguments) => {
            let gpu = cx.step("gpu", |cx| gpu::ensure(cx, &arguments.vulkan))?;
            println!("{}\n{}", gpu.executable.display(), gpu.packed.display());
            eprint!("{}", cx.table());
            Ok(())
        }
        Task::Image(arguments) => image::run(&mut cx, &arguments),
        Task::Kernel => {
            let kernel = cx.step("kernel", |cx| kernel::ensure(cx))?;
            println!(
                "{}\n{}\n{}",
                kernel.bzimage.display(),
                kernel.vmlinux.display(),
                kernel.config.display()
            );
            eprint!("{}", cx.table());
            Ok(())
        }
        Task::Setup => {
            cx.step("kernel", |cx| kernel::ensure(cx))?;
            cx.step("gpu", |cx| gpu::ensure(cx, &driver::Selection::usual()))?;
            cx.step("cargo-deny", |cx| test::deny_program(cx))?;
            eprint!("{}", cx.table());
            Ok(())
        }
        Task::Soak(arguments) => soak::run(&mut cx, &arguments),
        Task::Test(arguments) => test::run(&mut cx, &arguments),
        Task::Up(arguments) => up::run(&mut cx, &arguments),
    }
}
