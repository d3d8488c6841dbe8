//! sarif
use super::Report;
/// sarif
pub fn sarif(report: &Report) -> String { super::json(report) }
