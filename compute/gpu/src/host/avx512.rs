//! Products of matrices on processors with AVX-512, whose registers are twice as wide as what
//! `matrixmultiply` knows.
//!
//! The usual scheme: a block of the product stays in registers while a strip of A and a strip of B, copied
//! into the order in which they are read, pass by. Strips of A stay in the first cache, blocks of B in
//! the second; so the product is gone through row by row, and as few times as may be.

use std::arch::x86_64::{
    __m128, __m512, __mmask16, _MM_HINT_T0, _mm_loadu_ps, _mm_prefetch, _mm512_add_ps,
    _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps128_ps512, _mm512_fmadd_ps,
    _mm512_insertf32x4, _mm512_load_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_store_ps, _mm512_storeu_ps, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use super::MatrixView;

/// Floats of a register.
const LANES: usize = 16;

/// Rows of the product in registers. With their two registers each, two for B and one for an element of
/// A, that is 31 of 32.
const ROWS: usize = 14;

/// Columns of the product in registers.
const COLUMNS: usize = 2 * LANES;

/// Rows of A that are copied at once, which is a part of 6 MB at most.
const ROWS_COPIED: usize = 290 * ROWS;

/// Columns of B that are copied at once: 576 KB of a second cache that has 1 MB or more.
const COLUMNS_COPIED: usize = 12 * COLUMNS;

/// Terms that are added up before the sums are written: a strip of A has 21 KB, of a first cache that has
/// 32 or 48.
const DEPTH: usize = 384;

/// Least sides that make it worth while: a register is filled.
const ROWS_MIN: usize = 4;
const COLUMNS_MIN: usize = LANES;

/// Steps of B of which all strips are copied before the next ones, so that its rows are read as they lie.
const STEPS_TOGETHER: usize = 16;

/// Floats of a quarter of a register.
const QUARTER: usize = 4;

/// Floats that a strip of A needs behind it while it is written, a register at a time.
const BEHIND: usize = LANES - ROWS;

/// As much as a register holds, and aligned for it.
#[repr(C, align(64))]
struct AlignedLanes([f32; LANES]);

/// Whether this processor can, and the product is of a size for which that pays.
pub(super) fn is_for(a: MatrixView<'_>, b: MatrixView<'_>) -> bool {
    a.rows >= ROWS_MIN && b.columns >= COLUMNS_MIN && is_x86_feature_detected!("avx512f")
}

/// The product, row by row without gaps.
///
/// # Panics
/// If an element of either matrix is outside of its data, or a side is empty.
///
/// # Safety
/// The processor has AVX-512. `c` has room for the product, and no other code reads or writes it.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply(a: MatrixView<'_>, b: MatrixView<'_>, c: *mut f32) {
    let (x, y) = (StridedElements::from_view(a), StridedElements::from_view(b));
    let (rows, depth, columns) = (a.rows, a.columns, b.columns);
    let steps = depth.min(DEPTH);
    let strips = |side: usize, strip: usize, most: usize| side.min(most).div_ceil(strip);
    let of_a = strips(rows, ROWS, ROWS_COPIED) * ROWS * steps;
    let of_b = strips(columns, COLUMNS, COLUMNS_COPIED) * COLUMNS * steps;
    // Only written and read by address, each strip whole before it is read.
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
            // SAFETY: the part is inside A, and there is room for it in whole strips.
            unsafe { copy_a(x.at(row, step), of_a, steps, height) };
            for column in (0..columns).step_by(COLUMNS_COPIED) {
                let width = COLUMNS_COPIED.min(columns - column);
                // SAFETY: as for A; the part of the product is inside it.
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

/// Elements in memory at equal distances.
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

    /// What begins at this element. Nothing is read.
    const fn at(self, row: usize, column: usize) -> Self {
        let away = row.cast_signed() * self.strides[0] + column.cast_signed() * self.strides[1];
        Self {
            start: self.start.wrapping_offset(away),
            ..self
        }
    }

    /// Four elements of a row that lies without gaps; of the last row of a strip instead of one that the
    /// strip has not.
    ///
    /// # Safety
    /// They are inside the matrix.
    #[inline]
    unsafe fn four(self, row: usize, column: usize) -> __m128 {
        // SAFETY: as the caller says; an address need not be aligned.
        unsafe { _mm_loadu_ps(self.at(row.min(ROWS - 1), column).start) }
    }

    /// # Safety
    /// The element is inside the matrix.
    const unsafe fn get(self, row: usize, column: usize) -> f32 {
        // SAFETY: as the caller says.
        unsafe { *self.at(row, column).start }
    }
}

/// Copies so many steps of so many columns, strip by strip, with zeros in the last strip beyond the edge.
///
/// # Safety
/// They are inside B, and `to` has room for whole strips and is aligned as a [`AlignedLanes`].
#[target_feature(enable = "avx512f")]
unsafe fn copy_b(b: StridedElements, to: *mut f32, steps: usize, columns: usize) {
    if b.strides[1] != 1 {
        // SAFETY: as the caller says.
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
                    // SAFETY: what is masked is inside B; a strip is as long as `steps` rows of it, every
                    // half of which is aligned.
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

/// The same where columns of a row are not neighbours.
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

/// The same of A, in strips of so many rows.
///
/// # Safety
/// They are inside A, and `to` has room for whole strips.
#[target_feature(enable = "avx512f")]
unsafe fn copy_a(a: StridedElements, to: *mut f32, steps: usize, rows: usize) {
    for (strip, first) in (0..rows).step_by(ROWS).enumerate() {
        // SAFETY: a strip is as long as `steps` columns of it.
        let to = unsafe { to.add(strip * ROWS * steps) };
        let mut copied = 0;
        if a.strides[1] == 1 && rows - first >= ROWS {
            copied = steps - steps % LANES;
            // SAFETY: whole registers of each row of the strip are inside A, and there is room for them.
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

/// Copies a strip's rows of A that lie without gaps, so that what is in one column comes together.
///
/// # Safety
/// So many steps of each row, whole registers of them, are inside A and inside the strip, behind which
/// there is room for [`BEHIND`] more.
#[target_feature(enable = "avx512f")]
unsafe fn turn(a: StridedElements, to: *mut f32, steps: usize) {
    for step in (0..steps).step_by(QUARTER) {
        // Every fourth row beside each of the first four, so that what follows puts them in order. Not
        // by a closure, which is called where it would have to be part of this.
        let mut rows = [_mm512_setzero_ps(); QUARTER];
        for (row, rows) in rows.iter_mut().enumerate() {
            // SAFETY: as the caller says.
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
            // SAFETY: as the caller says. What is too much is written over by the next column.
            unsafe { _mm512_storeu_ps(to.add((step + at) * ROWS), _mm512_castpd_ps(*column)) };
        }
    }
}

/// A part of the product.
#[derive(Clone, Copy, Debug)]
struct ProductTile {
    start: *mut f32,
    /// From one row to the next.
    stride: usize,
    rows: usize,
    columns: usize,
    /// Nothing was written there yet.
    first: bool,
}

impl ProductTile {
    /// Adds what so many steps contribute.
    ///
    /// # Safety
    /// The part is inside the product; `a` and `b` are strips of its rows and columns, `b` aligned.
    #[target_feature(enable = "avx512f")]
    unsafe fn fill(self, a: *const f32, b: *const f32, steps: usize) {
        for (strip, row) in (0..self.rows).step_by(ROWS).enumerate() {
            // SAFETY: there are as many strips as rows of the part need.
            let a = unsafe { a.add(strip * ROWS * steps) };
            for (strip, column) in (0..self.columns).step_by(COLUMNS).enumerate() {
                let block = Self {
                    start: self.start.wrapping_add(row * self.stride + column),
                    rows: ROWS.min(self.rows - row),
                    columns: COLUMNS.min(self.columns - column),
                    ..self
                };
                block.fetch();
                // SAFETY: the same for columns; the block is inside the part.
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

    /// Has the block brought near while it is computed: its rows are far from each other.
    fn fetch(self) {
        for row in 0..self.rows {
            let at = self.start.wrapping_add(row * self.stride);
            for half in [0, LANES] {
                // SAFETY: a hint, which reads nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(half).cast()) };
            }
        }
    }

    /// Writes a block's sums, or adds them to what is there.
    ///
    /// # Safety
    /// The block is inside the product.
    #[target_feature(enable = "avx512f")]
    unsafe fn write(self, sums: [[__m512; 2]; ROWS]) {
        let masks = [mask(self.columns), mask(self.columns.saturating_sub(LANES))];
        for (row, sums) in sums.into_iter().enumerate().take(self.rows) {
            for (half, (sum, mask)) in sums.into_iter().zip(masks).enumerate() {
                let at = self.start.wrapping_add(row * self.stride + half * LANES);
                // SAFETY: what is masked is inside the block.
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

/// The first so many lanes.
const fn mask(lanes: usize) -> __mmask16 {
    if lanes >= LANES {
        return __mmask16::MAX;
    }
    (1 << lanes) - 1
}

/// A block of sums, all in registers; of these rows, the others are left at zero. Written out for each row,
/// since the compiler keeps the sums in memory where it is left with a loop.
macro_rules! sums_of {
    ($name:ident: $($row:literal)*) => {
        /// # Safety
        /// There are so many steps of both strips, and B's is aligned.
        #[target_feature(enable = "avx512f")]
        #[inline]
        unsafe fn $name(a: *const f32, b: *const f32, steps: usize) -> [[__m512; 2]; ROWS] {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            for step in 0..steps {
                // SAFETY: as the caller says.
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
// For what is left at the lower edge.
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
