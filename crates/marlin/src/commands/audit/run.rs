//! `marlin audit run`: generates, and says what that did to memory.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use marlin_audit::run::{Exchange, RunReport, html, json, markdown, read_budget, text};
use metal_marlin::{Budget, BudgetLine};

use crate::commands::run::{Prepared, RunOptions};
use crate::error::CliError;
use crate::output::{aside, note, print};

/// Pieces of text after which another step is traced: the first steps touch memory for the first
/// time.
const WARM_PIECES: usize = 4;

/// Generate, and audit what it did: every buffer, every copy, what a token cost
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  marlin audit run \"Why is the sky blue?\"
  marlin audit run --format html -o audit.html --max-tokens 64 \"Hello\"
  marlin audit run --budget budgets/design.toml --raw \"The capital of France is\"
  marlin audit run --format json \"Hello\" | jq .summary.per_token

The report goes to standard output, or to the file of -o; the answer goes to standard error. Without
--budget the report shows the budgets that this project holds itself to.
Exit codes: 0 done, 1 over the budget of --budget or failed, 2 wrong usage.")]
pub(crate) struct Args {
    #[command(flatten)]
    options: RunOptions,

    /// How to show the audit
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// Hold the run against the limits in this TOML file, and fail if it is over one
    #[arg(long, value_name = "FILE")]
    budget: Option<PathBuf>,

    /// Write the report here instead of to standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Formats of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For a terminal
    Text,
    /// The two audits as documents
    Markdown,
    /// Everything, for programs
    Json,
    /// One self-contained page with charts
    Html,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    // A file with a mistake in it is told of before the model is loaded.
    let given = args.budget.as_ref().map(|path| read_budget(path)).transpose();
    let given = given.map_err(|error| CliError::Usage(error.to_string()))?;
    let Prepared { model, mut session, prompt, tokens, generate } = args.options.prepare()?;
    let ledger = model.ledger();
    ledger.trace_next_step();
    let mut pieces = 0;
    let generated = session.generate(&tokens, &generate, &mut |text| {
        pieces += 1;
        if pieces == WARM_PIECES {
            ledger.trace_next_step();
        }
        aside(text);
        ControlFlow::Continue(())
    })?;
    aside(if generated.text.ends_with('\n') { "" } else { "\n" });
    let audit = session.audit();
    let budget = given.clone().unwrap_or_else(Budget::design).check(&audit);
    let name = args.budget.as_ref().map_or("design".to_owned(), |p| p.display().to_string());
    let report = RunReport {
        audit: &audit,
        budget_name: &name,
        budget: &budget,
        exchange: Some(Exchange { prompt: &prompt, answer: &generated.text }),
    };
    let page = match args.format {
        Format::Text => text(&report),
        Format::Markdown => markdown(&report),
        Format::Json => json(&report),
        Format::Html => html(&report),
    };
    match &args.output {
        Some(path) => std::fs::write(path, page).map_err(|error| {
            CliError::failed(format!("{}: cannot be written: {error}", path.display()))
        })?,
        None => print(&page)?,
    }
    let over: Vec<&BudgetLine> = budget.iter().filter(|line| line.exceeded).collect();
    if given.is_none() || over.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    note(&format!("error: over the budget {name}:"));
    for line in
        over.iter().flat_map(|line| line.to_string().lines().map(str::to_owned).collect::<Vec<_>>())
    {
        note(&format!("  {line}"));
    }
    Ok(ExitCode::FAILURE)
}
