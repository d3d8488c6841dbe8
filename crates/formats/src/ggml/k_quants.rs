//! Q2_K to Q6_K: super-blocks of 256 columns, whose groups' scales are themselves small integers
//! times an f16.
//!
//! Where the bits of column `c` lie, with `h = c / 128`, `l = c mod 32`:
//!
//! | type | low bits | high bits |
//! |---|---|---|
//! | Q2_K, Q3_K | `qs[32h + l]`, bits `2j, 2j+1`, `j = (c mod 128) / 32` | Q3_K: `hmask[l]`, bit `c / 32` |
//! | Q4_K, Q5_K | `qs[32(c/64) + l]`, low nibble if `c mod 64 < 32` | Q5_K: `qh[l]`, bit `c / 32` |
//! | Q6_K | `ql[64h + c mod 64]`, low nibble if `c mod 128 < 64` | `qh[32h + l]`, bits `2j, 2j+1`, `j = (c mod 128) / 32` |

use super::{Block, ScaleOverflow, k_search, read_f16, write_f16};

/// Two bits per column, from 64 bytes.
fn unpack_pairs(qs: &[u8], codes: &mut [u8; 256]) {
    for (c, code) in codes.iter_mut().enumerate() {
        *code = qs[32 * (c / 128) + c % 32] >> (2 * (c % 128 / 32)) & 3;
    }
}

fn pack_pairs(codes: &[u8; 256], qs: &mut [u8]) {
    qs[..64].fill(0);
    for (c, code) in codes.iter().enumerate() {
        qs[32 * (c / 128) + c % 32] |= (code & 3) << (2 * (c % 128 / 32));
    }
}

/// One bit per column, from 32 bytes, to be bit `to` of the codes.
fn unpack_plane(plane: &[u8], to: u32, codes: &mut [u8; 256]) {
    for (c, code) in codes.iter_mut().enumerate() {
        *code |= (plane[c % 32] >> (c / 32) & 1) << to;
    }
}

fn pack_plane(codes: &[u8; 256], from: u32, plane: &mut [u8]) {
    plane[..32].fill(0);
    for (c, code) in codes.iter().enumerate() {
        plane[c % 32] |= (code >> from & 1) << (c / 32);
    }
}

/// Four bits per column, from 128 bytes, in runs of `run` columns: a run of low nibbles, then one
/// of high nibbles.
fn unpack_nibbles(qs: &[u8], run: usize, codes: &mut [u8; 256]) {
    for (c, code) in codes.iter_mut().enumerate() {
        let byte = qs[run * (c / (2 * run)) + c % run];
        *code = byte >> (4 * (c / run % 2)) & 15;
    }
}

fn pack_nibbles(codes: &[u8; 256], run: usize, qs: &mut [u8]) {
    qs[..128].fill(0);
    for (c, code) in codes.iter().enumerate() {
        qs[run * (c / (2 * run)) + c % run] |= (code & 15) << (4 * (c / run % 2));
    }
}

/// The 6-bit scales and minimums of Q4_K and Q5_K: of groups 0–3 in the low six bits of bytes 0–3
/// and 4–7; of groups 4–7 the low four bits in the nibbles of bytes 8–11 and the high two on top of
/// bytes 0–3 and 4–7.
fn unpack_scale_min(packed: &[u8], scales: &mut [i8; 16], mins: &mut [u8; 16]) {
    for g in 0..4 {
        scales[g] = (packed[g] & 63) as i8;
        mins[g] = packed[g + 4] & 63;
        scales[g + 4] = (packed[g + 8] & 15 | packed[g] >> 6 << 4) as i8;
        mins[g + 4] = packed[g + 8] >> 4 | packed[g + 4] >> 6 << 4;
    }
}

pub(super) fn unpack_q2_k(bytes: &[u8], out: &mut Block) {
    for (g, &packed) in bytes[..16].iter().enumerate() {
        out.sub_scales[g] = (packed & 15) as i8;
        out.sub_mins[g] = packed >> 4;
    }
    unpack_pairs(&bytes[16..80], &mut out.codes);
    out.super_scale = read_f16(bytes, 80);
    out.super_min = read_f16(bytes, 82);
    out.multiply_out();
}

pub(super) fn unpack_q3_k(bytes: &[u8], out: &mut Block) {
    unpack_pairs(&bytes[32..96], &mut out.codes);
    unpack_plane(&bytes[..32], 2, &mut out.codes);
    // Six bits each: the low four in the nibbles of bytes 0–7, the high two in the pairs of bytes
    // 8–11; offset 32.
    let packed = &bytes[96..108];
    for g in 0..16 {
        let low = packed[g % 8] >> (4 * (g / 8)) & 15;
        let high = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
        out.sub_scales[g] = (low | high << 4) as i8 - 32;
    }
    out.super_scale = read_f16(bytes, 108);
    out.multiply_out();
}

pub(super) fn unpack_q4_k(bytes: &[u8], out: &mut Block) {
    out.super_scale = read_f16(bytes, 0);
    out.super_min = read_f16(bytes, 2);
    unpack_scale_min(&bytes[4..16], &mut out.sub_scales, &mut out.sub_mins);
    unpack_nibbles(&bytes[16..], 32, &mut out.codes);
    out.multiply_out();
}

pub(super) fn unpack_q5_k(bytes: &[u8], out: &mut Block) {
    out.super_scale = read_f16(bytes, 0);
    out.super_min = read_f16(bytes, 2);
    unpack_scale_min(&bytes[4..16], &mut out.sub_scales, &mut out.sub_mins);
    unpack_nibbles(&bytes[48..], 32, &mut out.codes);
    unpack_plane(&bytes[16..48], 4, &mut out.codes);
    out.multiply_out();
}

pub(super) fn unpack_q6_k(bytes: &[u8], out: &mut Block) {
    let mut high = [0; 256];
    unpack_pairs(&bytes[128..192], &mut high);
    unpack_nibbles(&bytes[..128], 64, &mut out.codes);
    for (code, high) in out.codes.iter_mut().zip(high) {
        *code |= high << 4;
    }
    for (scale, &byte) in out.sub_scales.iter_mut().zip(&bytes[192..208]) {
        *scale = byte as i8;
    }
    out.super_scale = read_f16(bytes, 208);
    out.multiply_out();
}

pub(super) fn encode_q2_k(x: &[f32], out: &mut [u8]) -> Result<(), ScaleOverflow> {
    let block = k_search::with_minimums(x, 16, 3, 15)?;
    for (g, byte) in out[..16].iter_mut().enumerate() {
        *byte = block.scales[g] | block.mins[g] << 4;
    }
    pack_pairs(&block.codes, &mut out[16..80]);
    write_f16(out, 80, block.d);
    write_f16(out, 82, block.dmin);
    Ok(())
}

pub(super) fn encode_q3_k(x: &[f32], out: &mut [u8]) -> Result<(), ScaleOverflow> {
    let block = k_search::symmetric(x, 4, 31)?;
    pack_plane(&block.codes, 2, &mut out[..32]);
    pack_pairs(&block.codes, &mut out[32..96]);
    let packed = &mut out[96..108];
    packed.fill(0);
    for (g, &scale) in block.scales.iter().enumerate() {
        let six = (scale + 32) as u8;
        packed[g % 8] |= (six & 15) << (4 * (g / 8));
        packed[8 + g % 4] |= (six >> 4) << (2 * (g / 4));
    }
    write_f16(out, 108, block.d);
    Ok(())
}

fn pack_scale_min(scales: &[u8; 16], mins: &[u8; 16], packed: &mut [u8]) {
    for g in 0..4 {
        packed[g] = scales[g] | scales[g + 4] >> 4 << 6;
        packed[g + 4] = mins[g] | mins[g + 4] >> 4 << 6;
        packed[g + 8] = scales[g + 4] & 15 | mins[g + 4] << 4;
    }
}

pub(super) fn encode_q4_k(x: &[f32], out: &mut [u8]) -> Result<(), ScaleOverflow> {
    let block = k_search::with_minimums(x, 32, 15, 63)?;
    write_f16(out, 0, block.d);
    write_f16(out, 2, block.dmin);
    pack_scale_min(&block.scales, &block.mins, &mut out[4..16]);
    pack_nibbles(&block.codes, 32, &mut out[16..]);
    Ok(())
}

pub(super) fn encode_q5_k(x: &[f32], out: &mut [u8]) -> Result<(), ScaleOverflow> {
    let block = k_search::with_minimums(x, 32, 31, 63)?;
    write_f16(out, 0, block.d);
    write_f16(out, 2, block.dmin);
    pack_scale_min(&block.scales, &block.mins, &mut out[4..16]);
    pack_plane(&block.codes, 4, &mut out[16..48]);
    pack_nibbles(&block.codes, 32, &mut out[48..]);
    Ok(())
}

pub(super) fn encode_q6_k(x: &[f32], out: &mut [u8]) -> Result<(), ScaleOverflow> {
    let block = k_search::symmetric(x, 32, 127)?;
    pack_nibbles(&block.codes, 64, &mut out[..128]);
    let mut high = block.codes;
    high.iter_mut().for_each(|code| *code >>= 4);
    pack_pairs(&high, &mut out[128..192]);
    for (byte, &scale) in out[192..208].iter_mut().zip(&block.scales) {
        *byte = scale as u8;
    }
    write_f16(out, 208, block.d);
    Ok(())
}
