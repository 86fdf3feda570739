//! What a worker has, and who does which request.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use alknet_compute_wire::limits::TENSOR_BYTES_MAX;
use alknet_compute_wire::{Adapter, Ask, DeviceLimits, Info, Made, Sink, Source, Upload};
use alknet_worker::{Body, GuestCall};
use serde::Serialize;

use super::buffers::{Located, Shelf, Stored, fits, room};
use super::clock::Clock;
use super::dispatch::Pipelines;
use super::fault::{Failed, Outcome};
use super::memory::{Kept, Memory};
use super::templates::{Kernels, Name, Plan, best_product};
use super::trust;
use crate::device::{Device, Kernel};
use crate::milliseconds;

/// A worker. Where there is no device it says so, and does what it can on its own threads.
#[derive(Debug)]
pub(super) struct State {
    info: Info,
    engine: Engine,
    shelves: HashMap<u64, Shelf>,
}

/// The device, if there is one, and what was compiled for it.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) memory: Memory,
    pub(super) pipelines: Pipelines,
    pub(super) kernels: Kernels,
}

impl State {
    /// Opens the best adapter that computes as it should, of one driver only where one is wanted.
    pub(super) fn start(started: Instant, wanted: Option<&str>) -> Self {
        let mut info = Info {
            wgpu: WGPU.to_owned(),
            ..Info::default()
        };
        let mut selftest_ms = 0.0;
        let opened = Device::open_trusted(wanted, trust::check).and_then(|device| {
            // Again, now that it is compiled: what is told is what the first one cost beyond that.
            let begun = Instant::now();
            trust::check(&device)?;
            selftest_ms = milliseconds(begun.elapsed());
            Ok(device)
        });
        let memory = match opened {
            Ok(device) => {
                info.reason = reason(&device);
                info.adapter = Some(adapter(&device, selftest_ms));
                Memory::Device(Box::new(device))
            }
            Err(error) => {
                info.reason = Some(error.to_string());
                Memory::Process(error.to_string())
            }
        };
        info.start_ms = milliseconds(started.elapsed());
        Self {
            info,
            engine: Engine {
                memory,
                pipelines: Pipelines::default(),
                kernels: Kernels::default(),
            },
            shelves: HashMap::new(),
        }
    }

    /// Does what is asked.
    pub(super) fn perform(
        &mut self,
        call: &GuestCall,
        clock: Clock<'_>,
        ask: Ask,
    ) -> Outcome<Vec<u8>> {
        if ask == Ask::Info {
            return encoded(&self.info);
        }
        let used = self.bytes();
        let shelf = self.shelves.entry(call.sid()).or_default();
        let mut job = Job {
            call,
            clock,
            engine: &mut self.engine,
            shelf,
            used,
        };
        match ask {
            Ask::Create { buffer, from } => job.create(buffer, &from),
            Ask::Dispatch(dispatch) => encoded(&job.dispatch(dispatch)?),
            Ask::Drop { buffers } => {
                if !(std::env::var("ALKNET_MUTANT").as_deref() == Ok("2092")) { buffers.into_iter().for_each(|number| shelf.remove(number)); }
                encoded(&Made {})
            }
            Ask::Matmul(matmul) => encoded(&job.matmul(&matmul)?),
            Ask::Measure { threads } => encoded(&job.measure(threads)?),
            Ask::Read {
                buffer,
                offset,
                len,
            } => job.read(buffer, offset, len),
            Ask::Sha256(sha256) => encoded(&job.sha256(&sha256)?),
            Ask::Write {
                buffer,
                offset,
                from,
            } => job.write(buffer, offset, &from),
            _ => Err(Failed::internal("this worker has no such request")),
        }
    }

    pub(super) fn upload(&mut self, sid: u64, upload: Upload, fds: &[OwnedFd]) {
        self.shelves.entry(sid).or_default().upload(upload, fds);
    }

    pub(super) fn forget_uploads(&mut self, sid: u64) {
        if let Some(shelf) = self.shelves.get_mut(&sid) {
            shelf.forget_uploads();
        }
    }

    pub(super) fn close(&mut self, sid: u64) {
        self.shelves.remove(&sid);
    }

    /// Bytes of all buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.shelves.values().map(Shelf::bytes).sum()
    }
}

/// One request while it is done.
pub(super) struct Job<'a> {
    pub(super) call: &'a GuestCall,
    pub(super) clock: Clock<'a>,
    pub(super) engine: &'a mut Engine,
    pub(super) shelf: &'a mut Shelf,
    /// Bytes of the worker's buffers when it began.
    pub(super) used: u64,
}

impl Job<'_> {
    fn create(&mut self, number: u64, from: &Source) -> Outcome<Vec<u8>> {
        let stored = match from {
            Source::Buffer(other) => {
                let other = self.shelf.stored(*other)?;
                room(self.used, other.len)?;
                let kept = self.engine.memory.copied(&other.kept)?;
                Stored { kept, ..other }
            }
            from => (self.shelf).stored_from(&self.engine.memory, from, self.used)?,
        };
        self.shelf.put(number, stored);
        encoded(&Made {})
    }

    fn read(&self, number: u64, offset: u64, len: u64) -> Outcome<Vec<u8>> {
        let stored = self.shelf.stored(number)?;
        let range = within(stored.len, offset, len)?;
        let read = |bytes: &[u8]| bytes.get(range).map(<[u8]>::to_vec);
        let bytes = self.engine.memory.with_read(&stored.kept, read)?;
        bytes.ok_or_else(|| Failed::internal("a buffer shorter than it is"))
    }

    fn write(&self, number: u64, offset: u64, from: &Source) -> Outcome<Vec<u8>> {
        let stored = self.shelf.stored(number)?;
        let Located::Memory(bytes) = self.shelf.locate(from)? else {
            return Err(Failed::internal("only bytes are written"));
        };
        within(stored.len, offset, bytes.len() as u64)?;
        if !bytes.is_empty() {
            self.engine.memory.write(&stored.kept, offset, &bytes)?;
        }
        encoded(&Made {})
    }

    /// Puts a result where it is wanted; returns it where that is the answer.
    pub(super) fn deliver(&mut self, to: Sink, result: Vec<u8>) -> Outcome<Option<bytes::Bytes>> {
        match to {
            Sink::Answer => Ok(Some(result.into())),
            Sink::Buffer(number) => {
                let len = result.len() as u64;
                fits(len)?;
                room(self.used, len)?;
                let kept = self.engine.memory.upload(&result)?;
                self.shelf.put(number, Stored { kept, len });
                Ok(None)
            }
        }
    }

    /// The same for a result that is kept already, of which `len` bytes mean something.
    pub(super) fn deliver_kept(
        &mut self,
        to: Sink,
        kept: Kept,
        len: u64,
    ) -> Outcome<Option<bytes::Bytes>> {
        match to {
            Sink::Answer => {
                let cut = usize::try_from(len).unwrap_or(usize::MAX);
                let read =
                    |bytes: &[u8]| bytes::Bytes::copy_from_slice(&bytes[..cut.min(bytes.len())]);
                Ok(Some(self.engine.memory.with_read(&kept, read)?))
            }
            Sink::Buffer(number) => {
                self.shelf.put(number, Stored { kept, len });
                Ok(None)
            }
        }
    }

    /// A kernel of ours, compiled when it is first wanted. Until the driver has to run a shader it
    /// compiles nothing: a new one runs once, over no group of these buffers.
    pub(super) fn kernel(
        &mut self,
        name: Name,
        buffers: &[(u32, &wgpu::Buffer)],
        jit: &mut Duration,
    ) -> Outcome<(&Device, &Kernel)> {
        let Engine {
            memory, kernels, ..
        } = &mut *self.engine;
        let device = memory.device()?;
        let kernel = kernels.get(name, |wgsl| {
            self.clock.stands(jit, || {
                let kernel = device.kernel(wgsl, &[])?;
                device.submit(&kernel, buffers, [0, 0, 0])?;
                device.wait()?;
                Ok(kernel)
            })
        })?;
        Ok((device, kernel))
    }

    /// The kernel that multiplies, and how it divides its work.
    pub(super) fn multiplier(&mut self, jit: &mut Duration) -> Outcome<(&Device, &Kernel, Plan)> {
        let Engine {
            memory, kernels, ..
        } = &mut *self.engine;
        let device = memory.device()?;
        let (kernel, plan) = kernels.product(|| self.clock.stands(jit, || best_product(device)))?;
        Ok((device, kernel, plan))
    }

    /// Nobody waits any more.
    pub(super) fn still_wanted(&self) -> Outcome<()> {
        if self.call.is_aborted() {
            return Err(Failed::aborted());
        }
        Ok(())
    }
}

/// Version of the library that speaks to drivers, with the compiler of shaders in it.
const WGPU: &str = "30";

fn within(len: u64, offset: u64, wanted: u64) -> Outcome<std::ops::Range<usize>> {
    let end = offset.checked_add(wanted).filter(|end| *end <= len);
    let end = end.ok_or_else(|| Failed::shape("that is not inside the tensor"))?;
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Ok(size(offset)..size(end))
}

pub(super) fn encoded<T: Serialize>(value: &T) -> Outcome<Vec<u8>> {
    let body = Body::of(value).map_err(|error| Failed::internal(&error.to_string()))?;
    Ok(body.into_bytes())
}

/// Why it is no hardware, where it is none.
fn reason(device: &Device) -> Option<String> {
    if device.found.info.device_type != wgpu::DeviceType::Cpu {
        return None;
    }
    if device.passed_over.is_empty() {
        return Some("no driver for hardware is linked".to_owned());
    }
    Some(device.passed_over.join("; "))
}

fn adapter(device: &Device, selftest_ms: f64) -> Adapter {
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
    Adapter {
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
            storage_bytes: limits.max_storage_buffer_binding_size.min(TENSOR_BYTES_MAX),
            uniform_bytes: limits.max_uniform_buffer_binding_size,
            storage_bindings: limits.max_storage_buffers_per_shader_stage,
            group_invocations: limits.max_compute_invocations_per_workgroup,
            group_bytes: limits.max_compute_workgroup_storage_size,
            groups: limits.max_compute_workgroups_per_dimension,
        },
        host_memory: device.host_memory,
        selftest_ms,
    }
}
