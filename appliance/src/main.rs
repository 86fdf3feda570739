//! The one binary. Started by the kernel it is PID 1; started by PID 1 as `alknet node` it serves;
//! started by the node as `alknet worker` it runs what the node does not trust;
//! started by a person it is the command line.

mod cli;
mod credentials;
mod gpu;
mod key;
mod memory;
mod node;
mod tar;
mod worker;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: memory::NodeAllocator = memory::NodeAllocator;

fn main() -> ExitCode {
    // Asked first: in the namespace of its own that a worker has, it is process 1.
    if alknet_worker::started_as_worker() {
        return worker::run();
    }
    // The allocator asks for pages of 2 MiB, and a process of a few such areas then holds four times
    // what it uses. Workers that compute are given them again.
    let _ = nix::sys::prctl::set_thp_disable(true);
    if std::process::id() == 1 {
        memory::wipe_what_is_freed();
        alknet_init::run();
    }
    cli::main()
}
