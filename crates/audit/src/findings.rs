//! Rows and findings from what the analysis attributed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use marlin_placement::{DeviceAccess, Rule, StorageMode};
use sha2::{Digest, Sha256};

use crate::api::create::CreateKind;
use crate::classify::{Verdict, classify};
use crate::flow::attribute::{Attributed, Buffer};
use crate::flow::hot::loops_are_steps;
use crate::flow::project::Project;
use crate::flow::summary::Summary;
use crate::flow::value::WrittenMode;
use crate::ir::{FunctionKind, Span};
use crate::lines::Lines;
use crate::purpose::purpose;
use crate::report::{BufferRow, Confidence, CopyRow, Finding, Report, ZeroCopyRow};
use crate::rules::{Code, Severity};
use crate::source::TargetDevice;

/// Builds rows and findings.
pub(crate) struct Collector<'p, 's> {
    project: &'p Project<'s>,
    lines: Vec<Lines<'s>>,
    target: TargetDevice,
    hot: Vec<bool>,
    pub(crate) report: Report,
    seen: HashMap<String, u32>,
}

struct Located {
    file: String,
    function: String,
    line: usize,
    column: usize,
    end_column: usize,
    source_line: String,
}

impl<'p, 's> Collector<'p, 's> {
    pub(crate) fn new(project: &'p Project<'s>, hot: Vec<bool>, target: TargetDevice) -> Self {
        let lines = project
            .files
            .iter()
            .map(|f| Lines::new(if f.aligned { f.original } else { f.source }))
            .collect();
        Self { project, lines, target, hot, report: Report::default(), seen: HashMap::new() }
    }

    fn locate(&self, file: u32, function: u32, span: Span) -> Located {
        let source = &self.project.files[file as usize];
        let lines = &self.lines[file as usize];
        let (line, mut column) = lines.position(span.start);
        let (end_line, mut end_column) = lines.position(span.end);
        let source_line = if source.aligned {
            lines.line(line)
        } else {
            // The rewritten text keeps its lines but not its columns.
            let shown = source.original.lines().nth(line - 1).unwrap_or("");
            let rest = source.source.get(span.start as usize..).unwrap_or("").trim_start();
            let word = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or("");
            let at = shown.find(word).filter(|_| !word.is_empty());
            let at = at.unwrap_or(shown.len() - shown.trim_start().len());
            column = shown[..at].chars().count() + 1;
            end_column = shown.trim_end().chars().count() + 1;
            shown
        };
        if end_line != line {
            end_column = source_line.chars().count() + 1;
        }
        Located {
            file: self.project.files[file as usize].path.clone(),
            function: self.function_name(function),
            line,
            column,
            end_column: end_column.max(column + 1),
            source_line: source_line.to_string(),
        }
    }

    /// The function's name as its language writes it.
    fn function_name(&self, id: u32) -> String {
        let (_, function) = self.project.function(id);
        if function.is_selector && !function.params.is_empty() {
            return function.name.split('_').map(|part| format!("{part}:")).collect();
        }
        function.name.to_string()
    }

    // ---- storage ----

    pub(crate) fn buffers(&mut self, attributed: Attributed<'s>) {
        // A wrapper that makes its buffer in one of several places is one row for its caller.
        let mut rows: Vec<Buffer<'s>> = Vec::new();
        let mut at: HashMap<(u32, u32), usize> = HashMap::new();
        for buffer in attributed.groups.into_iter().flat_map(|group| reported(group, self.target)) {
            match at.entry((buffer.site.file, buffer.site.span.start)) {
                Entry::Occupied(known) => {
                    let merged = rows[*known.get()].merged(&buffer);
                    rows[*known.get()] = merged;
                }
                Entry::Vacant(free) => {
                    free.insert(rows.len());
                    rows.push(buffer);
                }
            }
        }
        for buffer in &rows {
            self.buffer(buffer);
        }
    }

    fn buffer(&mut self, buffer: &Buffer<'s>) {
        let verdict = classify(buffer, self.target);
        let site = &buffer.site;
        let at = self.locate(site.file, site.function, site.span);
        let name = site.name.as_deref().unwrap_or("(unnamed)").to_string();
        let device = match verdict.device {
            DeviceAccess::None => "none",
            DeviceAccess::Reads => "reads",
            DeviceAccess::Writes => "writes",
            DeviceAccess::ReadsWrites => "reads+writes",
            DeviceAccess::Unknown => "unknown",
        };
        let host = match (verdict.host_writes, verdict.host_reads) {
            (true, true) => "reads+writes",
            (true, false) => "writes",
            (false, true) => "reads",
            (false, false) if verdict.host_unknown => "unknown",
            (false, false) => "none",
        };
        let row = BufferRow {
            file: at.file.clone(),
            function: at.function.clone(),
            line: at.line,
            column: at.column,
            buffer: name.clone(),
            current_mode: verdict.current_mode.clone(),
            purpose: purpose(buffer, &verdict),
            access_pattern: verdict.pattern_text.clone(),
            host,
            device,
            suggested_mode: verdict.suggested.clone(),
            inline_candidate: verdict.inline,
            confidence: verdict.confidence,
            reason: verdict.reason.clone(),
            size: verdict.size,
            bound_to: buffer.facts.bound.iter().map(|(k, p)| format!("{k}.{p}")).collect(),
        };
        if site.kind == CreateKind::NoCopy {
            self.report.zero_copy.push(ZeroCopyRow {
                file: at.file.clone(),
                function: at.function.clone(),
                line: at.line,
                what: format!("`{name}` aliases host memory without a copy"),
            });
        }
        self.report.buffers.push(row);
        for (code, severity, message, help) in
            storage_findings(buffer, &verdict, &name, self.target)
        {
            self.finding(code, severity, &at, message, help, verdict.confidence);
        }
        self.creation_copy(buffer, &verdict, &at, &name);
    }

    /// A creation with bytes is a copy.
    fn creation_copy(&mut self, buffer: &Buffer<'s>, verdict: &Verdict, at: &Located, name: &str) {
        if buffer.site.kind != CreateKind::Bytes {
            return;
        }
        let constant = verdict.inline
            || buffer.bytes.constant().is_some_and(|c| {
                !c.by_address && verdict.size.is_none_or(|s| s <= marlin_placement::INLINE_LIMIT)
            });
        let rule = if constant { Code::MC001 } else { Code::MC002 };
        let what = match verdict.size {
            Some(size) => format!("{size} bytes are copied into the new buffer `{name}`"),
            None => format!("host data is copied into the new buffer `{name}`"),
        };
        let site = &buffer.site;
        let in_hot_path = self.is_hot(site.function, site.in_loop);
        let mut sure = verdict.confidence;
        if sure == Confidence::Unknown {
            sure = Confidence::Inferred;
        }
        self.copy_row(rule, at, in_hot_path, None, None, what, sure);
    }

    fn is_hot(&self, function: u32, in_loop: bool) -> bool {
        self.hot[function as usize] || in_loop && loops_are_steps(self.project, function)
    }

    // ---- copies ----

    pub(crate) fn copies(
        &mut self,
        summaries: &[Summary<'s>],
        contiguous: &[crate::flow::value::Pos],
    ) {
        for (id, summary) in summaries.iter().enumerate() {
            let id = id as u32;
            let file = self.project.file_of(id);
            for copy in &summary.copies {
                let at = self.locate(file, id, copy.span);
                let hot = self.is_hot(id, copy.in_loop);
                let what = copy.what.clone().unwrap_or_else(|| copy.rule.rule().summary.into());
                let sure = if copy.sure { Confidence::Proved } else { Confidence::Inferred };
                self.copy_row(copy.rule, &at, hot, copy.direction, copy.avoidable, what, sure);
                if copy.weak
                    && let Some(finding) = self.report.findings.last_mut()
                {
                    finding.severity = Severity::Note;
                }
            }
            for found in &summary.zero_copies {
                let at = self.locate(file, id, found.span);
                self.report.zero_copy.push(ZeroCopyRow {
                    file: at.file,
                    function: at.function,
                    line: at.line,
                    what: found.what.clone(),
                });
            }
            let (_, function) = self.project.function(id);
            for pos in contiguous.iter().filter(|p| p.file == file) {
                let inside = function.span.start <= pos.at && pos.at < function.span.end;
                let innermost =
                    function.kind != FunctionKind::TopLevel || !self.in_function(file, pos.at);
                if inside && innermost {
                    let at = self.locate(
                        file,
                        id,
                        Span { start: pos.at, end: pos.at + ".contiguous()".len() as u32 },
                    );
                    let hot = self.is_hot(id, false);
                    let what =
                        "`.contiguous()` copies a strided tensor before it is bound without a copy";
                    self.copy_row(
                        Code::MC013,
                        &at,
                        hot,
                        None,
                        None,
                        what.into(),
                        Confidence::Proved,
                    );
                }
            }
        }
    }

    /// Whether a position lies in a function rather than at the top of its file.
    fn in_function(&self, file: u32, at: u32) -> bool {
        self.project.files[file as usize]
            .module
            .functions
            .iter()
            .any(|f| f.kind != FunctionKind::TopLevel && f.span.start <= at && at < f.span.end)
    }

    #[allow(clippy::too_many_arguments)]
    fn copy_row(
        &mut self,
        code: Code,
        at: &Located,
        in_hot_path: bool,
        direction: Option<crate::report::Direction>,
        avoidable: Option<bool>,
        what: String,
        confidence: Confidence,
    ) {
        let rule = code.rule();
        let direction =
            direction.or(rule.direction).unwrap_or(crate::report::Direction::HostToHost);
        let avoidable = avoidable.unwrap_or(rule.avoidable);
        // A copy that runs once is worth knowing; on a hot path it is worth fixing.
        let severity = if in_hot_path && avoidable { rule.severity } else { Severity::Note };
        let mut message = what.clone();
        if in_hot_path {
            message.push_str(", on a hot path");
        }
        self.report.copies.push(CopyRow {
            file: at.file.clone(),
            function: at.function.clone(),
            line: at.line,
            column: at.column,
            rule: code,
            direction,
            in_hot_path,
            avoidable,
            what,
            instead: rule.instead.into(),
            confidence,
        });
        self.finding(code, severity, at, message, rule.instead.into(), confidence);
    }

    fn finding(
        &mut self,
        rule: Code,
        severity: Severity,
        at: &Located,
        message: String,
        help: String,
        confidence: Confidence,
    ) {
        let key = format!("{rule}\0{}\0{}\0{}", at.file, at.function, at.source_line.trim());
        // The same line twice in one function gets two fingerprints.
        let count = self.seen.entry(key.clone()).or_insert(0);
        *count += 1;
        let digest = Sha256::digest(format!("{key}\0{count}"));
        let fingerprint = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
        self.report.findings.push(Finding {
            rule,
            severity,
            file: at.file.clone(),
            function: at.function.clone(),
            line: at.line,
            column: at.column,
            end_column: at.end_column,
            message,
            help,
            confidence,
            fingerprint,
            source_line: at.source_line.clone(),
        });
    }
}

/// The rows that a creation is reported as: itself, or one for each call of its wrapper where
/// the calls disagree or the wrapper gives it no name.
fn reported<'s>(group: Vec<Buffer<'s>>, target: TargetDevice) -> Vec<Buffer<'s>> {
    let mut group = group.into_iter();
    let Some(base) = group.next() else { return Vec::new() };
    let seen: Vec<Buffer<'s>> = group.collect();
    if seen.is_empty() {
        return vec![base];
    }
    if base.site.id.via.is_some() {
        // The creation itself is in a function that was not kept.
        return std::iter::once(base).chain(seen).collect();
    }
    // The wrapper's return is accounted for by its calls.
    let mut own = base.clone();
    own.facts.escapes.retain(|e| !e.starts_with("the callers of"));
    own.facts.mentioned = false;
    let merged: Vec<Buffer<'s>> = seen.iter().map(|s| s.merged(&own)).collect();
    let verdicts: Vec<Verdict> = merged.iter().map(|m| classify(m, target)).collect();
    let mut firm = verdicts.iter().filter(|v| !v.unused && !v.unknown);
    let agree = match firm.next() {
        Some(first) => {
            firm.all(|v| v.suggested == first.suggested && v.current_mode == first.current_mode)
        }
        None => true,
    };
    let modes_agree = verdicts.windows(2).all(|w| w[0].current_mode == w[1].current_mode);
    let all_named = merged.iter().all(|m| m.site.name.is_some());
    let wrapper_names_it = base.site.name.is_some();
    if agree && modes_agree && (wrapper_names_it || !all_named) {
        let mut whole = own.clone();
        for buffer in &merged {
            whole = whole.merged(buffer);
        }
        if whole.site.name.is_none() {
            whole.site.name = merged.iter().find_map(|m| m.site.name.clone());
        }
        return vec![whole];
    }
    merged
}

type Found = (Code, Severity, String, String);

fn storage_findings(
    buffer: &Buffer<'_>,
    v: &Verdict,
    name: &str,
    target: TargetDevice,
) -> Vec<Found> {
    let mut out: Vec<Found> = Vec::new();
    let mut found = |code: Code, message: String, help: String| {
        out.push((code, code.rule().severity, message, help));
    };
    let facts = &buffer.facts;
    let help = |code: Code| code.rule().instead.to_string();
    let is_wgpu = matches!(buffer.site.kind, CreateKind::Wgpu { .. });
    let apple = target == TargetDevice::AppleSilicon;
    if v.unused {
        found(
            Code::MS009,
            format!("`{name}` is made and never used in the audited code"),
            help(Code::MS009),
        );
        return out;
    }
    if is_wgpu {
        return out;
    }
    if buffer.site.kind == CreateKind::NoCopy {
        if matches!(v.mode, Some(WrittenMode::Private | WrittenMode::Memoryless)) {
            found(
                Code::MS008,
                format!("`{name}` aliases host memory but is {}", v.current_mode),
                help(Code::MS008),
            );
        }
        return out;
    }
    if v.unknown {
        found(
            Code::MS010,
            format!("`{name}` is {}; {}", v.current_mode, v.pattern_text),
            help(Code::MS010),
        );
    }
    let mode = v.mode;
    let private = mode == Some(WrittenMode::Private);
    let shared = mode == Some(WrittenMode::Shared);
    let managed = mode == Some(WrittenMode::Managed);
    if private && (facts.host_reads || facts.host_writes) {
        found(
            Code::MS005,
            format!("the CPU touches `{name}`, which is Private"),
            help(Code::MS005),
        );
    }
    if v.inline && !private {
        let rule = if apple { "" } else { " (as a buffer it would be Managed)" };
        let size = v.size.map_or_else(String::new, |s| format!("{s} bytes of "));
        found(
            Code::MS003,
            format!("`{name}` holds {size}constants of one dispatch{rule}"),
            help(Code::MS003),
        );
    } else if !v.unknown {
        match v.decision.mode {
            StorageMode::Private if shared || managed => {
                let mut text = help(Code::MS001);
                if v.decision.rule == Rule::NeverReadBack {
                    text.push_str("; if nobody needs it, do not write it");
                }
                found(
                    Code::MS001,
                    format!("`{name}` is {}: {}", v.current_mode, v.pattern_text),
                    text,
                );
            }
            StorageMode::Managed if shared && !apple => {
                found(
                    Code::MS002,
                    format!("`{name}` is {}: {}", v.current_mode, v.pattern_text),
                    help(Code::MS002),
                );
            }
            StorageMode::Shared
                if managed && v.decision.rule == Rule::ReadBack && facts.synchronized =>
            {
                found(
                    Code::MS004,
                    format!("`{name}` is Managed: {}", v.pattern_text),
                    help(Code::MS004),
                );
            }
            _ => {}
        }
    }
    if managed && apple {
        found(Code::MS013, format!("`{name}` is Managed"), help(Code::MS013));
    }
    if managed && !apple {
        if facts.host_writes && !facts.did_modify {
            found(
                Code::MS006,
                format!("the CPU writes `{name}`, which is Managed, without `didModifyRange`"),
                help(Code::MS006),
            );
        }
        if v.host_reads && v.device.writes() && !facts.synchronized {
            found(
                Code::MS007,
                format!(
                    "the CPU reads `{name}`, which is Managed and written by the GPU, without `synchronizeResource`"
                ),
                help(Code::MS007),
            );
        }
    }
    if facts.did_modify && (shared || private || managed && apple) {
        found(
            Code::MS011,
            format!("`didModifyRange` on `{name}`, which is {}", v.current_mode),
            help(Code::MS011),
        );
    }
    if v.write_combined && facts.host_reads {
        found(
            Code::MS012,
            format!("the CPU reads `{name}`, which is write-combined"),
            help(Code::MS012),
        );
    }
    out
}
