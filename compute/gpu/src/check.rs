//! The checks of the self-test: each runs one kernel and compares its results.

use crate::device::GpuDevice;
use crate::error::{Error, Result};
use crate::kernels::{self, MATMULS};

/// Side of the matrices: large enough for every kernel, and small enough for an emulated processor.
const SIDE: usize = 64;

/// Side of the matrices for kernels that take any side: a prime.
const ODD_SIDE: usize = 37;

/// Longest message that is hashed, in bytes: the lengths up to it need three blocks and every kind of padding.
const MESSAGE_BYTES: usize = 150;

/// Largest difference from the processor, relative to values above 1. WGSL allows `sin` and `cos` an error of 2⁻¹¹
/// and other functions less.
const TOLERANCE: f64 = 1.0 / 2048.0;

/// The outcome of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GpuCheckOutcome {
    /// The results equal the processor's.
    Equal,
    /// The adapter lacks the feature.
    NotOffered,
}

/// A check's name and function.
pub(crate) type Check = (&'static str, fn(&GpuDevice) -> Result<GpuCheckOutcome>);

/// A function's name, and the processor's version of it.
type Function = (&'static str, fn(f64) -> f64);

/// The checks in their order; the first one makes the first dispatch of all.
pub(crate) const CHECKS: [Check; 5] = [
    ("math", math),
    ("double", double),
    ("memory", memory),
    ("matmul", matmul),
    ("sha256", sha256),
];

fn math(device: &GpuDevice) -> Result<GpuCheckOutcome> {
    let functions: [Function; 14] = [
        ("sin", f64::sin),
        ("cos", f64::cos),
        ("exp", f64::exp),
        ("exp2", f64::exp2),
        ("log", f64::ln),
        ("log2", f64::log2),
        ("sqrt", f64::sqrt),
        ("pow", |x| x.powf(1.3)),
        ("tanh", f64::tanh),
        ("atan2", |x| x.atan2(2.0)),
        ("floor", |x| (-x).floor()),
        ("round", |x| (x * 4.0).round_ties_even()),
        ("fma", |x| x.mul_add(x, 1.0)),
        ("rem", |x| x % 0.75),
    ];
    // The inputs avoid integers and their quarters, where the last bit decides the result of `floor` and `%`.
    let xs: Vec<f32> = (0..64).map(|i| 0.05 + i as f32 * 0.047_3).collect();
    let wgsl = include_str!("shaders/math.wgsl");
    let ys: Vec<f32> = kernels::map(device, wgsl, &xs, functions.len())?;
    for ((name, function), row) in functions.iter().zip(ys.chunks_exact(xs.len())) {
        for (x, y) in xs.iter().zip(row) {
            let expected = function(f64::from(*x));
            let off = (f64::from(*y) - expected).abs() / expected.abs().max(1.0);
            // If the result is NaN, its error is NaN as well, which no comparison exceeds.
            if off.is_nan() || off > TOLERANCE {
                return failed_check("math", format!("{name}({x}) is {y}, expected {expected}"));
            }
        }
    }
    Ok(GpuCheckOutcome::Equal)
}

fn double(device: &GpuDevice) -> Result<GpuCheckOutcome> {
    if !device.has(wgpu::Features::SHADER_F64) {
        return Ok(GpuCheckOutcome::NotOffered);
    }
    let xs: Vec<f64> = (0..64).map(|i| f64::from(i) * 0.375 - 11.0).collect();
    let ys: Vec<f64> = kernels::map(device, include_str!("shaders/double.wgsl"), &xs, 1)?;
    let expected = |x: &f64| x.floor() + x / 4.0 + (x * x).sqrt();
    compare("double", &ys, &xs.iter().map(expected).collect::<Vec<_>>())
}

fn memory(device: &GpuDevice) -> Result<GpuCheckOutcome> {
    let data: Vec<u32> = (0..256_u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    let got = kernels::change(device, include_str!("shaders/memory.wgsl"), &data)?;
    compare("memory", &got, &kernels::memory_expected(&data))
}

fn matmul(device: &GpuDevice) -> Result<GpuCheckOutcome> {
    for kind in MATMULS {
        // A prime side tests the edges, which only the plain kernel handles.
        let n = if kind.step == 1 { ODD_SIDE } else { SIDE };
        let [a, b] = kernels::exact_matrices(n);
        let prepared = kind.prepare(device, n, &a, &b)?;
        prepared.multiply()?;
        compare("matmul", &prepared.product()?, &kernels::product(n, &a, &b))?;
    }
    Ok(GpuCheckOutcome::Equal)
}

fn sha256(device: &GpuDevice) -> Result<GpuCheckOutcome> {
    let byte = |length: usize, i: usize| (length * 31 + i * 7) as u8;
    let message = |length: usize| (0..length).map(|i| byte(length, i)).collect();
    let messages: Vec<Vec<u8>> = (0..=MESSAGE_BYTES).map(message).collect();
    let got = kernels::sha256(device, &messages)?;
    compare("sha256", &got, &kernels::sha256_expected(&messages))
}

fn compare<T: PartialEq + std::fmt::Debug>(
    kernel: &'static str,
    got: &[T],
    expected: &[T],
) -> Result<GpuCheckOutcome> {
    // `zip` below would ignore results that are missing.
    if got.len() != expected.len() {
        let why = format!("{} results, expected {}", got.len(), expected.len());
        return failed_check(kernel, why);
    }
    let differs = (got.iter().zip(expected)).position(|(got, expected)| got != expected);
    let Some(at) = differs else {
        return Ok(GpuCheckOutcome::Equal);
    };
    let why = format!("result {at} is {:?}, expected {:?}", got[at], expected[at]);
    failed_check(kernel, why)
}

fn failed_check(kernel: &'static str, why: String) -> Result<GpuCheckOutcome> {
    Err(Error::Wrong { kernel, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        assert_eq!(
            compare("k", &[1, 2], &[1, 2]).expect("equal"),
            GpuCheckOutcome::Equal
        );
        let error = compare("k", &[1, 2], &[1, 3]).expect_err("different");
        assert_eq!(error.to_string(), "k: result 1 is 2, expected 3");
        let error = compare("k", &[1], &[1, 3]).expect_err("one is missing");
        assert!(error.to_string().contains("1 results, expected 2"));
        assert_eq!(error.exit_code(), 1);
    }
}
