//! Options that several commands have.

use std::num::NonZeroUsize;

use clap::ValueEnum;
use marlin_backend::{KvFormat, SamplingSettings};
use metal_marlin::DeviceChoice;

use crate::model::{self, MODEL_HELP};

/// The longest window that the penalties can look at.
const MOST_REPEAT_LAST_N: u32 = SamplingSettings::MAX_REPEAT_LAST_N;

/// Which model, and what runs it.
#[derive(clap::Args)]
pub(crate) struct ModelOptions {
    #[arg(
        short,
        long,
        value_name = "PATH|NAME",
        help = "The model [default: smollm2-135m]",
        long_help = MODEL_HELP
    )]
    pub(crate) model: Option<String>,

    #[arg(long, value_name = "DEVICE", default_value = "auto", help = Device::HELP)]
    pub(crate) device: Device,

    /// What activations are kept as on a GPU [default: what suits the model]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) activations: Option<Activations>,

    /// Threads of the processor [default: one per core]
    #[arg(short, long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// What runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device(pub(crate) DeviceChoice);

impl Device {
    /// What `--help` says of the values.
    pub(crate) const HELP: &'static str = "\
What runs the model: auto (an NVIDIA GPU, else the Mac's, else the processor), cpu, cuda or cuda:N, metal or metal:N, \
emulated (GPU kernels on the processor, strict and slow, in builds with that feature)";
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index)),
            None => (text, None),
        };
        let index = index.map(str::parse).transpose().map_err(|_| {
            format!("expected a number after \"{name}:\", as `marlin devices` lists it")
        })?;
        Ok(Self(match (name, index) {
            ("auto", None) => DeviceChoice::Auto,
            ("cpu", None) => DeviceChoice::Cpu,
            ("emulated", None) => DeviceChoice::Emulated,
            ("cuda", index) => DeviceChoice::Cuda(index.unwrap_or(0)),
            ("metal", index) => DeviceChoice::Metal(index.unwrap_or(0)),
            _ => return Err("expected auto, cpu, cuda, cuda:N, metal, metal:N or emulated".into()),
        }))
    }
}

impl From<Device> for DeviceChoice {
    fn from(device: Device) -> Self {
        device.0
    }
}

/// What activations are kept as on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Activations {
    #[value(help = "half precision")]
    F16,
    #[value(help = "f32's range with 8 bits")]
    Bf16,
    #[value(help = "single precision: slow, for comparisons")]
    F32,
}

impl From<Activations> for metal_marlin::Activations {
    fn from(activations: Activations) -> Self {
        match activations {
            Activations::F16 => Self::F16,
            Activations::Bf16 => Self::Bf16,
            Activations::F32 => Self::F32,
        }
    }
}

/// Room for the conversation.
#[derive(clap::Args)]
pub(crate) struct ContextOptions {
    /// Tokens of context, prompt and answer together [default: the model's, at most 4096]
    #[arg(long, value_name = "N")]
    pub(crate) ctx: Option<NonZeroUsize>,

    /// How keys and values are kept: f16; q8 takes half the memory; f32 is for comparisons
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    pub(crate) kv: Kv,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Kv {
    #[value(help = "half precision")]
    F16,
    #[value(help = "8 bits")]
    Q8,
    #[value(help = "single precision")]
    F32,
}

impl From<Kv> for KvFormat {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F16 => Self::F16,
            Kv::Q8 => Self::Q8,
            Kv::F32 => Self::F32,
        }
    }
}

/// How the next token is chosen, and when to stop.
#[derive(Clone, clap::Args)]
pub(crate) struct GenerationOptions {
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(1024).expect("not zero"))]
    pub(crate) max_tokens: NonZeroUsize,

    /// Randomness: 0 always takes the likeliest token, higher values vary more [default: what suits
    /// the model where that is known, otherwise 0.8]
    #[arg(long, value_name = "T", value_parser = at_least_zero, allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,

    /// Consider only the K likeliest tokens; 0 considers all
    #[arg(long, value_name = "K", default_value_t = default().top_k)]
    pub(crate) top_k: u32,

    /// Consider the likeliest tokens that together have probability P; 1 considers all
    #[arg(
        long,
        value_name = "P",
        value_parser = fraction,
        allow_negative_numbers = true,
        default_value_t = default().top_p,
    )]
    pub(crate) top_p: f32,

    /// Leave out tokens less than P times as likely as the likeliest; 0 leaves none out
    #[arg(
        long,
        value_name = "P",
        value_parser = fraction,
        allow_negative_numbers = true,
        default_value_t = default().min_p,
    )]
    pub(crate) min_p: f32,

    /// Divide the score of tokens that were used by X; 1 does nothing
    #[arg(
        long,
        value_name = "X",
        value_parser = above_zero,
        allow_negative_numbers = true,
        default_value_t = default().repeat_penalty,
    )]
    pub(crate) repeat_penalty: f32,

    /// Subtract X from the score of tokens that were used
    #[arg(
        long,
        value_name = "X",
        value_parser = finite,
        default_value_t = default().presence_penalty,
        allow_negative_numbers = true,
    )]
    pub(crate) presence_penalty: f32,

    /// Subtract X from a token's score for each time it was used
    #[arg(
        long,
        value_name = "X",
        value_parser = finite,
        default_value_t = default().frequency_penalty,
        allow_negative_numbers = true,
    )]
    pub(crate) frequency_penalty: f32,

    /// How many of the last tokens the penalties look at
    #[arg(
        long,
        value_name = "N",
        default_value_t = default().repeat_last_n,
        value_parser = clap::value_parser!(u32).range(..=i64::from(MOST_REPEAT_LAST_N))
    )]
    pub(crate) repeat_last_n: u32,

    /// Same seed, same text [default: another one each time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Stop before this text; may be given several times
    #[arg(
        long,
        value_name = "TEXT",
        value_parser = clap::builder::NonEmptyStringValueParser::new(),
    )]
    pub(crate) stop: Vec<String>,
}

/// The library's defaults are the program's.
fn default() -> SamplingSettings {
    SamplingSettings::default()
}

impl GenerationOptions {
    /// Decides what was left open: the temperature that suits `model`, an arbitrary seed.
    pub(crate) fn decided_for(self, model: &ModelOptions) -> Self {
        Self {
            temperature: self
                .temperature
                .or_else(|| model::usual_temperature(model.model.as_deref())),
            seed: self.seed.or_else(|| Some(arbitrary_seed())),
            ..self
        }
    }

    /// The settings as the engine takes them.
    pub(crate) fn sampling(&self) -> SamplingSettings {
        SamplingSettings {
            temperature: self.temperature.unwrap_or(default().temperature),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repeat_last_n: self.repeat_last_n,
            seed: self.seed.unwrap_or(default().seed),
        }
    }
}

/// A seed that nobody chose. The standard library's hash keys are the randomness at hand.
fn arbitrary_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // 32 bits: short enough to type again.
    RandomState::new().hash_one(std::process::id()) >> 32
}

pub(crate) fn finite(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if value.is_finite() { Ok(value) } else { Err("expected a finite number".to_owned()) }
}

pub(crate) fn at_least_zero(text: &str) -> Result<f32, String> {
    finite(text).and_then(|value| {
        if value >= 0.0 { Ok(value) } else { Err("expected 0 or more".to_owned()) }
    })
}

pub(crate) fn above_zero(text: &str) -> Result<f32, String> {
    finite(text).and_then(|value| {
        if value > 0.0 { Ok(value) } else { Err("expected more than 0".to_owned()) }
    })
}

pub(crate) fn fraction(text: &str) -> Result<f32, String> {
    finite(text).and_then(|value| {
        if (0.0..=1.0).contains(&value) {
            Ok(value)
        } else {
            Err("expected a number from 0 to 1".to_owned())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_as_it_is_listed() {
        let of = |text: &str| text.parse::<Device>().map(DeviceChoice::from);
        assert_eq!(of("auto"), Ok(DeviceChoice::Auto));
        assert_eq!(of("cpu"), Ok(DeviceChoice::Cpu));
        assert_eq!(of("cuda"), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(of("cuda:3"), Ok(DeviceChoice::Cuda(3)));
        assert_eq!(of("metal:1"), Ok(DeviceChoice::Metal(1)));
        for wrong in ["gpu", "cpu:1", "cuda:x", "cuda:", ""] {
            assert!(of(wrong).unwrap_err().starts_with("expected"), "{wrong}");
        }
    }
}
