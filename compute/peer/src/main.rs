//! Multiplies square matrices with burn-wgpu, on the driver that `alknet-gpu` has, and says how fast that was: a
//! line of JSON for the product alone, and one with bringing the matrices there and the product back.
//!
//! Arguments: the side, and how often each is done; the fastest counts. burn tries several kernels for a size
//! when it first sees it and keeps the fastest, as it does by default; that is not counted.

use std::env;
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use burn_backend::ops::FloatTensorOps;
use burn_backend::{Backend, BackendTypes, TensorData};
use burn_wgpu::{RuntimeOptions, Wgpu, WgpuSetup, init_device};
use serde_json::json;

type Device = <Wgpu as BackendTypes>::Device;
type Tensor = <Wgpu as BackendTypes>::FloatTensorPrimitive;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("alknet-compute-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let numbers: Vec<usize> = env::args().skip(1).flat_map(|word| word.parse()).collect();
    let [side, rounds] = numbers[..] else {
        return Err("give the side and the rounds".to_owned());
    };
    let device = open()?;
    // As `alknet-gpu bench` has them: products of small numbers, exact in any order.
    let numbers = |by: usize, of: usize, scale: f32, less: f32| -> Vec<f32> {
        let number = |i| ((i * by + 3) % of) as f32 * scale - less;
        (0..side * side).map(number).collect()
    };
    let (a, b) = (numbers(7, 13, 0.125, 0.5), numbers(5, 11, 0.25, 1.0));
    let tensor = |numbers: &[f32]| -> Tensor {
        Wgpu::float_from_data(TensorData::new(numbers.to_vec(), [side, side]), &device)
    };
    let (x, y) = (tensor(&a), tensor(&b));
    let wait = || Wgpu::sync(&device).map_err(|error| error.to_string());
    let product = || -> Result<Tensor, String> {
        let product = Wgpu::float_matmul(x.clone(), y.clone());
        wait()?;
        Ok(product)
    };
    let begun = Instant::now();
    let first = product()?;
    let cold = begun.elapsed();
    check(&read(first)?, [&a, &b], side)?;
    let alone = fastest(rounds, || product().map(drop))?;
    say("burn", side, cold, alone);
    let whole = fastest(rounds, || {
        read(Wgpu::float_matmul(tensor(&a), tensor(&b))).map(drop)
    })?;
    say("burn-end", side, cold, whole);
    Ok(())
}

/// Hands burn the device of the linked driver, opened as burn opens one itself.
fn open() -> Result<Device, String> {
    let instance = alknet_vulkan::instances().into_iter().next();
    let instance = instance.ok_or("no driver is linked")?;
    let instance = instance.map_err(|error| error.to_string())?.instance;
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    let adapter = adapters.into_iter().next().ok_or("no adapter")?;
    let wanted = wgpu::DeviceDescriptor {
        required_features: (adapter.features())
            .difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
        required_limits: adapter.limits(),
        // SAFETY: burn asks for them too; they let programs hand over shaders that are not checked,
        // which this one does not.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        ..wgpu::DeviceDescriptor::default()
    };
    let opened = pollster::block_on(adapter.request_device(&wanted));
    let (device, queue) = opened.map_err(|error| error.to_string())?;
    let setup = WgpuSetup {
        instance,
        backend: adapter.get_info().backend,
        adapter,
        device,
        queue,
    };
    Ok(init_device(setup, RuntimeOptions::default()).into())
}

fn read(tensor: Tensor) -> Result<Vec<f32>, String> {
    let data = pollster::block_on(Wgpu::float_into_data(tensor));
    let data = data.map_err(|error| error.to_string())?;
    data.try_to_vec::<f32>()
        .map_err(|error| format!("{error:?}"))
}

/// A few elements of the product: a kernel that is fast and wrong is no peer.
fn check(product: &[f32], [a, b]: [&[f32]; 2], side: usize) -> Result<(), String> {
    for (row, column) in [(0, 0), (1, side / 3), (side / 2, 5), (side - 1, side - 1)] {
        let terms = (0..side).map(|k| a[row * side + k] * b[k * side + column]);
        let (expected, got) = (terms.sum::<f32>(), product[row * side + column]);
        if (got - expected).abs() > 1e-3 * expected.abs().max(1.0) {
            return Err(format!("{row}, {column} is {got}, expected {expected}"));
        }
    }
    Ok(())
}

/// The fastest round, and the least processor time of one.
fn fastest(
    rounds: usize,
    mut work: impl FnMut() -> Result<(), String>,
) -> Result<[Duration; 2], String> {
    let mut best = [Duration::MAX; 2];
    for _ in 0..rounds.max(1) {
        let (begun, busy) = (Instant::now(), processor_time());
        work()?;
        best[0] = best[0].min(begun.elapsed());
        best[1] = best[1].min(processor_time().saturating_sub(busy));
    }
    Ok(best)
}

/// What all threads that there are have used.
fn processor_time() -> Duration {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
    let used = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(used.sum())
}

fn say(kernel: &str, side: usize, first: Duration, [best, busy]: [Duration; 2]) {
    let rate = |time: Duration| 2.0 * (side as f64).powi(3) / time.as_secs_f64() / 1e9;
    println!(
        "{}",
        json!({
            "kernel": kernel,
            "side": side,
            "first_ms": first.as_secs_f64() * 1e3,
            "gflops": rate(best),
            "gflop_cpu_s": rate(busy),
        })
    );
}
