//! The buffer copy audit: one row for each line that copies, or reads in place what the device wrote;
//! and the other things that were counted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CallSite, Category, Finding, Functions, Severity};
use crate::{Device, Direction, EventLine, LedgerReport, Phase};

/// Bytes of a sampled token's id: what the host needs of a decode step.
const TOKEN_BYTES: f64 = 4.0;

/// Whether bytes moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyKind {
    /// They did.
    Copy,
    /// The host read them where the device wrote them.
    ReadInPlace,
}

/// Copies of one line, reason, direction and phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyRow {
    /// The line.
    pub site: CallSite,
    /// Whether bytes moved.
    pub kind: CopyKind,
    /// Which way.
    pub direction: Direction,
    /// Why it was made; for a read in place the buffer.
    pub reason: String,
    /// When.
    pub phase: Phase,
    /// How many.
    pub count: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes for each token of each sequence; in decode only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_token: Option<f64>,
    /// Whether it could be avoided.
    pub avoidable: bool,
    /// Why, or what to do instead.
    pub why: String,
}

/// What is counted beside copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A kernel or op ran.
    Dispatch,
    /// Commands were handed to the device.
    Submission,
    /// The host waited for the device.
    Wait,
}

/// Events of one line, label and phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    /// What.
    pub kind: EventKind,
    /// The line.
    pub site: CallSite,
    /// The kernel, or the reason.
    pub label: String,
    /// When.
    pub phase: Phase,
    /// How many.
    pub count: u64,
}

fn per_token(report: &LedgerReport, phase: Phase, bytes: u64) -> Option<f64> {
    let tokens = report.steps(phase).tokens;
    (phase == Phase::Decode && tokens > 0).then(|| bytes as f64 / tokens as f64)
}

/// Whether a copy could be avoided, and why or what to do instead.
fn verdict(
    report: &LedgerReport,
    direction: Direction,
    phase: Phase,
    bytes: u64,
) -> (bool, &'static str) {
    let unified = report.memory == Device::Unified;
    let steps = report.steps(phase);
    // A pipelined step is read when the next one is under way, so each phase may read one step's
    // results more.
    let outputs = steps.outputs.max(1) as f64;
    match (direction, phase) {
        (Direction::HostToHost, Phase::Load) => (
            true,
            "a file whose tensors lie in the order and type that the kernels read is used as it is",
        ),
        (Direction::HostToHost, _) => (true, "write it where it is needed"),
        (Direction::HostToDevice, Phase::Load) if unified => {
            (true, "the device shares the host's memory: adopt it without a copy")
        }
        (Direction::HostToDevice, Phase::Load) => (false, "once: the device has memory of its own"),
        (Direction::HostToDevice, _) if unified => {
            (true, "the device shares the host's memory: write it in place")
        }
        (Direction::HostToDevice, _) => {
            (false, "what the step is told: token ids, positions, lengths")
        }
        (Direction::DeviceToHost, Phase::Load) => (true, "the host has what it loaded"),
        (Direction::DeviceToHost, _) if bytes as f64 <= TOKEN_BYTES * (outputs + 1.0) => {
            (false, "the sampled token, which the host turns into text")
        }
        (Direction::DeviceToHost, _) => {
            (true, "more than the sampled token: sample, score and search on the device")
        }
        (Direction::DeviceToDevice, Phase::Load) => {
            (false, "once: the final place of what was staged")
        }
        (Direction::DeviceToDevice, _) => {
            (true, "let the kernel before it write there, or the one after it read here")
        }
    }
}

pub(super) fn rows(report: &LedgerReport, functions: Functions<'_>) -> Vec<CopyRow> {
    let mut rows: Vec<CopyRow> = report
        .copies
        .iter()
        .map(|copy| {
            let EventLine { phase, label, count, bytes, ref site } = copy.event;
            let (avoidable, why) = verdict(report, copy.direction, phase, bytes);
            CopyRow {
                site: CallSite::parse(site, functions),
                kind: CopyKind::Copy,
                direction: copy.direction,
                reason: label.to_owned(),
                phase,
                count,
                bytes,
                bytes_per_token: per_token(report, phase, bytes),
                avoidable,
                why: why.to_owned(),
            }
        })
        .collect();
    rows.extend(reads_in_place(report, functions));
    rows.sort_by(|a, b| (&a.site, a.phase, &a.reason).cmp(&(&b.site, b.phase, &b.reason)));
    rows
}

/// What the host reads of buffers: no bytes move, but it is what a read-back costs where they would.
fn reads_in_place(report: &LedgerReport, functions: Functions<'_>) -> Vec<CopyRow> {
    let mut all: BTreeMap<(&str, &str, Phase), (u64, u64)> = BTreeMap::new();
    for buffer in &report.buffers {
        let category = Category::of(&buffer.name, &buffer.pattern);
        for phase in Phase::ALL {
            let (count, bytes) = buffer.host_reads_by_phase[phase as usize];
            // The host's own reading of the file's memory is no read-back.
            if count > 0 && !(buffer.pattern.aliases_host && category == Category::Weights) {
                let entry = all.entry((&buffer.site, &buffer.name, phase)).or_default();
                entry.0 += count;
                entry.1 += bytes;
            }
        }
    }
    let rows = all.into_iter().map(|((site, name, phase), (count, bytes))| {
        let (avoidable, why) = verdict(report, Direction::DeviceToHost, phase, bytes);
        CopyRow {
            site: CallSite::parse(site, functions),
            kind: CopyKind::ReadInPlace,
            direction: Direction::DeviceToHost,
            reason: name.to_owned(),
            phase,
            count,
            bytes,
            bytes_per_token: per_token(report, phase, bytes),
            avoidable,
            why: why.to_owned(),
        }
    });
    rows.collect()
}

pub(super) fn events(report: &LedgerReport, functions: Functions<'_>) -> Vec<EventRow> {
    let kinds = [
        (EventKind::Dispatch, &report.dispatches),
        (EventKind::Submission, &report.submissions),
        (EventKind::Wait, &report.waits),
    ];
    let rows = kinds.into_iter().flat_map(|(kind, lines)| {
        lines.iter().map(move |line| EventRow {
            kind,
            site: CallSite::parse(&line.site, functions),
            label: line.label.to_owned(),
            phase: line.phase,
            count: line.count,
        })
    });
    rows.collect()
}

pub(super) fn findings(rows: &[CopyRow]) -> Vec<Finding> {
    let avoidable = rows.iter().filter(|row| row.avoidable);
    let findings = avoidable.map(|row| {
        let severity = if row.phase == Phase::Decode { Severity::Warning } else { Severity::Note };
        let what = match row.kind {
            CopyKind::Copy => format!("{} copies, {}", row.count, row.reason),
            CopyKind::ReadInPlace => format!("{} reads of `{}`", row.count, row.reason),
        };
        let per_token =
            row.bytes_per_token.map_or_else(String::new, |n| format!(", {n:.1} a token"));
        Finding {
            rule: None,
            severity,
            site: row.site.clone(),
            message: format!(
                "{what}: {} bytes {} during {}{per_token}",
                row.bytes,
                row.direction.name(),
                row.phase.name()
            ),
            help: row.why.clone(),
        }
    });
    findings.collect()
}
