//! What the processor can do at most: the denominators of the percentages we print.

use crate::kernels::prefetch::prefetch_far;
use crate::simd::Simd;

/// Reads `bytes` (a multiple of 1 KiB) and returns something that depends on all of them. How far
/// ahead it pays to ask, if at all (0), depends on the processor's own prefetching.
///
/// # Safety
/// The instruction set of `S` must be there and `p` readable for `bytes`.
#[inline(always)]
pub(crate) unsafe fn read<S: Simd>(p: *const u8, bytes: usize, ahead: usize) -> u64 {
    // SAFETY: all reads stay below `bytes`.
    unsafe {
        let mut acc = [S::splat_byte(0); 4];
        let mut at = 0;
        while at + 1024 <= bytes {
            if ahead != 0 {
                for i in 0..16 {
                    prefetch_far(p.wrapping_add(at + ahead + 64 * i));
                }
            }
            for i in 0..16 {
                acc[i % 4] = S::or(acc[i % 4], S::load_bytes(p.add(at + 64 * i)));
            }
            at += 1024;
        }
        let folded = S::or(S::or(acc[0], acc[1]), S::or(acc[2], acc[3]));
        let sum = S::dot::<6, 1>(
            S::int_splat(0),
            &[S::and(folded, S::splat_byte(63))],
            [1i8; 4].as_ptr(),
        );
        S::sum(S::int_to_float(sum)).to_bits().into()
    }
}

/// Multiply-adds of 4-bit codes with 8-bit activations, all in registers but for the
/// activations in L1, as in the matrix kernel's inner loop. Returns how many were done.
///
/// # Safety
/// The instruction set of `S` must be there.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd>(rounds: u64) -> u64 {
    // Two units with a latency of five cycles want ten.
    const CHAINS: usize = 12;
    // SAFETY: reads stay within `x`.
    unsafe {
        let x = [1i8; 32];
        let x = std::hint::black_box(&x);
        let w = [std::hint::black_box(S::splat_byte(1)); 8];
        let mut acc = [S::int_splat(0); CHAINS];
        for _ in 0..rounds {
            for acc in &mut acc {
                // Anew for each: otherwise the products, which AVX2 makes apart from the sums,
                // would be made once for all chains.
                let x = std::hint::black_box(x).as_ptr();
                *acc = S::dot::<4, 8>(*acc, &w, x);
            }
        }
        for acc in acc {
            std::hint::black_box(acc);
        }
        // 16 rows × 32 columns per dot.
        rounds * CHAINS as u64 * 16 * 32
    }
}
