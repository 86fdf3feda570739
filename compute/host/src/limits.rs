//! Limits of the node's side, each with its unit. Limits that workers enforce as well are in
//! `alknet_compute_wire::limits`; `docs/compute.md` has all of them in a table.

use std::time::Duration;

pub use alknet_compute_wire::limits::TENSOR_BYTES_MAX;

use alknet_compute_wire::limits::BINDINGS_MAX;

/// Bytes of a tensor within a request or a response; longer ones are passed as handles.
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// Bytes of one `tensor/read`; a peer's limit for one frame is often lower.
pub const READ_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a worker's response beside those of the tensors in it.
pub(crate) const ANSWER_BYTES_BESIDES: u64 = 64 << 10;
/// Bytes of a response that the node parses: a tensor for each binding of a shader, and the rest. A worker that an
/// attacker took over may write anything.
pub(crate) const PARSED_BYTES_MAX: u64 =
    (BINDINGS_MAX * INLINE_BYTES_MAX) as u64 + ANSWER_BYTES_BESIDES;
/// Bytes of the copies of stored tensors to which the requests of all identities refer, if the settings name no other
/// number. A node uses a quarter of the machine's memory for them, and at least [`REFERENCED_BYTES_MIN`].
pub const REFERENCED_BYTES_MAX: u64 = 1 << 30;
/// The least of these bytes on any machine: the three quarters for copies of any length hold one tensor of
/// [`TENSOR_BYTES_MAX`].
pub const REFERENCED_BYTES_MIN: u64 = 176 << 20;
/// How long a request waits for room that other requests hold for such copies. Together with [`GPU_TIME`] it leaves a
/// request without a deadline time for its response.
pub const REFERENCED_WAIT: Duration = Duration::from_secs(20);
/// Time that a request with stored tensors has beside its time on the GPU, for compiling kernels: it bounds how long
/// a worker that an attacker took over keeps the copies, whatever deadline its caller names.
pub const REFERENCED_BESIDES: Duration = Duration::from_secs(20);
/// Unit in bytes by which these copies are counted.
pub(crate) const REFERENCED_BYTES_UNIT: u64 = 64 << 10;
/// Dimensions of a tensor.
pub const RANK_MAX: usize = 8;
/// Handles of one identity.
pub const HANDLES_MAX: usize = 1024;
/// Requests of one identity that wait for an earlier one.
pub const QUEUE_MAX: usize = 16;
/// How long a caller that finds the queue full should wait, milliseconds.
pub const QUEUE_RETRY_MS: u64 = 100;
/// Identities that have a worker at the same time.
pub const TENANTS_MAX: usize = 16;
/// Rights of operations that have a worker for one identity at the same time, beside the worker for the
/// identity's own requests.
pub const RIGHTS_MAX: usize = 3;
/// How long a handle lives after its last use.
pub const LEASE: Duration = Duration::from_secs(60);
/// How long a handle lives after the connection that used it last has ended.
pub const ORPHAN_LEASE: Duration = Duration::from_secs(10);
/// How long a worker without handles stays for its identity.
pub const IDLE: Duration = Duration::from_secs(10);
/// How often leases are checked.
pub const TICK: Duration = Duration::from_millis(500);
/// Time on the GPU of one request of a caller, if the node's configuration names none. The node's own requests, for
/// the device's description and speed, may use all of [`WALL_TIME`].
pub const GPU_TIME: Duration = Duration::from_secs(10);
/// Time of a request whose caller sets no deadline, and of a request of the node itself.
pub const WALL_TIME: Duration = Duration::from_secs(30);
/// The bytes that one identity may keep times the seconds that it keeps them, given back over a day. 64 GiB for an
/// hour.
pub const BYTE_SECONDS_MAX: u128 = (64 << 30) * 3600;
