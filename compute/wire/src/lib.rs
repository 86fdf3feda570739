//! The language between a node and its GPU workers: the bodies of `run` and `tell` (`docs/workers.md`).
//!
//! The node numbers buffers, so that it can give one back whatever became of the answer. A worker knows
//! buffers as bytes: element types and shapes are the node's. What is long travels ahead of its request
//! as [`ComputeUpload`], in sealed memory, and is named there by its number.

pub mod limits;

use alknet_worker::FrameBlob;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What a node asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ComputeRequest {
    /// Makes a buffer: [`ComputeAck`].
    Create {
        /// Its number.
        buffer: u64,
        /// What is in it at first, and how long it is.
        from: ByteSource,
    },
    /// Runs a caller's shader: [`DispatchReply`].
    Dispatch(ShaderDispatch),
    /// Gives buffers back; numbers that are none are passed over. Answers [`ComputeAck`].
    Drop {
        /// Their numbers.
        buffers: Vec<u64>,
    },
    /// What there is: [`GpuWorkerInfo`].
    Info,
    /// Multiplies: [`KernelReply`].
    Matmul(MatmulRequest),
    /// Measures this machine: [`MachineSpeed`].
    Measure {
        /// Threads for what runs without the GPU.
        threads: u32,
    },
    /// Reads a part of a buffer. The answer is the bytes themselves.
    Read {
        /// Its number.
        buffer: u64,
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// Hashes messages: [`KernelReply`].
    Sha256(Sha256Request),
    /// Overwrites a part of a buffer: [`ComputeAck`].
    Write {
        /// Its number.
        buffer: u64,
        /// First byte.
        offset: u64,
        /// Where the bytes come from.
        from: ByteSource,
    },
}

/// What a node says without asking: bytes for the next request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeUpload {
    /// Each with the number by which the request names it.
    pub blobs: Vec<(u64, FrameBlob)>,
}

/// Where bytes come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByteSource {
    /// A buffer, whole.
    Buffer(u64),
    /// Bytes in the message itself.
    Bytes(Bytes),
    /// What was uploaded under this number.
    Upload(u64),
    /// As many zeros.
    Zero(u64),
}

/// Where results go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResultSink {
    /// Into the answer.
    Answer,
    /// Into a new buffer of this number.
    Buffer(u64),
}

/// A caller's shader with what it is bound to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShaderDispatch {
    /// The shader.
    pub wgsl: String,
    /// Its entry point.
    pub entry: String,
    /// Groups in each dimension.
    pub groups: [u32; 3],
    /// All of group 0.
    pub bindings: Vec<Binding>,
}

/// One binding of group 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// Its number.
    pub binding: u32,
    /// What the shader may do with it.
    pub access: BindingAccess,
    /// What is bound.
    pub from: ByteSource,
    /// Where it goes afterwards; nowhere where the caller does not want it.
    pub to: Option<ResultSink>,
}

/// What a shader may do with a binding.
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
    /// Where the product goes, row by row.
    pub to: ResultSink,
}

/// A matrix inside some bytes. Offset and strides count elements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    /// The bytes.
    pub from: ByteSource,
    /// Where the first element is.
    pub offset: u64,
    /// How many there are.
    pub rows: u32,
    /// And of them.
    pub columns: u32,
    /// From one row to the next, and from one column to the next.
    pub strides: [i64; 2],
}

/// Messages to hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sha256Request {
    /// All messages, one behind the other.
    pub data: ByteSource,
    /// Where each begins, and where the last ends: 32-bit numbers, lowest byte first.
    pub offsets: ByteSource,
    /// Variant of the kernel.
    pub variant: KernelVariant,
    /// Where the digests go, 32 bytes each.
    pub to: ResultSink,
}

/// How something is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelVariant {
    /// On the worker's own threads.
    Host,
    /// By a shader.
    Wgsl,
}

/// Done, and nothing more to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeAck {}

/// What came of a shader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DispatchReply {
    /// For each binding whose sink is the answer: its number and its bytes.
    pub outputs: Vec<(u32, Bytes)>,
    /// From the submission to the end, milliseconds.
    pub gpu_ms: f64,
    /// Compiling, milliseconds; 0 where this shader was compiled before.
    pub jit_ms: f64,
}

/// What came of a kernel of ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelReply {
    /// The result, where the answer is its sink.
    pub bytes: Option<Bytes>,
    /// How long it took, bringing bytes in and out included, milliseconds.
    pub ms: f64,
    /// Of it compiling.
    pub jit_ms: f64,
}

/// What a worker found when it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuWorkerInfo {
    /// What it computes with; `None` where there is nothing.
    pub adapter: Option<GpuAdapter>,
    /// Why nothing, or why not hardware.
    pub reason: Option<String>,
    /// Version of wgpu, and of the compiler of shaders.
    pub wgpu: String,
    /// From the start of the process until it was ready, milliseconds.
    pub start_ms: f64,
}

/// What a worker computes with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuAdapter {
    /// As the driver has it.
    pub name: String,
    /// The driver's name here.
    pub driver: String,
    /// `cpu`, `integrated`, `discrete`, `virtual` or `other`.
    pub class: String,
    /// The driver's versions, in its own words.
    pub versions: String,
    /// What the device was opened with.
    pub features: Vec<String>,
    /// Limits of the device.
    pub limits: DeviceLimits,
    /// Whether memory of the device is memory of the worker, so that kernels of both kinds work on it.
    pub host_memory: bool,
    /// How long the first check by a known kernel took, compiling included, in milliseconds.
    pub check_cold_ms: f64,
    /// How long the same check took again, with the kernel compiled, in milliseconds.
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
    /// Invocations in a group.
    pub group_invocations: u32,
    /// Bytes of a group's shared memory.
    pub group_bytes: u32,
    /// Groups in a dimension.
    pub groups: u32,
}

/// How fast this machine is. On a machine without a device, what needs one is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineSpeed {
    /// Multiplying matrices by a shader, GFLOP/s.
    pub matmul_wgsl: f64,
    /// Multiplying matrices on the processor, GFLOP/s.
    pub matmul_host: f64,
    /// A map over a large buffer, bytes read and written in a second.
    pub map_bytes_s: f64,
    /// A lone dispatch until it is done, microseconds.
    pub dispatch_us: f64,
    /// The first product of matrices, milliseconds: what compiling costs.
    pub cold_jit_ms: f64,
}

/// What went wrong with a shader, in the details of the fault `E_SHADER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShaderPosition {
    /// Counted from 1; 0 where it is no place of the text.
    pub line: u32,
    /// In bytes, counted from 1.
    pub column: u32,
}

/// Codes of faults; `docs/compute.md` says what each becomes for a caller.
pub mod codes {
    /// Given up.
    pub const ABORTED: &str = "E_ABORT";
    /// The device is gone.
    pub const DEVICE_LOST: &str = "E_DEVICE_LOST";
    /// The worker's own mistake.
    pub const INTERNAL: &str = "E_INTERNAL";
    /// There is nothing to compute with.
    pub const NO_ADAPTER: &str = "E_NO_ADAPTER";
    /// More memory than there is.
    pub const QUOTA: &str = "E_QUOTA";
    /// The shader is wrong, or is not what its bindings say.
    pub const SHADER: &str = "E_SHADER";
    /// What was given does not fit together.
    pub const SHAPE: &str = "E_SHAPE";
    /// More than one buffer or binding holds.
    pub const TOO_LARGE: &str = "E_TOO_LARGE";
}
