//! Matrices in packed bytes, borrowed and owned.

use crate::{AffineRow, Format, FormatError, Part, Sizes, StridedView, float, ggml, group};

/// A matrix `[rows, cols]` in packed bytes that it borrows: row = output feature, columns
/// contiguous along `k`.
///
/// The fields are public for kernels to read; [`Matrix::new`] is what checks them, and the methods
/// may panic on a matrix that was put together without it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matrix<'a> {
    /// Number format.
    pub format: Format,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Codes, ggml blocks or floats, row after row, every row in whole bytes.
    pub data: &'a [u8],
    /// Group formats: the grid of scales, row-major ([`crate::group`]). Otherwise empty.
    pub scales: &'a [u8],
    /// Asymmetric group formats: the grid of zero points ([`crate::group`]). Otherwise empty.
    pub zeros: &'a [u8],
    /// Factor of every value; 1 unless the format has a scale per tensor.
    pub tensor_scale: f32,
}

impl<'a> Matrix<'a> {
    /// A matrix over existing bytes.
    ///
    /// # Errors
    /// The format makes no sense, `cols` does not divide into its blocks, a buffer's length is not
    /// what format and shape say, or `tensor_scale` is not 1 for a format that has none.
    pub fn new(
        format: Format,
        rows: usize,
        cols: usize,
        data: &'a [u8],
        scales: &'a [u8],
        zeros: &'a [u8],
        tensor_scale: f32,
    ) -> Result<Self, FormatError> {
        let sizes = format.sizes(rows, cols)?;
        for (part, expected, found) in [
            (Part::Data, sizes.data, data.len()),
            (Part::Scales, sizes.scales, scales.len()),
            (Part::Zeros, sizes.zeros, zeros.len()),
        ] {
            if expected != found {
                return Err(FormatError::Length { format, part, rows, cols, expected, found });
            }
        }
        let has_tensor_scale = matches!(format, Format::Group(g) if g.tensor_scale);
        if !has_tensor_scale && tensor_scale != 1.0 {
            return Err(FormatError::TensorScale { format, found: tensor_scale });
        }
        Ok(Matrix { format, rows, cols, data, scales, zeros, tensor_scale })
    }

    /// A matrix of floats or ggml blocks, which have no buffers beside the data.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn plain(
        format: Format,
        rows: usize,
        cols: usize,
        data: &'a [u8],
    ) -> Result<Self, FormatError> {
        Self::new(format, rows, cols, data, &[], &[], 1.0)
    }

    /// Bytes of one row of [`Self::data`].
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }

    /// One row of [`Self::data`].
    ///
    /// # Panics
    /// `row` is out of range.
    pub fn row_data(&self, row: usize) -> &'a [u8] {
        let bytes = self.row_bytes();
        &self.data[row * bytes..(row + 1) * bytes]
    }

    /// Bytes of the whole matrix, scales and zero points included.
    pub fn total_bytes(&self) -> usize {
        self.data.len() + self.scales.len() + self.zeros.len()
    }

    /// The values of one row.
    ///
    /// For ggml types the result is that of gguf-py to the bit; for group formats it is `V(code) ×
    /// (scale × tensor_scale)`, each product rounded to f32 (asymmetric: `V(code) = code − zero`,
    /// an integer).
    ///
    /// # Panics
    /// `row` is out of range, or `out` is not `cols` long.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "columns");
        match self.format {
            Format::F32 => float::decode_f32(self.row_data(row), out),
            Format::F16 => float::decode_f16(self.row_data(row), out),
            Format::BF16 => float::decode_bf16(self.row_data(row), out),
            Format::Ggml(t) => ggml::decode_row(t, self.row_data(row), out),
            Format::Group(g) => group::decode_row(self, &g, row, out),
        }
    }

    /// All values, row-major.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        if self.cols > 0 {
            for (row, out) in out.chunks_exact_mut(self.cols).enumerate() {
                self.decode_row(row, out);
            }
        }
        out
    }

    /// One row in the integer view, replacing what `out` held and reusing its memory.
    ///
    /// # Panics
    /// `row` is out of range, or the format has no integer view ([`Format::affine`]).
    pub fn affine_row(&self, row: usize, out: &mut AffineRow) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        out.clear();
        match self.format {
            Format::Ggml(t) => ggml::affine_row(t, self.row_data(row), out),
            Format::Group(g) if g.affine().is_some() => group::affine_row(self, &g, row, out),
            format => panic!("{format} has no integer view"),
        }
    }

    /// A copy that owns its bytes.
    pub fn to_owned(&self) -> OwnedMatrix {
        OwnedMatrix {
            format: self.format,
            rows: self.rows,
            cols: self.cols,
            data: self.data.to_vec(),
            scales: self.scales.to_vec(),
            zeros: self.zeros.to_vec(),
            tensor_scale: self.tensor_scale,
        }
    }
}

/// A [`Matrix`] that owns its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedMatrix {
    /// Number format.
    pub format: Format,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// As [`Matrix::data`].
    pub data: Vec<u8>,
    /// As [`Matrix::scales`].
    pub scales: Vec<u8>,
    /// As [`Matrix::zeros`].
    pub zeros: Vec<u8>,
    /// As [`Matrix::tensor_scale`].
    pub tensor_scale: f32,
}

impl OwnedMatrix {
    /// A matrix whose every byte is 0.
    ///
    /// # Errors
    /// As [`Format::sizes`].
    pub(crate) fn zeroed(format: Format, rows: usize, cols: usize) -> Result<Self, FormatError> {
        let Sizes { data, scales, zeros, .. } = format.sizes(rows, cols)?;
        Ok(OwnedMatrix {
            format,
            rows,
            cols,
            data: vec![0; data],
            scales: vec![0; scales],
            zeros: vec![0; zeros],
            tensor_scale: 1.0,
        })
    }

    /// The matrix, borrowed.
    pub fn view(&self) -> Matrix<'_> {
        Matrix {
            format: self.format,
            rows: self.rows,
            cols: self.cols,
            data: &self.data,
            scales: &self.scales,
            zeros: &self.zeros,
            tensor_scale: self.tensor_scale,
        }
    }

    /// All values, row-major.
    pub fn decode(&self) -> Vec<f32> {
        self.view().decode()
    }
}

/// Encodes a contiguous row-major `rows × cols` matrix, rounding to nearest.
///
/// # Errors
/// `src` is not `rows × cols` long; the format and `cols` do not go together; a value that the
/// format cannot represent (see the crate's table), with its row and column.
pub fn encode(
    format: Format,
    rows: usize,
    cols: usize,
    src: &[f32],
) -> Result<OwnedMatrix, FormatError> {
    encode_strided(format, StridedView::contiguous(src, rows, cols)?)
}

/// Encodes a matrix that need not be contiguous, without copying more of it than a few rows at a
/// time.
///
/// # Errors
/// As [`encode`].
pub fn encode_strided(
    format: Format,
    src: StridedView<'_, f32>,
) -> Result<OwnedMatrix, FormatError> {
    let (rows, cols) = (src.rows(), src.cols());
    let mut matrix = OwnedMatrix::zeroed(format, rows, cols)?;
    if rows == 0 || cols == 0 {
        return Ok(matrix);
    }
    if let Format::Group(g) = format {
        group::encode(&g, &src, &mut matrix)?;
        return Ok(matrix);
    }
    let mut values = vec![0.0; cols];
    let row_bytes = format.row_bytes(cols);
    for (row, out) in matrix.data.chunks_exact_mut(row_bytes).enumerate() {
        src.copy_row(row, &mut values);
        match format {
            Format::F32 => float::encode_f32(&values, out),
            Format::F16 => float::encode_f16(&values, out),
            Format::BF16 => float::encode_bf16(&values, out),
            Format::Ggml(t) => ggml::encode_row(t, row, &values, out)?,
            Format::Group(_) => unreachable!("encoded above"),
        }
    }
    Ok(matrix)
}
