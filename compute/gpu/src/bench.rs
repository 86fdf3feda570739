//! `bench`: the speed of each kind of matrix multiplication, by shaders and by the processor, and the speed of
//! memory.

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytemuck::cast_slice;
use serde_json::json;

use crate::device::GpuDevice;
use crate::error::Result;
use crate::host::{self, MatrixView};
use crate::kernels::{self, MATMULS, MatmulKernel};
use crate::milliseconds;
use crate::worker::{MatmulPlan, arranged};

/// Side lengths are multiples of this, so that every kernel can be measured.
const STEP: u64 = 64;

/// Bytes that the memory measurement maps and copies.
const MAP_BYTES: u64 = 32 << 20;

/// The worker's kernel, including the upload of the matrices and the download of the product.
const END_TO_END: &str = "worker-end";

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct GpuBenchArgs {
    /// Side of the matrices, a multiple of 64
    #[arg(long, default_value_t = 512, value_parser = side)]
    side: u64,
    /// Repetitions, of which the fastest counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Threads of the processor's own kernel
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// What to measure: naive, tile, rows, block, worker-block, worker, worker-end, host, memory [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    kernels: Vec<String>,
}

impl GpuBenchArgs {
    fn wants(&self, name: &str) -> bool {
        self.kernels.is_empty() || self.kernels.iter().any(|wanted| wanted == name)
    }
}

fn side(text: &str) -> std::result::Result<u64, String> {
    match text.parse() {
        Ok(side) if (STEP..=4096).contains(&side) && side % STEP == 0 => Ok(side),
        _ => Err(format!("not a multiple of {STEP} up to 4096")),
    }
}

/// Prints one line of JSON for each kind, with or without `--json`.
pub(crate) fn run(arguments: &GpuBenchArgs) -> Result<ExitCode> {
    let device = GpuDevice::open()?;
    let n = arguments.side as usize;
    let [a, b] = kernels::exact_matrices(n);
    let wanted = |name: &str| arguments.wants(name);
    for kind in MATMULS.into_iter().filter(|kind| wanted(kind.name)) {
        measure(&device, &kind, n, [&a, &b], arguments.rounds)?;
    }
    let plan = MatmulPlan::first(&device);
    let plans = [
        ("worker-block", MatmulPlan::BLOCK),
        ("worker", plan),
        (END_TO_END, plan),
    ];
    for (name, plan) in plans.into_iter().filter(|(name, _)| wanted(name)) {
        measure_worker(&device, name, plan, n, [&a, &b], arguments.rounds)?;
    }
    if wanted("host") {
        measure_host(n, [&a, &b], arguments)?;
    }
    if wanted("memory") {
        measure_memory(&device, arguments)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures the worker's own kernel: alone, or including upload and download.
fn measure_worker(
    device: &GpuDevice,
    name: &str,
    plan: MatmulPlan,
    n: usize,
    matrices: [&[f32]; 2],
    rounds: u32,
) -> Result<()> {
    let kernel = device.kernel(&plan.source()?, &[])?;
    let side = n as u32;
    let [rows, columns] = plan.padded(side, side);
    let [a, b] = matrices.map(|matrix| MatrixView::contiguous(matrix, n, n));
    let uploaded = || -> Result<[wgpu::Buffer; 4]> {
        let [a, b] = arranged(plan.order(), a, b);
        Ok([
            device.upload(cast_slice(&a))?,
            device.upload(cast_slice(&b))?,
            device.buffer(u64::from(rows * columns) * size_of::<f32>() as u64)?,
            device.upload(cast_slice(&[columns / 4, side / 4, rows, 0]))?,
        ])
    };
    let multiply = |buffers: &[wgpu::Buffer; 4]| {
        device.dispatch(&kernel, &buffers.each_ref(), plan.groups(columns, rows))
    };
    let ready = uploaded()?;
    let timed = if name == END_TO_END {
        BenchTiming::sample(rounds, || {
            let buffers = uploaded()?;
            multiply(&buffers)?;
            std::hint::black_box(device.read(&buffers[2])?);
            Ok(())
        })?
    } else {
        BenchTiming::sample(rounds, || multiply(&ready))?
    };
    timed.say(name, n);
    Ok(())
}

/// Measures the processor's kernel, as the worker calls it.
fn measure_host(n: usize, [a, b]: [&[f32]; 2], arguments: &GpuBenchArgs) -> Result<()> {
    // Both inputs have side `n`, so one view serves for both.
    let view = |data| MatrixView::contiguous(data, n, n);
    // The product's memory has been touched before, as that of a peer's buffer has.
    let mut product = vec![0.0_f32; n * n];
    let mut timed = BenchTiming::sample(arguments.rounds, || {
        let threads = arguments.threads as usize;
        host::matmul_over(view(a), view(b), &mut product, threads);
        std::hint::black_box(&product);
        Ok(())
    })?;
    // The kernel's threads end with each product, and their processor time is lost with them.
    timed.busy = None;
    timed.say("host", n);
    Ok(())
}

/// Measures a kernel over a large buffer, and a copy of as many bytes: both read and write each byte once.
fn measure_memory(device: &GpuDevice, arguments: &GpuBenchArgs) -> Result<()> {
    let kernel = device.kernel(include_str!("shaders/map.wgsl"), &[])?;
    let buffer = device.buffer(MAP_BYTES)?;
    let groups = u32::try_from(MAP_BYTES / (16 * 64)).unwrap_or(1);
    let from = vec![1_u8; MAP_BYTES as usize];
    let mut to = vec![0_u8; MAP_BYTES as usize];
    let (mut map, mut copy) = (Duration::MAX, Duration::MAX);
    // The first round is slower, because it compiles and touches pages, so it is not counted.
    for round in 0..=arguments.rounds {
        let started = Instant::now();
        device.dispatch(&kernel, &[&buffer], [groups, 1, 1])?;
        let mapped = started.elapsed();
        let started = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
        let copied = started.elapsed();
        if round > 0 {
            (map, copy) = (map.min(mapped), copy.min(copied));
        }
    }
    for (name, time) in [("map", map), ("copy", copy)] {
        let rate = 2.0 * MAP_BYTES as f64 / time.as_secs_f64() / 1e9;
        say!(
            "{}",
            json!({ "kernel": name, "bytes": MAP_BYTES, "gb_s": rounded(rate) })
        );
    }
    Ok(())
}

/// The times of a measurement.
#[derive(Clone, Copy, Debug)]
struct BenchTiming {
    /// The first time, which includes compiling and touching pages.
    first: Duration,
    /// The fastest time after that.
    best: Duration,
    /// The least processor time of all threads after that; it does not include other processes.
    busy: Option<Duration>,
}

impl BenchTiming {
    fn sample(rounds: u32, mut work: impl FnMut() -> Result<()>) -> Result<Self> {
        let started = Instant::now();
        work()?;
        let mut timed = Self {
            first: started.elapsed(),
            best: Duration::MAX,
            busy: None,
        };
        for _ in 0..rounds {
            let (started, busy) = (Instant::now(), processor_time());
            work()?;
            timed.best = timed.best.min(started.elapsed());
            let busy = processor_time().saturating_sub(busy);
            timed.busy = Some(timed.busy.map_or(busy, |least| least.min(busy)));
        }
        Ok(timed)
    }

    fn say(&self, name: &str, n: usize) {
        let rate = |time: Duration| rounded(2.0 * (n as f64).powi(3) / time.as_secs_f64() / 1e9);
        let row = json!({
            "kernel": name,
            "side": n,
            "first_ms": milliseconds(self.first),
            "best_ms": milliseconds(self.best),
            "gflops": rate(self.best),
            "gflop_cpu_s": self.busy.map(rate),
        });
        say!("{row}");
    }
}

/// Processor time of all current threads; zero if `/proc` is not mounted.
fn processor_time() -> Duration {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
    let used = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(used.sum())
}

fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

fn measure(
    device: &GpuDevice,
    kind: &MatmulKernel,
    n: usize,
    [a, b]: [&[f32]; 2],
    rounds: u32,
) -> Result<()> {
    let prepared = kind.prepare(device, n, a, b)?;
    BenchTiming::sample(rounds, || prepared.multiply())?.say(kind.name, n);
    Ok(())
}
