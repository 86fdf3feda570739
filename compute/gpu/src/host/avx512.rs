//! Matrix products on processors with AVX-512, whose registers are twice as wide as those that `matrixmultiply` uses.
//!
//! The usual scheme: a block of the product stays in registers while strips of A and B, copied into the order in
//! which they are read, pass through. Strips of A stay in the first-level cache, blocks of B in the second; so the
//! kernel walks over the product row by row, as few times as possible.

use std::arch::x86_64::{
    __m128, __m512, __mmask16, _MM_HINT_T0, _mm_loadu_ps, _mm_prefetch, _mm512_add_ps,
    _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps128_ps512, _mm512_fmadd_ps,
    _mm512_insertf32x4, _mm512_load_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_store_ps, _mm512_storeu_ps, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use super::MatrixView;

/// Floats in a register.
const LANES: usize = 16;

/// Rows of the product in registers. Two registers for each row, two for B and one for an element of A make 31 of 32.
const ROWS: usize = 14;

/// Columns of the product in registers.
const COLUMNS: usize = 2 * LANES;

/// Rows of A that are copied at once: at most 6 MB.
const ROWS_COPIED: usize = 290 * ROWS;

/// Columns of B that are copied at once: 576 KB of a second-level cache of 1 MB or more.
const COLUMNS_COPIED: usize = 12 * COLUMNS;

/// Terms that are added up before the sums are written: a strip of A takes 21 KB of a first-level cache of 32 or 48
/// KB.
const DEPTH: usize = 384;

/// Least sides for which the kernel pays: they fill a register.
const ROWS_MIN: usize = 4;
const COLUMNS_MIN: usize = LANES;

/// Steps of B whose strips are all copied before the next steps, so that rows are read in their order in memory.
const STEPS_TOGETHER: usize = 16;

/// Floats in a quarter of a register.
const QUARTER: usize = 4;

/// Floats of room behind a strip of A while it is written, a register at a time.
const BEHIND: usize = LANES - ROWS;

/// A register's floats with a register's alignment.
#[repr(C, align(64))]
struct AlignedLanes([f32; LANES]);

/// Whether this processor supports the kernel, and the product is large enough for it.
pub(super) fn is_for(a: MatrixView<'_>, b: MatrixView<'_>) -> bool {
    a.rows >= ROWS_MIN && b.columns >= COLUMNS_MIN && is_x86_feature_detected!("avx512f")
}

/// Writes the product, row by row without gaps.
///
/// # Panics
/// If an element of either matrix is outside of its data, or a side is 0.
///
/// # Safety
/// The processor must have AVX-512. `c` must have room for the product, and no other code may read or write it.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply(a: MatrixView<'_>, b: MatrixView<'_>, c: *mut f32) {
    let (x, y) = (StridedElements::from_view(a), StridedElements::from_view(b));
    let (rows, depth, columns) = (a.rows, a.columns, b.columns);
    let steps = depth.min(DEPTH);
    let strips = |side: usize, strip: usize, most: usize| side.min(most).div_ceil(strip);
    let of_a = strips(rows, ROWS, ROWS_COPIED) * ROWS * steps;
    let of_b = strips(columns, COLUMNS, COLUMNS_COPIED) * COLUMNS * steps;
    // The vectors stay empty: their memory is only accessed by address, and each strip is written before it is read.
    let mut of_a = Vec::<AlignedLanes>::with_capacity((of_a + BEHIND).div_ceil(LANES));
    let mut of_b = Vec::<AlignedLanes>::with_capacity(of_b / LANES);
    let (of_a, of_b) = (
        of_a.as_mut_ptr().cast::<f32>(),
        of_b.as_mut_ptr().cast::<f32>(),
    );
    for row in (0..rows).step_by(ROWS_COPIED) {
        let height = ROWS_COPIED.min(rows - row);
        for step in (0..depth).step_by(DEPTH) {
            let steps = DEPTH.min(depth - step);
            // SAFETY: the part is inside A, and the memory has room for it in whole strips.
            unsafe { copy_a(x.at(row, step), of_a, steps, height) };
            for column in (0..columns).step_by(COLUMNS_COPIED) {
                let width = COLUMNS_COPIED.min(columns - column);
                // SAFETY: as for A; the part of the product is inside the product.
                unsafe {
                    copy_b(y.at(step, column), of_b, steps, width);
                    let part = ProductTile {
                        start: c.add(row * columns + column),
                        stride: columns,
                        rows: height,
                        columns: width,
                        first: step == 0,
                    };
                    part.fill(of_a, of_b, steps);
                }
            }
        }
    }
}

/// Elements at equal distances in memory.
#[derive(Clone, Copy, Debug)]
struct StridedElements {
    start: *const f32,
    strides: [isize; 2],
}

impl StridedElements {
    fn from_view(view: MatrixView<'_>) -> Self {
        Self {
            start: view.start(),
            strides: view.strides,
        }
    }

    /// The elements from this one on. Nothing is read.
    const fn at(self, row: usize, column: usize) -> Self {
        let away = row.cast_signed() * self.strides[0] + column.cast_signed() * self.strides[1];
        Self {
            start: self.start.wrapping_offset(away),
            ..self
        }
    }

    /// Four neighbouring elements of a row; a row beyond the strip is replaced by the strip's last row.
    ///
    /// # Safety
    /// The elements must be inside the matrix.
    #[inline]
    unsafe fn four(self, row: usize, column: usize) -> __m128 {
        // SAFETY: the caller guarantees it; the load needs no alignment.
        unsafe { _mm_loadu_ps(self.at(row.min(ROWS - 1), column).start) }
    }

    /// # Safety
    /// The element must be inside the matrix.
    const unsafe fn get(self, row: usize, column: usize) -> f32 {
        // SAFETY: the caller guarantees it.
        unsafe { *self.at(row, column).start }
    }
}

/// Copies `steps` steps of `columns` columns, strip by strip, and fills the last strip with zeros beyond the edge.
///
/// # Safety
/// The elements must be inside B, and `to` must have room for whole strips and the alignment of [`AlignedLanes`].
#[target_feature(enable = "avx512f")]
unsafe fn copy_b(b: StridedElements, to: *mut f32, steps: usize, columns: usize) {
    if b.strides[1] != 1 {
        // SAFETY: the caller guarantees it.
        unsafe { copy_scattered(b, to, steps, columns) };
        return;
    }
    for group in (0..steps).step_by(STEPS_TOGETHER) {
        let group = group..steps.min(group + STEPS_TOGETHER);
        for (strip, first) in (0..columns).step_by(COLUMNS).enumerate() {
            let width = COLUMNS.min(columns - first);
            let masks = [mask(width), mask(width.saturating_sub(LANES))];
            for step in group.clone() {
                let from = b.at(step, first).start;
                for (half, mask) in masks.into_iter().enumerate() {
                    // SAFETY: masked elements are inside B; a strip is as long as `steps` rows of it, and every half
                    // of a row is aligned.
                    unsafe {
                        let to = to.add((strip * steps + step) * COLUMNS + half * LANES);
                        let line = _mm512_maskz_loadu_ps(mask, from.wrapping_add(half * LANES));
                        _mm512_store_ps(to, line);
                    }
                }
            }
        }
    }
}

/// The same for rows whose columns are not neighbours in memory.
///
/// # Safety
/// As for [`copy_b`].
unsafe fn copy_scattered(b: StridedElements, to: *mut f32, steps: usize, columns: usize) {
    for (strip, first) in (0..columns).step_by(COLUMNS).enumerate() {
        for column in 0..COLUMNS {
            let inside = first + column < columns;
            for step in 0..steps {
                // SAFETY: inside B, as just seen, and inside the strip.
                unsafe {
                    let value = if inside {
                        b.get(step, first + column)
                    } else {
                        0.0
                    };
                    *to.add((strip * steps + step) * COLUMNS + column) = value;
                }
            }
        }
    }
}

/// The same for A, in strips of [`ROWS`] rows.
///
/// # Safety
/// The elements must be inside A, and `to` must have room for whole strips.
#[target_feature(enable = "avx512f")]
unsafe fn copy_a(a: StridedElements, to: *mut f32, steps: usize, rows: usize) {
    for (strip, first) in (0..rows).step_by(ROWS).enumerate() {
        // SAFETY: a strip is as long as `steps` columns of it.
        let to = unsafe { to.add(strip * ROWS * steps) };
        let mut copied = 0;
        if a.strides[1] == 1 && rows - first >= ROWS {
            copied = steps - steps % LANES;
            // SAFETY: whole registers of each row of the strip are inside A, and the strip has room for them.
            unsafe { turn(a.at(first, 0), to, copied) };
        }
        for row in 0..ROWS {
            let inside = first + row < rows;
            for step in copied..steps {
                // SAFETY: inside A, as just seen, and inside the strip.
                unsafe {
                    let value = if inside {
                        a.get(first + row, step)
                    } else {
                        0.0
                    };
                    *to.add(step * ROWS + row) = value;
                }
            }
        }
    }
}

/// Transposes the rows of a strip of A that are stored without gaps.
///
/// # Safety
/// `steps` steps of each row, in whole registers, must be inside A and inside the strip, behind which there must be
/// room for [`BEHIND`] more floats.
#[target_feature(enable = "avx512f")]
unsafe fn turn(a: StridedElements, to: *mut f32, steps: usize) {
    for step in (0..steps).step_by(QUARTER) {
        // Every fourth row is put beside each of the first four, so that the steps below sort them. A closure would
        // be compiled to a call instead of being inlined.
        let mut rows = [_mm512_setzero_ps(); QUARTER];
        for (row, rows) in rows.iter_mut().enumerate() {
            // SAFETY: the caller guarantees it.
            unsafe {
                let whole = _mm512_castps128_ps512(a.four(row, step));
                let whole = _mm512_insertf32x4::<1>(whole, a.four(row + 4, step));
                let whole = _mm512_insertf32x4::<2>(whole, a.four(row + 8, step));
                *rows = _mm512_insertf32x4::<3>(whole, a.four(row + 12, step));
            }
        }
        let [r0, r1, r2, r3] = rows;
        let (low, high) = (_mm512_unpacklo_ps(r0, r1), _mm512_unpackhi_ps(r0, r1));
        let (low2, high2) = (_mm512_unpacklo_ps(r2, r3), _mm512_unpackhi_ps(r2, r3));
        let columns = [(low, low2), (high, high2)].map(|(one, other)| {
            let (one, other) = (_mm512_castps_pd(one), _mm512_castps_pd(other));
            [
                _mm512_unpacklo_pd(one, other),
                _mm512_unpackhi_pd(one, other),
            ]
        });
        for (at, column) in columns.as_flattened().iter().enumerate() {
            // SAFETY: the caller guarantees it. The next column overwrites the surplus.
            unsafe { _mm512_storeu_ps(to.add((step + at) * ROWS), _mm512_castpd_ps(*column)) };
        }
    }
}

/// A part of the product.
#[derive(Clone, Copy, Debug)]
struct ProductTile {
    start: *mut f32,
    /// Elements from one row to the next.
    stride: usize,
    rows: usize,
    columns: usize,
    /// Whether the part has no sums yet.
    first: bool,
}

impl ProductTile {
    /// Adds the contribution of `steps` steps.
    ///
    /// # Safety
    /// The part must be inside the product; `a` and `b` are strips of its rows and columns, `b` aligned.
    #[target_feature(enable = "avx512f")]
    unsafe fn fill(self, a: *const f32, b: *const f32, steps: usize) {
        for (strip, row) in (0..self.rows).step_by(ROWS).enumerate() {
            // SAFETY: A has as many strips as the part's rows need.
            let a = unsafe { a.add(strip * ROWS * steps) };
            for (strip, column) in (0..self.columns).step_by(COLUMNS).enumerate() {
                let block = Self {
                    start: self.start.wrapping_add(row * self.stride + column),
                    rows: ROWS.min(self.rows - row),
                    columns: COLUMNS.min(self.columns - column),
                    ..self
                };
                block.fetch();
                // SAFETY: the same holds for B; the block is inside the part.
                unsafe {
                    let b = b.add(strip * COLUMNS * steps);
                    block.write(match block.rows {
                        0..=3 => sums_of_three(a, b, steps),
                        4..=7 => sums_of_seven(a, b, steps),
                        _ => sums(a, b, steps),
                    });
                }
            }
        }
    }

    /// Prefetches the block while its sums are computed, because its rows are far from each other in memory.
    fn fetch(self) {
        for row in 0..self.rows {
            let at = self.start.wrapping_add(row * self.stride);
            for half in [0, LANES] {
                // SAFETY: a hint that reads nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(half).cast()) };
            }
        }
    }

    /// Writes a block's sums, or adds them to the sums that are there.
    ///
    /// # Safety
    /// The block must be inside the product.
    #[target_feature(enable = "avx512f")]
    unsafe fn write(self, sums: [[__m512; 2]; ROWS]) {
        let masks = [mask(self.columns), mask(self.columns.saturating_sub(LANES))];
        for (row, sums) in sums.into_iter().enumerate().take(self.rows) {
            for (half, (sum, mask)) in sums.into_iter().zip(masks).enumerate() {
                let at = self.start.wrapping_add(row * self.stride + half * LANES);
                // SAFETY: masked elements are inside the block.
                unsafe {
                    let sum = if self.first {
                        sum
                    } else {
                        _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), sum)
                    };
                    _mm512_mask_storeu_ps(at, mask, sum);
                }
            }
        }
    }
}

/// A mask of the first `lanes` lanes.
const fn mask(lanes: usize) -> __mmask16 {
    if lanes >= LANES {
        return __mmask16::MAX;
    }
    (1 << lanes) - 1
}

/// A block of sums, all in registers. Only the listed rows are computed; the others stay zero. The rows are written
/// out, because the compiler keeps the sums in memory if it gets a loop.
macro_rules! sums_of {
    ($name:ident: $($row:literal)*) => {
        /// # Safety
        /// Both strips must have `steps` steps, and B's must be aligned.
        #[target_feature(enable = "avx512f")]
        #[inline]
        unsafe fn $name(a: *const f32, b: *const f32, steps: usize) -> [[__m512; 2]; ROWS] {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            for step in 0..steps {
                // SAFETY: the caller guarantees it.
                unsafe {
                    let b = b.add(step * COLUMNS);
                    let halves = [_mm512_load_ps(b), _mm512_load_ps(b.add(LANES))];
                    let a = a.add(step * ROWS);
                    $(
                        let x = _mm512_set1_ps(*a.add($row));
                        sums[$row][0] = _mm512_fmadd_ps(x, halves[0], sums[$row][0]);
                        sums[$row][1] = _mm512_fmadd_ps(x, halves[1], sums[$row][1]);
                    )*
                }
            }
            sums
        }
    };
}

sums_of!(sums: 0 1 2 3 4 5 6 7 8 9 10 11 12 13);
// Shorter blocks for the rest at the lower edge.
sums_of!(sums_of_seven: 0 1 2 3 4 5 6);
sums_of!(sums_of_three: 0 1 2);

#[cfg(test)]
mod tests {
    use alknet_test_support::skip;

    use super::*;

    fn plain(data: &[f32], offset: usize, rows: usize, columns: usize) -> MatrixView<'_> {
        MatrixView {
            data,
            offset,
            rows,
            columns,
            strides: [columns.cast_signed(), 1],
        }
    }

    fn turned(view: MatrixView<'_>) -> MatrixView<'_> {
        MatrixView {
            strides: [1, view.rows.cast_signed()],
            ..view
        }
    }

    fn backwards(view: MatrixView<'_>) -> MatrixView<'_> {
        MatrixView {
            offset: view.offset + view.rows * view.columns - 1,
            strides: [-view.strides[0], -view.strides[1]],
            ..view
        }
    }

    fn check(a: MatrixView<'_>, b: MatrixView<'_>) {
        let (rows, columns) = (a.rows, b.columns);
        // What lies behind the product must stay as it is.
        let mut product = vec![7.0_f32; rows * columns + COLUMNS];
        // SAFETY: only called where the processor can; there is room.
        unsafe { multiply(a, b, product.as_mut_ptr()) };
        let (x, y) = (StridedElements::from_view(a), StridedElements::from_view(b));
        for row in 0..rows {
            for column in 0..columns {
                // SAFETY: all of it is inside. Small whole numbers are exact in any order.
                let terms = (0..a.columns).map(|k| unsafe { x.get(row, k) * y.get(k, column) });
                let (got, expected) = (product[row * columns + column], terms.sum::<f32>());
                assert_eq!(got, expected, "{row}, {column} of {a:?} times {b:?}");
            }
        }
        assert_eq!(product[rows * columns..], [7.0; COLUMNS]);
    }

    #[test]
    fn products_are_right_at_every_edge() {
        if !is_x86_feature_detected!("avx512f") {
            skip!("AVX-512", "only the code for other processors is tested");
        }
        let data: Vec<f32> = (0..1_600_000)
            .map(|i| ((i * 7) % 13) as f32 - 6.0)
            .collect();
        let sizes = [
            (1, 1, 1),
            (ROWS, 1, COLUMNS),
            (ROWS + 1, LANES, COLUMNS + 1),
            (ROWS - 1, LANES + 1, COLUMNS - 1),
            (3 * ROWS + 4, 2 * LANES - 1, LANES),
            (40, DEPTH + 3, 70),
            (ROWS_COPIED + 5, DEPTH - 1, 33),
            (5, 2 * DEPTH, COLUMNS_COPIED + 17),
        ];
        for (rows, depth, columns) in sizes {
            let (a, b) = (
                plain(&data, 3, rows, depth),
                plain(&data, 5, depth, columns),
            );
            check(a, b);
            check(turned(a), b);
            check(a, turned(b));
            check(backwards(a), backwards(turned(b)));
        }
    }

    #[test]
    fn a_row_may_be_used_again_and_again() {
        if !is_x86_feature_detected!("avx512f") {
            skip!("AVX-512", "only the code for other processors is tested");
        }
        let data: Vec<f32> = (0..100).map(|i| (i % 11) as f32).collect();
        let repeated = |rows, columns, strides| MatrixView {
            strides,
            ..plain(&data, 1, rows, columns)
        };
        check(repeated(30, 40, [0, 1]), repeated(40, 50, [0, 1]));
        check(repeated(30, 40, [1, 0]), repeated(40, 50, [0, 0]));
    }
}
