//! The packed tensors of other projects' checkpoints, to and from the native layout of
//! [`crate::group`].
//!
//! Codes move from one packing to the other one by one, through no third representation; where the
//! bytes of the two agree they are not moved at all ([`Imported`] borrows them, from a mapped file
//! for instance).
//!
//! | module | projects | orientation of the codes |
//! |---|---|---|
//! | [`gptq`] | AutoGPTQ, GPTQModel | `[k, rows]`, packed along `k` |
//! | [`awq`] | AutoAWQ | `[k, rows]`, packed along rows, interleaved |
//! | [`compressed_tensors`] | compressed-tensors (vLLM, llm-compressor), DeepSeek's FP8 | `[rows, k]`, packed along `k` |
//! | [`mxfp4`] | gpt-oss, and ggml's MXFP4 block | `[rows, k]` |
//!
//! Tensors come in and go out as little-endian bytes, as safetensors files hold them. A matrix
//! whose zero points are all in the middle of the code's range comes out as the symmetric format.
//! Scales of 8-bit codes become f32; of narrower codes f16 if all of them fit exactly (bf16 scales
//! above 2^−14 do), otherwise f32: no scale is rounded on the way in.

pub mod awq;
pub mod compressed_tensors;
pub mod gptq;
pub mod mxfp4;

use std::borrow::Cow;

use half::{bf16, f16};

use crate::{Code, Format, FormatError, Group, GroupFormat, Matrix, ScaleType, group, pack};

/// Element type of a float tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE 754 binary32.
    F32,
}

/// The bytes of a tensor of floats, in practice of scales.
#[derive(Clone, Copy, Debug)]
pub struct Floats<'a> {
    /// Element type.
    pub float_type: FloatType,
    /// Little-endian elements, row-major.
    pub bytes: &'a [u8],
}

impl<'a> Floats<'a> {
    /// A tensor of floats.
    pub fn new(float_type: FloatType, bytes: &'a [u8]) -> Self {
        Floats { float_type, bytes }
    }

    fn get(&self, i: usize) -> f32 {
        let b = self.bytes;
        match self.float_type {
            FloatType::F16 => f16::from_le_bytes([b[2 * i], b[2 * i + 1]]).to_f32(),
            FloatType::BF16 => bf16::from_le_bytes([b[2 * i], b[2 * i + 1]]).to_f32(),
            FloatType::F32 => {
                f32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]])
            }
        }
    }
}

/// A matrix read from a foreign layout: as [`Matrix`], its parts borrowed where the bytes agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported<'a> {
    /// Number format.
    pub format: Format,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// As [`Matrix::data`].
    pub data: Cow<'a, [u8]>,
    /// As [`Matrix::scales`].
    pub scales: Cow<'a, [u8]>,
    /// As [`Matrix::zeros`].
    pub zeros: Cow<'a, [u8]>,
    /// As [`Matrix::tensor_scale`].
    pub tensor_scale: f32,
    /// Set if the file's groups are not runs of columns (GPTQ's `desc_act`, compressed-tensors'
    /// `actorder`): column `j` of the matrix is the file's column `column_order[j]`, so the input
    /// is to be gathered in this order before it is multiplied.
    pub column_order: Option<Vec<u32>>,
}

impl Imported<'_> {
    /// The matrix, borrowed. Its columns are in the order of [`Self::column_order`].
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

    /// Checks what was put together, the errors being those of [`Matrix::new`].
    fn checked(self) -> Result<Self, FormatError> {
        Matrix::new(
            self.format,
            self.rows,
            self.cols,
            &self.data,
            &self.scales,
            &self.zeros,
            self.tensor_scale,
        )?;
        Ok(self)
    }
}

/// Element type of a tensor to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Unsigned bytes.
    U8,
    /// Signed bytes.
    I8,
    /// Little-endian i32.
    I32,
    /// Little-endian i64.
    I64,
    /// IEEE 754 binary16.
    F16,
    /// IEEE 754 binary32.
    F32,
    /// E4M3FN bytes.
    F8E4M3,
}

/// One tensor of a foreign layout, to be written under the module's prefix.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// Name after the module's prefix, such as `qweight`.
    pub name: &'static str,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian elements, row-major.
    pub data: Cow<'a, [u8]>,
}

/// A tensor of 32-bit words, in which codes are packed.
#[derive(Clone, Copy)]
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn get(self, i: usize) -> u32 {
        let b = &self.0[4 * i..4 * i + 4];
        u32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }
}

fn or_word(bytes: &mut [u8], i: usize, bits: u32) {
    for (byte, more) in bytes[4 * i..4 * i + 4].iter_mut().zip(bits.to_le_bytes()) {
        *byte |= more;
    }
}

fn check_len(
    layout: &'static str,
    tensor: &'static str,
    found: usize,
    shape: &[usize],
    element_bytes: usize,
) -> Result<(), FormatError> {
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let bytes = elements.and_then(|n| n.checked_mul(element_bytes));
    if bytes == Some(found) {
        return Ok(());
    }
    Err(FormatError::LayoutLength {
        layout,
        tensor,
        found,
        expected: bytes.unwrap_or(usize::MAX),
        shape: format!("{shape:?} of {element_bytes} bytes"),
    })
}

fn check_floats(
    layout: &'static str,
    tensor: &'static str,
    floats: &Floats<'_>,
    shape: &[usize],
) -> Result<(), FormatError> {
    let bytes = match floats.float_type {
        FloatType::F16 | FloatType::BF16 => 2,
        FloatType::F32 => 4,
    };
    check_len(layout, tensor, floats.bytes.len(), shape, bytes)
}

fn refuse<T>(layout: &'static str, reason: String) -> Result<T, FormatError> {
    Err(FormatError::Layout { layout, reason })
}

fn integer_code(layout: &'static str, bits: u32) -> Result<Code, FormatError> {
    match bits {
        2 => Ok(Code::Int2),
        3 => Ok(Code::Int3),
        4 => Ok(Code::Int4),
        8 => Ok(Code::Int8),
        _ => refuse(layout, format!("codes of {bits} bits, expected 2, 3, 4 or 8")),
    }
}

/// The scales as the native layout stores them, `n` of them in the order of the grid.
fn store_scales<'a>(
    code: Code,
    n: usize,
    scale: impl Fn(usize) -> f32,
) -> (ScaleType, Cow<'a, [u8]>) {
    let fits_f16 = |x: f32| f16::from_f32(x).to_f32().to_bits() == x.to_bits();
    if code.bits() < 8 && (0..n).all(|i| fits_f16(scale(i))) {
        let bytes = (0..n).flat_map(|i| f16::from_f32(scale(i)).to_le_bytes());
        (ScaleType::F16, bytes.collect())
    } else {
        let bytes = (0..n).flat_map(|i| scale(i).to_le_bytes());
        (ScaleType::F32, bytes.collect())
    }
}

/// An integer matrix of a foreign layout, described by where its parts are. Codes and zero points
/// are unsigned.
struct Source<C, S, Z> {
    layout: &'static str,
    bits: u32,
    rows: usize,
    cols: usize,
    /// Columns of a group; `None` for the whole row.
    group_size: Option<usize>,
    /// Group of each file's column, if they are not runs.
    column_groups: Option<Vec<usize>>,
    /// Code at (row, column of the file).
    code: C,
    /// Scale of (row, group).
    scale: S,
    /// Zero point of (row, group).
    zero: Z,
}

impl<C, S, Z> Source<C, S, Z>
where
    C: Fn(usize, usize) -> u8,
    S: Fn(usize, usize) -> f32,
    Z: Fn(usize, usize) -> u8,
{
    fn import<'a>(self) -> Result<Imported<'a>, FormatError> {
        let Source { layout, bits, rows, cols, .. } = self;
        let code = integer_code(layout, bits)?;
        let size = self.group_size.unwrap_or(cols);
        if size == 0 || !cols.is_multiple_of(size) {
            return refuse(layout, format!("{cols} columns do not divide into groups of {size}"));
        }
        let groups = cols / size;
        let group = match self.group_size {
            None => Group::Channel,
            Some(size) => match u16::try_from(size) {
                Ok(size) => Group::Size(size),
                Err(_) if size == cols => Group::Channel,
                Err(_) => {
                    return refuse(layout, format!("groups of {size} columns, at most 65535"));
                }
            },
        };
        let column_order = match &self.column_groups {
            Some(of) => order_columns(layout, of, groups, size)?,
            None => None,
        };

        let middle = 1u8 << (bits - 1);
        let grid = || (0..rows).flat_map(|row| (0..groups).map(move |g| (row, g)));
        let asymmetric = grid().any(|(row, g)| (self.zero)(row, g) != middle);
        let (scale, scales) =
            store_scales(code, rows * groups, |i| (self.scale)(i / groups, i % groups));
        let format = GroupFormat { code, group, scale, zero: asymmetric, tensor_scale: false };
        let sizes = Format::Group(format).sizes(rows, cols)?;

        let mut zeros = vec![0; sizes.zeros];
        if asymmetric {
            let row_bytes = pack::packed_bytes(bits, groups);
            for (row, g) in grid() {
                let zero = (self.zero)(row, g);
                pack::set(bits, &mut zeros[row * row_bytes..], g, zero);
            }
        }
        let flip = if format.is_twos_complement() { group::INT8_SIGN } else { 0 };
        let mut data = vec![0; sizes.data];
        for_each_in_tiles(rows, cols, |row, col| {
            let from = match &column_order {
                Some(order) => order[col] as usize,
                None => col,
            };
            let code = (self.code)(row, from) ^ flip;
            pack::set(bits, &mut data[row * sizes.row..], col, code);
        });
        Imported {
            format: Format::Group(format),
            rows,
            cols,
            data: data.into(),
            scales,
            zeros: zeros.into(),
            tensor_scale: 1.0,
            column_order,
        }
        .checked()
    }
}

/// Visits every (row, column) tile by tile, so that a transposition touches few cache lines at a
/// time.
fn for_each_in_tiles(rows: usize, cols: usize, mut visit: impl FnMut(usize, usize)) {
    const TILE: usize = 64;
    for first_row in (0..rows).step_by(TILE) {
        for first_col in (0..cols).step_by(TILE) {
            for row in first_row..rows.min(first_row + TILE) {
                for col in first_col..cols.min(first_col + TILE) {
                    visit(row, col);
                }
            }
        }
    }
}

/// The group of every column, from an int32 tensor `g_idx` of `cols` elements.
fn read_g_idx(
    layout: &'static str,
    g_idx: &[u8],
    cols: usize,
    groups: usize,
) -> Result<Vec<usize>, FormatError> {
    check_len(layout, "g_idx", g_idx.len(), &[cols], 4)?;
    (0..cols)
        .map(|col| {
            let g = Words(g_idx).get(col) as i32;
            match usize::try_from(g) {
                Ok(g) if g < groups => Ok(g),
                _ => {
                    refuse(layout, format!("g_idx[{col}] is {g}, expected a group below {groups}"))
                }
            }
        })
        .collect()
}

/// The columns sorted by group, keeping the file's order within a group; `None` if that is the
/// order they are in.
fn order_columns(
    layout: &'static str,
    group_of: &[usize],
    groups: usize,
    size: usize,
) -> Result<Option<Vec<u32>>, FormatError> {
    if u32::try_from(group_of.len()).is_err() {
        return refuse(layout, format!("{} columns, at most 2^32", group_of.len()));
    }
    let mut count = vec![0; groups];
    for &g in group_of {
        count[g] += 1;
    }
    if let Some(g) = count.iter().position(|n| *n != size) {
        let found = count[g];
        return refuse(layout, format!("g_idx gives group {g} {found} columns, expected {size}"));
    }
    let mut order: Vec<u32> = (0..group_of.len() as u32).collect();
    order.sort_by_key(|&col| group_of[col as usize]);
    let sorted = order.iter().enumerate().all(|(i, &col)| i == col as usize);
    Ok((!sorted).then_some(order))
}

/// A matrix to be written as unsigned integer codes.
struct IntegerMatrix<'a> {
    matrix: Matrix<'a>,
    format: GroupFormat,
    bits: u32,
    groups: usize,
}

impl<'a> IntegerMatrix<'a> {
    /// The matrix, if it has integer codes in groups of columns or whole rows.
    fn new(layout: &'static str, matrix: &Matrix<'a>) -> Result<Self, FormatError> {
        match matrix.format {
            Format::Group(format)
                if format.code.is_integer()
                    && !matches!(format.group, Group::Block { .. })
                    && !format.tensor_scale =>
            {
                Ok(IntegerMatrix {
                    matrix: *matrix,
                    format,
                    bits: format.code.bits(),
                    groups: format.grid(matrix.rows, matrix.cols).1,
                })
            }
            format => refuse(
                layout,
                format!("holds integers in groups of columns or whole rows, found {format}"),
            ),
        }
    }

    /// Unsigned code at (row, column).
    fn code(&self, row: usize, col: usize) -> u8 {
        let code = pack::get(self.bits, self.matrix.row_data(row), col);
        if self.format.is_twos_complement() { code ^ group::INT8_SIGN } else { code }
    }

    /// Unsigned zero point of (row, group): the middle of the range for symmetric formats.
    fn zero(&self, row: usize, g: usize) -> u8 {
        if self.format.zero {
            let row_bytes = pack::packed_bytes(self.bits, self.groups);
            pack::get(self.bits, &self.matrix.zeros[row * row_bytes..], g)
        } else {
            1 << (self.bits - 1)
        }
    }

    fn scale(&self, row: usize, g: usize) -> f32 {
        let index = row * self.groups + g;
        group::read_scale(self.format.scale, self.matrix.scales, index)
    }

    /// Scale of (row, group) as f16, if it is one exactly.
    fn f16_scale(&self, layout: &'static str, row: usize, g: usize) -> Result<f16, FormatError> {
        let scale = self.scale(row, g);
        let stored = f16::from_f32(scale);
        if stored.to_f32() == scale {
            return Ok(stored);
        }
        refuse(
            layout,
            format!("stores f16 scales, which cannot hold {scale} of row {row}, group {g}"),
        )
    }
}
