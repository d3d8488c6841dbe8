//! One vocabulary of 64-byte vectors, implemented once per instruction set.
//!
//! Every kernel is written once over [`Simd`] and compiled once per implementation, inside a
//! function that enables the features (see `isa.rs`). Where a register is narrower than
//! 64 bytes the implementation holds several. So one test of a kernel covers its logic, and
//! the same test over all implementations covers the instructions.
//!
//! Everything here is `#[inline(always)]`: a call that stayed a call would be compiled
//! without the features of the function that it was written for.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

/// Lanes of a float or 32-bit integer vector.
pub(crate) const LANES: usize = 16;

/// 64-byte vectors: 16 floats, 16 integers, or 64 bytes.
///
/// # Safety
/// Every method may use the instruction set's instructions, so callers must have checked
/// that the processor has them. Pointers must be valid for the stated number of elements;
/// no alignment is needed.
pub(crate) trait Simd: Copy + 'static {
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32.
    type I: Copy;
    /// 64 × u8.
    type B: Copy;

    /// Most tokens that the integer kernel's register tile holds: accumulators for them and
    /// the weights of one block should fit the register file.
    const TILE_TOKENS: usize;
    /// Whether [`dot`](Self::dot) of 8-bit codes multiplies `code - 128` instead of `code`.
    const SIGNED_8BIT: bool;

    /// Whether [`dot_pair`](Self::dot_pair) beats two calls of [`dot`](Self::dot).
    const PAIRS: bool = false;

    /// Query rows that attention's register tile holds: with two vectors of sums each where it is 8
    /// or more (16 registers), otherwise with one.
    const ATTEND_ROWS: usize = 4;

    unsafe fn splat(x: f32) -> Self::F;
    /// Reads 16 floats.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Writes 16 floats.
    unsafe fn store(p: *mut f32, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// `a · b + c`, rounded once (portable code may round twice).
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The sum of all lanes.
    unsafe fn sum(x: Self::F) -> f32;
    /// The greatest lane.
    unsafe fn max_lane(x: Self::F) -> f32;
    /// [`sum`](Self::sum) of four vectors.
    #[inline(always)]
    unsafe fn sum_lanes(x: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: forwarded from the caller.
        unsafe { [Self::sum(x[0]), Self::sum(x[1]), Self::sum(x[2]), Self::sum(x[3])] }
    }
    /// [`max_lane`](Self::max_lane) of four vectors.
    #[inline(always)]
    unsafe fn max_lanes(x: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: forwarded from the caller.
        unsafe {
            [Self::max_lane(x[0]), Self::max_lane(x[1]), Self::max_lane(x[2]), Self::max_lane(x[3])]
        }
    }
    /// Whether any lane of `a` is greater than `b`'s.
    unsafe fn any_greater(a: Self::F, b: Self::F) -> bool;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(x: Self::F) -> Self::F;
    /// `2^n` for integral `n` in -126..=127.
    unsafe fn exp2_integral(n: Self::F) -> Self::F;

    /// Reads 16 half-precision floats.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Writes 16 half-precision floats, rounded to nearest even.
    unsafe fn store_f16(p: *mut u16, x: Self::F);
    /// Reads 16 bfloat16s.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Reads 16 signed bytes as floats.
    unsafe fn load_i8(p: *const i8) -> Self::F;
    /// Reads 16 unsigned bytes as floats.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    /// Reads 16 bytes as the exponents of powers of two (E8M0, OCP MX 1.0 §5.4.1).
    unsafe fn load_e8m0(p: *const u8) -> Self::F;
    /// Reads 16 E4M3 floats (OCP 8-bit floating point specification 1.0), times 2^-8:
    /// that is what moving the bits into half precision gives for free.
    unsafe fn load_e4m3_scaled(p: *const u8) -> Self::F;
    /// Writes 16 floats as signed bytes, rounded to nearest even, saturated.
    unsafe fn store_i8(p: *mut i8, x: Self::F);

    unsafe fn int_splat(x: i32) -> Self::I;
    unsafe fn int_to_float(x: Self::I) -> Self::F;

    /// Reads 64 bytes.
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    /// A table of 16 bytes for [`lookup`](Self::lookup).
    unsafe fn load_table(p: *const u8) -> Self::B;
    unsafe fn splat_byte(x: u8) -> Self::B;
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B;
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// Shifts right within at least bytes; bits of a neighbouring byte may come in at the
    /// top, so the caller masks.
    unsafe fn shift_right<const N: i32>(a: Self::B) -> Self::B;
    /// Shifts left within at least bytes; bits of a neighbouring byte may come in at the
    /// bottom, so the caller masks before.
    unsafe fn shift_left<const N: i32>(a: Self::B) -> Self::B;
    /// `table[index]` for each byte; indices are below 16.
    unsafe fn lookup(table: Self::B, indices: Self::B) -> Self::B;

    /// `acc[r] + Σ over n < N, j < 4 of codes[n][4·r + j] · x[4·n + j]`.
    ///
    /// `BITS` bounds the codes (`code < 2^BITS`); with 8 see [`SIGNED_8BIT`](Self::SIGNED_8BIT).
    /// `x` is 4·N signed bytes, none of them -128.
    unsafe fn dot<const BITS: u32, const N: usize>(
        acc: Self::I,
        codes: &[Self::B; N],
        x: *const i8,
    ) -> Self::I;

    /// Nothing, except that the compiler must have computed `acc` before it reads through the
    /// pointer that this returns, which is `p`.
    ///
    /// Without it, the integer sums of a whole register tile are begun at once, and their
    /// registers are taken from the float sums, which then live in memory.
    #[inline(always)]
    unsafe fn settle(acc: [Self::F; 4], p: *const i8) -> ([Self::F; 4], *const i8) {
        (acc, p)
    }

    /// [`dot`](Self::dot) of a block of 32 columns with two tokens.
    #[inline(always)]
    unsafe fn dot_pair<const BITS: u32>(
        acc: [Self::I; 2],
        codes: &[Self::B; 8],
        x: [*const i8; 2],
    ) -> (Self::I, Self::I) {
        // SAFETY: forwarded from the caller.
        unsafe {
            (Self::dot::<BITS, 8>(acc[0], codes, x[0]), Self::dot::<BITS, 8>(acc[1], codes, x[1]))
        }
    }
}

/// `e^x`, with a relative error below 2e-7 for x in -87..=88; smaller x give 0 or close to it.
///
/// `x = n·ln 2 + r` with |r| ≤ ln 2 / 2 (Cody & Waite's two-part ln 2), then the Taylor
/// polynomial of degree 7, whose remainder there is below 2^-27.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: forwarded from the caller, who vouches for the instruction set.
    unsafe {
        let x = S::max(S::min(x, S::splat(88.0)), S::splat(-87.0));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        S::mul(p, S::exp2_integral(n))
    }
}
