//! Attention on every instruction set of this machine, against softmax(q·kᵀ)·v in double precision:
//! contexts that end within chunks and spans, windows, soft caps, grouped heads, and prompts cut into
//! steps of any size.

use std::num::NonZeroUsize;

use marlin_backend::{
    AttentionSpec, Backend, Batch, ExecutorOptions, HostBytes, KvFormat, ProgramBuilder,
    SamplingSettings, StepToken, Tensor, Weight, WeightSource,
};
use marlin_cpu::{CpuBackend, Isa};
use marlin_formats::Format;

/// Sizes of one case.
#[derive(Clone, Copy)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    /// Scores grow with it: running maxima then move often.
    scale: f32,
    context: usize,
}

const CASE: Case = Case {
    heads: 3,
    kv_heads: 1,
    head_dim: 64,
    window: None,
    softcap: None,
    scale: 0.125,
    context: 90,
};

/// A fixed sequence of numbers between -1 and 1.
fn values(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn backends() -> impl Iterator<Item = CpuBackend> {
    let available = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    available.map(|isa| CpuBackend::with_isa(NonZeroUsize::new(3), isa).unwrap())
}

/// Queries, keys and values: row `i` of each belongs to the token with id `i`.
struct Tables {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Tables {
    fn new(case: &Case) -> Self {
        let n = case.context * case.head_dim;
        Self {
            q: values(1, n * case.heads),
            k: values(2, n * case.kv_heads),
            v: values(3, n * case.kv_heads),
        }
    }

    /// What the token at position `t`, with id `t`, must get: `[heads][head_dim]`.
    fn expected(&self, case: &Case, t: usize) -> Vec<f64> {
        let Case { heads, kv_heads, head_dim: dim, .. } = *case;
        let row = |table: &[f32], width: usize, t: usize, head: usize| -> Vec<f64> {
            table[(t * width + head) * dim..][..dim].iter().map(|&x| f64::from(x)).collect()
        };
        let first = case.window.map_or(0, |w| (t + 1).saturating_sub(w));
        let mut out = Vec::new();
        for head in 0..heads {
            let q = row(&self.q, heads, t, head);
            let kv = head / (heads / kv_heads);
            let scores: Vec<f64> = (first..=t)
                .map(|p| {
                    let k = row(&self.k, kv_heads, p, kv);
                    let dot: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                    let score = dot * f64::from(case.scale);
                    case.softcap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
                })
                .collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut acc = vec![0.0; dim];
            for (p, weight) in (first..=t).zip(&weights) {
                for (a, v) in acc.iter_mut().zip(row(&self.v, kv_heads, p, kv)) {
                    *a += weight / sum * v;
                }
            }
            out.extend(acc);
        }
        out
    }
}

fn table(backend: &CpuBackend, b: &mut ProgramBuilder, x: &[f32], rows: usize) -> Tensor {
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let cols = x.len() / rows;
    let source = WeightSource::plain("x", Format::F32, rows, cols, HostBytes::from(bytes));
    let weight: Weight = backend.place(&source).unwrap();
    b.embed(&weight, 1.0)
}

/// Compares every position of a prompt that arrives in steps of the given sizes, and then token by
/// token; another sequence is in the batch of single tokens too.
fn check(backend: &CpuBackend, case: &Case, kv: KvFormat, steps: &[usize], tolerance: f64) {
    let tables = Tables::new(case);
    let mut b = ProgramBuilder::new();
    let q = table(backend, &mut b, &tables.q, case.context);
    let k = table(backend, &mut b, &tables.k, case.context);
    let v = table(backend, &mut b, &tables.v, case.context);
    let spec = AttentionSpec {
        heads: case.heads,
        kv_heads: case.kv_heads,
        head_dim: case.head_dim,
        scale: case.scale,
        window: case.window,
        softcap: case.softcap,
        rope: None,
        q_norm: None,
        k_norm: None,
    };
    let y = b.attention(q, k, v, &spec).unwrap();
    let out = b.select_outputs(y);
    let options = ExecutorOptions {
        max_tokens: case.context.max(2),
        max_outputs: case.context.max(2),
        max_sequences: 2,
        context: case.context,
        kv,
    };
    let mut executor = backend.compile(b.finish(out, None).unwrap(), &options).unwrap();
    executor.begin_sequence(0, &SamplingSettings::GREEDY, &[]).unwrap();
    executor.begin_sequence(1, &SamplingSettings::GREEDY, &[]).unwrap();
    let token = |sequence, position: usize| StepToken {
        id: position as u32,
        sequence,
        position: position as u32,
        output: true,
    };
    let mut done = 0;
    let mut sizes = steps.iter().copied();
    while done < case.context {
        let size = sizes.next().unwrap_or(1).min(case.context - done);
        let mut batch: Vec<_> = (done..done + size).map(|p| token(0, p)).collect();
        if size == 1 {
            batch.push(token(1, done));
        }
        executor.step(&Batch { tokens: &batch, logits: true }).unwrap();
        for o in 0..size {
            let expected = tables.expected(case, done + o);
            let found = executor.logits(o).unwrap();
            assert_eq!(found.len(), expected.len());
            for (i, (&y, e)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (f64::from(y) - e).abs() <= tolerance,
                    "{} {kv:?} steps {steps:?}, position {}, value {i}: {y}, expected {e}",
                    backend.isa(),
                    done + o,
                );
            }
        }
        done += size;
    }
}

#[test]
fn heads_and_sizes_of_every_kind() {
    for backend in backends() {
        for (heads, kv_heads, head_dim) in
            [(1, 1, 16), (3, 1, 64), (9, 3, 64), (4, 2, 80), (5, 1, 40), (8, 8, 128), (34, 1, 32)]
        {
            let case = Case { heads, kv_heads, head_dim, ..CASE };
            check(&backend, &case, KvFormat::F32, &[70, 7], 2e-6);
        }
    }
}

#[test]
fn prompts_in_steps_of_any_size_across_chunks_and_spans() {
    for backend in backends() {
        let case = Case { context: 530, ..CASE };
        for steps in [&[530][..], &[255, 2, 200, 60], &[64, 192, 256], &[500]] {
            check(&backend, &case, KvFormat::F32, steps, 2e-6);
        }
    }
}

#[test]
fn windows_that_begin_anywhere() {
    for backend in backends() {
        for window in [1, 3, 64, 100, 256, 300] {
            let case = Case { context: 420, window: Some(window), ..CASE };
            check(&backend, &case, KvFormat::F32, &[300, 40, 33], 2e-6);
        }
    }
}

/// With large scores the maximum moves far and often, and most weights are nothing.
#[test]
fn scores_of_any_size() {
    for backend in backends() {
        for scale in [1e-3, 2.0, 40.0] {
            let case = Case { context: 300, scale, ..CASE };
            // A score of 100 is known to 4e-6 in f32, and so is the weight that it gives.
            check(&backend, &case, KvFormat::F32, &[280], 1e-4);
            let capped = Case { softcap: Some(30.0), ..case };
            check(&backend, &capped, KvFormat::F32, &[280], 1e-4);
        }
    }
}

/// Values of half precision are exact to 2^-12, those of 8 bits to 1/254 of the greatest.
#[test]
fn smaller_formats_are_as_exact_as_their_values() {
    for backend in backends() {
        for (heads, kv_heads) in [(3, 1), (2, 2)] {
            let case = Case { heads, kv_heads, context: 290, ..CASE };
            check(&backend, &case, KvFormat::F16, &[270], 5e-4);
            check(&backend, &case, KvFormat::Q8, &[270], 8e-3);
        }
    }
}
