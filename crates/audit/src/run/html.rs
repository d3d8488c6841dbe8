//! One self-contained page: the numbers, the budget, a decode step and memory as charts, both audits as
//! tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use marlin_placement::audit::{CallSite, CopyKind, RunAudit, StepTimeline};

use super::units::{accesses, bytes, counted, lifetime, mode, number, time};
use super::{RunReport, charts, name_of};
use crate::report::escape;

/// The report as a page that needs nothing but a browser.
pub fn html(report: &RunReport<'_>) -> String {
    let audit = report.audit;
    let mut out = String::with_capacity(64 << 10);
    out.push_str(HEAD);
    head(report, &mut out);
    budget(report, &mut out);
    summary(audit, &mut out);
    if let Some(step) = &audit.step {
        timeline(step, &mut out);
    }
    memory(audit, &mut out);
    findings(audit, &mut out);
    buffers(audit, &mut out);
    copies(audit, &mut out);
    out.push_str("</main></body></html>\n");
    out
}

fn head(report: &RunReport<'_>, out: &mut String) {
    let run = &report.audit.run;
    let _ = write!(
        out,
        "<p class=\"sum\"><b>{}</b> on {} ({}), {} positions, {}, {} from opening the model to this report</p>",
        escape(&run.model),
        escape(&run.device),
        escape(&run.device_description),
        run.context,
        counted(run.sequences, "sequence"),
        time(report.audit.elapsed_ns)
    );
    if let Some(exchange) = &report.exchange {
        let _ = write!(
            out,
            "<details><summary>Prompt and answer</summary><blockquote>{}</blockquote><blockquote>{}</blockquote></details>",
            escape(exchange.prompt),
            escape(exchange.answer)
        );
    }
}

/// A table's beginning; `headings` that begin with `#` are of columns of numbers.
fn table(caption: &str, headings: &[&str], out: &mut String) {
    let _ = write!(out, "<div class=\"wide\"><table><caption>{caption}</caption><thead><tr>");
    for heading in headings {
        let (class, text) = match heading.strip_prefix('#') {
            Some(text) => (" class=\"n\"", text),
            None => ("", *heading),
        };
        let _ = write!(out, "<th scope=\"col\"{class}>{text}</th>");
    }
    out.push_str("</tr></thead><tbody>");
}

const TABLE_END: &str = "</tbody></table></div>";

fn budget(report: &RunReport<'_>, out: &mut String) {
    let over = report.budget.iter().filter(|line| line.exceeded).count() as u64;
    let _ = write!(out, "<h2>Budget</h2><p>{}: ", escape(report.budget_name));
    match over {
        0 => out.push_str("<b class=\"ok\">kept</b></p>"),
        n => {
            let _ = write!(out, "<b class=\"error\">{} exceeded</b></p>", counted(n, "limit"));
        }
    }
    table("Limits", &["Limit", "#Found", "#At most", "", "Spent by"], out);
    for line in report.budget {
        let (class, verdict) = match (line.exceeded, line.found) {
            (true, _) => ("error", "over"),
            (false, None) => ("", "not measured"),
            (false, Some(_)) => ("ok", "ok"),
        };
        let found = line.found.map_or_else(|| "–".to_owned(), number);
        let _ = write!(
            out,
            "<tr><td><code>{}</code></td><td class=\"n\">{found}</td><td class=\"n\">{}</td><td class=\"{class}\">{verdict}</td><td>",
            escape(&line.limit),
            number(line.allowed)
        );
        for spent in line.spent.iter().take(5) {
            let _ = write!(
                out,
                "<code>{}</code> {} {}<br>",
                escape(&spent.site.to_string()),
                number(spent.amount),
                escape(&spent.what)
            );
        }
        out.push_str("</td></tr>");
    }
    out.push_str(TABLE_END);
}

fn summary(audit: &RunAudit, out: &mut String) {
    out.push_str("<h2>Steps and copies</h2>");
    if let Some(token) = &audit.summary.per_token {
        let _ = write!(
            out,
            "<p>A decoded token: <b>{}</b> submissions, <b>{}</b> dispatches, <b>{}</b> waits, <b>{}</b> bytes read back, <b>{}</b> bytes uploaded.</p>",
            number(token.submissions),
            number(token.dispatches),
            number(token.waits),
            number(token.read_back_bytes),
            number(token.uploaded_bytes)
        );
    }
    let headings = [
        "Phase",
        "#Steps",
        "#Tokens",
        "#Submissions",
        "#Dispatches",
        "#Waits",
        "#Buffers made",
        "#Their bytes",
        "#Read back",
        "#Written in place",
    ];
    table("By phase", &headings, out);
    for phase in &audit.summary.phases {
        let _ = write!(out, "<tr><td>{}</td>", phase.phase.name());
        for value in [
            phase.steps.to_string(),
            phase.tokens.to_string(),
            phase.submissions.to_string(),
            phase.dispatches.to_string(),
            phase.waits.to_string(),
            phase.allocations.to_string(),
            bytes(phase.allocated_bytes),
            bytes(phase.read_back_bytes),
            bytes(phase.host_written_bytes),
        ] {
            let _ = write!(out, "<td class=\"n\">{value}</td>");
        }
        out.push_str("</tr>");
    }
    out.push_str(TABLE_END);
    table("Copies", &["Phase", "Direction", "#Copies", "#Bytes"], out);
    for total in &audit.summary.copies {
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            total.phase.name(),
            total.direction.name(),
            total.count,
            bytes(total.bytes)
        );
    }
    out.push_str(TABLE_END);
}

fn timeline(step: &StepTimeline, out: &mut String) {
    let _ = write!(
        out,
        "<h2>One decode step</h2><p>{}, {} after the model was opened.",
        time(step.took_ns),
        time(step.start_ns)
    );
    if step.dropped > 0 {
        let _ = write!(out, " {} more events than there was room for.", step.dropped);
    }
    out.push_str("</p>");
    out.push_str(&charts::timeline(step));
    let mut labels: BTreeMap<(&str, &str), (u64, u64, bool)> = BTreeMap::new();
    for event in &step.events {
        let total = labels.entry((event.kind.name(), &event.label)).or_default();
        total.0 += 1;
        total.1 += event.took_ns.unwrap_or(0);
        total.2 |= event.took_ns.is_some();
    }
    let mut labels: Vec<_> = labels.into_iter().collect();
    labels.sort_by_key(|(key, (count, took, _))| {
        (std::cmp::Reverse(*took), std::cmp::Reverse(*count), *key)
    });
    table("By kernel and reason", &["Kind", "What", "#Times", "#Took", "#Of the step"], out);
    for ((kind, label), (count, took, measured)) in labels {
        let (took, share) = if measured {
            (time(took), format!("{:.1} %", 100.0 * took as f64 / step.took_ns.max(1) as f64))
        } else {
            ("–".to_owned(), "–".to_owned())
        };
        let _ = write!(
            out,
            "<tr><td>{kind}</td><td>{}</td><td class=\"n\">{count}</td><td class=\"n\">{took}</td><td class=\"n\">{share}</td></tr>",
            escape(label)
        );
    }
    out.push_str(TABLE_END);
    let _ = write!(out, "<details><summary>All {} events in order</summary>", step.events.len());
    table("Events", &["#At", "Kind", "What", "#Took", "#Bytes", "Where"], out);
    for event in &step.events {
        let direction = event.direction.map_or("", |d| d.name());
        let _ = write!(
            out,
            "<tr><td class=\"n\">{}</td><td>{} {direction}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td><code>{}</code></td></tr>",
            time(event.start_ns),
            event.kind.name(),
            escape(&event.label),
            event.took_ns.map_or_else(|| "–".to_owned(), time),
            if event.bytes > 0 { bytes(event.bytes) } else { String::new() },
            escape(&event.site.to_string())
        );
    }
    out.push_str(TABLE_END);
    out.push_str("</details>");
}

fn memory(audit: &RunAudit, out: &mut String) {
    out.push_str("<h2>Memory</h2>");
    out.push_str(&charts::memory(&audit.memory_over_time, audit.elapsed_ns));
    table("By category", &["Category", "#Buffers", "#Live", "#Peak"], out);
    for total in &audit.summary.by_category {
        let _ = write!(
            out,
            "<tr><td><i class=\"key\" style=\"background:var(--c{})\"></i> {}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            total.category as usize % 7,
            total.category.name(),
            total.buffers,
            bytes(total.live_bytes),
            bytes(total.peak_bytes)
        );
    }
    out.push_str(TABLE_END);
    table("By mode", &["Mode", "#Buffers", "#Live"], out);
    for total in &audit.summary.by_mode {
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            mode(total.mode, audit.memory),
            total.buffers,
            bytes(total.live_bytes)
        );
    }
    out.push_str(TABLE_END);
    let weights = &audit.summary.weights;
    let _ = write!(
        out,
        "<p>Weights: {}, of which {} in place in the file's memory, {} repacked, {} uploaded.</p>",
        bytes(weights.bytes),
        bytes(weights.adopted_bytes),
        bytes(weights.repacked_bytes),
        bytes(weights.uploaded_bytes)
    );
}

fn findings(audit: &RunAudit, out: &mut String) {
    out.push_str("<h2>Findings</h2>");
    if audit.findings.is_empty() {
        out.push_str("<p>None.</p>");
        return;
    }
    table("Findings", &["Severity", "Where", "What"], out);
    for finding in &audit.findings {
        let rule = finding.rule.as_deref().unwrap_or("");
        let _ = write!(
            out,
            "<tr><td class=\"{0}\">{0} {rule}</td><td>{1}</td><td>{2}<p>{3}</p></td></tr>",
            finding.severity.name(),
            place(&finding.site),
            escape(&finding.message),
            escape(&finding.help)
        );
    }
    out.push_str(TABLE_END);
}

/// A call site, and its function below.
fn place(site: &CallSite) -> String {
    let mut text = format!("<code>{}</code>", escape(&site.to_string()));
    if let Some(function) = &site.function {
        let _ = write!(text, "<br><code>{}</code>", escape(function));
    }
    text
}

fn buffers(audit: &RunAudit, out: &mut String) {
    out.push_str("<h2>Storage modes</h2>");
    let headings = [
        "Where",
        "Buffer",
        "Current mode",
        "Purpose",
        "Access pattern",
        "Suggested mode",
        "Accessed by",
        "#Bytes",
        "Phase",
        "",
    ];
    table("Buffers", &headings, out);
    for row in &audit.buffers {
        let agrees = row.suggested_mode.resolve(audit.memory) == row.mode.resolve(audit.memory);
        let class = if agrees { "" } else { " class=\"warning\"" };
        let _ = write!(
            out,
            "<tr><td>{}</td><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td><td{class} title=\"{}\">{}</td><td>{}</td><td class=\"n\">{}</td><td>{}</td><td>{}</td></tr>",
            place(&row.site),
            escape(&name_of(row)),
            mode(row.mode, audit.memory),
            escape(&row.purpose),
            escape(&row.access_pattern),
            escape(&row.reason),
            row.suggested_mode,
            escape(&accesses(&row.accessed_by)),
            bytes(row.bytes),
            row.phase.name(),
            lifetime(row)
        );
    }
    out.push_str(TABLE_END);
}

fn copies(audit: &RunAudit, out: &mut String) {
    out.push_str("<h2>Copies</h2>");
    let headings =
        ["Where", "Reason", "Direction", "Phase", "#Times", "#Bytes", "#A token", "Verdict"];
    table("Copies and read-backs", &headings, out);
    for row in &audit.copies {
        let in_place = if row.kind == CopyKind::ReadInPlace { ", in place" } else { "" };
        let (class, verdict) =
            if row.avoidable { ("warning", "avoidable") } else { ("ok", "needed") };
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}{in_place}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td><b class=\"{class}\">{verdict}</b>: {}</td></tr>",
            place(&row.site),
            escape(&row.reason),
            row.direction.name(),
            row.phase.name(),
            row.count,
            bytes(row.bytes),
            row.bytes_per_token.map_or_else(|| "–".to_owned(), number),
            escape(&row.why)
        );
    }
    out.push_str(TABLE_END);
}

/// The look of the source auditor's page, with a colour for each category and kind of event that is
/// told from its neighbours in both schemes and with the common kinds of colour blindness (the palette of
/// Okabe and Ito, "Color Universal Design", 2008).
const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Audit of a run</title><style>
:root { color-scheme: light dark; --error: #d33; --warning: #b60; --note: #48c; --ok: #284; --line: #8884;
  --c0: #0072b2; --c1: #e69f00; --c2: #009e73; --c3: #d55e00; --c4: #cc79a7; --c5: #56b4e9; --c6: #999933; }
@media (prefers-color-scheme: dark) { :root { --error: #f77; --warning: #fa4; --note: #7af; --ok: #6c8; --c0: #4aa3df; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; } caption { text-align: left; font-weight: 600; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } p { margin: .3rem 0; }
.wide { overflow-x: auto; } .key { display: inline-block; width: .8rem; height: .8rem; }
.error { color: var(--error); } .warning { color: var(--warning); } .note { color: var(--note); } .ok { color: var(--ok); }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 12px; } svg .axis { font-size: 11px; }
svg .grid { stroke: var(--line); } blockquote { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; }
</style></head><body><main><h1>Audit of a run</h1>"#;
