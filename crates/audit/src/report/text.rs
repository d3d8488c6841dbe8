//! Text for people: each finding with its line and a caret.

use std::fmt::Write;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::{Finding, Report};
use crate::rules::Severity;

/// Findings in the manner of the Rust compiler, then a summary.
pub fn text(report: &Report, color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.decor_style(DecorStyle::Ascii);
    let mut out = String::new();
    for finding in &report.findings {
        out.push_str(&renderer.render(&snippet(finding)));
        out.push_str("\n\n");
    }
    for skipped in &report.skipped {
        let _ = writeln!(out, "not audited: {}: {}", skipped.file, skipped.reason);
    }
    let t = &report.totals;
    let _ = writeln!(
        out,
        "{} buffers, {} copies and waits, {} bindings without a copy in {} files ({} lines)",
        t.buffers, t.copies, t.zero_copy, t.files, t.lines
    );
    let mut extra = String::new();
    if t.suppressed > 0 {
        let _ = write!(extra, "; {} suppressed", t.suppressed);
    }
    if t.in_baseline > 0 {
        let _ = write!(extra, "; {} in the baseline", t.in_baseline);
    }
    if t.findings == 0 {
        let _ = writeln!(out, "no findings{extra}");
    } else {
        let _ = writeln!(
            out,
            "{} findings: {} errors, {} warnings, {} notes{extra}",
            t.findings, t.errors, t.warnings, t.notes
        );
        out.push_str("`marlin audit explain CODE` says more about a rule\n");
    }
    out
}

fn snippet(finding: &Finding) -> Vec<Group<'_>> {
    let level = match finding.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let bytes = |column: usize| {
        let at = column.saturating_sub(1);
        finding.source_line.char_indices().nth(at).map_or(finding.source_line.len(), |(i, _)| i)
    };
    let start = bytes(finding.column);
    let end = bytes(finding.end_column).max(start);
    vec![
        level.primary_title(finding.message.as_str()).id(finding.rule.as_str()).element(
            Snippet::source(finding.source_line.as_str())
                .line_start(finding.line)
                .path(finding.file.as_str())
                .annotation(
                    AnnotationKind::Primary.span(start..end).label(finding.confidence.name()),
                ),
        ),
        Group::with_title(Level::HELP.secondary_title(finding.help.as_str())),
    ]
}
