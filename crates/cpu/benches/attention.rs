//! Attention of one token over a context of 512 and of 4096 positions, with the heads of
//! SmolLM2-135M and of Llama-3-8B. The floor is reading the keys and values.
//!
//! An iteration is a step through so many layers that their caches do not stay in the
//! processor's.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use marlin_backend::{AttentionSpec, Executor, KvFormat, ProgramBuilder};
use support::{Work, compile, copies_beyond_caches, measure, rows, step, tokens};

/// Query heads, key heads, values per head.
const MODELS: [(&str, usize, usize, usize); 2] =
    [("smollm2-135m", 9, 3, 64), ("llama-3-8b", 32, 8, 128)];

fn attention(c: &mut Criterion) {
    for (model, heads, kv_heads, head_dim) in MODELS {
        for context in [512, 4096] {
            let mut group = c.benchmark_group(format!("attention/{model}/{context}"));
            for (name, kv) in [("f16", KvFormat::F16), ("q8", KvFormat::Q8)] {
                let one = executor(heads, kv_heads, head_dim, 1, context, kv);
                let bytes = one.kv_bytes_per_token(context - 1);
                drop(one);
                let layers = copies_beyond_caches(bytes as usize);
                let work = Work { bytes: bytes * layers as u64, multiply_adds: 0 };
                measure(&mut group, name, work, || {
                    let mut executor = executor(heads, kv_heads, head_dim, layers, context, kv);
                    fill(&mut *executor, context);
                    let last = tokens(1, context - 1);
                    move || step(&mut *executor, &last)
                });
            }
        }
    }
}

fn executor(
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
    context: usize,
    kv: KvFormat,
) -> Box<dyn Executor> {
    let spec = AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: None,
        softcap: None,
        rope: None,
        q_norm: None,
        k_norm: None,
    };
    let mut b = ProgramBuilder::new();
    // Queries, keys and values straight from a table, so that attention is all there is.
    let q = rows(&mut b, 1, heads * head_dim);
    let k = rows(&mut b, 1, kv_heads * head_dim);
    let v = rows(&mut b, 1, kv_heads * head_dim);
    let mut out = q;
    for _ in 0..layers {
        out = b.attention(q, k, v, &spec).expect("shapes that fit");
    }
    let logits = b.select_outputs(out);
    compile(b, logits, 1, context, kv)
}

/// Writes keys and values at every sixteenth position. That makes all pages of the caches
/// real memory; zeros in between read like other numbers, and filling every position would
/// take longer than the measurement.
fn fill(executor: &mut dyn Executor, context: usize) {
    for position in (0..context).step_by(16) {
        step(executor, &tokens(1, position));
    }
}

criterion_group! {
    name = benches;
    config = support::criterion();
    targets = attention
}
criterion_main!(benches);
