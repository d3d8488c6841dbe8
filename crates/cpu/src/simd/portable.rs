//! Plain Rust: runs anywhere, and says what the other implementations must do.

use half::{bf16, f16};

use super::{LANES, Simd};

/// Arrays; the compiler vectorises what it can.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map(a: [f32; LANES], f: impl Fn(f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
unsafe fn read<T: Copy, const N: usize>(p: *const T) -> [T; N] {
    // SAFETY: the caller vouches for N readable elements; unaligned on purpose.
    unsafe { p.cast::<[T; N]>().read_unaligned() }
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 64];

    const TILE_TOKENS: usize = 4;
    const SIGNED_8BIT: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller vouches for 16 floats.
        unsafe { read(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: the caller vouches for 16 floats.
        unsafe { p.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        map(a, f32::abs)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Without the instruction `mul_add` is a library call, so this rounds twice.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        let half: [f32; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
        let quarter: [f32; 4] = std::array::from_fn(|i| half[i] + half[i + 4]);
        (quarter[0] + quarter[2]) + (quarter[1] + quarter[3])
    }
    #[inline(always)]
    unsafe fn max_lane(x: Self::F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
    #[inline(always)]
    unsafe fn any_greater(a: Self::F, b: Self::F) -> bool {
        a.iter().zip(&b).any(|(a, b)| a > b)
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        map(x, f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn exp2_integral(n: Self::F) -> Self::F {
        map(n, |n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the caller vouches for 16 halves.
        let bits: [u16; LANES] = unsafe { read(p) };
        bits.map(|b| f16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        let bits = x.map(|v| f16::from_f32(v).to_bits());
        // SAFETY: the caller vouches for 16 halves.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the caller vouches for 16 bfloat16s.
        let bits: [u16; LANES] = unsafe { read(p) };
        bits.map(|b| bf16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        // SAFETY: the caller vouches for 16 bytes.
        let v: [i8; LANES] = unsafe { read(p) };
        v.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        // SAFETY: the caller vouches for 16 bytes.
        let v: [u8; LANES] = unsafe { read(p) };
        v.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> Self::F {
        // SAFETY: the caller vouches for 16 bytes.
        let v: [u8; LANES] = unsafe { read(p) };
        // Exponent 0 is 2^-127, a subnormal of f32.
        v.map(|e| f32::from_bits(if e == 0 { 1 << 22 } else { u32::from(e) << 23 }))
    }
    #[inline(always)]
    unsafe fn load_e4m3_scaled(p: *const u8) -> Self::F {
        // SAFETY: the caller vouches for 16 bytes.
        let v: [u8; LANES] = unsafe { read(p) };
        v.map(|b| {
            let bits = (u16::from(b & 0x80) << 8) | (u16::from(b & 0x7f) << 7);
            if b & 0x7f == 0x7f { f32::NAN } else { f16::from_bits(bits).to_f32() }
        })
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        let v = x.map(|v| v.round_ties_even().clamp(-128.0, 127.0) as i8);
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn int_splat(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn int_to_float(x: Self::I) -> Self::F {
        x.map(|v| v as f32)
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { read(p) }
    }
    #[inline(always)]
    unsafe fn load_table(p: *const u8) -> Self::B {
        // SAFETY: the caller vouches for 16 bytes.
        let table: [u8; 16] = unsafe { read(p) };
        std::array::from_fn(|i| table[i % 16])
    }
    #[inline(always)]
    unsafe fn splat_byte(x: u8) -> Self::B {
        [x; 64]
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn shift_right<const N: i32>(a: Self::B) -> Self::B {
        a.map(|b| b >> N)
    }
    #[inline(always)]
    unsafe fn shift_left<const N: i32>(a: Self::B) -> Self::B {
        a.map(|b| b << N)
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, indices: Self::B) -> Self::B {
        indices.map(|i| table[usize::from(i & 15)])
    }

    #[inline(always)]
    unsafe fn dot<const BITS: u32, const N: usize>(
        mut acc: Self::I,
        codes: &[Self::B; N],
        x: *const i8,
    ) -> Self::I {
        for (n, w) in codes.iter().enumerate() {
            // SAFETY: the caller vouches for 4·N bytes.
            let quad: [i8; 4] = unsafe { read(x.add(4 * n)) };
            for (r, a) in acc.iter_mut().enumerate() {
                for j in 0..4 {
                    *a += i32::from(w[4 * r + j]) * i32::from(quad[j]);
                }
            }
        }
        acc
    }
}
