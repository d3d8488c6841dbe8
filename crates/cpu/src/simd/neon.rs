//! NEON with the dot-product extension (ARMv8.2 `dotprod`), and with 8-bit matrix products
//! (ARMv8.6 `i8mm`) where there are any: four registers per vector.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Simd;

/// Apple from A13/M1, Arm Cortex from A75, Neoverse N1. With `I8MM`: Apple from A15/M2, Arm
/// Cortex from X2, Neoverse V1.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const I8MM: bool>;

/// An expression for all four registers. A macro, because a closure would be a function of
/// its own, compiled without the instruction set unless the optimiser happens to inline it.
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
            {
                let $v = a[2];
                $body
            },
            {
                let $v = a[3];
                $body
            },
        ]
    }};
}

/// `f(a[i], b[i])` for all four registers.
macro_rules! both {
    ($a:expr, $b:expr, $f:ident) => {{
        let (a, b) = ($a, $b);
        [$f(a[0], b[0]), $f(a[1], b[1]), $f(a[2], b[2]), $f(a[3], b[3])]
    }};
}

#[inline(always)]
unsafe fn quarters<T>(p: *const T) -> [*const T; 4] {
    // SAFETY: the caller vouches for 16 elements at `p`.
    unsafe { [p, p.add(4), p.add(8), p.add(12)] }
}

/// `acc + dot of four groups of four signed bytes`. The intrinsic is not stable yet, so
/// the instruction is written out.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller vouches for the dot-product extension; the instruction reads and
    // writes registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// `acc + a · bᵀ`, both 2×8 signed bytes, the result 2×2: twice the products of `sdot`.
#[inline(always)]
unsafe fn smmla(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller vouches for the extension; the instruction reads and writes
    // registers only.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "smmla {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

#[inline(always)]
unsafe fn widen_u8(p: *const u8) -> [uint32x4_t; 4] {
    // SAFETY: the caller vouches for 16 bytes and for NEON.
    unsafe {
        let b = vld1q_u8(p);
        let (low, high) = (vmovl_u8(vget_low_u8(b)), vmovl_u8(vget_high_u8(b)));
        [
            vmovl_u16(vget_low_u16(low)),
            vmovl_u16(vget_high_u16(low)),
            vmovl_u16(vget_low_u16(high)),
            vmovl_u16(vget_high_u16(high)),
        ]
    }
}

// SAFETY (whole impl): the trait's contract makes the caller vouch for the instruction set
// and for the pointers; NEON loads and stores need no alignment.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const I8MM: bool> Simd for Neon<I8MM> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];

    const TILE_TOKENS: usize = 4;
    const SIGNED_8BIT: bool = true;
    const PAIRS: bool = I8MM;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { each!(quarters(p), |p| vld1q_f32(p)) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            for (i, v) in x.into_iter().enumerate() {
                vst1q_f32(p.add(4 * i), v);
            }
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(a, b, vaddq_f32) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(a, b, vsubq_f32) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(a, b, vmulq_f32) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(a, b, vdivq_f32) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(a, b, vmaxq_f32) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(a, b, vminq_f32) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe { each!(a, |v| vabsq_f32(v)) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe {
            [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]))) }
    }
    #[inline(always)]
    unsafe fn max_lane(x: Self::F) -> f32 {
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(x[0], x[2]), vmaxq_f32(x[1], x[3]))) }
    }
    #[inline(always)]
    unsafe fn any_greater(a: Self::F, b: Self::F) -> bool {
        unsafe {
            let [p, q, r, s] = both!(a, b, vcgtq_f32);
            vmaxvq_u32(vorrq_u32(vorrq_u32(p, q), vorrq_u32(r, s))) != 0
        }
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        unsafe { each!(x, |v| vrndnq_f32(v)) }
    }
    #[inline(always)]
    unsafe fn exp2_integral(n: Self::F) -> Self::F {
        unsafe {
            each!(n, |v| {
                let e = vaddq_s32(vcvtq_s32_f32(v), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(e))
            })
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe { each!(quarters(p), |p| vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        unsafe {
            for (i, v) in x.into_iter().enumerate() {
                vst1_u16(p.add(4 * i), vreinterpret_u16_f16(vcvt_f16_f32(v)));
            }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        unsafe { each!(quarters(p), |p| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p)))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe {
            let b = vld1q_s8(p);
            let (low, high) = (vmovl_s8(vget_low_s8(b)), vmovl_s8(vget_high_s8(b)));
            let words =
                [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)];
            each!(words, |w| vcvtq_f32_s32(vmovl_s16(w)))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe { each!(widen_u8(p), |w| vcvtq_f32_u32(w)) }
    }
    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> Self::F {
        unsafe {
            each!(widen_u8(p), |e| {
                let zero = vceqq_u32(e, vdupq_n_u32(0));
                let subnormal = vandq_u32(zero, vdupq_n_u32(1 << 22));
                vreinterpretq_f32_u32(vorrq_u32(vshlq_n_u32::<23>(e), subnormal))
            })
        }
    }
    #[inline(always)]
    unsafe fn load_e4m3_scaled(p: *const u8) -> Self::F {
        unsafe {
            each!(widen_u8(p), |b| {
                let magnitude = vandq_u32(b, vdupq_n_u32(0x7f));
                let nan = vceqq_u32(magnitude, vdupq_n_u32(0x7f));
                let sign = vshlq_n_u32::<8>(vandq_u32(b, vdupq_n_u32(0x80)));
                let bits = vorrq_u32(sign, vshlq_n_u32::<7>(magnitude));
                let bits = vorrq_u32(bits, vandq_u32(nan, vdupq_n_u32(0x7e00)));
                vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(bits)))
            })
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        unsafe {
            let w = each!(x, |v| vqmovn_s32(vcvtnq_s32_f32(v)));
            let low = vqmovn_s16(vcombine_s16(w[0], w[1]));
            let high = vqmovn_s16(vcombine_s16(w[2], w[3]));
            vst1q_s8(p, vcombine_s8(low, high));
        }
    }

    #[inline(always)]
    unsafe fn int_splat(x: i32) -> Self::I {
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn int_to_float(x: Self::I) -> Self::F {
        unsafe { each!(x, |v| vcvtq_f32_s32(v)) }
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        unsafe { [vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))] }
    }
    #[inline(always)]
    unsafe fn load_table(p: *const u8) -> Self::B {
        unsafe { [vld1q_u8(p); 4] }
    }
    #[inline(always)]
    unsafe fn splat_byte(x: u8) -> Self::B {
        unsafe { [vdupq_n_u8(x); 4] }
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        unsafe { both!(a, b, vandq_u8) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        unsafe { both!(a, b, vorrq_u8) }
    }
    #[inline(always)]
    unsafe fn shift_right<const N: i32>(a: Self::B) -> Self::B {
        unsafe { each!(a, |v| vshlq_u8(v, vdupq_n_s8(-(N as i8)))) }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: i32>(a: Self::B) -> Self::B {
        unsafe { each!(a, |v| vshlq_u8(v, vdupq_n_s8(N as i8))) }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, indices: Self::B) -> Self::B {
        unsafe { each!(indices, |i| vqtbl1q_u8(table[0], i)) }
    }

    #[inline(always)]
    unsafe fn dot<const BITS: u32, const N: usize>(
        mut acc: Self::I,
        codes: &[Self::B; N],
        x: *const i8,
    ) -> Self::I {
        unsafe {
            for (n, w) in codes.iter().enumerate() {
                let quad = x.add(4 * n).cast::<i32>().read_unaligned();
                let quad = vreinterpretq_s8_s32(vdupq_n_s32(quad));
                for i in 0..4 {
                    let w = if BITS == 8 { veorq_u8(w[i], vdupq_n_u8(0x80)) } else { w[i] };
                    acc[i] = sdot(acc[i], vreinterpretq_s8_u8(w), quad);
                }
            }
            acc
        }
    }

    /// Two quads of four rows, interleaved, are two 2×8 matrices; two tokens' eight columns
    /// are a third. The 2×2 results of row pairs are put back in order once per block.
    #[inline(always)]
    unsafe fn dot_pair<const BITS: u32>(
        acc: [Self::I; 2],
        codes: &[Self::B; 8],
        x: [*const i8; 2],
    ) -> (Self::I, Self::I) {
        unsafe {
            if !I8MM {
                return (
                    Self::dot::<BITS, 8>(acc[0], codes, x[0]),
                    Self::dot::<BITS, 8>(acc[1], codes, x[1]),
                );
            }
            let (mut first, mut second) = (acc[0], acc[1]);
            for r in 0..4 {
                let mut low = vdupq_n_s32(0);
                let mut high = vdupq_n_s32(0);
                for n in 0..4 {
                    let tokens = vcombine_s8(vld1_s8(x[0].add(8 * n)), vld1_s8(x[1].add(8 * n)));
                    let mut a = vreinterpretq_s32_u8(codes[2 * n][r]);
                    let mut b = vreinterpretq_s32_u8(codes[2 * n + 1][r]);
                    if BITS == 8 {
                        let sign = vreinterpretq_s32_u8(vdupq_n_u8(0x80));
                        a = veorq_s32(a, sign);
                        b = veorq_s32(b, sign);
                    }
                    low = smmla(low, vreinterpretq_s8_s32(vzip1q_s32(a, b)), tokens);
                    high = smmla(high, vreinterpretq_s8_s32(vzip2q_s32(a, b)), tokens);
                }
                first[r] = vaddq_s32(first[r], vuzp1q_s32(low, high));
                second[r] = vaddq_s32(second[r], vuzp2q_s32(low, high));
            }
            (first, second)
        }
    }
}
