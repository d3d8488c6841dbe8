//! The numbers on top of an audit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Category, buffers, memory};
use crate::{BufferLine, Direction, LedgerReport, Phase, StorageMode};

/// Buffers of one category.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CategoryTotal {
    /// Which.
    pub category: Category,
    /// Buffers that exist.
    pub buffers: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// The most bytes that there were at once.
    pub peak_bytes: u64,
}

/// Buffers of one mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeTotal {
    /// Which.
    pub mode: StorageMode,
    /// Buffers that exist.
    pub buffers: u64,
    /// Their bytes.
    pub live_bytes: u64,
}

/// Copies of one phase and direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyTotal {
    /// When.
    pub phase: Phase,
    /// Which way.
    pub direction: Direction,
    /// How many.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Everything else of one phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTotal {
    /// Which.
    pub phase: Phase,
    /// Steps.
    pub steps: u64,
    /// Tokens that they computed, all sequences together.
    pub tokens: u64,
    /// Tokens that were sampled.
    pub outputs: u64,
    /// Buffers made.
    pub allocations: u64,
    /// Their bytes.
    pub allocated_bytes: u64,
    /// Lists of commands handed to the device.
    pub submissions: u64,
    /// Kernels or ops run.
    pub dispatches: u64,
    /// Waits of the host for the device.
    pub waits: u64,
    /// Bytes that the host got from the device, by copies and in place.
    pub read_back_bytes: u64,
    /// Bytes that the host wrote into buffers in place.
    pub host_written_bytes: u64,
}

/// What a token costs. A step makes one token of every sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PerToken {
    /// Submissions of a decode step.
    pub submissions: f64,
    /// Dispatches of a decode step.
    pub dispatches: f64,
    /// Waits of a decode step.
    pub waits: f64,
    /// Bytes copied host to device, for each token of each sequence.
    pub uploaded_bytes: f64,
    /// Bytes that the host got for each sampled token, prompts' last tokens included: results of
    /// a step may be read when the next one is under way, in the next phase.
    pub read_back_bytes: f64,
}

/// How the weights came to the device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// Bytes that exist.
    pub bytes: u64,
    /// Of them in place in the file's memory.
    pub adopted_bytes: u64,
    /// Bytes uploaded while loading, without those for other buffers that were filled then.
    pub uploaded_bytes: u64,
    /// Bytes repacked or converted in host memory while loading.
    pub repacked_bytes: u64,
    /// How often each byte of the weights was uploaded.
    pub copies: f64,
}

/// The numbers on top of an audit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Buffers by category.
    pub by_category: Vec<CategoryTotal>,
    /// Buffers by mode.
    pub by_mode: Vec<ModeTotal>,
    /// Copies by phase and direction; those that there are.
    pub copies: Vec<CopyTotal>,
    /// Everything else by phase.
    pub phases: Vec<PhaseTotal>,
    /// What a token costs, if any was decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_token: Option<PerToken>,
    /// How the weights came to the device.
    pub weights: Weights,
    /// Constants of a dispatch that became buffers.
    pub parameter_buffers: u64,
}

impl Summary {
    pub(super) fn of(report: &LedgerReport) -> Self {
        let phases: Vec<PhaseTotal> =
            Phase::ALL.iter().map(|&phase| phase_total(report, phase)).collect();
        Self {
            by_category: by_category(report),
            by_mode: by_mode(report),
            copies: copies(report),
            per_token: per_token(report, &phases),
            weights: weights(report),
            parameter_buffers: count(report.buffers.iter().filter(|b| buffers::is_parameter(b))),
            phases,
        }
    }

    /// The numbers of one phase.
    pub fn phase(&self, phase: Phase) -> &PhaseTotal {
        &self.phases[phase as usize]
    }
}

fn count<'a>(buffers: impl Iterator<Item = &'a BufferLine>) -> u64 {
    buffers.count() as u64
}

fn phase_total(report: &LedgerReport, phase: Phase) -> PhaseTotal {
    let steps = report.steps(phase);
    let made = || report.buffers.iter().filter(|b| b.phase == phase);
    let written = report.buffers.iter().map(|b| b.host_writes_by_phase[phase as usize].1);
    PhaseTotal {
        phase,
        steps: steps.steps,
        tokens: steps.tokens,
        outputs: steps.outputs,
        allocations: count(made()),
        allocated_bytes: made().map(|b| b.bytes).sum(),
        submissions: report.submissions(phase),
        dispatches: report.dispatches(phase),
        waits: report.waits(phase),
        read_back_bytes: report.read_back_bytes(phase),
        host_written_bytes: written.sum(),
    }
}

fn by_category(report: &LedgerReport) -> Vec<CategoryTotal> {
    let series = memory::over_time(report);
    let totals = series.into_iter().map(|series| {
        let category = series.category;
        let live = || {
            let of = |b: &&BufferLine| Category::of(&b.name, &b.pattern) == category;
            report.buffers.iter().filter(|b| b.live).filter(of)
        };
        CategoryTotal {
            category,
            buffers: count(live()),
            live_bytes: live().map(|b| b.bytes).sum(),
            peak_bytes: series.peak_bytes,
        }
    });
    totals.collect()
}

fn by_mode(report: &LedgerReport) -> Vec<ModeTotal> {
    let mut totals: BTreeMap<StorageMode, (u64, u64)> = BTreeMap::new();
    for buffer in report.buffers.iter().filter(|b| b.live) {
        let total = totals.entry(buffer.mode).or_default();
        total.0 += 1;
        total.1 += buffer.bytes;
    }
    let totals = totals.into_iter();
    totals.map(|(mode, (buffers, live_bytes))| ModeTotal { mode, buffers, live_bytes }).collect()
}

fn copies(report: &LedgerReport) -> Vec<CopyTotal> {
    let mut totals: BTreeMap<(Phase, Direction), (u64, u64)> = BTreeMap::new();
    for copy in &report.copies {
        let total = totals.entry((copy.event.phase, copy.direction)).or_default();
        total.0 += copy.event.count;
        total.1 += copy.event.bytes;
    }
    let totals = totals.into_iter();
    totals
        .map(|((phase, direction), (count, bytes))| CopyTotal { phase, direction, count, bytes })
        .collect()
}

fn per_token(report: &LedgerReport, phases: &[PhaseTotal]) -> Option<PerToken> {
    let decode = &phases[Phase::Decode as usize];
    if decode.steps == 0 || decode.tokens == 0 {
        return None;
    }
    let steps = decode.steps as f64;
    let generated = [Phase::Prefill, Phase::Decode].map(|phase| &phases[phase as usize]);
    let outputs: u64 = generated.iter().map(|p| p.outputs).sum();
    let read: u64 = generated.iter().map(|p| p.read_back_bytes).sum();
    let uploaded = report.copied_bytes(Phase::Decode, Direction::HostToDevice);
    Some(PerToken {
        submissions: decode.submissions as f64 / steps,
        dispatches: decode.dispatches as f64 / steps,
        waits: decode.waits as f64 / steps,
        uploaded_bytes: uploaded as f64 / decode.tokens as f64,
        read_back_bytes: read as f64 / outputs.max(1) as f64,
    })
}

fn weights(report: &LedgerReport) -> Weights {
    let is_weight = |b: &&BufferLine| Category::of(&b.name, &b.pattern) == Category::Weights;
    let live = || report.buffers.iter().filter(|b| b.live).filter(is_weight);
    let bytes: u64 = live().map(|b| b.bytes).sum();
    let uploads = report.copied_bytes(Phase::Load, Direction::HostToDevice);
    // Uploads are counted by the line that makes them, which does not know what they are for. Buffers of
    // other kinds say by their patterns how much of it was theirs.
    let others: u64 = report
        .buffers
        .iter()
        .filter(|b| !is_weight(b))
        .map(|b| {
            let initial = if b.pattern.initial_data { b.bytes } else { 0 };
            initial + b.host_writes_by_phase[Phase::Load as usize].1
        })
        .sum();
    let uploaded_bytes = uploads.saturating_sub(others);
    Weights {
        bytes,
        adopted_bytes: live().filter(|b| b.pattern.aliases_host).map(|b| b.bytes).sum(),
        uploaded_bytes,
        repacked_bytes: report.copied_bytes(Phase::Load, Direction::HostToHost),
        copies: if bytes == 0 { 0.0 } else { uploaded_bytes as f64 / bytes as f64 },
    }
}
