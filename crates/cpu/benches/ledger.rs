//! What counting costs in a decode step.
//!
//! The ledger is compiled in by default; without default features it is compiled out:
//!
//! ```text
//! cargo bench -p marlin-cpu --bench ledger -- --save-baseline counted
//! cargo bench -p marlin-cpu --bench ledger --no-default-features -- --baseline counted
//! ```
//!
//! The second run prints how much faster the step is without. That difference is smaller than
//! the noise of most machines, so the first run also prints an estimate that is not: the
//! events of a step, counted by the ledger itself, times the cost of one, beside the step.

mod support;

use std::cell::Cell;

use criterion::{Criterion, criterion_group, criterion_main};
use marlin_backend::{
    Activation, AttentionSpec, Backend, Executor, KvFormat, Norm, ProgramBuilder, Rope, RopeStyle,
    Weight,
};
use marlin_formats::Format;
use marlin_placement::{Direction, Ledger, LedgerReport};
use std::time::Instant;
use support::{BACKEND, Work, compile, is_trial, measure, step, tokens, weight};

const CONTEXT: usize = 256;
const POSITION: usize = 128;

/// A llama-like model.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    layers: usize,
    hidden: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
}

/// So small that counting weighs much more than in any real model.
const TINY: Shape = Shape {
    name: "tiny",
    layers: 8,
    hidden: 128,
    ffn: 256,
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    vocabulary: 1024,
};

/// The shapes of SmolLM2-135M.
const SMOLLM2: Shape = Shape {
    name: "smollm2-135m",
    layers: 30,
    hidden: 576,
    ffn: 1536,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    vocabulary: 49_152,
};

impl Shape {
    fn executor(self) -> Box<dyn Executor> {
        let Self { hidden, ffn, heads, kv_heads, head_dim, vocabulary, .. } = self;
        let q4_0 = |rows, cols| weight("q4_0".parse().expect("a format's name"), rows, cols);
        let norm = || Norm { weight: weight(Format::F32, 1, hidden), eps: 1e-5, offset: 0.0 };
        let inverse_frequencies =
            (0..head_dim / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let spec = AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: None,
            softcap: None,
            rope: Some(Rope { inverse_frequencies, style: RopeStyle::Interleaved, magnitude: 1.0 }),
            q_norm: None,
            k_norm: None,
        };
        let fits = "shapes that fit";
        let table: Weight = q4_0(vocabulary, hidden);
        let mut b = ProgramBuilder::new();
        let x = b.embed(&table, 1.0);
        for _ in 0..self.layers {
            let h = b.rms_norm(x, &norm()).expect(fits);
            let [q, k, v] = [heads, kv_heads, kv_heads].map(|n| q4_0(n * head_dim, hidden));
            let [q, k, v] = b.linear(h, [(&q, None), (&k, None), (&v, None)]).expect(fits);
            let a = b.attention(q, k, v, &spec).expect(fits);
            b.linear_add(a, &q4_0(hidden, heads * head_dim), None, x).expect(fits);
            let h = b.rms_norm(x, &norm()).expect(fits);
            let (gate, up) = (q4_0(ffn, hidden), q4_0(ffn, hidden));
            let m = b.gated_linear(h, &gate, &up, Activation::Silu).expect(fits);
            b.linear_add(m, &q4_0(hidden, ffn), None, x).expect(fits);
        }
        let x = b.select_outputs(x);
        let x = b.rms_norm(x, &norm()).expect(fits);
        let [logits] = b.linear(x, [(&table, None)]).expect(fits);
        compile(b, logits, 1, CONTEXT, KvFormat::F16)
    }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger/decode");
    for shape in [TINY, SMOLLM2] {
        if is_trial() && shape.name != TINY.name {
            continue;
        }
        let mut executor = shape.executor();
        let bytes = executor.weight_bytes_per_token() + executor.kv_bytes_per_token(POSITION);
        let token = tokens(1, POSITION);
        let events = events_of(|| step(&mut *executor, &token));
        let step_s = Cell::new(f64::INFINITY);
        measure(&mut group, shape.name, Work { bytes, multiply_adds: 0 }, || {
            || {
                let start = Instant::now();
                step(&mut *executor, &token);
                step_s.set(step_s.get().min(start.elapsed().as_secs_f64()));
            }
        });
        if step_s.get().is_finite() {
            let cost = events as f64 * event_s();
            println!(
                "    {events} events, {:.3} µs of the fastest step's {:.1} µs: {:.3} %",
                1e6 * cost,
                1e6 * step_s.get(),
                100.0 * cost / step_s.get()
            );
        }
    }
}

/// How many events the ledger counts while `run` runs; 0 when it is compiled out.
fn events_of(run: impl FnOnce()) -> u64 {
    let before = events(&BACKEND.ledger().report());
    run();
    events(&BACKEND.ledger().report()) - before
}

fn events(report: &LedgerReport) -> u64 {
    let copies = report.copies.iter().map(|copy| copy.event.count);
    let others = report.dispatches.iter().chain(&report.waits).chain(&report.submissions);
    let others = others.map(|event| event.count);
    let host = report.buffers.iter().map(|buffer| buffer.host_writes + buffer.host_reads);
    copies.chain(others).chain(host).sum()
}

/// Seconds of one event, counted over and over on one thread.
fn event_s() -> f64 {
    const EVENTS: u32 = 1_000_000;
    let ledger = Ledger::new();
    let tally = ledger.copies(Direction::DeviceToHost, "an event");
    let start = Instant::now();
    (0..EVENTS).for_each(|_| std::hint::black_box(&tally).record(4));
    start.elapsed().as_secs_f64() / f64::from(EVENTS)
}

criterion_group! {
    name = benches;
    config = support::criterion();
    targets = decode
}
criterion_main!(benches);
