//! Limits that both sides keep, each with its unit. `docs/compute.md` has them as a table.

/// Text of a caller's shader, bytes.
pub const WGSL_BYTES_MAX: usize = 256 << 10;
/// Bindings of a caller's shader.
pub const BINDINGS_MAX: usize = 16;
/// Groups in one dimension: what WebGPU promises everywhere.
pub const GROUPS_MAX: u32 = 65_535;
/// Variables of one invocation, bytes: they lie on the stack of a thread for each lane.
pub const PRIVATE_BYTES_MAX: u64 = 64 << 10;
/// One tensor, bytes: what one binding holds.
pub const TENSOR_BYTES_MAX: u64 = 128 << 20;
/// All buffers of one worker, bytes.
pub const BUFFERS_BYTES_MAX: u64 = 1 << 30;
/// Bytes inside a request; what is longer is uploaded before. Sixteen bindings and a shader make a frame.
pub const INLINE_BYTES_MAX: usize = 32 << 10;
/// Uploads that may lie in a worker for the next request.
pub const UPLOADS_MAX: usize = 32;
/// Messages hashed in one request.
pub const MESSAGES_MAX: usize = 1 << 20;
/// Side of a matrix.
pub const SIDE_MAX: u32 = 1 << 20;
/// Threads of the host's kernels.
pub const THREADS_MAX: u32 = 64;
