//! The state of a worker, and the handling of each request.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use alknet_compute_wire::limits::TENSOR_BYTES_MAX;
use alknet_compute_wire::{
    ByteSource, ComputeAck, ComputeRequest, ComputeUpload, DeviceLimits, GpuAdapter, GpuWorkerInfo,
    ResultSink,
};
use alknet_worker::{CborBody, GuestCall};
use serde::Serialize;

use super::buffers::{BufferPool, SourceBytes, TensorBuffer, check_length, check_quota};
use super::clock::GpuClock;
use super::dispatch::PipelineCache;
use super::fault::{GpuFault, GpuResult};
use super::memory::{TensorMemory, TensorStorage};
use super::templates::{KernelCache, KernelName, MatmulPlan, best_product};
use super::trust;
use crate::device::{GpuDevice, ShaderPipeline};
use crate::milliseconds;

/// A worker. Without a device it reports the reason, and computes what it can on its own threads.
#[derive(Debug)]
pub(super) struct GpuWorkerState {
    info: GpuWorkerInfo,
    engine: GpuEngine,
    pools: HashMap<u64, BufferPool>,
}

/// The device, if there is one, and the shaders compiled for it.
#[derive(Debug)]
pub(super) struct GpuEngine {
    pub(super) memory: TensorMemory,
    pub(super) pipelines: PipelineCache,
    pub(super) kernels: KernelCache,
}

impl GpuWorkerState {
    /// Opens the best adapter that passes the check, of the driver `wanted` if one is named.
    pub(super) fn start(started: Instant, wanted: Option<&str>) -> Self {
        let mut info = GpuWorkerInfo {
            wgpu: WGPU.to_owned(),
            ..GpuWorkerInfo::default()
        };
        // The time of the last adapter that was checked, which is the one that is opened.
        let cold = Cell::new(Duration::ZERO);
        let first = |device: &GpuDevice| {
            let begun = Instant::now();
            let checked = trust::check(device);
            cold.set(begun.elapsed());
            checked
        };
        let mut warm = Duration::ZERO;
        let opened = GpuDevice::open_trusted(wanted, first).and_then(|device| {
            // The kernel is compiled by now, so a second check measures the time of a warm one.
            let begun = Instant::now();
            trust::check(&device)?;
            warm = begun.elapsed();
            Ok(device)
        });
        let memory = match opened {
            Ok(device) => {
                info.reason = reason(&device);
                info.adapter = Some(adapter(&device, cold.get(), warm));
                TensorMemory::Device(Box::new(device))
            }
            Err(error) => {
                info.reason = Some(error.to_string());
                TensorMemory::Process(error.to_string())
            }
        };
        info.start_ms = milliseconds(started.elapsed());
        Self {
            info,
            engine: GpuEngine {
                memory,
                pipelines: PipelineCache::default(),
                kernels: KernelCache::default(),
            },
            pools: HashMap::new(),
        }
    }

    /// Carries out one request.
    pub(super) fn perform(
        &mut self,
        call: &GuestCall,
        clock: GpuClock<'_>,
        ask: ComputeRequest,
    ) -> GpuResult<Vec<u8>> {
        if ask == ComputeRequest::Info {
            return encoded(&self.info);
        }
        let used = self.bytes();
        let tensor_table = self.pools.entry(call.sid()).or_default();
        let mut job = GpuJob {
            call,
            clock,
            engine: &mut self.engine,
            tensor_table,
            used,
        };
        match ask {
            ComputeRequest::Create { buffer, from } => job.create(buffer, &from),
            ComputeRequest::Dispatch(dispatch) => encoded(&job.dispatch(dispatch)?),
            // Numbers that no buffer has are ignored: the node drops after errors as well.
            ComputeRequest::Drop { buffers } => {
                buffers
                    .into_iter()
                    .for_each(|number| tensor_table.remove(number));
                encoded(&ComputeAck {})
            }
            ComputeRequest::Matmul(matmul) => encoded(&job.matmul(&matmul)?),
            ComputeRequest::Measure { threads } => encoded(&job.measure(threads)?),
            ComputeRequest::Read {
                buffer,
                offset,
                len,
            } => job.read(buffer, offset, len),
            ComputeRequest::Sha256(sha256) => encoded(&job.sha256(&sha256)?),
            ComputeRequest::Write {
                buffer,
                offset,
                from,
            } => job.write(buffer, offset, &from),
            _ => Err(GpuFault::internal("this worker has no such request")),
        }
    }

    pub(super) fn upload(&mut self, sid: u64, upload: ComputeUpload, fds: &[OwnedFd]) {
        self.pools.entry(sid).or_default().upload(upload, fds);
    }

    pub(super) fn forget_uploads(&mut self, sid: u64) {
        if let Some(tensor_table) = self.pools.get_mut(&sid) {
            tensor_table.forget_uploads();
        }
    }

    pub(super) fn close(&mut self, sid: u64) {
        self.pools.remove(&sid);
    }

    /// Bytes of all buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.pools.values().map(BufferPool::bytes).sum()
    }
}

/// One request while it is carried out.
pub(super) struct GpuJob<'a> {
    pub(super) call: &'a GuestCall,
    pub(super) clock: GpuClock<'a>,
    pub(super) engine: &'a mut GpuEngine,
    pub(super) tensor_table: &'a mut BufferPool,
    /// Bytes of the worker's buffers when the request began.
    pub(super) used: u64,
}

impl GpuJob<'_> {
    fn create(&mut self, number: u64, from: &ByteSource) -> GpuResult<Vec<u8>> {
        let stored = match from {
            ByteSource::Buffer(other) => {
                let other = self.tensor_table.stored(*other)?;
                check_quota(self.used, other.len)?;
                let storage = self.engine.memory.copied(&other.storage)?;
                TensorBuffer { storage, ..other }
            }
            // Other sources are new storage in any case, and need no copy.
            from => (self.tensor_table).stored_from(&self.engine.memory, from, self.used)?,
        };
        self.tensor_table.put(number, stored);
        encoded(&ComputeAck {})
    }

    fn read(&self, number: u64, offset: u64, len: u64) -> GpuResult<Vec<u8>> {
        let stored = self.tensor_table.stored(number)?;
        let range = within(stored.len, offset, len)?;
        let read = |bytes: &[u8]| bytes.get(range).map(<[u8]>::to_vec);
        let bytes = self.engine.memory.with_read(&stored.storage, read)?;
        bytes.ok_or_else(|| GpuFault::internal("a buffer shorter than it is"))
    }

    fn write(&self, number: u64, offset: u64, from: &ByteSource) -> GpuResult<Vec<u8>> {
        let stored = self.tensor_table.stored(number)?;
        let SourceBytes::Memory(bytes) = self.tensor_table.locate(from)? else {
            return Err(GpuFault::internal("only bytes are written"));
        };
        within(stored.len, offset, bytes.len() as u64)?;
        if !bytes.is_empty() {
            self.engine.memory.write(&stored.storage, offset, &bytes)?;
        }
        encoded(&ComputeAck {})
    }

    /// Puts a result into its sink; returns the result if the answer is the sink.
    pub(super) fn deliver(
        &mut self,
        to: ResultSink,
        result: Vec<u8>,
    ) -> GpuResult<Option<bytes::Bytes>> {
        match to {
            ResultSink::Answer => Ok(Some(result.into())),
            ResultSink::Buffer(number) => {
                let len = result.len() as u64;
                // The limits of the tensor and of the worker are checked before the device
                // allocates memory.
                check_length(len)?;
                check_quota(self.used, len)?;
                let storage = self.engine.memory.upload(&result)?;
                self.tensor_table.put(number, TensorBuffer { storage, len });
                Ok(None)
            }
        }
    }

    /// The same for a result that is in storage, of which the first `len` bytes are in use.
    pub(super) fn deliver_stored(
        &mut self,
        to: ResultSink,
        storage: TensorStorage,
        len: u64,
    ) -> GpuResult<Option<bytes::Bytes>> {
        match to {
            ResultSink::Answer => {
                // The storage may be longer than the tensor.
                let cut = usize::try_from(len).unwrap_or(usize::MAX);
                let read =
                    |bytes: &[u8]| bytes::Bytes::copy_from_slice(&bytes[..cut.min(bytes.len())]);
                Ok(Some(self.engine.memory.with_read(&storage, read)?))
            }
            ResultSink::Buffer(number) => {
                self.tensor_table.put(number, TensorBuffer { storage, len });
                Ok(None)
            }
        }
    }

    /// A kernel of this program, compiled when a request first needs it. The driver compiles a
    /// shader only when it runs, so a new kernel runs once over no group of these buffers.
    pub(super) fn kernel(
        &mut self,
        name: KernelName,
        buffers: &[(u32, &wgpu::Buffer)],
        jit: &mut Duration,
    ) -> GpuResult<(&GpuDevice, &ShaderPipeline)> {
        let GpuEngine {
            memory, kernels, ..
        } = &mut *self.engine;
        let device = memory.device()?;
        let kernel = kernels.get(name, |wgsl| {
            self.clock.stands(jit, || {
                let kernel = device.kernel(wgsl, &[])?;
                // A driver may compile at the first dispatch, so an empty one is a part of
                // compiling.
                device.submit(&kernel, buffers, [0, 0, 0])?;
                device.wait()?;
                Ok(kernel)
            })
        })?;
        Ok((device, kernel))
    }

    /// The matrix kernel, and how it divides its work.
    pub(super) fn multiplier(
        &mut self,
        jit: &mut Duration,
    ) -> GpuResult<(&GpuDevice, &ShaderPipeline, MatmulPlan)> {
        let GpuEngine {
            memory, kernels, ..
        } = &mut *self.engine;
        let device = memory.device()?;
        let (kernel, plan) = kernels.product(|| self.clock.stands(jit, || best_product(device)))?;
        Ok((device, kernel, plan))
    }

    /// Fails if the caller has aborted the request.
    pub(super) fn still_wanted(&self) -> GpuResult<()> {
        if self.call.is_aborted() {
            return Err(GpuFault::aborted());
        }
        Ok(())
    }
}

/// Version of wgpu, which includes the shader compiler.
const WGPU: &str = "30";

fn within(len: u64, offset: u64, wanted: u64) -> GpuResult<std::ops::Range<usize>> {
    let end = offset.checked_add(wanted).filter(|end| *end <= len);
    let end = end.ok_or_else(|| GpuFault::shape("that is not inside the tensor"))?;
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Ok(size(offset)..size(end))
}

pub(super) fn encoded<T: Serialize>(value: &T) -> GpuResult<Vec<u8>> {
    let body = CborBody::encode(value).map_err(|error| GpuFault::internal(&error.to_string()))?;
    Ok(body.into_bytes())
}

/// Why the device is no hardware, if it is not.
fn reason(device: &GpuDevice) -> Option<String> {
    // On hardware there is no fallback to explain.
    if device.found.info.device_type != wgpu::DeviceType::Cpu {
        return None;
    }
    if device.passed_over.is_empty() {
        return Some("no driver for hardware is linked".to_owned());
    }
    Some(device.passed_over.join("; "))
}

/// `cold` and `warm` are the times of its two checks.
fn adapter(device: &GpuDevice, cold: Duration, warm: Duration) -> GpuAdapter {
    let info = &device.found.info;
    let limits = device.limits();
    let class = match info.device_type {
        wgpu::DeviceType::Cpu => "cpu",
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Other => "other",
    };
    let features = device.features();
    GpuAdapter {
        name: info.name.clone(),
        driver: device.found.driver.to_owned(),
        class: class.to_owned(),
        versions: info.driver_info.clone(),
        features: features
            .iter_names()
            .map(|(name, _)| name.to_owned())
            .collect(),
        limits: DeviceLimits {
            buffer_bytes: limits.max_buffer_size,
            // A tensor's own limit may be lower than the device's.
            storage_bytes: limits.max_storage_buffer_binding_size.min(TENSOR_BYTES_MAX),
            uniform_bytes: limits.max_uniform_buffer_binding_size,
            storage_bindings: limits.max_storage_buffers_per_shader_stage,
            group_invocations: limits.max_compute_invocations_per_workgroup,
            group_bytes: limits.max_compute_workgroup_storage_size,
            groups: limits.max_compute_workgroups_per_dimension,
        },
        host_memory: device.host_memory,
        check_cold_ms: milliseconds(cold),
        check_warm_ms: milliseconds(warm),
    }
}
