//! One self-contained page: a bar per file, filters by file, rule and severity.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Finding, Report};
use crate::rules::Severity;

/// The report as a page that needs nothing but a browser.
pub fn html(report: &Report) -> String {
    let mut out = String::with_capacity(16 << 10);
    out.push_str(HEAD);
    let t = &report.totals;
    let _ = write!(
        out,
        "<p class=\"sum\"><b>{}</b> findings: {} errors, {} warnings, {} notes · {} buffers · {} copies and waits · \
         {} bindings without a copy · {} files, {} lines</p>",
        t.findings,
        t.errors,
        t.warnings,
        t.notes,
        t.buffers,
        t.copies,
        t.zero_copy,
        t.files,
        t.lines
    );
    filters(report, &mut out);
    bars(report, &mut out);
    out.push_str("<h2>Findings</h2><table id=\"findings\"><thead><tr><th>Rule</th><th>Severity</th><th>Where</th><th>What</th></tr></thead><tbody>");
    for finding in &report.findings {
        row(finding, &mut out);
    }
    out.push_str("</tbody></table>");
    buffers(report, &mut out);
    if !report.skipped.is_empty() {
        out.push_str("<h2>Not audited</h2><ul>");
        for skipped in &report.skipped {
            let _ = write!(
                out,
                "<li><code>{}</code>: {}</li>",
                escape(&skipped.file),
                escape(&skipped.reason)
            );
        }
        out.push_str("</ul>");
    }
    out.push_str(SCRIPT);
    out.push_str("</body></html>\n");
    out
}

fn filters(report: &Report, out: &mut String) {
    let mut files: Vec<&str> = report.findings.iter().map(|f| f.file.as_str()).collect();
    files.sort_unstable();
    files.dedup();
    let mut rules: Vec<(&str, &str)> =
        report.findings.iter().map(|f| (f.rule.as_str(), f.rule.rule().name)).collect();
    rules.sort_unstable();
    rules.dedup();
    out.push_str(
        "<form id=\"filters\"><label>File <select id=\"file\"><option value=\"\">all</option>",
    );
    for file in files {
        let _ = write!(out, "<option>{}</option>", escape(file));
    }
    out.push_str(
        "</select></label> <label>Rule <select id=\"rule\"><option value=\"\">all</option>",
    );
    for (code, name) in rules {
        let _ = write!(out, "<option value=\"{code}\">{code} {name}</option>");
    }
    out.push_str(
        "</select></label> <label>Severity <select id=\"severity\"><option value=\"\">all</option>",
    );
    for severity in [Severity::Error, Severity::Warning, Severity::Note] {
        let _ = write!(out, "<option>{severity}</option>");
    }
    out.push_str("</select></label> <span id=\"count\"></span></form>");
}

/// A bar per file, split by severity, in the proportions of the file with the most findings.
fn bars(report: &Report, out: &mut String) {
    let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for finding in &report.findings {
        counts.entry(&finding.file).or_default()[finding.severity as usize] += 1;
    }
    let most = counts.values().map(|c| c.iter().sum::<usize>()).max().unwrap_or(0);
    if most == 0 {
        return;
    }
    let mut files: Vec<_> = counts.into_iter().collect();
    files.sort_by_key(|(file, c)| (std::cmp::Reverse(c.iter().sum::<usize>()), *file));
    out.push_str("<h2>Files</h2><div id=\"bars\">");
    for (file, [notes, warnings, errors]) in files {
        let _ = write!(
            out,
            "<button class=\"bar\" data-file=\"{0}\"><span class=\"name\">{0}</span><span class=\"track\">",
            escape(file)
        );
        for (class, count) in [("error", errors), ("warning", warnings), ("note", notes)] {
            if count > 0 {
                let percent = count as f64 * 100.0 / most as f64;
                let _ = write!(
                    out,
                    "<i class=\"{class}\" style=\"width:{percent:.2}%\" title=\"{count} {class}s\"></i>"
                );
            }
        }
        let _ =
            write!(out, "</span><span class=\"n\">{}</span></button>", notes + warnings + errors);
    }
    out.push_str("</div>");
}

fn row(finding: &Finding, out: &mut String) {
    let code = finding.rule.as_str();
    let _ = write!(
        out,
        "<tr data-file=\"{0}\" data-rule=\"{code}\" data-severity=\"{1}\"><td title=\"{2}\">{code}</td>\
         <td class=\"{1}\">{1}</td><td><code>{0}:{3}:{4}</code><br><code>{5}</code></td>\
         <td>{6} <small>({7})</small><pre>{8}</pre><p>{9}</p></td></tr>",
        escape(&finding.file),
        finding.severity,
        escape(finding.rule.rule().summary),
        finding.line,
        finding.column,
        escape(&finding.function),
        escape(&finding.message),
        finding.confidence.name(),
        marked(finding),
        escape(&finding.help),
    );
}

/// The offending line with the place marked.
fn marked(finding: &Finding) -> String {
    let line: Vec<char> = finding.source_line.chars().collect();
    let start = finding.column.saturating_sub(1).min(line.len());
    let end = finding.end_column.saturating_sub(1).clamp(start, line.len());
    let text = |range: &[char]| escape(&range.iter().collect::<String>());
    format!(
        "{}<mark>{}</mark>{}",
        text(&line[..start]),
        text(&line[start..end]),
        text(&line[end..])
    )
}

fn buffers(report: &Report, out: &mut String) {
    if report.buffers.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Buffers</h2><table id=\"buffers\"><thead><tr><th>Where</th><th>Buffer</th><th>Current mode</th><th>Purpose</th>\
         <th>Access pattern</th><th>Suggested mode</th><th>Sure</th></tr></thead><tbody>",
    );
    for b in &report.buffers {
        let inline = if b.inline_candidate { " <small>better: inline</small>" } else { "" };
        let _ = write!(
            out,
            "<tr data-file=\"{0}\" title=\"{1}\"><td><code>{0}:{2}</code><br><code>{3}</code></td><td><code>{4}</code></td>\
             <td>{5}</td><td>{6}</td><td>{7}</td><td>{8}{inline}</td><td>{9}</td></tr>",
            escape(&b.file),
            escape(&b.reason),
            b.line,
            escape(&b.function),
            escape(&b.buffer),
            escape(&b.current_mode),
            escape(&b.purpose),
            escape(&b.access_pattern),
            escape(&b.suggested_mode),
            b.confidence.name(),
        );
    }
    out.push_str("</tbody></table>");
}

/// Text as it may stand in an element or a quoted attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Metal buffer audit</title><style>
:root { color-scheme: light dark; --error: #d33; --warning: #d80; --note: #48c; --line: #8884; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
pre { overflow-x: auto; margin: .3rem 0; } p { margin: .2rem 0; } mark { padding: 0 .1rem; }
.error { color: var(--error); } .warning { color: var(--warning); } .note { color: var(--note); }
.bar { display: flex; gap: .6rem; width: 100%; border: 0; background: none; font: inherit; color: inherit; cursor: pointer; padding: .1rem 0; }
.bar .name { flex: 0 0 45%; overflow: hidden; text-overflow: ellipsis; text-align: left; direction: rtl; white-space: nowrap; }
.bar .track { flex: 1; display: flex; } .bar i { display: block; height: 1.1rem; background: currentColor; }
#filters { position: sticky; top: 0; background: Canvas; padding: .5rem 0; } select { max-width: 22rem; }
[hidden] { display: none; }
</style></head><body><h1>Metal buffer audit</h1>"#;

const SCRIPT: &str = r#"<script>
const pick = id => document.getElementById(id);
function apply() {
  const file = pick('file').value, rule = pick('rule').value, severity = pick('severity').value;
  let shown = 0;
  for (const row of document.querySelectorAll('#findings tbody tr')) {
    const d = row.dataset;
    row.hidden = (file && d.file !== file) || (rule && d.rule !== rule) || (severity && d.severity !== severity);
    if (!row.hidden) shown++;
  }
  for (const row of document.querySelectorAll('#buffers tbody tr')) row.hidden = !!file && row.dataset.file !== file;
  pick('count').textContent = shown + ' shown';
}
for (const id of ['file', 'rule', 'severity']) pick(id).addEventListener('change', apply);
for (const bar of document.querySelectorAll('.bar')) bar.addEventListener('click', () => { pick('file').value = bar.dataset.file; apply(); });
apply();
</script>"#;
