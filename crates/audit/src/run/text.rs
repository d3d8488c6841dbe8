//! Text for people: the numbers, the findings, and a line for each buffer and copy.

use std::fmt::Write;

use marlin_placement::audit::{BufferRow, CopyKind, CopyRow, Severity};

use super::units::{accesses, bytes, counted, lifetime, mode, number, rate};
use super::{RunReport, by_function, name_of};

/// The report as text for a terminal.
pub fn text(report: &RunReport<'_>) -> String {
    let mut out = String::new();
    head(report, &mut out);
    summary(report, &mut out);
    budget(report, &mut out);
    findings(report, &mut out);
    buffers(report, &mut out);
    copies(report, &mut out);
    out
}

fn head(report: &RunReport<'_>, out: &mut String) {
    let run = &report.audit.run;
    let _ = write!(out, "{} on {} ({})", run.model, run.device, run.device_description);
    if run.context > 0 {
        let _ = write!(out, ", {} positions, {}", run.context, counted(run.sequences, "sequence"));
    }
    out.push('\n');
}

fn summary(report: &RunReport<'_>, out: &mut String) {
    let summary = &report.audit.summary;
    let _ = writeln!(out, "\n{:<24} {:>8} {:>10} {:>10}", "memory", "buffers", "live", "peak");
    for total in &summary.by_category {
        let _ = writeln!(
            out,
            "  {:<22} {:>8} {:>10} {:>10}",
            total.category.name(),
            total.buffers,
            bytes(total.live_bytes),
            bytes(total.peak_bytes)
        );
    }
    for total in &summary.by_mode {
        let name = mode(total.mode, report.audit.memory);
        let _ = writeln!(out, "  {name:<22} {:>8} {:>10}", total.buffers, bytes(total.live_bytes));
    }
    let _ = writeln!(out, "\n{:<24} {:>8} {:>10}", "copies", "count", "bytes");
    for total in &summary.copies {
        let what = format!("{}, {}", total.phase.name(), total.direction.name());
        let _ = writeln!(out, "  {what:<22} {:>8} {:>10}", total.count, bytes(total.bytes));
    }
    if summary.copies.is_empty() {
        out.push_str("  none\n");
    }
    let weights = &summary.weights;
    let _ = writeln!(
        out,
        "  weights: {}, {} in place in the file, {} repacked, {} uploaded",
        bytes(weights.bytes),
        bytes(weights.adopted_bytes),
        bytes(weights.repacked_bytes),
        bytes(weights.uploaded_bytes)
    );
    out.push_str("\nsteps\n");
    for phase in summary.phases.iter().filter(|p| p.steps > 0) {
        let _ = writeln!(
            out,
            "  {}: {}, {}, {}, {}, {}; {} made",
            phase.phase.name(),
            counted(phase.steps, "step"),
            counted(phase.tokens, "token"),
            counted(phase.submissions, "submission"),
            counted(phase.dispatches, "dispatch"),
            counted(phase.waits, "wait"),
            counted(phase.allocations, "buffer")
        );
    }
    if let Some(token) = &summary.per_token {
        let _ = writeln!(
            out,
            "  a decoded token: {}, {}, {}, {} bytes read back, {} bytes uploaded",
            rate(token.submissions, "submission"),
            rate(token.dispatches, "dispatch"),
            rate(token.waits, "wait"),
            number(token.read_back_bytes),
            number(token.uploaded_bytes)
        );
    }
}

fn budget(report: &RunReport<'_>, out: &mut String) {
    let _ = writeln!(out, "\nbudget: {}", report.budget_name);
    for line in report.budget {
        let verdict = match (line.exceeded, line.found) {
            (true, _) => "OVER",
            (false, None) => "  --",
            (false, Some(_)) => "  ok",
        };
        for (i, text) in line.to_string().lines().enumerate() {
            let _ = writeln!(out, "  {} {text}", if i == 0 { verdict } else { "    " });
        }
    }
    if report.budget.is_empty() {
        out.push_str("  no limits\n");
    }
}

fn findings(report: &RunReport<'_>, out: &mut String) {
    let findings = &report.audit.findings;
    let of = |severity| findings.iter().filter(|f| f.severity == severity).count() as u64;
    let _ = writeln!(
        out,
        "\nfindings: {}, {}, {}",
        counted(of(Severity::Error), "error"),
        counted(of(Severity::Warning), "warning"),
        counted(of(Severity::Note), "note")
    );
    for finding in findings {
        let rule = finding.rule.as_ref().map_or_else(String::new, |rule| format!("[{rule}]"));
        let _ = writeln!(out, "  {}{rule}: {}", finding.severity.name(), finding.message);
        let function =
            finding.site.function.as_ref().map_or_else(String::new, |f| format!(" ({f})"));
        let _ = writeln!(out, "    at {}{function}", finding.site);
        let _ = writeln!(out, "    help: {}", finding.help);
    }
}

fn buffers(report: &RunReport<'_>, out: &mut String) {
    out.push_str("\nstorage modes\n");
    for (title, rows) in by_function(&report.audit.buffers, |row| &row.site) {
        let _ = writeln!(out, "  {title}");
        rows.iter().for_each(|row| buffer(row, report, out));
    }
}

fn buffer(row: &BufferRow, report: &RunReport<'_>, out: &mut String) {
    let memory = report.audit.memory;
    let suggested = if row.suggested_mode.resolve(memory) == row.mode.resolve(memory) {
        String::new()
    } else {
        format!(", better {}", row.suggested_mode)
    };
    let _ = writeln!(
        out,
        "    {} ({}): {}{suggested}; {}; {}, {}, {}",
        name_of(row),
        row.purpose,
        mode(row.mode, memory),
        row.access_pattern,
        bytes(row.bytes),
        row.phase.name(),
        lifetime(row)
    );
    let _ = writeln!(out, "      used by {}", accesses(&row.accessed_by));
}

fn copies(report: &RunReport<'_>, out: &mut String) {
    out.push_str("\ncopies\n");
    for (title, rows) in by_function(&report.audit.copies, |row| &row.site) {
        let _ = writeln!(out, "  {title}");
        rows.iter().for_each(|row| copy(row, out));
    }
    if report.audit.copies.is_empty() {
        out.push_str("  none\n");
    }
}

fn copy(row: &CopyRow, out: &mut String) {
    let what = match row.kind {
        CopyKind::Copy => counted(row.count, "copy"),
        CopyKind::ReadInPlace => format!("{} in place", counted(row.count, "read")),
    };
    let per_token =
        row.bytes_per_token.map_or_else(String::new, |n| format!(" ({} a token)", number(n)));
    let _ = writeln!(
        out,
        "    {}: {what} {}, {}{per_token}, {}",
        row.reason,
        row.direction.name(),
        bytes(row.bytes),
        row.phase.name()
    );
    let _ =
        writeln!(out, "      {}: {}", if row.avoidable { "avoidable" } else { "needed" }, row.why);
}
