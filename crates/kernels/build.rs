//! Reads every kernel's signature and writes its launcher; with the feature `emulated`, compiles
//! the kernels for the host as well.

#[path = "build/launchers.rs"]
mod launchers;
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "the library's own module, used in part"
)]
#[path = "src/signature/mod.rs"]
mod signature;

#[cfg(feature = "emulated")]
#[path = "build/host.rs"]
mod host;

use std::path::{Path, PathBuf};
use std::{env, fs, process};

fn main() {
    if let Err(message) = run() {
        eprintln!("{message}");
        process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?);
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|e| e.to_string())?);
    for folder in ["metal", "metal_tests", "compat", "build"] {
        println!("cargo:rerun-if-changed={}", root.join(folder).display());
    }
    let mut files = read_folder(&root.join("metal"), "")?;
    // The host's header is compiled in, not embedded.
    let compat = read_folder(&root.join("compat"), "compat/")?;
    files.extend(compat.into_iter().filter(|f| f.0 != "compat/host.h"));
    let sources = parse(&files)?;
    let text = launchers::generate(&sources, &files)?;
    write(&out.join("launchers.rs"), &text)?;
    #[cfg(feature = "emulated")]
    {
        let tests = read_folder(&root.join("metal_tests"), "")?;
        let tests = parse(&tests)?;
        write(&out.join("test_launchers.rs"), &launchers::generate(&tests, &[])?)?;
        let from = |sources: &[signature::Source], folder: &str| {
            let folder = root.join(folder);
            sources
                .iter()
                .map(|s| host::HostSource { source: s.clone(), folder: folder.clone() })
                .collect::<Vec<_>>()
        };
        let mut all = from(&sources, "metal");
        all.extend(from(&tests, "metal_tests"));
        host::compile(&root, &out, &all)?;
    }
    Ok(())
}

/// The declarations of every kernel file among `files`.
fn parse(files: &[(String, PathBuf, String)]) -> Result<Vec<signature::Source>, String> {
    let mut sources = Vec::new();
    for (name, _, text) in files.iter().filter(|f| f.0.ends_with(".metal")) {
        let stem = name.trim_end_matches(".metal");
        let source = signature::parse(stem, text).map_err(|e| e.to_string())?;
        check_includes(&source, files)?;
        sources.push(source);
    }
    Ok(sources)
}

/// Name (with `prefix`), path and text of every source file in a folder, by name.
fn read_folder(folder: &Path, prefix: &str) -> Result<Vec<(String, PathBuf, String)>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut out = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| e.to_string())?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if name.ends_with(".metal") || name.ends_with(".h") {
            let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            out.push((format!("{prefix}{name}"), path, text));
        }
    }
    out.sort();
    Ok(out)
}

fn check_includes(
    source: &signature::Source,
    files: &[(String, PathBuf, String)],
) -> Result<(), String> {
    for include in &source.includes {
        if !files.iter().any(|f| &f.0 == include) {
            return Err(format!(
                "{}.metal includes \"{include}\", which is not beside it",
                source.stem
            ));
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
