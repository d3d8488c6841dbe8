//! Markdown: the storage mode audit and the buffer copy audit.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{BufferRow, CopyRow, Report};
use crate::rules::{Code, RULES};

/// Both audits, one after the other.
pub fn markdown(report: &Report) -> String {
    let mut out = String::new();
    storage(report, &mut out);
    out.push('\n');
    copies(report, &mut out);
    out
}

fn storage(report: &Report, out: &mut String) {
    out.push_str("# Storage Mode Audit (Metal buffers)\n\n");
    out.push_str("Scope: ");
    let files: Vec<String> = report.files.iter().map(|f| format!("`{f}`")).collect();
    out.push_str(&files.join(",\n"));
    out.push_str(".\n\nRules applied:\n");
    out.push_str("- GPU-only buffers -> `MTLResourceStorageModePrivate`\n");
    out.push_str("- CPU-write, GPU-read -> `MTLResourceStorageModeManaged` (with explicit sync, e.g.\n  `didModifyRange_` after CPU writes)\n");
    out.push_str("- Frequent CPU read-back -> `MTLResourceStorageModeShared`\n");
    let mut by_file: BTreeMap<&str, Vec<&BufferRow>> = BTreeMap::new();
    for file in &report.files {
        by_file.entry(file).or_default();
    }
    for row in &report.buffers {
        by_file.entry(&row.file).or_default().push(row);
    }
    for (file, rows) in by_file {
        let _ = write!(out, "\n## `{file}`\n");
        if rows.is_empty() {
            out.push_str("\nNo buffer is created in this file.\n");
            continue;
        }
        let mut at = 0;
        while at < rows.len() {
            let function = &rows[at].function;
            let end = rows[at..]
                .iter()
                .position(|r| r.function != *function)
                .map_or(rows.len(), |n| at + n);
            let _ = write!(out, "\nFunction: `{function}` (around line {})\n\n", rows[at].line);
            out.push_str("| Buffer | Current mode | Purpose | Access pattern | Suggested mode |\n");
            out.push_str("| --- | --- | --- | --- | --- |\n");
            for row in &rows[at..end] {
                let _ = writeln!(
                    out,
                    "| `{}` | {} | {} | {} | {} |",
                    cell(&row.buffer),
                    cell(&row.current_mode),
                    cell(&row.purpose),
                    cell(&row.access_pattern),
                    cell(&row.suggested_mode)
                );
            }
            inline_advice(&rows[at..end], out);
            at = end;
        }
    }
}

/// The better advice for small constants, after the table that calls them Managed.
fn inline_advice(rows: &[&BufferRow], out: &mut String) {
    let names: Vec<String> =
        rows.iter().filter(|r| r.inline_candidate).map(|r| format!("`{}`", r.buffer)).collect();
    if names.is_empty() {
        return;
    }
    let (verb, what) = if names.len() == 1 { ("is a", "constant") } else { ("are", "constants") };
    let _ = write!(
        out,
        "\nBetter: {} {verb} small {what} of one dispatch; bind the bytes inline with `setBytes`\n\
         and make no buffer.\n",
        names.join(", ")
    );
}

fn copies(report: &Report, out: &mut String) {
    out.push_str("# Buffer Copy Audit\n\n## Scope\n");
    for file in &report.files {
        let _ = writeln!(out, "- `{file}`");
    }
    out.push_str("\n## Summary\n");
    let hot = report.copies.iter().filter(|c| c.in_hot_path).count();
    let avoidable = report.copies.iter().filter(|c| c.avoidable).count();
    let _ = writeln!(
        out,
        "- {} copies and waits; {hot} on a hot path, {avoidable} avoidable.",
        report.copies.len()
    );
    let mut directions: BTreeMap<&str, usize> = BTreeMap::new();
    for copy in &report.copies {
        *directions.entry(copy.direction.name()).or_default() += 1;
    }
    for (direction, count) in directions {
        let _ = writeln!(out, "- {direction}: {count}.");
    }
    let _ = writeln!(out, "- {} bindings without a copy.", report.zero_copy.len());
    if !report.skipped.is_empty() {
        let _ = writeln!(
            out,
            "- {} files or parts of files were not audited (see the end).",
            report.skipped.len()
        );
    }
    out.push_str("\n## Findings by file\n");
    for file in &report.files {
        let _ = write!(out, "\n### `{file}`\n");
        let here: Vec<&CopyRow> = report.copies.iter().filter(|c| c.file == *file).collect();
        for copy in &here {
            let hot = if copy.in_hot_path { ", on a hot path" } else { "" };
            let advice =
                if copy.avoidable { format!(" Instead: {}.", copy.instead) } else { String::new() };
            let _ = writeln!(
                out,
                "- `{}` (line {}): {} ({}{hot}; {}).{advice}",
                copy.function,
                copy.line,
                copy.what,
                copy.direction.name(),
                copy.rule
            );
        }
        let right: Vec<_> = report.zero_copy.iter().filter(|z| z.file == *file).collect();
        for zero in &right {
            let _ = writeln!(
                out,
                "- `{}` (line {}): {} (zero-copy).",
                zero.function, zero.line, zero.what
            );
        }
        if here.is_empty() && right.is_empty() {
            out.push_str("- No copies found.\n");
        }
    }
    out.push_str("\n## Notable copy hotspots (by pattern)\n");
    let mut by_rule: BTreeMap<Code, Vec<&CopyRow>> = BTreeMap::new();
    for copy in &report.copies {
        by_rule.entry(copy.rule).or_default().push(copy);
    }
    let mut patterns: Vec<_> = by_rule.into_iter().collect();
    patterns.sort_by_key(|(code, rows)| {
        (
            std::cmp::Reverse(rows.iter().filter(|r| r.in_hot_path).count()),
            std::cmp::Reverse(rows.len()),
            *code,
        )
    });
    if patterns.is_empty() {
        out.push_str("- None.\n");
    }
    for (code, rows) in patterns {
        let mut files: Vec<String> = rows.iter().map(|r| format!("`{}`", r.file)).collect();
        files.dedup();
        let shown = files.iter().take(6).cloned().collect::<Vec<_>>().join(", ");
        let more = if files.len() > 6 { ", …" } else { "" };
        let hot = rows.iter().filter(|r| r.in_hot_path).count();
        let _ = writeln!(
            out,
            "- {code} {}: {} ({hot} on a hot path) in {shown}{more}.",
            RULES[code as usize].name,
            rows.len()
        );
    }
    if !report.skipped.is_empty() {
        out.push_str("\n## Not audited\n");
        for skipped in &report.skipped {
            let _ = writeln!(out, "- `{}`: {}.", skipped.file, skipped.reason);
        }
    }
}

/// Table cells cannot hold line breaks or bare bars.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
