//! Forward passes against `transformers`: the logits of tiny random models, at every position, with the prompt at
//! once and token by token. The models and logits are made by `tests/fixtures/make_architectures.py`.

use std::path::{Path, PathBuf};

use marlin_backend::{Backend, Batch, Executor, ExecutorOptions, KvFormat, StepToken};
use marlin_cpu::CpuBackend;
use marlin_models::ModelSource;

/// The logits are of the order of 1.
const TOLERANCE: f32 = 1e-3;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures")
}

struct Expected {
    ids: Vec<u32>,
    logits: Vec<f32>,
}

/// Reads `expected.safetensors`. Its integers are no weights, so this cannot be left to the library under test.
fn expected(model: &str) -> Expected {
    let bytes = std::fs::read(fixtures().join(model).join("expected.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        let offset = |i: usize| header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        let data = &bytes[8 + header_len..][offset(0)..offset(1)];
        data.as_chunks().0.to_vec()
    };
    Expected {
        ids: words("input_ids").into_iter().map(u32::from_le_bytes).collect(),
        logits: words("logits").into_iter().map(f32::from_le_bytes).collect(),
    }
}

fn executor(path: &Path, tokens: usize) -> Box<dyn Executor> {
    let source = ModelSource::open(path).unwrap();
    let backend = CpuBackend::new(None).unwrap();
    let program = source.forward(&mut |weight| backend.place(weight)).unwrap();
    let options = ExecutorOptions {
        max_tokens: tokens,
        max_outputs: tokens,
        max_sequences: 1,
        context: tokens,
        kv: KvFormat::F32,
    };
    let mut executor = backend.compile(program, &options).unwrap();
    executor.begin_sequence(0, &Default::default(), &[]).unwrap();
    executor
}

/// Runs `ids` in steps of `chunk` tokens and compares the logits after every one of them.
fn compare(path: &Path, expected: &Expected, chunk: usize) {
    let mut executor = executor(path, expected.ids.len());
    let vocab = expected.logits.len() / expected.ids.len();
    let tokens: Vec<StepToken> = expected
        .ids
        .iter()
        .zip(0..)
        .map(|(&id, position)| StepToken { id, sequence: 0, position, output: true })
        .collect();
    for step in tokens.chunks(chunk) {
        executor.step(&Batch { tokens: step, logits: true }).unwrap();
        for (output, token) in step.iter().enumerate() {
            let logits = executor.logits(output).unwrap();
            let row = &expected.logits[token.position as usize * vocab..][..vocab];
            let (index, distance) = logits
                .iter()
                .zip(row)
                .map(|(found, expected)| (found - expected).abs())
                .enumerate()
                .max_by(|a, b| a.1.total_cmp(&b.1))
                .unwrap();
            assert!(
                logits.len() == vocab && distance <= TOLERANCE,
                "{}, steps of {chunk}, position {}, logit {index}: {} instead of {}",
                path.display(),
                token.position,
                logits[index],
                row[index],
            );
        }
    }
}

fn check(model: &str, file: &str) {
    let expected = expected(model);
    for chunk in [expected.ids.len(), 1, 7] {
        compare(&fixtures().join(file), &expected, chunk);
    }
}

macro_rules! models {
    ($($name:ident: $model:literal, $file:literal;)*) => {
        $(#[test] fn $name() { check($model, $file); })*
    };
}

models! {
    llama: "llama", "llama";
    llama_in_bf16: "llama_bf16", "llama_bf16";
    llama_in_f16: "llama_f16", "llama_f16";
    llama_3_with_scaled_rope: "llama3_rope", "llama3_rope";
    llama_3_as_gguf_with_interleaved_pairs: "llama3_rope", "llama3_rope.gguf";
    mistral_with_a_sliding_window: "mistral", "mistral";
    qwen2_with_biases: "qwen2", "qwen2";
    qwen2_as_gguf: "qwen2", "qwen2.gguf";
    qwen3_with_head_norms_in_two_shards: "qwen3", "qwen3";
    gemma3: "gemma3", "gemma3";
    gemma3_as_gguf: "gemma3", "gemma3.gguf";
    gemma3_with_linear_scaling: "gemma3_linear", "gemma3_linear";
}
