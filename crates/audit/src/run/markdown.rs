//! Markdown: the storage mode audit and the buffer copy audit of a run, in the shape in which people
//! write them.

use std::collections::BTreeMap;
use std::fmt::Write;

use marlin_placement::Phase;
use marlin_placement::audit::{CallSite, CopyKind, CopyRow, RunAudit};

use super::units::{accesses, bytes, counted, lifetime, mode, number, rate};
use super::{RunReport, name_of};

/// The numbers, then both audits, one after the other.
pub fn markdown(report: &RunReport<'_>) -> String {
    let mut out = String::new();
    head(report, &mut out);
    storage(report.audit, &mut out);
    out.push('\n');
    copies(report.audit, &mut out);
    out
}

fn head(report: &RunReport<'_>, out: &mut String) {
    let audit = report.audit;
    let run = &audit.run;
    let _ = writeln!(out, "# Audit of a run\n");
    let _ = writeln!(
        out,
        "`{}` on {} ({}), {} positions, {}.",
        run.model,
        run.device,
        cell(&run.device_description),
        run.context,
        counted(run.sequences, "sequence")
    );
    if let Some(exchange) = &report.exchange {
        let _ = writeln!(out, "\nPrompt: {}\n", quoted(exchange.prompt));
        let _ = writeln!(out, "Answer: {}", quoted(exchange.answer));
    }
    out.push_str(
        "\n## Summary\n\n| Memory | Buffers | Live | Peak |\n| --- | ---: | ---: | ---: |\n",
    );
    for total in &audit.summary.by_category {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} |",
            total.category.name(),
            total.buffers,
            bytes(total.live_bytes),
            bytes(total.peak_bytes)
        );
    }
    for total in &audit.summary.by_mode {
        let (name, live) = (mode(total.mode, audit.memory), bytes(total.live_bytes));
        let _ = writeln!(out, "| *{name}* | {} | {live} | |", total.buffers);
    }
    out.push_str("\n| Phase | Steps | Tokens | Submissions | Dispatches | Waits | Buffers made | Read back |\n");
    out.push_str("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for phase in &audit.summary.phases {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            phase.phase.name(),
            phase.steps,
            phase.tokens,
            phase.submissions,
            phase.dispatches,
            phase.waits,
            phase.allocations,
            bytes(phase.read_back_bytes)
        );
    }
    if let Some(token) = &audit.summary.per_token {
        let _ = writeln!(
            out,
            "\nA decoded token: {}, {}, {}, {} bytes read back,\n{} bytes uploaded.",
            rate(token.submissions, "submission"),
            rate(token.dispatches, "dispatch"),
            rate(token.waits, "wait"),
            number(token.read_back_bytes),
            number(token.uploaded_bytes)
        );
    }
    budget(report, out);
    findings(audit, out);
}

fn budget(report: &RunReport<'_>, out: &mut String) {
    let _ = writeln!(out, "\n## Budget: {}\n", report.budget_name);
    if report.budget.is_empty() {
        out.push_str("No limits.\n");
        return;
    }
    out.push_str("| Limit | Found | At most | |\n| --- | ---: | ---: | --- |\n");
    for line in report.budget {
        let found = line.found.map_or_else(|| "not measured".to_owned(), number);
        let verdict = match (line.exceeded, line.found) {
            (true, _) => {
                let spent = line
                    .spent
                    .iter()
                    .take(4)
                    .map(|s| format!("`{}` {} {}", s.site, number(s.amount), cell(&s.what)));
                format!("**over**: {}", spent.collect::<Vec<_>>().join("; "))
            }
            (false, None) => String::new(),
            (false, Some(_)) => "ok".to_owned(),
        };
        let _ =
            writeln!(out, "| `{}` | {found} | {} | {verdict} |", line.limit, number(line.allowed));
    }
}

fn findings(audit: &RunAudit, out: &mut String) {
    out.push_str("\n## Findings\n\n");
    for finding in &audit.findings {
        let rule = finding.rule.as_ref().map_or_else(String::new, |rule| format!(" {rule}"));
        let _ = writeln!(
            out,
            "- **{}{rule}** `{}`: {}. Instead: {}.",
            finding.severity.name(),
            finding.site,
            finding.message,
            finding.help
        );
    }
    if audit.findings.is_empty() {
        out.push_str("None.\n");
    }
}

/// Every file that something was entered from, in order.
fn modules(audit: &RunAudit) -> Vec<&str> {
    let sites = audit.buffers.iter().map(|b| &b.site).chain(audit.copies.iter().map(|c| &c.site));
    let mut modules: Vec<&str> = sites.map(|site| site.module.as_str()).collect();
    modules.sort_unstable();
    modules.dedup();
    modules
}

fn function(site: &CallSite) -> String {
    match &site.function {
        Some(name) => format!("Function: `{name}` (around line {})", site.line),
        None => format!("Around line {}", site.line),
    }
}

fn storage(audit: &RunAudit, out: &mut String) {
    out.push_str("\n# Storage Mode Audit (Metal buffers)\n\nScope: ");
    let scope: Vec<String> = modules(audit).iter().map(|m| format!("`{m}`")).collect();
    out.push_str(&scope.join(",\n"));
    out.push_str(".\n\nRules applied:\n");
    out.push_str("- GPU-only buffers -> `MTLResourceStorageModePrivate`\n");
    out.push_str("- CPU-write, GPU-read -> `MTLResourceStorageModeManaged` (with explicit sync, e.g.\n  `didModifyRange_` after CPU writes)\n");
    out.push_str("- Frequent CPU read-back -> `MTLResourceStorageModeShared`\n");
    for module in modules(audit) {
        let _ = write!(out, "\n## `{module}`\n");
        let rows: Vec<_> = audit.buffers.iter().filter(|b| b.site.module == module).collect();
        if rows.is_empty() {
            out.push_str("\nNo buffer was made in this file.\n");
        }
        for rows in rows.chunk_by(|a, b| a.site.function == b.site.function) {
            let _ = write!(out, "\n{}\n\n", function(&rows[0].site));
            out.push_str("| Buffer | Current mode | Purpose | Access pattern | Suggested mode | Accessed by | Bytes | Phase | |\n");
            out.push_str("| --- | --- | --- | --- | --- | --- | ---: | --- | --- |\n");
            for row in rows {
                let _ = writeln!(
                    out,
                    "| `{}` | {} | {} | {} | {} | {} | {} | {} | {} |",
                    cell(&name_of(row)),
                    mode(row.mode, audit.memory),
                    cell(&row.purpose),
                    cell(&row.access_pattern),
                    row.suggested_mode,
                    cell(&accesses(&row.accessed_by)),
                    bytes(row.bytes),
                    row.phase.name(),
                    lifetime(row)
                );
            }
        }
    }
}

fn copies(audit: &RunAudit, out: &mut String) {
    out.push_str("# Buffer Copy Audit\n\n## Scope\n");
    for module in modules(audit) {
        let _ = writeln!(out, "- `{module}`");
    }
    out.push_str("\n## Summary\n");
    for total in &audit.summary.copies {
        let _ = writeln!(
            out,
            "- {}, {}: {}, {}.",
            total.phase.name(),
            total.direction.name(),
            counted(total.count, "copy"),
            bytes(total.bytes)
        );
    }
    let weights = &audit.summary.weights;
    let _ = writeln!(
        out,
        "- Weights: {}, of which {} in place in the file's memory (zero-copy), {} repacked, {} uploaded.",
        bytes(weights.bytes),
        bytes(weights.adopted_bytes),
        bytes(weights.repacked_bytes),
        bytes(weights.uploaded_bytes)
    );
    let avoidable = audit.copies.iter().filter(|c| c.avoidable).count() as u64;
    let _ = writeln!(out, "- {} could be avoided.", counted(avoidable, "line"));
    out.push_str("\n## Findings by file\n");
    for module in modules(audit) {
        let _ = write!(out, "\n### `{module}`\n");
        let here: Vec<&CopyRow> = audit.copies.iter().filter(|c| c.site.module == module).collect();
        for row in &here {
            copy(row, out);
        }
        let adopted: Vec<_> =
            audit.buffers.iter().filter(|b| b.adopted && b.site.module == module).collect();
        for row in &adopted {
            let _ = writeln!(
                out,
                "- {}: `{}`, {}, in place in the file's memory (zero-copy).",
                place(&row.site),
                name_of(row),
                bytes(row.bytes)
            );
        }
        if here.is_empty() && adopted.is_empty() {
            out.push_str("- No copies were made.\n");
        }
    }
    out.push_str("\n## Notable copy hotspots (by pattern)\n");
    let mut patterns: BTreeMap<(Phase, &str), (u64, u64)> = BTreeMap::new();
    for row in audit.copies.iter().filter(|row| row.avoidable) {
        let total = patterns.entry((row.phase, &row.reason)).or_default();
        total.0 += row.count;
        total.1 += row.bytes;
    }
    let mut patterns: Vec<_> = patterns.into_iter().collect();
    patterns.sort_by_key(|(key, (_, bytes))| (std::cmp::Reverse(key.0), std::cmp::Reverse(*bytes)));
    for ((phase, reason), (count, total)) in &patterns {
        let count = counted(*count, "time");
        let _ = writeln!(out, "- {}: {reason}: {count}, {}.", phase.name(), bytes(*total));
    }
    if patterns.is_empty() {
        out.push_str("- None.\n");
    }
}

fn copy(row: &CopyRow, out: &mut String) {
    let what = match row.kind {
        CopyKind::Copy => counted(row.count, "copy"),
        CopyKind::ReadInPlace => format!("{} in place", counted(row.count, "read")),
    };
    let per_token =
        row.bytes_per_token.map_or_else(String::new, |n| format!(", {} bytes a token", number(n)));
    let verdict = if row.avoidable { "Avoidable" } else { "Needed" };
    let _ = writeln!(
        out,
        "- {}: `{}`: {what} {}, {}, during {}{per_token}. {verdict}: {}.",
        place(&row.site),
        row.reason,
        row.direction.name(),
        bytes(row.bytes),
        row.phase.name(),
        row.why
    );
}

fn place(site: &CallSite) -> String {
    match &site.function {
        Some(function) => format!("`{function}` (line {})", site.line),
        None => format!("line {}", site.line),
    }
}

/// One line of inline code, whatever is in it.
fn quoted(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let fence = "`".repeat(1 + line.split(|c| c != '`').map(str::len).max().unwrap_or(0));
    format!("{fence} {line} {fence}")
}

/// Table cells cannot hold line breaks or bare bars.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
