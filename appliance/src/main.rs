//! The one binary. The kernel starts it as PID 1. PID 1 starts it as `alknet node`, which serves.
//! The node starts it as `alknet worker`, which runs code that the node does not trust. A person
//! starts it as the command line.

mod cli;
mod credentials;
mod gpu;
mod key;
mod memory;
mod node;
mod tar;
mod update_plan;
mod worker;
mod writers;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: memory::NodeAllocator = memory::NodeAllocator;

fn main() -> ExitCode {
    // The check for a worker comes first: in its own PID namespace, a worker is process 1 as well.
    if alknet_worker::started_as_worker() {
        return worker::run();
    }
    // The allocator asks for huge pages of 2 MiB, and a process with a few such areas then has four
    // times the memory that it uses. Workers that compute turn huge pages on again. A kernel that refuses costs memory
    // only.
    let _ = nix::sys::prctl::set_thp_disable(true);
    // Only PID 1 pays for the wiping: every other process gives its memory back when it ends.
    if std::process::id() == 1 && !is_command_of_container() {
        memory::wipe_what_is_freed();
        alknet_init::run();
    }
    cli::main()
}

/// Whether a container runs this process as its first one, with a command. Words of a kernel's command line are no
/// command: they come to the first process of a machine.
fn is_command_of_container() -> bool {
    std::env::args_os().len() > 1 && alknet_init::in_container()
}
