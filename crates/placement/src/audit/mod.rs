//! The audit of a run: what a [`LedgerReport`] amounts to.
//!
//! The two audits that a person would write by going through the code, worked out from what was
//! counted: every buffer with its mode, its access pattern *as observed* and the mode that
//! [`policy`](crate::policy) gives for that pattern; every copy with its direction, bytes and whether
//! it could be avoided. A [`Budget`] says how much of each is allowed.
//!
//! It lives beside the policy and the ledger because it is the third use of the one table and needs
//! nothing but them: a session can give its audit to any program, and only who wants pages needs
//! the renderers (`marlin-audit`). Behind the feature `audit`, for `serde`.

mod budget;
mod buffers;
mod category;
mod copies;
mod memory;
mod site;
mod summary;
mod timeline;

use serde::{Deserialize, Serialize};

use crate::{Device, LedgerReport, StorageMode};

pub use budget::{
    Budget, BudgetLine, CopyLimits, Limit, LoadBudget, LoadCopyLimits, Spent, StepBudget,
};
pub use buffers::{AccessRow, BufferRow};
pub use category::Category;
pub use copies::{CopyKind, CopyRow, EventKind, EventRow};
pub use memory::{MemoryPoint, MemorySeries};
pub use site::{CallSite, Functions};
pub use summary::{CategoryTotal, CopyTotal, ModeTotal, PerToken, PhaseTotal, Summary, Weights};
pub use timeline::{StepTimeline, TimelineEvent, TimelineKind};

/// The version of [`RunAudit`]'s serialised form. It grows when a field changes its meaning or goes;
/// new fields do not change it.
pub const SCHEMA: u32 = 1;

/// What ran, as far as reports name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFacts {
    /// The model's name.
    pub model: String,
    /// `cpu`, `cuda`, `metal`, `emulated`.
    pub device: String,
    /// One line about the device.
    pub device_description: String,
    /// Positions per sequence that the session has room for.
    pub context: u64,
    /// Sequences at once that it has room for.
    pub sequences: u64,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing needs to change.
    Note,
    /// Costs memory, bandwidth or time.
    Warning,
    /// What was said of a buffer is not what happened to it.
    Error,
}

impl Severity {
    /// The word for it in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Something to act on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The source auditor's code for the same thing, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// How bad it is.
    pub severity: Severity,
    /// The line that it is about.
    pub site: CallSite,
    /// What was found.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// The two audits of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunAudit {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What ran.
    pub run: RunFacts,
    /// What memory the device has.
    pub memory: Device,
    /// Nanoseconds since the model was opened.
    pub elapsed_ns: u64,
    /// Numbers on top.
    pub summary: Summary,
    /// Buffers, those of one line that differ only in a number as one row; by call site.
    pub buffers: Vec<BufferRow>,
    /// Copies and read-backs; by call site.
    pub copies: Vec<CopyRow>,
    /// Dispatches, submissions and waits; by call site.
    pub events: Vec<EventRow>,
    /// What to act on, the worst first.
    pub findings: Vec<Finding>,
    /// Live bytes by category over time.
    pub memory_over_time: Vec<MemorySeries>,
    /// One decode step event by event, if one was traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepTimeline>,
}

impl RunAudit {
    /// What `report` amounts to. `functions` names the functions of call sites.
    ///
    /// Buffers of no bytes are left out: they are places for what this model does not have.
    pub fn new(report: &LedgerReport, run: RunFacts, functions: Functions<'_>) -> Self {
        let mut report = report.clone();
        report.buffers.retain(|buffer| buffer.bytes > 0);
        let report = &report;
        let buffers = buffers::rows(report, functions);
        let copies = copies::rows(report, functions);
        let mut findings = buffers::findings(&buffers, report.memory);
        findings.extend(copies::findings(&copies));
        findings.sort_by(|a, b| (b.severity, &a.site).cmp(&(a.severity, &b.site)));
        Self {
            schema: SCHEMA,
            run,
            memory: report.memory,
            elapsed_ns: report.elapsed_ns,
            summary: Summary::of(report),
            buffers,
            copies,
            events: copies::events(report, functions),
            findings,
            memory_over_time: memory::over_time(report),
            step: report.trace.as_ref().map(|trace| StepTimeline::of(trace, functions)),
        }
    }

    /// Whether every buffer has the mode that the policy gives for what was observed.
    pub fn modes_agree(&self) -> bool {
        self.buffers.iter().all(|b| {
            b.suggested_mode.resolve(self.memory) == b.mode.resolve(self.memory)
                || b.suggested_mode == StorageMode::Inline
        })
    }
}
