//! What an audit found, and how it is shown.

mod html;
mod json;
mod markdown;
mod sarif;
mod text;

use serde::Serialize;

use crate::rules::{Code, Severity};

pub(crate) use html::escape;
pub use html::html;
pub use json::json;
pub use markdown::markdown;
pub use sarif::sarif;
pub use text::text;

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Direction {
    /// From host memory to the device.
    #[serde(rename = "host→device")]
    HostToDevice,
    /// From the device to host memory.
    #[serde(rename = "device→host")]
    DeviceToHost,
    /// Within host memory.
    #[serde(rename = "host→host")]
    HostToHost,
    /// Within the device's memory.
    #[serde(rename = "device→device")]
    DeviceToDevice,
    /// No data: the host waits for the device.
    #[serde(rename = "wait")]
    Wait,
}

impl Direction {
    /// As it is written in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostToDevice => "host→device",
            Self::DeviceToHost => "device→host",
            Self::HostToHost => "host→host",
            Self::DeviceToDevice => "device→device",
            Self::Wait => "wait",
        }
    }
}

/// How sure the auditor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Follows from the audited code.
    Proved,
    /// Concluded from names or positions.
    Inferred,
    /// Nothing was seen that says.
    Unknown,
}

impl Confidence {
    /// As it is written in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proved => "proved",
            Self::Inferred => "inferred",
            Self::Unknown => "unknown",
        }
    }
}

/// A row of the storage mode audit: one buffer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BufferRow {
    /// Path of the file, as given.
    pub file: String,
    /// Enclosing function.
    pub function: String,
    /// One-based line of the creation.
    pub line: usize,
    /// One-based column of the creation, in characters.
    pub column: usize,
    /// The variable or field that holds the buffer.
    pub buffer: String,
    /// Storage mode and further options as written.
    pub current_mode: String,
    /// What it is for, as far as the code tells.
    pub purpose: String,
    /// Who touches it, in words.
    pub access_pattern: String,
    /// What the host does: `none`, `writes`, `reads`, `reads+writes`, `unknown`.
    pub host: &'static str,
    /// What the device does: `none`, `reads`, `writes`, `reads+writes`, `unknown`.
    pub device: &'static str,
    /// The policy's advice.
    pub suggested_mode: String,
    /// Whether it is better bound inline, without a buffer.
    pub inline_candidate: bool,
    /// How sure the auditor is.
    pub confidence: Confidence,
    /// Why this mode.
    pub reason: String,
    /// Size in bytes, where it can be read off.
    pub size: Option<u64>,
    /// Kernel arguments it is bound to, as `kernel.argument`.
    pub bound_to: Vec<String>,
}

/// A copy, or a wait.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CopyRow {
    /// Path of the file, as given.
    pub file: String,
    /// Enclosing function.
    pub function: String,
    /// One-based line.
    pub line: usize,
    /// One-based column, in characters.
    pub column: usize,
    /// The rule.
    pub rule: Code,
    /// Which way the data goes.
    pub direction: Direction,
    /// In a loop, or in a function that runs per token, step or dispatch.
    pub in_hot_path: bool,
    /// Whether it can be avoided.
    pub avoidable: bool,
    /// What is copied.
    pub what: String,
    /// What to do instead.
    pub instead: String,
    /// How sure the auditor is.
    pub confidence: Confidence,
}

/// A binding without a copy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ZeroCopyRow {
    /// Path of the file, as given.
    pub file: String,
    /// Enclosing function.
    pub function: String,
    /// One-based line.
    pub line: usize,
    /// What is right.
    pub what: String,
}

/// A file, or a part of one, that was not audited.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Skipped {
    /// Path of the file, as given.
    pub file: String,
    /// Why.
    pub reason: String,
    /// False where only the parts in syntax errors were left out.
    pub whole_file: bool,
}

/// Something to act on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The rule.
    pub rule: Code,
    /// How bad it is.
    pub severity: Severity,
    /// Path of the file, as given.
    pub file: String,
    /// Enclosing function.
    pub function: String,
    /// One-based line.
    pub line: usize,
    /// One-based column, in characters.
    pub column: usize,
    /// One-based column after the last character, on the same line.
    pub end_column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
    /// How sure the auditor is.
    pub confidence: Confidence,
    /// Identifies the finding across edits elsewhere in the file.
    pub fingerprint: String,
    /// The offending line.
    #[serde(skip)]
    pub source_line: String,
}

/// A finding that a comment suppresses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Suppressed {
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
    /// The reason given in the comment.
    pub reason: String,
}

/// Counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Files read.
    pub files: usize,
    /// Lines in them.
    pub lines: usize,
    /// Buffer creations.
    pub buffers: usize,
    /// Copies and waits.
    pub copies: usize,
    /// Bindings without a copy.
    pub zero_copy: usize,
    /// Findings that count: neither suppressed nor in the baseline.
    pub findings: usize,
    /// Findings of severity `error` among them.
    pub errors: usize,
    /// Findings of severity `warning` among them.
    pub warnings: usize,
    /// Findings of severity `note` among them.
    pub notes: usize,
    /// Findings that comments suppress.
    pub suppressed: usize,
    /// Findings that the baseline knows.
    pub in_baseline: usize,
    /// Files not audited.
    pub skipped: usize,
}

/// The result of an audit.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Every buffer creation.
    pub buffers: Vec<BufferRow>,
    /// Every copy and wait.
    pub copies: Vec<CopyRow>,
    /// Bindings without a copy.
    pub zero_copy: Vec<ZeroCopyRow>,
    /// What to act on.
    pub findings: Vec<Finding>,
    /// Findings that comments suppress.
    pub suppressed: Vec<Suppressed>,
    /// What was not audited.
    pub skipped: Vec<Skipped>,
    /// Every audited file with host code or kernels in it.
    pub files: Vec<String>,
    /// Counts.
    pub totals: Totals,
}
