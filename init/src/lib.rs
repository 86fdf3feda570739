//! PID 1 of the appliance.
//!
//! [`run`] takes the machine over from the kernel: mounts, data disk, clock, network, console,
//! watchdog. It supervises one child, the node, which is a re-execution of the same binary, and
//! speaks with it through [`control`]. Only an orderly shutdown ends it.
//!
//! Decisions are state machines that take times and return orders (`supervise`, `shutdown`).
//! `machine` is the loop that carries out the orders, and it never waits for anything.

mod boot;
mod child;
mod clock;
mod cloud;
mod data;
mod error;
mod facts;
mod fault;
mod groups;
mod helper_process;
mod install;
mod link_status;
mod little_endian;
mod log;
mod machine;
mod media;
mod mount;
mod network;
mod niceness;
mod power;
mod reap;
mod settings;
mod shutdown;
mod stage;
mod storage;
mod supervise;
mod tpm;
mod update;
mod vault;
mod version;
mod vsock;
mod watchdog;
mod wipe;

pub mod console;
pub mod control;
pub mod helper_task;
pub mod text;

pub use boot::OPEN_FILES_MAX;
pub use clock::BUILD_TIME_S;
pub use data::SEALED_BYTES_MIN;
pub use error::InitError;
pub use install::DRIVE_BYTES_MIN;
pub use version::image_version;

/// Runs the machine until it is switched off. The process that the kernel started as PID 1 calls
/// this before anything else. In any other process it prints an error and ends with status 2.
pub fn run() -> ! {
    boot::run()
}

/// Whether this process is in another PID namespace than the machine's, as in a container. A
/// process 1 for which this is true is not the machine's.
#[must_use]
pub fn in_container() -> bool {
    boot::in_container()
}
