//! `cargo run -p marlin-audit --features cli --example marlin-audit -- source PATH…`

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use marlin_audit::cli;

/// Audits Metal host code.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Source(Box<cli::SourceArgs>),
    Explain(cli::ExplainArgs),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Source(args) => cli::source(&args),
        Command::Explain(args) => cli::explain(&args),
    }
}
