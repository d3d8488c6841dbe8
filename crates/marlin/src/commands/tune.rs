//! `marlin tune`: the fastest division of a model's products on a GPU, found ahead of time.

use std::num::NonZeroUsize;

use marlin_backend::TunedProduct;
use marlin_formats::Format;
use metal_marlin::open_device;
use metal_marlin::random_model::ModelShape;
use serde::Serialize;

use crate::commands::bench::shape_by_name;
use crate::error::CliError;
use crate::model;
use crate::options::ModelOptions;
use crate::output::{print, print_json};
use crate::progress_bar::steps;
use crate::totals::rounded;

/// Measure how a model's products run fastest on a GPU, and keep that for later runs
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  marlin tune -m model.gguf --device cuda
  marlin tune --shape llama-3-8b --format int4-g128 --device cuda

What is found is kept in the user's cache folder, by device, format, shape and number of tokens, until the
kernels change. Without it, good defaults are used: nothing ever waits for tuning. The processor has
nothing to tune.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelOptions,

    /// Tune for a model of this shape with random weights instead of a file
    #[arg(long, value_name = "NAME", value_parser = shape_by_name, conflicts_with = "model")]
    shape: Option<ModelShape>,

    /// Format of that model's matrices
    #[arg(long, default_value = "int4-g128", value_name = "FORMAT", requires = "shape")]
    format: Format,

    /// Tokens of a step to tune for
    #[arg(long, value_delimiter = ',', default_value = "1,16,32,64,512", value_name = "N")]
    tokens: Vec<NonZeroUsize>,

    /// Measure again what is known
    #[arg(long)]
    again: bool,

    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    rows: usize,
    columns: usize,
    gated: bool,
    tokens: usize,
    default_us: f64,
    tuned_us: f64,
}

pub(crate) fn run(args: &Args) -> Result<(), CliError> {
    let tokens: Vec<usize> = args.tokens.iter().map(|n| n.get()).collect();
    let bar = steps("tuning", 0);
    let mut progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let found = match args.shape {
        Some(shape) => {
            let backend = open_device(&model::engine_options(&args.model))?;
            let failed = |error: marlin_backend::BackendError| CliError::failed(error.to_string());
            let program = shape.program(&*backend, args.format).map_err(failed)?;
            backend.tune(&program, &tokens, args.again, &mut progress).map_err(failed)?
        }
        None => model::load(&args.model, None)?.tune(&tokens, args.again, &mut progress)?,
    };
    bar.finish_and_clear();
    let lines: Vec<Line> = found.iter().map(Line::new).collect();
    if args.json { print_json(&lines) } else { print(&text(&lines)) }
}

impl Line {
    fn new(found: &TunedProduct) -> Self {
        let TunedProduct { rows, columns, gated, tokens, default_us, tuned_us } = *found;
        let (default_us, tuned_us) = (rounded(default_us), rounded(tuned_us));
        Self { rows, columns, gated, tokens, default_us, tuned_us }
    }
}

fn text(lines: &[Line]) -> String {
    if lines.is_empty() {
        return "nothing to tune: everything is known, or the device has nothing to choose\n"
            .to_owned();
    }
    let mut text = String::from(
        "| rows | columns | product | tokens up to | default µs | tuned µs |\n|---:|---:|---|---:|---:|---:|\n",
    );
    for line in lines {
        let Line { rows, columns, tokens, default_us, tuned_us, .. } = line;
        let product = if line.gated { "gate · up" } else { "linear" };
        text += &format!(
            "| {rows} | {columns} | {product} | {tokens} | {default_us:.1} | {tuned_us:.1} |\n"
        );
    }
    text
}
