//! Budgets from files.

use std::path::{Path, PathBuf};

use marlin_placement::audit::Budget;

/// A budget cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// The file.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in it.
    #[error("{path}:{line}:{column}: not a budget: {message}", path = path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// One-based.
        line: usize,
        /// One-based, in characters.
        column: usize,
        /// What was found and what was expected.
        message: String,
    },
}

impl BudgetError {
    fn parse(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        // A syntax error's message has lines of its own.
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        Self::Parse { path: path.to_owned(), line, column, message }
    }
}

/// The budget in a TOML file.
///
/// # Errors
/// [`BudgetError`]: the file, the line, what was found and what was expected. Keys that are no limits
/// are errors.
pub fn read_budget(path: &Path) -> Result<Budget, BudgetError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| BudgetError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|error| BudgetError::parse(path, &text, &error))
}
