//! The tile kernel for processors with 8-bit matrix units (Intel AMX, from Sapphire Rapids).
//!
//! A tile's codes are what the unit wants of its second operand as they lie: four columns of
//! sixteen rows to a vector (Intel Architecture Instruction Set Extensions Programming Reference,
//! chapter 3, "TDPBSSD"). The first operand is a panel of sixteen tokens. One instruction
//! multiplies a block of 32 columns (16, where groups are that small) of sixteen rows by sixteen
//! tokens; what is left to vectors is applying the scales: three instructions per token and block,
//! where the vector kernel takes eight more for the products.
//!
//! Codes are unpacked once per tile and call, as signed bytes with the offset taken off, so that no
//! sums of activations are needed but for minimums.
//!
//! Fewer than sixteen tokens, and the rest of a prompt, go the vector kernel's way. Both compute the
//! same integers and scale them in the same order, so a token's result does not depend on how
//! many others are with it.

#![allow(clippy::undocumented_unsafe_blocks, reason = "each function forwards its contract")]

use std::arch::asm;
use std::mem::MaybeUninit;

use marlin_formats::tile::TILE_K;

use super::tile::{self, Codes, TileCall, expand_header, load_values, table_offset, unpack};
use crate::kernels::quantise::PANEL;
use crate::simd::avx512::Avx512;
use crate::simd::{LANES, Simd};

type S = Avx512;

/// `XFEATURE_XTILEDATA`, which Linux wants a process to ask for.
#[cfg(target_os = "linux")]
const TILE_DATA: libc::c_long = 18;

/// Whether the processor has the unit and the system lets us use it.
pub(crate) fn is_available() -> bool {
    use std::arch::x86_64::__cpuid_count;
    // CPUID.(EAX=7, ECX=0):EDX: bit 24 AMX-TILE, bit 25 AMX-INT8.
    if __cpuid_count(0, 0).eax < 7 || __cpuid_count(7, 0).edx >> 24 & 3 != 3 {
        return false;
    }
    permitted()
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    /// `ARCH_REQ_XCOMP_PERM` (Linux, Documentation/arch/x86/xstate.rst).
    const REQUEST: libc::c_long = 0x1023;
    static ALLOWED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    // SAFETY: the call takes two integers and changes nothing but what the process may use; a
    // system that does not know it says so.
    *ALLOWED.get_or_init(|| unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 })
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Shapes of the tile registers: palette 1 of the reference above.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Registers 0 and 1 hold sums, 2 and 3 sixteen tokens, 4 and 5 weights, for products of
    /// `cols` columns.
    const fn new(cols: u16) -> Self {
        let mut bytes_per_row = [0; 16];
        let mut rows = [0; 16];
        let mut i = 0;
        while i < 2 {
            (bytes_per_row[i], rows[i]) = (64, 16);
            (bytes_per_row[2 + i], rows[2 + i]) = (cols, 16);
            (bytes_per_row[4 + i], rows[4 + i]) = (64, (cols / 4) as u8);
            i += 1;
        }
        Self { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row, rows }
    }
}

static WHOLE: Shapes = Shapes::new(32);
static HALVES: Shapes = Shapes::new(16);

/// Sixteen tokens' sums with sixteen rows, once a product has stored them. (To write zeros first takes
/// a twentieth of a prompt's time.)
#[repr(C, align(64))]
struct Sums(MaybeUninit<[i32; PANEL * LANES]>);

impl Sums {
    const NONE: Self = Self(MaybeUninit::uninit());
}

/// Two products at once, so that one is computed while the other's sums are stored.
///
/// # Safety
/// The registers must be configured; `x` must be readable for sixteen rows of `cols` bytes, 32
/// apart, `w` for `cols / 4` vectors.
#[inline(always)]
unsafe fn products(x: [*const i8; 2], w: [*const i8; 2], sums: &mut [Sums; 2]) {
    unsafe {
        asm!(
            "tilezero tmm0",
            "tileloadd tmm4, [{w0} + {vector}*1]",
            "tileloadd tmm2, [{x0} + {row}*1]",
            "tdpbssd tmm0, tmm2, tmm4",
            "tilezero tmm1",
            "tileloadd tmm5, [{w1} + {vector}*1]",
            "tileloadd tmm3, [{x1} + {row}*1]",
            "tdpbssd tmm1, tmm3, tmm5",
            "tilestored [{s0} + {vector}*1], tmm0",
            "tilestored [{s1} + {vector}*1], tmm1",
            x0 = in(reg) x[0],
            x1 = in(reg) x[1],
            w0 = in(reg) w[0],
            w1 = in(reg) w[1],
            s0 = in(reg) sums[0].0.as_mut_ptr(),
            s1 = in(reg) sums[1].0.as_mut_ptr(),
            row = in(reg) TILE_K,
            vector = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
    }
}

/// Multiplies the tiles with all tokens of the call; see [`tile::tile`].
///
/// # Safety
/// The processor must have AMX and AVX-512; all pointers must be valid for what their fields say,
/// and `unpacked` for sixteen rows of the layout's padded columns.
#[inline(always)]
pub(crate) unsafe fn tile<C: Codes, const HALF_BLOCKS: bool, const MIN: bool>(call: &TileCall<'_>) {
    unsafe {
        let panels = if call.x.lanes == PANEL { call.tokens / PANEL } else { 0 };
        if panels == 0 {
            return tile::tile::<S, C, HALF_BLOCKS, MIN>(call);
        }
        let shapes = if HALF_BLOCKS { &HALVES } else { &WHOLE };
        asm!("ldtilecfg [{0}]", in(reg) shapes, options(nostack, preserves_flags, readonly));
        let mut one = *call;
        one.tiles = 1;
        for _ in 0..call.tiles {
            expand_header::<S>(one.layout, one.tile, one.scratch);
            unpack_signed::<C>(&one);
            for panel in 0..panels {
                multiply::<HALF_BLOCKS, MIN>(&one, panel);
            }
            if panels * PANEL < one.tokens {
                tile::rest::<S, C, HALF_BLOCKS, MIN>(&one, panels * PANEL);
            }
            one.step();
        }
        // Without this the system would save eight KiB more at every change of threads.
        asm!("tilerelease", options(nostack, preserves_flags, nomem));
    }
}

/// A tile's codes as signed bytes, `[blocks][8][64]`.
#[inline(always)]
unsafe fn unpack_signed<C: Codes>(call: &TileCall<'_>) {
    use std::arch::x86_64::{_mm512_set1_epi8, _mm512_storeu_si512, _mm512_sub_epi8};
    unsafe {
        let layout = call.layout;
        let table = load_values::<S, C>(layout);
        let offset = layout.table.map_or(layout.offset, table_offset);
        let offset = _mm512_set1_epi8(offset as i8);
        let codes = call.tile.add(layout.header_bytes());
        for b in 0..layout.blocks() {
            let w = unpack::<S, C>(codes.add(b * C::BITS as usize * 64), table);
            for (n, &w) in w.iter().enumerate() {
                // Eight bits wrap around to the same signed number.
                let to = call.unpacked.add((b * 8 + n) * 64);
                _mm512_storeu_si512(to.cast(), _mm512_sub_epi8(w, offset));
            }
        }
    }
}

/// One panel of sixteen tokens with the tile that was unpacked.
///
/// The products of the next turn are under way while this one's are scaled: a product takes some
/// hundred cycles from its operands to the sums in memory.
#[inline(always)]
unsafe fn multiply<const HALF_BLOCKS: bool, const MIN: bool>(call: &TileCall<'_>, panel: usize) {
    unsafe {
        let layout = call.layout;
        let (blocks, groups) = (layout.blocks(), layout.groups());
        let per_block = if HALF_BLOCKS { 2 * PANEL } else { PANEL };
        let per_group = if HALF_BLOCKS { 1 } else { layout.group / TILE_K };
        let codes = call.x.codes.add(panel * blocks * PANEL * TILE_K);
        let x_scales = call.x.scales.add(panel * blocks * PANEL);
        let x_sums = call.x.sums.add(panel * blocks * per_block);
        // Two products a turn: two blocks, or the halves of one.
        let step = if HALF_BLOCKS { 1 } else { 2 };
        let mut sums = [const { [Sums::NONE; 2] }; 2];
        let mut acc = [S::splat(0.0); PANEL];
        turn::<HALF_BLOCKS>(codes, call.unpacked, 0, blocks, &mut sums[0]);
        let (mut b, mut current) = (0, 0);
        while b < blocks {
            let next = (b + step).min(blocks - 1);
            turn::<HALF_BLOCKS>(codes, call.unpacked, next, blocks, &mut sums[1 - current]);
            let sums = &sums[current];
            if HALF_BLOCKS {
                let scales = call.scratch.add(2 * b * LANES);
                let scale = [S::load(scales), S::load(scales.add(LANES))];
                let mins = scales.add(groups * LANES);
                for (t, acc) in acc.iter_mut().enumerate() {
                    let d = S::splat(*x_scales.add(b * PANEL + t));
                    let sum = S::mul(load_ints(&sums[0], t), scale[0]);
                    let sum = S::fma(load_ints(&sums[1], t), scale[1], sum);
                    *acc = S::fma(sum, d, *acc);
                    if MIN {
                        let at = x_sums.add(b * per_block + t);
                        *acc = S::fma(S::load(mins), S::splat(*at), *acc);
                        *acc = S::fma(S::load(mins.add(LANES)), S::splat(*at.add(PANEL)), *acc);
                    }
                }
            } else {
                for (i, sums) in sums.iter().enumerate().take(blocks - b) {
                    let b = b + i;
                    let scales = call.scratch.add(b / per_group * LANES);
                    let (scale, mins) = (S::load(scales), scales.add(groups * LANES));
                    for (t, acc) in acc.iter_mut().enumerate() {
                        let d = S::splat(*x_scales.add(b * PANEL + t));
                        *acc = S::fma(load_ints(sums, t), S::mul(scale, d), *acc);
                        if MIN {
                            let sum = S::splat(*x_sums.add(b * per_block + t));
                            *acc = S::fma(S::load(mins), sum, *acc);
                        }
                    }
                }
            }
            b += step;
            current = 1 - current;
        }
        tile::finish::<S, PANEL>(call, panel * PANEL, &acc);
    }
}

/// The products of block `b` and the next, or of the halves of block `b`.
#[inline(always)]
unsafe fn turn<const HALF_BLOCKS: bool>(
    codes: *const i8,
    unpacked: *const i8,
    b: usize,
    blocks: usize,
    sums: &mut [Sums; 2],
) {
    const X: usize = PANEL * TILE_K;
    const W: usize = LANES * TILE_K;
    unsafe {
        let (x, w) = (codes.add(b * X), unpacked.add(b * W));
        if HALF_BLOCKS {
            products([x, x.add(TILE_K / 2)], [w, w.add(W / 2)], sums);
        } else {
            let second = (b + 1).min(blocks - 1);
            products([x, codes.add(second * X)], [w, unpacked.add(second * W)], sums);
        }
    }
}

/// A token's sums with sixteen rows, which must have been stored.
#[inline(always)]
unsafe fn load_ints(sums: &Sums, token: usize) -> <S as Simd>::F {
    use std::arch::x86_64::{_mm512_cvtepi32_ps, _mm512_load_si512};
    unsafe {
        let sums = sums.0.as_ptr().cast::<i32>().add(token * LANES);
        _mm512_cvtepi32_ps(_mm512_load_si512(sums.cast()))
    }
}

/// Multiply-adds of the matrix unit at its best: 64 columns an instruction, operands in registers.
/// Returns how many were done.
///
/// # Safety
/// The processor must have AMX.
pub(crate) unsafe fn ceiling(rounds: u64) -> u64 {
    static SHAPES: Shapes = Shapes::new(64);
    unsafe {
        asm!("ldtilecfg [{0}]", in(reg) &SHAPES, options(nostack, preserves_flags, readonly));
        for _ in 0..rounds {
            asm!(
                "tdpbssd tmm0, tmm2, tmm4",
                "tdpbssd tmm1, tmm3, tmm5",
                "tdpbssd tmm0, tmm2, tmm5",
                "tdpbssd tmm1, tmm3, tmm4",
                options(nostack, preserves_flags, nomem),
            );
        }
        asm!("tilerelease", options(nostack, preserves_flags, nomem));
        rounds * 4 * (PANEL * LANES * 64) as u64
    }
}
