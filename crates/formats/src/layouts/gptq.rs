//! GPTQ checkpoints (AutoGPTQ's and GPTQModel's `QuantLinear`).
//!
//! For a matrix of `rows` outputs and `cols` inputs in `G` groups of inputs, with codes of `b` = 2,
//! 3, 4 or 8 bits:
//!
//! | tensor | type and shape | contents |
//! |---|---|---|
//! | `qweight` | i32 `[cols·b/32, rows]` | down each column, the codes of one output as a string of bits, lowest first |
//! | `qzeros` | i32 `[G, rows·b/32]` | along each row, the zero points of one group likewise; see [`ZeroPoint`] |
//! | `scales` | f16 `[G, rows]` | |
//! | `g_idx` | i32 `[cols]` | the group of every input; absent or ascending unless `desc_act` |
//!
//! `weight[row, col] = scales[g, row] × (code − zero)`, `g = g_idx[col]`. (In 3-bit files 32 codes
//! fill three words, two codes straddling the seams.)

use super::{
    Dtype, Floats, Imported, IntegerMatrix, Source, Tensor, Words, check_floats, check_len,
    integer_code, or_word, read_g_idx, refuse,
};
use crate::{FormatError, Matrix};

const LAYOUT: &str = "GPTQ";

/// How a zero point is stored, told by `checkpoint_format` in `quantize_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPoint {
    /// `gptq`: the zero point minus 1, modulo `2^b`.
    MinusOne,
    /// `gptq_v2`: the zero point itself.
    Plain,
}

/// Shape and settings of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Width of a code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs of a group; `None` (−1 in the file) for all of them.
    pub group_size: Option<usize>,
    /// How zero points are stored.
    pub zero_point: ZeroPoint,
}

/// The tensors of one layer, little-endian.
#[derive(Clone, Copy, Debug)]
pub struct Tensors<'a> {
    /// i32 `[cols·b/32, rows]`.
    pub qweight: &'a [u8],
    /// i32 `[G, rows·b/32]`.
    pub qzeros: &'a [u8],
    /// `[G, rows]`, f16 in files of AutoGPTQ.
    pub scales: Floats<'a>,
    /// i32 `[cols]`.
    pub g_idx: Option<&'a [u8]>,
}

/// `b` bits of a string that runs through words `stride` apart.
fn bits_of(words: Words<'_>, first: usize, stride: usize, b: u32, i: usize) -> u8 {
    let bit = i * b as usize;
    let (word, shift) = (bit / 32, bit % 32);
    let mut window = u64::from(words.get(first + word * stride));
    if shift + b as usize > 32 {
        window |= u64::from(words.get(first + (word + 1) * stride)) << 32;
    }
    (window >> shift & ((1 << b) - 1)) as u8
}

/// Puts a code where [`bits_of`] finds it, over zero bits.
fn or_bits(words: &mut [u8], first: usize, stride: usize, b: u32, i: usize, code: u8) {
    let bit = i * b as usize;
    let (word, shift) = (bit / 32, bit % 32);
    let window = u64::from(code) << shift;
    or_word(words, first + word * stride, window as u32);
    if shift + b as usize > 32 {
        or_word(words, first + (word + 1) * stride, (window >> 32) as u32);
    }
}

/// Number of words of `n` codes.
fn words_of(what: &str, n: usize, b: u32) -> Result<usize, FormatError> {
    match n.checked_mul(b as usize) {
        Some(bits) if bits.is_multiple_of(32) => Ok(bits / 32),
        _ => refuse(LAYOUT, format!("{n} {what} of {b} bits do not fill 32-bit words")),
    }
}

/// Reads one layer.
///
/// # Errors
/// A width other than 2, 3, 4 or 8; columns that do not divide into groups and words; a tensor of
/// another length than shape and width call for; groups of uneven size in `g_idx`.
pub fn unpack<'a>(config: &Config, tensors: &Tensors<'_>) -> Result<Imported<'a>, FormatError> {
    let Config { rows, cols, bits, .. } = *config;
    integer_code(LAYOUT, bits)?;
    let size = config.group_size.unwrap_or(cols);
    if size == 0 || !cols.is_multiple_of(size) {
        return refuse(LAYOUT, format!("{cols} inputs do not divide into groups of {size}"));
    }
    let groups = cols / size;
    let zero_words = words_of("outputs", rows, bits)?;
    let code_words = words_of("inputs", cols, bits)?;
    let (qweight, qzeros) = (Words(tensors.qweight), Words(tensors.qzeros));
    check_len(LAYOUT, "qweight", qweight.0.len(), &[code_words, rows], 4)?;
    check_len(LAYOUT, "qzeros", qzeros.0.len(), &[groups, zero_words], 4)?;
    check_floats(LAYOUT, "scales", &tensors.scales, &[groups, rows])?;
    let column_groups = match tensors.g_idx {
        Some(g_idx) => Some(read_g_idx(LAYOUT, g_idx, cols, groups)?),
        None => None,
    };
    let minus = match config.zero_point {
        ZeroPoint::MinusOne => 1,
        ZeroPoint::Plain => 0,
    };
    let mask = (1u32 << bits) - 1;
    Source {
        layout: LAYOUT,
        bits,
        rows,
        cols,
        group_size: config.group_size,
        column_groups,
        code: |row, col| bits_of(qweight, row, rows, bits, col),
        scale: |row, g| tensors.scales.get(g * rows + row),
        zero: |row, g| {
            let stored = bits_of(qzeros, g * zero_words, 1, bits, row);
            ((u32::from(stored) + minus) & mask) as u8
        },
    }
    .import()
}

/// Writes one layer: `qweight`, `qzeros`, `scales` and `g_idx`.
///
/// `column_order` is that of [`Imported`], if the columns of `matrix` are in another order than the
/// model's.
///
/// # Errors
/// The matrix has no integer codes in groups of columns or whole rows; rows or columns do not fill
/// words; a scale is not an f16; `column_order` is not a permutation of the columns.
pub fn pack(
    matrix: &Matrix<'_>,
    zero_point: ZeroPoint,
    column_order: Option<&[u32]>,
) -> Result<Vec<Tensor<'static>>, FormatError> {
    let source = IntegerMatrix::new(LAYOUT, matrix)?;
    let (rows, cols, bits, groups) = (matrix.rows, matrix.cols, source.bits, source.groups);
    let zero_words = words_of("outputs", rows, bits)?;
    let code_words = words_of("inputs", cols, bits)?;
    let size = source.format.group_cols(cols);

    let mut group_of = vec![u32::MAX; cols];
    let to = |col: usize| column_order.map_or(Some(col), |o| o.get(col).map(|&c| c as usize));
    for col in 0..cols {
        match to(col).and_then(|to| group_of.get_mut(to)) {
            Some(group) if *group == u32::MAX => *group = (col / size) as u32,
            _ => {
                return refuse(
                    LAYOUT,
                    format!("the column order is not a permutation of {cols} columns"),
                );
            }
        }
    }
    if let Some(order) = column_order
        && order.len() != cols
    {
        return refuse(
            LAYOUT,
            format!("the column order has {} entries, expected {cols}", order.len()),
        );
    }

    let mut qweight = vec![0; 4 * code_words * rows];
    super::for_each_in_tiles(rows, cols, |row, col| {
        let to = column_order.map_or(col, |order| order[col] as usize);
        or_bits(&mut qweight, row, rows, bits, to, source.code(row, col));
    });
    let minus = match zero_point {
        ZeroPoint::MinusOne => 1,
        ZeroPoint::Plain => 0,
    };
    let mask = ((1u32 << bits) - 1) as u8;
    let mut qzeros = vec![0; 4 * groups * zero_words];
    let mut scales = Vec::with_capacity(2 * groups * rows);
    for g in 0..groups {
        for row in 0..rows {
            let stored = source.zero(row, g).wrapping_sub(minus) & mask;
            or_bits(&mut qzeros, g * zero_words, 1, bits, row, stored);
            scales.extend_from_slice(&source.f16_scale(LAYOUT, row, g)?.to_le_bytes());
        }
    }
    let tensor =
        |name, dtype, shape, data: Vec<u8>| Tensor { name, dtype, shape, data: data.into() };
    let g_idx = group_of.iter().flat_map(|g| g.to_le_bytes()).collect();
    Ok(vec![
        tensor("qweight", Dtype::I32, vec![code_words, rows], qweight),
        tensor("qzeros", Dtype::I32, vec![groups, zero_words], qzeros),
        tensor("scales", Dtype::F16, vec![groups, rows], scales),
        tensor("g_idx", Dtype::I32, vec![cols], g_idx),
    ])
}
