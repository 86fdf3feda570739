//! Runs the callers' shaders.

use std::sync::Arc;
use std::time::Instant;

use alknet_compute_wire::limits::GROUPS_MAX;
use alknet_compute_wire::{
    Binding, BindingAccess, ByteSource, DispatchReply, ResultSink, ShaderDispatch,
};
use sha2::{Digest, Sha256};

use super::buffers::TensorBuffer;
use super::engine::GpuJob;
use super::fault::{GpuFault, GpuResult};
use super::shader::{self, ShaderLimits};
use crate::device::{GpuDevice, ShaderPipeline};
use crate::milliseconds;

/// Compiled shaders of callers that the worker caches.
const PIPELINES_KEPT: usize = 64;

/// The compiled shaders, the most recently used one last.
#[derive(Debug, Default)]
pub(super) struct PipelineCache(Vec<([u8; 32], Arc<ShaderPipeline>)>);

impl PipelineCache {
    fn get(&mut self, key: &[u8; 32]) -> Option<Arc<ShaderPipeline>> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        let found = self.0.remove(at);
        self.0.push(found);
        self.0.last().map(|(_, kernel)| Arc::clone(kernel))
    }

    fn put(&mut self, key: [u8; 32], kernel: &Arc<ShaderPipeline>) {
        if self.0.len() >= PIPELINES_KEPT {
            // The least recently used shader is the first one.
            self.0.remove(0);
        }
        self.0.push((key, Arc::clone(kernel)));
    }
}

impl GpuJob<'_> {
    pub(super) fn dispatch(&mut self, ask: ShaderDispatch) -> GpuResult<DispatchReply> {
        if ask.groups.iter().any(|groups| *groups > GROUPS_MAX) {
            return Err(GpuFault::shape(format!(
                "at most {GROUPS_MAX} groups in a dimension"
            )));
        }
        let begun = Instant::now();
        let key = key(&ask);
        let known = self.engine.pipelines.get(&key);
        // A cached shader was checked before it was compiled.
        if known.is_none() {
            let bounds = bounds(self.engine.memory.device()?);
            shader::check(&ask.wgsl, &ask.entry, &ask.bindings, bounds)?;
        }
        let bound = self.bind(&ask.bindings)?;
        let mut buffers = Vec::with_capacity(bound.len());
        for (binding, stored) in ask.bindings.iter().zip(&bound) {
            buffers.push((binding.binding, stored.storage.buffer()?));
        }
        let device = self.engine.memory.device()?;
        let fresh = known.is_none();
        let kernel = match known {
            Some(kernel) => kernel,
            None => Arc::new(compile(device, &ask)?),
        };
        if fresh {
            // The driver compiles a shader when it first runs it, so an empty dispatch makes it
            // compile.
            device.submit(&kernel, &buffers, [0, 0, 0])?;
            device.wait()?;
        }
        let jit_ms = if fresh {
            milliseconds(begun.elapsed())
        } else {
            0.0
        };
        // Compiling may have taken longer than the caller waits.
        if self.call.is_aborted() {
            return Err(GpuFault::aborted());
        }
        let begun = Instant::now();
        device.submit(&kernel, &buffers, ask.groups)?;
        device.wait()?;
        let gpu_ms = milliseconds(begun.elapsed());
        drop(buffers);
        // Only a shader that ran to its end is cached.
        if fresh {
            self.engine.pipelines.put(key, &kernel);
        }
        self.still_wanted()?;
        let mut outputs = Vec::new();
        for (binding, stored) in ask.bindings.iter().zip(bound) {
            let Some(to) = binding.to else {
                continue;
            };
            let bytes = self.deliver_stored(to, stored.storage, stored.len)?;
            outputs.extend(bytes.map(|bytes| (binding.binding, bytes)));
        }
        Ok(DispatchReply {
            outputs,
            gpu_ms,
            jit_ms,
        })
    }

    /// Makes a buffer for each binding.
    fn bind(&self, bindings: &[Binding]) -> GpuResult<Vec<TensorBuffer>> {
        let memory = &self.engine.memory;
        let limits = memory.device()?.limits();
        let mut used = self.used;
        let mut bound = Vec::new();
        for binding in bindings {
            let number = binding.binding;
            if self.tensor_table.len(&binding.from)? == 0 {
                let message = format!("binding {number}: a tensor of no bytes cannot be bound");
                return Err(GpuFault::shape(message));
            }
            let stored = self.tensor_table.stored_from(memory, &binding.from, used)?;
            if !matches!(binding.from, ByteSource::Buffer(_)) {
                used += stored.storage.size();
            }
            let most = match binding.access {
                BindingAccess::Uniform => limits.max_uniform_buffer_binding_size,
                BindingAccess::Read | BindingAccess::ReadWrite => {
                    limits.max_storage_buffer_binding_size
                }
            };
            if stored.len > most {
                let what = format!("binding {number}, a tensor");
                return Err(GpuFault::too_large(&what, stored.len, most));
            }
            if matches!(
                (&binding.from, binding.to),
                // A buffer that is bound keeps its number, so it cannot be delivered as another
                // one.
                (ByteSource::Buffer(_), Some(ResultSink::Buffer(_)))
            ) {
                return Err(GpuFault::internal("a buffer has one number"));
            }
            bound.push(stored);
        }
        Ok(bound)
    }
}

fn bounds(device: &GpuDevice) -> ShaderLimits {
    let limits = device.limits();
    ShaderLimits {
        group_invocations: limits.max_compute_invocations_per_workgroup,
        group_bytes: u64::from(limits.max_compute_workgroup_storage_size),
        half_floats: device.packs_half_floats(),
    }
}

fn compile(device: &GpuDevice, ask: &ShaderDispatch) -> GpuResult<ShaderPipeline> {
    let layout: Vec<_> = ask
        .bindings
        .iter()
        .map(|binding| {
            let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
            let ty = match binding.access {
                BindingAccess::Read => storage(true),
                BindingAccess::ReadWrite => storage(false),
                BindingAccess::Uniform => wgpu::BufferBindingType::Uniform,
            };
            (binding.binding, ty)
        })
        .collect();
    Ok(device.kernel_bound(&ask.wgsl, &ask.entry, &layout)?)
}

/// The hash of all inputs that determine the compiled code and its bindings.
fn key(ask: &ShaderDispatch) -> [u8; 32] {
    let mut hash = Sha256::new();
    // Each text is hashed with its length, so that a shader and a name cannot run together.
    for text in [&ask.wgsl, &ask.entry] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    for binding in &ask.bindings {
        hash.update(binding.binding.to_le_bytes());
        hash.update([binding.access as u8]);
    }
    hash.finalize().into()
}
