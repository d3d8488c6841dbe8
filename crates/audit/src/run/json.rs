//! JSON: everything in the report.

use marlin_placement::audit::{BudgetLine, RunAudit};
use serde::Serialize;

use super::{Exchange, RunReport};

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    audit: &'a RunAudit,
    budget: BudgetPart<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exchange: Option<Exchange<'a>>,
}

#[derive(Serialize)]
struct BudgetPart<'a> {
    name: &'a str,
    exceeded: bool,
    lines: &'a [BudgetLine],
}

/// The report as JSON; `docs/audit-run.md` says what is in it, `run.schema.json` says it to programs.
pub fn json(report: &RunReport<'_>) -> String {
    let document = Document {
        audit: report.audit,
        budget: BudgetPart {
            name: report.budget_name,
            exceeded: report.budget.iter().any(|line| line.exceeded),
            lines: report.budget,
        },
        exchange: report.exchange,
    };
    // Strings, finite numbers and lists of them always serialise.
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}
