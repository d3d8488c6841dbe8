//! `marlin run`: one prompt, one answer.

use std::io::{self, IsTerminal, Read};
use std::ops::ControlFlow;
use std::sync::Arc;

use metal_marlin::{GenerateOptions, Message, Model, Session};
use serde::Serialize;

use crate::ceilings;
use crate::error::CliError;
use crate::interrupt::Interrupt;
use crate::model;
use crate::options::{ContextOptions, GenerationOptions, ModelOptions};
use crate::output::{AnswerWriter, note, print_json};
use crate::totals::Totals;

/// Answer one prompt
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  marlin run \"Why is the sky blue?\"
  marlin run - < question.txt
  marlin run --raw --temperature 0 \"The capital of France is\"
  marlin run --json \"Hello\" | jq -r .text

Standard output is the generated text alone. What it took goes to standard error when that is a
terminal, or with -v. Ctrl-C ends the text and still says what it took.")]
pub(crate) struct Args {
    #[command(flatten)]
    options: RunOptions,

    /// Write one JSON object with the text and what it took
    #[arg(long)]
    json: bool,

    /// Say what it took even when standard error is not a terminal
    #[arg(short, long)]
    verbose: bool,
}

/// One prompt for one model.
#[derive(clap::Args)]
pub(crate) struct RunOptions {
    /// The prompt; `-` reads it from standard input
    #[arg(value_name = "PROMPT", allow_hyphen_values = false)]
    prompt: Option<String>,

    #[command(flatten)]
    model: ModelOptions,

    /// Continue the prompt as it is, without the model's chat template
    #[arg(long, conflicts_with = "system")]
    raw: bool,

    /// What the assistant is told before the prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    #[command(flatten)]
    generation: GenerationOptions,

    #[command(flatten)]
    context: ContextOptions,
}

/// A prompt on its way into a loaded model.
pub(crate) struct Prepared {
    pub(crate) model: Arc<Model>,
    pub(crate) session: Session,
    /// The prompt as it was given.
    pub(crate) prompt: String,
    /// The prompt as the model gets it.
    pub(crate) tokens: Vec<u32>,
    pub(crate) generate: GenerateOptions,
}

impl RunOptions {
    /// Reads the prompt, loads the model and makes a session; Ctrl-C then ends the text.
    pub(crate) fn prepare(&self) -> Result<Prepared, CliError> {
        let prompt = prompt(self.prompt.as_deref())?;
        let model = model::load_for(&self.model, &self.context)?;
        let tokens = self.encode(&model, &prompt)?;
        let session = model::session(&model, &self.context)?;
        let interrupt = Interrupt::install()?;
        let generate = GenerateOptions {
            sampling: self.generation.clone().decided_for(&self.model).sampling(),
            max_tokens: self.generation.max_tokens.get(),
            stop: self.generation.stop.clone(),
            cancel: Some(interrupt.flag()),
            ..GenerateOptions::default()
        };
        Ok(Prepared { model, session, prompt, tokens, generate })
    }

    fn encode(&self, model: &Model, prompt: &str) -> Result<Vec<u32>, CliError> {
        if self.raw {
            return Ok(model.encode_raw(prompt)?);
        }
        let system = self.system.clone().map(|text| Message::new("system", text));
        let messages: Vec<Message> =
            system.into_iter().chain([Message::new("user", prompt)]).collect();
        Ok(model.encode_chat(&messages)?)
    }
}

/// The answer for scripts.
#[derive(Serialize)]
struct Answer<'a> {
    text: &'a str,
    #[serde(flatten)]
    totals: Totals,
}

pub(crate) fn run(args: &Args) -> Result<(), CliError> {
    let Prepared { model, mut session, tokens, generate, .. } = args.options.prepare()?;
    let (temperature, seed) = (generate.sampling.temperature, generate.sampling.seed);
    let mut writer = AnswerWriter::new();
    let generated = session.generate(&tokens, &generate, &mut |text| {
        if args.json { ControlFlow::Continue(()) } else { writer.write(text) }
    })?;
    let shows_totals = args.verbose || io::stderr().is_terminal();
    if args.json {
        let ceilings = ceilings::known(&model);
        let totals = Totals::new(&generated, &model, Some(ceilings.read_bytes_per_s));
        print_json(&Answer { text: &generated.text, totals })?;
    }
    let written = writer.finish();
    if shows_totals && !args.json {
        // Measuring takes a second: only who asked for more waits for it.
        let ceilings =
            if args.verbose { Some(ceilings::known(&model)) } else { ceilings::remembered(&model) };
        let totals =
            Totals::new(&generated, &model, ceilings.map(|ceilings| ceilings.read_bytes_per_s));
        note(&format!("{} | load: {:.2} s", totals.text(), totals.load_s));
    }
    if args.verbose {
        note(&format!(
            "{} | temperature: {temperature} | seed: {seed}",
            model.device_description()
        ));
    }
    written
}

/// The prompt as given, or as piped in.
fn prompt(given: Option<&str>) -> Result<String, CliError> {
    let text = match given {
        Some(text) if text != "-" => text.to_owned(),
        None if io::stdin().is_terminal() => {
            return Err(CliError::Usage(
                "no prompt: expected a text, or - to read standard input".to_owned(),
            ));
        }
        _ => {
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text).map_err(|error| {
                CliError::failed(format!("standard input: cannot read the prompt: {error}"))
            })?;
            // The line break at the end is the file's, not the prompt's.
            text.truncate(text.trim_end_matches(['\n', '\r']).len());
            text
        }
    };
    if text.is_empty() {
        return Err(CliError::Usage("the prompt is empty".to_owned()));
    }
    Ok(text)
}
