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

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

/// Files of this folder as `source` would put one together, with `T` as `half`. Each has a namespace
/// of its own, and its kernels, which namespaces do not keep apart, have endings of their own.
fn together(paths: &[PathBuf]) -> String {
    let header = read(&crate_file("compat/metal.h"));
    let mut out = format!("#line 1 \"compat/metal.h\"\n{header}\n");
    for path in paths {
        let (name, text) = (file_name(path), read(path));
        let stem = name.trim_end_matches(".metal");
        out += &format!("#line 1 \"{name}\"\n#define T half\n");
        let kernels: BTreeSet<_> =
            text.split("kernel void ").skip(1).filter_map(|rest| rest.split('(').next()).collect();
        for kernel in &kernels {
            out += &format!("#define {kernel} {kernel}_of_{stem}\n");
        }
        out += &format!("namespace file_{stem} {{\n#line 1 \"{name}\"\n{text}\n}}\n#undef T\n");
        for kernel in &kernels {
            out += &format!("#undef {kernel}\n");
        }
    }
    out
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
    let findings = clang.check(&together(std::slice::from_ref(&path)));
    assert!(findings.is_empty(), "{}", listed(&findings));
}

fn kernel_files(folder: &str) -> Vec<PathBuf> {
    let path = crate_file("tests/msl").join(folder);
    let entries = fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut out: Vec<_> = entries.map(|e| e.expect("a directory entry").path()).collect();
    out.sort();
    out
}

/// What a file in `refused` says of itself in its first line: who finds the mistake, and what
/// the message has to contain.
fn expectation(path: &Path) -> (bool, String) {
    let text = read(path);
    let first = text.lines().next().unwrap_or_default();
    let by = |who: &str| first.strip_prefix(who).map(str::to_owned);
    match (by("// refused by clang: "), by("// refused by the search: ")) {
        (Some(message), _) => (true, message),
        (_, Some(message)) => (false, message),
        _ => panic!("{}: its first line does not say who refuses it, and why", path.display()),
    }
}

/// Each class of error has a wrong kernel in `refused` and a right one of the same name in
/// `accepted`. What clang refuses is compiled file by file; the rest has no errors for
/// clang, so that it can be read and searched together.
#[test]
fn each_class_of_error_is_refused() {
    let Some(clang) = Clang::find() else { return };
    let (by_clang, by_search): (Vec<_>, Vec<_>) =
        kernel_files("refused").into_iter().partition(|path| expectation(path).0);
    assert!(by_clang.len() > 20 && by_search.len() > 20);
    let mut problems = String::new();
    let mut expect = |path: &Path, findings: &[Finding]| {
        let (_, expected) = expectation(path);
        let here: Vec<_> = findings.iter().filter(|f| f.file == file_name(path)).cloned().collect();
        if !here.iter().any(|f| f.message.contains(&expected)) {
            let name = file_name(path);
            problems += &format!("{name}: nothing says `{expected}`\n{}", listed(&here));
        }
    };
    let findings = check_all(&clang, &by_clang, |path| together(std::slice::from_ref(path)));
    for (path, findings) in by_clang.iter().zip(&findings) {
        expect(path, findings);
    }
    let findings = clang.check(&together(&by_search));
    for path in &by_search {
        expect(path, &findings);
    }
    let elsewhere: Vec<_> = findings
        .iter()
        .filter(|f| !by_search.iter().any(|path| f.file == file_name(path)))
        .cloned()
        .collect();
    assert!(problems.is_empty() && elsewhere.is_empty(), "{problems}{}", listed(&elsewhere));
}

#[test]
fn the_right_twin_of_each_error_is_accepted() {
    let Some(clang) = Clang::find() else { return };
    let (refused, accepted) = (kernel_files("refused"), kernel_files("accepted"));
    let names = |paths: &[PathBuf]| -> Vec<String> {
        paths.iter().map(|path| file_name(path).to_owned()).collect()
    };
    assert_eq!(names(&refused), names(&accepted), "every case has its twin");
    let findings = clang.check(&together(&accepted));
    assert!(findings.is_empty(), "{}", listed(&findings));
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
