//! The health of the disks that the machine starts from and keeps its data on, as far as they and the kernel report it.
//!
//! Everything here waits for disks, so it runs on the blocking threads of PID 1. `machine/storage.rs` connects it with
//! the loop. `docs/storage.md` has the thresholds and the limits.

mod ata;
mod disks;
mod flash;
mod health;
mod nvme;

pub(crate) use disks::{disks_of, read_disks};
pub(crate) use health::disk_problems;
