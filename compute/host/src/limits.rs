//! Limits of the node's side, each with its unit. Those that workers keep as well are in
//! `alknet_compute_wire::limits`; `docs/compute.md` has all of them as a table.

use std::time::Duration;

pub use alknet_compute_wire::limits::TENSOR_BYTES_MAX;

/// Bytes of a tensor written into a request or an answer; longer ones travel as handles.
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// Bytes of one `tensor/read`: what a peer takes in one frame is often less.
pub const READ_BYTES_MAX: u64 = 16 << 20;
/// Bytes of the copies of stored tensors that the requests of all identities refer to, where the settings name no other
/// number. A node has a quarter of the machine's memory for them, and at least [`REFERENCED_BYTES_MIN`].
pub const REFERENCED_BYTES_MAX: u64 = 1 << 30;
/// The least of these bytes on any machine: three quarters, which are for copies of any length, hold one tensor of
/// [`TENSOR_BYTES_MAX`].
pub const REFERENCED_BYTES_MIN: u64 = 176 << 20;
/// How long a request waits for others to end that have the room for such copies. Beside [`GPU_TIME`] it leaves a request
/// without a deadline of its own the time to be answered.
pub const REFERENCED_WAIT: Duration = Duration::from_secs(20);
/// Time that a request which refers to stored tensors has beside its time on the GPU, for kernels of ours to be
/// compiled: it bounds how long a worker that was taken over keeps the copies, whatever deadline its caller names.
pub const REFERENCED_BESIDES: Duration = Duration::from_secs(20);
/// Bytes by which these copies are counted.
pub(crate) const REFERENCED_BYTES_UNIT: u64 = 64 << 10;
/// Dimensions of a tensor.
pub const RANK_MAX: usize = 8;
/// Handles of one identity.
pub const HANDLES_MAX: usize = 1024;
/// Requests of one identity that wait for the one before.
pub const QUEUE_MAX: usize = 16;
/// How long a caller that finds the queue full is asked to wait, milliseconds.
pub const QUEUE_RETRY_MS: u64 = 100;
/// Identities with a worker of theirs at the same time.
pub const TENANTS_MAX: usize = 16;
/// How long a handle lives after its last use.
pub const LEASE: Duration = Duration::from_secs(60);
/// What is left of that once the connection that used it last is gone.
pub const ORPHAN_LEASE: Duration = Duration::from_secs(10);
/// How long a worker without handles is kept for its identity.
pub const IDLE: Duration = Duration::from_secs(10);
/// How often leases are looked at.
pub const TICK: Duration = Duration::from_millis(500);
/// Time on the GPU of one request of a caller, where the node's configuration names none. The node's own
/// requests, for what there is and how fast it is, have all of [`WALL_TIME`].
pub const GPU_TIME: Duration = Duration::from_secs(10);
/// Time of one request whose caller names no deadline, and of one of the node's own.
pub const WALL_TIME: Duration = Duration::from_secs(30);
/// What one identity may keep and for how long, together: bytes times seconds, given back over a day.
/// 64 GiB for an hour.
pub const BYTE_SECONDS_MAX: u128 = (64 << 30) * 3600;
