//! Checks an adapter with one known kernel, which costs next to nothing.

use crate::device::GpuDevice;
use crate::error::{Error, Result};

/// Invocations of the workgroup.
const LANES: u32 = 64;

/// Rounds of the kernel's loop.
const ROUNDS: u32 = 5;

/// Runs the kernel and compares its result with the processor's.
pub(super) fn check(device: &GpuDevice) -> Result<()> {
    let input: Vec<u32> = (0..LANES).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    let kernel = device.kernel(include_str!("../shaders/trust.wgsl"), &[])?;
    let buffer = device.upload(bytemuck::cast_slice(&input))?;
    device.dispatch(&kernel, &[&buffer], [1, 1, 1])?;
    let words = |bytes: &[u8]| -> Vec<u32> {
        bytes
            .chunks_exact(size_of::<u32>())
            .map(bytemuck::pod_read_unaligned)
            .collect()
    };
    let got = device.with_read(&buffer, words)?;
    let expected: Vec<u32> = (0_u32..).zip(&input).map(|(i, x)| one(i, *x)).collect();
    if got == expected {
        return Ok(());
    }
    // A wrong adapter is passed over, so that callers get right results from another one.
    Err(Error::Wrong {
        kernel: "trust",
        why: "the adapter does not compute what the processor computes".to_owned(),
    })
}

/// What `trust.wgsl` computes of one word. Its floats are small integers, which are exact in any
/// order.
fn one(lane: u32, word: u32) -> u32 {
    let mut x = word;
    let mut f = (word % 256) as f32;
    for round in 0..ROUNDS {
        x = (x ^ (x >> 15))
            .wrapping_mul(0x85eb_ca6b)
            .wrapping_add(round);
        f = f * 3.0 + (lane % 8) as f32;
    }
    x ^ (f as u32)
}
