//! E2M1, the 4-bit float of MXFP4 and NVFP4 (OCP Microscaling 1.0, §5.3.3): sign, 2 exponent bits
//! with bias 1, 1 mantissa bit; no infinities and no NaN.

/// Value of each code; bit 3 is the sign.
pub const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Twice the value of each code: integers, for integer kernels. The sign of −0 is lost, no value
/// changes.
pub static E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The code nearest to `x`, ties to even; magnitudes above 6 saturate, the sign of zero is kept.
///
/// NaN, which E2M1 lacks, gives +6, as PTX's `cvt.rn.satfinite.e2m1x2.f32` does; [`crate::encode`]
/// refuses it before it comes here.
#[inline]
pub fn encode_e2m1(x: f32) -> u8 {
    if x.is_nan() {
        return 7;
    }
    // Each comparison is a midpoint between neighbours: exclusive where the lower neighbour's code
    // is even, so that it keeps the tie.
    let a = x.abs();
    let magnitude = u8::from(a > 0.25)
        + u8::from(a >= 0.75)
        + u8::from(a > 1.25)
        + u8::from(a >= 1.75)
        + u8::from(a > 2.5)
        + u8::from(a >= 3.5)
        + u8::from(a > 5.0);
    magnitude | u8::from(x.is_sign_negative()) << 3
}
