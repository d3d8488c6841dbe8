//! ggml's MXFP4 block: the numbers of OCP's MXFP4 with the nibbles of ggml's other 32-column types.
//!
//! Three things differ from [`crate::Format::MXFP4`]: columns `j` and `j + 16` share a byte; code 8
//! means +0, and E8M0 255 means `2^128` rather than NaN (ggml does not look for it); and encoding
//! breaks ties between neighbouring magnitudes towards zero.

use super::{Block, ScaleOverflow, argmax_magnitude};
use crate::fp4::E2M1_DOUBLED;

/// Half of E8M0's value, `2^(e − 128)`: goes with doubled E2M1 values. Finite for every code.
fn half_scale(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}

pub(super) fn unpack(bytes: &[u8], out: &mut Block) {
    out.scales[0] = half_scale(bytes[0]);
    for (j, &byte) in bytes[1..].iter().enumerate() {
        out.codes[j] = byte & 15;
        out.codes[j + 16] = byte >> 4;
    }
}

pub(super) fn encode(x: &[f32], out: &mut [u8]) -> Result<(), ScaleOverflow> {
    let amax = x[argmax_magnitude(x)].abs();
    let e = if amax > 0.0 {
        // ggml takes the logarithm in f32, which rounds up to the next integer just below a power
        // of two.
        let log2 = f64::from(amax).log2() as f32;
        (log2.floor() - 2.0 + 127.0).clamp(0.0, 254.0) as u8
    } else {
        0
    };
    out[0] = e;
    let d = half_scale(e);
    for j in 0..16 {
        out[1 + j] = nearest(x[j], d) | nearest(x[j + 16], d) << 4;
    }
    Ok(())
}

/// The first code whose value is nearest. Negative values mirror positive ones, but that 0 is
/// always code 0, the first of its two.
fn nearest(x: f32, d: f32) -> u8 {
    let a = x.abs();
    let mut best = 0;
    let mut best_error = a;
    for (code, value) in E2M1_DOUBLED[..8].iter().enumerate() {
        let error = (f32::from(*value) * d - a).abs();
        if error < best_error {
            best_error = error;
            best = code as u8;
        }
    }
    if x < 0.0 && best > 0 { best | 8 } else { best }
}
