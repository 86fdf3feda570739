//! What must hold before any command can run: system packages, one shared build folder, the binaries.
//!
//! This crate uses the standard library only, so that `cargo xtask` starts within seconds of a fresh
//! clone. What the commands then do lives in `alknet-tasks`, which this crate builds and starts.

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
