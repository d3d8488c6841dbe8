//! Rotary position embedding: from a file's parameters to one frequency per pair.

use std::f64::consts::TAU;
use std::sync::Arc;

use marlin_backend::{Rope, RopeStyle};

/// Parameters of the rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Which values of a head form a pair.
    pub style: RopeStyle,
    /// Leading values of a head that are rotated; even.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f32,
    /// How the frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
    /// Base of windowed layers, where they have one of their own (Gemma 3). Those are not scaled.
    pub local_theta: Option<f32>,
}

/// Changes to the frequencies `1 / theta^(2i/dims)`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// All divided by a factor (Chen et al. 2023, "position interpolation").
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Low frequencies divided, high ones kept, with a transition between (Llama 3.1, `rope_type: llama3`).
    Llama3 {
        /// Divisor of low frequencies.
        factor: f32,
        /// Wavelengths above `original / low` are divided.
        low: f32,
        /// Wavelengths below `original / high` are kept.
        high: f32,
        /// Context of the original training.
        original: f32,
    },
    /// Each divided by a factor of its own (`rope_freqs.weight` of GGUF files): `dims / 2` of them.
    PerDimension {
        /// The factors.
        factors: Arc<[f32]>,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// How much longer the context is than the original.
        factor: f32,
        /// Context of the original training.
        original: f32,
        /// Rotations within the original context above which a frequency is kept.
        beta_fast: f32,
        /// Rotations below which a frequency is divided.
        beta_slow: f32,
        /// Factor on the rotated values; `None` for `0.1 · ln(factor) + 1` (eq. 22).
        attention_factor: Option<f32>,
    },
}

impl RopeConfig {
    /// The embedding with its scaling.
    pub fn scaled(&self) -> Rope {
        let plain = self.frequencies(self.theta);
        let (frequencies, magnitude): (Vec<f64>, f32) = match &self.scaling {
            RopeScaling::None => (plain.collect(), 1.0),
            RopeScaling::Linear { factor } => {
                (plain.map(|frequency| frequency / f64::from(*factor)).collect(), 1.0)
            }
            RopeScaling::PerDimension { factors } => {
                (plain.zip(factors.iter()).map(|(f, &factor)| f / f64::from(factor)).collect(), 1.0)
            }
            &RopeScaling::Llama3 { factor, low, high, original } => {
                let scale = llama3(factor.into(), low.into(), high.into(), original.into());
                (plain.map(scale).collect(), 1.0)
            }
            &RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor } => {
                let ramp = self.yarn_ramp(original, beta_fast, beta_slow);
                let scale = |(i, frequency)| {
                    let divided = ramp(i);
                    frequency * (1.0 - divided) + frequency / f64::from(factor) * divided
                };
                let magnitude = attention_factor.unwrap_or(0.1 * factor.ln() + 1.0);
                (plain.enumerate().map(scale).collect(), magnitude)
            }
        };
        self.rope(frequencies, magnitude)
    }

    /// The embedding with another base, and without scaling.
    pub(super) fn unscaled(&self, theta: f32) -> Rope {
        self.rope(self.frequencies(theta).collect(), 1.0)
    }

    fn rope(&self, frequencies: Vec<f64>, magnitude: f32) -> Rope {
        let inverse_frequencies =
            frequencies.into_iter().map(|frequency| frequency as f32).collect();
        Rope { inverse_frequencies, style: self.style, magnitude }
    }

    fn frequencies(&self, theta: f32) -> impl Iterator<Item = f64> + use<> {
        let dims = self.dims;
        (0..dims / 2).map(move |i| f64::from(theta).powf(-((2 * i) as f64) / dims as f64))
    }

    /// How much of pair `i` is divided: 0 below the pair that turns `beta_fast` times within the original context,
    /// 1 above the one that turns `beta_slow` times (YaRN, eq. 18 to 21).
    fn yarn_ramp(&self, original: f32, beta_fast: f32, beta_slow: f32) -> impl Fn(usize) -> f64 {
        let (dims, theta) = (self.dims as f64, f64::from(self.theta));
        let pair_that_turns = |rotations: f32| {
            dims * (f64::from(original) / (f64::from(rotations) * TAU)).ln() / (2.0 * theta.ln())
        };
        let low = pair_that_turns(beta_fast).floor().max(0.0);
        let high = pair_that_turns(beta_slow).ceil().min(dims - 1.0);
        let width = if high > low { high - low } else { 0.001 };
        move |i| ((i as f64 - low) / width).clamp(0.0, 1.0)
    }
}

fn llama3(factor: f64, low: f64, high: f64, original: f64) -> impl Fn(f64) -> f64 {
    move |frequency| {
        let wavelength = TAU / frequency;
        if wavelength < original / high {
            frequency
        } else if wavelength > original / low {
            frequency / factor
        } else {
            let kept = (original / wavelength - low) / (high - low);
            (1.0 - kept) * frequency / factor + kept * frequency
        }
    }
}
