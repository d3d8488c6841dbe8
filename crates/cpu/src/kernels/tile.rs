//! Products of quantised weights in tiles (`formats::tile`) with quantised activations.
//!
//! One call computes neighbouring tiles, 16 rows each, for some tokens. The codes of a block of
//! 32 columns are unpacked once into eight registers and multiplied with every token of the
//! register tile; each instruction multiplies four columns of sixteen rows by the same four
//! activations, so sums stay one per lane and nothing is added across lanes. Scales are
//! converted to f32 once per tile and call, into `scratch`, so that the inner loop is the
//! same for every scale format.

use marlin_formats::tile::{TILE_K, TILE_ROWS, TileLayout, TileMin, TileScale};

use super::prefetch::Ahead;
use crate::simd::{LANES, Simd};

/// A code width, with or without a table of values.
pub(crate) trait Codes {
    /// Bits of a stored code.
    const BITS: u32;
    /// Bits of the numbers that are multiplied.
    const DOT_BITS: u32;
    /// Whether codes are looked up in a table.
    const TABLE: bool;
}

macro_rules! codes {
    ($($name:ident: $bits:literal, $dot:literal, $table:literal;)*) => {$(
        /// See [`Codes`].
        pub(crate) struct $name;
        impl Codes for $name {
            const BITS: u32 = $bits;
            const DOT_BITS: u32 = $dot;
            const TABLE: bool = $table;
        }
    )*};
}

codes! {
    Bits2: 2, 2, false;
    Bits3: 3, 3, false;
    Bits4: 4, 4, false;
    Bits5: 5, 5, false;
    Bits6: 6, 6, false;
    Bits8: 8, 8, false;
    // Twice E2M1's values plus 12: 0…24.
    Table4: 4, 5, true;
}

/// Quantised activations in panels of `lanes` rows (see `quantise`), from a panel's start.
#[derive(Clone, Copy)]
pub(crate) struct Activations {
    /// Rows of a panel: 1, or 16.
    pub(crate) lanes: usize,
    /// `[panels][blocks][lanes][32]` codes.
    pub(crate) codes: *const i8,
    /// `[panels][blocks][lanes]` scales.
    pub(crate) scales: *const f32,
    /// `[panels][blocks][lanes]`, or for groups of 16 `[panels][2 · blocks][lanes]`:
    /// scale × sum of codes.
    pub(crate) sums: *const f32,
    /// As `sums`: minus the weights' offset times the sum of codes. Only read where
    /// [`has_bias`] says so.
    pub(crate) biases: *const i32,
    /// Elements from one panel's biases to the next's.
    pub(crate) bias_stride: usize,
}

/// Whether a kernel starts its sums at the activations' biases. Codes with a minimum have no
/// offset (`TileLayout` sees to it), except those of 8 bits, unless they are taken as signed.
pub(crate) const fn has_bias(bits: u32, min: bool, signed_8bit: bool) -> bool {
    if bits == 8 { !signed_8bit } else { !min }
}

/// One call of a tile kernel.
#[derive(Clone, Copy)]
pub(crate) struct TileCall<'a> {
    /// How the tile lies.
    pub(crate) layout: &'a TileLayout,
    /// The first tile; the others follow it.
    pub(crate) tile: *const u8,
    /// How many there are.
    pub(crate) tiles: usize,
    /// What they are multiplied with; `tokens` rows.
    pub(crate) x: Activations,
    /// Rows of `x`.
    pub(crate) tokens: usize,
    /// Room for `2 · groups · 16` floats: scales and minimums.
    pub(crate) scratch: *mut f32,
    /// Room for a tile's codes as bytes, where there is a matrix unit; otherwise unused.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no matrix unit is known"))]
    pub(crate) unpacked: *mut i8,
    /// `[tokens][tiles · 16]`: the products.
    pub(crate) out: *mut f32,
    /// Floats from one token's products to the next's.
    pub(crate) out_stride: usize,
    /// Whether the products are added to what is there.
    pub(crate) accumulate: bool,
    /// `[tiles · 16]` added to every token's products; null for none.
    pub(crate) bias: *const f32,
    /// What is asked for meanwhile, where there are fewer tokens than a panel has.
    pub(crate) ahead: Ahead,
}

impl TileCall<'_> {
    /// On to the next tile.
    #[inline(always)]
    pub(super) fn step(&mut self) {
        self.tile = self.tile.wrapping_add(self.layout.tile_bytes());
        self.out = self.out.wrapping_add(LANES);
        if !self.bias.is_null() {
            self.bias = self.bias.wrapping_add(LANES);
        }
    }
}

/// Multiplies the tiles with all tokens of the call.
///
/// # Safety
/// The instruction set of `S` must be there; all pointers must be valid for what their
/// fields say.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, C: Codes, const HALVES: bool, const MIN: bool>(
    call: &TileCall<'_>,
) {
    let mut one = *call;
    for _ in 0..call.tiles {
        // SAFETY: forwarded from the caller.
        unsafe {
            one.ahead.fetch(one.tile, one.layout.header_bytes() / 64);
            expand_header::<S>(one.layout, one.tile, one.scratch);
            rest::<S, C, HALVES, MIN>(&one, 0);
        }
        one.step();
    }
}

/// Multiplies the first tile, whose header is expanded, with tokens `t` and up.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
pub(super) unsafe fn rest<S: Simd, C: Codes, const HALVES: bool, const MIN: bool>(
    call: &TileCall<'_>,
    mut t: usize,
) {
    while t < call.tokens {
        // Tokens that go together must be in one panel.
        let rest = (call.tokens - t).min(call.x.lanes - t % call.x.lanes);
        // SAFETY: forwarded from the caller.
        unsafe {
            t += if S::TILE_TOKENS >= 16 && rest >= 16 {
                tokens::<S, C, HALVES, MIN, 16>(call, t)
            } else if rest >= 4 {
                tokens::<S, C, HALVES, MIN, 4>(call, t)
            } else {
                tokens::<S, C, HALVES, MIN, 1>(call, t)
            };
        }
    }
}

/// Writes the tile's scales, then its minimums, as `[groups][16]` f32 to `scratch`.
#[inline(always)]
pub(super) unsafe fn expand_header<S: Simd>(
    layout: &TileLayout,
    header: *const u8,
    scratch: *mut f32,
) {
    let groups = layout.groups();
    // SAFETY: the header has the size that the layout says, and the caller vouches for
    // room for 2 · groups · 16 floats.
    unsafe {
        let mins = scratch.add(groups * LANES);
        if layout.scale == TileScale::SuperBlock {
            let per_super = 256 / layout.group;
            let has_min = layout.min == TileMin::SuperBlock;
            for s in 0..groups / per_super {
                let block = header.add(s * layout.super_bytes());
                let d = S::load_f16(block.cast());
                let subs = block.add(TILE_ROWS * if has_min { 4 } else { 2 });
                for g in 0..per_super {
                    let sub = S::load_i8(subs.add(g * TILE_ROWS).cast());
                    S::store(scratch.add((s * per_super + g) * LANES), S::mul(d, sub));
                }
                if has_min {
                    let m = S::load_f16(block.add(2 * TILE_ROWS).cast());
                    let m = S::sub(S::splat(0.0), m);
                    for g in 0..per_super {
                        let sub = S::load_u8(subs.add((per_super + g) * TILE_ROWS));
                        S::store(mins.add((s * per_super + g) * LANES), S::mul(m, sub));
                    }
                }
            }
            return;
        }
        let step = layout.group_bytes();
        let scale_bytes = match layout.scale {
            TileScale::F16 => {
                for g in 0..groups {
                    S::store(scratch.add(g * LANES), S::load_f16(header.add(g * step).cast()));
                }
                2
            }
            TileScale::F32 => {
                for g in 0..groups {
                    S::store(scratch.add(g * LANES), S::load(header.add(g * step).cast()));
                }
                4
            }
            TileScale::E8M0 => {
                for g in 0..groups {
                    S::store(scratch.add(g * LANES), S::load_e8m0(header.add(g * step)));
                }
                1
            }
            TileScale::E4M3 | TileScale::SuperBlock => {
                for g in 0..groups {
                    let scale = S::load_e4m3_scaled(header.add(g * step));
                    S::store(scratch.add(g * LANES), S::mul(scale, S::splat(256.0)));
                }
                1
            }
        };
        let stored = header.add(scale_bytes * TILE_ROWS);
        match layout.min {
            TileMin::F16 => {
                for g in 0..groups {
                    S::store(mins.add(g * LANES), S::load_f16(stored.add(g * step).cast()));
                }
            }
            TileMin::F32 => {
                for g in 0..groups {
                    S::store(mins.add(g * LANES), S::load(stored.add(g * step).cast()));
                }
            }
            TileMin::None | TileMin::SuperBlock => {}
        }
    }
}

/// Unpacks the codes of one block into eight vectors of four columns each.
///
/// (These are functions and not closures: a closure is a function of its own, compiled
/// without the instruction set unless the optimiser happens to inline it.)
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, C: Codes>(p: *const u8, table: S::B) -> [S::B; 8] {
    // SAFETY: the caller vouches for the block's BITS · 64 bytes.
    unsafe {
        match C::BITS {
            2 => low2::<S>(p),
            3 => or8::<S>(low2::<S>(p), high1::<S, 2>(p.add(2 * 64))),
            4 if C::TABLE => {
                let mut codes = low4::<S>(p);
                let mut i = 0;
                while i < 8 {
                    codes[i] = S::lookup(table, codes[i]);
                    i += 1;
                }
                codes
            }
            4 => low4::<S>(p),
            5 => or8::<S>(low4::<S>(p), high1::<S, 4>(p.add(4 * 64))),
            6 => or8::<S>(low4::<S>(p), high2::<S>(p.add(4 * 64))),
            _ => [
                S::load_bytes(p),
                S::load_bytes(p.add(64)),
                S::load_bytes(p.add(2 * 64)),
                S::load_bytes(p.add(3 * 64)),
                S::load_bytes(p.add(4 * 64)),
                S::load_bytes(p.add(5 * 64)),
                S::load_bytes(p.add(6 * 64)),
                S::load_bytes(p.add(7 * 64)),
            ],
        }
    }
}

/// A plane of four bits: two columns' quads per vector.
#[inline(always)]
unsafe fn low4<S: Simd>(p: *const u8) -> [S::B; 8] {
    // SAFETY: the caller vouches for four vectors.
    unsafe {
        let mask = S::splat_byte(15);
        let mut out = [mask; 8];
        let mut i = 0;
        while i < 4 {
            let v = S::load_bytes(p.add(64 * i));
            out[2 * i] = S::and(v, mask);
            out[2 * i + 1] = S::and(S::shift_right::<4>(v), mask);
            i += 1;
        }
        out
    }
}

/// A plane of two bits: four columns' quads per vector.
#[inline(always)]
unsafe fn low2<S: Simd>(p: *const u8) -> [S::B; 8] {
    // SAFETY: the caller vouches for two vectors.
    unsafe {
        let mask = S::splat_byte(3);
        let mut out = [mask; 8];
        let mut i = 0;
        while i < 2 {
            let v = S::load_bytes(p.add(64 * i));
            out[4 * i] = S::and(v, mask);
            out[4 * i + 1] = S::and(S::shift_right::<2>(v), mask);
            out[4 * i + 2] = S::and(S::shift_right::<4>(v), mask);
            out[4 * i + 3] = S::and(S::shift_right::<6>(v), mask);
            i += 1;
        }
        out
    }
}

/// A plane of two bits, moved to bits 4 and 5.
#[inline(always)]
unsafe fn high2<S: Simd>(p: *const u8) -> [S::B; 8] {
    // SAFETY: the caller vouches for two vectors.
    unsafe {
        let mask = S::splat_byte(3 << 4);
        let mut out = [mask; 8];
        let mut i = 0;
        while i < 2 {
            let v = S::load_bytes(p.add(64 * i));
            out[4 * i] = S::and(S::shift_left::<4>(v), mask);
            out[4 * i + 1] = S::and(S::shift_left::<2>(v), mask);
            out[4 * i + 2] = S::and(v, mask);
            out[4 * i + 3] = S::and(S::shift_right::<2>(v), mask);
            i += 1;
        }
        out
    }
}

/// A plane of one bit, moved to bit `TO` (2 or 4).
#[inline(always)]
unsafe fn high1<S: Simd, const TO: u32>(p: *const u8) -> [S::B; 8] {
    // SAFETY: the caller vouches for one vector.
    unsafe {
        let v = S::load_bytes(p);
        let mask = S::splat_byte(1 << TO);
        let shifted = if TO == 4 {
            [
                S::shift_left::<4>(v),
                S::shift_left::<3>(v),
                S::shift_left::<2>(v),
                S::shift_left::<1>(v),
                v,
                S::shift_right::<1>(v),
                S::shift_right::<2>(v),
                S::shift_right::<3>(v),
            ]
        } else {
            [
                S::shift_left::<2>(v),
                S::shift_left::<1>(v),
                v,
                S::shift_right::<1>(v),
                S::shift_right::<2>(v),
                S::shift_right::<3>(v),
                S::shift_right::<4>(v),
                S::shift_right::<5>(v),
            ]
        };
        let mut out = shifted;
        let mut i = 0;
        while i < 8 {
            out[i] = S::and(shifted[i], mask);
            i += 1;
        }
        out
    }
}

#[inline(always)]
unsafe fn or8<S: Simd>(mut a: [S::B; 8], b: [S::B; 8]) -> [S::B; 8] {
    let mut i = 0;
    while i < 8 {
        // SAFETY: forwarded from the caller.
        a[i] = unsafe { S::or(a[i], b[i]) };
        i += 1;
    }
    a
}

/// One block of a panel, from the first token of a register tile on.
struct Block<'a, S: Simd> {
    scales: *const f32,
    sums: *const f32,
    biases: *const i32,
    lanes: usize,
    /// Unpacked weights.
    w: &'a [S::B; 8],
    /// One scale per row, or two for groups of 16.
    scale: [S::F; 2],
    min: [S::F; 2],
}

impl<S: Simd> Block<'_, S> {
    /// `acc` plus the block's products with token `i` of the register tile, whose codes are
    /// the `i`th after `codes`.
    #[inline(always)]
    unsafe fn token<C: Codes, const HALVES: bool, const MIN: bool>(
        &self,
        codes: *const i8,
        i: usize,
        acc: S::F,
    ) -> S::F {
        let bias = const { has_bias(C::DOT_BITS, MIN, S::SIGNED_8BIT) };
        // SAFETY: forwarded from the caller.
        unsafe {
            let quads = codes.add(i * TILE_K);
            let d = S::splat(*self.scales.add(i));
            let mut acc = acc;
            if HALVES {
                let w = self.w;
                let (w0, w1) = ([w[0], w[1], w[2], w[3]], [w[4], w[5], w[6], w[7]]);
                let start0 = if bias { *self.biases.add(i) } else { 0 };
                let start1 = if bias { *self.biases.add(self.lanes + i) } else { 0 };
                let dot0 = dot::<S, C, 4>(start0, &w0, quads);
                let dot1 = dot::<S, C, 4>(start1, &w1, quads.add(16));
                let sum = S::mul(S::int_to_float(dot0), self.scale[0]);
                let sum = S::fma(S::int_to_float(dot1), self.scale[1], sum);
                acc = S::fma(sum, d, acc);
                if MIN {
                    acc = S::fma(self.min[0], S::splat(*self.sums.add(i)), acc);
                    acc = S::fma(self.min[1], S::splat(*self.sums.add(self.lanes + i)), acc);
                }
            } else {
                let start = if bias { *self.biases.add(i) } else { 0 };
                let dot = dot::<S, C, 8>(start, self.w, quads);
                acc = S::fma(S::int_to_float(dot), S::mul(self.scale[0], d), acc);
                if MIN {
                    acc = S::fma(self.min[0], S::splat(*self.sums.add(i)), acc);
                }
            }
            acc
        }
    }

    /// The same for tokens `i` and `i + 1` at once, for groups of 32 and more.
    #[inline(always)]
    unsafe fn pair<C: Codes, const MIN: bool>(
        &self,
        codes: *const i8,
        i: usize,
        acc: [S::F; 2],
    ) -> [S::F; 2] {
        let bias = const { has_bias(C::DOT_BITS, MIN, S::SIGNED_8BIT) };
        let mut acc = acc;
        // SAFETY: forwarded from the caller.
        unsafe {
            let mut start = [S::int_splat(0); 2];
            if bias {
                start = [S::int_splat(*self.biases.add(i)), S::int_splat(*self.biases.add(i + 1))];
            }
            let quads = codes.add(i * TILE_K);
            let quads = [quads, quads.add(TILE_K)];
            let (first, second) = if C::DOT_BITS == 8 {
                S::dot_pair::<8>(start, self.w, quads)
            } else {
                // Below eight bits nothing depends on the width.
                S::dot_pair::<6>(start, self.w, quads)
            };
            let d = [S::splat(*self.scales.add(i)), S::splat(*self.scales.add(i + 1))];
            acc[0] = S::fma(S::int_to_float(first), S::mul(self.scale[0], d[0]), acc[0]);
            acc[1] = S::fma(S::int_to_float(second), S::mul(self.scale[0], d[1]), acc[1]);
            if MIN {
                acc[0] = S::fma(self.min[0], S::splat(*self.sums.add(i)), acc[0]);
                acc[1] = S::fma(self.min[0], S::splat(*self.sums.add(i + 1)), acc[1]);
            }
        }
        acc
    }
}

/// Multiplies the tile with tokens `t .. t + T`, which are in one panel; returns T.
#[inline(always)]
unsafe fn tokens<S: Simd, C: Codes, const HALVES: bool, const MIN: bool, const T: usize>(
    call: &TileCall<'_>,
    t: usize,
) -> usize {
    let layout = call.layout;
    let groups = layout.groups();
    let blocks = layout.blocks();
    let x = &call.x;
    let (panel, lane) = (t / x.lanes, t % x.lanes);
    let per_block = if HALVES { 2 * x.lanes } else { x.lanes };
    // SAFETY: the caller vouches for the tile, the activations of `tokens` rows, the
    // expanded header and the room for the products.
    unsafe {
        let table = load_values::<S, C>(layout);
        let codes = call.tile.add(layout.header_bytes());
        let per_group = if HALVES { 1 } else { layout.group / TILE_K };
        let zero = S::splat(0.0);
        let mut acc = [zero; T];
        let (mut group, mut left) = (0, per_group);
        let mut quads = x.codes.add((panel * blocks * x.lanes + lane) * TILE_K);
        let x_scales = x.scales.add(panel * blocks * x.lanes + lane);
        let x_sums = x.sums.add(panel * blocks * per_block + lane);
        let x_biases = x.biases.wrapping_add(panel * x.bias_stride + lane);
        for b in 0..blocks {
            let p = codes.add(b * C::BITS as usize * 64);
            if T < 16 && t == 0 {
                call.ahead.fetch(p, C::BITS as usize);
            }
            let w = unpack::<S, C>(p, table);
            let scales = call.scratch.add(group * LANES);
            let mins = scales.add(groups * LANES);
            let mut block = Block::<S> {
                scales: x_scales.add(b * x.lanes),
                sums: x_sums.add(b * per_block),
                biases: x_biases.wrapping_add(b * per_block),
                lanes: x.lanes,
                w: &w,
                scale: [S::load(scales), zero],
                min: [zero; 2],
            };
            if HALVES {
                block.scale[1] = S::load(scales.add(LANES));
            }
            if MIN {
                block.min[0] = S::load(mins);
                if HALVES {
                    block.min[1] = S::load(mins.add(LANES));
                }
            }
            // Written out, since the optimiser leaves a loop of this size alone, and sums
            // that are indexed by a variable live in memory.
            macro_rules! unrolled {
                ($($i:literal)*) => {$(
                    if $i < T {
                        if S::PAIRS && !HALVES && T >= 2 {
                            if $i % 2 == 0 {
                                let both = [acc[$i], acc[$i + 1]];
                                let both = block.pair::<C, MIN>(quads, $i, both);
                                acc[$i] = both[0];
                                acc[$i + 1] = both[1];
                            }
                        } else {
                            acc[$i] = block.token::<C, HALVES, MIN>(quads, $i, acc[$i]);
                        }
                        // Four chains of multiply-adds hide their latency.
                        if T == 16 && $i % 4 == 3 {
                            let four = [acc[$i - 3], acc[$i - 2], acc[$i - 1], acc[$i]];
                            let last;
                            (last, quads) = S::settle(four, quads);
                            [acc[$i - 3], acc[$i - 2], acc[$i - 1], acc[$i]] = last;
                        }
                    }
                )*};
            }
            unrolled!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            quads = quads.add(x.lanes * TILE_K);
            left -= 1;
            if left == 0 {
                group += if HALVES { 2 } else { 1 };
                left = per_group;
            }
        }
        finish::<S, T>(call, t, &acc);
    }
    T
}

/// Writes the sums of tokens `t .. t + T`.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
pub(super) unsafe fn finish<S: Simd, const T: usize>(
    call: &TileCall<'_>,
    t: usize,
    acc: &[S::F; T],
) {
    // SAFETY: forwarded from the caller.
    unsafe {
        let factor = S::splat(call.layout.factor);
        let bias = if call.bias.is_null() { S::splat(0.0) } else { S::load(call.bias) };
        for (i, acc) in acc.iter().enumerate() {
            let to = call.out.add((t + i) * call.out_stride);
            let before = if call.accumulate { S::add(S::load(to), bias) } else { bias };
            S::store(to, S::fma(*acc, factor, before));
        }
    }
}

/// The values of a table, made unsigned; nothing where codes are numbers.
///
/// # Safety
/// The instruction set of `S` must be there.
#[inline(always)]
pub(super) unsafe fn load_values<S: Simd, C: Codes>(layout: &TileLayout) -> S::B {
    // SAFETY: forwarded from the caller; the table has 16 bytes.
    unsafe {
        match layout.table {
            Some(table) if C::TABLE => {
                let least = table_offset(table);
                let shifted: [u8; 16] =
                    std::array::from_fn(|i| (i32::from(table[i]) + least) as u8);
                S::load_table(shifted.as_ptr())
            }
            _ => S::splat_byte(0),
        }
    }
}

/// What is added to a table's values to make them unsigned.
pub(crate) fn table_offset(table: &[i8; 16]) -> i32 {
    -i32::from(table.iter().copied().min().unwrap_or(0))
}

#[inline(always)]
unsafe fn dot<S: Simd, C: Codes, const N: usize>(start: i32, w: &[S::B; N], x: *const i8) -> S::I {
    // SAFETY: forwarded from the caller. `DOT_BITS` cannot be a generic argument of a
    // generic type's constant, hence the match; only one arm is compiled in.
    unsafe {
        let acc = S::int_splat(start);
        match C::DOT_BITS {
            2 => S::dot::<2, N>(acc, w, x),
            3 => S::dot::<3, N>(acc, w, x),
            4 => S::dot::<4, N>(acc, w, x),
            5 => S::dot::<5, N>(acc, w, x),
            6 => S::dot::<6, N>(acc, w, x),
            _ => S::dot::<8, N>(acc, w, x),
        }
    }
}
