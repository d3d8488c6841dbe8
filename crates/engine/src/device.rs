//! Which device runs a model.

use marlin_backend::Backend;
use marlin_cpu::CpuBackend;
use marlin_models::Config;

use crate::{EngineError, ModelOptions};

/// Which device runs the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first that there is and that has room for the model: an NVIDIA GPU, Apple's, the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
    /// An Apple GPU, by its number.
    Metal(usize),
    /// The emulator: GPU kernels on the processor, checked strictly and slowly.
    Emulated,
}

/// What activations are kept as on a GPU. The CPU keeps f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// Half precision.
    #[default]
    F16,
    /// As far as f32 reaches, with 8 bits.
    Bf16,
    /// For comparisons.
    F32,
}

impl Activations {
    /// What suits a model: half precision, unless its residual stream is known to outgrow it.
    fn suiting(config: &Config) -> Self {
        // Gemma 3's reaches past 65504 (transformers runs it in bf16 or f32 for that reason).
        if config.architecture.name.starts_with("gemma") { Self::Bf16 } else { Self::F16 }
    }
}

/// Makes the backend that `options` ask for, for a model of this configuration.
pub(crate) fn backend(
    options: &ModelOptions,
    config: &Config,
) -> Result<Box<dyn Backend>, EngineError> {
    let activations = options.activations.unwrap_or_else(|| Activations::suiting(config));
    open_device(&ModelOptions { activations: Some(activations), ..options.clone() })
}

/// The best GPU that can be opened, if there is any, for a model of this configuration.
pub(crate) fn best_gpu(options: &ModelOptions, config: &Config) -> Option<Box<dyn Backend>> {
    gpu::best(options.activations.unwrap_or_else(|| Activations::suiting(config)))
}

/// Makes the backend that `options` ask for: for those who bring a program of their own.
///
/// # Errors
/// If there is no such device, or it cannot be used.
pub fn open_device(options: &ModelOptions) -> Result<Box<dyn Backend>, EngineError> {
    let activations = options.activations.unwrap_or_default();
    match options.device {
        DeviceChoice::Auto => match gpu::best(activations) {
            Some(gpu) => Ok(gpu),
            None => cpu(options),
        },
        DeviceChoice::Cpu => cpu(options),
        DeviceChoice::Cuda(index) => gpu::cuda(index, activations),
        DeviceChoice::Metal(index) => gpu::metal(index, activations),
        DeviceChoice::Emulated => gpu::emulated(activations),
    }
}

pub(crate) fn cpu(options: &ModelOptions) -> Result<Box<dyn Backend>, EngineError> {
    Ok(Box::new(match options.isa {
        Some(isa) => CpuBackend::with_isa(options.threads, isa)?,
        None => CpuBackend::new(options.threads)?,
    }))
}

mod gpu {
    use marlin_backend::Backend;

    use super::Activations;
    use crate::EngineError;

    type Found = Result<Box<dyn Backend>, EngineError>;

    #[cfg(any(feature = "cuda", feature = "metal", feature = "emulated"))]
    fn over(
        device: impl marlin_gpu::Device + 'static,
        activations: Activations,
    ) -> Box<dyn Backend> {
        use marlin_gpu::model::GpuBackend;
        let activations = match activations {
            Activations::F16 => marlin_gpu::model::Activations::F16,
            Activations::Bf16 => marlin_gpu::model::Activations::Bf16,
            Activations::F32 => marlin_gpu::model::Activations::F32,
        };
        Box::new(GpuBackend::new(std::sync::Arc::new(device), activations))
    }

    #[allow(dead_code, reason = "which kinds are missing depends on features and target")]
    fn missing(device: &'static str, reason: &'static str) -> Found {
        Err(EngineError::NoDevice { device, reason: reason.to_owned() })
    }

    /// The best GPU that can be opened, if there is any.
    pub(super) fn best(activations: Activations) -> Option<Box<dyn Backend>> {
        cuda(0, activations).or_else(|_| metal(0, activations)).ok()
    }

    #[cfg(all(feature = "cuda", any(target_os = "linux", windows)))]
    pub(super) fn cuda(index: usize, activations: Activations) -> Found {
        Ok(over(marlin_gpu::cuda::Cuda::open(index)?, activations))
    }

    #[cfg(not(all(feature = "cuda", any(target_os = "linux", windows))))]
    pub(super) fn cuda(_: usize, _: Activations) -> Found {
        missing("cuda", "this build is without the feature `cuda`, or not for Linux or Windows")
    }

    #[cfg(all(feature = "metal", target_vendor = "apple"))]
    pub(super) fn metal(index: usize, activations: Activations) -> Found {
        Ok(over(marlin_gpu::metal::Metal::open(index)?, activations))
    }

    #[cfg(not(all(feature = "metal", target_vendor = "apple")))]
    pub(super) fn metal(_: usize, _: Activations) -> Found {
        missing("metal", "this build is without the feature `metal`, or not for Apple's systems")
    }

    #[cfg(feature = "emulated")]
    pub(super) fn emulated(activations: Activations) -> Found {
        use marlin_gpu::emulated::{Emulated, EmulatedOptions};
        Ok(over(Emulated::new(EmulatedOptions::default())?, activations))
    }

    #[cfg(not(feature = "emulated"))]
    pub(super) fn emulated(_: Activations) -> Found {
        missing("emulated", "this build is without the feature `emulated`")
    }
}
