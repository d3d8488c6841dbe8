//! A matrix into blocks.

use std::ops::Range;

use half::f16;

use super::{
    BLOCK_COLS, BLOCK_ROWS, FragmentCode, FragmentLayout, FragmentMin, FragmentScale, planes,
};
use crate::{AffineRow, Format, FormatError, Matrix, e8m0, fp8};

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
            planes::put_row(self.code, r, &values, block);
        }
    }

    fn put_scales(&self, row: &AffineRow, row_block: usize, r: usize, out: &mut FragmentMatrix) {
        for (s, &scale) in row.super_scales.iter().enumerate() {
            let at = self.super_at(row_block, s, r);
            put_f16(&mut out.supers, at, scale);
            if let Some(&min) = row.super_mins.get(s) {
                put_f16(&mut out.supers, at + BLOCK_ROWS, min);
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
                (FragmentMin::F16, Some(&min)) => put_f16(&mut out.mins, at, f16::from_f32(min)),
                (FragmentMin::F32, Some(&min)) => put_f32(&mut out.mins, at, min),
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
            FragmentScale::F16 => put_f16(&mut out.scales, at, f16::from_f32(scale)),
            FragmentScale::F32 => put_f32(&mut out.scales, at, scale),
            FragmentScale::E8M0 => out.scales[at] = e8m0::code_of_scale(scale),
            FragmentScale::E4M3 => out.scales[at] = fp8::encode_e4m3(scale),
            FragmentScale::None | FragmentScale::SuperBlock => {}
        }
    }
}

fn word16(data: &[u8], k: usize) -> u32 {
    u32::from(u16::from_le_bytes([data[2 * k], data[2 * k + 1]]))
}

fn word32(data: &[u8], k: usize) -> u32 {
    u32::from_le_bytes([data[4 * k], data[4 * k + 1], data[4 * k + 2], data[4 * k + 3]])
}

fn put_f16(bytes: &mut [u8], at: usize, value: f16) {
    bytes[2 * at..2 * at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_f32(bytes: &mut [u8], at: usize, value: f32) {
    bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
}
