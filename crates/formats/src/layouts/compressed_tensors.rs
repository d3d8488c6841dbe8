//! Checkpoints of compressed-tensors (llm-compressor, vLLM), and FP8 checkpoints in general.
//!
//! For a matrix of `rows` outputs and `cols` inputs, with a grid of scales `[rows, G]` (G = 1 for
//! channels) or `[⌈rows/128⌉, ⌈cols/128⌉]`; `p = ⌊32/b⌋` codes of `b` bits go into a word:
//!
//! | compressor | tensors |
//! |---|---|
//! | `pack-quantized` | `weight_packed` i32 `[rows, ⌈cols/p⌉]`; `weight_scale`; `weight_shape` i64 `[2]` |
//! | … asymmetric | `weight_zero_point` i32 `[⌈rows/p⌉, G]`, packed down the rows |
//! | … with `actorder` | `weight_g_idx` i32 `[cols]`: the group of every column |
//! | `int-quantized` | `weight` i8 `[rows, cols]`; `weight_scale`; `weight_zero_point` i8 if asymmetric |
//! | `float-quantized` | `weight` E4M3 `[rows, cols]`; `weight_scale` |
//! | `nvfp4-pack-quantized` | `weight_packed` u8 `[rows, cols/2]`; `weight_scale` E4M3; `weight_global_scale` f32 `[1]` |
//! | `mxfp4-pack-quantized` | `weight_packed` u8 `[rows, cols/2]`; `weight_scale` E8M0 as u8 |
//!
//! `weight = scale × (code − zero)`. Code `i` of a word is at bit `b·i` and holds the signed value
//! plus `2^(b−1)`; bytes of two codes hold the first in the low nibble. Scales are f16, bf16 or f32,
//! but E4M3 `[rows, cols/16]` for NVFP4 (with [`GlobalScale`]) and E8M0 `[rows, cols/32]` for MXFP4.
//! DeepSeek's `weight_scale_inv` is the same multiplier as `weight_scale`. Where the packed bytes are those
//! of the native layout (4- and 2-bit words without padding, symmetric 8-bit integers, FP8, NVFP4,
//! MXFP4), the matrix borrows them.

use std::borrow::Cow;

use super::{
    Dtype, Floats, Imported, IntegerMatrix, Source, Tensor, Words, check_floats, check_len,
    for_each_in_tiles, integer_code, or_word, read_g_idx, refuse, store_scales,
};
use crate::{Code, Format, FormatError, Group, GroupFormat, Matrix, ScaleType, group};

const LAYOUT: &str = "compressed-tensors";

/// Which elements of a checkpoint's matrix share a scale (`strategy` in its configuration).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// All: one scale.
    Tensor,
    /// Those of a row: `[rows, 1]` scales.
    Channel,
    /// So many columns of a row: `[rows, cols/size]` scales.
    Group(u16),
    /// So many rows and columns: `[⌈rows/r⌉, ⌈cols/c⌉]` scales.
    Block(u16, u16),
}

impl Strategy {
    /// Shape of the scales.
    fn grid(self, rows: usize, cols: usize) -> Vec<usize> {
        match self {
            Strategy::Tensor => vec![1],
            Strategy::Channel => vec![rows, 1],
            Strategy::Group(size) => vec![rows, cols.div_ceil(usize::from(size).max(1))],
            Strategy::Block(r, c) => {
                vec![rows.div_ceil(usize::from(r).max(1)), cols.div_ceil(usize::from(c).max(1))]
            }
        }
    }

    /// The same grid in a [`GroupFormat`]; one scale per tensor is repeated for every row.
    fn group(self) -> Group {
        match self {
            Strategy::Tensor | Strategy::Channel => Group::Channel,
            Strategy::Group(size) => Group::Size(size),
            Strategy::Block(rows, cols) => Group::Block { rows, cols },
        }
    }
}

/// Scales in the native layout.
fn import_scales<'a>(
    code: Code,
    strategy: Strategy,
    rows: usize,
    cols: usize,
    scales: &Floats<'_>,
) -> Result<(ScaleType, Cow<'a, [u8]>), FormatError> {
    let shape = strategy.grid(rows, cols);
    check_floats(LAYOUT, "weight_scale", scales, &shape)?;
    Ok(match strategy {
        Strategy::Tensor => store_scales(code, rows, |_| scales.get(0)),
        _ => store_scales(code, shape.iter().product(), |i| scales.get(i)),
    })
}

/// Shape of one layer, and how its integers are packed.
#[derive(Clone, Copy, Debug)]
pub struct PackedConfig {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Width of a code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Which elements share a scale: a channel or a group.
    pub strategy: Strategy,
}

/// The tensors of a `pack-quantized` layer, little-endian.
#[derive(Clone, Copy, Debug)]
pub struct PackedTensors<'a> {
    /// i32 `[rows, ⌈cols/p⌉]`.
    pub weight_packed: &'a [u8],
    /// `[rows, G]`.
    pub weight_scale: Floats<'a>,
    /// i32 `[⌈rows/p⌉, G]`, if asymmetric.
    pub weight_zero_point: Option<&'a [u8]>,
    /// i32 `[cols]`, with `actorder`.
    pub weight_g_idx: Option<&'a [u8]>,
}

/// Reads a `pack-quantized` layer.
///
/// # Errors
/// A width other than 2, 3, 4 or 8, scales that are neither per group nor per channel, or a tensor
/// of another length than the shape calls for.
pub fn unpack_integers<'a>(
    config: &PackedConfig,
    tensors: &PackedTensors<'a>,
) -> Result<Imported<'a>, FormatError> {
    let PackedConfig { rows, cols, bits, .. } = *config;
    let code = integer_code(LAYOUT, bits)?;
    let group_size = match config.strategy {
        Strategy::Channel => None,
        Strategy::Group(size) => Some(usize::from(size)),
        other => {
            return refuse(
                LAYOUT,
                format!("pack-quantized weights have scales per group or channel, found {other:?}"),
            );
        }
    };
    let per_word = 32 / bits as usize;
    let row_words = cols.div_ceil(per_word);
    let groups = config.strategy.grid(rows, cols)[1];
    let packed = Words(tensors.weight_packed);
    check_len(LAYOUT, "weight_packed", packed.0.len(), &[rows, row_words], 4)?;
    check_floats(LAYOUT, "weight_scale", &tensors.weight_scale, &[rows, groups])?;
    if let Some(zeros) = tensors.weight_zero_point {
        let shape = [rows.div_ceil(per_word), groups];
        check_len(LAYOUT, "weight_zero_point", zeros.len(), &shape, 4)?;
    }
    let column_groups = match tensors.weight_g_idx {
        Some(g_idx) => Some(read_g_idx(LAYOUT, g_idx, cols, groups)?),
        None => None,
    };

    let same_bytes = matches!(bits, 2 | 4) && cols.is_multiple_of(per_word);
    if same_bytes && tensors.weight_zero_point.is_none() && column_groups.is_none() {
        let (scale, scales) =
            import_scales(code, config.strategy, rows, cols, &tensors.weight_scale)?;
        return Imported {
            format: Format::Group(GroupFormat {
                code,
                group: config.strategy.group(),
                scale,
                zero: false,
                tensor_scale: false,
            }),
            rows,
            cols,
            data: packed.0.into(),
            scales,
            zeros: Cow::Borrowed(&[]),
            tensor_scale: 1.0,
            column_order: None,
        }
        .checked();
    }

    let mask = (1u32 << bits) - 1;
    let field = |word: u32, i: usize| (word >> (bits as usize * (i % per_word)) & mask) as u8;
    Source {
        layout: LAYOUT,
        bits,
        rows,
        cols,
        group_size,
        column_groups,
        code: |row, col| field(packed.get(row * row_words + col / per_word), col),
        scale: |row, g| tensors.weight_scale.get(row * groups + g),
        zero: |row, g| match tensors.weight_zero_point {
            Some(zeros) => field(Words(zeros).get(row / per_word * groups + g), row),
            None => 1 << (bits - 1),
        },
    }
    .import()
}

/// Reads an `int-quantized` layer: `weight` i8 `[rows, cols]`, and for asymmetric ones a zero point
/// i8 per scale.
///
/// # Errors
/// A tensor has another length than the shape calls for, or zero points go with scales per tensor
/// or block.
pub fn unpack_int8<'a>(
    rows: usize,
    cols: usize,
    strategy: Strategy,
    weight: &'a [u8],
    weight_scale: Floats<'_>,
    weight_zero_point: Option<&[u8]>,
) -> Result<Imported<'a>, FormatError> {
    check_len(LAYOUT, "weight", weight.len(), &[rows, cols], 1)?;
    let (scale, scales) = import_scales(Code::Int8, strategy, rows, cols, &weight_scale)?;
    let format = GroupFormat {
        code: Code::Int8,
        group: strategy.group(),
        scale,
        zero: weight_zero_point.is_some_and(|zeros| zeros.iter().any(|z| *z != 0)),
        tensor_scale: false,
    };
    if let Some(zeros) = weight_zero_point {
        let shape = strategy.grid(rows, cols);
        check_len(LAYOUT, "weight_zero_point", zeros.len(), &shape, 1)?;
        if strategy == Strategy::Tensor && format.zero {
            return refuse(
                LAYOUT,
                "int-quantized weights with one zero point per tensor are not supported".into(),
            );
        }
    }
    // Asymmetric codes and zero points are unsigned here; both move by 128, their difference stays.
    let unsigned = |bytes: &[u8]| bytes.iter().map(|b| b ^ group::INT8_SIGN).collect();
    Imported {
        format: Format::Group(format),
        rows,
        cols,
        data: if format.zero { unsigned(weight) } else { weight.into() },
        scales,
        zeros: match weight_zero_point {
            Some(zeros) if format.zero => unsigned(zeros),
            _ => Cow::Borrowed(&[]),
        },
        tensor_scale: 1.0,
        column_order: None,
    }
    .checked()
}

/// Reads a `float-quantized` layer: `weight` E4M3 `[rows, cols]`.
///
/// # Errors
/// A tensor has another length than the shape calls for.
pub fn unpack_fp8<'a>(
    rows: usize,
    cols: usize,
    strategy: Strategy,
    weight: &'a [u8],
    weight_scale: Floats<'_>,
) -> Result<Imported<'a>, FormatError> {
    check_len(LAYOUT, "weight", weight.len(), &[rows, cols], 1)?;
    let (scale, scales) = import_scales(Code::Fp8, strategy, rows, cols, &weight_scale)?;
    Imported {
        format: Format::Group(GroupFormat {
            code: Code::Fp8,
            group: strategy.group(),
            scale,
            zero: false,
            tensor_scale: false,
        }),
        rows,
        cols,
        data: weight.into(),
        scales,
        zeros: Cow::Borrowed(&[]),
        tensor_scale: 1.0,
        column_order: None,
    }
    .checked()
}

/// What NVFP4's scale per tensor means in a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GlobalScale {
    /// compressed-tensors' `weight_global_scale`: group scales are divided by it.
    Divisor(f32),
    /// ModelOpt's `weight_scale_2`: group scales are multiplied by it.
    Multiplier(f32),
}

/// Reads an NVFP4 layer: `weight_packed` u8 `[rows, cols/2]`, `weight_scale` E4M3 `[rows,
/// cols/16]`.
///
/// # Errors
/// A tensor has another length than the shape calls for, or the global scale is not a positive
/// finite number.
pub fn unpack_nvfp4<'a>(
    rows: usize,
    cols: usize,
    weight_packed: &'a [u8],
    weight_scale: &'a [u8],
    global_scale: GlobalScale,
) -> Result<Imported<'a>, FormatError> {
    check_len(LAYOUT, "weight_packed", weight_packed.len(), &[rows, cols / 2], 1)?;
    check_len(LAYOUT, "weight_scale", weight_scale.len(), &[rows, cols / 16], 1)?;
    let tensor_scale = match global_scale {
        GlobalScale::Divisor(scale) => 1.0 / scale,
        GlobalScale::Multiplier(scale) => scale,
    };
    if !(tensor_scale > 0.0 && tensor_scale.is_finite()) {
        return refuse(
            LAYOUT,
            format!("a global scale is positive and finite, found {global_scale:?}"),
        );
    }
    Imported {
        format: Format::NVFP4,
        rows,
        cols,
        data: weight_packed.into(),
        scales: weight_scale.into(),
        zeros: Cow::Borrowed(&[]),
        tensor_scale,
        column_order: None,
    }
    .checked()
}

/// The compressor's name, as `format` in a checkpoint's `quantization_config`, that stores matrices
/// of a format.
pub fn compressor(format: Format) -> Option<&'static str> {
    match format {
        Format::MXFP4 => Some("mxfp4-pack-quantized"),
        Format::NVFP4 => Some("nvfp4-pack-quantized"),
        Format::Group(g) if g.tensor_scale => None,
        Format::Group(g) if !matches!(g.scale, ScaleType::F16 | ScaleType::F32) => None,
        Format::Group(g) => match (g.code, g.group) {
            (Code::Fp4, _) => None,
            (Code::Fp8, _) => Some("float-quantized"),
            (Code::Int8, Group::Channel | Group::Block { .. }) => Some("int-quantized"),
            (_, Group::Block { .. }) => None,
            _ => Some("pack-quantized"),
        },
        _ => None,
    }
}

/// Writes one layer, as the compressor that [`compressor`] names does. Scales keep their type.
///
/// # Errors
/// No compressor stores the format, or asymmetric tiles.
pub fn pack<'a>(matrix: &Matrix<'a>) -> Result<Vec<Tensor<'a>>, FormatError> {
    let (Some(compressor), Format::Group(format)) = (compressor(matrix.format), matrix.format)
    else {
        return refuse(LAYOUT, format!("no compressor stores {}", matrix.format));
    };
    let (rows, cols) = (matrix.rows, matrix.cols);
    let (grid_rows, grid_cols) = format.grid(rows, cols);
    let tensor = |name, dtype, shape: &[usize], data: Cow<'a, [u8]>| Tensor {
        name,
        dtype,
        shape: shape.to_vec(),
        data,
    };
    let grid = [grid_rows, grid_cols];
    let scale_dtype = match format.scale {
        ScaleType::F16 => Dtype::F16,
        ScaleType::F32 => Dtype::F32,
        ScaleType::E4M3 => Dtype::F8E4M3,
        ScaleType::E8M0 => Dtype::U8,
    };
    let scales = tensor("weight_scale", scale_dtype, &grid, matrix.scales.into());
    let data = Cow::Borrowed(matrix.data);
    Ok(match compressor {
        "pack-quantized" => pack_integers(matrix, scales)?,
        "int-quantized" => {
            let mut tensors = vec![scales];
            let signed = |bytes: &[u8]| bytes.iter().map(|b| b ^ group::INT8_SIGN).collect();
            if format.zero {
                tensors.push(tensor("weight", Dtype::I8, &[rows, cols], signed(&data)));
                let zeros = signed(matrix.zeros);
                tensors.push(tensor("weight_zero_point", Dtype::I8, &grid, zeros));
            } else {
                tensors.push(tensor("weight", Dtype::I8, &[rows, cols], data));
            }
            tensors
        }
        "float-quantized" => vec![tensor("weight", Dtype::F8E4M3, &[rows, cols], data), scales],
        _ => {
            let mut tensors =
                vec![tensor("weight_packed", Dtype::U8, &[rows, cols / 2], data), scales];
            if format.tensor_scale {
                let divisor = (1.0 / matrix.tensor_scale).to_le_bytes().to_vec();
                tensors.push(tensor("weight_global_scale", Dtype::F32, &[1], divisor.into()));
            }
            tensors
        }
    })
}

fn pack_integers<'a>(
    matrix: &Matrix<'a>,
    scales: Tensor<'a>,
) -> Result<Vec<Tensor<'a>>, FormatError> {
    let source = IntegerMatrix::new(LAYOUT, matrix)?;
    let (rows, cols, bits, groups) = (matrix.rows, matrix.cols, source.bits, source.groups);
    let per_word = 32 / bits as usize;
    let row_words = cols.div_ceil(per_word);
    let data = if matches!(bits, 2 | 4) && cols.is_multiple_of(per_word) {
        Cow::Borrowed(matrix.data)
    } else {
        let mut words = vec![0; 4 * rows * row_words];
        for_each_in_tiles(rows, cols, |row, col| {
            let code = u32::from(source.code(row, col)) << (bits as usize * (col % per_word));
            or_word(&mut words, row * row_words + col / per_word, code);
        });
        words.into()
    };
    let mut tensors = vec![
        Tensor { name: "weight_packed", dtype: Dtype::I32, shape: vec![rows, row_words], data },
        scales,
    ];
    if source.format.zero {
        let word_rows = rows.div_ceil(per_word);
        let mut words = vec![0; 4 * word_rows * groups];
        for row in 0..rows {
            for g in 0..groups {
                let zero = u32::from(source.zero(row, g)) << (bits as usize * (row % per_word));
                or_word(&mut words, row / per_word * groups + g, zero);
            }
        }
        tensors.push(Tensor {
            name: "weight_zero_point",
            dtype: Dtype::I32,
            shape: vec![word_rows, groups],
            data: words.into(),
        });
    }
    let shape = [rows as i64, cols as i64];
    tensors.push(Tensor {
        name: "weight_shape",
        dtype: Dtype::I64,
        shape: vec![2],
        data: shape.iter().flat_map(|d| d.to_le_bytes()).collect(),
    });
    Ok(tensors)
}
