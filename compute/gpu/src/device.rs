//! The device that runs every kernel: it is chosen, opened, and used without panics.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use alknet_vulkan::{AdapterInventory, DriverAdapter};
use wgpu::{BufferUsages, ErrorFilter, Features};

use crate::error::{Error, Result};

/// Features that are requested if the adapter has them.
const WANTED: Features = Features::SHADER_F16
    .union(Features::SHADER_F64)
    .union(Features::SHADER_INT64)
    .union(Features::SUBGROUP);

/// Usages of every buffer.
const USAGES: BufferUsages = BufferUsages::STORAGE
    .union(BufferUsages::UNIFORM)
    .union(BufferUsages::COPY_DST)
    .union(BufferUsages::COPY_SRC);

/// Further usages of a buffer if device memory is memory of this process.
const MAPPED: BufferUsages = BufferUsages::MAP_READ.union(BufferUsages::MAP_WRITE);

/// An open device.
#[derive(Debug)]
pub(crate) struct GpuDevice {
    /// The adapter and its driver.
    pub(crate) found: DriverAdapter,
    /// How long the drivers took to list their adapters.
    pub(crate) instance_time: Duration,
    /// How long the device took to open.
    pub(crate) device_time: Duration,
    /// Why better adapters were passed over, one reason for each.
    pub(crate) passed_over: Vec<String>,
    /// Whether device memory is memory of this process.
    pub(crate) host_memory: bool,
    device: wgpu::Device,
    queue: wgpu::Queue,
}

/// A compiled shader.
#[derive(Debug)]
pub(crate) struct ShaderPipeline {
    pipeline: wgpu::ComputePipeline,
}

/// The adapters of the linked drivers. The absence of drivers is an error, the absence of adapters is not.
pub(crate) fn inventory() -> Result<AdapterInventory> {
    if alknet_vulkan::DRIVERS.is_empty() {
        return Err(Error::NoDriver);
    }
    Ok(alknet_vulkan::adapters(alknet_vulkan::instances()))
}

impl GpuDevice {
    /// Opens the best adapter with its real limits, which are far above wgpu's defaults.
    pub(crate) fn open() -> Result<Self> {
        Self::open_trusted(None, |_| Ok(()))
    }

    /// Opens the best adapter that `trust` accepts, of the driver `wanted` if one is named.
    pub(crate) fn open_trusted(
        wanted: Option<&str>,
        trust: impl Fn(&Self) -> Result<()>,
    ) -> Result<Self> {
        let started = Instant::now();
        let found = inventory()?;
        let instance_time = started.elapsed();
        let mut passed_over = reasons(&found);
        let mut last = None;
        for adapter in found.adapters {
            let name = adapter.info.name.clone();
            if wanted.is_some_and(|wanted| wanted != adapter.driver) {
                // The node shows these reasons, so an administrator learns why a GPU is unused.
                passed_over.push(format!("{name}: not the driver that is wanted"));
                continue;
            }
            let opened = Self::open_one(adapter, instance_time);
            let opened = opened.and_then(|device| trust(&device).map(|()| device));
            match opened {
                Ok(mut device) => {
                    device.passed_over = passed_over;
                    return Ok(device);
                }
                Err(error) => {
                    passed_over.push(format!("{name}: {error}"));
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::NoAdapter(passed_over.join("; "))))
    }

    fn open_one(found: DriverAdapter, instance_time: Duration) -> Result<Self> {
        let started = Instant::now();
        let mut features = WANTED;
        // Only for a processor: on other adapters, memory that both sides can access is slow for one of them.
        if found.info.device_type == wgpu::DeviceType::Cpu {
            features |= Features::MAPPABLE_PRIMARY_BUFFERS;
        }
        let features = found.adapter.features() & features;
        let wanted = wgpu::DeviceDescriptor {
            required_limits: found.adapter.limits(),
            required_features: features,
            ..wgpu::DeviceDescriptor::default()
        };
        let opened = pollster::block_on(found.adapter.request_device(&wanted));
        let (device, queue) = opened.map_err(|error| Error::NoDevice {
            adapter: found.info.name.clone(),
            why: error.to_string(),
        })?;
        // wgpu's default handler panics. An error in this handler was raised outside of every error scope; the caller
        // notices its effect when it reads the result.
        device.on_uncaptured_error(Arc::new(|error: wgpu::Error| {
            crate::show_failure(&Error::from(error));
        }));
        Ok(Self {
            found,
            instance_time,
            device_time: started.elapsed(),
            passed_over: Vec::new(),
            host_memory: features.contains(Features::MAPPABLE_PRIMARY_BUFFERS),
            device,
            queue,
        })
    }

    /// Whether the device was opened with these features.
    pub(crate) fn has(&self, features: Features) -> bool {
        self.device.features().contains(features)
    }

    /// The features that the device was opened with.
    pub(crate) fn features(&self) -> Features {
        self.device.features()
    }

    /// Whether shaders may pack half floats. WGSL requires this, but not every processor's driver can do it.
    pub(crate) fn packs_half_floats(&self) -> bool {
        let capabilities = self.found.adapter.get_downlevel_capabilities();
        (capabilities.flags).contains(wgpu::DownlevelFlags::SHADER_F16_IN_F32)
    }

    /// The device's limits.
    pub(crate) fn limits(&self) -> wgpu::Limits {
        self.device.limits()
    }

    /// Compiles `main` of a shader; `constants` are its overrides by name.
    pub(crate) fn kernel(&self, wgsl: &str, constants: &[(&str, f64)]) -> Result<ShaderPipeline> {
        self.compile(wgsl, "main", constants, None)
    }

    /// Compiles a shader with these bindings, all of them in group 0.
    pub(crate) fn kernel_bound(
        &self,
        wgsl: &str,
        entry: &str,
        bindings: &[(u32, wgpu::BufferBindingType)],
    ) -> Result<ShaderPipeline> {
        let entries: Vec<_> = bindings
            .iter()
            .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding: *binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: *ty,
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = self.checked(|| {
            let group = (self.device).create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &entries,
            });
            self.device
                .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                    label: None,
                    bind_group_layouts: &[Some(&group)],
                    immediate_size: 0,
                })
        })?;
        self.compile(wgsl, entry, &[], Some(&layout))
    }

    fn compile(
        &self,
        wgsl: &str,
        entry: &str,
        constants: &[(&str, f64)],
        layout: Option<&wgpu::PipelineLayout>,
    ) -> Result<ShaderPipeline> {
        self.checked(|| {
            let module = self
                .device
                .create_shader_module(wgpu::ShaderModuleDescriptor {
                    label: None,
                    source: wgpu::ShaderSource::Wgsl(wgsl.into()),
                });
            let compilation_options = wgpu::PipelineCompilationOptions {
                constants,
                ..wgpu::PipelineCompilationOptions::default()
            };
            let wanted = wgpu::ComputePipelineDescriptor {
                label: None,
                layout,
                module: &module,
                entry_point: Some(entry),
                compilation_options,
                cache: None,
            };
            ShaderPipeline {
                pipeline: self.device.create_compute_pipeline(&wanted),
            }
        })
    }

    /// A buffer with this content; its size is rounded up to whole words, and is at least one word.
    pub(crate) fn upload(&self, bytes: &[u8]) -> Result<wgpu::Buffer> {
        let buffer = self.allocate(words(bytes.len() as u64), self.usages(), true)?;
        self.checked(|| {
            let mapped = buffer.get_mapped_range_mut(..);
            mapped.map(|mut mapped| mapped.slice(..bytes.len()).copy_from_slice(bytes))
        })?
        .map_err(|error| Error::Lost(error.to_string()))?;
        buffer.unmap();
        Ok(buffer)
    }

    /// A buffer full of zeros.
    pub(crate) fn buffer(&self, bytes: u64) -> Result<wgpu::Buffer> {
        self.allocate(words(bytes), self.usages(), false)
    }

    fn usages(&self) -> BufferUsages {
        if self.host_memory {
            return USAGES | MAPPED;
        }
        USAGES
    }

    fn allocate(
        &self,
        size: u64,
        usage: BufferUsages,
        mapped_at_creation: bool,
    ) -> Result<wgpu::Buffer> {
        self.checked(|| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage,
                mapped_at_creation,
            })
        })
    }

    /// Overwrites a part of a buffer. Offset and length must be multiples of a word, unless the buffer is memory of
    /// this process.
    pub(crate) fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        if !self.host_memory {
            return self.checked(|| self.queue.write_buffer(buffer, offset, bytes));
        }
        self.with_written(buffer, |mut memory| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            memory
                .slice(from..from + bytes.len())
                .copy_from_slice(bytes);
        })
    }

    /// Copies a whole buffer into another of the same size.
    pub(crate) fn copy(&self, from: &wgpu::Buffer, to: &wgpu::Buffer) -> Result<()> {
        self.checked(|| {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(from, 0, to, 0, from.size().min(to.size()));
            self.queue.submit([encoder.finish()]);
        })?;
        self.wait()
    }

    /// Lets `work` write the buffer's memory, which must be memory of this process.
    pub(crate) fn with_written<T>(
        &self,
        buffer: &wgpu::Buffer,
        work: impl FnOnce(wgpu::WriteOnly<'_, [u8]>) -> T,
    ) -> Result<T> {
        self.map(buffer, wgpu::MapMode::Write)?;
        let mapped = buffer.get_mapped_range_mut(..);
        let done = mapped.map(|mut mapped| work(mapped.slice(..)));
        buffer.unmap();
        done.map_err(|error| Error::Lost(error.to_string()))
    }

    /// Lets `work` read the buffer's content, without a copy if it is memory of this process.
    pub(crate) fn with_read<T>(
        &self,
        buffer: &wgpu::Buffer,
        work: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
        if !self.host_memory {
            return Ok(work(&self.read_staged(buffer)?));
        }
        self.map(buffer, wgpu::MapMode::Read)?;
        let mapped = buffer.get_mapped_range(..);
        let done = mapped.map(|mapped| work(&mapped));
        buffer.unmap();
        done.map_err(|error| Error::Lost(error.to_string()))
    }

    fn map(&self, buffer: &wgpu::Buffer, mode: wgpu::MapMode) -> Result<()> {
        let (sender, mapped) = mpsc::channel();
        self.checked(|| {
            buffer.map_async(mode, .., move |result| {
                // The receiver is dropped if this call has already failed.
                let _ = sender.send(result);
            });
        })?;
        self.wait()?;
        let lost = |why: &dyn std::fmt::Display| Error::Lost(why.to_string());
        // `wait` has run the callback, so a missing result means that the device is lost.
        let result = mapped.try_recv().map_err(|error| lost(&error))?;
        result.map_err(|error| lost(&error))
    }

    /// Runs a kernel with `buffers` as its bindings 0, 1, … and waits until it is done.
    pub(crate) fn dispatch(
        &self,
        kernel: &ShaderPipeline,
        buffers: &[&wgpu::Buffer],
        groups: [u32; 3],
    ) -> Result<()> {
        let bindings: Vec<_> = (0..).zip(buffers.iter().copied()).collect();
        self.submit(kernel, &bindings, groups)?;
        self.wait()
    }

    /// Submits a kernel, which runs after all that was submitted before.
    pub(crate) fn submit(
        &self,
        kernel: &ShaderPipeline,
        buffers: &[(u32, &wgpu::Buffer)],
        groups: [u32; 3],
    ) -> Result<()> {
        self.checked(|| {
            let entries: Vec<_> = buffers
                .iter()
                .map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding: *binding,
                    resource: buffer.as_entire_binding(),
                })
                .collect();
            let bindings = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &kernel.pipeline.get_bind_group_layout(0),
                entries: &entries,
            });
            let mut encoder = self.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&kernel.pipeline);
                pass.set_bind_group(0, &bindings, &[]);
                pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
            }
            self.queue.submit([encoder.finish()]);
        })
    }

    /// A buffer's content.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer) -> Result<Vec<u8>> {
        self.with_read(buffer, <[u8]>::to_vec)
    }

    /// Reads the buffer through a second one, for memory that only the device can access.
    fn read_staged(&self, buffer: &wgpu::Buffer) -> Result<Vec<u8>> {
        // WebGPU allows MAP_READ together with COPY_DST only, so a shader's buffer cannot be mapped itself.
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let staging = self.allocate(buffer.size(), usage, false)?;
        self.copy(buffer, &staging)?;
        self.map(&staging, wgpu::MapMode::Read)?;
        let range = staging.get_mapped_range(..);
        range
            .map(|range| range.to_vec())
            .map_err(|error| Error::Lost(error.to_string()))
    }

    /// Waits until all submitted work is done.
    pub(crate) fn wait(&self) -> Result<()> {
        let waited = self.device.poll(wgpu::PollType::wait_indefinitely());
        waited
            .map(drop)
            .map_err(|error| Error::Lost(error.to_string()))
    }

    /// Does `work` and returns the first error that wgpu raised; without an error scope wgpu would call the handler
    /// of uncaptured errors.
    fn checked<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        // An error of each kind must be caught, and a scope catches only one kind.
        let scopes = [
            ErrorFilter::Internal,
            ErrorFilter::OutOfMemory,
            ErrorFilter::Validation,
        ];
        let scopes = scopes.map(|filter| self.device.push_error_scope(filter));
        let result = work();
        let mut first = None;
        // Error scopes are a stack, so the last one is popped first.
        for scope in scopes.into_iter().rev() {
            let error = pollster::block_on(scope.pop());
            first = first.or(error);
        }
        first.map_or(Ok(result), |error| Err(error.into()))
    }
}

/// Why there is no adapter, or no better one, driver by driver.
fn reasons(found: &AdapterInventory) -> Vec<String> {
    let idle = found
        .idle
        .iter()
        .map(|driver| format!("{driver} has no hardware here"));
    let failed = found.errors.iter().map(ToString::to_string);
    idle.chain(failed).collect()
}

/// Rounds up to whole words, at least one, because a binding must not be empty.
fn words(bytes: u64) -> u64 {
    let word = size_of::<u32>() as u64;
    bytes.next_multiple_of(word).max(word)
}
