//! The block formats of ggml, as stored in GGUF files (`ggml-common.h`; reference decoders in
//! `ggml-quants.c` and gguf-py's `quants.py`).
//!
//! A row is a sequence of blocks of 32 or 256 columns. All multi-byte fields are little-endian;
//! `f16` is IEEE 754 binary16.
//!
//! | type | columns | bytes | fields in order |
//! |---|---|---|---|
//! | Q4_0 | 32 | 18 | `d: f16`, `qs: [u8; 16]` |
//! | Q4_1 | 32 | 20 | `d: f16`, `m: f16`, `qs: [u8; 16]` |
//! | Q5_0 | 32 | 22 | `d: f16`, `qh: u32`, `qs: [u8; 16]` |
//! | Q5_1 | 32 | 24 | `d: f16`, `m: f16`, `qh: u32`, `qs: [u8; 16]` |
//! | Q8_0 | 32 | 34 | `d: f16`, `qs: [i8; 32]` |
//! | MXFP4 | 32 | 17 | `e: E8M0`, `qs: [u8; 16]` |
//! | Q2_K | 256 | 84 | `scales: [u8; 16]`, `qs: [u8; 64]`, `d: f16`, `dmin: f16` |
//! | Q3_K | 256 | 110 | `hmask: [u8; 32]`, `qs: [u8; 64]`, `scales: [u8; 12]`, `d: f16` |
//! | Q4_K | 256 | 144 | `d: f16`, `dmin: f16`, `scales: [u8; 12]`, `qs: [u8; 128]` |
//! | Q5_K | 256 | 176 | `d: f16`, `dmin: f16`, `scales: [u8; 12]`, `qh: [u8; 32]`, `qs: [u8; 128]` |
//! | Q6_K | 256 | 210 | `ql: [u8; 128]`, `qh: [u8; 64]`, `scales: [i8; 16]`, `d: f16` |
//!
//! Of 32-column blocks, byte `j` of `qs` holds columns `j` (low nibble) and `j + 16` (high nibble),
//! and bit `i` of `qh` is column `i`'s fifth bit. The order of the K-quants' bits is described
//! where they are unpacked, in `k_quants.rs`.
//!
//! # Encoding
//!
//! The 32-column types are encoded as ggml's reference does, to the bit. The K-quants have a search
//! of our own (`k_search.rs`) with a proven bound on the error. NaN, infinities and values that
//! overflow an f16 scale are refused, where ggml would store them as such.

mod k_quants;
mod k_search;
mod legacy;
mod mxfp4;

use half::f16;

use crate::{AffineRow, Format, FormatError, GgmlType, ScaleStorage};

/// One block taken apart: codes in column order, scales and minimums per group.
struct Block {
    codes: [u8; 256],
    scales: [f32; 16],
    mins: [f32; 16],
    super_scale: f16,
    super_min: f16,
    sub_scales: [i8; 16],
    sub_mins: [u8; 16],
}

impl Block {
    const ZERO: Block = Block {
        codes: [0; 256],
        scales: [0.0; 16],
        mins: [0.0; 16],
        super_scale: f16::ZERO,
        super_min: f16::ZERO,
        sub_scales: [0; 16],
        sub_mins: [0; 16],
    };

    fn unpack(&mut self, ggml_type: GgmlType, bytes: &[u8]) {
        match ggml_type {
            GgmlType::Q4_0 => legacy::unpack_q4_0(bytes, self),
            GgmlType::Q4_1 => legacy::unpack_q4_1(bytes, self),
            GgmlType::Q5_0 => legacy::unpack_q5_0(bytes, self),
            GgmlType::Q5_1 => legacy::unpack_q5_1(bytes, self),
            GgmlType::Q8_0 => legacy::unpack_q8_0(bytes, self),
            GgmlType::MxFp4 => mxfp4::unpack(bytes, self),
            GgmlType::Q2K => k_quants::unpack_q2_k(bytes, self),
            GgmlType::Q3K => k_quants::unpack_q3_k(bytes, self),
            GgmlType::Q4K => k_quants::unpack_q4_k(bytes, self),
            GgmlType::Q5K => k_quants::unpack_q5_k(bytes, self),
            GgmlType::Q6K => k_quants::unpack_q6_k(bytes, self),
        }
    }

    /// Scales and minimums of a super-block from its f16 and small-integer parts.
    fn multiply_out(&mut self) {
        let (d, dmin) = (self.super_scale.to_f32(), self.super_min.to_f32());
        for g in 0..16 {
            self.scales[g] = d * f32::from(self.sub_scales[g]);
            self.mins[g] = -(dmin * f32::from(self.sub_mins[g]));
        }
    }
}

fn read_f16(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn write_f16(bytes: &mut [u8], at: usize, value: f16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// See [`crate::Matrix::decode_row`].
pub(crate) fn decode_row(ggml_type: GgmlType, data: &[u8], out: &mut [f32]) {
    let affine = ggml_type.affine();
    let group = affine.group.unwrap_or(32);
    let mut block = Block::ZERO;
    for (bytes, out) in data
        .chunks_exact(ggml_type.block_bytes())
        .zip(out.chunks_exact_mut(ggml_type.block_elements()))
    {
        block.unpack(ggml_type, bytes);
        for (g, (out, codes)) in
            out.chunks_exact_mut(group).zip(block.codes.chunks_exact(group)).enumerate()
        {
            let (scale, min) = (block.scales[g], block.mins[g]);
            if affine.has_min {
                for (x, &code) in out.iter_mut().zip(codes) {
                    *x = scale * affine.values.of(code) as f32 + min;
                }
            } else {
                for (x, &code) in out.iter_mut().zip(codes) {
                    *x = scale * affine.values.of(code) as f32;
                }
            }
        }
    }
}

/// See [`crate::Matrix::affine_row`]; `out` is empty.
pub(crate) fn affine_row(ggml_type: GgmlType, data: &[u8], out: &mut AffineRow) {
    let affine = ggml_type.affine();
    let elements = ggml_type.block_elements();
    let groups = elements / affine.group.unwrap_or(elements);
    let mut block = Block::ZERO;
    for bytes in data.chunks_exact(ggml_type.block_bytes()) {
        block.unpack(ggml_type, bytes);
        out.codes.extend_from_slice(&block.codes[..elements]);
        out.scales.extend_from_slice(&block.scales[..groups]);
        if affine.has_min {
            out.mins.extend_from_slice(&block.mins[..groups]);
        }
        if let ScaleStorage::SuperBlock { .. } = affine.scale {
            out.super_scales.push(block.super_scale);
            out.sub_scales.extend_from_slice(&block.sub_scales[..groups]);
            if affine.has_min {
                out.super_mins.push(block.super_min);
                out.sub_mins.extend_from_slice(&block.sub_mins[..groups]);
            }
        }
    }
}

/// Encodes row `row` of a matrix; the number is for error messages.
pub(crate) fn encode_row(
    ggml_type: GgmlType,
    row: usize,
    src: &[f32],
    out: &mut [u8],
) -> Result<(), FormatError> {
    let format = Format::Ggml(ggml_type);
    if let Some(col) = src.iter().position(|x| !x.is_finite()) {
        return Err(FormatError::NotFinite { format, value: src[col], row, col });
    }
    let elements = ggml_type.block_elements();
    for (b, (x, out)) in
        src.chunks_exact(elements).zip(out.chunks_exact_mut(ggml_type.block_bytes())).enumerate()
    {
        let stored = match ggml_type {
            GgmlType::Q4_0 => legacy::encode_q4_0(x, out),
            GgmlType::Q4_1 => legacy::encode_q4_1(x, out),
            GgmlType::Q5_0 => legacy::encode_q5_0(x, out),
            GgmlType::Q5_1 => legacy::encode_q5_1(x, out),
            GgmlType::Q8_0 => legacy::encode_q8_0(x, out),
            GgmlType::MxFp4 => mxfp4::encode(x, out),
            GgmlType::Q2K => k_quants::encode_q2_k(x, out),
            GgmlType::Q3K => k_quants::encode_q3_k(x, out),
            GgmlType::Q4K => k_quants::encode_q4_k(x, out),
            GgmlType::Q5K => k_quants::encode_q5_k(x, out),
            GgmlType::Q6K => k_quants::encode_q6_k(x, out),
        };
        if let Err(ScaleOverflow) = stored {
            let i = argmax_magnitude(x);
            return Err(FormatError::ScaleOverflow {
                format,
                value: x[i],
                row,
                col: b * elements + i,
                max_scale: f16::MAX.to_f32(),
            });
        }
    }
    Ok(())
}

/// A block's scale or minimum does not fit in f16.
struct ScaleOverflow;

/// The value as f16, if it is not too large for it.
fn to_f16(value: f32) -> Result<f16, ScaleOverflow> {
    let stored = f16::from_f32(value);
    if stored.is_finite() { Ok(stored) } else { Err(ScaleOverflow) }
}

/// Index of the first element of largest magnitude.
fn argmax_magnitude(x: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in x.iter().enumerate() {
        if v.abs() > x[best].abs() {
            best = i;
        }
    }
    best
}
