//! Rounding without a library call.

/// Nearest integer, ties to even, of a magnitude below 2^22: adding 1.5 · 2^23 leaves no bits for a
/// fraction. Unlike `round_ties_even`, which is a call where the instruction set has no rounding,
/// it is two additions everywhere, and vectorises.
#[inline]
pub(crate) fn nearest(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}
