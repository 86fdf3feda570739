//! Kernels on the processor itself. If the adapter is the processor too, they are faster than any shader by one or
//! two orders of magnitude.

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::ptr::NonNull;

/// Least rows for a thread: for fewer, starting a thread costs more than it saves.
const ROWS_MIN: usize = 32;

/// Least multiplications for a second thread.
const WORK_MIN: usize = 1 << 20;

/// A matrix in memory. Every element that shape, offset and strides address is inside `data`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatrixView<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) offset: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Elements from one row to the next, and from one column to the next.
    pub(crate) strides: [isize; 2],
}

impl<'a> MatrixView<'a> {
    /// A matrix that is stored row by row without gaps.
    pub(crate) const fn contiguous(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self {
            data,
            offset: 0,
            rows,
            columns,
            strides: [columns.cast_signed(), 1],
        }
    }

    /// The index of an element in the data.
    pub(crate) const fn index(self, row: usize, column: usize) -> usize {
        let away = row.cast_signed() * self.strides[0] + column.cast_signed() * self.strides[1];
        self.offset.saturating_add_signed(away)
    }

    /// A view of some rows.
    fn rows(self, from: usize, rows: usize) -> Self {
        let skipped = self.strides[0] * from.cast_signed();
        Self {
            offset: self.offset.saturating_add_signed(skipped),
            rows,
            ..self
        }
    }

    /// The address of the first element.
    ///
    /// # Panics
    /// If one of the elements is outside of `data`.
    fn start(self) -> *const f32 {
        let reach = |count: usize, stride: isize| (count - 1).cast_signed() * stride;
        let reaches = [
            reach(self.rows, self.strides[0]),
            reach(self.columns, self.strides[1]),
        ];
        let least: isize = reaches.iter().map(|reach| reach.min(&0)).sum();
        let most: isize = reaches.iter().map(|reach| reach.max(&0)).sum();
        let first = self.offset.checked_add_signed(least);
        let last = self.offset.checked_add_signed(most);
        assert!(first.is_some() && last.is_some_and(|last| last < self.data.len()));
        &raw const self.data[self.offset]
    }
}

/// The product, stored row by row.
pub(crate) fn matmul(a: MatrixView<'_>, b: MatrixView<'_>, threads: usize) -> Vec<f32> {
    let mut product = vec![0.0_f32; a.rows * b.columns];
    matmul_over(a, b, &mut product, threads);
    product
}

/// Writes the product over existing memory.
///
/// # Panics
/// If the product is larger than `product`.
pub(crate) fn matmul_over(
    a: MatrixView<'_>,
    b: MatrixView<'_>,
    product: &mut [f32],
    threads: usize,
) {
    assert!(product.len() >= a.rows * b.columns);
    let target = ProductPointer(NonNull::from(product).cast());
    // SAFETY: the assertion guarantees room for every row, and this function has the only reference to the memory.
    unsafe { matmul_rows(a, b, target, threads) };
}

/// Writes the product into memory of a buffer.
///
/// # Panics
/// If the memory is too small.
pub(crate) fn matmul_into(
    a: MatrixView<'_>,
    b: MatrixView<'_>,
    mut memory: wgpu::WriteOnly<'_, [u8]>,
    threads: usize,
) {
    let start = memory.as_raw_ptr().cast::<f32>();
    assert!(memory.len() >= a.rows * b.columns * size_of::<f32>() && start.is_aligned());
    // SAFETY: the assertion guarantees the room. The memory belongs to this process, because only such adapters hand
    // out their buffers; its type is write-only because on other adapters reading would be slow.
    unsafe { matmul_rows(a, b, ProductPointer(start), threads) };
}

/// The address of the rows of a product, which are stored without gaps.
#[derive(Clone, Copy, Debug)]
struct ProductPointer(NonNull<f32>);

// SAFETY: a plain address. The code that writes through it guarantees that no other code does.
unsafe impl Send for ProductPointer {}

impl ProductPointer {
    /// # Safety
    /// At least `elements` elements lie behind the address.
    const unsafe fn skip(self, elements: usize) -> Self {
        // SAFETY: the caller guarantees it.
        Self(unsafe { self.0.add(elements) })
    }
}

/// Distributes the rows among threads.
///
/// # Safety
/// The target has room for the whole product, and no other code reads or writes it.
unsafe fn matmul_rows(
    a: MatrixView<'_>,
    b: MatrixView<'_>,
    target: ProductPointer,
    threads: usize,
) {
    // A side of 0 leaves no element to compute, and the kernels below need at least one.
    if a.rows == 0 || a.columns == 0 || b.columns == 0 {
        return;
    }
    let work = a.rows * a.columns * b.columns;
    // A small product is done before a second thread has started.
    let useful = if work < WORK_MIN {
        1
    } else {
        a.rows / ROWS_MIN
    };
    let each = a.rows.div_ceil(threads.min(useful).max(1));
    std::thread::scope(|scope| {
        for from in (each..a.rows).step_by(each) {
            let part = a.rows(from, each.min(a.rows - from));
            // SAFETY: every part has rows of its own, inside the product.
            let rows = unsafe { target.skip(from * b.columns) };
            let job = move || {
                // The closure must own the whole pointer, which is `Send`, and not capture its field alone.
                let rows = rows;
                // SAFETY: as above.
                unsafe { multiply(part, b, rows) };
            };
            // If no thread can be started, this thread computes the part.
            let spawned = std::thread::Builder::new().spawn_scoped(scope, job);
            if spawned.is_err() {
                job();
            }
        }
        // SAFETY: the first part's rows are at the beginning.
        unsafe { multiply(a.rows(0, each.min(a.rows)), b, target) };
    });
}

/// # Safety
/// The target has room for the product, and no other code reads or writes it.
unsafe fn multiply(a: MatrixView<'_>, b: MatrixView<'_>, target: ProductPointer) {
    #[cfg(target_arch = "x86_64")]
    if avx512::is_for(a, b) {
        // SAFETY: `is_for` has checked the processor; the caller guarantees the target.
        unsafe { avx512::multiply(a, b, target.0.as_ptr()) };
        return;
    }
    let (x, y) = (a.start(), b.start());
    // SAFETY: `start` has checked every element that shape and strides address; the caller guarantees the target.
    unsafe {
        matrixmultiply::sgemm(
            a.rows,
            a.columns,
            b.columns,
            1.0,
            x,
            a.strides[0],
            a.strides[1],
            y,
            b.strides[0],
            b.strides[1],
            0.0,
            target.0.as_ptr(),
            b.columns.cast_signed(),
            1,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_right_however_the_matrices_lie() {
        let data: Vec<f32> = (0..4000).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
        for (rows, depth, columns) in [(1, 1, 1), (3, 5, 7), (33, 17, 9), (64, 8, 40), (70, 40, 20)]
        {
            let plain = |rows, columns: usize| MatrixView {
                data: &data,
                offset: 3,
                rows,
                columns,
                strides: [columns.cast_signed(), 1],
            };
            let turned = |rows: usize, columns| MatrixView {
                strides: [1, rows.cast_signed()],
                ..plain(rows, columns)
            };
            let backwards = |rows, columns: usize| MatrixView {
                offset: rows * columns,
                strides: [-columns.cast_signed(), -1],
                ..plain(rows, columns)
            };
            let at = |view: MatrixView<'_>, row: usize, column: usize| {
                let away =
                    row.cast_signed() * view.strides[0] + column.cast_signed() * view.strides[1];
                view.data[view.offset.saturating_add_signed(away)]
            };
            for (a, b) in [
                (plain(rows, depth), turned(depth, columns)),
                (backwards(rows, depth), plain(depth, columns)),
            ] {
                for threads in [1, 3] {
                    let got = matmul(a, b, threads);
                    for row in 0..rows {
                        for column in 0..columns {
                            // Small whole numbers: exact in any order.
                            let terms = (0..depth).map(|k| at(a, row, k) * at(b, k, column));
                            assert_eq!(got[row * columns + column], terms.sum::<f32>());
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "first.is_some()")]
    fn a_view_that_reaches_beyond_its_data_is_refused() {
        let view = MatrixView {
            data: &[1.0; 5],
            offset: 0,
            rows: 2,
            columns: 3,
            strides: [3, 1],
        };
        matmul(view, view, 1);
    }
}
