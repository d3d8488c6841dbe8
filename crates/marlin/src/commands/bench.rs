//! `marlin bench`: how fast a model runs here, and how fast it could.

mod kernels;
mod shape;

pub(crate) use shape::shape_by_name;

use std::num::NonZeroUsize;

use metal_marlin::benchmark::{Benchmark, BenchmarkOptions};
use metal_marlin::{KvFormat, Model, SessionOptions};
use serde::Serialize;

use crate::ceilings;
use crate::error::CliError;
use crate::model;
use crate::options::{Kv, ModelOptions};
use crate::output::{bytes, print, print_json};
use crate::progress_bar::steps;
use crate::totals::rounded;

/// Measure prefill and decode speed, and compare them with what this machine can do at most
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  marlin bench -m model.gguf -p 512 -n 128 -r 3 -t 2
  marlin bench --json | jq .decode_tok_s

Prefill is one prompt of -p tokens; decode is -n tokens one by one from an empty context, as
llama-bench measures them. Numbers are medians over -r repetitions, after one that does not count.

GB/s is what decoding reads: weights, keys and values. The floor is the time that reading alone
would take at this machine's read bandwidth, which is measured around every repetition; only a model
that fits the caches can exceed 100 %. The peak is the measured multiply-add rate of the unit that
quantised matrix products use; on a processor with a matrix unit, whose own peak nothing with scales
comes near, the table compares with its vector unit's, and --json has both."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    part: Option<Part>,

    #[command(flatten)]
    model: ModelOptions,

    /// Tokens of the prompt; 0 leaves prefill out
    #[arg(short = 'p', long = "prompt", value_name = "N", default_value_t = 512)]
    prompt: usize,

    /// Tokens to decode; 0 leaves decode out
    #[arg(short = 'n', long = "decode", value_name = "N", default_value_t = 128)]
    decode: usize,

    /// Repetitions
    #[arg(short = 'r', long = "repetitions", value_name = "N", default_value = "3")]
    repetitions: NonZeroUsize,

    /// Tokens per step of the prompt
    #[arg(short = 'b', long = "batch", value_name = "N", default_value = "512")]
    batch: NonZeroUsize,

    /// How keys and values are kept
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    kv: Kv,

    /// Write JSON instead of a Markdown table
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Part {
    Kernels(kernels::Args),
    Shape(shape::Args),
}

/// The result for scripts. Speeds are medians.
#[derive(Serialize)]
struct Report {
    model: String,
    weight_bytes: u64,
    device: String,
    prompt: usize,
    decode: usize,
    repetitions: usize,
    prefill_tok_s: Option<f64>,
    decode_tok_s: Option<f64>,
    decode_gb_s: Option<f64>,
    /// Measured ceiling of reading: median of before and after every repetition.
    read_gb_s: f64,
    decode_floor_pct: Option<f64>,
    prefill_peak_pct: Option<f64>,
    /// Where a processor has a matrix unit: of the vector unit beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_vector_peak_pct: Option<f64>,
    /// Seconds of each repetition.
    prefill_s: Vec<f64>,
    decode_s: Vec<f64>,
}

pub(crate) fn run(args: &Args) -> Result<(), CliError> {
    match &args.part {
        Some(Part::Kernels(args)) => return kernels::run(args),
        Some(Part::Shape(args)) => return shape::run(args),
        None => {}
    }
    if args.prompt == 0 && args.decode == 0 {
        return Err(CliError::Usage("nothing to measure: -p and -n are both 0".to_owned()));
    }
    let session = SessionOptions {
        ctx: args.prompt.max(args.decode),
        batch: args.batch.get(),
        kv: KvFormat::from(args.kv),
        ..SessionOptions::default()
    };
    let model = model::load(&args.model, Some(session.clone()))?;
    let mut session = model.session(session)?;
    let repetitions = args.repetitions.get();
    let options = BenchmarkOptions { prompt: args.prompt, decode: args.decode, repetitions };
    let bar = steps("measuring", repetitions as u64);
    let result = options.run(&mut session, &mut || {
        bar.inc(1);
        true
    })?;
    bar.finish_and_clear();
    ceilings::remember(&model, &result.ceilings);
    let report = Report::new(&model, options, &result);
    if args.json { print_json(&report) } else { print(&report.table()) }
}

impl Report {
    fn new(model: &Model, options: BenchmarkOptions, result: &Benchmark) -> Self {
        Self {
            model: model.source().name().to_owned(),
            weight_bytes: model.source().bytes(),
            device: format!("{}: {}", model.device(), model.device_description()),
            prompt: options.prompt,
            decode: options.decode,
            repetitions: options.repetitions,
            prefill_tok_s: result.prefill_tok_s().map(rounded),
            decode_tok_s: result.decode_tok_s().map(rounded),
            decode_gb_s: result.decode_gb_s().map(rounded),
            read_gb_s: result.read_gb_s().map_or(f64::NAN, rounded),
            decode_floor_pct: result.decode_floor_pct().map(rounded),
            prefill_peak_pct: result.prefill_peak_pct().map(rounded),
            prefill_vector_peak_pct: result.prefill_vector_peak_pct().map(rounded),
            prefill_s: result.prefill.clone(),
            decode_s: result.decode.clone(),
        }
    }

    /// A table that stays readable as text.
    fn table(&self) -> String {
        let mut rows = vec![
            ["model", "size", "device", "test", "tok/s", "±", "GB/s", "of the floor"]
                .map(str::to_owned),
        ];
        let start =
            || [self.model.replace('|', "/"), bytes(self.weight_bytes), self.device.clone()];
        let mut add =
            |test: String, speed: Option<f64>, spread: f64, rate: String, share: String| {
                if let Some(speed) = speed {
                    let [model, size, device] = start();
                    rows.push([
                        model,
                        size,
                        device,
                        test,
                        format!("{speed:.1}"),
                        format!("{spread:.1}"),
                        rate,
                        share,
                    ]);
                }
            };
        let percent = |share: Option<f64>, of: &str| {
            share.map_or(String::new(), |share| format!("{share:.1} % of {of}"))
        };
        let gb_s = self.decode_gb_s.map_or(String::new(), |rate| format!("{rate:.2}"));
        let read = format!("{:.1} GB/s", self.read_gb_s);
        add(
            format!("pp{}", self.prompt),
            self.prefill_tok_s,
            spread(self.prompt, &self.prefill_s),
            String::new(),
            match self.prefill_vector_peak_pct {
                None => percent(self.prefill_peak_pct, "the multiply-add peak"),
                share => percent(share, "the vector unit's multiply-add peak"),
            },
        );
        add(
            format!("tg{}", self.decode),
            self.decode_tok_s,
            spread(self.decode, &self.decode_s),
            gb_s,
            percent(self.decode_floor_pct, &read),
        );
        markdown(&rows)
    }
}

/// Half the distance between the slowest and the fastest repetition, in tokens per second.
fn spread(tokens: usize, seconds: &[f64]) -> f64 {
    let speeds = || seconds.iter().map(|seconds| tokens as f64 / seconds);
    (speeds().fold(f64::NEG_INFINITY, f64::max) - speeds().fold(f64::INFINITY, f64::min)) / 2.0
}

/// A Markdown table of `rows`, the first of which is the head; columns from the fifth on are
/// numbers.
fn markdown<const N: usize>(rows: &[[String; N]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let is_number = |column: usize| (4..7).contains(&column);
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            text += &if is_number(column) {
                format!("| {cell:>width$} ")
            } else {
                format!("| {cell:<width$} ")
            };
        }
        text += "|\n";
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let end = if is_number(column) { ":" } else { "-" };
                text += &format!("|{}{end}", "-".repeat(width + 1));
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_markdown() {
        let row = |cells: [&str; 5]| cells.map(str::to_owned);
        let text = markdown(&[
            row(["model", "size", "device", "test", "tok/s"]),
            row(["m", "1 B", "cpu", "pp1", "9.5"]),
        ]);
        assert_eq!(
            text,
            "| model | size | device | test | tok/s |\n|-------|------|--------|------|------:|\n| m     | 1 B  | cpu    | pp1  |   9.5 |\n"
        );
    }

    #[test]
    fn the_spread_is_half_of_fastest_less_slowest() {
        assert_eq!(spread(10, &[1.0, 2.0]), 2.5);
        assert_eq!(spread(10, &[1.0]), 0.0);
    }
}
