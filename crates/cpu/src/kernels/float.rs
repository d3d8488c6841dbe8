//! Products of floating-point weights, as they lie in the file, with f32 activations.
//!
//! Rows are read in place, sixteen columns at a time, and kept as sixteen partial sums that
//! are added once at the end of a row. Four rows go together: four streams from memory, and
//! each activation vector is loaded once for four rows.

use crate::simd::{LANES, Simd};

/// How one weight is stored.
pub(crate) trait Element {
    /// Bytes of an element.
    const BYTES: usize;

    /// Reads 16 elements.
    ///
    /// # Safety
    /// The instruction set of `S` must be there and `p` readable for 16 elements.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

macro_rules! element {
    ($($(#[$doc:meta])* $name:ident: $bytes:literal, $p:ident => $load:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;
        impl Element for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn load<S: Simd>($p: *const u8) -> S::F {
                // SAFETY: forwarded from the caller.
                unsafe { $load }
            }
        }
    )*};
}

element! {
    /// binary32.
    F32: 4, p => S::load(p.cast());
    /// binary16.
    F16: 2, p => S::load_f16(p.cast());
    /// bfloat16.
    Bf16: 2, p => S::load_bf16(p.cast());
    /// E4M3.
    E4m3: 1, p => S::mul(S::load_e4m3_scaled(p), S::splat(256.0));
}

/// Scales of a float matrix: one per rectangle of `group_rows × group_cols`.
#[derive(Clone, Copy)]
pub(crate) struct FloatScales {
    /// `[ceil(rows / group_rows)][ceil(cols / group_cols)]`.
    pub(crate) scales: *const f32,
    /// Rows that share a scale.
    pub(crate) group_rows: usize,
    /// Columns that share a scale; a multiple of 16 unless it is the whole row.
    pub(crate) group_cols: usize,
}

/// One call: up to 16 rows for some tokens.
#[derive(Clone, Copy)]
pub(crate) struct FloatCall {
    /// The whole matrix, row after row.
    pub(crate) weights: *const u8,
    /// Columns.
    pub(crate) cols: usize,
    /// First row of the call.
    pub(crate) row: usize,
    /// Rows of the call, at most 16.
    pub(crate) rows: usize,
    /// Scales, for FP8.
    pub(crate) scales: Option<FloatScales>,
    /// `[tokens][cols]` activations.
    pub(crate) x: *const f32,
    /// Elements from one token to the next.
    pub(crate) x_stride: usize,
    /// Rows of `x`.
    pub(crate) tokens: usize,
    /// `[tokens][16]`: the products; rows past `rows` are left alone.
    pub(crate) out: *mut f32,
}

/// Multiplies the rows of the call with all its tokens.
///
/// # Safety
/// The instruction set of `S` must be there; all pointers must be valid for what their
/// fields say.
#[inline(always)]
pub(crate) unsafe fn rows<S: Simd, E: Element>(call: &FloatCall) {
    let mut r = 0;
    while r < call.rows {
        // SAFETY: forwarded from the caller.
        unsafe {
            if call.rows - r >= 4 {
                all_tokens::<S, E, 4>(call, r);
                r += 4;
            } else {
                all_tokens::<S, E, 1>(call, r);
                r += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn all_tokens<S: Simd, E: Element, const R: usize>(call: &FloatCall, r: usize) {
    let mut t = 0;
    while t < call.tokens {
        // SAFETY: forwarded from the caller.
        unsafe {
            if call.tokens - t >= 4 {
                block::<S, E, R, 4>(call, r, t);
                t += 4;
            } else {
                block::<S, E, R, 1>(call, r, t);
                t += 1;
            }
        }
    }
}

/// Rows `r .. r + R` of the call with tokens `t .. t + T`.
#[inline(always)]
unsafe fn block<S: Simd, E: Element, const R: usize, const T: usize>(
    call: &FloatCall,
    r: usize,
    t: usize,
) {
    // SAFETY: rows and tokens are those of the call; columns past a multiple of 16 are read
    // from zero-padded copies.
    unsafe {
        let mut total = [[S::splat(0.0); T]; R];
        let segment = call.scales.map_or(call.cols, |s| s.group_cols.min(call.cols).max(1));
        let segments = call.cols.div_ceil(segment);
        for s in 0..segments {
            let (start, end) = (s * segment, call.cols.min((s + 1) * segment));
            let mut acc = [[S::splat(0.0); T]; R];
            let mut k = start;
            while k + LANES <= end {
                let mut x = [S::splat(0.0); T];
                for (j, x) in x.iter_mut().enumerate() {
                    *x = S::load(call.x.add((t + j) * call.x_stride + k));
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let w = E::load::<S>(weight::<E>(call, r + i, k));
                    for (acc, &x) in acc.iter_mut().zip(&x) {
                        *acc = S::fma(w, x, *acc);
                    }
                }
                k += LANES;
            }
            if k < end {
                let rest = end - k;
                let mut x = [S::splat(0.0); T];
                for (j, x) in x.iter_mut().enumerate() {
                    let mut tail = [0.0f32; LANES];
                    let from = call.x.add((t + j) * call.x_stride + k);
                    std::ptr::copy_nonoverlapping(from, tail.as_mut_ptr(), rest);
                    *x = S::load(tail.as_ptr());
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let mut tail = [0u8; 4 * LANES];
                    let from = weight::<E>(call, r + i, k);
                    std::ptr::copy_nonoverlapping(from, tail.as_mut_ptr(), rest * E::BYTES);
                    let w = E::load::<S>(tail.as_ptr());
                    for (acc, &x) in acc.iter_mut().zip(&x) {
                        *acc = S::fma(w, x, *acc);
                    }
                }
            }
            for i in 0..R {
                let scale = match &call.scales {
                    Some(f) => {
                        let grid_cols = call.cols.div_ceil(f.group_cols.max(1));
                        *f.scales.add((call.row + r + i) / f.group_rows * grid_cols + s)
                    }
                    None => 1.0,
                };
                for j in 0..T {
                    total[i][j] = S::fma(acc[i][j], S::splat(scale), total[i][j]);
                }
            }
        }
        for (i, total) in total.iter().enumerate() {
            for (j, &sum) in total.iter().enumerate() {
                *call.out.add((t + j) * LANES + r + i) = S::sum(sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn weight<E: Element>(call: &FloatCall, r: usize, k: usize) -> *const u8 {
    // SAFETY: the caller stays within the matrix.
    unsafe { call.weights.add(((call.row + r) * call.cols + k) * E::BYTES) }
}
