//! What can be wrong with a matrix that is handed to this crate.

use crate::Format;

/// Which of a matrix's byte buffers an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Codes, blocks or floats: [`crate::Matrix::data`].
    Data,
    /// One scale per group: [`crate::Matrix::scales`].
    Scales,
    /// One zero point per group: [`crate::Matrix::zeros`].
    Zeros,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Data => "data",
            Part::Scales => "scales",
            Part::Zeros => "zero points",
        })
    }
}

/// Why a matrix could not be made, encoded or converted. Every variant says what was found and what
/// was expected.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FormatError {
    /// The name is none of [`Format`]'s names.
    #[error(
        "unknown number format {0:?}; expected a name such as f16, q4_k, mxfp4, int4-g128 or fp8-block"
    )]
    UnknownName(String),

    /// The combination of code, group, scale and zero point has no meaning.
    #[error("{format} is not a number format: {reason}")]
    InvalidFormat {
        /// The format as it was given.
        format: Format,
        /// The rule that it breaks.
        reason: &'static str,
    },

    /// A row does not divide into the format's blocks.
    #[error("{format}: rows of {cols} columns do not divide into blocks of {block}")]
    ColumnsNotDivisible {
        /// The format.
        format: Format,
        /// Columns of the matrix.
        cols: usize,
        /// Columns of one block.
        block: usize,
    },

    /// `rows × cols` (or its size in bytes) does not fit in `usize`.
    #[error("{format}: a {rows}×{cols} matrix is larger than this machine's address space")]
    TooLarge {
        /// The format.
        format: Format,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },

    /// A buffer is not as long as format and shape say.
    #[error("{format}: the {part} of a {rows}×{cols} matrix take {expected} bytes, found {found}")]
    Length {
        /// The format.
        format: Format,
        /// The buffer at fault.
        part: Part,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Bytes that format and shape call for.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },

    /// A scale per tensor for a format that has none.
    #[error("{format} has no scale per tensor: expected 1, found {found}")]
    TensorScale {
        /// The format.
        format: Format,
        /// The scale that was given.
        found: f32,
    },

    /// Source floats: too few, too many, or strides that leave the slice.
    #[error(
        "a {rows}×{cols} view with offset {offset} and strides ({row_stride}, {col_stride}) leaves its {len} elements"
    )]
    View {
        /// Rows of the view.
        rows: usize,
        /// Columns of the view.
        cols: usize,
        /// Index of element (0, 0).
        offset: usize,
        /// Elements from one row to the next.
        row_stride: isize,
        /// Elements from one column to the next.
        col_stride: isize,
        /// Elements in the slice.
        len: usize,
    },

    /// A slice of elements does not have the matrix's number of them.
    #[error("a {rows}×{cols} matrix has {expected} elements, found {found}")]
    ElementCount {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// `rows × cols`.
        expected: usize,
        /// Elements that were given.
        found: usize,
    },

    /// NaN or an infinity where the format has neither.
    #[error("{format} cannot represent the {value} at row {row}, column {col}")]
    NotFinite {
        /// The format.
        format: Format,
        /// NaN or ±∞.
        value: f32,
        /// Row of the value.
        row: usize,
        /// Column of the value.
        col: usize,
    },

    /// A finite value so large that the format's scale overflows.
    #[error(
        "{format} cannot represent the {value} at row {row}, column {col}: the group's scale would exceed {max_scale}"
    )]
    ScaleOverflow {
        /// The format.
        format: Format,
        /// The value of largest magnitude in its group.
        value: f32,
        /// Row of the value.
        row: usize,
        /// Column of the value.
        col: usize,
        /// The largest scale that the format can store.
        max_scale: f32,
    },

    /// A tensor of a foreign layout does not have the shape that the others imply.
    #[error("{layout}: {tensor} has {found} elements, expected {expected} ({shape})")]
    LayoutLength {
        /// The layout's name.
        layout: &'static str,
        /// The tensor's name in that layout.
        tensor: &'static str,
        /// Elements that were given.
        found: usize,
        /// Elements that the shape calls for.
        expected: usize,
        /// The expected shape, in words.
        shape: String,
    },

    /// A foreign layout cannot hold this format or shape, or a tensor of it holds an impossible
    /// value.
    #[error("{layout}: {reason}")]
    Layout {
        /// The layout's name.
        layout: &'static str,
        /// What was found and what was expected.
        reason: String,
    },

    /// No Hadamard matrix of this order is built here.
    #[error("no Hadamard transform of size {0}: expected 2^k, 12·2^k or 20·2^k")]
    HadamardSize(usize),
}
