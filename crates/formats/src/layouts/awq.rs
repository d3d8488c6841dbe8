//! AWQ checkpoints (AutoAWQ's `WQLinear_GEMM`, `version: gemm`), 4-bit.
//!
//! For a matrix of `rows` outputs and `cols` inputs in `G` groups of inputs:
//!
//! | tensor | type and shape | contents |
//! |---|---|---|
//! | `qweight` | i32 `[cols, rows/8]` | the codes of eight outputs, in [`ORDER`] |
//! | `qzeros` | i32 `[G, rows/8]` | the zero points of eight outputs, in [`ORDER`] |
//! | `scales` | f16 `[G, rows]` | |
//!
//! `weight[row, col] = scales[g, row] × (code − zero)`, `g = col / group_size`.

use super::{
    Dtype, Floats, Imported, IntegerMatrix, Source, Tensor, Words, check_floats, check_len,
    for_each_in_tiles, or_word, refuse,
};
use crate::{Code, FormatError, Matrix};

const LAYOUT: &str = "AWQ";

/// Which of the eight outputs each nibble of a word holds, lowest nibble first: the order in which
/// the kernel's f16 pairs come out.
pub const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Shape of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Outputs, a multiple of 8.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Inputs of a group; `None` (−1 in the file) for all of them.
    pub group_size: Option<usize>,
}

/// The tensors of one layer, little-endian.
#[derive(Clone, Copy, Debug)]
pub struct Tensors<'a> {
    /// i32 `[cols, rows/8]`.
    pub qweight: &'a [u8],
    /// i32 `[G, rows/8]`.
    pub qzeros: &'a [u8],
    /// `[G, rows]`, f16 in files of AutoAWQ.
    pub scales: Floats<'a>,
}

/// Shift of output `row` in its word: the inverse of [`ORDER`].
fn shift(row: usize) -> usize {
    let i = row % 8;
    4 * (i / 2 + 4 * (i % 2))
}

/// Reads one layer.
///
/// # Errors
/// Outputs that are not a multiple of 8, inputs that do not divide into groups, or a tensor of
/// another length than the shape calls for.
pub fn unpack<'a>(config: &Config, tensors: &Tensors<'_>) -> Result<Imported<'a>, FormatError> {
    let Config { rows, cols, .. } = *config;
    let size = config.group_size.unwrap_or(cols);
    if size == 0 || !cols.is_multiple_of(size) || !rows.is_multiple_of(8) {
        return refuse(
            LAYOUT,
            format!(
                "{rows} outputs and {cols} inputs do not divide into words of 8 and groups of {size}"
            ),
        );
    }
    let (groups, words) = (cols / size, rows / 8);
    let (qweight, qzeros) = (Words(tensors.qweight), Words(tensors.qzeros));
    check_len(LAYOUT, "qweight", qweight.0.len(), &[cols, words], 4)?;
    check_len(LAYOUT, "qzeros", qzeros.0.len(), &[groups, words], 4)?;
    check_floats(LAYOUT, "scales", &tensors.scales, &[groups, rows])?;
    let nibble = |from: Words<'_>, line: usize, row: usize| {
        (from.get(line * words + row / 8) >> shift(row) & 15) as u8
    };
    Source {
        layout: LAYOUT,
        bits: 4,
        rows,
        cols,
        group_size: config.group_size,
        column_groups: None,
        code: |row, col| nibble(qweight, col, row),
        scale: |row, g| tensors.scales.get(g * rows + row),
        zero: |row, g| nibble(qzeros, g, row),
    }
    .import()
}

/// Writes one layer: `qweight`, `qzeros` and `scales`.
///
/// # Errors
/// The matrix has no 4-bit integer codes in groups of columns or whole rows, rows that are not a
/// multiple of 8, or a scale that is not an f16.
pub fn pack(matrix: &Matrix<'_>) -> Result<Vec<Tensor<'static>>, FormatError> {
    let source = IntegerMatrix::new(LAYOUT, matrix)?;
    let (rows, cols, groups) = (matrix.rows, matrix.cols, source.groups);
    if source.format.code != Code::Int4 || !rows.is_multiple_of(8) {
        let format = matrix.format;
        return refuse(
            LAYOUT,
            format!("holds 4-bit codes of a multiple of 8 outputs, found {format} with {rows}"),
        );
    }
    let words = rows / 8;
    let mut qweight = vec![0; 4 * cols * words];
    for_each_in_tiles(rows, cols, |row, col| {
        let code = u32::from(source.code(row, col));
        or_word(&mut qweight, col * words + row / 8, code << shift(row));
    });
    let mut qzeros = vec![0; 4 * groups * words];
    let mut scales = Vec::with_capacity(2 * groups * rows);
    for g in 0..groups {
        for row in 0..rows {
            let zero = u32::from(source.zero(row, g));
            or_word(&mut qzeros, g * words + row / 8, zero << shift(row));
            scales.extend_from_slice(&source.f16_scale(LAYOUT, row, g)?.to_le_bytes());
        }
    }
    let tensor =
        |name, dtype, shape, data: Vec<u8>| Tensor { name, dtype, shape, data: data.into() };
    Ok(vec![
        tensor("qweight", Dtype::I32, vec![cols, words], qweight),
        tensor("qzeros", Dtype::I32, vec![groups, words], qzeros),
        tensor("scales", Dtype::F16, vec![groups, rows], scales),
    ])
}
