//! `marlin-audit.toml`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::TargetDevice;
use crate::rules::Code;

/// The name of the file, looked for in the audited folder and above.
const FILE_NAME: &str = "marlin-audit.toml";

/// What a project says about its audits.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Paths to leave out, as globs relative to the audited folder.
    pub exclude: Vec<String>,
    /// Names of functions that take a kernel's name and its buffers in binding order.
    pub dispatch_helpers: Vec<String>,
    /// Which devices the advice is for.
    pub device: Option<TargetDevice>,
    /// What makes an audit fail: rules or severities.
    pub fail_on: Vec<String>,
    /// Rules that are not reported.
    pub ignore: Vec<String>,
    /// The baseline, relative to this file.
    pub baseline: Option<PathBuf>,
}

/// A configuration could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file system refuses.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What it says.
        source: std::io::Error,
    },
    /// It is not a configuration.
    #[error("{path}: {source}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong, with the line.
        source: Box<toml::de::Error>,
    },
    /// A rule that does not exist.
    #[error("{path}: {source}")]
    Rule {
        /// The file.
        path: String,
        /// What was written.
        source: crate::rules::UnknownCode,
    },
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the file cannot be read, is not TOML or has unknown keys.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Io { path: name.clone(), source })?;
        let mut config: Self = toml::from_str(&text)
            .map_err(|e| ConfigError::Format { path: name.clone(), source: Box::new(e) })?;
        for rule in &config.ignore {
            rule.parse::<Code>()
                .map_err(|source| ConfigError::Rule { path: name.clone(), source })?;
        }
        if let (Some(baseline), Some(folder)) = (&config.baseline, path.parent()) {
            config.baseline = Some(folder.join(baseline));
        }
        Ok(config)
    }

    /// The configuration in `start` or the nearest folder above it, if there is one.
    pub fn find(start: &Path) -> Option<PathBuf> {
        let start = std::path::absolute(start).ok()?;
        start.ancestors().map(|folder| folder.join(FILE_NAME)).find(|file| file.is_file())
    }

    /// The ignored rules as codes.
    pub fn ignored(&self) -> Vec<Code> {
        self.ignore.iter().filter_map(|r| r.parse().ok()).collect()
    }
}
