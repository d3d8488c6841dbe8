//! `marlin audit`: finds wrong storage modes and needless copies in Metal host code.

use std::process::ExitCode;

use clap::Subcommand;
use marlin_audit::cli::{ExplainArgs, SourceArgs, explain, source};

/// Find wrong storage modes and needless copies in Metal host code
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Source(Box<SourceArgs>),
    Explain(ExplainArgs),
}

/// The auditor's own exit codes: 0 clean, 1 findings, 2 usage.
pub(crate) fn run(args: &Args) -> ExitCode {
    match &args.what {
        What::Source(args) => source(args),
        What::Explain(args) => explain(args),
    }
}
