//! What a session promises: the same text for the same seed, whatever else is in the batch,
//! however many threads there are, and whatever the cache held before.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use marlin_engine::{
    EngineError, GenerateOptions, Generated, KvFormat, Model, ModelOptions, Request,
    SamplingSettings, Session, SessionOptions, StopReason,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures").join(name)
}

fn load(threads: usize) -> Arc<Model> {
    let threads = NonZeroUsize::new(threads);
    let options = ModelOptions { threads, ..Default::default() };
    Model::load(&fixture("qwen2.gguf"), &options).unwrap()
}

fn session(model: &Arc<Model>, max_sequences: usize) -> Session {
    let options =
        SessionOptions { ctx: 128, max_sequences, batch: 16, ..SessionOptions::default() };
    model.session(options).unwrap()
}

fn settings(seed: u64) -> GenerateOptions {
    GenerateOptions {
        sampling: SamplingSettings { seed, repeat_penalty: 1.1, ..Default::default() },
        max_tokens: 24,
        stop_at_end: false,
        ..Default::default()
    }
}

fn generate(session: &mut Session, prompt: &[u32], options: &GenerateOptions) -> Generated {
    session.generate(prompt, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn prompt(start: u32, n: u32) -> Vec<u32> {
    (0..n).map(|i| 20 + (start + 7 * i) % 200).collect()
}

#[test]
fn same_seed_same_text_on_any_number_of_threads() {
    let of = |threads: usize, seed| {
        generate(&mut session(&load(threads), 1), &prompt(3, 40), &settings(seed)).tokens
    };
    let one = of(1, 5);
    assert_eq!(of(2, 5), one);
    assert_eq!(of(3, 5), one);
    assert_ne!(of(1, 6), one);
}

#[test]
fn sequences_in_one_batch_are_as_they_are_alone() {
    let model = load(2);
    // Prompts of different lengths: some decode while others still prefill in chunks of 16.
    let requests: Vec<Request> = [1, 5, 33, 70]
        .into_iter()
        .map(|n| Request { prompt: prompt(n, n), options: settings(u64::from(n)) })
        .collect();
    let together = session(&model, 4)
        .generate_batch(&requests, &mut |_, _| ControlFlow::Continue(()))
        .unwrap();
    for (request, together) in requests.iter().zip(together) {
        let alone = generate(&mut session(&model, 1), &request.prompt, &request.options);
        assert_eq!(together.tokens, alone.tokens, "prompt of {}", request.prompt.len());
        assert_eq!(together.text, alone.text);
    }
}

#[test]
fn a_prompt_that_begins_as_the_last_one_is_not_computed_again() {
    let model = load(2);
    let mut warm = session(&model, 1);
    let first = generate(&mut warm, &prompt(0, 30), &settings(1));
    assert_eq!(first.cached_tokens, 0);
    let mut longer = prompt(0, 30);
    longer.extend(&first.tokens[..10]);
    longer.extend(prompt(90, 5));
    let second = generate(&mut warm, &longer, &settings(2));
    assert_eq!(second.cached_tokens, 40);
    let cold = generate(&mut session(&model, 1), &longer, &settings(2));
    assert_eq!(second.tokens, cold.tokens);
    // And a prompt that differs from the start is computed whole.
    assert_eq!(generate(&mut warm, &prompt(50, 8), &settings(2)).cached_tokens, 0);
}

#[test]
fn logits_do_not_depend_on_the_size_of_the_steps() {
    let model = load(2);
    let options = SessionOptions {
        ctx: 128,
        batch: 64,
        outputs: 64,
        kv: KvFormat::F16,
        ..SessionOptions::default()
    };
    let mut session = model.session(options).unwrap();
    let tokens = prompt(11, 60);
    let whole = session.logits(&tokens, 64).unwrap();
    for step in [1, 7, 16] {
        let parts = session.logits(&tokens, step).unwrap();
        for (position, (a, b)) in whole.iter().zip(&parts).enumerate() {
            for (x, y) in a.iter().zip(b) {
                assert!((x - y).abs() < 2e-4, "steps of {step}, position {position}: {x}, {y}");
            }
        }
    }
}

#[test]
fn an_eight_bit_cache_stays_close_to_a_full_one() {
    let model = load(2);
    let tokens = prompt(4, 50);
    let logits = |kv| {
        let options = SessionOptions { ctx: 64, outputs: 64, kv, ..SessionOptions::default() };
        model.session(options).unwrap().logits(&tokens, 64).unwrap()
    };
    let full = logits(KvFormat::F32);
    for (kv, bound) in [(KvFormat::F16, 0.02), (KvFormat::Q8, 0.2)] {
        let worst = full
            .iter()
            .flatten()
            .zip(logits(kv).iter().flatten())
            .map(|(a, b)| (a - b).abs())
            .fold(0.0f32, f32::max);
        // The logits are about 10.
        assert!(worst < bound && worst > 0.0, "{kv:?}: {worst}");
    }
}

#[test]
fn generation_stops_for_each_of_its_reasons() {
    let model = load(2);
    let mut s = session(&model, 1);
    let options = settings(9);
    let free = generate(&mut s, &prompt(0, 20), &options);
    assert_eq!(free.stop_reason, StopReason::MaxTokens);
    assert_eq!(free.tokens.len(), 24);
    assert_eq!((free.prompt_tokens, free.decode_tokens), (20, 23));
    assert!(free.decode_bytes > 0);

    let full = generate(&mut s, &prompt(0, 120), &options);
    assert_eq!(full.stop_reason, StopReason::Context);
    assert_eq!(full.prompt_tokens + full.tokens.len(), 129);

    let characters: Vec<char> = free.text.chars().collect();
    let stop: String = characters[characters.len() / 2..][..2].iter().collect();
    let with_stop = GenerateOptions { stop: vec![stop.clone()], ..options.clone() };
    let mut streamed = String::new();
    let stopped = s
        .generate(&prompt(0, 20), &with_stop, &mut |text| {
            streamed.push_str(text);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(stopped.stop_reason, StopReason::StopString);
    assert_eq!(streamed, stopped.text);
    assert_eq!(Some(streamed.as_str()), free.text.split(&stop).next());

    let cancel = Arc::new(AtomicBool::new(false));
    let cancellable = GenerateOptions { cancel: Some(cancel.clone()), ..options.clone() };
    let mut pieces = 0;
    let cancelled = s
        .generate(&prompt(0, 20), &cancellable, &mut |_| {
            pieces += 1;
            cancel.store(pieces == 3, Ordering::Relaxed);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(cancelled.stop_reason, StopReason::Cancelled);
    assert!(cancelled.tokens.len() < 24);
}

#[test]
fn bad_requests_are_errors_that_say_what_was_found() {
    let model = load(1);
    let mut s = session(&model, 1);
    let mut run = |prompt: &[u32]| {
        s.generate(prompt, &settings(0), &mut |_| ControlFlow::Continue(())).unwrap_err()
    };
    assert!(matches!(run(&[]), EngineError::EmptyPrompt));
    let long = run(&prompt(0, 129)).to_string();
    assert!(long.contains("129") && long.contains("128"), "{long}");
    let unknown = run(&[1_000_000]).to_string();
    assert!(unknown.contains("1000000"), "{unknown}");
    let request = Request { prompt: prompt(0, 3), options: settings(0) };
    let two = s.generate_batch(&[request.clone(), request], &mut |_, _| ControlFlow::Continue(()));
    assert!(matches!(two, Err(EngineError::TooManySequences { found: 2, limit: 1 })));
}
