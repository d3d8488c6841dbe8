//! The audit of a run, on paper: what [`marlin_placement::audit`] worked out, as text, Markdown, JSON or
//! a page, and the budgets that it is held against.

mod budget;
mod charts;
mod html;
mod json;
mod markdown;
mod text;
mod units;

use marlin_placement::audit::{BudgetLine, BufferRow, CallSite, RunAudit};

pub use budget::{BudgetError, read_budget};
pub use html::html;
pub use json::json;
pub use markdown::markdown;
pub use text::text;

/// An audit and what else a report shows.
#[derive(Clone, Copy, Debug)]
pub struct RunReport<'a> {
    /// The audit.
    pub audit: &'a RunAudit,
    /// What the budget is called: its file, or `design`.
    pub budget_name: &'a str,
    /// The audit held against a budget.
    pub budget: &'a [BudgetLine],
    /// What the model was asked, and what it answered.
    pub exchange: Option<Exchange<'a>>,
}

/// What the model was asked, and what it answered.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Exchange<'a> {
    /// The prompt, as it was given.
    pub prompt: &'a str,
    /// The answer.
    pub answer: &'a str,
}

/// Rows of one function, with its place as a title. Rows come sorted by call site.
fn by_function<T>(rows: &[T], site: impl Fn(&T) -> &CallSite) -> Vec<(String, &[T])> {
    let same = |a: &T, b: &T| {
        let (a, b) = (site(a), site(b));
        a.module == b.module && a.function == b.function
    };
    let groups = rows.chunk_by(same).map(|rows| {
        let first = site(&rows[0]);
        let title = match &first.function {
            Some(function) => format!("{}: {function} (around line {})", first.module, first.line),
            None => first.to_string(),
        };
        (title, rows)
    });
    groups.collect()
}

fn name_of(row: &BufferRow) -> String {
    if row.count == 1 { row.name.clone() } else { format!("{} ×{}", row.name, row.count) }
}
