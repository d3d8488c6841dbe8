//! Quantising activations at every step, and repacking weights once at load.
//!
//! Activations are quantised as part of the matrix product that reads them. The smallest
//! product, one tile of sixteen rows, is added to it here: this is an upper bound. Its floor
//! is reading 64 rows of f32, which come from the caches, so it can be undercut.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use marlin_backend::{Backend, KvFormat, ProgramBuilder};
use marlin_formats::Format;
use support::{BACKEND, Work, compile, is_trial, measure, rows, source, step, tokens, weight};

fn activations(c: &mut Criterion) {
    let mut group = c.benchmark_group("quantise/activations-64");
    let format: Format = "q8_0".parse().expect("a format's name");
    for cols in [576, 1536, 4096, 14_336] {
        let work = Work { bytes: 64 * 4 * cols as u64, multiply_adds: 64 * 16 * cols as u64 };
        measure(&mut group, &cols.to_string(), work, || {
            let mut b = ProgramBuilder::new();
            let x = rows(&mut b, 64, cols);
            let [y] = b.linear(x, [(&weight(format, 16, cols), None)]).expect("shapes that fit");
            let logits = b.select_outputs(y);
            let mut executor = compile(b, logits, 64, 64, KvFormat::F16);
            let batch = tokens(64, 0);
            move || step(&mut *executor, &batch)
        });
    }
}

/// `Backend::place` of a Llama-3-8B-like matrix; the floor is reading the file's bytes.
fn repack(c: &mut Criterion) {
    let (rows, cols) = if is_trial() { (64, 4096) } else { (14_336, 4096) };
    let mut group = c.benchmark_group("quantise/repack-4096x14336");
    for name in ["q4_0", "q4_1", "q8_0", "q4_k", "q6_k"] {
        let source = source(name.parse().expect("a format's name"), rows, cols);
        let work = Work { bytes: source.bytes(), multiply_adds: 0 };
        measure(&mut group, name, work, || {
            move || drop(BACKEND.place(&source).expect("a format that the backend takes"))
        });
    }
}

criterion_group! {
    name = benches;
    config = support::criterion();
    targets = activations, repack
}
criterion_main!(benches);
