//! The device that everything runs on: chosen, opened, and used without a panic.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use alknet_vulkan::{FoundAdapter, FoundAdapters};
use wgpu::{BufferUsages, ErrorFilter, Features};

use crate::error::{Error, Result};

/// What is asked for where the adapter has it.
const WANTED: Features = Features::SHADER_F16
    .union(Features::SHADER_F64)
    .union(Features::SHADER_INT64)
    .union(Features::SUBGROUP);

/// An open device.
pub(crate) struct Device {
    /// The adapter behind it, and its driver.
    pub(crate) found: FoundAdapter,
    /// How long the drivers took to say what there is.
    pub(crate) instance_time: Duration,
    /// How long the device took to open.
    pub(crate) device_time: Duration,
    device: wgpu::Device,
    queue: wgpu::Queue,
}

/// A shader, ready to run.
#[derive(Debug)]
pub(crate) struct Kernel {
    pipeline: wgpu::ComputePipeline,
}

/// Everything the linked drivers see. No driver at all is an error, no adapter is not.
pub(crate) fn look() -> Result<FoundAdapters> {
    if alknet_vulkan::DRIVERS.is_empty() {
        return Err(Error::NoDriver);
    }
    Ok(alknet_vulkan::adapters(alknet_vulkan::instances()))
}

impl Device {
    /// Opens the best adapter, with its real limits: wgpu's usual ones are far below them.
    pub(crate) fn open() -> Result<Self> {
        let started = Instant::now();
        let found = look()?;
        let instance_time = started.elapsed();
        let nothing = nothing(&found);
        let found = found.adapters.into_iter().next().ok_or(nothing)?;
        let started = Instant::now();
        let wanted = wgpu::DeviceDescriptor {
            required_limits: found.adapter.limits(),
            required_features: found.adapter.features() & WANTED,
            ..wgpu::DeviceDescriptor::default()
        };
        let opened = pollster::block_on(found.adapter.request_device(&wanted));
        let (device, queue) = opened.map_err(|error| Error::NoDevice {
            adapter: found.info.name.clone(),
            why: error.to_string(),
        })?;
        // The default handler panics. Whatever reaches this one is in nobody's error scope, and what
        // it spoilt is noticed by whoever reads the result.
        device.on_uncaptured_error(Arc::new(|error: wgpu::Error| {
            eprintln!("alknet-gpu: {}", Error::from(error));
        }));
        Ok(Self {
            found,
            instance_time,
            device_time: started.elapsed(),
            device,
            queue,
        })
    }

    /// Whether the device was opened with these.
    pub(crate) fn has(&self, features: Features) -> bool {
        self.device.features().contains(features)
    }

    /// Compiles `main` of a shader; `constants` are its overrides by name.
    pub(crate) fn kernel(&self, wgsl: &str, constants: &[(&str, f64)]) -> Result<Kernel> {
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
                layout: None,
                module: &module,
                entry_point: Some("main"),
                compilation_options,
                cache: None,
            };
            Kernel {
                pipeline: self.device.create_compute_pipeline(&wanted),
            }
        })
    }

    /// A buffer with this content; its size is rounded up to whole words.
    pub(crate) fn upload(&self, bytes: &[u8]) -> Result<wgpu::Buffer> {
        let words = bytes.len().next_multiple_of(size_of::<u32>());
        let buffer = self.buffer(words as u64)?;
        let mut padded = bytes.to_vec();
        padded.resize(words, 0);
        self.checked(|| self.queue.write_buffer(&buffer, 0, &padded))?;
        Ok(buffer)
    }

    /// A buffer full of zeros.
    pub(crate) fn buffer(&self, bytes: u64) -> Result<wgpu::Buffer> {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        self.allocate(bytes, usage)
    }

    fn allocate(&self, size: u64, usage: BufferUsages) -> Result<wgpu::Buffer> {
        self.checked(|| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage,
                mapped_at_creation: false,
            })
        })
    }

    /// Runs a kernel with `buffers` as its bindings 0, 1, … and waits until it is done.
    pub(crate) fn dispatch(
        &self,
        kernel: &Kernel,
        buffers: &[&wgpu::Buffer],
        groups: [u32; 3],
    ) -> Result<()> {
        self.checked(|| {
            let entries: Vec<_> = (0..)
                .zip(buffers)
                .map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding,
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
        })?;
        self.wait()
    }

    /// A buffer's content.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer) -> Result<Vec<u8>> {
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let staging = self.allocate(buffer.size(), usage)?;
        let (told, mapped) = mpsc::channel();
        self.checked(|| {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
            self.queue.submit([encoder.finish()]);
            staging.map_async(wgpu::MapMode::Read, .., move |result| {
                // Nobody listens any more when this call has already failed.
                let _ = told.send(result);
            });
        })?;
        self.wait()?;
        let lost = |why: &dyn std::fmt::Display| Error::Lost(why.to_string());
        let result = mapped.try_recv().map_err(|error| lost(&error))?;
        result.map_err(|error| lost(&error))?;
        let range = staging.get_mapped_range(..).map_err(|error| lost(&error))?;
        Ok(range.to_vec())
    }

    fn wait(&self) -> Result<()> {
        let waited = self.device.poll(wgpu::PollType::wait_indefinitely());
        waited
            .map(drop)
            .map_err(|error| Error::Lost(error.to_string()))
    }

    /// Does `work` and returns what wgpu had against it; outside of such a scope it would panic.
    fn checked<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let scopes = [
            ErrorFilter::Internal,
            ErrorFilter::OutOfMemory,
            ErrorFilter::Validation,
        ];
        let scopes = scopes.map(|filter| self.device.push_error_scope(filter));
        let result = work();
        let mut first = None;
        // The last one pushed is popped first.
        for scope in scopes.into_iter().rev() {
            let error = pollster::block_on(scope.pop());
            first = first.or(error);
        }
        first.map_or(Ok(result), |error| Err(error.into()))
    }
}

/// Why there is no adapter, driver by driver.
fn nothing(found: &FoundAdapters) -> Error {
    let idle = found
        .idle
        .iter()
        .map(|driver| format!("{driver} has no hardware here"));
    let failed = found.errors.iter().map(ToString::to_string);
    Error::NoAdapter(idle.chain(failed).collect::<Vec<_>>().join("; "))
}
