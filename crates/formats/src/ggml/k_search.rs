//! The search behind the K-quants' encoders: scales (and minimums) of the groups of one super-block
//! of 256 values.
//!
//! Each group first gets the real-valued scale and minimum of least squared error over a sweep of
//! step sizes, every step refitted by least squares to the codes it leads to. Then the groups'
//! scales are rounded to small multiples of the super-block's f16, and every group tries the
//! neighbouring multiples again with the codes that belong to them.
//!
//! The result is never worse, in squared error over the super-block, than the plain "covering"
//! choice, in which steps are rounded up so that no value is clipped; it is tried as well, and the
//! better of the two is kept. That proves the bound: with `R` the largest range of any group
//! (widened to contain 0; for the symmetric types the largest magnitude `A`), codes `0..=n` and
//! multiples `0..=q`, as f16 rounds to one part in 2^10:
//!
//! - with minimums: `rms error ≤ ½ · R/n · (1 + 1/q)² · (1 + 2^−9)`;
//! - symmetric, codes `−n..n`: `rms error ≤ ½ · A/(n − ½) · (1 + 1/q) · (1 + 2^−9)`;
//!
//! as long as the f16 numbers involved are not denormal.

use half::f16;

use super::{ScaleOverflow, argmax_magnitude, to_f16};
use crate::round::nearest;

/// A super-block with minimums: `x ≈ d·scales[g]·code − dmin·mins[g]`.
pub(super) struct WithMinimums {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) scales: [u8; 16],
    pub(super) mins: [u8; 16],
    pub(super) codes: [u8; 256],
}

/// A symmetric super-block: `x ≈ d·scales[g]·(code − n)`.
pub(super) struct Symmetric {
    pub(super) d: f16,
    pub(super) scales: [i8; 16],
    pub(super) codes: [u8; 256],
}

/// The smallest f16 that is not below a non-negative `x`.
fn to_f16_up(x: f32) -> Result<f16, ScaleOverflow> {
    let stored = to_f16(x)?;
    if stored.to_f32() >= x {
        return Ok(stored);
    }
    to_f16(f16::from_bits(stored.to_bits() + 1).to_f32())
}

/// Squared error of coding `x` as `step·code + min` with codes `lo..=hi`.
#[inline]
fn squared_error(x: &[f32], step: f32, min: f32, lo: f32, hi: f32) -> f32 {
    let inverse = 1.0 / step;
    let mut sum = 0.0;
    for &x in x {
        let code = nearest(((x - min) * inverse).clamp(lo, hi));
        let error = code * step + min - x;
        sum += error * error;
    }
    sum
}

/// Squared error of coding all of `x` as the constant `min`.
fn constant_error(x: &[f32], min: f32) -> f32 {
    x.iter().map(|x| (x - min) * (x - min)).sum()
}

fn error_of(x: &[f32], step: f32, min: f32, lo: f32, hi: f32) -> f32 {
    // A step whose reciprocal overflows is as good as none.
    if (1.0 / step).is_finite() {
        squared_error(x, step, min, lo, hi)
    } else {
        constant_error(x, min)
    }
}

fn write_codes(x: &[f32], step: f32, min: f32, lo: f32, hi: f32, codes: &mut [u8]) {
    let inverse = 1.0 / step;
    for (code, &x) in codes.iter_mut().zip(x) {
        let rounded = if inverse.is_finite() {
            nearest(((x - min) * inverse).clamp(lo, hi))
        } else {
            0.0f32.max(lo)
        };
        *code = (rounded - lo) as u8;
    }
}

/// Smallest value and largest, the range widened to contain 0.
fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((0.0f32, 0.0f32), |(lo, hi), &x| {
        (if x < lo { x } else { lo }, if x > hi { x } else { hi })
    })
}

/// Steps to try, as fractions of the one that just covers the range: finer ones for finer codes,
/// whose best step is nearer.
fn sweep(n: f32) -> &'static [f32] {
    if n > 8.0 {
        &[1.06, 1.04, 1.02, 1.0, 0.985, 0.97, 0.955, 0.94, 0.92, 0.90, 0.87]
    } else {
        &[1.03, 1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.81, 0.77, 0.73, 0.68]
    }
}

/// The step and (non-positive) minimum of least squared error for the codes that `step` and `min`
/// lead to.
fn refit_with_minimum(x: &[f32], sum_x: f32, step: f32, min: f32, n: f32) -> Option<(f32, f32)> {
    let inverse = 1.0 / step;
    let count = x.len() as f32;
    let (mut sum_c, mut sum_cc, mut sum_cx) = (0.0, 0.0, 0.0);
    for &x in x {
        let code = nearest(((x - min) * inverse).clamp(0.0, n));
        sum_c += code;
        sum_cc += code * code;
        sum_cx += code * x;
    }
    let determinant = count * sum_cc - sum_c * sum_c;
    if determinant <= 0.0 {
        return None;
    }
    let mut step = (count * sum_cx - sum_x * sum_c) / determinant;
    let mut min = (sum_cc * sum_x - sum_c * sum_cx) / determinant;
    if min > 0.0 {
        min = 0.0;
        step = sum_cx / sum_cc;
    }
    (step > 0.0 && (1.0 / step).is_finite()).then_some((step, min))
}

/// The step and (non-positive) minimum of least squared error for one group.
fn fit_with_minimum(x: &[f32], n: f32) -> (f32, f32) {
    let (lo, hi) = range(x);
    let covering = (hi - lo) / n;
    if !(1.0 / covering).is_finite() {
        return (0.0, lo);
    }
    let sum_x: f32 = x.iter().sum();
    let mut best = (covering, lo);
    let mut best_error = squared_error(x, covering, lo, 0.0, n);
    let mut consider = |step: f32, min: f32, best: &mut (f32, f32)| {
        if let Some((step, min)) = refit_with_minimum(x, sum_x, step, min, n) {
            let error = squared_error(x, step, min, 0.0, n);
            if error < best_error {
                best_error = error;
                *best = (step, min);
                return true;
            }
        }
        false
    };
    for fraction in sweep(n) {
        // A narrower range gives up the upper end alone, or both in proportion.
        consider(covering * fraction, lo, &mut best);
        consider(covering * fraction, lo * fraction, &mut best);
    }
    // The codes of the best fit, fitted again.
    for _ in 0..4 {
        let (step, min) = best;
        if !consider(step, min, &mut best) {
            break;
        }
    }
    best
}

/// A super-block with minimums in groups of `group` values, codes `0..=n`, multiples `0..=q`.
pub(super) fn with_minimums(
    x: &[f32],
    group: usize,
    n: u8,
    q: u8,
) -> Result<WithMinimums, ScaleOverflow> {
    let (n, q) = (f32::from(n), f32::from(q));
    let groups = x.len() / group;
    let (mut fits, mut ranges) = ([(0.0, 0.0); 16], [(0.0, 0.0); 16]);
    for (g, x) in x.chunks_exact(group).enumerate() {
        fits[g] = fit_with_minimum(x, n);
        ranges[g] = range(x);
    }
    let largest = |of: &dyn Fn(usize) -> f32| (0..groups).map(of).fold(0.0, f32::max);

    let searched = (to_f16(largest(&|g| fits[g].0) / q)?, to_f16(largest(&|g| -fits[g].1) / q)?);
    let dmin = to_f16_up(largest(&|g| -ranges[g].0) / q)?;
    let widest = largest(&|g| ranges[g].1 - ranges[g].0) + dmin.to_f32();
    let covering = (to_f16_up(widest / n / q)?, dmin);

    let mut best: Option<(f32, WithMinimums)> = None;
    for (d, dmin) in [searched, covering] {
        let (step, low) = (d.to_f32(), dmin.to_f32());
        let mut block = WithMinimums { d, dmin, scales: [0; 16], mins: [0; 16], codes: [0; 256] };
        let mut total = 0.0;
        for (g, x) in x.chunks_exact(group).enumerate() {
            let (fit_step, fit_min) = fits[g];
            let multiple = |of: f32, unit: f32| {
                if of > 0.0 && unit > 0.0 { (of / unit).min(q) } else { 0.0 }
            };
            let mut group_best = (f32::INFINITY, 0.0, 0.0);
            let mut consider = |scale: f32, min: f32| {
                let (scale, min) = (scale.clamp(0.0, q), min.clamp(0.0, q));
                let error = error_of(x, step * scale, -low * min, 0.0, n);
                if error < group_best.0 {
                    group_best = (error, scale, min);
                }
            };
            let near = (nearest(multiple(fit_step, step)), nearest(multiple(-fit_min, low)));
            for scale in [near.0, near.0 - 1.0, near.0 + 1.0] {
                for min in [near.1, near.1 - 1.0, near.1 + 1.0] {
                    consider(scale, min);
                }
            }
            let (lo, hi) = ranges[g];
            let cover_min = multiple(-lo, low).ceil();
            consider(multiple((hi + low * cover_min) / n, step).ceil(), cover_min);

            let (error, scale, min) = group_best;
            total += error;
            block.scales[g] = scale as u8;
            block.mins[g] = min as u8;
            let codes = &mut block.codes[g * group..(g + 1) * group];
            write_codes(x, step * scale, -low * min, 0.0, n, codes);
        }
        if best.as_ref().is_none_or(|(error, _)| total < *error) {
            best = Some((total, block));
        }
    }
    best.map(|(_, block)| block).ok_or(ScaleOverflow)
}

/// The step of least squared error for one group, its sign chosen with it: codes reach further
/// below zero than above.
fn fit_symmetric(x: &[f32], n: f32) -> f32 {
    let extreme = x[argmax_magnitude(x)];
    let covering = -extreme / n;
    if !(1.0 / covering).is_finite() {
        return 0.0;
    }
    let mut best = covering;
    let mut best_error = squared_error(x, covering, 0.0, -n, n - 1.0);
    for sign in [1.0, -1.0] {
        for fraction in sweep(n) {
            let inverse = 1.0 / (covering * fraction * sign);
            let (mut sum_cc, mut sum_cx) = (0.0, 0.0);
            for &x in x {
                let code = nearest((x * inverse).clamp(-n, n - 1.0));
                sum_cc += code * code;
                sum_cx += code * x;
            }
            let step = sum_cx / sum_cc;
            if !(1.0 / step).is_finite() || !step.is_finite() {
                continue;
            }
            let error = squared_error(x, step, 0.0, -n, n - 1.0);
            if error < best_error {
                best_error = error;
                best = step;
            }
        }
    }
    best
}

/// A symmetric super-block in groups of 16 values, codes `−n..n` stored with offset `n`, multiples
/// `−q−1..=q`.
pub(super) fn symmetric(x: &[f32], n: u8, q: u8) -> Result<Symmetric, ScaleOverflow> {
    let (n, q) = (f32::from(n), f32::from(q));
    let mut fits = [0.0; 16];
    for (fit, x) in fits.iter_mut().zip(x.chunks_exact(16)) {
        *fit = fit_symmetric(x, n);
    }
    // The largest step becomes multiple −q−1, the end that reaches further.
    let searched = to_f16(fits[argmax_magnitude(&fits)] / -(q + 1.0))?;
    let covering = to_f16_up(x[argmax_magnitude(x)].abs() / (n - 0.5) / q)?;

    let mut best: Option<(f32, Symmetric)> = None;
    for d in [searched, covering] {
        let unit = d.to_f32();
        let mut block = Symmetric { d, scales: [0; 16], codes: [0; 256] };
        let mut total = 0.0;
        for (g, x) in x.chunks_exact(16).enumerate() {
            let multiple = |of: f32| {
                if unit == 0.0 { 0.0 } else { (of / unit).clamp(-q - 1.0, q) }
            };
            let mut group_best = (f32::INFINITY, 0.0);
            let mut consider = |scale: f32| {
                let scale = scale.clamp(-q - 1.0, q);
                let error = error_of(x, unit * scale, 0.0, -n, n - 1.0);
                if error < group_best.0 {
                    group_best = (error, scale);
                }
            };
            let near = nearest(multiple(fits[g]));
            for scale in [near, near - 1.0, near + 1.0] {
                consider(scale);
            }
            let amax = x[argmax_magnitude(x)].abs();
            consider(multiple(amax / (n - 0.5)).ceil());

            let (error, scale) = group_best;
            total += error;
            block.scales[g] = scale as i8;
            let codes = &mut block.codes[g * 16..(g + 1) * 16];
            write_codes(x, unit * scale, 0.0, -n, n - 1.0, codes);
        }
        if best.as_ref().is_none_or(|(error, _)| total < *error) {
            best = Some((total, block));
        }
    }
    best.map(|(_, block)| block).ok_or(ScaleOverflow)
}
