//! The one binary. Started by the kernel it is PID 1; started by PID 1 as `alknet node` it serves;
//! started by the node as `alknet worker` it runs what the node does not trust;
//! started by a person it is the command line.

mod cli;
mod gpu;
mod key;
mod node;
mod worker;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Asked first: in the namespace of its own that a worker has, it is process 1.
    if alknet_worker::started_as_worker() {
        return worker::run();
    }
    if std::process::id() == 1 {
        alknet_init::run();
    }
    cli::main()
}
