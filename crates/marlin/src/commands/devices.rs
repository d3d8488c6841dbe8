//! `marlin devices`: what can run a model here.

use std::num::NonZeroUsize;

use marlin_backend::Backend;
use marlin_cpu::{CpuBackend, ISA_VARIABLE, Isa};
use serde::Serialize;

use crate::error::CliError;
use crate::output::{print, print_json};
use crate::totals::rounded;

/// List what can run a model on this machine
#[derive(clap::Args)]
#[command(after_help = "\
The environment variable MARLIN_CPU chooses the processor's instruction set: avx512, avx2, neon or
portable; by default the first that the processor has.")]
pub(crate) struct Args {
    /// Also measure what each can do at most (about a second)
    #[arg(long)]
    measure: bool,

    /// Threads to measure with [default: one per core]
    #[arg(short, long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Device {
    /// As `--device` takes it.
    name: &'static str,
    description: String,
    threads: usize,
    isa: &'static str,
    /// Every instruction set that MARLIN_CPU could choose.
    available_isas: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_gb_s: Option<f64>,
    /// 10⁹ multiply-adds per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    gmadd_s: Option<f64>,
}

pub(crate) fn run(args: &Args) -> Result<(), CliError> {
    let cpu = CpuBackend::new(args.threads).map_err(|error| {
        let available = Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name);
        let hint = format!("{ISA_VARIABLE} may be: {}", available.collect::<Vec<_>>().join(", "));
        CliError::with_hint(error.to_string(), hint)
    })?;
    let ceilings = args.measure.then(|| cpu.measure_ceilings());
    let gpus = gpu::find();
    let device = Device {
        name: cpu.name(),
        description: cpu.description(),
        threads: cpu.threads(),
        isa: cpu.isa().name(),
        available_isas: Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_available())
            .map(Isa::name)
            .collect(),
        read_gb_s: ceilings.map(|ceilings| rounded(ceilings.read_bytes_per_s / 1e9)),
        gmadd_s: ceilings.map(|ceilings| rounded(ceilings.multiply_adds_per_s / 1e9)),
    };
    if args.json {
        let mut devices = vec![serde_json::to_value(&device).map_err(|error| {
            CliError::failed(format!("the result cannot be written as JSON: {error}"))
        })?];
        devices.extend(gpus.devices.iter().map(|gpu| serde_json::json!(gpu)));
        return print_json(&serde_json::json!({
            "devices": devices,
            "unavailable": gpus.unavailable,
        }));
    }
    let mut text = format!(
        "{}  {} (of {})\n",
        device.name,
        device.description,
        device.available_isas.join(", ")
    );
    if let (Some(read), Some(multiply)) = (device.read_gb_s, device.gmadd_s) {
        text += &format!("     reads {read:.1} GB/s, multiplies {multiply:.0} Gmadd/s\n");
    }
    for gpu in &gpus.devices {
        text += &format!(
            "{}  {} ({}, {} units, {:.1} GB)\n",
            gpu.name,
            gpu.description,
            gpu.architecture,
            gpu.compute_units,
            gpu.memory_bytes as f64 / 1e9
        );
    }
    for missing in &gpus.unavailable {
        text += &format!("{}  not usable: {}\n", missing.name, missing.reason);
    }
    print(&text)
}

/// GPUs, as far as this build knows them.
#[derive(Default)]
struct Gpus {
    devices: Vec<Gpu>,
    unavailable: Vec<Unavailable>,
}

#[derive(Serialize)]
struct Gpu {
    /// `cuda:0`, `metal:0`, …
    name: String,
    description: String,
    architecture: String,
    compute_units: u32,
    memory_bytes: u64,
}

/// A kind of device that cannot be used here, or not fully.
#[derive(Serialize)]
struct Unavailable {
    name: &'static str,
    reason: String,
}

/// Every GPU that this build can use, and what keeps one from being used.
mod gpu {
    use marlin_gpu::{DeviceProperties, GpuError};

    use super::{Gpu, Gpus, Unavailable};

    pub(super) fn find() -> Gpus {
        let mut out = Gpus::default();
        #[cfg(all(feature = "cuda", any(target_os = "linux", windows)))]
        // Opening one also finds the compiler, without which none can be used.
        out.add("cuda", marlin_gpu::cuda::devices(), || marlin_gpu::cuda::Cuda::open(0).map(drop));
        #[cfg(all(feature = "metal", target_vendor = "apple"))]
        out.add("metal", marlin_gpu::metal::devices(), || {
            marlin_gpu::metal::Metal::open(0).map(drop)
        });
        out
    }

    #[allow(dead_code, reason = "a build without GPUs adds none")]
    impl Gpus {
        fn add(
            &mut self,
            kind: &'static str,
            found: Result<Vec<DeviceProperties>, GpuError>,
            open: impl FnOnce() -> Result<(), GpuError>,
        ) {
            let found = found.and_then(|found| {
                let result = open();
                self.devices.extend(found.into_iter().enumerate().map(|(index, properties)| Gpu {
                    name: format!("{kind}:{index}"),
                    description: properties.name,
                    architecture: properties.architecture,
                    compute_units: properties.compute_units,
                    memory_bytes: properties.total_bytes,
                }));
                result
            });
            if let Err(error) = found {
                let reason = match error {
                    GpuError::Unavailable { reason, .. } => reason,
                    other => other.to_string(),
                };
                self.unavailable.push(Unavailable { name: kind, reason });
            }
        }
    }
}
