//! E8M0, the power-of-two scale of MXFP4 (OCP Microscaling 1.0, §5.4.1): `2^(code − 127)`; 255 is
//! NaN; there is no zero.

/// Value of a code.
#[inline]
pub fn decode_e8m0(code: u8) -> f32 {
    match code {
        // 2^−127 is denormal in f32.
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// The code whose value is `scale`: a power of two in E8M0's range, or NaN.
#[inline]
pub(crate) fn code_of_scale(scale: f32) -> u8 {
    if scale.is_nan() { 255 } else { (scale.to_bits() >> 23) as u8 }
}

/// The exponent `⌊log2 x⌋` of a positive finite `x`, exactly, denormals included.
#[inline]
pub(crate) fn floor_log2(x: f32) -> i32 {
    let bits = x.to_bits();
    match bits >> 23 {
        0 => 31 - bits.leading_zeros() as i32 - 149,
        biased => biased as i32 - 127,
    }
}

/// The scale of a block by OCP Microscaling 1.0, §6.3: `2^(⌊log2 amax⌋ − emax)`, where `emax` is
/// the exponent of the element format's largest value (2 for E2M1). Clamped to the range of E8M0; a
/// block of zeros gets the smallest scale.
#[inline]
pub fn encode_e8m0(amax: f32, emax: i32) -> u8 {
    if amax == 0.0 {
        return 0;
    }
    (floor_log2(amax) - emax + 127).clamp(0, 254) as u8
}
