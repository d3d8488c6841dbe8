//! `marlin perplexity`: how well a model predicts a text.

use std::fs;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use metal_marlin::perplexity::{PerplexityOptions, perplexity};
use metal_marlin::{KvFormat, SessionOptions};

use crate::error::CliError;
use crate::interrupt::Interrupt;
use crate::model;
use crate::options::{Kv, ModelOptions};
use crate::output::{note, print, print_json};
use crate::progress_bar::steps;

/// Measure how well a model predicts a text, in the windows of llama-perplexity
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  marlin perplexity -m model.gguf -f wiki.test.raw
  marlin perplexity -f text.txt --ctx 512 --chunks 8 --json

The text is cut into windows of --ctx tokens; in each, the second half is predicted from what comes
before it in the window. Lower is better; 1 would be certainty. Ctrl-C gives the result so far.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelOptions,

    /// The text; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,

    /// Tokens of a window
    #[arg(long, value_name = "N", default_value = "512")]
    ctx: NonZeroUsize,

    /// Most windows to compute [default: all]
    #[arg(long, value_name = "N")]
    chunks: Option<NonZeroUsize>,

    /// How keys and values are kept
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    kv: Kv,

    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Outputs per step. Their logits are all in memory at once: with a vocabulary of 256 thousand
/// tokens, 64 take as much as a small model's weights.
const OUTPUTS: usize = 64;

pub(crate) fn run(args: &Args) -> Result<(), CliError> {
    let text = read_text(&args.file)?;
    let ctx = args.ctx.get();
    let options = SessionOptions {
        ctx,
        batch: ctx.min(512),
        outputs: OUTPUTS,
        kv: KvFormat::from(args.kv),
        ..SessionOptions::default()
    };
    let model = model::load(&args.model, Some(options.clone()))?;
    // As llama-perplexity does it: BOS where the model wants one, special tokens in the text are
    // text.
    let tokens =
        model.tokenizer().encode(&text, true, false).map_err(metal_marlin::EngineError::from)?;
    let mut session = model.session(options)?;
    let options = PerplexityOptions { ctx, chunks: args.chunks.map(NonZeroUsize::get) };
    let interrupt = Interrupt::install()?;
    let windows = options.chunks.unwrap_or(usize::MAX).min(tokens.len() / ctx);
    let bar = steps("", windows as u64);
    let result = perplexity(&mut session, &tokens, &options, &mut |so_far, _| {
        bar.set_message(format!("{:.4} ± {:.4}", so_far.perplexity, so_far.stderr));
        bar.set_position(so_far.chunks as u64);
        if interrupt.is_raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    bar.finish_and_clear();
    if interrupt.is_raised() && result.chunks < windows {
        note(&format!("interrupted after {} of {windows} windows", result.chunks));
    }
    if args.json {
        return print_json(&result);
    }
    print(&format!(
        "perplexity {:.4} ± {:.4} over {} tokens in {} windows of {ctx}\n",
        result.perplexity, result.stderr, result.tokens, result.chunks
    ))
}

fn read_text(path: &Path) -> Result<String, CliError> {
    let read = || -> io::Result<Vec<u8>> {
        if path == Path::new("-") {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes)?;
            return Ok(bytes);
        }
        fs::read(path)
    };
    let bytes = read()
        .map_err(|error| CliError::failed(format!("{}: cannot read: {error}", path.display())))?;
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        CliError::failed(format!("{}: byte {at} is not UTF-8, expected a text", path.display()))
    })?;
    // llama-perplexity takes one line break off the end of a file.
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}
