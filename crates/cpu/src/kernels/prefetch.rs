//! Asking for weights before they are multiplied.
//!
//! What is best differs between processors. Zen 4's own prefetching keeps memory busy, and every instruction
//! that misses disturbs it. Intel's cores from Sapphire Rapids on fetch some 8 GB/s each by themselves,
//! and twice that when asked (`docs/performance.md`).

/// How far ahead of its use weights are asked for on this processor, in bytes; 0 for not at all.
pub(crate) fn distance() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        let vendor = std::arch::x86_64::__cpuid(0);
        if (vendor.ebx, vendor.edx, vendor.ecx) == (name(b"Genu"), name(b"ineI"), name(b"ntel")) {
            return 16 << 10;
        }
    }
    0
}

#[cfg(target_arch = "x86_64")]
const fn name(letters: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*letters)
}

/// What a stream of weights asks for as it goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    /// How far ahead, in bytes; 0 for nothing at all.
    pub(crate) distance: usize,
    /// Where the stream ends.
    pub(crate) end: *const u8,
    /// What its reader reads after that.
    pub(crate) next: *const u8,
}

impl Ahead {
    /// Asks for nothing.
    pub(crate) const NOTHING: Self =
        Self { distance: 0, end: std::ptr::null(), next: std::ptr::null() };

    /// Of a stream that ends at `end`, whose reader goes on at `next`; where one of them is null, of one without an end.
    pub(crate) fn new(distance: usize, end: *const u8, next: *const u8) -> Self {
        if end.is_null() || next.is_null() {
            Self { distance, ..Self::NOTHING }
        } else {
            Self { distance, end, next }
        }
    }

    /// Asks for what is needed when the reader, who is at `p`, has read `distance` bytes more.
    #[inline(always)]
    pub(crate) fn fetch(&self, p: *const u8, lines: usize) {
        if self.distance == 0 {
            return;
        }
        let mut p = p.wrapping_add(self.distance);
        if p >= self.end {
            p = self.next.wrapping_add(p.addr().wrapping_sub(self.end.addr()));
        }
        for line in 0..lines {
            prefetch_far(p.wrapping_add(64 * line));
        }
    }
}

/// Asks for the cache line at `p`, which may lie outside any allocation, to come into the
/// second-level cache.
#[inline(always)]
pub(crate) fn prefetch_far(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, and SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) p, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}
