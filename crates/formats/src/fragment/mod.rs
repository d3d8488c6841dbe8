//! The order in which the GPU kernels read a quantised matrix.
//!
//! A *block* is 16 rows × 64 columns, a *row block* the blocks of 16 consecutive rows along k. Rows are
//! padded to a multiple of 16 (scale 0, minimum 0), columns to a multiple of 64 (code 0; kernels
//! read zeros for the activations there). Blocks lie row block after row block, so that whoever works on
//! 16 rows streams through memory.
//!
//! A block is divided among 32 *slots*, one for each thread that multiplies it. Slot `4·g + t`
//! (g = 0…7, t = 0…3) holds rows `g` and `g + 8`, and of each the columns `16·s + 4·t + i` for
//! s = 0…3, i = 0…3, in that order: j = `4·s + i` counts them. Those are the elements that lane `4·g + t`
//! of an `mma.m16n8k16` holds of its first operand (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with the columns of
//! each 16 permuted so that a lane's four are neighbours: a permutation of k changes no product as
//! long as the activations follow it. It is Marlin's offline shuffle (Frantar et al. 2024, "MARLIN", §3) with
//! two changes: steps of 16 columns stay whole, so that scales of groups of 16 and more can be applied to f32 sums, and
//! a lane of Apple's `simdgroup_matrix` finds its elements in the same slot under another lane number.
//!
//! **Codes.** As planes, lowest bits first (3 bits = 2 + 1, 5 = 4 + 1, 6 = 4 + 2). A pair is the
//! elements j = 2·p and 2·p + 1, p = 0…7: the even one in the lower half of a 32-bit word, the odd one
//! 16 bits up, so that one shift and one mask give a pair ready to be made two f16.
//!
//! | plane | words of a slot | pair p of row g + 8·h is in word | at bit (and 16 up) |
//! |---|---|---|---|
//! | 8 bits | 8 | 4·h + p/2 | 8·(p mod 2) |
//! | 4 bits (integers) | 4 | 2·h + p/4 | 4·(p mod 4) |
//! | 2 bits | 2 | h | 2·p |
//! | 1 bit | 1 | 0 | p + 8·h |
//! | 16 bits | 16 | 8·h + p | 0 |
//! | 32 bits | 32 | 16·h + 2·p + (0, 1) | 0 |
//!
//! E2M1 codes are taken apart: to become f16 bits, a code's sign must come to bit 15 and the rest to bits 9…11 of its half, and no
//! order of whole codes lets one shift and one mask do that. So the four codes of a half, of pairs q = p mod 4, lie as
//!
//! | bit | 15 | 14 | 13 | 12 | 11…9 | 8…6 | 5…3 | 2…0 |
//! |---|---|---|---|---|---|---|---|---|
//! | | sign 0 | sign 2 | sign 3 | sign 1 | code 0 | code 1 | code 2 | code 3 |
//!
//! Pairs 0 and 1 take one mask for both, pairs 2 and 3 one for each, and every shift is to the left, which is a multiplication
//! where those have a unit of their own.
//!
//! A plane's words are stored in chunks of 16 bytes (8 for 2 bits, 4 for 1 bit): first chunk 0 of all
//! 32 slots, then chunk 1, so that the threads of a SIMD-group load consecutive memory.
//!
//! **Scales and minimums**, in buffers of their own: `[row block][group][16]`, row `r` at place `2·(r mod 8) +
//! r/8`, so that a slot's two are neighbours. Super-blocks: signed bytes (scales) and bytes
//! (minimums), and in a third buffer `[row block][super-block]` 16 f16 scales, then 16 f16 minimums where
//! there are any.
//!
//! `value = (scale · V(code) + min) · factor`, V(code) = code − offset, or the E2M1 or E4M3 number.

mod pack;
mod planes;
mod unpack;

use crate::{Code, Format, FormatError, ScaleStorage, Values};

pub use pack::FragmentMatrix;
pub use unpack::Fragments;

/// Rows of a block.
pub const BLOCK_ROWS: usize = 16;
/// Columns of a block.
pub const BLOCK_COLS: usize = 64;
/// Columns of a super-block.
const SUPER: usize = 256;

/// What a code is. The numbers are the kernels' specialisation constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are the widths")]
pub enum FragmentCode {
    U2 = 0,
    U3 = 1,
    U4 = 2,
    U5 = 3,
    U6 = 4,
    U8 = 5,
    /// E2M1.
    Fp4 = 6,
    /// E4M3.
    Fp8 = 7,
    F16 = 8,
    Bf16 = 9,
    F32 = 10,
}

impl FragmentCode {
    /// Bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            Self::U2 => 2,
            Self::U3 => 3,
            Self::U4 | Self::Fp4 => 4,
            Self::U5 => 5,
            Self::U6 => 6,
            Self::U8 | Self::Fp8 => 8,
            Self::F16 | Self::Bf16 => 16,
            Self::F32 => 32,
        }
    }
}

/// What scales are stored as. The numbers are the kernels' specialisation constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FragmentScale {
    /// There are none: floats.
    None = 0,
    /// f16 per group.
    F16 = 1,
    /// f32 per group.
    F32 = 2,
    /// E8M0 per group.
    E8M0 = 3,
    /// E4M3 per group.
    E4M3 = 4,
    /// An f16 per 256 columns times a signed byte per group.
    SuperBlock = 5,
}

/// What minimums are stored as. The numbers are the kernels' specialisation constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FragmentMin {
    /// There are none.
    None = 0,
    /// f16 per group.
    F16 = 1,
    /// f32 per group.
    F32 = 2,
    /// Minus an f16 per 256 columns times a byte per group.
    SuperBlock = 3,
}

/// How a matrix lies in blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FragmentLayout {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// What a code is.
    pub code: FragmentCode,
    /// Subtracted from integer codes.
    pub offset: i32,
    /// Columns per scale: 16, 32 or a multiple of 64; the padded columns where a row has one scale.
    pub group: usize,
    /// Storage of the scales.
    pub scale: FragmentScale,
    /// Storage of the minimums.
    pub min: FragmentMin,
    /// Factor of all values.
    pub factor: f32,
}

impl FragmentLayout {
    /// The layout of a matrix in `format`; `None` if its groups are not 16, 32 or a
    /// multiple of 64 columns.
    pub fn new(format: Format, rows: usize, cols: usize, tensor_scale: f32) -> Option<Self> {
        use FragmentCode as C;
        let padded = cols.next_multiple_of(BLOCK_COLS);
        let dense = |code| Self {
            rows,
            cols,
            code,
            offset: 0,
            group: padded,
            scale: FragmentScale::None,
            min: FragmentMin::None,
            factor: 1.0,
        };
        match format {
            Format::F16 => return Some(dense(C::F16)),
            Format::BF16 => return Some(dense(C::Bf16)),
            Format::F32 => return Some(dense(C::F32)),
            _ => {}
        }
        let fp8 = matches!(format, Format::Group(g) if g.code == Code::Fp8);
        let (code, offset, group, scale, has_min) = if fp8 {
            let Format::Group(g) = format else { return None };
            let group = Some(g.group_cols(cols)).filter(|&g| g < cols);
            (C::Fp8, 0, group, FragmentScale::of(ScaleStorage::per_group(g.scale)), false)
        } else {
            let affine = format.affine()?;
            let (offset, table) = match affine.values {
                Values::Offset(offset) => (offset, false),
                Values::Table(_) => (0, true),
            };
            let code = match (affine.bits, table) {
                (2, _) => C::U2,
                (3, _) => C::U3,
                (4, false) => C::U4,
                (4, true) => C::Fp4,
                (5, _) => C::U5,
                (6, _) => C::U6,
                (8, _) => C::U8,
                _ => return None,
            };
            let scale = FragmentScale::of(affine.scale);
            (code, offset, affine.group, scale, affine.has_min)
        };
        let group = group.unwrap_or(padded).min(padded);
        if group != 16 && group != 32 && (group == 0 || group % BLOCK_COLS != 0) {
            return None;
        }
        let min = match (has_min, scale, format) {
            (false, ..) => FragmentMin::None,
            (true, FragmentScale::SuperBlock, _) => FragmentMin::SuperBlock,
            // ggml stores the minimum itself; elsewhere it is scale × zero point, which needs
            // more than an f16's mantissa.
            (true, FragmentScale::F16, Format::Ggml(_)) => FragmentMin::F16,
            (true, ..) => FragmentMin::F32,
        };
        Some(Self { rows, cols, code, offset, group, scale, min, factor: tensor_scale })
    }

    /// As [`new`](Self::new), for sizes that nobody has checked: those in a file.
    ///
    /// # Errors
    /// A format without a fragment layout, a shape that the format does not allow or whose padded size cannot be
    /// addressed, or a `tensor_scale` that is not finite.
    pub fn checked(
        format: Format,
        rows: usize,
        cols: usize,
        tensor_scale: f32,
    ) -> Result<Self, FormatError> {
        // A code, a scale and a minimum of 4 bytes each for every element are more than any format has.
        let padded = |n: usize, to: usize| n.checked_next_multiple_of(to);
        padded(rows, BLOCK_ROWS)
            .zip(padded(cols, SUPER))
            .and_then(|(rows, cols)| rows.checked_mul(cols)?.checked_mul(16))
            .ok_or(FormatError::TooLarge { format, rows, cols })?;
        format.sizes(rows, cols)?;
        if !tensor_scale.is_finite() {
            return Err(FormatError::TensorScale { format, found: tensor_scale });
        }
        Self::new(format, rows, cols, tensor_scale).ok_or_else(|| FormatError::Layout {
            layout: "fragment",
            reason: format!("{format} has groups that are not 16, 32 or a multiple of 64 columns"),
        })
    }

    /// Columns with padding.
    pub fn padded_cols(&self) -> usize {
        self.cols.next_multiple_of(BLOCK_COLS)
    }

    /// Row blocks.
    pub fn row_blocks(&self) -> usize {
        self.rows.div_ceil(BLOCK_ROWS)
    }

    /// Blocks of a row block.
    pub fn blocks(&self) -> usize {
        self.padded_cols() / BLOCK_COLS
    }

    /// Groups of a row, padding included.
    pub fn groups(&self) -> usize {
        self.padded_cols().div_ceil(self.group)
    }

    /// Bytes of one block's codes.
    pub fn block_bytes(&self) -> usize {
        BLOCK_ROWS * BLOCK_COLS / 8 * self.code.bits()
    }

    /// Bytes of a scale.
    pub fn scale_bytes(&self) -> usize {
        match self.scale {
            FragmentScale::None => 0,
            FragmentScale::F16 => 2,
            FragmentScale::F32 => 4,
            FragmentScale::E8M0 | FragmentScale::E4M3 | FragmentScale::SuperBlock => 1,
        }
    }

    /// Bytes of a minimum.
    pub fn min_bytes(&self) -> usize {
        match self.min {
            FragmentMin::None => 0,
            FragmentMin::F16 => 2,
            FragmentMin::F32 => 4,
            FragmentMin::SuperBlock => 1,
        }
    }

    /// f16 numbers of one super-block of 16 rows; 0 where there are none.
    pub fn super_values(&self) -> usize {
        match (self.scale, self.min) {
            (FragmentScale::SuperBlock, FragmentMin::SuperBlock) => 2 * BLOCK_ROWS,
            (FragmentScale::SuperBlock, _) => BLOCK_ROWS,
            _ => 0,
        }
    }

    /// Bytes of the buffers: codes, scales, minimums, super-blocks.
    pub fn sizes(&self) -> [usize; 4] {
        self.row_block_sizes().map(|bytes| bytes * self.row_blocks())
    }

    /// Bytes of one row block in each of the buffers.
    pub fn row_block_sizes(&self) -> [usize; 4] {
        let places = self.groups() * BLOCK_ROWS;
        let supers = self.padded_cols().div_ceil(SUPER) * self.super_values();
        [
            self.blocks() * self.block_bytes(),
            places * self.scale_bytes(),
            places * self.min_bytes(),
            supers * 2,
        ]
    }

    /// The layout of `self` and `below`, one under the other in one matrix; `None` if they differ in more than their
    /// rows, or `self` ends within a row block.
    pub fn stacked(&self, below: &Self) -> Option<Self> {
        let whole = self.rows.is_multiple_of(BLOCK_ROWS);
        let alike = Self { rows: self.rows, ..*below } == *self;
        (whole && alike).then_some(Self { rows: self.rows + below.rows, ..*self })
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.sizes().iter().sum()
    }

    /// Where the scale or minimum of group `g` of row `r` lies, in elements.
    fn scale_at(&self, row_block: usize, g: usize, r: usize) -> usize {
        (row_block * self.groups() + g) * BLOCK_ROWS + row_place(r)
    }

    /// Where the scale of super-block `s` of row `r` lies, in elements; its minimum is `BLOCK_ROWS` further on.
    fn super_at(&self, row_block: usize, s: usize, r: usize) -> usize {
        let supers = self.padded_cols().div_ceil(SUPER);
        (row_block * supers + s) * self.super_values() + row_place(r)
    }
}

/// The place of row `r` among the scales of its row block.
fn row_place(r: usize) -> usize {
    2 * (r % 8) + r / 8
}

impl FragmentScale {
    const fn of(storage: ScaleStorage) -> Self {
        match storage {
            ScaleStorage::F16 => Self::F16,
            ScaleStorage::F32 => Self::F32,
            ScaleStorage::E8M0 => Self::E8M0,
            ScaleStorage::E4M3 => Self::E4M3,
            ScaleStorage::SuperBlock { .. } => Self::SuperBlock,
        }
    }
}

#[cfg(test)]
mod tests;
