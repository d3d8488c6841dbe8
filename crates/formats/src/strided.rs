//! Source floats that need not be contiguous.

use crate::FormatError;

/// A `rows × cols` view into a slice: element `(r, c)` is `data[offset + r·row_stride +
/// c·col_stride]`. Strides are in elements and may be zero or negative (a transposed, reversed or
/// broadcast matrix), so that no copy is needed to encode one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StridedView<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    offset: usize,
    row_stride: isize,
    col_stride: isize,
}

impl<'a, T: Copy> StridedView<'a, T> {
    /// A view whose every element lies inside `data`.
    ///
    /// # Errors
    /// [`FormatError::View`] if some element would lie outside.
    pub fn new(
        data: &'a [T],
        rows: usize,
        cols: usize,
        offset: usize,
        row_stride: isize,
        col_stride: isize,
    ) -> Result<Self, FormatError> {
        let view = StridedView { data, rows, cols, offset, row_stride, col_stride };
        // Strides are linear, so the four corners are the extremes.
        let inside = |r: usize, c: usize| {
            let at =
                offset as i128 + r as i128 * row_stride as i128 + c as i128 * col_stride as i128;
            (0..data.len() as i128).contains(&at)
        };
        let empty = rows == 0 || cols == 0;
        if empty
            || (inside(0, 0)
                && inside(rows - 1, 0)
                && inside(0, cols - 1)
                && inside(rows - 1, cols - 1))
        {
            return Ok(view);
        }
        Err(FormatError::View { rows, cols, offset, row_stride, col_stride, len: data.len() })
    }

    /// A view of a contiguous row-major matrix.
    ///
    /// # Errors
    /// [`FormatError::ElementCount`] if `data` does not have `rows × cols` elements.
    pub fn contiguous(data: &'a [T], rows: usize, cols: usize) -> Result<Self, FormatError> {
        if rows.checked_mul(cols) != Some(data.len()) {
            return Err(FormatError::ElementCount {
                rows,
                cols,
                expected: rows.saturating_mul(cols),
                found: data.len(),
            });
        }
        Ok(StridedView { data, rows, cols, offset: 0, row_stride: cols as isize, col_stride: 1 })
    }

    /// Rows of the view.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the view.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The view with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        StridedView {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Element `(row, col)`.
    ///
    /// # Panics
    /// `row` or `col` is out of range.
    pub fn get(&self, row: usize, col: usize) -> T {
        assert!(row < self.rows && col < self.cols, "({row}, {col})");
        self.data[self.index(row, col)]
    }

    /// `new` has checked that this neither overflows nor leaves the slice.
    fn index(&self, row: usize, col: usize) -> usize {
        (self.offset as isize + row as isize * self.row_stride + col as isize * self.col_stride)
            as usize
    }

    /// Copies a row.
    ///
    /// # Panics
    /// `row` is out of range, or `out` is not `cols` long.
    pub fn copy_row(&self, row: usize, out: &mut [T]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "columns");
        if self.cols == 0 {
            return;
        }
        if self.col_stride == 1 {
            let start = self.index(row, 0);
            out.copy_from_slice(&self.data[start..start + self.cols]);
        } else {
            for (col, out) in out.iter_mut().enumerate() {
                *out = self.data[self.index(row, col)];
            }
        }
    }
}
