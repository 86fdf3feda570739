//! The one binary. Started by the kernel it is PID 1; started by PID 1 as `alknet node` it serves;
//! started by a person it is the command line.

mod cli;
mod gpu;
mod key;
mod node;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        alknet_init::run();
    }
    cli::main()
}
