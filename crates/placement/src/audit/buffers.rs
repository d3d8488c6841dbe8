//! The storage mode audit: one row for each kind of buffer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CallSite, Category, Finding, Functions, Severity};
use crate::{
    AccessPattern, BufferLine, Decision, Device, DeviceAccess, HostAccess, LedgerReport, Phase,
    Rule, StorageMode, policy,
};

/// Who used the buffers of a row in one phase, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRow {
    /// `host`, or the kernel or op.
    pub by: String,
    /// When.
    pub phase: Phase,
    /// Reads: of the host, or dispatches that read.
    pub reads: u64,
    /// Writes: of the host, or dispatches that wrote.
    pub writes: u64,
    /// Bytes that the host read; 0 for kernels, which nobody asks.
    pub read_bytes: u64,
    /// Bytes that the host wrote; 0 for kernels.
    pub write_bytes: u64,
}

/// Buffers of one line that have the same mode, pattern and use, and names that differ only in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BufferRow {
    /// The line that made them.
    pub site: CallSite,
    /// The name; `*` where the buffers of the row have different numbers.
    pub name: String,
    /// How many.
    pub count: u64,
    /// What it is for.
    pub category: Category,
    /// What it is for, in words.
    pub purpose: String,
    /// The mode that the policy chose when it was made.
    pub mode: StorageMode,
    /// What was said of it then, in words.
    pub declared_pattern: String,
    /// What happened to it, in words.
    pub access_pattern: String,
    /// The mode that the policy gives for what happened to it.
    pub suggested_mode: StorageMode,
    /// Why.
    pub reason: String,
    /// Whether it is memory of the host's that the device uses without a copy.
    pub adopted: bool,
    /// Whether it is a constant of one dispatch.
    pub constant: bool,
    /// Bytes, all together.
    pub bytes: u64,
    /// The phase that made it.
    pub phase: Phase,
    /// How many of them still exist.
    pub live: u64,
    /// Who used it.
    pub accessed_by: Vec<AccessRow>,
}

impl BufferRow {
    /// What policy says about the mode, seen from a device with this memory.
    fn agrees(&self, memory: Device) -> bool {
        self.suggested_mode.resolve(memory) == self.mode.resolve(memory)
    }

    fn host(&self) -> (u64, u64) {
        let host = self.accessed_by.iter().filter(|a| a.by == HOST);
        host.fold((0, 0), |(reads, writes), a| (reads + a.reads, writes + a.writes))
    }
}

const HOST: &str = "host";

/// The pattern that was observed. `tracked` says whether the device tells which kernels use what.
fn observed(line: &BufferLine, tracked: bool) -> AccessPattern {
    let host = match (line.host_reads, line.host_writes) {
        (0, 0) => HostAccess::None,
        (0, 1) => HostAccess::WritesOnce,
        (0, _) => HostAccess::WritesEachStep,
        _ => HostAccess::ReadsBack,
    };
    let reads = line.accesses.iter().any(|a| a.reads > 0);
    let writes = line.accesses.iter().any(|a| a.writes > 0);
    let device = match (reads, writes) {
        _ if !tracked => line.pattern.device,
        (false, false) => DeviceAccess::None,
        (true, false) => DeviceAccess::Reads,
        (false, true) => DeviceAccess::Writes,
        (true, true) => DeviceAccess::ReadsWrites,
    };
    AccessPattern { host, device, ..line.pattern }
}

/// `blk.7.attn_q.weight` becomes `blk.*.attn_q.weight`.
fn without_numbers(name: &str) -> String {
    let word = |text: &str| {
        let end = text.trim_end_matches(['.', ' ']).len();
        let (word, separator) = text.split_at(end);
        let is_number = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        format!("{}{separator}", if is_number { "*" } else { word })
    };
    name.split_inclusive(['.', ' ']).map(word).collect()
}

fn purpose(category: Category, pattern: &AccessPattern, decision: &Decision) -> String {
    let how = match (category, pattern) {
        (_, AccessPattern { aliases_host: true, .. }) => "in place in the file's memory",
        (_, AccessPattern { constant: true, .. }) => "a constant of one dispatch",
        (Category::Weights, _) => "filled once from the file",
        (_, AccessPattern { initial_data: true, .. }) => "filled once from host data",
        (Category::Step, AccessPattern { host: HostAccess::ReadsBack, .. }) => {
            "what the host reads"
        }
        (Category::Step, AccessPattern { host, .. }) if host.writes() => "what a step is told",
        _ if decision.staged => "filled through staging memory",
        _ => return category.name().to_owned(),
    };
    format!("{}: {how}", category.name())
}

pub(super) fn rows(report: &LedgerReport, functions: Functions<'_>) -> Vec<BufferRow> {
    type Key = (CallSite, String, StorageMode, StorageMode, String, Phase, Category);
    let tracked = report.buffers.iter().any(|b| !b.accesses.is_empty());
    let mut rows: BTreeMap<Key, BufferRow> = BTreeMap::new();
    let mut names: BTreeMap<Key, String> = BTreeMap::new();
    for line in &report.buffers {
        let pattern = observed(line, tracked);
        let decision = policy(&pattern, Some(line.bytes));
        let site = CallSite::parse(&line.site, functions);
        let category = Category::of(&line.name, &line.pattern);
        let access_pattern = pattern.to_string();
        let key = (
            site.clone(),
            without_numbers(&line.name),
            line.mode,
            decision.mode,
            access_pattern.clone(),
            line.phase,
            category,
        );
        names.entry(key.clone()).or_insert_with(|| line.name.clone());
        let row = rows.entry(key).or_insert_with_key(|key| BufferRow {
            site,
            name: key.1.clone(),
            count: 0,
            category,
            purpose: purpose(category, &line.pattern, &decision),
            mode: line.mode,
            declared_pattern: line.pattern.to_string(),
            access_pattern,
            suggested_mode: decision.mode,
            reason: decision.rule.reason().to_owned(),
            adopted: line.pattern.aliases_host,
            constant: line.pattern.constant,
            bytes: 0,
            phase: line.phase,
            live: 0,
            accessed_by: Vec::new(),
        });
        row.count += 1;
        row.bytes += line.bytes;
        row.live += u64::from(line.live);
        add_accesses(&mut row.accessed_by, line);
    }
    for (key, row) in &mut rows {
        row.accessed_by.sort_by(|a, b| (&a.by, a.phase).cmp(&(&b.by, b.phase)));
        if row.count == 1
            && let Some(name) = names.remove(key)
        {
            row.name = name;
        }
    }
    rows.into_values().collect()
}

fn add_accesses(rows: &mut Vec<AccessRow>, line: &BufferLine) {
    let mut add = |by: &str, phase: Phase, counts: [u64; 4]| {
        if counts[0] == 0 && counts[1] == 0 {
            return;
        }
        let at = rows.iter().position(|r| r.by == by && r.phase == phase).unwrap_or_else(|| {
            let (by, zero) = (by.to_owned(), 0);
            rows.push(AccessRow {
                by,
                phase,
                reads: zero,
                writes: zero,
                read_bytes: zero,
                write_bytes: zero,
            });
            rows.len() - 1
        });
        let row = &mut rows[at];
        row.reads += counts[0];
        row.writes += counts[1];
        row.read_bytes += counts[2];
        row.write_bytes += counts[3];
    };
    for phase in Phase::ALL {
        let (reads, read_bytes) = line.host_reads_by_phase[phase as usize];
        let (writes, write_bytes) = line.host_writes_by_phase[phase as usize];
        add(HOST, phase, [reads, writes, read_bytes, write_bytes]);
    }
    for access in &line.accesses {
        add(access.kernel, access.phase, [access.reads, access.writes, 0, 0]);
    }
}

pub(super) fn findings(rows: &[BufferRow], memory: Device) -> Vec<Finding> {
    rows.iter().flat_map(|row| findings_of(row, memory)).collect()
}

fn findings_of(row: &BufferRow, memory: Device) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |rule: Option<&str>, severity, message: String, help: &str| {
        let (rule, site, help) = (rule.map(str::to_owned), row.site.clone(), help.to_owned());
        findings.push(Finding { rule, severity, site, message, help });
    };
    let name = &row.name;
    let (reads, writes) = row.host();
    if row.accessed_by.is_empty() {
        if row.adopted {
            // It costs nothing.
            return findings;
        }
        found(
            Some("MS009"),
            Severity::Note,
            format!("`{name}` ({} bytes) was not used in this run", row.bytes),
            "if no run uses it, do not make it",
        );
        return findings;
    }
    if row.mode == StorageMode::Private && reads + writes > 0 {
        found(
            Some("MS005"),
            Severity::Error,
            format!("the host touched `{name}`, which is {}: {}", row.mode, row.access_pattern),
            "say in its access pattern what the host does, and the policy places it",
        );
    } else if row.constant {
        found(
            Some("MS003"),
            Severity::Warning,
            format!("`{name}` holds constants of one dispatch in a buffer"),
            "bind the bytes with the dispatch: no buffer, no allocation",
        );
    } else if !row.agrees(memory) {
        let rule = match row.suggested_mode {
            StorageMode::Private => "MS001",
            StorageMode::Managed => "MS002",
            StorageMode::Inline => "MS003",
            StorageMode::Shared => "MS004",
        };
        // Too little access costs speed; too much is not what the mode was chosen for.
        let severity = match row.suggested_mode {
            StorageMode::Shared | StorageMode::Managed => Severity::Error,
            StorageMode::Private | StorageMode::Inline => Severity::Warning,
        };
        found(
            Some(rule),
            severity,
            format!(
                "`{name}` is {}, and {} for what happened to it: {} ({})",
                row.mode, row.suggested_mode, row.access_pattern, row.reason
            ),
            "say in its access pattern what happens to it, and the policy places it",
        );
    }
    let declared_read_only =
        matches!(row.declared_pattern.as_str(), "GPU read" | "CPU write, GPU read") || row.adopted;
    let written = row.accessed_by.iter().find(|a| a.by != HOST && a.writes > 0);
    if declared_read_only && let Some(kernel) = written {
        found(
            None,
            Severity::Error,
            format!("`{}` writes `{name}`, of which was said: {}", kernel.by, row.declared_pattern),
            "say in its access pattern that the device writes it",
        );
    }
    findings
}

/// Whether a buffer is a parameter of a dispatch that became a buffer.
pub(super) fn is_parameter(line: &BufferLine) -> bool {
    line.pattern.constant || policy(&line.pattern, Some(line.bytes)).rule == Rule::InlineConstant
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_count_something_are_left_out_of_names_and_others_stay() {
        for (name, expected) in [
            ("blk.17.attn_q.weight", "blk.*.attn_q.weight"),
            ("kv cache 3", "kv cache *"),
            ("step 0 input", "step * input"),
            ("blk.0.ffn_norm.weight.f32", "blk.*.ffn_norm.weight.f32"),
            ("logits", "logits"),
            ("q8_0", "q8_0"),
        ] {
            assert_eq!(without_numbers(name), expected);
        }
    }
}
