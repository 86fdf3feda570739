//! Measures the speed of this machine, by which the node chooses between a shader and the worker's threads.

use std::time::{Duration, Instant};

use alknet_compute_wire::limits::THREADS_MAX;
use alknet_compute_wire::{
    ByteSource, KernelVariant, MachineSpeed, MatmulRequest, Matrix, ResultSink,
};

use super::engine::GpuJob;
use super::fault::GpuResult;
use crate::host::{self, MatrixView};
use crate::milliseconds;

/// Side of the matrices: large enough to show a kernel's speed, and small enough for tens of milliseconds.
const SIDE: u32 = 256;

/// Bytes that the map kernel reads and writes.
const MAP_BYTES: u64 = 16 << 20;

/// Repetitions, of which the fastest counts.
const ROUNDS: usize = 3;

/// No repetition begins after this time: on a slow processor fewer are enough, and the caller waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// Single dispatches that are timed.
const DISPATCHES: usize = 20;

impl GpuJob<'_> {
    pub(super) fn measure(&mut self, threads: u32) -> GpuResult<MachineSpeed> {
        let operations = 2.0 * f64::from(SIDE).powi(3);
        let side = SIDE as usize;
        let data: Vec<f32> = (0..side * side)
            .map(|i| (i % 17) as f32 * 0.25 - 2.0)
            .collect();
        let view = MatrixView::contiguous(&data, side, side);
        let threads = threads.clamp(1, THREADS_MAX) as usize;
        let host = best(ROUNDS, || {
            std::hint::black_box(host::matmul(view, view, threads));
            Ok(())
        })?;
        let matmul_host = operations / host.as_secs_f64() / 1e9;
        if self.engine.memory.device().is_err() {
            return Ok(MachineSpeed {
                matmul_host,
                ..MachineSpeed::default()
            });
        }
        // The first product includes compiling, so the difference to a later one is the time of the compiler.
        let begun = Instant::now();
        self.product(&data)?;
        let cold = begun.elapsed();
        let wgsl = best(ROUNDS, || self.product(&data))?;
        let (map, dispatch) = self.map()?;
        Ok(MachineSpeed {
            matmul_wgsl: operations / wgsl.as_secs_f64() / 1e9,
            matmul_host,
            map_bytes_s: 2.0 * MAP_BYTES as f64 / map.as_secs_f64(),
            dispatch_us: dispatch.as_secs_f64() * 1e6,
            cold_jit_ms: milliseconds(cold.saturating_sub(wgsl)),
        })
    }

    fn product(&mut self, data: &[f32]) -> GpuResult<()> {
        let bytes = bytes::Bytes::copy_from_slice(bytemuck::cast_slice(data));
        let matrix = |bytes: &bytes::Bytes| Matrix {
            from: ByteSource::Bytes(bytes.clone()),
            offset: 0,
            rows: SIDE,
            columns: SIDE,
            strides: [i64::from(SIDE), 1],
        };
        let ask = MatmulRequest {
            a: matrix(&bytes),
            b: matrix(&bytes),
            variant: KernelVariant::Wgsl,
            threads: 1,
            to: ResultSink::Answer,
        };
        self.matmul(&ask).map(drop)
    }

    /// Times the map kernel over a large buffer, and over one group.
    fn map(&self) -> GpuResult<(Duration, Duration)> {
        let device = self.engine.memory.device()?;
        let large = device.buffer(MAP_BYTES)?;
        // As for every request, compiling a kernel of this program does not count as time on the GPU.
        let mut compiling = Duration::ZERO;
        let kernel = self.clock.stands(&mut compiling, || {
            let kernel = device.kernel(include_str!("../shaders/map.wgsl"), &[])?;
            device.dispatch(&kernel, &[&large], [0, 0, 0])?;
            GpuResult::Ok(kernel)
        })?;
        // Each invocation handles sixteen bytes, and a workgroup has 64 invocations.
        let groups = u32::try_from(MAP_BYTES / (16 * 64)).unwrap_or(1);
        let run = |groups: u32| -> GpuResult<()> {
            Ok(device.dispatch(&kernel, &[&large], [groups, 1, 1])?)
        };
        run(groups)?;
        let map = best(ROUNDS, || run(groups))?;
        let dispatch = best(DISPATCHES, || run(1))?;
        Ok((map, dispatch))
    }
}

fn best(rounds: usize, mut work: impl FnMut() -> GpuResult<()>) -> GpuResult<Duration> {
    let mut best = Duration::MAX;
    let all = Instant::now();
    for round in 0..rounds {
        if round > 0 && all.elapsed() > PATIENCE {
            break;
        }
        let begun = Instant::now();
        work()?;
        best = best.min(begun.elapsed());
    }
    Ok(best)
}
