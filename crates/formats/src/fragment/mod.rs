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

mod unpack;

use std::ops::Range;

use half::f16;

use crate::{AffineRow, Code, Format, FormatError, Matrix, ScaleStorage, Values, fp8};

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

/// A matrix in blocks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FragmentMatrix {
    /// The codes.
    pub codes: Vec<u8>,
    /// The scales, or nothing.
    pub scales: Vec<u8>,
    /// The minimums, or nothing.
    pub mins: Vec<u8>,
    /// The super-blocks' scales and minimums, or nothing.
    pub supers: Vec<u8>,
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
            (C::Fp8, 0, group, FragmentScale::of(g.scale.into()), false)
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

    /// Packs the whole matrix.
    ///
    /// # Errors
    /// If `matrix` is not the one this layout was made for.
    pub fn pack(&self, matrix: &Matrix<'_>) -> Result<FragmentMatrix, FormatError> {
        let mut out = FragmentMatrix::default();
        self.pack_row_blocks(matrix, 0..self.row_blocks(), &mut out)?;
        Ok(out)
    }

    /// Packs the rows of `row_blocks` into `out`, whose buffers are made to hold just those
    /// ([`row_block_sizes`](Self::row_block_sizes) each); their memory is used again. What lies in a buffer is a part in
    /// one piece of the whole matrix's.
    ///
    /// # Errors
    /// If `matrix` is not the one this layout was made for, or `row_blocks` is out of range.
    pub fn pack_row_blocks(
        &self,
        matrix: &Matrix<'_>,
        row_blocks: Range<usize>,
        out: &mut FragmentMatrix,
    ) -> Result<(), FormatError> {
        let same = (matrix.rows, matrix.cols) == (self.rows, self.cols)
            && Self::new(matrix.format, self.rows, self.cols, self.factor) == Some(*self);
        if !same || row_blocks.end > self.row_blocks() {
            return Err(FormatError::Layout {
                layout: "fragment",
                reason: format!(
                    "row blocks {row_blocks:?} of {} [{}, {}], expected some of {} of [{}, {}]",
                    matrix.format,
                    matrix.rows,
                    matrix.cols,
                    self.row_blocks(),
                    self.rows,
                    self.cols,
                ),
            });
        }
        let [codes, scales, mins, supers] =
            self.row_block_sizes().map(|bytes| bytes * row_blocks.len());
        for (buffer, bytes) in [
            (&mut out.codes, codes),
            (&mut out.scales, scales),
            (&mut out.mins, mins),
            (&mut out.supers, supers),
        ] {
            buffer.clear();
            buffer.resize(bytes, 0);
        }
        let mut scratch = AffineRow::default();
        for row_block in row_blocks.clone() {
            self.pack_row_block(matrix, row_block, row_block - row_blocks.start, out, &mut scratch);
        }
        Ok(())
    }

    /// Packs 16 rows into place `at` of `out`, which holds zeros there.
    fn pack_row_block(
        &self,
        matrix: &Matrix<'_>,
        row_block: usize,
        at: usize,
        out: &mut FragmentMatrix,
        scratch: &mut AffineRow,
    ) {
        let first = row_block * BLOCK_ROWS;
        let bytes = self.blocks() * self.block_bytes();
        for r in 0..BLOCK_ROWS.min(self.rows - first) {
            let codes = &mut out.codes[at * bytes..][..bytes];
            let data = matrix.row_data(first + r);
            match self.code {
                FragmentCode::F16 | FragmentCode::Bf16 => {
                    self.pack_words(r, codes, |k| word16(data, k));
                }
                FragmentCode::F32 => self.pack_words(r, codes, |k| word32(data, k)),
                FragmentCode::Fp8 => {
                    self.pack_words(r, codes, |k| u32::from(data[k]));
                    self.put_fp8_scales(matrix, first + r, (at, r), out);
                }
                _ => {
                    matrix.affine_row(first + r, scratch);
                    self.pack_words(r, codes, |k| u32::from(scratch.codes[k]));
                    self.put_scales(scratch, at, r, out);
                }
            }
        }
    }

    /// Puts the codes of row `r` of a row block into its blocks.
    fn pack_words(&self, r: usize, codes: &mut [u8], code: impl Fn(usize) -> u32) {
        for (b, block) in codes.chunks_exact_mut(self.block_bytes()).enumerate() {
            let first = b * BLOCK_COLS;
            let mut values = [0; BLOCK_COLS];
            for (k, value) in values.iter_mut().enumerate().take(self.cols - first) {
                *value = code(first + k);
            }
            let (mut rest, mut shift) = (block, 0);
            for &width in planes(self.code.bits()) {
                let (plane, after) =
                    rest.split_at_mut(BLOCK_ROWS * BLOCK_COLS / 8 * width as usize);
                match width {
                    1 => pack_plane::<1>(r, &values, shift, plane),
                    2 => pack_plane::<2>(r, &values, shift, plane),
                    4 if self.code == FragmentCode::Fp4 => {
                        pack_plane::<4>(r, &values, shift, plane);
                        take_apart(r, plane);
                    }
                    4 => pack_plane::<4>(r, &values, shift, plane),
                    8 => pack_plane::<8>(r, &values, shift, plane),
                    16 => pack_plane::<16>(r, &values, shift, plane),
                    _ => pack_plane::<32>(r, &values, shift, plane),
                }
                rest = after;
                shift += width;
            }
        }
    }

    /// Where the scale or minimum of group `g` of row `r` lies, in elements.
    fn scale_at(&self, row_block: usize, g: usize, r: usize) -> usize {
        (row_block * self.groups() + g) * BLOCK_ROWS + 2 * (r % 8) + r / 8
    }

    fn put_scales(&self, row: &AffineRow, row_block: usize, r: usize, out: &mut FragmentMatrix) {
        for (s, &scale) in row.super_scales.iter().enumerate() {
            let supers = self.padded_cols().div_ceil(SUPER);
            let at = (row_block * supers + s) * self.super_values() + 2 * (r % 8) + r / 8;
            out.supers[2 * at..2 * at + 2].copy_from_slice(&scale.to_le_bytes());
            if let Some(min) = row.super_mins.get(s) {
                let at = at + BLOCK_ROWS;
                out.supers[2 * at..2 * at + 2].copy_from_slice(&min.to_le_bytes());
            }
        }
        for (g, &scale) in row.scales.iter().enumerate() {
            let at = self.scale_at(row_block, g, r);
            if self.scale == FragmentScale::SuperBlock {
                out.scales[at] = row.sub_scales[g] as u8;
                if self.min == FragmentMin::SuperBlock {
                    out.mins[at] = row.sub_mins[g];
                }
                continue;
            }
            // The row view halves the scales of E2M1, whose table it doubles.
            let scale = if self.code == FragmentCode::Fp4 { 2.0 * scale } else { scale };
            self.put_scale(scale, at, out);
            match (self.min, row.mins.get(g)) {
                (FragmentMin::F16, Some(&min)) => {
                    out.mins[2 * at..2 * at + 2].copy_from_slice(&f16::from_f32(min).to_le_bytes());
                }
                (FragmentMin::F32, Some(&min)) => {
                    out.mins[4 * at..4 * at + 4].copy_from_slice(&min.to_le_bytes());
                }
                _ => {}
            }
        }
    }

    fn put_fp8_scales(
        &self,
        matrix: &Matrix<'_>,
        row: usize,
        (row_block, r): (usize, usize),
        out: &mut FragmentMatrix,
    ) {
        let Format::Group(format) = matrix.format else { return };
        let (_, grid_cols) = format.grid(matrix.rows, matrix.cols);
        for g in 0..grid_cols {
            let index = row / format.group_rows() * grid_cols + g;
            let scale = crate::group::read_scale(format.scale, matrix.scales, index);
            self.put_scale(scale, self.scale_at(row_block, g, r), out);
        }
    }

    fn put_scale(&self, scale: f32, at: usize, out: &mut FragmentMatrix) {
        match self.scale {
            FragmentScale::F16 => {
                out.scales[2 * at..2 * at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            }
            FragmentScale::F32 => {
                out.scales[4 * at..4 * at + 4].copy_from_slice(&scale.to_le_bytes());
            }
            // The exponent's byte; 255 for NaN.
            FragmentScale::E8M0 => {
                out.scales[at] = if scale.is_nan() { 255 } else { (scale.to_bits() >> 23) as u8 };
            }
            FragmentScale::E4M3 => out.scales[at] = fp8::encode_e4m3(scale),
            FragmentScale::None | FragmentScale::SuperBlock => {}
        }
    }
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

impl From<crate::ScaleType> for ScaleStorage {
    fn from(scale: crate::ScaleType) -> Self {
        match scale {
            crate::ScaleType::F16 => Self::F16,
            crate::ScaleType::F32 => Self::F32,
            crate::ScaleType::E8M0 => Self::E8M0,
            crate::ScaleType::E4M3 => Self::E4M3,
        }
    }
}

/// Widths of the planes that hold codes of `bits` bits, lowest bits first.
fn planes(bits: usize) -> &'static [u32] {
    match bits {
        2 => &[2],
        3 => &[2, 1],
        4 => &[4],
        5 => &[4, 1],
        6 => &[4, 2],
        8 => &[8],
        16 => &[16],
        _ => &[32],
    }
}

/// Puts `WIDTH` bits from `shift` on of each of a row's 64 values into a plane of a block, whose bits there are zero.
fn pack_plane<const WIDTH: u32>(
    r: usize,
    values: &[u32; BLOCK_COLS],
    shift: u32,
    plane: &mut [u8],
) {
    let mask = u32::MAX >> (32 - WIDTH);
    let (g, h) = (r % 8, r / 8);
    // Words of a slot that this row has to itself; with one bit it shares one with row g or g + 8.
    let own = (WIDTH as usize / 2).max(1);
    // Words of a chunk: 16 bytes, or all that a slot has.
    let chunk = (WIDTH as usize).min(4);
    for t in 0..4 {
        let mut words = [0_u32; 16];
        for j in 0..16 {
            let value = (values[j / 4 * 16 + 4 * t + j % 4] >> shift) & mask;
            let (p, odd) = (j / 2, (j % 2) as u32);
            let (word, bit) = match WIDTH {
                1 => (0, p + 8 * h),
                2 => (0, 2 * p),
                4 => (p / 4, 4 * (p % 4)),
                8 => (p / 2, 8 * (p % 2)),
                16 => (p, 0),
                _ => (j, 0),
            };
            let bit = if WIDTH == 32 { 0 } else { bit as u32 + 16 * odd };
            words[word] |= value << bit;
        }
        let slot = 4 * g + t;
        let first = if WIDTH == 1 { 0 } else { h * own };
        for (i, word) in words.iter().enumerate().take(own) {
            let index = first + i;
            let at = 4 * ((index / chunk * 32 + slot) * chunk + index % chunk);
            let bytes = &mut plane[at..at + 4];
            let there = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            bytes.copy_from_slice(&(there | word).to_le_bytes());
        }
    }
}

/// Puts the E2M1 codes of row `r` of a block, four to 16 bits in order, where the module's documentation says.
fn take_apart(r: usize, plane: &mut [u8]) {
    let (g, h) = (r % 8, r / 8);
    for slot in 4 * g..4 * g + 4 {
        for half in plane[16 * slot + 8 * h..][..8].chunks_exact_mut(2) {
            let codes = u16::from_le_bytes([half[0], half[1]]);
            let magnitude = |q: u32| codes >> (4 * q) & 7;
            let sign = |q: u32| codes >> (4 * q + 3) & 1;
            let signs = sign(0) << 15 | sign(2) << 14 | sign(3) << 13 | sign(1) << 12;
            let rest = magnitude(0) << 9 | magnitude(1) << 6 | magnitude(2) << 3 | magnitude(3);
            half.copy_from_slice(&(signs | rest).to_le_bytes());
        }
    }
}

fn word16(data: &[u8], k: usize) -> u32 {
    u32::from(u16::from_le_bytes([data[2 * k], data[2 * k + 1]]))
}

fn word32(data: &[u8], k: usize) -> u32 {
    u32::from_le_bytes([data[4 * k], data[4 * k + 1], data[4 * k + 2], data[4 * k + 3]])
}

#[cfg(test)]
mod tests;
