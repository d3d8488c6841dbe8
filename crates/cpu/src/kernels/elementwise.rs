//! Norms, rotary embedding, activations and reductions over rows of f32.

use crate::simd::{LANES, Simd, exp};

/// `out = x / sqrt(mean(x²) + eps) · (offset + weight)`; `out` may be `x`.
///
/// # Safety
/// The instruction set of `S` must be there; `x` and `weight` must be readable and `out`
/// writable for `n` floats.
#[inline(always)]
pub(crate) unsafe fn rms_norm<S: Simd>(
    x: *const f32,
    weight: *const f32,
    eps: f32,
    offset: f32,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: every access stays below n.
    unsafe {
        let mut squares = [S::splat(0.0); 2];
        let mut i = 0;
        while i + 2 * LANES <= n {
            let (a, b) = (S::load(x.add(i)), S::load(x.add(i + LANES)));
            squares[0] = S::fma(a, a, squares[0]);
            squares[1] = S::fma(b, b, squares[1]);
            i += 2 * LANES;
        }
        while i + LANES <= n {
            let a = S::load(x.add(i));
            squares[0] = S::fma(a, a, squares[0]);
            i += LANES;
        }
        let mut sum = S::sum(S::add(squares[0], squares[1]));
        while i < n {
            sum += *x.add(i) * *x.add(i);
            i += 1;
        }
        let scale = 1.0 / (sum / n as f32 + eps).sqrt();
        let mut i = 0;
        while i + LANES <= n {
            let w = S::add(S::load(weight.add(i)), S::splat(offset));
            let y = S::mul(S::mul(S::load(x.add(i)), S::splat(scale)), w);
            S::store(out.add(i), y);
            i += LANES;
        }
        while i < n {
            *out.add(i) = *x.add(i) * scale * (*weight.add(i) + offset);
            i += 1;
        }
    }
}

/// `out[i] = silu(gate[i]) · up[i]` (or GELU's tanh approximation) for `n` values, a multiple
/// of 16; `out` may be `gate`.
///
/// # Safety
/// The instruction set of `S` must be there; `gate` and `up` must be readable and `out`
/// writable for `n` floats.
#[inline(always)]
pub(crate) unsafe fn gate<S: Simd, const GELU: bool>(
    gate: *const f32,
    up: *const f32,
    out: *mut f32,
    n: usize,
) {
    let mut i = 0;
    while i + LANES <= n {
        // SAFETY: 16 floats each, below n.
        unsafe {
            let (g, u) = (S::load(gate.add(i)), S::load(up.add(i)));
            // gelu(x) = x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³))) = x · sigmoid(2·√(2/π)·(…)).
            let z = if GELU {
                let square = S::mul(g, g);
                let inner = S::fma(square, S::splat(0.044_715), S::splat(1.0));
                S::mul(S::mul(g, inner), S::splat(1.595_769_2))
            } else {
                g
            };
            let denominator = S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), z)));
            S::store(out.add(i), S::mul(S::div(g, denominator), u));
        }
        i += LANES;
    }
}

/// `y[i] = a · x[i] + y[i]`.
///
/// # Safety
/// The instruction set of `S` must be there; both must be valid for `n` floats.
#[inline(always)]
pub(crate) unsafe fn axpy<S: Simd>(a: f32, x: *const f32, y: *mut f32, n: usize) {
    // SAFETY: every access stays below n.
    unsafe {
        let mut i = 0;
        while i + LANES <= n {
            S::store(y.add(i), S::fma(S::splat(a), S::load(x.add(i)), S::load(y.add(i))));
            i += LANES;
        }
        while i < n {
            *y.add(i) += a * *x.add(i);
            i += 1;
        }
    }
}

/// The index of the greatest of `n` values, the first of equals; NaN never wins.
/// Returns 0 if nothing is greater than minus infinity.
///
/// # Safety
/// The instruction set of `S` must be there; `x` must be readable for `n` floats.
#[inline(always)]
pub(crate) unsafe fn arg_max<S: Simd>(x: *const f32, n: usize) -> usize {
    // SAFETY: every access stays below n.
    unsafe {
        let (mut best, mut at) = (f32::NEG_INFINITY, 0);
        let mut i = 0;
        // Blocks whose greatest value does not beat the best so far need no second look.
        while i < n {
            let end = n.min(i + 4 * LANES);
            let beats = if end - i == 4 * LANES {
                let a = S::max(S::load(x.add(i)), S::load(x.add(i + LANES)));
                let b = S::max(S::load(x.add(i + 2 * LANES)), S::load(x.add(i + 3 * LANES)));
                let greatest = S::max_lane(S::max(a, b));
                // A NaN may hide a greater value from a vector maximum: look closer then.
                greatest > best || greatest.is_nan()
            } else {
                true
            };
            if beats {
                for j in i..end {
                    if *x.add(j) > best {
                        (best, at) = (*x.add(j), j);
                    }
                }
            }
            i = end;
        }
        at
    }
}

/// The greatest of `n` values; minus infinity if there is none.
///
/// # Safety
/// The instruction set of `S` must be there; `x` must be readable for `n` floats.
#[inline(always)]
pub(crate) unsafe fn max<S: Simd>(x: *const f32, n: usize) -> f32 {
    // SAFETY: every access stays below n.
    unsafe {
        let mut m = S::splat(f32::NEG_INFINITY);
        let mut i = 0;
        while i + LANES <= n {
            m = S::max(m, S::load(x.add(i)));
            i += LANES;
        }
        let mut m = S::max_lane(m);
        while i < n {
            m = m.max(*x.add(i));
            i += 1;
        }
        m
    }
}

/// `Σ exp((x[i] - max) · scale)`.
///
/// # Safety
/// The instruction set of `S` must be there; `x` must be readable for `n` floats.
#[inline(always)]
pub(crate) unsafe fn sum_exp<S: Simd>(x: *const f32, n: usize, max: f32, scale: f32) -> f32 {
    // SAFETY: every access stays below n.
    unsafe {
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i + LANES <= n {
            let z = S::mul(S::sub(S::load(x.add(i)), S::splat(max)), S::splat(scale));
            sum = S::add(sum, exp::<S>(z));
            i += LANES;
        }
        let mut sum = S::sum(sum);
        while i < n {
            sum += ((*x.add(i) - max) * scale).exp();
            i += 1;
        }
        sum
    }
}
