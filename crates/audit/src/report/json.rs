//! JSON: everything in the report.

use super::Report;

/// The report as JSON: `buffers`, `copies`, `zero_copy`, `findings`, `suppressed`, `skipped`,
/// `files` and `totals`.
pub fn json(report: &Report) -> String {
    // Strings, numbers and lists of them always serialise.
    serde_json::to_string_pretty(report)
        .map(|mut s| {
            s.push('\n');
            s
        })
        .unwrap_or_default()
}
