//! How a command ends when it does not end well.

use std::io;
use std::process::ExitCode;

use metal_marlin::perplexity::PerplexityError;
use metal_marlin::pull::PullError;
use metal_marlin::{EngineError, ModelError};

use crate::output::one_line;

/// Why a command stopped.
#[derive(Debug)]
pub(crate) enum CliError {
    /// The command line asks for something that makes no sense: exit code 2.
    Usage(String),
    /// It was tried and failed: exit code 1.
    Failed {
        /// What it is about, what was found and what was expected.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// Whoever read our output has gone, as in `marlin … | head`: nothing is left to do, nothing
    /// failed.
    ReaderGone,
}

impl CliError {
    /// A failure with nothing to advise.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None }
    }

    /// A failure, and what to do about it.
    pub(crate) fn with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: Some(hint.into()) }
    }

    /// For `map_err`: writing to standard output failed.
    pub(crate) fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ReaderGone;
        }
        Self::failed(format!("standard output: cannot write: {error}"))
    }

    /// Says what happened, in one line on standard error, and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let (message, hint, code) = match self {
            Self::ReaderGone => return ExitCode::SUCCESS,
            Self::Usage(message) => (message, Some("see --help".to_owned()), ExitCode::from(2)),
            Self::Failed { message, hint } => (message, hint, ExitCode::FAILURE),
        };
        let hint = hint.map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
        // With standard error gone too there is nobody left to tell.
        let _ = io::Write::write_all(
            &mut io::stderr(),
            format!("error: {}{}\n", one_line(&message), one_line(&hint)).as_bytes(),
        );
        code
    }
}

impl From<PullError> for CliError {
    fn from(error: PullError) -> Self {
        Self::Failed { message: error.to_string(), hint: error.hint().map(str::to_owned) }
    }
}

impl From<EngineError> for CliError {
    fn from(error: EngineError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<ModelError> for CliError {
    fn from(error: ModelError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<PerplexityError> for CliError {
    fn from(error: PerplexityError) -> Self {
        let hint = match error {
            PerplexityError::TooShort { .. } => {
                Some("give a longer text, or a smaller --ctx".to_owned())
            }
            _ => None,
        };
        Self::Failed { message: error.to_string(), hint }
    }
}
