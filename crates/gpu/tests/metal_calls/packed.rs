//! A packed file on Metal: its pages are one buffer without a copy, resident, and nothing is uploaded for the weights.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marlin_backend::{
    Backend, Batch, ExecutorOptions, KvFormat, Program, SamplingSettings, StepToken,
};
use marlin_gpu::metal::double::{Call, Double, Options};
use marlin_gpu::model::{Activations, GpuBackend};
use marlin_models::{ModelSource, PackOptions, pack};
use marlin_placement::{Direction, Phase};

use super::{device, discrete, text};

/// A fixture, packed into `folder`.
fn packed(folder: &Path) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures");
    let source = ModelSource::open(&fixtures.join("qwen2.gguf")).expect("a fixture");
    let out = folder.join("packed.gguf");
    pack(&source, &out, PackOptions::default(), &mut |_, _| ControlFlow::Continue(()))
        .expect("a packed file");
    out
}

/// The model's program with its weights on a device over the double.
fn load(path: &Path, options: Options) -> (GpuBackend, Program, Double) {
    let (device, double) = device(options);
    let backend = GpuBackend::new(Arc::from(device), Activations::F16);
    let source = ModelSource::open(path).expect("a packed file");
    let program = source.forward(&mut |weight| backend.place(weight)).expect("a program");
    backend.load(&program, &mut |_| {}).expect("room");
    (backend, program, double)
}

#[test]
fn the_mapped_file_is_one_resident_buffer_without_a_copy() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = packed(folder.path());
    let (backend, program, double) = load(&path, Options::default());
    let len = std::fs::metadata(&path).expect("the file").len();
    let calls = double.take_calls();
    // The header's pages are not needed, everything after it is.
    let [Call::NewBufferNoCopy { label, bytes }, resident] = &calls[..] else {
        panic!("{:#?}", text(&calls));
    };
    assert_eq!(label, "mapped weights");
    assert!(bytes % 16_384 == 0 && *bytes as u64 <= len, "{bytes} of {len}");
    assert_eq!(*resident, Call::AddResident { buffer: "mapped weights".to_owned() });
    let report = backend.ledger().report();
    assert_eq!(report.copied_bytes(Phase::Load, Direction::HostToDevice), 0);
    assert_eq!(report.copied_bytes(Phase::Load, Direction::HostToHost), 0);

    let options = ExecutorOptions {
        max_tokens: 8,
        max_outputs: 1,
        max_sequences: 1,
        context: 64,
        kv: KvFormat::F16,
    };
    let mut executor = backend.compile(program, &options).expect("an executor");
    executor.begin_sequence(0, &SamplingSettings::GREEDY, &[]).expect("a sequence");
    let token = StepToken { id: 3, sequence: 0, position: 0, output: true };
    executor.step(&Batch { tokens: &[token], logits: false }).expect("a step");
    let calls = double.take_calls();
    // Kernels get ranges of it; nothing is copied to it, and no other buffer holds weights.
    let offsets: Vec<usize> = calls
        .iter()
        .filter_map(|call| match call {
            Call::SetBuffer { buffer, offset, .. } if buffer == "mapped weights" => Some(*offset),
            _ => None,
        })
        .collect();
    assert!(offsets.len() > 10 && offsets.iter().any(|&at| at > 16_384), "{offsets:?}");
    assert!(offsets.iter().all(|at| at % 16 == 0), "{offsets:?}");
    for call in &calls {
        match call {
            Call::Copy { to, .. } => assert!(!to.contains("weight"), "{call}"),
            Call::NewBuffer { label, .. } => assert!(!label.contains("weight"), "{call}"),
            Call::NewBufferNoCopy { .. } => panic!("{call}"),
            _ => {}
        }
    }
    drop((executor, backend));
    let calls = text(&double.take_calls());
    assert!(calls.contains(&"free mapped weights".to_owned()), "{calls:#?}");
}

#[test]
fn a_file_longer_than_a_buffer_may_be_is_several() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = packed(folder.path());
    let mut options = Options::default();
    options.description.max_buffer_bytes = 131_072;
    let (_backend, _program, double) = load(&path, options);
    let calls = double.take_calls();
    let windows: Vec<usize> = calls
        .iter()
        .filter_map(|call| match call {
            Call::NewBufferNoCopy { bytes, .. } => Some(*bytes),
            _ => None,
        })
        .collect();
    assert!(windows.len() > 1 && windows.iter().all(|&bytes| bytes <= 131_072), "{windows:?}");
    assert!(calls.iter().all(|call| !matches!(call, Call::Copy { .. } | Call::NewBuffer { .. })));
}

#[test]
fn on_memory_of_its_own_each_byte_is_blitted_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let (backend, _program, double) = load(&packed(folder.path()), discrete());
    let calls = double.take_calls();
    assert!(calls.iter().all(|call| !matches!(call, Call::NewBufferNoCopy { .. })));
    let report = backend.ledger().report();
    let held: u64 = report.buffers.iter().filter(|b| b.live).map(|b| b.bytes).sum();
    assert_eq!(report.copied_bytes(Phase::Load, Direction::HostToDevice), held);
    assert_eq!(report.copied_bytes(Phase::Load, Direction::HostToHost), 0);
}
