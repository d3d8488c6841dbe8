//! A baseline: the findings that a project lives with, so that only new ones are shown.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::report::{Finding, Report};

/// The version of the file's format.
const VERSION: u32 = 1;

/// Known findings, by a fingerprint of rule, file, function and the text of the line, so that
/// edits elsewhere in a file do not make old findings new.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    fingerprints: HashSet<String>,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    findings: Vec<Known>,
}

#[derive(Serialize, Deserialize)]
struct Known {
    rule: String,
    file: String,
    function: String,
    fingerprint: String,
}

/// A baseline could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The file system refuses.
    #[error("baseline {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What it says.
        source: std::io::Error,
    },
    /// It is not a baseline.
    #[error("baseline {path}: {source}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It was written by another version.
    #[error("baseline {path}: version {found}, expected {VERSION}")]
    Version {
        /// The file.
        path: String,
        /// The version found.
        found: u32,
    },
}

impl Baseline {
    /// Reads a baseline.
    ///
    /// # Errors
    ///
    /// [`BaselineError`] when the file cannot be read or is not a baseline.
    pub fn read(path: &Path) -> Result<Self, BaselineError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| BaselineError::Io { path: name.clone(), source })?;
        let disk: OnDisk = serde_json::from_str(&text)
            .map_err(|source| BaselineError::Format { path: name.clone(), source })?;
        if disk.version != VERSION {
            return Err(BaselineError::Version { path: name, found: disk.version });
        }
        Ok(Self { fingerprints: disk.findings.into_iter().map(|k| k.fingerprint).collect() })
    }

    /// Writes the findings of a report as a baseline.
    ///
    /// # Errors
    ///
    /// [`BaselineError`] when the file cannot be written.
    pub fn write(path: &Path, report: &Report) -> Result<(), BaselineError> {
        let findings = report
            .findings
            .iter()
            .map(|f| Known {
                rule: f.rule.to_string(),
                file: f.file.clone(),
                function: f.function.clone(),
                fingerprint: f.fingerprint.clone(),
            })
            .collect();
        let name = path.display().to_string();
        let disk = OnDisk { version: VERSION, findings };
        let mut text = serde_json::to_string_pretty(&disk)
            .map_err(|source| BaselineError::Format { path: name.clone(), source })?;
        text.push('\n');
        std::fs::write(path, text).map_err(|source| BaselineError::Io { path: name, source })
    }

    /// Whether the baseline knows a finding.
    pub fn contains(&self, finding: &Finding) -> bool {
        self.fingerprints.contains(&finding.fingerprint)
    }
}
