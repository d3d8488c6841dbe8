//! Numbers to compute with, and how far off results are.

use half::{bf16, f16};
use marlin_kernels::Element;
use marlin_placement::AccessPattern;

use crate::{Buffer, CommandList, Device, GpuError};

/// A type of activations.
pub(super) trait Real: Element {
    const NAME: &'static str;
    /// Relative error of one rounding.
    const ROUNDING: f64;
    fn of(value: f32) -> Self;
    fn value(self) -> f64;
}

impl Real for f32 {
    const NAME: &'static str = "f32";
    const ROUNDING: f64 = 1.0 / (1 << 24) as f64;
    fn of(value: f32) -> Self {
        value
    }
    fn value(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f16 {
    const NAME: &'static str = "f16";
    const ROUNDING: f64 = 1.0 / (1 << 11) as f64;
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}

impl Real for bf16 {
    const NAME: &'static str = "bf16";
    const ROUNDING: f64 = 1.0 / (1 << 8) as f64;
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}

/// Numbers in (−1, 1) that look random, with an outlier now and then; the same in every run.
pub(super) fn numbers(seed: u32, len: usize) -> Vec<f32> {
    (0..len as u32)
        .map(|i| {
            // Multiplicative hashing with the golden ratio (Knuth, TAOCP 3, §6.4), twice.
            let mut x = i.wrapping_add(seed.wrapping_mul(40_503)).wrapping_mul(2_654_435_761);
            x = (x ^ (x >> 15)).wrapping_mul(2_654_435_761);
            let x = (x >> 8) as f32 / (1 << 24) as f32;
            (2.0 * x - 1.0) * if i % 89 == 7 { 3.0 } else { 1.0 }
        })
        .collect()
}

pub(super) fn values<T: Real>(seed: u32, len: usize) -> Vec<T> {
    numbers(seed, len).into_iter().map(T::of).collect()
}

pub(super) fn wide<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.value()).collect()
}

/// The largest error, and the largest that is allowed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measured {
    pub(super) error: f64,
    pub(super) allowed: f64,
}

impl Measured {
    /// Both must hold.
    pub(super) fn and(self, other: Self) -> Self {
        let worse = |m: Self| if m.allowed > 0.0 { m.error / m.allowed } else { m.error * 1e9 };
        if worse(other) > worse(self) { other } else { self }
    }
}

/// Compares with what is expected: errors relative to the largest expected magnitude. A NaN where none is expected is
/// infinitely wrong.
pub(super) fn compare<T: Real>(found: &[T], expected: &[f64], allowed: f64) -> Measured {
    let largest = expected.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    let mut error: f64 = if found.len() == expected.len() { 0.0 } else { f64::INFINITY };
    for (found, expected) in found.iter().zip(expected) {
        let off = (found.value() - expected).abs() / largest;
        error = error.max(if off.is_nan() { f64::INFINITY } else { off });
    }
    Measured { error, allowed }
}

/// How many elements differ, of which none may.
pub(super) fn equal<T: PartialEq>(found: &[T], expected: &[T]) -> Measured {
    let lengths = found.len().abs_diff(expected.len());
    let differ = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    Measured { error: (differ + lengths) as f64, allowed: 0.0 }
}

/// Memory that only kernels write.
pub(super) fn output<T: Element>(
    device: &dyn Device,
    label: &str,
    len: usize,
) -> Result<Buffer<T>, GpuError> {
    device.allocate(label, len, AccessPattern::DEVICE_ONLY)
}

/// Records what `build` appends, runs it and waits.
pub(super) fn run(
    device: &dyn Device,
    label: &str,
    build: impl FnOnce(&mut CommandList) -> Result<(), GpuError>,
) -> Result<(), GpuError> {
    let mut list = CommandList::new(label);
    build(&mut list)?;
    device.run(list).map(drop)
}
