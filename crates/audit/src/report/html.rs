//! html
use super::Report;
/// html
pub fn html(report: &Report) -> String { super::json(report) }
