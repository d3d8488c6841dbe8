//! `marlin audit`: finds wrong storage modes and needless copies in Metal host code, and says what a
//! run of a model did.

mod run;

use std::process::ExitCode;

use clap::Subcommand;
use marlin_audit::cli::{ExplainArgs, SourceArgs, explain, source};

/// Audit memory: of a run, or of the source of Metal host code
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Run(Box<run::Args>),
    Source(Box<SourceArgs>),
    Explain(ExplainArgs),
}

/// The auditor's own exit codes: 0 clean, 1 findings or over the budget, 2 usage.
pub(crate) fn run(args: &Args) -> ExitCode {
    match &args.what {
        What::Run(args) => run::run(args).unwrap_or_else(crate::error::CliError::report),
        What::Source(args) => source(args),
        What::Explain(args) => explain(args),
    }
}
