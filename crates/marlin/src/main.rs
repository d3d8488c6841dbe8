//! The `marlin` program: quantised language models on this machine, from the command line.

mod ceilings;
mod commands;
mod error;
mod interrupt;
mod model;
mod options;
mod output;
mod progress_bar;
mod totals;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Run quantised language models on this machine.
///
/// Without a model named, commands use SmolLM2-135M-Instruct, which is fetched once (93 MB).
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  marlin run \"Why is the sky blue?\"
  marlin chat -m owner/repo:Q4_K_M
  marlin bench -m model.gguf

`marlin COMMAND --help` explains a command. Exit codes: 0 done, 1 failed, 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(commands::run::Args),
    Chat(commands::chat::Args),
    Bench(commands::bench::Args),
    Perplexity(commands::perplexity::Args),
    Inspect(commands::inspect::Args),
    Pack(commands::pack::Args),
    Pull(commands::pull::Args),
    Devices(commands::devices::Args),
    Selftest(commands::selftest::Args),
    Tune(commands::tune::Args),
    Audit(commands::audit::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => commands::run::run(&args),
        Command::Chat(args) => commands::chat::run(args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Perplexity(args) => commands::perplexity::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Pack(args) => commands::pack::run(&args),
        Command::Devices(args) => commands::devices::run(&args),
        Command::Selftest(args) => commands::selftest::run(&args),
        Command::Tune(args) => commands::tune::run(&args),
        // Findings are a result, not a failure.
        Command::Audit(args) => return commands::audit::run(&args),
        Command::Pull(args) => commands::pull::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
