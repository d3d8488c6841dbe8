//! Small programs in every language, each with the rows that an audit of it must give.
//!
//! `expected.txt` beside a program has a line for each buffer, copy, zero-copy binding and storage finding:
//!
//! ```text
//! buffer FUNCTION NAME | CURRENT MODE | ACCESS PATTERN | SUGGESTED MODE [| inline]
//! copy FUNCTION RULE DIRECTION [hot]
//! zero-copy FUNCTION
//! finding RULE FUNCTION
//! ```
//!
//! `finding` lines, where a program has any, list all its storage findings.

use std::fs;
use std::path::{Path, PathBuf};

use marlin_audit::report::Report;
use marlin_audit::rules::Family;
use marlin_audit::source::{Options, audit};

fn programs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the corpus is beside this test")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.join("expected.txt").is_file())
        .collect();
    found.sort();
    found
}

fn rows(report: &Report) -> Vec<String> {
    let mut rows = Vec::new();
    for b in &report.buffers {
        let inline = if b.inline_candidate { " | inline" } else { "" };
        rows.push(format!(
            "buffer {} {} | {} | {} | {}{inline}",
            b.function, b.buffer, b.current_mode, b.access_pattern, b.suggested_mode
        ));
    }
    for c in &report.copies {
        let hot = if c.in_hot_path { " hot" } else { "" };
        rows.push(format!("copy {} {} {}{hot}", c.function, c.rule, c.direction.name()));
    }
    rows.extend(report.zero_copy.iter().map(|z| format!("zero-copy {}", z.function)));
    let storage = report.findings.iter().filter(|f| f.rule.family() == Family::Storage);
    rows.extend(storage.map(|f| format!("finding {} {}", f.rule, f.function)));
    rows.sort();
    rows
}

#[test]
fn every_row_is_found_and_no_other() {
    let programs = programs();
    assert!(programs.len() >= 10, "{} programs", programs.len());
    let (mut right, mut missing, mut extra) = (0, Vec::new(), Vec::new());
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let report = audit(std::slice::from_ref(&program), &Options::default())
            .expect("the program is readable");
        assert!(report.skipped.is_empty(), "{name}: {:?}", report.skipped);
        let text = fs::read_to_string(program.join("expected.txt")).expect("a readable file");
        let mut expected: Vec<String> = text.lines().map(str::to_string).collect();
        expected.sort();
        let lists_findings = expected.iter().any(|row| row.starts_with("finding"));
        let mut found = rows(&report);
        found.retain(|row| lists_findings || !row.starts_with("finding"));
        for row in expected {
            match found.iter().position(|f| *f == row) {
                Some(at) => {
                    found.remove(at);
                    right += 1;
                }
                None => missing.push(format!("{name}: {row}")),
            }
        }
        extra.extend(found.into_iter().map(|row| format!("{name}: {row}")));
    }
    let recall = right as f64 / (right + missing.len()) as f64;
    let precision = right as f64 / (right + extra.len()) as f64;
    assert!(
        missing.is_empty() && extra.is_empty(),
        "precision {precision:.3}, recall {recall:.3}\nmissing:\n  {}\nnot expected:\n  {}",
        missing.join("\n  "),
        extra.join("\n  ")
    );
}
