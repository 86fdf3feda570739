//! Matrix products: by a shader, and on the worker's own threads.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use alknet_compute_wire::limits::{SIDE_MAX, THREADS_MAX};
use alknet_compute_wire::{KernelReply, KernelVariant, MatmulRequest, Matrix, ResultSink};

use super::buffers::{SourceBytes, TensorBuffer, check_length, check_quota};
use super::engine::GpuJob;
use super::fault::{GpuFault, GpuResult};
use super::memory::{TensorMemory, TensorStorage};
use super::order::arranged;
use super::templates::{KernelName, MatrixOrder};
use crate::host::{self, MatrixView};
use crate::milliseconds;

/// Invocations in a workgroup of `pack.wgsl`.
const PACK_GROUP: u32 = 64;

/// Workgroups in one dimension of `pack.wgsl`, which spreads longer work over two.
const PACK_LINES: u32 = 1 << 14;

impl GpuJob<'_> {
    pub(super) fn matmul(&mut self, ask: &MatmulRequest) -> GpuResult<KernelReply> {
        let begun = Instant::now();
        let (m, k, n) = self.checked(ask)?;
        let len = u64::from(m) * u64::from(n) * size_of::<f32>() as u64;
        check_length(len)?;
        check_quota(self.used, len)?;
        let mut jit = Duration::ZERO;
        // A binding must not be empty, and a product over nothing is all zeros.
        let bytes = if m == 0 || n == 0 || k == 0 {
            self.deliver(ask.to, vec![0; usize::try_from(len).unwrap_or(usize::MAX)])?
        } else {
            match ask.variant {
                KernelVariant::Host => self.multiply_here(ask, len)?,
                KernelVariant::Wgsl => self.multiply_there(ask, len, &mut jit)?,
            }
        };
        Ok(KernelReply {
            bytes,
            ms: milliseconds(begun.elapsed()),
            jit_ms: milliseconds(jit),
        })
    }

    /// Rows of A, columns of A and columns of B, once all sizes are checked.
    fn checked(&self, ask: &MatmulRequest) -> GpuResult<(u32, u32, u32)> {
        if ask.a.columns != ask.b.rows {
            return Err(GpuFault::shape(format!(
                "{} by {} times {} by {}",
                ask.a.rows, ask.a.columns, ask.b.rows, ask.b.columns
            )));
        }
        for matrix in [&ask.a, &ask.b] {
            let elements = self.tensor_table.len(&matrix.from)? / size_of::<f32>() as u64;
            extent(matrix, elements)?;
        }
        Ok((ask.a.rows, ask.a.columns, ask.b.columns))
    }

    fn multiply_here(&mut self, ask: &MatmulRequest, len: u64) -> GpuResult<Option<bytes::Bytes>> {
        let threads = ask.threads.clamp(1, THREADS_MAX) as usize;
        let (a, b) = (
            self.tensor_table.locate(&ask.a.from)?,
            self.tensor_table.locate(&ask.b.from)?,
        );
        let same = ask.a.from == ask.b.from;
        // The product is written straight into the buffer if that is memory of this process.
        if let (ResultSink::Buffer(number), TensorMemory::Device(device)) =
            (ask.to, &self.engine.memory)
            && device.host_memory
        {
            let buffer = device.buffer(len)?;
            self.with_floats(&a, &b, same, |x, y| {
                device.with_written(&buffer, |memory| {
                    let (a, b) = (view(x, &ask.a), view(y, &ask.b));
                    host::matmul_into(a, b, memory, threads);
                })
            })??;
            let storage = TensorStorage::Device(buffer);
            self.tensor_table.put(number, TensorBuffer { storage, len });
            return Ok(None);
        }
        let product = self.with_floats(&a, &b, same, |x, y| {
            host::matmul(view(x, &ask.a), view(y, &ask.b), threads)
        })?;
        self.deliver(ask.to, bytemuck::cast_slice(&product).to_vec())
    }

    /// Passes the memory of two matrices to `work`, without a copy where possible.
    fn with_floats<T>(
        &self,
        a: &SourceBytes<'_>,
        b: &SourceBytes<'_>,
        same: bool,
        work: impl FnOnce(&[f32], &[f32]) -> T,
    ) -> GpuResult<T> {
        if same {
            // A buffer must not be mapped twice.
            return self.floats(a, |x| work(x, x));
        }
        self.floats(a, |x| self.floats(b, |y| work(x, y)))?
    }

    fn floats<T>(&self, located: &SourceBytes<'_>, work: impl FnOnce(&[f32]) -> T) -> GpuResult<T> {
        match located {
            SourceBytes::Memory(bytes) => Ok(work(&aligned(bytes))),
            SourceBytes::Buffer(stored) => {
                let len = usize::try_from(stored.len).unwrap_or(usize::MAX);
                let read = |bytes: &[u8]| work(&aligned(&bytes[..len.min(bytes.len())]));
                self.engine.memory.with_read(&stored.storage, read)
            }
        }
    }

    fn multiply_there(
        &mut self,
        ask: &MatmulRequest,
        len: u64,
        jit: &mut Duration,
    ) -> GpuResult<Option<bytes::Bytes>> {
        let (m, k, n) = (ask.a.rows, ask.a.columns, ask.b.columns);
        let plan = self.multiplier(jit)?.2;
        let [rows, width] = plan.padded(m, n);
        let depth = k.next_multiple_of(4);
        let [a, b] = match plan.order() {
            Some(order) => self.arranged(ask, order, u64::from(rows + width) * u64::from(depth))?,
            None => [
                self.packed(&ask.a, [rows, depth], jit)?,
                self.packed(&ask.b, [depth, width], jit)?,
            ],
        };
        // A device cannot be interrupted, so a request can end only between two of its submissions.
        self.still_wanted()?;
        let device = self.engine.memory.device()?;
        let floats = u64::from(rows) * u64::from(width);
        let c = device.buffer(floats * size_of::<f32>() as u64)?;
        let size = device.upload(bytemuck::cast_slice(&[width / 4, depth / 4, rows, 0]))?;
        let (device, kernel, _) = self.multiplier(jit)?;
        let buffers = [(0, &a), (1, &b), (2, &c), (3, &size)];
        device.submit(kernel, &buffers, plan.groups(width, rows))?;
        device.wait()?;
        self.still_wanted()?;
        if rows == m && width == n {
            return self.deliver_stored(ask.to, TensorStorage::Device(c), len);
        }
        // With this plan, device memory is memory of this process, which cuts faster than a kernel.
        if plan.order().is_some() {
            let device = self.engine.memory.device()?;
            let cut = device.with_read(&c, |bytes| cut(bytes, [m, n], width))?;
            return self.deliver(ask.to, cut);
        }
        let padded = MatrixLayout {
            offset: 0,
            strides: [i64::from(width), 1],
            shape: [m, n],
        };
        let cut = self.pack(&c, padded, [m, n], jit)?;
        self.deliver_stored(ask.to, TensorStorage::Device(cut), len)
    }

    /// Both matrices in the kernel's order, arranged by this process, because device memory is memory of this process
    /// then. Together they have `elements` elements.
    fn arranged(
        &self,
        ask: &MatmulRequest,
        order: MatrixOrder,
        elements: u64,
    ) -> GpuResult<[wgpu::Buffer; 2]> {
        check_quota(self.used, elements * size_of::<f32>() as u64)?;
        let device = self.engine.memory.device()?;
        let (a, b) = (
            self.tensor_table.locate(&ask.a.from)?,
            self.tensor_table.locate(&ask.b.from)?,
        );
        let same = ask.a.from == ask.b.from;
        let [a, b] = self.with_floats(&a, &b, same, |x, y| {
            let made = arranged(Some(order), view(x, &ask.a), view(y, &ask.b));
            made.map(Cow::into_owned)
        })?;
        Ok([
            device.upload(bytemuck::cast_slice(&a))?,
            device.upload(bytemuck::cast_slice(&b))?,
        ])
    }

    /// A matrix as a buffer of rows without gaps, padded with zeros to `shape`.
    fn packed(
        &mut self,
        matrix: &Matrix,
        shape: [u32; 2],
        jit: &mut Duration,
    ) -> GpuResult<wgpu::Buffer> {
        let stored =
            (self.tensor_table).stored_from(&self.engine.memory, &matrix.from, self.used)?;
        let buffer = stored.storage.buffer()?;
        let placed = MatrixLayout {
            offset: matrix.offset,
            strides: matrix.strides,
            shape: [matrix.rows, matrix.columns],
        };
        let is_packed = placed.shape == shape
            && placed.offset == 0
            && placed.strides == [i64::from(matrix.columns), 1];
        if is_packed {
            return Ok(buffer.clone());
        }
        self.pack(buffer, placed, shape, jit)
    }

    fn pack(
        &mut self,
        from: &wgpu::Buffer,
        placed: MatrixLayout,
        [height, width]: [u32; 2],
        jit: &mut Duration,
    ) -> GpuResult<wgpu::Buffer> {
        let elements = u64::from(height) * u64::from(width);
        let bytes = elements * size_of::<f32>() as u64;
        check_quota(self.used, bytes)?;
        let device = self.engine.memory.device()?;
        let packed = device.buffer(bytes)?;
        // The limit of a tensor keeps every number far below 2³¹.
        let small = |number: i64| i32::try_from(number).unwrap_or(i32::MAX).cast_unsigned();
        let groups = elements.div_ceil(u64::from(PACK_GROUP));
        let shape = [
            small(placed.offset.cast_signed()),
            small(placed.strides[0]),
            small(placed.strides[1]),
            placed.shape[0],
            placed.shape[1],
            height,
            width,
            PACK_LINES,
        ];
        let shape = device.upload(bytemuck::cast_slice(&shape))?;
        let buffers = [(0, from), (1, &packed), (2, &shape)];
        let (device, kernel) = self.kernel(KernelName::Pack, &buffers, jit)?;
        let lines = groups.div_ceil(u64::from(PACK_LINES));
        let across = groups.min(u64::from(PACK_LINES));
        // WebGPU limits the groups in one dimension, so long work uses two.
        let groups = [across, lines, 1].map(|groups| u32::try_from(groups).unwrap_or(u32::MAX));
        device.submit(kernel, &buffers, groups)?;
        device.wait()?;
        Ok(packed)
    }
}

/// The layout of a matrix in its buffer, in elements.
#[derive(Clone, Copy, Debug)]
struct MatrixLayout {
    offset: u64,
    strides: [i64; 2],
    shape: [u32; 2],
}

/// Checks that every element of the matrix is one of `elements`.
fn extent(matrix: &Matrix, elements: u64) -> GpuResult<()> {
    if matrix.rows > SIDE_MAX || matrix.columns > SIDE_MAX {
        return Err(GpuFault::shape(format!(
            "a side may have {SIDE_MAX} elements"
        )));
    }
    if matrix.rows == 0 || matrix.columns == 0 {
        return Ok(());
    }
    // In 128 bits, because the caller chooses offset and strides, and their sum may exceed 64 bits.
    let mut least = i128::from(matrix.offset);
    let mut most = least;
    for (count, stride) in [matrix.rows, matrix.columns]
        .into_iter()
        .zip(matrix.strides)
    {
        let reach = i128::from(count - 1) * i128::from(stride);
        least += reach.min(0);
        most += reach.max(0);
    }
    if least < 0 || most >= i128::from(elements) {
        return Err(GpuFault::shape(format!(
            "the matrix reaches from element {least} to {most}, of {elements}"
        )));
    }
    Ok(())
}

fn view<'a>(data: &'a [f32], matrix: &Matrix) -> MatrixView<'a> {
    let size = |side: u32| side as usize;
    let stride = |stride: i64| isize::try_from(stride).unwrap_or(0);
    MatrixView {
        data,
        offset: usize::try_from(matrix.offset).unwrap_or(usize::MAX),
        rows: size(matrix.rows),
        columns: size(matrix.columns),
        strides: matrix.strides.map(stride),
    }
}

/// The first rows and columns of a padded product.
fn cut(bytes: &[u8], [rows, columns]: [u32; 2], width: u32) -> Vec<u8> {
    let [columns, width] = [columns, width].map(|side| side as usize * size_of::<f32>());
    let rows = bytes.chunks_exact(width).take(rows as usize);
    rows.flat_map(|row| &row[..columns]).copied().collect()
}

/// Bytes as floats: borrowed if they are aligned, copied otherwise. Bytes beyond the last whole float are left out.
fn aligned(bytes: &[u8]) -> Cow<'_, [f32]> {
    let whole = &bytes[..bytes.len() - bytes.len() % size_of::<f32>()];
    match bytemuck::try_cast_slice(whole) {
        Ok(floats) => Cow::Borrowed(floats),
        Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(whole)),
    }
}

#[cfg(test)]
mod tests {
    use alknet_compute_wire::ByteSource;

    use super::*;

    fn matrix(rows: u32, columns: u32, offset: u64, strides: [i64; 2]) -> Matrix {
        Matrix {
            from: ByteSource::Zero(0),
            offset,
            rows,
            columns,
            strides,
        }
    }

    #[test]
    fn a_matrix_lies_inside_its_tensor_or_is_refused() {
        for (matrix, elements, fits) in [
            (matrix(2, 3, 0, [3, 1]), 6, true),
            (matrix(2, 3, 0, [3, 1]), 5, false),
            (matrix(2, 3, 5, [-3, -1]), 6, true),
            (matrix(2, 3, 4, [-3, -1]), 6, false),
            (matrix(0, 3, 99, [3, 1]), 0, true),
            (matrix(2, 2, 0, [0, 0]), 1, true),
            (matrix(2, 2, 0, [i64::MAX, i64::MAX]), 100, false),
            (matrix(2, 2, u64::MAX, [i64::MIN, 1]), 100, false),
            (matrix(SIDE_MAX + 1, 1, 0, [0, 0]), 1, false),
        ] {
            assert_eq!(extent(&matrix, elements).is_ok(), fits, "{matrix:?}");
        }
    }

    #[test]
    fn what_was_added_to_a_product_is_cut_off() {
        let floats: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let cut = cut(bytemuck::cast_slice(&floats), [2, 3], 4);
        let expected = [0.0_f32, 1.0, 2.0, 4.0, 5.0, 6.0];
        assert_eq!(cut, bytemuck::cast_slice::<f32, u8>(&expected));
    }

    #[test]
    fn bytes_that_lie_anywhere_are_floats() {
        let floats = [1.0_f32, 2.0, 3.0];
        let mut bytes = vec![0];
        bytes.extend_from_slice(bytemuck::cast_slice(&floats));
        assert_eq!(&aligned(&bytes[1..])[..], floats);
        assert_eq!(aligned(&bytes[1..8]).len(), 1);
    }
}
