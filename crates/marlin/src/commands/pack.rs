//! `marlin pack`: a model's file in the order that GPU kernels read.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use marlin_models::{ModelSource, PackOptions, pack};
use serde::Serialize;

use crate::error::CliError;
use crate::interrupt::Interrupt;
use crate::model::{self, MODEL_HELP};
use crate::output::{bytes, one_line, print, print_json};
use crate::progress_bar::byte_bar;

/// Write a model in the order that GPU kernels read, so that a GPU can use the file as it is
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  marlin pack model.gguf -o model.packed.gguf
  marlin pack owner/repo:Q4_K_M -o model.packed.gguf
  marlin pack checkpoint/ -o checkpoint.packed/

A GGUF file becomes a GGUF file, a Hugging Face folder a folder. Numbers keep their exact values, and every command
takes the result like any other model, on every device. A GPU that shares the host's memory (Apple's) reads the
mapped file in place; on others loading is one upload, without reordering. docs/packed-files.md specifies the files.")]
pub(crate) struct Args {
    #[arg(value_name = "MODEL", help = "The model [default: smollm2-135m]", long_help = MODEL_HELP)]
    model: Option<String>,

    /// Where to write it: a file for a GGUF model, a folder for a Hugging Face one
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,

    /// Replace what is there
    #[arg(long)]
    force: bool,

    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Packed<'a> {
    path: &'a Path,
    matrices: usize,
    vectors: usize,
    unchanged: usize,
    source_bytes: u64,
    bytes: u64,
}

pub(crate) fn run(args: &Args) -> Result<(), CliError> {
    let source = ModelSource::open(&model::resolve(args.model.as_deref())?)?;
    // From here on something could be left half done.
    let interrupt = Interrupt::install()?;
    let name = args.output.file_name().unwrap_or(args.output.as_os_str()).to_string_lossy();
    let bar = byte_bar(&format!("packing {}", one_line(&name)), source.bytes());
    let mut progress = |done: u64, _| {
        bar.set_position(done);
        if interrupt.is_raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let options = PackOptions { force: args.force };
    let outcome = pack(&source, &args.output, options, &mut progress);
    bar.finish_and_clear();
    let packed = outcome.map_err(|error| match args.output.exists() && !args.force {
        true => CliError::with_hint(error.to_string(), "--force replaces it"),
        false => CliError::from(error),
    })?;
    let packed = Packed {
        path: &packed.path,
        matrices: packed.matrices,
        vectors: packed.vectors,
        unchanged: packed.unchanged,
        source_bytes: packed.source_bytes,
        bytes: packed.bytes,
    };
    if args.json { print_json(&packed) } else { print(&packed.text()) }
}

impl Packed<'_> {
    fn text(&self) -> String {
        format!(
            "{}: {} in {} matrices and {} vectors, {} of weights before\n",
            one_line(&self.path.display().to_string()),
            bytes(self.bytes),
            self.matrices,
            self.vectors,
            bytes(self.source_bytes)
        )
    }
}
