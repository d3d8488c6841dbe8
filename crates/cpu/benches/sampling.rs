//! Choosing a token from a vocabulary of 49 152 (SmolLM2) and of 151 936 (Qwen). The floor is
//! reading the logits once from memory; they are in the caches here, so it can be undercut.
//!
//! Logits have to come from somewhere: each iteration also copies them twice, out of a table
//! and into the output row. `copies-alone` is an iteration that does only that; what sampling
//! takes is the difference.
//!
//! Probabilities fall as the rank to the power of -1.5, in no order: 95 % of the mass lie in
//! about 200 tokens.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use marlin_backend::{Backend, KvFormat, ProgramBuilder, SamplingSettings, Weight, WeightSource};
use marlin_formats::Format;
use support::{BACKEND, Work, compile, measure, rows, step, tokens};

fn sampling(c: &mut Criterion) {
    let penalties = SamplingSettings {
        repeat_penalty: 1.1,
        frequency_penalty: 0.1,
        ..SamplingSettings::GREEDY
    };
    let open = SamplingSettings { temperature: 1.0, ..SamplingSettings::GREEDY };
    let settings = [
        ("copies-alone", None),
        ("greedy", Some(SamplingSettings::GREEDY)),
        ("greedy-penalties", Some(penalties)),
        ("top-k-40", Some(SamplingSettings { top_k: 40, ..open.clone() })),
        ("top-p-0.95", Some(SamplingSettings { top_p: 0.95, ..open.clone() })),
        ("default", Some(SamplingSettings::default())),
        ("temperature-alone", Some(open)),
    ];
    for vocabulary in [49_152, 151_936] {
        let mut group = c.benchmark_group(format!("sampling/{vocabulary}"));
        for (name, settings) in &settings {
            let work = Work { bytes: 4 * vocabulary as u64, multiply_adds: 0 };
            measure(&mut group, name, work, || {
                let mut b = ProgramBuilder::new();
                let wide = b.embed(&logits_table(vocabulary), 1.0);
                let wide = b.select_outputs(wide);
                let logits = if settings.is_some() {
                    wide
                } else {
                    let narrow = rows(&mut b, 1, 1);
                    b.select_outputs(narrow)
                };
                let mut executor = compile(b, logits, 1, 1, KvFormat::F16);
                if let Some(settings) = settings {
                    executor.begin_sequence(0, settings, &[]).expect("slot 0");
                }
                let batch = tokens(1, 0);
                move || step(&mut *executor, &batch)
            });
        }
    }
}

/// One row of logits.
fn logits_table(vocabulary: usize) -> Weight {
    // A prime that divides neither vocabulary, so every rank occurs once.
    let rank = |token: usize| (token * 1_000_003 % vocabulary + 1) as f32;
    let bytes: Vec<u8> =
        (0..vocabulary).flat_map(|token| (-1.5 * rank(token).ln()).to_le_bytes()).collect();
    let source = WeightSource::plain("logits", Format::F32, 1, vocabulary, bytes.into());
    BACKEND.place(&source).expect("a table of floats")
}

criterion_group! {
    name = benches;
    config = support::criterion();
    targets = sampling
}
criterion_main!(benches);
