//! Files made to break the readers: whatever is in them, the answer is an error that names the file, never a panic,
//! and never memory out of proportion to the file.
//!
//! Some 25,000 cases a run: the headers of GGUF and safetensors files, packed and not, `config.json`, tokenizers in both kinds of file,
//! each changed from a valid one, and chat templates put together from pieces.

mod changes;
mod chat_templates;
mod checkpoints;
mod gguf;
mod memory;
#[path = "../support/mod.rs"]
mod support;
mod tokenizers;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use marlin_models::{ModelError, ModelSource, PackOptions, pack};
use proptest::prelude::*;
use support::place;

thread_local! {
    // In memory where the system has such a place: rewriting a file 6,000 times makes a disk wait for each.
    static FOLDER: tempfile::TempDir =
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
}

/// A folder for the files of this thread, which is that of one test: each case overwrites those of the one before.
fn folder() -> PathBuf {
    FOLDER.with(|folder| folder.path().to_owned())
}

/// Opens a model and records its forward pass: everything that reading a header leads to.
fn open(path: &Path) -> Result<(), ModelError> {
    let source = ModelSource::open(path)?;
    source.forward(&mut place)?;
    Ok(())
}

fn packed(source: &ModelSource, out: &Path) -> Vec<u8> {
    pack(source, out, PackOptions::default(), &mut |_, _| ControlFlow::Continue(())).unwrap();
    let weights = if out.is_dir() { out.join("model.safetensors") } else { out.to_owned() };
    std::fs::read(weights).unwrap()
}

/// An error must name the file it is about, say what was expected, and not repeat the file.
fn check_error(error: &ModelError, file: &str) -> Result<(), TestCaseError> {
    let message = error.to_string();
    prop_assert!(message.contains(file), "{message}");
    prop_assert!(message.contains("expected") || message.contains("cannot"), "{message}");
    prop_assert!(message.len() < 2000, "{message}");
    Ok(())
}

fn config(cases: u32) -> ProptestConfig {
    // Failures are reproduced by the values that are printed, not by a file of seeds.
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}
