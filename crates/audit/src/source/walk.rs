//! Which files are audited.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use globset::{Glob, GlobSetBuilder};
use ignore::WalkBuilder;

use crate::ir::Language;

/// Larger files are generated.
pub(super) const MAX_BYTES: u64 = 8 << 20;

/// The paths of an audit do not make sense.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// A path does not exist.
    #[error("{path}: no such file or folder")]
    Missing {
        /// The path as given.
        path: String,
    },
    /// A file that is named must be of a language that is audited.
    #[error("{path}: not a Python, Rust, Objective-C, C++, Swift or Metal file")]
    Language {
        /// The path as given.
        path: String,
    },
    /// A glob is malformed.
    #[error("exclude glob `{glob}`: {reason}")]
    Glob {
        /// The glob as given.
        glob: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A file to audit.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) language: Language,
    pub(super) bytes: u64,
}

pub(super) fn files(paths: &[PathBuf], exclude: &[String]) -> Result<Vec<Found>, WalkError> {
    let mut globs = GlobSetBuilder::new();
    for glob in exclude {
        let bad = |e: globset::Error| WalkError::Glob { glob: glob.clone(), reason: e.to_string() };
        globs.add(Glob::new(glob).map_err(bad)?);
        // `tests` leaves out the folder and all that is in it, wherever it is.
        let anywhere = format!("**/{}/**", glob.trim_matches('/'));
        globs.add(Glob::new(&anywhere).map_err(bad)?);
        globs.add(Glob::new(&format!("{}/**", glob.trim_end_matches('/'))).map_err(bad)?);
    }
    let globs = globs
        .build()
        .map_err(|e| WalkError::Glob { glob: String::new(), reason: e.to_string() })?;
    let mut out = Vec::new();
    let mut seen = HashSet::new();
    for path in paths {
        let Ok(info) = std::fs::metadata(path) else {
            return Err(WalkError::Missing { path: path.display().to_string() });
        };
        if info.is_file() {
            let Some(language) = language(path) else {
                return Err(WalkError::Language { path: path.display().to_string() });
            };
            if seen.insert(path.clone()) {
                out.push(Found { path: path.clone(), language, bytes: info.len() });
            }
            continue;
        }
        let mut folder: Vec<Found> = WalkBuilder::new(path)
            .require_git(false)
            .build()
            .flatten()
            .filter(|entry| entry.file_type().is_some_and(|t| t.is_file()))
            .filter_map(|entry| {
                let found = entry.into_path();
                let relative = found.strip_prefix(path).unwrap_or(&found);
                if globs.is_match(relative) {
                    return None;
                }
                let language = language(&found)?;
                let bytes = std::fs::metadata(&found).map(|m| m.len()).unwrap_or(0);
                Some(Found { path: found, language, bytes })
            })
            .filter(|f| seen.insert(f.path.clone()))
            .collect();
        folder.sort_by(|a, b| a.path.cmp(&b.path));
        out.extend(folder);
    }
    Ok(out)
}

fn language(path: &Path) -> Option<Language> {
    Some(match path.extension()?.to_str()? {
        "py" | "pyi" => Language::Python,
        "rs" => Language::Rust,
        "m" => Language::ObjectiveC,
        "mm" => Language::ObjectiveCpp,
        "c" | "cc" | "cpp" | "cxx" | "c++" | "h" | "hh" | "hpp" | "hxx" | "inl" | "ipp" => {
            Language::Cpp
        }
        "swift" => Language::Swift,
        "metal" => Language::Metal,
        _ => return None,
    })
}

/// A header may be of any of the C languages.
pub(super) fn refine(language: Language, text: &str) -> Language {
    if language != Language::Cpp {
        return language;
    }
    let objective = text.contains("@interface")
        || text.contains("@implementation")
        || text.contains("@protocol");
    let shader = text.contains("[[buffer(")
        || text.contains("[[kernel]]")
        || text.contains("using namespace metal");
    if objective {
        let cpp =
            text.contains("namespace ") || text.contains("template") || text.contains("std::");
        return if cpp { Language::ObjectiveCpp } else { Language::ObjectiveC };
    }
    if shader && !text.contains("newBuffer") { Language::Metal } else { language }
}

/// Words without which a file has nothing to audit.
const COMMON: &[&str] = &["MTL", "torageMode", "kernel void", "[[buffer(", "[[kernel]]"];
const PYTHON: &[&str] = &[
    "import torch",
    "from torch",
    "import mlx",
    "from mlx",
    "import Metal",
    "from Metal",
    "newBuffer",
];
const RUST: &[&str] = &[
    "candle",
    "wgpu",
    "objc2_metal",
    "metal::",
    "new_buffer",
    "newBuffer",
    "set_buffer",
    "set_params!",
    "BufferUsages",
    "wait_until_completed",
];
const C_LIKE: &[&str] = &["newBuffer", "setBuffer", "dispatchThread", "waitUntilCompleted"];
const SWIFT: &[&str] =
    &["makeBuffer", "import Metal", "setBuffer", "waitUntilCompleted", "contents()"];

pub(super) fn is_relevant(language: Language, bytes: &[u8]) -> bool {
    struct Finders {
        python: Option<AhoCorasick>,
        rust: Option<AhoCorasick>,
        c_like: Option<AhoCorasick>,
        swift: Option<AhoCorasick>,
    }
    static FINDERS: LazyLock<Finders> = LazyLock::new(|| {
        let finder = |own: &[&str]| AhoCorasick::new(COMMON.iter().chain(own)).ok();
        Finders {
            python: finder(PYTHON),
            rust: finder(RUST),
            c_like: finder(C_LIKE),
            swift: finder(SWIFT),
        }
    });
    let finder = match language {
        Language::Metal => return true,
        Language::Python => &FINDERS.python,
        Language::Rust => &FINDERS.rust,
        Language::Swift => &FINDERS.swift,
        Language::ObjectiveC | Language::ObjectiveCpp | Language::Cpp => &FINDERS.c_like,
    };
    finder.as_ref().is_none_or(|f| f.is_match(bytes))
}
