//! The default model against llama.cpp: continuation and perplexity. The references are in
//! `tests/data` and say how they were made.
//!
//! Needs the model's file: `MARLIN_TEST_MODEL=…/SmolLM2-135M-Instruct.Q4_1.gguf`. CI sets it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use marlin_engine::{Model, ModelOptions, SessionOptions};
use serde_json::Value;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(data("llama_cpp_reference.json")).unwrap()).unwrap()
}

fn model() -> Option<Arc<Model>> {
    let Some(path) = std::env::var_os("MARLIN_TEST_MODEL") else {
        eprintln!("skipped: MARLIN_TEST_MODEL does not name the default model's file");
        return None;
    };
    Some(Model::load(Path::new(&path), &ModelOptions::default()).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// Wherever llama.cpp is sure of its next token, we choose the same one.
///
/// Quantised activations move logits by about 0.1 (root mean square, measured between
/// llama.cpp's own builds), so free-running text parts ways at the first near-tie; following
/// llama.cpp's text keeps every position comparable.
#[test]
fn continues_as_llama_cpp_does() {
    let Some(model) = model() else { return };
    let reference = &reference()["continuation"];
    let prompt = ids(&reference["prompt_ids"]);
    assert_eq!(model.encode_raw("The capital of France is").unwrap(), prompt);
    let options =
        SessionOptions { ctx: 128, batch: 128, outputs: 128, ..SessionOptions::default() };
    let mut session = model.session(options).unwrap();
    let variants: Vec<&Value> =
        reference["other_arithmetic"].as_object().unwrap().values().collect();
    let mut compared = 0;
    for variant in variants {
        let continuation = ids(&variant["ids"]);
        let margins: Vec<f64> =
            variant["margins"].as_array().unwrap().iter().map(|m| m.as_f64().unwrap()).collect();
        let mut tokens = prompt.clone();
        tokens.extend(&continuation);
        let logits = session.logits(&tokens, 128).unwrap();
        for (i, (&expected, margin)) in continuation.iter().zip(margins).enumerate() {
            let row = &logits[prompt.len() - 1 + i];
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
            let behind = row[best as usize] - row[expected as usize];
            // Five times the noise.
            assert!(best == expected || (margin < 0.5 && behind < 0.5), "token {i}: {behind}");
            compared += usize::from(best == expected);
        }
        assert_eq!(model.tokenizer().decode(&continuation[..2], false), " Paris.");
    }
    assert!(compared >= 90, "only {compared} tokens agree");
}

/// The windows of `llama-perplexity -c 512`: within 0.5 % over the whole text, and within 1 %
/// after every window (one window is 255 tokens, over which near-ties do not average out).
#[test]
fn perplexity_is_llama_cpps() {
    let Some(model) = model() else { return };
    let reference = &reference()["models"]["Q4_1"]["ppl_after_chunk"];
    let text = std::fs::read_to_string(data("alice.txt")).unwrap();
    let tokens = model.tokenizer().encode(text.strip_suffix('\n').unwrap(), true, false).unwrap();
    let options = SessionOptions { ctx: 512, outputs: 256, ..SessionOptions::default() };
    let mut session = model.session(options).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for (i, window) in tokens.chunks_exact(512).enumerate() {
        let scores = session.score(window, 256).unwrap();
        sum -= scores.iter().sum::<f64>();
        count += scores.len();
        let (found, expected) = ((sum / count as f64).exp(), reference[i].as_f64().unwrap());
        let difference = (found / expected - 1.0).abs();
        let bound = if i == 23 { 0.005 } else { 0.01 };
        assert!(difference < bound, "window {i}: {found}, llama.cpp has {expected}");
    }
    assert_eq!(count, 24 * 255);
}
