//! Computing for callers: shaders, the kernels of this project, and tensors that stay on the device.
//!
//! This process computes nothing itself. Each identity has a worker of its own (`alknet-gpu`, role `gpu`), started by
//! its first request, which has the device and the memory. This crate has the operations, the leases and quotas of
//! tensors, and the choice between a shader and the processor.
//!
//! ```no_run
//! # fn node(workers: alknet_worker::Workers, builder: &mut alknet_call::RegistryBuilder) {
//! use alknet_compute::{Compute, ComputeSettings, operations};
//!
//! let compute = Compute::new(workers, ComputeSettings::default());
//! for operation in operations(&compute) {
//!     builder.add(operation);
//! }
//! # }
//! ```
//!
//! The workers need a program for role `gpu` (`Config::programs`) and [`role`] as its configuration.
//! `docs/compute.md` has the operations, their limits and their errors.

pub mod limits;

mod budget;
mod choose;
mod compute;
mod copies;
mod error;
mod ops;
mod tenant;
mod tensor;
mod tensor_table;
mod timings_cache;
mod turn;

pub use compute::{Compute, ComputeSettings, ReferencedTensor, TensorReferences, role};
pub use error::{Error, QUOTA_EXCEEDED, Result, SHADER_INVALID, TENSOR_INVALID, TENSOR_TOO_LARGE};
pub use ops::operations;
