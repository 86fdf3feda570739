//! Limits that node and worker enforce, each with its unit. `docs/compute.md` has them in a table.

/// Text of a caller's shader, bytes.
pub const WGSL_BYTES_MAX: usize = 256 << 10;
/// Bindings of a caller's shader.
pub const BINDINGS_MAX: usize = 16;
/// Features of a device that a worker names. wgpu has two words of flags for them.
pub const FEATURES_MAX: usize = 128;
/// Workgroups in one dimension: the number that WebGPU guarantees everywhere.
pub const GROUPS_MAX: u32 = 65_535;
/// Variables of one invocation, bytes: each lane has them on the stack of its thread.
pub const PRIVATE_BYTES_MAX: u64 = 64 << 10;
/// One tensor, bytes: the size of one binding.
pub const TENSOR_BYTES_MAX: u64 = 128 << 20;
/// All buffers of one worker, bytes.
pub const BUFFERS_BYTES_MAX: u64 = 1 << 30;
/// Bytes within a request; longer data is uploaded before it. Sixteen bindings and a shader make a frame.
pub const INLINE_BYTES_MAX: usize = 32 << 10;
/// Uploads that a worker keeps for the next request.
pub const UPLOADS_MAX: usize = 32;
/// Messages hashed in one request.
pub const MESSAGES_MAX: usize = 1 << 20;
/// Side of a matrix.
pub const SIDE_MAX: u32 = 1 << 20;
/// Threads of the processor's kernels.
pub const THREADS_MAX: u32 = 64;
