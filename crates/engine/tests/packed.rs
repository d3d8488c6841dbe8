//! Packed files on devices: the same model, without a copy where device and host share memory, with exactly one where
//! they do not.
//!
//! Needs the feature `emulated`, which tests of the whole workspace have.
#![cfg(feature = "emulated")]

#[path = "../../models/tests/support/mod.rs"]
mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marlin_backend::{Backend, Batch, ExecutorOptions, SamplingSettings, StepToken};
use marlin_cpu::CpuBackend;
use marlin_engine::{Budget, GenerateOptions, KvFormat, Model, RunAudit, Session, SessionOptions};
use marlin_gpu::emulated::{Emulated, EmulatedOptions};
use marlin_gpu::model::{Activations, GpuBackend};
use marlin_models::{ModelSource, PackOptions, pack};
use marlin_placement::audit::{Category, Severity};
use marlin_placement::{Direction, LedgerReport, Phase, StorageMode};
use support::Gguf;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures").join(name)
}

/// The model at `path`, packed into `folder`.
fn packed(path: &Path, folder: &Path) -> PathBuf {
    let out = folder.join(path.file_name().unwrap());
    let source = ModelSource::open(path).unwrap();
    let go_on = &mut |_, _| ControlFlow::Continue(());
    pack(&source, &out, PackOptions::default(), go_on).unwrap();
    out
}

fn emulated(options: EmulatedOptions, activations: Activations) -> Box<dyn Backend> {
    Box::new(GpuBackend::new(Arc::new(Emulated::new(options).unwrap()), activations))
}

fn unified() -> EmulatedOptions {
    EmulatedOptions { unified: true, ..EmulatedOptions::default() }
}

fn discrete() -> EmulatedOptions {
    EmulatedOptions { unified: false, ..EmulatedOptions::default() }
}

fn load(path: &Path, backend: Box<dyn Backend>) -> Arc<Model> {
    let source = ModelSource::open(path).unwrap();
    Model::load_on(source, backend, &mut |_, _| {}).unwrap()
}

fn session(model: &Arc<Model>) -> Session {
    let options = SessionOptions {
        ctx: 48,
        batch: 24,
        outputs: 24,
        kv: KvFormat::F32,
        ..SessionOptions::default()
    };
    model.session(options).unwrap()
}

/// Tokens that mean nothing, the same in every run.
fn tokens(model: &Model, count: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + 13) % model.config().vocab) as u32).collect()
}

/// The logits after 20 tokens of one sequence, in sevens; not every fixture has the tokenizer of a [`Model`].
fn logits(path: &Path, backend: Box<dyn Backend>) -> Vec<Vec<f32>> {
    let source = ModelSource::open(path).unwrap();
    let program = source.forward(&mut |weight| backend.place(weight)).unwrap();
    let options = ExecutorOptions {
        max_tokens: 8,
        max_outputs: 8,
        max_sequences: 1,
        context: 32,
        kv: KvFormat::F32,
    };
    let mut executor = backend.compile(program, &options).unwrap();
    executor.begin_sequence(0, &SamplingSettings::GREEDY, &[]).unwrap();
    let vocabulary = source.config().vocab as u32;
    let all: Vec<StepToken> = (0..20)
        .map(|position| {
            let id = (position * 7919 + 13) % vocabulary;
            StepToken { id, sequence: 0, position, output: true }
        })
        .collect();
    let mut rows = Vec::new();
    for tokens in all.chunks(7) {
        executor.step(&Batch { tokens, logits: true }).unwrap();
        rows.extend((0..tokens.len()).map(|o| executor.logits(o).unwrap().to_vec()));
    }
    rows
}

fn greedy(model: &Arc<Model>, count: usize) -> (Vec<u32>, RunAudit) {
    let options = GenerateOptions {
        sampling: SamplingSettings::GREEDY,
        max_tokens: count,
        stop_at_end: false,
        ..GenerateOptions::default()
    };
    let mut session = session(model);
    let prompt = tokens(model, 9);
    let generated = session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(()));
    (generated.unwrap().tokens, session.audit())
}

fn copied(report: &LedgerReport, direction: Direction) -> u64 {
    Phase::ALL.iter().map(|&phase| report.copied_bytes(phase, direction)).sum()
}

/// Everything that a model's matrices can be: in both containers, with biases, with head norms and in shards.
const MODELS: [&str; 8] = [
    "llama_bf16",
    "llama_f16",
    "llama3_rope.gguf",
    "qwen2.gguf",
    "qwen2",
    "qwen3",
    "gemma3.gguf",
    "mistral",
];

/// Those that have a tokenizer.
const WHOLE_MODELS: [&str; 5] =
    ["llama3_rope", "llama3_rope.gguf", "qwen2.gguf", "qwen2", "gemma3.gguf"];

#[test]
fn a_packed_model_gives_the_same_logits_on_every_device() {
    let folder = tempfile::tempdir().unwrap();
    for name in MODELS {
        let (original, packed) = (fixture(name), packed(&fixture(name), folder.path()));
        let on_cpu = || Box::new(CpuBackend::new(None).unwrap());
        let expected = logits(&original, on_cpu());
        assert_eq!(logits(&packed, on_cpu()), expected, "{name} on the processor");
        for options in [unified(), discrete()] {
            let on_device = || emulated(options, Activations::F32);
            let expected = logits(&original, on_device());
            let found = logits(&packed, on_device());
            assert_eq!(found, expected, "{name} on {options:?}");
        }
    }
}

#[test]
fn quantised_files_give_the_same_tokens_packed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("packed");
    std::fs::create_dir(&out).unwrap();
    for format in ["q4_0", "q4_1", "q8_0", "q3_k", "q4_k", "q6_k", "mxfp4_ggml"] {
        let file = Gguf::quantised(format.parse().unwrap());
        let original = file.write(folder.path(), &format!("{format}.gguf"));
        let packed = packed(&original, &out);
        let on_cpu = || Box::new(CpuBackend::new(None).unwrap());
        let (expected, _) = greedy(&load(&original, on_cpu()), 12);
        assert_eq!(greedy(&load(&packed, on_cpu()), 12).0, expected, "{format} on the processor");
        for options in [unified(), discrete()] {
            let on_device = || emulated(options, Activations::F16);
            let (expected, _) = greedy(&load(&original, on_device()), 12);
            let (found, audit) = greedy(&load(&packed, on_device()), 12);
            assert_eq!(found, expected, "{format} on {options:?}");
            let copies = audit.summary.weights.copies;
            assert_eq!(copies, if options.unified { 0.0 } else { 1.0 }, "{format}");
        }
    }
}

/// Design §1: from the mapped file to the device no copy, if they share memory, and otherwise one.
#[test]
fn weights_are_adopted_or_uploaded_once_and_the_design_budgets_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    for name in WHOLE_MODELS {
        let path = packed(&fixture(name), folder.path());
        for options in [unified(), discrete()] {
            let model = load(&path, emulated(options, Activations::F16));
            let (_, audit) = greedy(&model, 12);
            let what = format!("{name}, unified: {}", options.unified);
            for line in Budget::design().check(&audit) {
                assert!(!line.exceeded && line.found.is_some(), "{what}: {line}");
            }
            let bad: Vec<_> =
                audit.findings.iter().filter(|f| f.severity > Severity::Note).collect();
            assert!(bad.is_empty() && audit.modes_agree(), "{what}: {bad:#?}");
            let weights = audit.summary.weights;
            let report = model.ledger().report();
            assert_eq!(weights.repacked_bytes, 0, "{what}");
            assert_eq!(copied(&report, Direction::HostToHost), 0, "{what}");
            let rows: Vec<_> =
                audit.buffers.iter().filter(|b| b.category == Category::Weights).collect();
            if options.unified {
                assert_eq!((weights.copies, weights.uploaded_bytes), (0.0, 0), "{what}");
                assert_eq!(weights.adopted_bytes, weights.bytes, "{what}");
                // One allocation holds all of them, and nothing else is held for them.
                let [row] = &rows[..] else { panic!("{what}: {rows:#?}") };
                assert_eq!(
                    (row.mode, row.suggested_mode),
                    (StorageMode::Shared, StorageMode::Shared)
                );
                assert!(row.adopted && row.count == 1, "{what}: {row:#?}");
                assert!(row.accessed_by.iter().any(|a| a.reads > 0), "{what}: {row:#?}");
            } else {
                assert_eq!(weights.copies, 1.0, "{what}");
                assert!(rows.iter().all(|r| r.mode == StorageMode::Private), "{what}: {rows:#?}");
            }
        }
    }
}

/// A device whose allocations are smaller than the file sees it through several windows.
#[test]
fn files_beyond_the_greatest_allocation_are_adopted_in_windows() {
    let folder = tempfile::tempdir().unwrap();
    let path = packed(&fixture("qwen2.gguf"), folder.path());
    let expected = logits(&path, emulated(unified(), Activations::F32));
    let options = EmulatedOptions { max_buffer_bytes: 150_000, ..unified() };
    assert_eq!(logits(&path, emulated(options, Activations::F32)), expected);
    let model = load(&path, emulated(options, Activations::F32));
    let report = model.ledger().report();
    let windows: Vec<_> = report.buffers.iter().filter(|b| b.pattern.aliases_host).collect();
    assert!(windows.len() > 1 && windows.iter().all(|w| w.bytes <= 150_000), "{windows:#?}");
    assert_eq!(model.audit().summary.weights.copies, 0.0);
    // Where not even one matrix fits into an allocation, the error says so.
    let options = EmulatedOptions { max_buffer_bytes: 10_000, ..unified() };
    let source = ModelSource::open(&path).unwrap();
    let error = Model::load_on(source, emulated(options, Activations::F32), &mut |_, _| {});
    let error = error.err().expect("too large").to_string();
    assert!(error.contains("10000 free"), "{error}");
}

/// What is shared is freed when its last user goes, and not before.
#[test]
fn windows_last_as_long_as_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = packed(&fixture("llama3_rope.gguf"), folder.path());
    let device = Arc::new(Emulated::new(unified()).unwrap());
    let ledger = marlin_gpu::Device::ledger(&*device).clone();
    let live = || ledger.report().buffers.iter().filter(|b| b.live).count();
    let model = load(&path, Box::new(GpuBackend::new(device, Activations::F16)));
    assert_eq!(live(), 1);
    let (first, second) = (session(&model), session(&model));
    let windows = ledger.report().buffers.iter().filter(|b| b.pattern.aliases_host).count();
    assert_eq!(windows, 1, "sessions share what the model has adopted");
    drop((first, second));
    assert_eq!(live(), 1);
    drop(model);
    assert_eq!(live(), 0);
}

/// A file that ends within a page, as another program may write it, runs as well: what cannot be adopted is copied.
#[test]
fn a_file_cut_to_its_last_byte_still_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = packed(&fixture("qwen2.gguf"), folder.path());
    let expected = logits(&path, emulated(unified(), Activations::F32));
    let bytes = std::fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|&b| b != 0).unwrap() + 1;
    assert!(end % 16_384 != 0);
    let cut = folder.path().join("cut.gguf");
    std::fs::write(&cut, &bytes[..end.next_multiple_of(128)]).unwrap();
    assert_eq!(logits(&cut, emulated(unified(), Activations::F32)), expected);
    let model = load(&cut, emulated(unified(), Activations::F32));
    let weights = model.audit().summary.weights;
    assert!(weights.adopted_bytes > 0 && weights.uploaded_bytes > 0, "{weights:?}");
}

/// From a packed file there is nothing between the mapped pages and the device's memory; `gpu/tests/loading_memory.rs` says
/// what loading takes of the host's.
#[test]
fn nothing_but_the_weights_is_made_while_loading() {
    let folder = tempfile::tempdir().unwrap();
    let path = packed(&fixture("qwen2.gguf"), folder.path());
    let model = load(&path, emulated(discrete(), Activations::F16));
    let report = model.ledger().report();
    let modes = report.buffers.iter().filter(|b| b.phase == Phase::Load).map(|b| b.mode);
    assert!(modes.clone().count() > 0 && modes.into_iter().all(|m| m == StorageMode::Private));
}
