//! A matrix in blocks, read back row by row: what devices need that keep weights in another order.

use half::f16;

use super::{
    BLOCK_COLS, BLOCK_ROWS, FragmentCode, FragmentLayout, FragmentMin, FragmentScale, SUPER, planes,
};
use crate::{AffineRow, Format, FormatError, Values, e8m0, fp4, fp8};

/// A matrix in the fragment layout that it borrows. Nothing is lost in blocks: rows come back with the codes,
/// scales and minimums that they were packed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fragments<'a> {
    format: Format,
    layout: FragmentLayout,
    codes: &'a [u8],
    scales: &'a [u8],
    mins: &'a [u8],
    supers: &'a [u8],
}

impl<'a> Fragments<'a> {
    /// A `[rows, cols]` matrix of `format` in blocks; `sections` are its codes, scales, minimums and super-blocks, those
    /// that it does not have empty.
    ///
    /// # Errors
    /// A format without a fragment layout, a shape that the format does not allow or that cannot be addressed, sections
    /// of other sizes than the layout's, or a `tensor_scale` that is not finite.
    pub fn new(
        format: Format,
        rows: usize,
        cols: usize,
        tensor_scale: f32,
        sections: [&'a [u8]; 4],
    ) -> Result<Self, FormatError> {
        let layout = FragmentLayout::checked(format, rows, cols, tensor_scale)?;
        let expected = layout.sizes();
        let found = sections.map(<[u8]>::len);
        if found != expected {
            return Err(FormatError::Layout {
                layout: "fragment",
                reason: format!(
                    "sections of {found:?} bytes (codes, scales, minimums, super-blocks) for {format} \
                     [{rows}, {cols}], expected {expected:?}"
                ),
            });
        }
        let [codes, scales, mins, supers] = sections;
        Ok(Self { format, layout, codes, scales, mins, supers })
    }

    /// The number format that the rows were in.
    pub fn format(&self) -> Format {
        self.format
    }

    /// How the matrix lies.
    pub fn layout(&self) -> &FragmentLayout {
        &self.layout
    }

    /// One row in the integer view, replacing what `out` held and reusing its memory: equal to
    /// [`Matrix::affine_row`](crate::Matrix::affine_row)'s.
    ///
    /// # Panics
    /// `row` is out of range, or the format has no integer view ([`Format::affine`]).
    pub fn affine_row(&self, row: usize, out: &mut AffineRow) {
        let layout = &self.layout;
        assert!(row < layout.rows, "row {row} of {}", layout.rows);
        let Some(affine) = self.format.affine() else {
            panic!("{} has no integer view", self.format)
        };
        out.clear();
        self.codes(row, |code| out.codes.push(code as u8));
        let (row_block, r) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
        // A table's values are doubled in the integer view and its scales halved.
        let factor = if matches!(affine.values, Values::Table(_)) { 0.5 } else { 1.0 };
        if layout.scale == FragmentScale::SuperBlock {
            for s in 0..layout.cols.div_ceil(SUPER) {
                let at = layout.super_at(row_block, s, r);
                out.super_scales.push(f16_at(self.supers, at));
                if layout.min == FragmentMin::SuperBlock {
                    out.super_mins.push(f16_at(self.supers, at + BLOCK_ROWS));
                }
            }
        }
        for g in 0..layout.cols.div_ceil(layout.group) {
            let at = layout.scale_at(row_block, g, r);
            if layout.scale == FragmentScale::SuperBlock {
                let (s, sub) = (g * layout.group / SUPER, self.scales[at] as i8);
                out.sub_scales.push(sub);
                out.scales.push(out.super_scales[s].to_f32() * f32::from(sub));
                if layout.min == FragmentMin::SuperBlock {
                    let sub = self.mins[at];
                    out.sub_mins.push(sub);
                    out.mins.push(-out.super_mins[s].to_f32() * f32::from(sub));
                }
                continue;
            }
            out.scales.push(self.scale(at) * factor);
            match layout.min {
                FragmentMin::F16 => out.mins.push(f16_at(self.mins, at).to_f32()),
                FragmentMin::F32 => out.mins.push(f32_at(self.mins, at)),
                FragmentMin::None | FragmentMin::SuperBlock => {}
            }
        }
    }

    /// Puts one row of floats or FP8 codes into `out` as [`Matrix::row_data`](crate::Matrix::row_data) gives it.
    ///
    /// # Panics
    /// `row` is out of range, or `out` is not as long as a row.
    pub fn copy_row_data(&self, row: usize, out: &mut [u8]) {
        let width = self.layout.code.bits() / 8;
        assert_eq!(out.len(), width * self.layout.cols, "bytes of a row");
        let mut places = out.chunks_exact_mut(width.max(1));
        self.codes(row, |code| {
            if let Some(place) = places.next() {
                place.copy_from_slice(&code.to_le_bytes()[..width]);
            }
        });
    }

    /// The scale of a group of a row, without the tensor's own factor; 1 where there are none.
    ///
    /// # Panics
    /// `row` or `group` is out of range.
    pub fn group_scale(&self, row: usize, group: usize) -> f32 {
        let at = self.layout.scale_at(row / BLOCK_ROWS, group, row % BLOCK_ROWS);
        if self.layout.scale == FragmentScale::None { 1.0 } else { self.scale(at) }
    }

    /// All values, row-major.
    pub fn decode(&self) -> Vec<f32> {
        let layout = &self.layout;
        let mut values = Vec::with_capacity(layout.rows * layout.cols);
        let mut affine = AffineRow::default();
        for row in 0..layout.rows {
            match layout.code {
                FragmentCode::F16 => {
                    self.codes(row, |c| values.push(f16::from_bits(c as u16).to_f32()));
                }
                FragmentCode::Bf16 => {
                    self.codes(row, |c| values.push(half::bf16::from_bits(c as u16).to_f32()));
                }
                FragmentCode::F32 => self.codes(row, |c| values.push(f32::from_bits(c))),
                FragmentCode::Fp8 => {
                    let mut k = 0;
                    self.codes(row, |c| {
                        let scale = self.group_scale(row, k / layout.group) * layout.factor;
                        values.push(fp8::decode_e4m3(c as u8) * scale);
                        k += 1;
                    });
                }
                code => {
                    self.affine_row(row, &mut affine);
                    for (k, &c) in affine.codes.iter().enumerate() {
                        let g = k / layout.group;
                        let v = match code {
                            FragmentCode::Fp4 => 2.0 * fp4::E2M1[usize::from(c & 15)],
                            _ => (i32::from(c) - layout.offset) as f32,
                        };
                        let min = affine.mins.get(g).copied().unwrap_or(0.0);
                        values.push((affine.scales[g] * v + min) * layout.factor);
                    }
                }
            }
        }
        values
    }

    /// Calls `take` with the codes of a row, in order.
    fn codes(&self, row: usize, mut take: impl FnMut(u32)) {
        let layout = &self.layout;
        let (row_block, r) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
        let bytes = layout.blocks() * layout.block_bytes();
        let blocks = &self.codes[row_block * bytes..][..bytes];
        for (b, block) in blocks.chunks_exact(layout.block_bytes()).enumerate() {
            let values = planes::row(layout.code, r, block);
            values.iter().take(layout.cols - b * BLOCK_COLS).for_each(|&value| take(value));
        }
    }

    fn scale(&self, at: usize) -> f32 {
        match self.layout.scale {
            FragmentScale::F16 => f16_at(self.scales, at).to_f32(),
            FragmentScale::F32 => f32_at(self.scales, at),
            FragmentScale::E8M0 => e8m0::decode_e8m0(self.scales[at]),
            FragmentScale::E4M3 => fp8::decode_e4m3(self.scales[at]),
            FragmentScale::None | FragmentScale::SuperBlock => 1.0,
        }
    }
}

fn f16_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]])
}

fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]])
}
