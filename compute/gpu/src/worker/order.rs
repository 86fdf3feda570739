//! Copies matrices into the order in which a kernel reads them, with zeros beyond their edges.
//!
//! Sequential memory costs a processor half the time of rows that are far apart: each step along a column of a large
//! matrix touches another page.

use std::borrow::Cow;

use super::templates::MatrixOrder;
use crate::host::MatrixView;

/// Elements that the kernel loads at once.
const FOUR: usize = 4;

/// Both matrices of a product in the kernel's order; row by row and padded to fours if `order` is `None`.
pub(crate) fn arranged<'a>(
    order: Option<MatrixOrder>,
    a: MatrixView<'a>,
    b: MatrixView<'a>,
) -> [Cow<'a, [f32]>; 2] {
    let depth = a.columns.next_multiple_of(FOUR);
    match order {
        Some(MatrixOrder { rows, columns }) => [
            tiled(a, [a.rows.next_multiple_of(rows), depth], [rows, FOUR]),
            tiled(
                b,
                [depth, b.columns.next_multiple_of(columns)],
                [depth, columns],
            ),
        ]
        .map(Cow::Owned),
        None => [a, b].map(|matrix| Cow::Borrowed(matrix.data)),
    }
}

/// A matrix, padded, in tiles from left to right and from top to bottom, each tile row by row. The tiles must divide
/// the padded size.
fn tiled(
    matrix: MatrixView<'_>,
    [height, width]: [usize; 2],
    [rows, columns]: [usize; 2],
) -> Vec<f32> {
    let mut to = vec![0.0; height * width];
    let mut lines = to.chunks_exact_mut(columns);
    for top in (0..height).step_by(rows) {
        for left in (0..width).step_by(columns) {
            for (row, line) in (top..top + rows).zip(&mut lines) {
                if row >= matrix.rows || left >= matrix.columns {
                    continue;
                }
                let line = &mut line[..columns.min(matrix.columns - left)];
                let first = matrix.index(row, left);
                if matrix.strides[1] == 1 {
                    line.copy_from_slice(&matrix.data[first..first + line.len()]);
                    continue;
                }
                for (column, element) in (left..).zip(line) {
                    *element = matrix.data[matrix.index(row, column)];
                }
            }
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_follow_each_other_and_edges_are_zero() {
        let data: Vec<f32> = (1..=6).map(|i| i as f32).collect();
        let matrix = MatrixView::contiguous(&data, 2, 3);
        let strips = tiled(matrix, [4, 4], [2, 2]);
        let expected = [[1, 2, 4, 5], [3, 0, 6, 0], [0; 4], [0; 4]];
        let expected: Vec<f32> = expected.as_flattened().iter().map(|i| *i as f32).collect();
        assert_eq!(strips, expected);
        let turned = MatrixView {
            rows: 3,
            columns: 2,
            strides: [1, 3],
            ..matrix
        };
        assert_eq!(
            tiled(turned, [3, 2], [3, 2]),
            [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
        );
        let backwards = MatrixView {
            offset: 5,
            strides: [-3, -1],
            ..matrix
        };
        assert_eq!(
            tiled(backwards, [2, 3], [1, 3]),
            [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
        );
    }

    #[test]
    fn a_product_has_both_in_strips() {
        let data = vec![1.0; 60];
        let (a, b) = (
            MatrixView::contiguous(&data, 5, 6),
            MatrixView::contiguous(&data, 6, 10),
        );
        let order = MatrixOrder {
            rows: 4,
            columns: 8,
        };
        let [x, y] = arranged(Some(order), a, b);
        assert_eq!((x.len(), y.len()), (8 * 8, 8 * 16));
        assert_eq!((x.iter().sum::<f32>(), y.iter().sum::<f32>()), (30.0, 60.0));
        assert_eq!(arranged(None, a, b)[0].len(), 60);
    }
}
