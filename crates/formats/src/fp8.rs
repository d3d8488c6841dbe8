//! E4M3FN, the 8-bit float of FP8 weights and of NVFP4's scales (OCP 8-bit Floating Point
//! Specification 1.0, §5): sign, 4 exponent bits with bias 7, 3 mantissa bits; no infinities;
//! `0x7f` and `0xff` are NaN, so that the largest value is 448.

/// The largest finite value.
pub const E4M3_MAX: f32 = 448.0;

/// Value of each code.
pub static E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = decode(code as u8);
        code += 1;
    }
    table
};

const fn decode(code: u8) -> f32 {
    let sign = ((code >> 7) as u32) << 31;
    let (exponent, mantissa) = ((code >> 3 & 15) as u32, (code & 7) as u32);
    if exponent == 15 && mantissa == 7 {
        return f32::from_bits(sign | 0x7fc0_0000);
    }
    if exponent == 0 {
        // Denormals: mantissa × 2^−9.
        let magnitude = mantissa as f32 / 512.0;
        return f32::from_bits(sign | magnitude.to_bits());
    }
    f32::from_bits(sign | (exponent + 127 - 7) << 23 | mantissa << 20)
}

/// Value of a code.
#[inline]
pub fn decode_e4m3(code: u8) -> f32 {
    E4M3[usize::from(code)]
}

/// The code nearest to `x`, ties to even; magnitudes above 448, infinities too, saturate (the
/// specification's saturating mode); NaN stays NaN, and signs are kept.
#[inline]
pub fn encode_e4m3(x: f32) -> u8 {
    let bits = x.to_bits();
    let sign = (bits >> 24) as u8 & 0x80;
    if x.is_nan() {
        return sign | 0x7f;
    }
    let a = f32::from_bits(bits & 0x7fff_ffff);
    if a < f32::from_bits((127 - 6) << 23) {
        // Below the smallest normal, 2^−6: whole multiples of 2^−9. Eight of them are the smallest
        // normal's code.
        return sign | (a * 512.0).round_ties_even() as u8;
    }
    let magnitude = a.to_bits();
    let rounded = magnitude + 0x7_ffff + (magnitude >> 20 & 1);
    let code = (rounded >> 20).saturating_sub((127 - 7) << 3);
    sign | code.min(0x7e) as u8
}
