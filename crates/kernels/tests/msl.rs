//! The kernels as Metal Shading Language, checked by clang 19 without an Apple machine: what
//! `compat/msl` declares, what `msl/ast.rs` adds, and what stays unchecked is in `docs/msl-check.md`.
//!
//! Without clang 19 these tests say so and check nothing, unless `MARLIN_REQUIRE_CLANG` is set.

#[path = "msl/ast.rs"]
mod ast;
#[path = "msl/attributes.rs"]
mod attributes;
#[path = "msl/call_graph.rs"]
mod call_graph;
#[path = "msl/check.rs"]
mod check;
#[path = "msl/restrictions.rs"]
mod restrictions;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use marlin_kernels::signature::ElementType;
use marlin_kernels::{ConstantValues, KERNELS, Kernel, PipelineKey, Target, source};

use check::{Clang, Finding};

/// Every choice of types for a kernel's type parameters.
fn combinations(kernel: &Kernel) -> Vec<[Option<ElementType>; 2]> {
    let choices = |index: usize| -> Vec<Option<ElementType>> {
        match kernel.type_parameters.get(index) {
            Some(parameter) => parameter.types.iter().copied().map(Some).collect(),
            None => vec![None],
        }
    };
    let second = choices(1);
    choices(0).into_iter().flat_map(|a| second.iter().map(move |b| [a, *b])).collect()
}

/// What the check says of each job's source, two at a time: the check is short, and CI has two cores.
fn check_all<J: Sync>(
    clang: &Clang,
    jobs: &[J],
    text: impl Fn(&J) -> String + Sync,
) -> Vec<Vec<Finding>> {
    static ONE_TEST_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_TEST_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else { break done };
            done.push((index, clang.check(&text(job))));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let other = scope.spawn(worker);
        let mut mine = worker();
        mine.extend(other.join().expect("the other worker"));
        mine
    });
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, findings)| findings).collect()
}

fn listed(findings: &[Finding]) -> String {
    findings.iter().map(|f| format!("  {f}\n")).collect()
}

/// A source file's text holds all of its kernels, so each file is checked once for each combination
/// of types.
#[test]
fn every_kernel_is_accepted_for_every_combination_of_types() {
    let Some(clang) = Clang::find() else { return };
    let mut files = BTreeSet::new();
    let mut jobs = Vec::new();
    for kernel in KERNELS.iter().copied().filter(|k| files.insert(k.file)) {
        for elements in combinations(kernel) {
            jobs.push(PipelineKey { kernel, elements, constants: ConstantValues::default() });
        }
    }
    assert!(!jobs.is_empty(), "there are kernels");
    let findings = check_all(&clang, &jobs, |job| source(job, Target::Metal));
    let mut report = String::new();
    for (job, findings) in jobs.iter().zip(&findings).filter(|(_, f)| !f.is_empty()) {
        let types: Vec<_> = job.elements.iter().flatten().map(|e| e.source_name()).collect();
        report +=
            &format!("{}.metal <{}>\n{}", job.kernel.file, types.join(", "), listed(findings));
    }
    assert!(report.is_empty(), "Metal's compiler would refuse:\n{report}");
}

fn crate_file(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A file of this folder as `source` would put it together, with `T` as `half`.
fn with_compatibility_header(path: &Path) -> String {
    format!(
        "#line 1 \"compat/metal.h\"\n{}\n#define T half\n#line 1 \"{}\"\n{}",
        read(&crate_file("compat/metal.h")),
        path.file_name().and_then(|n| n.to_str()).unwrap_or_default(),
        read(path)
    )
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect()
}

/// The names that `docs/kernels.md` gives a kernel: what stands between backticks, of a table's
/// rows only in the first column.
fn documented_names(document: &str) -> BTreeSet<&str> {
    const SECTIONS: [&str; 4] =
        ["Types", "Memory", "Synchronisation and SIMD-groups", "Mathematics"];
    // Placeholders, endings, and what only others have.
    const NO_NAMES: [&str; 11] = [
        "_bf16",
        "_f16",
        "_f32",
        "bfloat",
        "condition",
        "dp4a",
        "dst",
        "lane",
        "mask",
        "name",
        "src",
    ];
    let mut out = BTreeSet::new();
    for section in document.split("\n## ") {
        let (title, body) = section.split_once('\n').unwrap_or_default();
        if !SECTIONS.contains(&title) {
            continue;
        }
        // Spans of code cross lines, but not into or out of a table.
        for block in body.split("\n\n").map(str::trim_start) {
            if block.starts_with('|') {
                let cells = block.lines().filter_map(|row| row.split('|').nth(1));
                out.extend(
                    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).flat_map(words),
                );
            } else {
                out.extend(block.split('`').skip(1).step_by(2).flat_map(words));
            }
        }
    }
    out.retain(|word| word.len() > 1 && !NO_NAMES.contains(word));
    out
}

/// `docs/kernels.md` says what a kernel may use; `dialect.metal` uses all of it.
#[test]
fn every_name_of_the_dialect_is_accepted() {
    let Some(clang) = Clang::find() else { return };
    let path = crate_file("tests/msl/dialect.metal");
    let (text, document) = (read(&path), read(&crate_file("../../docs/kernels.md")));
    let used = words(&text);
    let names = documented_names(&document);
    assert!(names.len() > 90, "{names:?}");
    let unused: Vec<_> = names.difference(&used).collect();
    assert!(unused.is_empty(), "documented, but not used in {}: {unused:?}", path.display());
    let findings = clang.check(&with_compatibility_header(&path));
    assert!(findings.is_empty(), "{}", listed(&findings));
}

/// Each class of error has a wrong kernel in `refused`, whose first line says what the message
/// must contain, and a right one of the same name in `accepted`.
#[test]
fn each_class_of_error_is_refused_and_its_right_twin_accepted() {
    let Some(clang) = Clang::find() else { return };
    let folder = |name: &str| -> Vec<PathBuf> {
        let path = crate_file("tests/msl").join(name);
        let entries = fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut out: Vec<_> = entries.map(|e| e.expect("a directory entry").path()).collect();
        out.sort();
        out
    };
    let (refused, accepted) = (folder("refused"), folder("accepted"));
    let names = |paths: &[PathBuf]| -> Vec<_> {
        paths.iter().map(|p| p.file_name().map(ToOwned::to_owned)).collect()
    };
    assert_eq!(names(&refused), names(&accepted), "every case has its twin");

    let mut problems = String::new();
    let wrong = check_all(&clang, &refused, |p| with_compatibility_header(p));
    for (path, findings) in refused.iter().zip(&wrong) {
        let text = read(path);
        let expected = text
            .lines()
            .next()
            .and_then(|l| l.strip_prefix("// refused: "))
            .unwrap_or_else(|| panic!("{}: no `// refused: ` line", path.display()));
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if !findings.iter().any(|f| f.file == name && f.message.contains(expected)) {
            problems += &format!("{name}: nothing in it says `{expected}`\n{}", listed(findings));
        }
    }
    let right = check_all(&clang, &accepted, |p| with_compatibility_header(p));
    for (path, findings) in accepted.iter().zip(&right).filter(|(_, f)| !f.is_empty()) {
        problems += &format!("{}: not accepted\n{}", path.display(), listed(findings));
    }
    assert!(problems.is_empty(), "{problems}");
}

/// Each entry of the stand-in library can be looked up in the specification.
#[test]
fn every_header_of_the_check_cites_the_specification() {
    let mut pending = vec![crate_file("compat/msl")];
    let mut seen = 0;
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(
                fs::read_dir(&path).expect("a folder").map(|e| e.expect("an entry").path()),
            );
            continue;
        }
        seen += 1;
        assert!(read(&path).contains('§'), "{} cites no section", path.display());
    }
    assert!(seen >= 8, "{seen} headers");
}
