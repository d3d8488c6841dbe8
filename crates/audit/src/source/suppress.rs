//! Suppression comments: `marlin: allow(MS003): the reason`.
//!
//! A comment holds for its own line and, if it stands alone, for the next line of code;
//! `allow-file` holds for the file. A suppression without a reason does not hold.

use std::collections::HashMap;

use crate::flow::project::Project;
use crate::report::{Report, Suppressed};
use crate::rules::Code;

struct Allowance {
    codes: Vec<Code>,
    all: bool,
    reason: String,
    line: usize,
    /// The last line that it holds for; the whole file if absent.
    until: Option<usize>,
}

pub(super) fn apply(project: &Project<'_>, report: &mut Report) {
    let mut by_file: HashMap<&str, Vec<Allowance>> = HashMap::new();
    for file in &project.files {
        if file.original.contains("marlin: allow") {
            by_file.insert(&file.path, allowances(file.original));
        }
    }
    if by_file.is_empty() {
        return;
    }
    let findings = std::mem::take(&mut report.findings);
    for mut finding in findings {
        let holds = by_file.get(finding.file.as_str()).and_then(|list| {
            list.iter().find(|a| {
                let here =
                    a.until.is_none_or(|until| a.line <= finding.line && finding.line <= until);
                here && (a.all || a.codes.contains(&finding.rule))
            })
        });
        match holds {
            Some(a) if !a.reason.is_empty() => {
                report.suppressed.push(Suppressed { finding, reason: a.reason.clone() });
            }
            Some(a) => {
                finding.help = format!(
                    "{}; the suppression in line {} gives no reason, so it does not hold",
                    finding.help, a.line
                );
                report.findings.push(finding);
            }
            None => report.findings.push(finding),
        }
    }
}

fn allowances(source: &str) -> Vec<Allowance> {
    let lines: Vec<&str> = source.lines().collect();
    let mut out = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let Some(at) = line.find("marlin: allow") else { continue };
        let before = line[..at].trim_end();
        let comment = ["#", "//", "/*", "*", "///", "//!"].iter().any(|c| before.ends_with(c));
        if !comment {
            continue;
        }
        let rest = &line[at + "marlin: allow".len()..];
        let (rest, whole_file) = match rest.strip_prefix("-file") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let Some((list, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) else {
            continue;
        };
        let codes: Vec<Code> = list.split(',').filter_map(|c| c.trim().parse().ok()).collect();
        let all = list.trim() == "all";
        let reason =
            after.trim().trim_start_matches([':', '-', '—']).trim().trim_end_matches("*/").trim();
        // A comment on its own line speaks of the next line that is code.
        let alone = before.trim_start_matches(['#', '/', '*', '!', ' ', '\t']).is_empty();
        let until = if whole_file {
            None
        } else if alone {
            let next = lines[i + 1..].iter().position(|l| {
                let l = l.trim_start();
                !l.is_empty() && !l.starts_with('#') && !l.starts_with("//") && !l.starts_with('*')
            });
            Some(i + 2 + next.unwrap_or(0))
        } else {
            Some(i + 1)
        };
        out.push(Allowance { codes, all, reason: reason.to_string(), line: i + 1, until });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_holds_for_its_line_or_for_the_next_line_of_code() {
        let found = allowances(
            "a = 1  # marlin: allow(MS003): read by hand\n# marlin: allow(MC001, MC002): once\n\n# more\nb = 2\n",
        );
        assert_eq!(
            (found[0].line, found[0].until, found[0].codes.as_slice()),
            (1, Some(1), &[Code::MS003][..])
        );
        assert_eq!(found[0].reason, "read by hand");
        assert_eq!((found[1].line, found[1].until), (2, Some(5)));
        assert_eq!(found[1].codes, [Code::MC001, Code::MC002]);
    }

    #[test]
    fn a_suppression_is_a_comment_and_needs_a_reason() {
        assert!(allowances("x = 'marlin: allow(MS003): no comment'\n").is_empty());
        assert_eq!(allowances("// marlin: allow(MS003)\nlet a = 1;\n")[0].reason, "");
        assert_eq!(allowances("//! marlin: allow-file(all): generated\n")[0].until, None);
    }
}
