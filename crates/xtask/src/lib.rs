//! What every command needs before it runs: system packages, the shared build folder, and the
//! programs.
//!
//! This crate uses only the standard library, so that `cargo xtask` starts within seconds in a
//! fresh clone. The commands' work is in `alknet-tasks`, which this crate builds and starts.

pub mod c_flags;
pub mod cache;
mod cgroup;
pub mod front;
pub mod git;
pub mod last_use;
pub mod locks;
pub mod memory;
pub mod mirror;
mod owners;
pub mod packages;
pub mod progress;
pub mod rustc;
pub mod workspace;
