//! AVX2 with FMA and F16C: two registers per vector.

use std::arch::x86_64::*;

use super::Simd;

/// Intel from Haswell, AMD from Zen.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// An expression for both registers. A macro, because a closure would be a function of its
/// own, compiled without the instruction set unless the optimiser happens to inline it.
macro_rules! each {
    ($a:expr, |$v:ident| $body:expr) => {{
        let a = $a;
        [
            {
                let $v = a[0];
                $body
            },
            {
                let $v = a[1];
                $body
            },
        ]
    }};
}

/// Reduces four vectors at once: each step halves what is left of all of them.
macro_rules! reduce_four {
    ($x:expr, $wide:ident, $half:ident) => {{
        let x = $x;
        let (a, b) = ($wide(x[0][0], x[0][1]), $wide(x[1][0], x[1][1]));
        let (c, d) = ($wide(x[2][0], x[2][1]), $wide(x[3][0], x[3][1]));
        let ab = $wide(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let cd = $wide(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        // a, b, c, d in both halves.
        let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
        let low = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
        let all = $wide(low, _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
        let last = $half(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), last);
        out
    }};
}

// SAFETY (whole impl): the trait's contract makes the caller vouch for the instruction set
// and for the pointers; all memory instructions used are the unaligned ones.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    const TILE_TOKENS: usize = 4;
    const SIGNED_8BIT: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe { each!(a, |v| _mm256_andnot_ps(_mm256_set1_ps(-0.0), v)) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        unsafe {
            let v = _mm256_add_ps(x[0], x[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    unsafe fn max_lane(x: Self::F) -> f32 {
        unsafe {
            let v = _mm256_max_ps(x[0], x[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    unsafe fn sum_lanes(x: [Self::F; 4]) -> [f32; 4] {
        unsafe { reduce_four!(x, _mm256_add_ps, _mm_add_ps) }
    }
    #[inline(always)]
    unsafe fn max_lanes(x: [Self::F; 4]) -> [f32; 4] {
        unsafe { reduce_four!(x, _mm256_max_ps, _mm_max_ps) }
    }
    #[inline(always)]
    unsafe fn any_greater(a: Self::F, b: Self::F) -> bool {
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0]);
            let high = _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1]);
            _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0
        }
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        unsafe {
            each!(x, |v| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v))
        }
    }
    #[inline(always)]
    unsafe fn exp2_integral(n: Self::F) -> Self::F {
        unsafe {
            each!(n, |v| {
                let e = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(e))
            })
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe {
            let v = _mm256_loadu_si256(p.cast());
            [
                _mm256_cvtph_ps(_mm256_castsi256_si128(v)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(v)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        unsafe {
            let [low, high] = each!(x, |v| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
            _mm_storeu_si128(p.cast(), low);
            _mm_storeu_si128(p.add(8).cast(), high);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        unsafe {
            each!([p, p.add(8)], |p| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            })
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe {
            each!([p, p.add(8)], |p| {
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())))
            })
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe {
            each!([p, p.add(8)], |p| {
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())))
            })
        }
    }
    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> Self::F {
        unsafe {
            each!([p, p.add(8)], |p| {
                let e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
                let zero = _mm256_cmpeq_epi32(e, _mm256_setzero_si256());
                let subnormal = _mm256_and_si256(zero, _mm256_set1_epi32(1 << 22));
                _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32::<23>(e), subnormal))
            })
        }
    }
    #[inline(always)]
    unsafe fn load_e4m3_scaled(p: *const u8) -> Self::F {
        unsafe {
            let b = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()));
            let magnitude = _mm256_and_si256(b, _mm256_set1_epi16(0x7f));
            let nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(b, _mm256_set1_epi16(0x80)));
            let bits = _mm256_or_si256(sign, _mm256_slli_epi16::<7>(magnitude));
            let bits = _mm256_or_si256(bits, _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)));
            [
                _mm256_cvtph_ps(_mm256_castsi256_si128(bits)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(bits)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        unsafe {
            let [low, high] = each!(x, |v| _mm256_cvtps_epi32(v));
            // Packing works within 128-bit halves, so the quarters come out as 0 2 1 3.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(p.cast(), bytes);
        }
    }

    #[inline(always)]
    unsafe fn int_splat(x: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn int_to_float(x: Self::I) -> Self::F {
        unsafe { each!(x, |v| _mm256_cvtepi32_ps(v)) }
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn load_table(p: *const u8) -> Self::B {
        unsafe { [_mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast())); 2] }
    }
    #[inline(always)]
    unsafe fn splat_byte(x: u8) -> Self::B {
        unsafe { [_mm256_set1_epi8(x as i8); 2] }
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn shift_right<const N: i32>(a: Self::B) -> Self::B {
        unsafe { each!(a, |v| _mm256_srli_epi16::<N>(v)) }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: i32>(a: Self::B) -> Self::B {
        unsafe { each!(a, |v| _mm256_slli_epi16::<N>(v)) }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, indices: Self::B) -> Self::B {
        unsafe {
            [_mm256_shuffle_epi8(table[0], indices[0]), _mm256_shuffle_epi8(table[1], indices[1])]
        }
    }

    /// `vpmaddubsw` multiplies unsigned by signed bytes and adds neighbours into 16 bits,
    /// saturating. Codes of up to 6 bits cannot saturate (2·63·127 < 2^15), and short ones
    /// leave room to add several products before widening. 8-bit codes are taken as signed
    /// and the sign moved to `x`: 2·128·127 < 2^15.
    #[inline(always)]
    unsafe fn dot<const BITS: u32, const N: usize>(
        mut acc: Self::I,
        codes: &[Self::B; N],
        x: *const i8,
    ) -> Self::I {
        unsafe {
            let ones = _mm256_set1_epi16(1);
            // 2 · (2^BITS - 1) · 127 · run must stay below 2^15.
            let run = match BITS {
                0..=2 => 32,
                3 => 16,
                4 => 8,
                5 => 4,
                6 => 2,
                _ => 1,
            };
            let mut n = 0;
            while n < N {
                let end = if n + run < N { n + run } else { N };
                let mut words = [_mm256_setzero_si256(); 2];
                while n < end {
                    let quad = _mm256_set1_epi32(x.add(4 * n).cast::<i32>().read_unaligned());
                    for h in 0..2 {
                        let product = if BITS == 8 {
                            let signed = _mm256_xor_si256(codes[n][h], _mm256_set1_epi8(-128));
                            _mm256_maddubs_epi16(
                                _mm256_abs_epi8(signed),
                                _mm256_sign_epi8(quad, signed),
                            )
                        } else {
                            _mm256_maddubs_epi16(codes[n][h], quad)
                        };
                        words[h] = _mm256_add_epi16(words[h], product);
                    }
                    n += 1;
                }
                for h in 0..2 {
                    acc[h] = _mm256_add_epi32(acc[h], _mm256_madd_epi16(words[h], ones));
                }
            }
            acc
        }
    }
}
