//! Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: one f16 scale (and minimum) per 32 columns.
//!
//! The encoders follow ggml's reference quantisers (`quantize_row_q4_0_ref` and so on) to the bit.
//! Their order of operations, in f32: `d` from the extreme values, its reciprocal, then `trunc(x ·
//! (1/d) + offset + ½)`; the codes belong to `d` before it is rounded to f16. So `|error| ≤ |d|/2`,
//! but `|d|` at the end that the symmetric types' code range lacks, plus what rounding `d` to f16
//! moves the values, `2^−11 |d| · 2^bits`.

use half::f16;

use super::{Block, ScaleOverflow, argmax_magnitude, read_f16, to_f16, write_f16};

const N: usize = 32;

fn unpack_nibbles(qs: &[u8], codes: &mut [u8]) {
    for (j, &byte) in qs[..N / 2].iter().enumerate() {
        codes[j] = byte & 15;
        codes[j + N / 2] = byte >> 4;
    }
}

fn pack_nibbles(codes: &[u8; N], qs: &mut [u8]) {
    for (j, byte) in qs[..N / 2].iter_mut().enumerate() {
        *byte = codes[j] & 15 | codes[j + N / 2] << 4;
    }
}

fn unpack_fifth_bits(qh: &[u8], codes: &mut [u8]) {
    for (i, code) in codes[..N].iter_mut().enumerate() {
        *code |= (qh[i / 8] >> (i % 8) & 1) << 4;
    }
}

fn pack_fifth_bits(codes: &[u8; N], qh: &mut [u8]) {
    qh[..N / 8].fill(0);
    for (i, code) in codes.iter().enumerate() {
        qh[i / 8] |= (code >> 4 & 1) << (i % 8);
    }
}

pub(super) fn unpack_q4_0(bytes: &[u8], out: &mut Block) {
    out.scales[0] = read_f16(bytes, 0).to_f32();
    unpack_nibbles(&bytes[2..], &mut out.codes);
}

pub(super) fn unpack_q4_1(bytes: &[u8], out: &mut Block) {
    out.scales[0] = read_f16(bytes, 0).to_f32();
    out.mins[0] = read_f16(bytes, 2).to_f32();
    unpack_nibbles(&bytes[4..], &mut out.codes);
}

pub(super) fn unpack_q5_0(bytes: &[u8], out: &mut Block) {
    out.scales[0] = read_f16(bytes, 0).to_f32();
    unpack_nibbles(&bytes[6..], &mut out.codes);
    unpack_fifth_bits(&bytes[2..6], &mut out.codes);
}

pub(super) fn unpack_q5_1(bytes: &[u8], out: &mut Block) {
    out.scales[0] = read_f16(bytes, 0).to_f32();
    out.mins[0] = read_f16(bytes, 2).to_f32();
    unpack_nibbles(&bytes[8..], &mut out.codes);
    unpack_fifth_bits(&bytes[4..8], &mut out.codes);
}

pub(super) fn unpack_q8_0(bytes: &[u8], out: &mut Block) {
    out.scales[0] = read_f16(bytes, 0).to_f32();
    for (code, &q) in out.codes[..N].iter_mut().zip(&bytes[2..]) {
        *code = q ^ 0x80;
    }
}

/// `1/d`, or 0 for a block of zeros.
fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Scale and codes of a symmetric type: the element of largest magnitude becomes code 0.
fn symmetric(x: &[f32], half_range: u8) -> Result<(f16, [u8; N]), ScaleOverflow> {
    let offset = f32::from(half_range);
    let d = x[argmax_magnitude(x)] / -offset;
    let id = reciprocal(d);
    let mut codes = [0; N];
    for (code, &x) in codes.iter_mut().zip(x) {
        // `as` truncates and saturates; NaN (0 times an infinite reciprocal of a denormal) becomes
        // 0.
        *code = ((x * id + (offset + 0.5)) as u8).min(2 * half_range - 1);
    }
    Ok((to_f16(d)?, codes))
}

/// Scale, minimum and codes of a type with a minimum.
fn with_minimum(x: &[f32], max_code: u8) -> Result<(f16, f16, [u8; N]), ScaleOverflow> {
    let (mut min, mut max) = (f32::MAX, f32::MIN);
    for &x in x {
        min = if x < min { x } else { min };
        max = if x > max { x } else { max };
    }
    let d = (max - min) / f32::from(max_code);
    let id = reciprocal(d);
    let mut codes = [0; N];
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = (((x - min) * id + 0.5) as u8).min(max_code);
    }
    Ok((to_f16(d)?, to_f16(min)?, codes))
}

pub(super) fn encode_q4_0(x: &[f32], out: &mut [u8]) -> Result<(), ScaleOverflow> {
    let (d, codes) = symmetric(x, 8)?;
    write_f16(out, 0, d);
    pack_nibbles(&codes, &mut out[2..]);
    Ok(())
}

pub(super) fn encode_q4_1(x: &[f32], out: &mut [u8]) -> Result<(), ScaleOverflow> {
    let (d, m, codes) = with_minimum(x, 15)?;
    write_f16(out, 0, d);
    write_f16(out, 2, m);
    pack_nibbles(&codes, &mut out[4..]);
    Ok(())
}

pub(super) fn encode_q5_0(x: &[f32], out: &mut [u8]) -> Result<(), ScaleOverflow> {
    let (d, codes) = symmetric(x, 16)?;
    write_f16(out, 0, d);
    pack_fifth_bits(&codes, &mut out[2..6]);
    pack_nibbles(&codes, &mut out[6..]);
    Ok(())
}

pub(super) fn encode_q5_1(x: &[f32], out: &mut [u8]) -> Result<(), ScaleOverflow> {
    let (d, m, codes) = with_minimum(x, 31)?;
    write_f16(out, 0, d);
    write_f16(out, 2, m);
    pack_fifth_bits(&codes, &mut out[4..8]);
    pack_nibbles(&codes, &mut out[8..]);
    Ok(())
}

pub(super) fn encode_q8_0(x: &[f32], out: &mut [u8]) -> Result<(), ScaleOverflow> {
    let d = x[argmax_magnitude(x)].abs() / 127.0;
    let id = reciprocal(d);
    write_f16(out, 0, to_f16(d)?);
    for (q, &x) in out[2..].iter_mut().zip(x) {
        // Half away from zero, as C's roundf.
        *q = (x * id).round() as i8 as u8;
    }
    Ok(())
}
