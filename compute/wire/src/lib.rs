//! The protocol between a node and its GPU workers: the bodies of `run` and `tell` (`docs/workers.md`).
//!
//! The node numbers buffers, so it can drop one even if the response that should have named it was lost. A worker
//! knows buffers as bytes; only the node knows element types and shapes. Long data is sent ahead of its request as
//! [`ComputeUpload`], in sealed memory, and the request refers to it by number.

mod bounded;
pub mod limits;

use alknet_worker::FrameBlob;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits::{BINDINGS_MAX, FEATURES_MAX};

/// A request of the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ComputeRequest {
    /// Makes a buffer. Response: [`ComputeAck`].
    Create {
        /// The buffer's number.
        buffer: u64,
        /// Its initial bytes, which also determine its length.
        from: ByteSource,
    },
    /// Runs a caller's shader. Response: [`DispatchReply`].
    Dispatch(ShaderDispatch),
    /// Drops buffers; unknown numbers are ignored. Response: [`ComputeAck`].
    Drop {
        /// The buffers' numbers.
        buffers: Vec<u64>,
    },
    /// Describes the worker. Response: [`GpuWorkerInfo`].
    Info,
    /// Multiplies matrices. Response: [`KernelReply`].
    Matmul(MatmulRequest),
    /// Measures this machine. Response: [`MachineSpeed`].
    Measure {
        /// Threads of the kernels that run without the GPU.
        threads: u32,
    },
    /// Reads a part of a buffer. The response is the bytes themselves.
    Read {
        /// The buffer's number.
        buffer: u64,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Hashes messages. Response: [`KernelReply`].
    Sha256(Sha256Request),
    /// Overwrites a part of a buffer. Response: [`ComputeAck`].
    Write {
        /// The buffer's number.
        buffer: u64,
        /// First byte.
        offset: u64,
        /// The new bytes.
        from: ByteSource,
    },
}

/// A notice of the node: bytes for the next request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeUpload {
    /// The bytes, each with the number by which the request refers to them.
    pub blobs: Vec<(u64, FrameBlob)>,
}

/// The source of bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByteSource {
    /// A whole buffer.
    Buffer(u64),
    /// Bytes in the message itself.
    Bytes(Bytes),
    /// The upload with this number.
    Upload(u64),
    /// This many zeros.
    Zero(u64),
}

/// The destination of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResultSink {
    /// The response.
    Answer,
    /// A new buffer with this number.
    Buffer(u64),
}

/// A caller's shader with its bindings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShaderDispatch {
    /// The shader.
    pub wgsl: String,
    /// Its entry point.
    pub entry: String,
    /// Workgroups in each dimension.
    pub groups: [u32; 3],
    /// The bindings of group 0.
    pub bindings: Vec<Binding>,
}

/// One binding of group 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// The binding's number.
    pub binding: u32,
    /// The shader's access to it.
    pub access: BindingAccess,
    /// The bytes that are bound.
    pub from: ByteSource,
    /// Where its content goes after the run; `None` if the caller does not want it.
    pub to: Option<ResultSink>,
}

/// A shader's access to a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BindingAccess {
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
    /// Bound as `var<uniform>`.
    Uniform,
}

/// A product of two matrices of 32-bit floats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatmulRequest {
    /// `m` by `k`.
    pub a: Matrix,
    /// `k` by `n`.
    pub b: Matrix,
    /// Variant of the kernel.
    pub variant: KernelVariant,
    /// Threads for the host's kernel.
    pub threads: u32,
    /// The destination of the product, row by row.
    pub to: ResultSink,
}

/// A matrix inside some bytes. Offset and strides count elements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    /// The bytes.
    pub from: ByteSource,
    /// Offset of the first element.
    pub offset: u64,
    /// Number of rows.
    pub rows: u32,
    /// Number of columns.
    pub columns: u32,
    /// Elements from one row to the next, and from one column to the next.
    pub strides: [i64; 2],
}

/// Messages to hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sha256Request {
    /// All messages, end to end.
    pub data: ByteSource,
    /// The begin of each message and the end of the last: 32-bit numbers, little-endian.
    pub offsets: ByteSource,
    /// Variant of the kernel.
    pub variant: KernelVariant,
    /// The destination of the digests, 32 bytes each.
    pub to: ResultSink,
}

/// The variant of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelVariant {
    /// On the worker's own threads.
    Host,
    /// By a shader.
    Wgsl,
}

/// The response of a request that returns nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeAck {}

/// The response of a shader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DispatchReply {
    /// For each binding whose sink is the response: its number and its bytes.
    #[serde(deserialize_with = "bounded::list::<BINDINGS_MAX, _, _>")]
    pub outputs: Vec<(u32, Bytes)>,
    /// Time from the submission to the end, in milliseconds.
    pub gpu_ms: f64,
    /// Time of compiling, in milliseconds; 0 if the shader was in the cache.
    pub jit_ms: f64,
}

/// The response of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelReply {
    /// The result, if the response is its sink.
    pub bytes: Option<Bytes>,
    /// Time of the request, with the copying of bytes in and out, in milliseconds.
    pub ms: f64,
    /// The part of it that was compiling.
    pub jit_ms: f64,
}

/// A worker's description of itself at its start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuWorkerInfo {
    /// The adapter; `None` for a worker without one.
    pub adapter: Option<GpuAdapter>,
    /// Why there is no adapter, or why it is not hardware.
    pub reason: Option<String>,
    /// Version of wgpu and of its shader compiler.
    pub wgpu: String,
    /// Time from the start of the process until it was ready, in milliseconds.
    pub start_ms: f64,
}

/// The adapter of a worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuAdapter {
    /// The name that the driver gives it.
    pub name: String,
    /// The name that this project gives the driver.
    pub driver: String,
    /// `cpu`, `integrated`, `discrete`, `virtual` or `other`.
    pub class: String,
    /// The driver's versions, in the driver's words.
    pub versions: String,
    /// The features that the device was opened with.
    #[serde(deserialize_with = "bounded::list::<FEATURES_MAX, _, _>")]
    pub features: Vec<String>,
    /// Limits of the device.
    pub limits: DeviceLimits,
    /// Whether device memory is memory of the worker, so that shaders and the worker's threads work on the same
    /// bytes.
    pub host_memory: bool,
    /// Time of the first check with a known kernel, compiling included, in milliseconds.
    pub check_cold_ms: f64,
    /// Time of the same check with the kernel compiled, in milliseconds.
    pub check_warm_ms: f64,
}

/// Limits of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLimits {
    /// Bytes of a buffer.
    pub buffer_bytes: u64,
    /// Bytes of a storage binding.
    pub storage_bytes: u64,
    /// Bytes of a uniform binding.
    pub uniform_bytes: u64,
    /// Storage bindings of a shader.
    pub storage_bindings: u32,
    /// Invocations in a workgroup.
    pub group_invocations: u32,
    /// Bytes of a workgroup's shared memory.
    pub group_bytes: u32,
    /// Workgroups in a dimension.
    pub groups: u32,
}

/// The speed of this machine. On a machine without a device, the figures of the device are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineSpeed {
    /// Matrix multiplication by a shader, GFLOP/s.
    pub matmul_wgsl: f64,
    /// Matrix multiplication on the processor, GFLOP/s.
    pub matmul_host: f64,
    /// The map kernel over a large buffer, bytes read and written in a second.
    pub map_bytes_s: f64,
    /// Time of a single dispatch, in microseconds.
    pub dispatch_us: f64,
    /// Time of the first matrix product, in milliseconds: the cost of compiling.
    pub cold_jit_ms: f64,
}

/// The position of a mistake in a shader, in the details of the fault `E_SHADER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShaderPosition {
    /// The line, counted from 1; 0 if the mistake has no position in the text.
    pub line: u32,
    /// The column in bytes, counted from 1.
    pub column: u32,
}

/// Codes of faults; `docs/compute.md` has the code that a caller gets for each.
pub mod codes {
    /// The caller aborted the request.
    pub const ABORTED: &str = "E_ABORT";
    /// The device is lost.
    pub const DEVICE_LOST: &str = "E_DEVICE_LOST";
    /// A defect of the worker.
    pub const INTERNAL: &str = "E_INTERNAL";
    /// There is no adapter.
    pub const NO_ADAPTER: &str = "E_NO_ADAPTER";
    /// The memory is exhausted.
    pub const QUOTA: &str = "E_QUOTA";
    /// The shader is invalid, or contradicts its bindings.
    pub const SHADER: &str = "E_SHADER";
    /// The arguments do not match each other.
    pub const SHAPE: &str = "E_SHAPE";
    /// The data exceed the limit of a buffer or binding.
    pub const TOO_LARGE: &str = "E_TOO_LARGE";
}
