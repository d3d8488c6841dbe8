//! `marlin bench shape`: a model of real shapes with random weights.

use std::num::NonZeroUsize;

use marlin_backend::KvFormat;
use marlin_formats::Format;
use metal_marlin::open_device;
use metal_marlin::random_model::{ModelShape, ShapeBenchmark};
use serde::Serialize;

use crate::error::CliError;
use crate::options::{Activations, Device, Kv};
use crate::output::{print, print_json};
use crate::totals::rounded;

/// Measure a model of real shapes with random weights, for which no file is needed
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  marlin bench shape --shape llama-3-8b --format int4-g128 --device cuda
  marlin bench shape --shape llama-3-8b --format fp4-g128 -p 2048 -b 2048 -n 0 --json

Speed does not depend on what the weights are. The floor of decoding is the time that reading weights, keys
and values takes at the read bandwidth measured in the same run.")]
pub(crate) struct Args {
    /// The model whose shapes to take
    #[arg(long, default_value = "llama-3-8b", value_name = "NAME", value_parser = shape_by_name)]
    shape: ModelShape,

    /// Format of the matrices
    #[arg(long, default_value = "int4-g128", value_name = "FORMAT")]
    format: Format,

    #[arg(long, value_name = "DEVICE", default_value = "auto", help = Device::HELP)]
    device: Device,

    /// What activations are kept as on a GPU [default: f16]
    #[arg(long, value_enum, value_name = "TYPE")]
    activations: Option<Activations>,

    /// Tokens of the prompt; 0 leaves prefill out
    #[arg(short = 'p', long = "prompt", value_name = "N", default_value_t = 512)]
    prompt: usize,

    /// Tokens to decode; 0 leaves decode out
    #[arg(short = 'n', long = "decode", value_name = "N", default_value_t = 128)]
    decode: usize,

    /// Positions in the cache before the first decoded token
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: usize,

    /// Tokens per step of the prompt
    #[arg(short = 'b', long = "batch", value_name = "N", default_value = "512")]
    batch: NonZeroUsize,

    /// Repetitions
    #[arg(short = 'r', long = "repetitions", value_name = "N", default_value = "5")]
    repetitions: NonZeroUsize,

    /// How keys and values are kept
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    kv: Kv,

    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// A shape as the command line names it.
pub(crate) fn shape_by_name(name: &str) -> Result<ModelShape, String> {
    ModelShape::named(name).ok_or_else(|| {
        let names: Vec<&str> = ModelShape::ALL.iter().map(|shape| shape.name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Speeds are medians.
#[derive(Serialize)]
struct Report {
    shape: &'static str,
    format: String,
    device: String,
    prompt: usize,
    decode: usize,
    depth: usize,
    repetitions: usize,
    prefill_tok_s: Option<f64>,
    /// 10¹² operations per second of the prompt's matrix products, two for each multiply-add.
    prefill_tflop_s: Option<f64>,
    prefill_peak_pct: Option<f64>,
    /// Where a processor has a matrix unit: of the vector unit beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_vector_peak_pct: Option<f64>,
    decode_tok_s: Option<f64>,
    decode_gb_s: Option<f64>,
    read_gb_s: f64,
    decode_floor_pct: Option<f64>,
}

pub(crate) fn run(args: &Args) -> Result<(), CliError> {
    let options = metal_marlin::ModelOptions {
        device: args.device.into(),
        activations: args.activations.map(Into::into),
        ..Default::default()
    };
    let backend = open_device(&options)?;
    let failed = |error: marlin_backend::BackendError| CliError::failed(error.to_string());
    let program = args.shape.program(&*backend, args.format).map_err(failed)?;
    backend.load(&program, &mut |_| {}).map_err(failed)?;
    let benchmark = ShapeBenchmark {
        prompt: args.prompt,
        decode: args.decode,
        batch: args.batch.get(),
        depth: args.depth,
        repetitions: args.repetitions.get(),
        kv: KvFormat::from(args.kv),
    };
    let times = benchmark.run(&*backend, program).map_err(failed)?;
    let report = Report {
        shape: args.shape.name,
        format: args.format.to_string(),
        device: format!("{}: {}", backend.name(), backend.description()),
        prompt: args.prompt,
        decode: args.decode,
        depth: args.depth,
        repetitions: args.repetitions.get(),
        prefill_tok_s: times.prefill_tok_s().map(rounded),
        prefill_tflop_s: times.multiply_adds_per_s().map(|rate| rounded(2.0 * rate / 1e12)),
        prefill_peak_pct: times.prefill_peak_pct().map(rounded),
        prefill_vector_peak_pct: times.prefill_vector_peak_pct().map(rounded),
        decode_tok_s: times.decode_tok_s().map(rounded),
        decode_gb_s: times.decode_gb_s().map(rounded),
        read_gb_s: times.read_gb_s().map_or(f64::NAN, rounded),
        decode_floor_pct: times.decode_floor_pct().map(rounded),
    };
    if args.json { print_json(&report) } else { print(&report.text()) }
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!("{}, {}, {}\n", self.shape, self.format, self.device);
        if let (Some(speed), Some(rate), Some(peak)) =
            (self.prefill_tok_s, self.prefill_tflop_s, self.prefill_peak_pct)
        {
            let prompt = self.prompt;
            text += &format!(
                "pp{prompt}: {speed:.1} tok/s, {rate:.1} TFLOP/s, {peak:.1} % of the multiply-add peak\n"
            );
        }
        if let (Some(speed), Some(rate), Some(floor)) =
            (self.decode_tok_s, self.decode_gb_s, self.decode_floor_pct)
        {
            let (decode, depth, read) = (self.decode, self.depth, self.read_gb_s);
            text += &format!(
                "tg{decode} after {depth}: {speed:.1} tok/s, {rate:.1} GB/s, {floor:.1} % of {read:.1} GB/s\n"
            );
        }
        text
    }
}
