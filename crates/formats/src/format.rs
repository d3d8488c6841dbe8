//! The formats themselves: what a stored matrix's numbers are made of.

use crate::FormatError;

/// Number format of a stored matrix `[rows, cols]`, row = output feature, columns along `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE 754 binary32, little-endian.
    F32,
    /// IEEE 754 binary16, little-endian.
    F16,
    /// The upper half of binary32 (bfloat16), little-endian.
    BF16,
    /// A block format of ggml: scales and codes interleaved in blocks of 32 or 256 along `k`.
    Ggml(GgmlType),
    /// Codes, scales and zero points in buffers of their own.
    Group(GroupFormat),
}

/// Block formats of ggml (`ggml-common.h`); the layouts are in [`crate::ggml`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GgmlType {
    /// 4-bit, 32 per f16 scale, offset 8.
    Q4_0,
    /// 4-bit, 32 per f16 scale and f16 minimum.
    Q4_1,
    /// 5-bit, 32 per f16 scale, offset 16.
    Q5_0,
    /// 5-bit, 32 per f16 scale and f16 minimum.
    Q5_1,
    /// Signed 8-bit, 32 per f16 scale.
    Q8_0,
    /// 2-bit super-blocks: 16 groups of 16 with 4-bit scales and minimums.
    Q2K,
    /// 3-bit super-blocks: 16 groups of 16 with signed 6-bit scales.
    Q3K,
    /// 4-bit super-blocks: 8 groups of 32 with 6-bit scales and minimums.
    Q4K,
    /// 5-bit super-blocks: 8 groups of 32 with 6-bit scales and minimums.
    Q5K,
    /// 6-bit super-blocks: 16 groups of 16 with signed 8-bit scales.
    Q6K,
    /// E2M1, 32 per E8M0 scale (`block_mxfp4`: another nibble order than [`Format::MXFP4`]'s).
    MxFp4,
}

impl GgmlType {
    /// Every block format, in the order of the type ids.
    pub const ALL: [GgmlType; 11] = [
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q2K,
        GgmlType::Q3K,
        GgmlType::Q4K,
        GgmlType::Q5K,
        GgmlType::Q6K,
        GgmlType::MxFp4,
    ];

    /// The type's number in GGUF files (`enum ggml_type`).
    pub const fn id(self) -> u32 {
        match self {
            GgmlType::Q4_0 => 2,
            GgmlType::Q4_1 => 3,
            GgmlType::Q5_0 => 6,
            GgmlType::Q5_1 => 7,
            GgmlType::Q8_0 => 8,
            GgmlType::Q2K => 10,
            GgmlType::Q3K => 11,
            GgmlType::Q4K => 12,
            GgmlType::Q5K => 13,
            GgmlType::Q6K => 14,
            GgmlType::MxFp4 => 39,
        }
    }

    /// The type with this number in GGUF files, if it is one of ours.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.id() == id)
    }

    /// Elements of one block: 32, or 256 for the K-quants.
    pub const fn block_elements(self) -> usize {
        match self {
            GgmlType::Q2K | GgmlType::Q3K | GgmlType::Q4K | GgmlType::Q5K | GgmlType::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            GgmlType::Q4_0 => 2 + 16,
            GgmlType::Q4_1 => 4 + 16,
            GgmlType::Q5_0 => 2 + 4 + 16,
            GgmlType::Q5_1 => 4 + 4 + 16,
            GgmlType::Q8_0 => 2 + 32,
            GgmlType::Q2K => 16 + 64 + 4,
            GgmlType::Q3K => 32 + 64 + 12 + 2,
            GgmlType::Q4K => 4 + 12 + 128,
            GgmlType::Q5K => 4 + 12 + 32 + 128,
            GgmlType::Q6K => 128 + 64 + 16 + 2,
            GgmlType::MxFp4 => 1 + 16,
        }
    }
}

/// A format whose codes, scales and zero points lie in buffers of their own.
///
/// The value of a code is `code_value × scale × tensor_scale`; its layout in bytes is described in
/// [`crate::group`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupFormat {
    /// What one element is stored as.
    pub code: Code,
    /// Which elements share a scale.
    pub group: Group,
    /// What a scale is stored as.
    pub scale: ScaleType,
    /// Asymmetric: every group has a zero point of the code's own width. Integer codes only.
    pub zero: bool,
    /// One f32 factor for the whole matrix, on top of the groups' scales.
    pub tensor_scale: bool,
}

/// What one element of a [`GroupFormat`] is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// E2M1: sign, 2 exponent bits, 1 mantissa bit; ±{0, ½, 1, 1½, 2, 3, 4, 6} ([`crate::fp4`]).
    Fp4,
    /// 2 bits: symmetric `code − 2`, asymmetric `code − zero`.
    Int2,
    /// 3 bits: symmetric `code − 4`, asymmetric `code − zero`.
    Int3,
    /// 4 bits: symmetric `code − 8` ("u4b8"), asymmetric `code − zero` ("u4").
    Int4,
    /// 8 bits: symmetric two's complement, asymmetric unsigned `code − zero`.
    Int8,
    /// E4M3FN: sign, 4 exponent bits, 3 mantissa bits, no infinities, ±448 ([`crate::fp8`]).
    Fp8,
}

impl Code {
    /// Width of one code in bits.
    pub const fn bits(self) -> u32 {
        match self {
            Code::Int2 => 2,
            Code::Int3 => 3,
            Code::Fp4 | Code::Int4 => 4,
            Code::Int8 | Code::Fp8 => 8,
        }
    }

    /// Whether codes are integers (and may so have zero points).
    pub const fn is_integer(self) -> bool {
        !matches!(self, Code::Fp4 | Code::Fp8)
    }

    /// The largest magnitude that a symmetric code stands for at scale 1, after rounding: what the
    /// encoder maps a group's largest magnitude to. For integers of `b` bits `(2^b − 1) / 2`,
    /// half-way between the ends `−2^(b−1)` and `2^(b−1) − 1`, as in GPTQ and compressed-tensors.
    pub const fn reach(self) -> f32 {
        match self {
            Code::Fp4 => 6.0,
            Code::Int2 => 1.5,
            Code::Int3 => 3.5,
            Code::Int4 => 7.5,
            Code::Int8 => 127.5,
            Code::Fp8 => 448.0,
        }
    }
}

/// Which elements of a [`GroupFormat`] share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// So many consecutive columns (along `k`) of one row; a multiple of 8, in practice 16, 32, 64
    /// or 128.
    Size(u16),
    /// A whole row.
    Channel,
    /// A tile of so many rows and columns; the last tiles of a row or column may be cut short.
    Block {
        /// Rows of a tile.
        rows: u16,
        /// Columns of a tile.
        cols: u16,
    },
}

/// What a scale of a [`GroupFormat`] is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// IEEE 754 binary16, little-endian.
    F16,
    /// IEEE 754 binary32, little-endian.
    F32,
    /// A power of two, `2^(byte − 127)`; 255 is NaN (OCP Microscaling 1.0, §5.4.1).
    E8M0,
    /// E4M3FN, as [`Code::Fp8`].
    E4M3,
}

impl ScaleType {
    /// Bytes of one scale.
    pub const fn bytes(self) -> usize {
        match self {
            ScaleType::F16 => 2,
            ScaleType::F32 => 4,
            ScaleType::E8M0 | ScaleType::E4M3 => 1,
        }
    }

    /// The largest finite scale.
    pub const fn max(self) -> f32 {
        match self {
            ScaleType::F16 => 65504.0,
            ScaleType::F32 => f32::MAX,
            ScaleType::E8M0 => f32::from_bits(254 << 23),
            ScaleType::E4M3 => 448.0,
        }
    }
}

impl GroupFormat {
    /// Rows and columns of the grid of scales (and of zero points) of a `rows × cols` matrix.
    pub const fn grid(&self, rows: usize, cols: usize) -> (usize, usize) {
        match self.group {
            Group::Size(size) => (rows, cols.div_ceil(size as usize)),
            Group::Channel => (rows, 1),
            Group::Block { rows: r, cols: c } => {
                (rows.div_ceil(r as usize), cols.div_ceil(c as usize))
            }
        }
    }

    /// Rows that share a row of the grid.
    pub const fn group_rows(&self) -> usize {
        match self.group {
            Group::Size(_) | Group::Channel => 1,
            Group::Block { rows, .. } => rows as usize,
        }
    }

    /// Columns that share a scale, of a matrix with `cols` columns (at least 1).
    pub const fn group_cols(&self, cols: usize) -> usize {
        match self.group {
            Group::Size(size) => size as usize,
            Group::Channel => {
                if cols == 0 {
                    1
                } else {
                    cols
                }
            }
            Group::Block { cols, .. } => cols as usize,
        }
    }

    /// What a symmetric integer code is offset by: `value = code − offset`. 0 for asymmetric and
    /// float codes.
    pub const fn offset(&self) -> u8 {
        if self.zero {
            return 0;
        }
        match self.code {
            Code::Int2 => 2,
            Code::Int3 => 4,
            Code::Int4 => 8,
            Code::Int8 => 128,
            Code::Fp4 | Code::Fp8 => 0,
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.zero && !self.code.is_integer() {
            return Err("only integer codes have zero points");
        }
        if self.scale == ScaleType::E8M0 && self.code.is_integer() {
            return Err("E8M0 scales go with floating-point codes");
        }
        match self.group {
            Group::Size(size) if size == 0 || size % 8 != 0 => {
                Err("a group's size is a positive multiple of 8")
            }
            Group::Block { rows, cols } if rows == 0 || cols == 0 => {
                Err("a block has at least one row and one column")
            }
            _ => Ok(()),
        }
    }
}

const fn group(
    code: Code,
    group: Group,
    scale: ScaleType,
    zero: bool,
    tensor_scale: bool,
) -> Format {
    Format::Group(GroupFormat { code, group, scale, zero, tensor_scale })
}

const fn sized(code: Code, size: u16, zero: bool) -> Format {
    group(code, Group::Size(size), ScaleType::F16, zero, false)
}

const TILE: Group = Group::Block { rows: 128, cols: 128 };

impl Format {
    /// E2M1 codes, one f16 scale per 32.
    pub const FP4_G32: Format = sized(Code::Fp4, 32, false);
    /// E2M1 codes, one f16 scale per 64.
    pub const FP4_G64: Format = sized(Code::Fp4, 64, false);
    /// E2M1 codes, one f16 scale per 128.
    pub const FP4_G128: Format = sized(Code::Fp4, 128, false);
    /// MXFP4 (OCP Microscaling 1.0): E2M1 codes, one E8M0 scale per 32.
    pub const MXFP4: Format = group(Code::Fp4, Group::Size(32), ScaleType::E8M0, false, false);
    /// NVFP4 (NVIDIA): E2M1 codes, one E4M3 scale per 16, one f32 scale per tensor.
    pub const NVFP4: Format = group(Code::Fp4, Group::Size(16), ScaleType::E4M3, false, true);
    /// Symmetric 4-bit ("u4b8"), one f16 scale per 32.
    pub const INT4_G32: Format = sized(Code::Int4, 32, false);
    /// Symmetric 4-bit ("u4b8"), one f16 scale per 64.
    pub const INT4_G64: Format = sized(Code::Int4, 64, false);
    /// Symmetric 4-bit ("u4b8"), one f16 scale per 128.
    pub const INT4_G128: Format = sized(Code::Int4, 128, false);
    /// Symmetric 4-bit ("u4b8"), one f16 scale per row.
    pub const INT4_CHANNEL: Format =
        group(Code::Int4, Group::Channel, ScaleType::F16, false, false);
    /// Asymmetric 4-bit ("u4"), one f16 scale and zero point per 32.
    pub const INT4_ASYM_G32: Format = sized(Code::Int4, 32, true);
    /// Asymmetric 4-bit ("u4"), one f16 scale and zero point per 64.
    pub const INT4_ASYM_G64: Format = sized(Code::Int4, 64, true);
    /// Asymmetric 4-bit ("u4"), one f16 scale and zero point per 128.
    pub const INT4_ASYM_G128: Format = sized(Code::Int4, 128, true);
    /// Asymmetric 4-bit ("u4"), one f16 scale and zero point per row.
    pub const INT4_ASYM_CHANNEL: Format =
        group(Code::Int4, Group::Channel, ScaleType::F16, true, false);
    /// Symmetric 3-bit, one f16 scale per 32.
    pub const INT3_G32: Format = sized(Code::Int3, 32, false);
    /// Symmetric 3-bit, one f16 scale per 64.
    pub const INT3_G64: Format = sized(Code::Int3, 64, false);
    /// Symmetric 3-bit, one f16 scale per 128.
    pub const INT3_G128: Format = sized(Code::Int3, 128, false);
    /// Asymmetric 3-bit, one f16 scale and zero point per 32.
    pub const INT3_ASYM_G32: Format = sized(Code::Int3, 32, true);
    /// Asymmetric 3-bit, one f16 scale and zero point per 64.
    pub const INT3_ASYM_G64: Format = sized(Code::Int3, 64, true);
    /// Asymmetric 3-bit, one f16 scale and zero point per 128.
    pub const INT3_ASYM_G128: Format = sized(Code::Int3, 128, true);
    /// Symmetric 2-bit, one f16 scale per 32.
    pub const INT2_G32: Format = sized(Code::Int2, 32, false);
    /// Symmetric 2-bit, one f16 scale per 64.
    pub const INT2_G64: Format = sized(Code::Int2, 64, false);
    /// Symmetric 2-bit, one f16 scale per 128.
    pub const INT2_G128: Format = sized(Code::Int2, 128, false);
    /// Asymmetric 2-bit, one f16 scale and zero point per 32.
    pub const INT2_ASYM_G32: Format = sized(Code::Int2, 32, true);
    /// Asymmetric 2-bit, one f16 scale and zero point per 64.
    pub const INT2_ASYM_G64: Format = sized(Code::Int2, 64, true);
    /// Asymmetric 2-bit, one f16 scale and zero point per 128.
    pub const INT2_ASYM_G128: Format = sized(Code::Int2, 128, true);
    /// Symmetric 8-bit, one f32 scale per row.
    pub const INT8_CHANNEL: Format =
        group(Code::Int8, Group::Channel, ScaleType::F32, false, false);
    /// Symmetric 8-bit, one f32 scale per 128×128 tile.
    pub const INT8_BLOCK: Format = group(Code::Int8, TILE, ScaleType::F32, false, false);
    /// Asymmetric 8-bit, one f32 scale and zero point per row.
    pub const INT8_ASYM_CHANNEL: Format =
        group(Code::Int8, Group::Channel, ScaleType::F32, true, false);
    /// E4M3FN codes, one f32 scale per row.
    pub const FP8_CHANNEL: Format = group(Code::Fp8, Group::Channel, ScaleType::F32, false, false);
    /// E4M3FN codes, one f32 scale per 128×128 tile.
    pub const FP8_BLOCK: Format = group(Code::Fp8, TILE, ScaleType::F32, false, false);

    /// Every named format: floats, ggml types, group formats.
    pub const ALL: [Format; 44] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Ggml(GgmlType::Q4_0),
        Format::Ggml(GgmlType::Q4_1),
        Format::Ggml(GgmlType::Q5_0),
        Format::Ggml(GgmlType::Q5_1),
        Format::Ggml(GgmlType::Q8_0),
        Format::Ggml(GgmlType::Q2K),
        Format::Ggml(GgmlType::Q3K),
        Format::Ggml(GgmlType::Q4K),
        Format::Ggml(GgmlType::Q5K),
        Format::Ggml(GgmlType::Q6K),
        Format::Ggml(GgmlType::MxFp4),
        Format::FP4_G32,
        Format::FP4_G64,
        Format::FP4_G128,
        Format::MXFP4,
        Format::NVFP4,
        Format::INT4_G32,
        Format::INT4_G64,
        Format::INT4_G128,
        Format::INT4_CHANNEL,
        Format::INT4_ASYM_G32,
        Format::INT4_ASYM_G64,
        Format::INT4_ASYM_G128,
        Format::INT4_ASYM_CHANNEL,
        Format::INT3_G32,
        Format::INT3_G64,
        Format::INT3_G128,
        Format::INT3_ASYM_G32,
        Format::INT3_ASYM_G64,
        Format::INT3_ASYM_G128,
        Format::INT2_G32,
        Format::INT2_G64,
        Format::INT2_G128,
        Format::INT2_ASYM_G32,
        Format::INT2_ASYM_G64,
        Format::INT2_ASYM_G128,
        Format::INT8_CHANNEL,
        Format::INT8_BLOCK,
        Format::INT8_ASYM_CHANNEL,
        Format::FP8_CHANNEL,
        Format::FP8_BLOCK,
    ];

    /// The format with this number in GGUF files (`enum ggml_type`), if it is one of ours.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        match id {
            0 => Some(Format::F32),
            1 => Some(Format::F16),
            30 => Some(Format::BF16),
            _ => GgmlType::from_id(id).map(Format::Ggml),
        }
    }

    /// The format's number in GGUF files, if it has one.
    pub const fn ggml_id(&self) -> Option<u32> {
        match self {
            Format::F32 => Some(0),
            Format::F16 => Some(1),
            Format::BF16 => Some(30),
            Format::Ggml(t) => Some(t.id()),
            Format::Group(_) => None,
        }
    }

    /// Columns come in multiples of this: the ggml block, the group size, otherwise 1.
    pub const fn block(&self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Ggml(t) => t.block_elements(),
            Format::Group(GroupFormat { group: Group::Size(size), .. }) => *size as usize,
            Format::Group(_) => 1,
        }
    }

    /// Bytes of the data, scales and zero points of a `rows × cols` matrix.
    ///
    /// # Errors
    /// The format makes no sense, `cols` is not a multiple of [`Self::block`], or a size overflows
    /// `usize`.
    pub fn sizes(&self, rows: usize, cols: usize) -> Result<Sizes, FormatError> {
        if let Format::Group(g) = self {
            g.check().map_err(|reason| FormatError::InvalidFormat { format: *self, reason })?;
        }
        if !cols.is_multiple_of(self.block()) {
            return Err(FormatError::ColumnsNotDivisible {
                format: *self,
                cols,
                block: self.block(),
            });
        }
        self.checked_sizes(rows, cols).ok_or(FormatError::TooLarge { format: *self, rows, cols })
    }

    fn checked_sizes(&self, rows: usize, cols: usize) -> Option<Sizes> {
        // Nothing below takes more than eight bytes an element, a row's or a column's padding
        // included.
        rows.max(1).checked_mul(cols.max(1))?.checked_mul(8)?;
        let row = self.row_bytes(cols);
        let data = rows.checked_mul(row)?;
        let Format::Group(g) = self else {
            return Some(Sizes { row, data, scales: 0, zeros: 0 });
        };
        let (grid_rows, grid_cols) = g.grid(rows, cols);
        let scales = grid_rows.checked_mul(grid_cols)?.checked_mul(g.scale.bytes())?;
        let zeros = if g.zero {
            grid_rows.checked_mul(crate::pack::packed_bytes(g.code.bits(), grid_cols))?
        } else {
            0
        };
        Some(Sizes { row, data, scales, zeros })
    }

    /// Bytes that a row of `cols` columns takes in [`crate::Matrix::data`].
    pub const fn row_bytes(&self, cols: usize) -> usize {
        match self {
            Format::F32 => cols * 4,
            Format::F16 | Format::BF16 => cols * 2,
            Format::Ggml(t) => cols / t.block_elements() * t.block_bytes(),
            Format::Group(g) => crate::pack::packed_bytes(g.code.bits(), cols),
        }
    }

    /// Bits per element of a `rows × cols` matrix, scales and zero points included.
    ///
    /// # Errors
    /// As [`Self::sizes`].
    pub fn bits_per_element(&self, rows: usize, cols: usize) -> Result<f64, FormatError> {
        let sizes = self.sizes(rows, cols)?;
        Ok(sizes.total() as f64 * 8.0 / (rows as f64 * cols as f64))
    }
}

/// Bytes that a matrix takes, part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// One row of the data.
    pub row: usize,
    /// Codes, blocks or floats.
    pub data: usize,
    /// Scales.
    pub scales: usize,
    /// Zero points.
    pub zeros: usize,
}

impl Sizes {
    /// All of it.
    pub const fn total(&self) -> usize {
        self.data + self.scales + self.zeros
    }
}
