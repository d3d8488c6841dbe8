//! F32, F16 and BF16 rows: little-endian elements, contiguous.
//!
//! F16 and BF16 are rounded to nearest, ties to even; overflow gives ±∞, as IEEE 754 says; NaN
//! stays NaN, made quiet.

use half::{bf16, f16};

/// A row of f32.
pub(crate) fn decode_f32(data: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(data.as_chunks::<4>().0) {
        *out = f32::from_le_bytes(*bytes);
    }
}

/// A row of f16.
pub(crate) fn decode_f16(data: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(data.as_chunks::<2>().0) {
        *out = f16::from_le_bytes(*bytes).to_f32();
    }
}

/// A row of bf16.
pub(crate) fn decode_bf16(data: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(data.as_chunks::<2>().0) {
        *out = bf16::from_le_bytes(*bytes).to_f32();
    }
}

/// A row of f32.
pub(crate) fn encode_f32(src: &[f32], out: &mut [u8]) {
    for (bytes, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(src) {
        *bytes = x.to_le_bytes();
    }
}

/// A row of f16.
pub(crate) fn encode_f16(src: &[f32], out: &mut [u8]) {
    for (bytes, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(src) {
        *bytes = f16::from_f32(*x).to_le_bytes();
    }
}

/// A row of bf16.
pub(crate) fn encode_bf16(src: &[f32], out: &mut [u8]) {
    for (bytes, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(src) {
        *bytes = bf16::from_f32(*x).to_le_bytes();
    }
}
