//! Values for tests of kernels: elements of every type, and how near a result must be.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate of its own and uses a part"
)]

use half::{bf16, f16};
use marlin_kernels::Element;

/// An element type of activations.
pub trait Float: Element + PartialEq + std::fmt::Debug {
    /// Half the distance of neighbours, relative to their value: what rounding to the type costs.
    const HALF_ULP: f64;
    /// Half the distance of the type's smallest numbers.
    const TINY: f64;
    /// Rounded to the type.
    fn of(x: f32) -> Self;
    /// Exact.
    fn f32(self) -> f32;
}

impl Float for f16 {
    const HALF_ULP: f64 = 1.0 / 2048.0;
    const TINY: f64 = 2.98e-8;
    fn of(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn f32(self) -> f32 {
        self.to_f32()
    }
}

impl Float for bf16 {
    const HALF_ULP: f64 = 1.0 / 256.0;
    const TINY: f64 = 1e-40;
    fn of(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn f32(self) -> f32 {
        self.to_f32()
    }
}

impl Float for f32 {
    const HALF_ULP: f64 = 1.0 / 16_777_216.0;
    const TINY: f64 = 1e-44;
    fn of(x: f32) -> Self {
        x
    }
    fn f32(self) -> f32 {
        self
    }
}

/// A sequence of pseudo-random numbers (SplitMix64, Steele et al. 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [−1, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Uniform values of an element type, of at most this magnitude.
    pub fn uniforms<T: Float>(&mut self, n: usize, magnitude: f32) -> Vec<T> {
        (0..n).map(|_| T::of(self.uniform() * magnitude)).collect()
    }

    /// Roughly normal with variance 1: the sum of twelve uniforms in [−½, ½).
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform() * 0.5).sum()
    }

    /// Less than `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// Normal values of an element type, with this standard deviation.
    pub fn elements<T: Float>(&mut self, n: usize, deviation: f32) -> Vec<T> {
        (0..n).map(|_| T::of(self.normal() * deviation)).collect()
    }
}

/// That `found` is `expected` but for its rounding to the type and `slack`.
#[track_caller]
pub fn assert_near<T: Float>(found: T, expected: f64, slack: f64, what: impl std::fmt::Display) {
    let error = (f64::from(found.f32()) - expected).abs();
    let bound = T::HALF_ULP * expected.abs() * 1.001 + T::TINY + slack;
    assert!(
        error <= bound,
        "{what}: {found:?}, expected {expected:e}; error {error:e} > {bound:e}"
    );
}

/// What positions turn pairs by: a rotary embedding of base 10,000.
pub fn inverse_frequencies(pairs: usize) -> Vec<f32> {
    (0..pairs).map(|i| 10_000f32.powf(-(i as f32) / pairs as f32)).collect()
}
