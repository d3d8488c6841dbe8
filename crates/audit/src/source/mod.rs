//! The source auditor: reads files, analyses them together, applies suppressions and a baseline.

mod baseline;
mod config;
mod suppress;
mod walk;

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use rayon::prelude::*;

pub use baseline::{Baseline, BaselineError};
pub use config::{Config, ConfigError};
pub use walk::WalkError;

use crate::findings::Collector;
use crate::flow::{self, project::Project, project::SourceModule};
use crate::front;
use crate::ir::Language;
use crate::lines::Lines;
use crate::msl;
use crate::report::{Report, Skipped, Totals};
use crate::rules::{Code, Severity};

/// Stack of each analysis thread: syntax trees of generated code are deep.
const STACK: usize = 256 << 20;

/// Which devices the advice is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetDevice {
    /// One memory for host and device: managed is shared.
    AppleSilicon,
    /// Memory of its own: managed buffers need `didModifyRange`.
    Discrete,
    /// Both kinds.
    #[default]
    Any,
}

/// What an audit is told besides its paths.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which devices the advice is for.
    pub device: TargetDevice,
    /// Names of functions that take a kernel's name and its buffers in binding order.
    pub dispatch_helpers: Vec<String>,
    /// Paths to leave out, as globs relative to the audited folder.
    pub exclude: Vec<String>,
    /// Rules that are not reported.
    pub ignore: Vec<Code>,
}

/// What makes an audit fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailOn {
    /// A finding of this severity or a worse one.
    Severity(Severity),
    /// A finding of this rule.
    Rule(Code),
    /// Nothing.
    Never,
}

/// Audits files and folders; folders are walked, `.gitignore` respected.
///
/// # Errors
///
/// [`WalkError`] when a path does not exist or a glob is malformed. Files that cannot be read or
/// parsed are listed in [`Report::skipped`].
pub fn audit(paths: &[PathBuf], options: &Options) -> Result<Report, WalkError> {
    let files = walk::files(paths, &options.exclude)?;
    let texts: Vec<Result<Text, Skipped>> = on_big_stack(|| files.par_iter().map(read).collect());
    let mut skipped = Vec::new();
    let mut good = Vec::with_capacity(texts.len());
    for text in texts {
        match text {
            Ok(text) => good.push(text),
            Err(reason) => skipped.push(reason),
        }
    }
    Ok(audit_texts(&good, skipped, options))
}

/// Audits texts that are already in memory, as (path, language, text).
pub fn audit_text(files: &[(&str, Language, &str)], options: &Options) -> Report {
    let texts: Vec<Text> = files
        .iter()
        .map(|(path, language, text)| Text {
            path: (*path).to_string(),
            language: *language,
            text: (*text).to_string(),
            rewritten: rewritten(*language, text, true),
            relevant: true,
        })
        .collect();
    audit_texts(&texts, Vec::new(), options)
}

struct Text {
    path: String,
    language: Language,
    text: String,
    /// What is parsed in its place.
    rewritten: Option<(String, bool)>,
    /// It mentions something of the APIs that are audited.
    relevant: bool,
}

fn read(file: &walk::Found) -> Result<Text, Skipped> {
    let path = file.path.to_string_lossy().replace('\\', "/");
    let skip = |reason: String| Skipped { file: path.clone(), reason, whole_file: true };
    if file.bytes > walk::MAX_BYTES {
        return Err(skip(format!(
            "{} bytes; files up to {} are audited",
            file.bytes,
            walk::MAX_BYTES
        )));
    }
    let bytes = std::fs::read(&file.path).map_err(|e: io::Error| skip(e.to_string()))?;
    let relevant = walk::is_relevant(file.language, &bytes);
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        // Old sources in Latin-1 are common; their code is ASCII all the same.
        Err(error) if relevant => {
            let bytes = error.into_bytes();
            if bytes.contains(&0) {
                return Err(skip("not text".into()));
            }
            bytes.iter().map(|b| *b as char).collect()
        }
        Err(_) => String::new(),
    };
    let language = walk::refine(file.language, &text);
    let rewritten = rewritten(language, &text, relevant);
    Ok(Text { path, language, text, rewritten, relevant })
}

fn rewritten(language: Language, text: &str, relevant: bool) -> Option<(String, bool)> {
    if relevant { front::rewritten(language, text) } else { None }
}

/// Runs `f` in a thread pool whose threads have big stacks.
fn on_big_stack<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    match rayon::ThreadPoolBuilder::new().stack_size(STACK).build() {
        Ok(pool) => pool.install(f),
        Err(_) => f(),
    }
}

fn audit_texts(texts: &[Text], skipped: Vec<Skipped>, options: &Options) -> Report {
    on_big_stack(|| audit_here(texts, skipped, options))
}

fn audit_here(texts: &[Text], mut skipped: Vec<Skipped>, options: &Options) -> Report {
    let lines: usize = texts.par_iter().map(|t| Lines::new(&t.text).count()).sum();
    let first: Vec<&Text> = texts.iter().filter(|t| t.relevant).collect();
    let mut lowered: Vec<Result<SourceModule<'_>, Skipped>> =
        first.par_iter().map(|t| lower(t)).collect();
    // Constants and helpers may be imported from files that mention no Metal themselves.
    let imported: HashSet<&str> = lowered
        .iter()
        .flatten()
        .flat_map(|m| &m.module.imports)
        .filter_map(|i| i.module.rsplit('.').next())
        .collect();
    let second: Vec<&Text> = texts
        .iter()
        .filter(|t| !t.relevant && t.language == Language::Python)
        .filter(|t| {
            let stem = t.path.rsplit('/').next().and_then(|f| f.strip_suffix(".py"));
            stem.is_some_and(|s| imported.contains(s))
        })
        .collect();
    let more: Vec<_> = second.par_iter().map(|t| lower(t)).collect();
    lowered.extend(more);
    let mut modules = Vec::with_capacity(lowered.len());
    for result in lowered {
        match result {
            Ok(module) => modules.push(module),
            Err(reason) => skipped.push(reason),
        }
    }
    modules.sort_by(|a, b| a.path.cmp(&b.path));
    for module in &modules {
        if let Some(error) = module.module.errors.first() {
            let (line, column) = Lines::new(module.source).position(error.start);
            skipped.push(Skipped {
                file: module.path.clone(),
                reason: format!(
                    "{} of the file left out for syntax errors, the first at line {line}, column {column}",
                    if module.module.errors.len() == 1 { "a part".into() } else { format!("{} parts", module.module.errors.len()) }
                ),
                whole_file: false,
            });
        }
    }
    let helpers = options.dispatch_helpers.iter().cloned().collect();
    let project = Project::new(modules, helpers);
    let summaries = flow::summaries(&project);
    let hot = flow::hot::hot_functions(&project, &summaries);
    let attributed = flow::attribute::attribute(&project, &summaries);
    let contiguous = attributed.contiguous.clone();
    let mut collector = Collector::new(&project, hot, options.device);
    collector.buffers(attributed);
    collector.copies(&summaries, &contiguous);
    let mut report = std::mem::take(&mut collector.report);
    report.findings.retain(|f| !options.ignore.contains(&f.rule));
    suppress::apply(&project, &mut report);
    report.skipped = skipped;
    report.files = project.files.iter().map(|f| f.path.clone()).collect();
    report.sort();
    report.totals = Totals { files: texts.len(), lines, ..report.totals };
    report.count();
    report
}

fn lower(text: &Text) -> Result<SourceModule<'_>, Skipped> {
    let skip = |reason: String| Skipped { file: text.path.clone(), reason, whole_file: true };
    let original = text.text.as_str();
    let (source, aligned) = match &text.rewritten {
        Some((source, aligned)) => (source.as_str(), *aligned),
        None => (original, true),
    };
    let mut kernels = Vec::new();
    let module = if text.language == Language::Metal {
        kernels = msl::kernels(source);
        crate::ir::Module::default()
    } else {
        front::lower(text.language, source).map_err(|e| skip(e.to_string()))?
    };
    for (span, shader) in &module.shader_strings {
        kernels.extend(msl::kernels(shader).into_iter().map(|mut k| {
            k.offset += span.start;
            k
        }));
    }
    Ok(SourceModule {
        path: text.path.clone(),
        language: text.language,
        source,
        original,
        aligned,
        module,
        kernels,
    })
}

impl Report {
    fn sort(&mut self) {
        self.buffers.sort_by(|a, b| {
            (&a.file, a.line, a.column, &a.buffer).cmp(&(&b.file, b.line, b.column, &b.buffer))
        });
        self.copies.sort_by(|a, b| {
            (&a.file, a.line, a.column, a.rule).cmp(&(&b.file, b.line, b.column, b.rule))
        });
        self.zero_copy.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        self.findings.sort_by(|a, b| {
            (&a.file, a.line, a.column, a.rule).cmp(&(&b.file, b.line, b.column, b.rule))
        });
        self.skipped.sort_by(|a, b| a.file.cmp(&b.file));
    }

    fn count(&mut self) {
        let of =
            |severity: Severity| self.findings.iter().filter(|f| f.severity == severity).count();
        self.totals = Totals {
            buffers: self.buffers.len(),
            copies: self.copies.len(),
            zero_copy: self.zero_copy.len(),
            findings: self.findings.len(),
            errors: of(Severity::Error),
            warnings: of(Severity::Warning),
            notes: of(Severity::Note),
            suppressed: self.suppressed.len(),
            skipped: self.skipped.iter().filter(|s| s.whole_file).count(),
            ..self.totals
        };
    }

    /// Leaves out the findings that a baseline knows.
    pub fn apply_baseline(&mut self, baseline: &Baseline) {
        let before = self.findings.len();
        self.findings.retain(|f| !baseline.contains(f));
        self.totals.in_baseline += before - self.findings.len();
        self.count();
    }

    /// Whether a finding is of the kinds that fail an audit.
    pub fn fails(&self, on: &[FailOn]) -> bool {
        self.findings.iter().any(|f| {
            on.iter().any(|on| match on {
                FailOn::Severity(severity) => f.severity >= *severity,
                FailOn::Rule(rule) => f.rule == *rule,
                FailOn::Never => false,
            })
        })
    }
}
