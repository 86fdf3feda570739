//! Known kernels: their shaders, their inputs, and the results that the processor computes.

use bytemuck::{Pod, cast_slice};
use sha2::{Digest, Sha256};

use crate::device::GpuDevice;
use crate::error::{Error, Result};

/// Invocations in a workgroup of the one-dimensional kernels.
const GROUP: usize = 64;

/// One way to multiply matrices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatmulKernel {
    /// The name in reports.
    pub(crate) name: &'static str,
    wgsl: &'static str,
    /// Side lengths must be multiples of this.
    pub(crate) step: usize,
    /// Columns and rows of the result that one workgroup computes.
    covers: [usize; 2],
}

/// From the plainest to the fastest on a processor.
pub(crate) const MATMULS: [MatmulKernel; 4] = [
    MatmulKernel {
        name: "naive",
        wgsl: include_str!("shaders/matmul_naive.wgsl"),
        step: 1,
        covers: [8, 8],
    },
    MatmulKernel {
        name: "tile",
        wgsl: include_str!("shaders/matmul_tile.wgsl"),
        step: 16,
        covers: [16, 16],
    },
    MatmulKernel {
        name: "rows",
        wgsl: include_str!("shaders/matmul_rows.wgsl"),
        step: 64,
        covers: [64, 8],
    },
    MatmulKernel {
        name: "block",
        wgsl: include_str!("shaders/matmul_block.wgsl"),
        step: 32,
        covers: [32, 32],
    },
];

/// A multiplication that can be repeated.
pub(crate) struct PreparedMatmul<'a> {
    device: &'a GpuDevice,
    kernel: crate::device::ShaderPipeline,
    buffers: [wgpu::Buffer; 4],
    groups: [u32; 3],
}

impl MatmulKernel {
    /// Compiles the kernel and uploads two matrices of side `n`, a multiple of `step`.
    pub(crate) fn prepare<'a>(
        &self,
        device: &'a GpuDevice,
        n: usize,
        a: &[f32],
        b: &[f32],
    ) -> Result<PreparedMatmul<'a>> {
        let buffers = [
            device.upload(cast_slice(a))?,
            device.upload(cast_slice(b))?,
            device.buffer(size_of_val(a) as u64)?,
            device.upload(&(n as u32).to_le_bytes())?,
        ];
        let [columns, rows] = self.covers.map(|covers| n.div_ceil(covers) as u32);
        Ok(PreparedMatmul {
            device,
            kernel: device.kernel(self.wgsl, &[])?,
            buffers,
            groups: [columns, rows, 1],
        })
    }
}

impl PreparedMatmul<'_> {
    /// Multiplies once.
    pub(crate) fn multiply(&self) -> Result<()> {
        let buffers = self.buffers.each_ref();
        self.device.dispatch(&self.kernel, &buffers, self.groups)
    }

    /// The product, row by row.
    pub(crate) fn product(&self) -> Result<Vec<f32>> {
        numbers(&self.device.read(&self.buffers[2])?)
    }
}

/// Two matrices of side `n` whose product is exact in 32 bits for any order of the sums: their elements are small
/// multiples of 1/8 and 1/4.
pub(crate) fn exact_matrices(n: usize) -> [Vec<f32>; 2] {
    let element = |i: usize, by: usize, modulus: usize| ((i * by + 3) % modulus) as f32;
    let a = (0..n * n).map(|i| element(i, 7, 13) * 0.125 - 0.5);
    let b = (0..n * n).map(|i| element(i, 5, 11) * 0.25 - 1.0);
    [a.collect(), b.collect()]
}

/// The product on the processor, by the plain algorithm.
pub(crate) fn product(n: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut c = vec![0.0; n * n];
    for row in 0..n {
        // In this order of the loops, the innermost one runs along rows of both matrices.
        for k in 0..n {
            let factor = a[row * n + k];
            for column in 0..n {
                c[row * n + column] += factor * b[k * n + column];
            }
        }
    }
    c
}

/// Runs a kernel with one input and one output buffer, with `width` outputs for each input.
pub(crate) fn map<T: Pod, U: Pod>(
    device: &GpuDevice,
    wgsl: &str,
    input: &[T],
    width: usize,
) -> Result<Vec<U>> {
    let kernel = device.kernel(wgsl, &[])?;
    let from = device.upload(cast_slice(input))?;
    let to = device.buffer((input.len() * width * size_of::<U>()) as u64)?;
    device.dispatch(&kernel, &[&from, &to], groups(input.len()))?;
    numbers(&device.read(&to)?)
}

/// Runs a kernel that changes its one buffer.
pub(crate) fn change(device: &GpuDevice, wgsl: &str, data: &[u32]) -> Result<Vec<u32>> {
    let kernel = device.kernel(wgsl, &[])?;
    let buffer = device.upload(cast_slice(data))?;
    device.dispatch(&kernel, &[&buffer], groups(data.len()))?;
    numbers(&device.read(&buffer)?)
}

/// The SHA-256 of each message.
pub(crate) fn sha256(device: &GpuDevice, messages: &[Vec<u8>]) -> Result<Vec<[u8; 32]>> {
    let kernel = device.kernel(include_str!("shaders/sha256.wgsl"), &[])?;
    let mut spans: Vec<[u32; 2]> = Vec::new();
    let mut bytes = Vec::new();
    for message in messages {
        spans.push([bytes.len() as u32, message.len() as u32]);
        bytes.extend(message);
    }
    // A binding must not be empty, and all messages may be.
    bytes.resize(bytes.len().max(size_of::<u32>()), 0);
    let buffers = [
        device.upload(&bytes)?,
        device.upload(cast_slice(&spans))?,
        device.buffer(messages.len() as u64 * 32)?,
    ];
    device.dispatch(&kernel, &buffers.each_ref(), groups(messages.len()))?;
    let words: Vec<u32> = numbers(&device.read(&buffers[2])?)?;
    let digest = |words: &[u32]| {
        let mut digest = [0; 32];
        for (to, word) in digest.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        digest
    };
    Ok(words.chunks_exact(8).map(digest).collect())
}

/// The same on the processor.
pub(crate) fn sha256_expected(messages: &[Vec<u8>]) -> Vec<[u8; 32]> {
    let digest = |message: &Vec<u8>| Sha256::digest(message).into();
    messages.iter().map(digest).collect()
}

/// The result of `memory.wgsl` for `data`, whose length is a multiple of a workgroup's size.
pub(crate) fn memory_expected(data: &[u32]) -> Vec<u32> {
    data.chunks_exact(GROUP).flat_map(memory_group).collect()
}

fn memory_group(together: &[u32]) -> Vec<u32> {
    let lane = |lane: u32| {
        let at = |i: u32| together[i as usize % GROUP];
        let mut own = [0_u32; 32];
        own[lane as usize % 32] = at(lane * 29 + 1);
        let before = |i: u32| [i, lane, at(lane + i), own[i as usize]];
        let mut sum = 0_u32;
        for i in 0..16 {
            let mut row = before(i);
            if i == lane % 16 {
                row[2] = 1;
            }
            let mixed = (row[0] * 3 + row[1]) ^ row[2];
            sum = sum.wrapping_add(mixed.wrapping_add(row[3]));
        }
        let signed = sum.cast_signed();
        let quotient = (signed / -7).wrapping_add(signed % 13).cast_unsigned();
        (sum ^ quotient).wrapping_add(before(lane % 16)[2])
    };
    (0..GROUP as u32).map(lane).collect()
}

fn groups(invocations: usize) -> [u32; 3] {
    [invocations.div_ceil(GROUP) as u32, 1, 1]
}

/// Bytes from the device as numbers.
fn numbers<T: Pod>(bytes: &[u8]) -> Result<Vec<T>> {
    let whole = bytes.len().is_multiple_of(size_of::<T>());
    if !whole {
        return Err(Error::Lost(format!("a buffer of {} bytes", bytes.len())));
    }
    // A list of bytes need not be aligned for the type.
    Ok(bytes
        .chunks_exact(size_of::<T>())
        .map(bytemuck::pod_read_unaligned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrices_multiply_exactly() {
        let n = 24;
        let [a, b] = exact_matrices(n);
        let forwards = product(n, &a, &b);
        for row in 0..n {
            for column in 0..n {
                let terms = (0..n).rev().map(|k| a[row * n + k] * b[k * n + column]);
                assert_eq!(forwards[row * n + column], terms.sum::<f32>());
            }
        }
    }

    #[test]
    fn the_processor_hashes_as_the_standard_says() {
        let abc = sha256_expected(&[b"abc".to_vec()]);
        assert_eq!(abc[0][..4], [0xba, 0x78, 0x16, 0xbf]);
    }

    #[test]
    fn half_a_number_is_none() {
        assert!(numbers::<u32>(&[0; 7]).is_err());
        assert_eq!(numbers::<u32>(&[1, 0, 0, 0]).expect("one"), [1]);
    }
}
