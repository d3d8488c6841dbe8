//! AVX-512 with VNNI (F, BW, DQ, VL, VNNI): one register per vector.

use std::arch::x86_64::*;

use super::Simd;

/// Intel from Cascade Lake, AMD from Zen 4.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// See [`Simd::settle`]: an empty piece of assembly that claims to change its operands.
/// (A function of its own because only one with the feature may name the registers.)
#[inline]
#[target_feature(enable = "avx512f")]
fn settle(acc: [__m512; 4], mut p: *const i8) -> ([__m512; 4], *const i8) {
    let [mut a, mut b, mut c, mut d] = acc;
    // SAFETY: there are no instructions in it.
    unsafe {
        std::arch::asm!(
            "/* {0} {1} {2} {3} {4} */",
            inout(zmm_reg) a,
            inout(zmm_reg) b,
            inout(zmm_reg) c,
            inout(zmm_reg) d,
            inout(reg) p,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    ([a, b, c, d], p)
}

/// Reduces four vectors at once: each step halves what is left of all of them.
macro_rules! reduce_four {
    ($x:expr, $wide:ident, $half:ident, $quarter:ident) => {{
        let [a, b, c, d] = $x;
        let ab = $wide(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = $wide(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        // a, b, c, d in every quarter.
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        let all = $wide(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
        let half = $half(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
        let last = $quarter(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), last);
        out
    }};
}

// SAFETY (whole impl): the trait's contract makes the caller vouch for the instruction set
// and for the pointers; all memory instructions used are the unaligned ones.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;

    // 16 accumulators, 8 registers of codes, and 8 for scales and sums.
    const TILE_TOKENS: usize = 16;
    const SIGNED_8BIT: bool = false;
    const ATTEND_ROWS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        unsafe { _mm512_reduce_add_ps(x) }
    }
    #[inline(always)]
    unsafe fn max_lane(x: Self::F) -> f32 {
        unsafe { _mm512_reduce_max_ps(x) }
    }
    #[inline(always)]
    unsafe fn sum_lanes(x: [Self::F; 4]) -> [f32; 4] {
        unsafe { reduce_four!(x, _mm512_add_ps, _mm256_add_ps, _mm_add_ps) }
    }
    #[inline(always)]
    unsafe fn max_lanes(x: [Self::F; 4]) -> [f32; 4] {
        unsafe { reduce_four!(x, _mm512_max_ps, _mm256_max_ps, _mm_max_ps) }
    }
    #[inline(always)]
    unsafe fn any_greater(a: Self::F, b: Self::F) -> bool {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) != 0 }
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    unsafe fn exp2_integral(n: Self::F) -> Self::F {
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), n) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        unsafe {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm256_storeu_si256(p.cast(), half);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> Self::F {
        unsafe {
            let e = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let zero = _mm512_cmpeq_epi32_mask(e, _mm512_setzero_si512());
            let bits = _mm512_slli_epi32::<23>(e);
            _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, zero, _mm512_set1_epi32(1 << 22)))
        }
    }
    #[inline(always)]
    unsafe fn load_e4m3_scaled(p: *const u8) -> Self::F {
        unsafe {
            let b = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()));
            let magnitude = _mm256_and_si256(b, _mm256_set1_epi16(0x7f));
            let nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(b, _mm256_set1_epi16(0x80)));
            let bits = _mm256_or_si256(sign, _mm256_slli_epi16::<7>(magnitude));
            let bits = _mm256_mask_mov_epi16(bits, nan, _mm256_set1_epi16(0x7e00));
            _mm512_cvtph_ps(bits)
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        unsafe {
            let bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x));
            _mm_storeu_si128(p.cast(), bytes);
        }
    }

    #[inline(always)]
    unsafe fn int_splat(x: i32) -> Self::I {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn int_to_float(x: Self::I) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_table(p: *const u8) -> Self::B {
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_byte(x: u8) -> Self::B {
        unsafe { _mm512_set1_epi8(x as i8) }
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shift_right<const N: i32>(a: Self::B) -> Self::B {
        unsafe { _mm512_srl_epi16(a, _mm_cvtsi32_si128(N)) }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: i32>(a: Self::B) -> Self::B {
        unsafe { _mm512_sll_epi16(a, _mm_cvtsi32_si128(N)) }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, indices: Self::B) -> Self::B {
        unsafe { _mm512_shuffle_epi8(table, indices) }
    }

    #[inline(always)]
    unsafe fn settle(acc: [Self::F; 4], p: *const i8) -> ([Self::F; 4], *const i8) {
        unsafe { settle(acc, p) }
    }

    #[inline(always)]
    unsafe fn dot<const BITS: u32, const N: usize>(
        mut acc: Self::I,
        codes: &[Self::B; N],
        x: *const i8,
    ) -> Self::I {
        for (n, w) in codes.iter().enumerate() {
            // Folded into the multiply as a broadcast memory operand.
            unsafe {
                let quad = _mm512_set1_epi32(x.add(4 * n).cast::<i32>().read_unaligned());
                acc = _mm512_dpbusd_epi32(acc, *w, quad);
            }
        }
        acc
    }
}
