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
    #[error("{path}: not a budget: {source}", path = path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// The line, what was found and what was expected.
        source: Box<toml::de::Error>,
    },
}

/// The budget in a TOML file.
///
/// # Errors
/// [`BudgetError`]: the file, the line, what was found and what was expected. Keys that are no limits
/// are errors.
pub fn read_budget(path: &Path) -> Result<Budget, BudgetError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| BudgetError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| BudgetError::Parse { path: path.to_owned(), source: Box::new(source) })
}
