//! The order in which the CPU kernels read a quantised matrix.
//!
//! A tile is [`TILE_ROWS`] consecutive rows (the last tile is padded with rows of code 0 and
//! scale 0), its columns padded to a multiple of [`TILE_K`]. Sixteen rows are the lanes of a
//! vector of sixteen 32-bit sums, so a product needs no horizontal addition: one instruction
//! multiplies four consecutive columns of all sixteen rows by the same four activations
//! (`vpdpbusd`, `sdot`, `vpmaddubsw`). That is Marlin's offline shuffle (Frantar et al. 2024,
//! "MARLIN", §3) for a CPU's registers. A tile is contiguous: header, then codes.
//!
//! **Header**, padded to 64 bytes. With one scale per group, for each group along k:
//! 16 scales, then 16 minimums where there are any. For super-blocks of 256 columns: 16 f16
//! scales, 16 f16 minimums where there are any, then per group 16 signed bytes of sub-scale,
//! then per group 16 bytes of sub-minimum where there are any.
//!
//! **Codes**, for each block of 32 columns, as planes of 64-byte vectors. Byte `4·r + j` of a
//! vector belongs to row `r`; the *quad* `q` = columns `4q … 4q+3` (j = 0…3), q = 0…7.
//!
//! | plane | vectors | quad q is in |
//! |---|---|---|
//! | 8 bits | 8 | vector q |
//! | 4 bits | 4 | vector q/2, bits 4·(q mod 2) and up |
//! | 2 bits | 2 | vector q/4, bits 2·(q mod 4) and up |
//! | 1 bit | 1 | bit q |
//!
//! 3-bit codes are a plane of 2 low bits and one of 1 high bit, 5-bit codes 4 + 1, 6-bit codes 4 + 2.
//!
//! The repacking is lossless: every code, scale and minimum keeps its exact value.

use half::f16;

use crate::fragment::Fragments;
use crate::{AffineRow, Format, FormatError, Matrix, ScaleStorage, Values, e8m0};

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Columns of a block of codes.
pub const TILE_K: usize = 32;
/// Bytes of a vector.
const VECTOR: usize = 64;
/// Columns of a super-block.
const SUPER: usize = 256;

/// What a tile's scales are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileScale {
    /// f16 per group.
    F16,
    /// f32 per group.
    F32,
    /// E8M0 per group.
    E8M0,
    /// E4M3 per group.
    E4M3,
    /// An f16 per 256 columns times a signed byte per group.
    SuperBlock,
}

/// What a tile's minimums are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileMin {
    /// There are none.
    None,
    /// f16 per group.
    F16,
    /// f32 per group.
    F32,
    /// Minus an f16 per 256 columns times a byte per group.
    SuperBlock,
}

/// How a matrix lies in tiles.
///
/// `value[r][k] = (scale[g] · V(code) + min[g]) · factor` with `g = k / group` and `V(code)`
/// either `code - offset` or `table[code]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TileLayout {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Columns with padding.
    pub padded_cols: usize,
    /// Width of a code: 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
    /// Columns per scale: 16, or a multiple of 32.
    pub group: usize,
    /// Subtracted from codes; 0 where there is a table.
    pub offset: i32,
    /// What codes stand for, where it is not the code itself.
    pub table: Option<&'static [i8; 16]>,
    /// Storage of the scales.
    pub scale: TileScale,
    /// Storage of the minimums.
    pub min: TileMin,
    /// Factor of all values: the tensor's scale, and ½ for tables of doubled values.
    pub factor: f32,
}

/// Buffers that packing reuses from tile to tile.
#[derive(Default)]
pub struct TileScratch {
    row: AffineRow,
}

impl TileLayout {
    /// The layout of a matrix in `format`; `None` if the format has no integer view (floats,
    /// FP8), groups that are neither 16 nor a multiple of 32 columns, or both an offset and
    /// minimums.
    pub fn new(format: Format, rows: usize, cols: usize, tensor_scale: f32) -> Option<Self> {
        let affine = format.affine()?;
        let padded_cols = cols.next_multiple_of(TILE_K);
        // A row with one scale is one group, padding included.
        let group = affine.group.unwrap_or(padded_cols).min(padded_cols);
        if group == 0 || (group != 16 && group % TILE_K != 0) {
            return None;
        }
        let (offset, table, doubled) = match affine.values {
            Values::Offset(offset) => (offset, None, 1.0),
            Values::Table(table) => (0, Some(table), 0.5),
        };
        // Kernels undo an offset or add a minimum, not both (8-bit codes are seen to below).
        if affine.has_min && affine.bits != 8 && (offset != 0 || table.is_some()) {
            return None;
        }
        let scale = match affine.scale {
            ScaleStorage::F16 => TileScale::F16,
            ScaleStorage::F32 => TileScale::F32,
            ScaleStorage::E8M0 => TileScale::E8M0,
            ScaleStorage::E4M3 => TileScale::E4M3,
            ScaleStorage::SuperBlock { .. } => TileScale::SuperBlock,
        };
        let min = match (affine.has_min, affine.scale, format) {
            (false, ..) => TileMin::None,
            (true, ScaleStorage::SuperBlock { .. }, _) => TileMin::SuperBlock,
            // ggml stores the minimum itself; elsewhere it is scale × zero point, which
            // needs more than an f16's mantissa.
            (true, ScaleStorage::F16, Format::Ggml(_)) => TileMin::F16,
            (true, ..) => TileMin::F32,
        };
        // Eight-bit codes are always offset by 128: `pack_tile` moves the difference into
        // the minimum, so that one signed kernel serves all of them.
        let offset = if affine.bits == 8 { 128 } else { offset };
        let factor = tensor_scale * doubled;
        let bits = affine.bits;
        Some(Self { rows, cols, padded_cols, bits, group, offset, table, scale, min, factor })
    }

    /// Tiles of the matrix.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Blocks of 32 columns.
    pub fn blocks(&self) -> usize {
        self.padded_cols / TILE_K
    }

    /// Groups of a row, padding included.
    pub fn groups(&self) -> usize {
        self.padded_cols.div_ceil(self.group)
    }

    /// Bytes of one block's codes.
    pub fn block_bytes(&self) -> usize {
        self.bits as usize * VECTOR
    }

    fn scale_bytes(&self) -> usize {
        match self.scale {
            TileScale::F16 => 2,
            TileScale::F32 => 4,
            TileScale::E8M0 | TileScale::E4M3 | TileScale::SuperBlock => 1,
        }
    }

    fn min_bytes(&self) -> usize {
        match self.min {
            TileMin::None => 0,
            TileMin::SuperBlock => 1,
            TileMin::F16 => 2,
            TileMin::F32 => 4,
        }
    }

    /// Bytes of a group's scales and minimums, without the super-blocks' own.
    pub fn group_bytes(&self) -> usize {
        TILE_ROWS * (self.scale_bytes() + self.min_bytes())
    }

    /// Bytes of a super-block's header, its groups' included.
    pub fn super_bytes(&self) -> usize {
        let mins = if self.min == TileMin::SuperBlock { 2 } else { 0 };
        TILE_ROWS * (2 + mins) + SUPER / self.group * self.group_bytes()
    }

    /// Bytes of a tile's header.
    pub fn header_bytes(&self) -> usize {
        let bytes = match self.scale {
            TileScale::SuperBlock => self.padded_cols / SUPER * self.super_bytes(),
            _ => self.groups() * self.group_bytes(),
        };
        bytes.next_multiple_of(VECTOR)
    }

    /// Bytes of a tile.
    pub fn tile_bytes(&self) -> usize {
        self.header_bytes() + self.blocks() * self.block_bytes()
    }

    /// Bytes of the whole matrix.
    pub fn bytes(&self) -> usize {
        self.tiles() * self.tile_bytes()
    }

    /// Packs tile `tile` of `matrix` into `out`.
    ///
    /// # Errors
    /// If `matrix` is not the one this layout was made for, or `out` is not
    /// [`tile_bytes`](Self::tile_bytes) long.
    pub fn pack_tile(
        &self,
        matrix: &Matrix<'_>,
        tile: usize,
        out: &mut [u8],
        scratch: &mut TileScratch,
    ) -> Result<(), FormatError> {
        let affine_row = |row, out: &mut AffineRow| matrix.affine_row(row, out);
        self.pack_rows((matrix.format, matrix.rows, matrix.cols), tile, out, scratch, affine_row)
    }

    /// As [`pack_tile`](Self::pack_tile), from a matrix in the order of GPU kernels: the same bytes.
    ///
    /// # Errors
    /// As [`pack_tile`](Self::pack_tile).
    pub fn pack_tile_of_fragments(
        &self,
        matrix: &Fragments<'_>,
        tile: usize,
        out: &mut [u8],
        scratch: &mut TileScratch,
    ) -> Result<(), FormatError> {
        let (rows, cols) = (matrix.layout().rows, matrix.layout().cols);
        let affine_row = |row, out: &mut AffineRow| matrix.affine_row(row, out);
        self.pack_rows((matrix.format(), rows, cols), tile, out, scratch, affine_row)
    }

    fn pack_rows(
        &self,
        (format, rows, cols): (Format, usize, usize),
        tile: usize,
        out: &mut [u8],
        scratch: &mut TileScratch,
        affine_row: impl Fn(usize, &mut AffineRow),
    ) -> Result<(), FormatError> {
        let same = rows == self.rows && cols == self.cols;
        if !same || tile >= self.tiles() || out.len() != self.tile_bytes() {
            return Err(FormatError::Layout {
                layout: "cpu tile",
                reason: format!(
                    "tile {tile} of [{rows}, {cols}] into {} bytes, expected one of {} tiles of \
                     [{}, {}] and {} bytes",
                    out.len(),
                    self.tiles(),
                    self.rows,
                    self.cols,
                    self.tile_bytes()
                ),
            });
        }
        out.fill(0);
        let (header, codes) = out.split_at_mut(self.header_bytes());
        let first = tile * TILE_ROWS;
        for r in 0..TILE_ROWS.min(self.rows - first) {
            affine_row(first + r, &mut scratch.row);
            self.pack_header(&scratch.row, format, r, header);
            self.pack_codes(&scratch.row.codes, r, codes);
        }
        Ok(())
    }

    fn pack_header(&self, row: &AffineRow, format: Format, r: usize, header: &mut [u8]) {
        if self.scale == TileScale::SuperBlock {
            let per_super = SUPER / self.group;
            for (s, block) in header.chunks_exact_mut(self.super_bytes()).enumerate() {
                if s >= row.super_scales.len() {
                    break;
                }
                put_f16(block, r, row.super_scales[s]);
                let mut at = 2 * TILE_ROWS;
                if self.min == TileMin::SuperBlock {
                    put_f16(&mut block[at..], r, row.super_mins[s]);
                    at += 2 * TILE_ROWS;
                }
                for g in 0..per_super {
                    block[at + g * TILE_ROWS + r] = row.sub_scales[s * per_super + g] as u8;
                }
                at += per_super * TILE_ROWS;
                if self.min == TileMin::SuperBlock {
                    for g in 0..per_super {
                        block[at + g * TILE_ROWS + r] = row.sub_mins[s * per_super + g];
                    }
                }
            }
            return;
        }
        // An 8-bit format with another offset than the layout's: move it into the minimum.
        let native = match format.affine().map(|a| a.values) {
            Some(Values::Offset(offset)) => offset,
            _ => 0,
        };
        let shift = (self.offset - native) as f32;
        for (g, &scale) in row.scales.iter().enumerate() {
            let group = &mut header[g * self.group_bytes()..][..self.group_bytes()];
            match self.scale {
                TileScale::F16 => put_f16(group, r, f16::from_f32(undouble(self, scale))),
                TileScale::F32 => put_f32(group, r, undouble(self, scale)),
                TileScale::E8M0 => group[r] = e8m0::code_of_scale(undouble(self, scale)),
                TileScale::E4M3 => group[r] = crate::fp8::encode_e4m3(undouble(self, scale)),
                TileScale::SuperBlock => {}
            }
            let mins = &mut group[TILE_ROWS * self.scale_bytes()..];
            let min = || row.mins[g] + shift * scale;
            match self.min {
                TileMin::F16 => put_f16(mins, r, f16::from_f32(min())),
                TileMin::F32 => put_f32(mins, r, min()),
                TileMin::None | TileMin::SuperBlock => {}
            }
        }
    }

    /// Works on the four codes of a quad at once: as bytes of one u32 they move together.
    fn pack_codes(&self, row: &[u8], r: usize, codes: &mut [u8]) {
        for (block, chunk) in codes.chunks_exact_mut(self.block_bytes()).zip(row.chunks(TILE_K)) {
            let mut padded = [0; TILE_K];
            padded[..chunk.len()].copy_from_slice(chunk);
            let (bytes, _) = padded.as_chunks::<4>();
            let (mut plane, mut shift) = (0, 0);
            for &width in planes(self.bits) {
                let mask = ((1u32 << width) - 1) * 0x0101_0101;
                for (v, quads) in bytes.chunks_exact(8 / width as usize).enumerate() {
                    let mut word = 0;
                    for (i, &quad) in (0..).zip(quads) {
                        word |= ((u32::from_le_bytes(quad) >> shift) & mask) << (width * i);
                    }
                    let at = (plane + v) * VECTOR + 4 * r;
                    block[at..at + 4].copy_from_slice(&word.to_le_bytes());
                }
                shift += width;
                plane += width as usize;
            }
        }
    }

    /// Decodes row `row` of a packed matrix: the embedding lookup.
    ///
    /// # Panics
    /// If `packed` is not [`bytes`](Self::bytes) long, `row` is out of range or `out` is not
    /// `cols` long.
    pub fn decode_row(&self, packed: &[u8], row: usize, out: &mut [f32]) {
        assert_eq!(packed.len(), self.bytes(), "bytes of the packed matrix");
        assert_eq!(out.len(), self.cols, "columns");
        let tile = &packed[row / TILE_ROWS * self.tile_bytes()..][..self.tile_bytes()];
        let (header, codes) = tile.split_at(self.header_bytes());
        let r = row % TILE_ROWS;
        for (g, chunk) in out.chunks_mut(self.group).enumerate() {
            let (scale, min) = self.scale_and_min(header, g, r);
            for (i, value) in chunk.iter_mut().enumerate() {
                let k = g * self.group + i;
                let code = self.code(codes, k, r);
                let v = match self.table {
                    Some(table) => i32::from(table[usize::from(code)]),
                    None => i32::from(code) - self.offset,
                };
                *value = (scale * v as f32 + min) * self.factor;
            }
        }
    }

    fn scale_and_min(&self, header: &[u8], g: usize, r: usize) -> (f32, f32) {
        if self.scale == TileScale::SuperBlock {
            let per_super = SUPER / self.group;
            let block = &header[g / per_super * self.super_bytes()..];
            let mins = self.min == TileMin::SuperBlock;
            let subs = &block[TILE_ROWS * if mins { 4 } else { 2 }..];
            let at = g % per_super * TILE_ROWS + r;
            let scale = get_f16(block, r) * f32::from(subs[at] as i8);
            let min = if mins {
                let sub = f32::from(subs[per_super * TILE_ROWS + at]);
                -get_f16(&block[2 * TILE_ROWS..], r) * sub
            } else {
                0.0
            };
            return (scale, min);
        }
        let group = &header[g * self.group_bytes()..][..self.group_bytes()];
        let scale = match self.scale {
            TileScale::F16 => get_f16(group, r),
            TileScale::F32 => get_f32(group, r),
            TileScale::E8M0 => crate::e8m0::decode_e8m0(group[r]),
            TileScale::E4M3 | TileScale::SuperBlock => crate::fp8::decode_e4m3(group[r]),
        };
        let mins = &group[TILE_ROWS * self.scale_bytes()..];
        let min = match self.min {
            TileMin::F16 => get_f16(mins, r),
            TileMin::F32 => get_f32(mins, r),
            TileMin::None | TileMin::SuperBlock => 0.0,
        };
        (scale, min)
    }

    fn code(&self, codes: &[u8], k: usize, r: usize) -> u8 {
        let block = &codes[k / TILE_K * self.block_bytes()..][..self.block_bytes()];
        let (q, at) = (k % TILE_K / 4, 4 * r + k % 4);
        let (mut code, mut shift, mut plane) = (0u8, 0, 0);
        for width in planes(self.bits) {
            let per = 8 / *width as usize;
            let byte = block[(plane + q / per) * VECTOR + at];
            let mask = ((1u16 << width) - 1) as u8;
            code |= ((byte >> (width * (q % per) as u32)) & mask) << shift;
            shift += width;
            plane += *width as usize;
        }
        code
    }
}

/// Widths of the planes that hold codes of `bits` bits, lowest bits first.
fn planes(bits: u32) -> &'static [u32] {
    match bits {
        2 => &[2],
        3 => &[2, 1],
        4 => &[4],
        5 => &[4, 1],
        6 => &[4, 2],
        _ => &[8],
    }
}

/// A table's values are doubled and the row view's scales halved; tiles keep the stored scale.
fn undouble(layout: &TileLayout, scale: f32) -> f32 {
    if layout.table.is_some() { 2.0 * scale } else { scale }
}

fn put_f16(bytes: &mut [u8], r: usize, value: f16) {
    bytes[2 * r..2 * r + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_f32(bytes: &mut [u8], r: usize, value: f32) {
    bytes[4 * r..4 * r + 4].copy_from_slice(&value.to_le_bytes());
}

fn get_f16(bytes: &[u8], r: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * r], bytes[2 * r + 1]]).to_f32()
}

fn get_f32(bytes: &[u8], r: usize) -> f32 {
    f32::from_le_bytes([bytes[4 * r], bytes[4 * r + 1], bytes[4 * r + 2], bytes[4 * r + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode;

    fn values(n: usize) -> Vec<f32> {
        // A cheap, fixed, sign-changing sequence with outliers.
        (0..n)
            .map(|i| {
                let x = ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32;
                (x - 0.5) * if i % 97 == 0 { 8.0 } else { 1.0 }
            })
            .collect()
    }

    #[test]
    fn a_packed_row_decodes_to_the_same_values_in_every_format() {
        for format in Format::ALL {
            for (rows, cols) in [(1, 512), (17, 256), (35, 768)] {
                let Ok(owned) = encode(format, rows, cols, &values(rows * cols)) else {
                    panic!("{format} [{rows}, {cols}]");
                };
                let matrix = owned.view();
                let Some(layout) = TileLayout::new(format, rows, cols, matrix.tensor_scale) else {
                    assert!(format.affine().is_none(), "{format} has no tile layout");
                    continue;
                };
                let mut packed = vec![0xaa; layout.bytes()];
                let mut scratch = TileScratch::default();
                for (i, tile) in packed.chunks_exact_mut(layout.tile_bytes()).enumerate() {
                    layout.pack_tile(&matrix, i, tile, &mut scratch).unwrap();
                }
                let (mut expected, mut found) = (vec![0.0; cols], vec![0.0; cols]);
                for row in 0..rows {
                    matrix.decode_row(row, &mut expected);
                    layout.decode_row(&packed, row, &mut found);
                    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    for k in 0..cols {
                        // Exact, but for one rounding more where a minimum took in an offset.
                        let tolerance = 1e-6 * largest;
                        let difference = (expected[k] - found[k]).abs();
                        assert!(
                            difference <= tolerance,
                            "{format} [{rows}, {cols}] at ({row}, {k}): {} and {}",
                            expected[k],
                            found[k]
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_tile_takes_no_more_bits_than_the_file_by_an_eighth_of_a_bit_or_so() {
        for (format, bits) in [("q4_0", 4.5), ("q4_1", 5.0), ("q8_0", 8.5), ("q6_k", 6.5625)] {
            let format: Format = format.parse().unwrap();
            let layout = TileLayout::new(format, 4096, 4096, 1.0).unwrap();
            let found = layout.bytes() as f64 * 8.0 / (4096.0 * 4096.0);
            assert!((found - bits).abs() < 0.02, "{format}: {found} bits per weight");
        }
    }
}
