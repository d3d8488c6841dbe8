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
        return print_json(&serde_json::json!({ "devices": [device] }));
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
    print(&text)
}
