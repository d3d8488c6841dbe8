//! The device to check, and what is known of it.

use std::sync::Arc;

use marlin_backend::Backend;
use marlin_cpu::CpuBackend;
use marlin_gpu::Device as Gpu;
use marlin_gpu::model::{Activations, GpuBackend};
use marlin_placement::Device as Memory;
use metal_marlin::DeviceChoice;

use crate::error::CliError;
use crate::options::Device;

/// Counts of pipelines that were compiled, and that were found compiled.
type Pipelines = Box<dyn Fn() -> (u64, u64)>;

/// What is checked.
pub(super) enum Found {
    Cpu(CpuBackend),
    Gpu { device: Arc<dyn Gpu>, backend: GpuBackend, pipelines: Option<Pipelines> },
}

impl Found {
    fn gpu(device: Arc<dyn Gpu>, pipelines: Option<Pipelines>) -> Self {
        let backend = GpuBackend::new(device.clone(), Activations::F16);
        Self::Gpu { device, backend, pipelines }
    }

    /// Names and values, one a line.
    pub(super) fn description(&self) -> Vec<(&'static str, String)> {
        let device = match self {
            Self::Cpu(backend) => {
                return vec![
                    ("device", backend.description()),
                    ("kind", backend.name().to_owned()),
                ];
            }
            Self::Gpu { device, .. } => device,
        };
        let properties = device.properties();
        let memory = match properties.memory {
            Memory::Unified => "shared with the host",
            Memory::Discrete => "its own",
        };
        let free = device.free_bytes().map_or_else(
            |error| format!("unknown ({error})"),
            |free| format!("{free} of {} bytes", properties.total_bytes),
        );
        vec![
            ("device", properties.name.clone()),
            ("kind", properties.kind.to_owned()),
            ("architecture", properties.architecture.clone()),
            ("compute units", properties.compute_units.to_string()),
            ("memory", memory.to_owned()),
            ("free", free),
            ("threads in a SIMD-group", properties.simd_width.to_string()),
            ("threads in a threadgroup", properties.max_threads.to_string()),
            ("threadgroup memory", format!("{} bytes", properties.threadgroup_bytes)),
            ("alignment for adoption", format!("{} bytes", properties.adoption_alignment)),
        ]
    }

    /// Compiled now, and found compiled.
    pub(super) fn pipelines(&self) -> Option<(u64, u64)> {
        match self {
            Self::Gpu { pipelines: Some(count), .. } => Some(count()),
            _ => None,
        }
    }
}

/// The operating system, with its version where it tells.
pub(super) fn system() -> String {
    use std::env::consts::{ARCH, OS};
    #[cfg(all(feature = "metal", target_vendor = "apple"))]
    return format!("{OS} {ARCH}, {}", marlin_gpu::metal::system_version());
    #[cfg(not(all(feature = "metal", target_vendor = "apple")))]
    format!("{OS} {ARCH}{}", release().map(|release| format!(", {release}")).unwrap_or_default())
}

/// Linux's version.
#[cfg(not(all(feature = "metal", target_vendor = "apple")))]
fn release() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    Some(text.trim().to_owned())
}

/// The device that was asked for.
pub(super) fn open(device: Device) -> Result<Found, CliError> {
    match device.into() {
        DeviceChoice::Cpu => cpu(),
        DeviceChoice::Cuda(index) => cuda(index),
        DeviceChoice::Metal(index) => metal(index),
        DeviceChoice::Emulated => emulated(),
        DeviceChoice::Auto => match cuda(0).or_else(|_| metal(0)) {
            Ok(found) => Ok(found),
            Err(_) => cpu(),
        },
    }
}

fn cpu() -> Result<Found, CliError> {
    CpuBackend::new(None).map(Found::Cpu).map_err(|error| CliError::failed(error.to_string()))
}

#[allow(dead_code, reason = "which devices are missing depends on features and target")]
fn missing(message: &str) -> Result<Found, CliError> {
    Err(CliError::failed(message))
}

#[cfg(all(feature = "cuda", any(target_os = "linux", windows)))]
fn cuda(index: usize) -> Result<Found, CliError> {
    let device =
        marlin_gpu::cuda::Cuda::open(index).map_err(|e| CliError::failed(e.to_string()))?;
    let device = Arc::new(device);
    let counted = device.clone();
    let pipelines = move || {
        let counts = counted.pipeline_statistics();
        (counts.compiled, counts.from_disk)
    };
    Ok(Found::gpu(device, Some(Box::new(pipelines))))
}

#[cfg(not(all(feature = "cuda", any(target_os = "linux", windows))))]
fn cuda(_: usize) -> Result<Found, CliError> {
    missing("no cuda device: this build is without the feature `cuda`, or not for Linux or Windows")
}

#[cfg(all(feature = "metal", target_vendor = "apple"))]
fn metal(index: usize) -> Result<Found, CliError> {
    use marlin_gpu::metal::{Metal, Settings};
    // An error shall tell how far the device came.
    let settings = Settings { signposts: true, ..Settings::new(index) };
    let device = Metal::open_with(&settings).map_err(|e| CliError::failed(e.to_string()))?;
    let device = Arc::new(device);
    let counted = device.clone();
    let pipelines = move || {
        let counts = counted.pipeline_statistics();
        (counts.compiled, counts.from_disk)
    };
    Ok(Found::gpu(device, Some(Box::new(pipelines))))
}

#[cfg(all(not(feature = "metal"), target_vendor = "apple"))]
fn metal(_: usize) -> Result<Found, CliError> {
    missing("no metal device: this build is without the feature `metal`")
}

#[cfg(not(target_vendor = "apple"))]
fn metal(_: usize) -> Result<Found, CliError> {
    let system = std::env::consts::OS;
    missing(&format!("no metal device: Metal is there on Apple's systems only, this is {system}"))
}

#[cfg(feature = "emulated")]
fn emulated() -> Result<Found, CliError> {
    use marlin_gpu::emulated::{Emulated, EmulatedOptions};
    let device = Emulated::new(EmulatedOptions::default())
        .map_err(|error| CliError::failed(error.to_string()))?;
    Ok(Found::gpu(Arc::new(device), None))
}

#[cfg(not(feature = "emulated"))]
fn emulated() -> Result<Found, CliError> {
    missing("no emulated device: this build is without the feature `emulated`")
}
