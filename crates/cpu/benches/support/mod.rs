//! What the benchmarks share: synthetic weights, and measuring a step beside its floor.

// Every benchmark is a crate of its own and uses a part of this.
#![allow(dead_code)]

use std::cell::RefCell;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use marlin_backend::{
    Backend, Batch, Ceilings, Executor, ExecutorOptions, KvFormat, ProgramBuilder,
    SamplingSettings, StepToken, Tensor, Weight, WeightSource,
};
use marlin_cpu::CpuBackend;
use marlin_formats::{Format, encode};

/// Measured samples per benchmark.
const SAMPLES: usize = 20;

/// Bytes that an iteration goes through when it is to read from memory: several times the
/// last-level cache of common processors. On one with more, the floor can be undercut.
pub(crate) const BEYOND_CACHES: usize = 128 << 20;

/// The backend that `MARLIN_CPU` chooses, with one thread per core.
pub(crate) static BACKEND: LazyLock<CpuBackend> =
    LazyLock::new(|| CpuBackend::new(None).expect("the backend of this machine"));

/// Measured once per run.
static CEILINGS: LazyLock<Ceilings> = LazyLock::new(|| {
    let ceilings = BACKEND.measure_ceilings();
    println!(
        "{}: reads {:.1} GB/s, multiplies and adds {:.1}·10⁹ integers/s",
        BACKEND.description(),
        ceilings.read_bytes_per_s / 1e9,
        ceilings.multiply_adds_per_s / 1e9
    );
    ceilings
});

/// Criterion for steps of milliseconds: few samples, no plots.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(SAMPLES)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
}

/// Whether every benchmark runs once, only to see that it works (`cargo bench -- --test`).
pub(crate) fn is_trial() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// How many pieces of `bytes` bytes go beyond the caches; one in a trial.
pub(crate) fn copies_beyond_caches(bytes: usize) -> usize {
    if is_trial() { 1 } else { BEYOND_CACHES.div_ceil(bytes) }
}

/// What one iteration must do at least.
#[derive(Clone, Copy, Default)]
pub(crate) struct Work {
    /// Bytes to read.
    pub(crate) bytes: u64,
    /// Multiply-adds of matrix products.
    pub(crate) multiply_adds: u64,
}

impl Work {
    /// The floor: neither reading nor multiplying can be faster than the device. Floats are
    /// measured against the integer unit too, whose peak they cannot reach.
    fn floor_s(self) -> f64 {
        let read = self.bytes as f64 / CEILINGS.read_bytes_per_s;
        read.max(self.multiply_adds as f64 / CEILINGS.multiply_adds_per_s)
    }

    /// What bounds it is what criterion reports the rate of.
    fn throughput(self) -> Throughput {
        let read = self.bytes as f64 / CEILINGS.read_bytes_per_s;
        if read < self.floor_s() {
            Throughput::Elements(self.multiply_adds)
        } else {
            Throughput::Bytes(self.bytes)
        }
    }
}

/// Measures `step` and prints its floor and how much of it the median sample reaches.
///
/// `prepare` is called only if the benchmark is among those that were asked for.
pub(crate) fn measure<S: FnMut()>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    work: Work,
    prepare: impl FnOnce() -> S,
) {
    let mut prepare = Some(prepare);
    let mut step = None;
    let samples = RefCell::new(Vec::new());
    group.throughput(work.throughput());
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        if let Some(prepare) = prepare.take() {
            step = Some(prepare());
        }
        let step = step.as_mut().expect("prepared above");
        bencher.iter_custom(|iterations| {
            let start = Instant::now();
            (0..iterations).for_each(|_| step());
            let elapsed = start.elapsed();
            samples.borrow_mut().push(elapsed.as_secs_f64() / iterations as f64);
            elapsed
        });
    });
    let mut samples = samples.into_inner();
    if samples.is_empty() {
        return;
    }
    let floor = work.floor_s();
    print!("    floor {:.1} µs, the greater of", 1e6 * floor);
    print!(" {} bytes read and {} multiply-adds", work.bytes, work.multiply_adds);
    if is_trial() {
        return println!();
    }
    // Warming up comes first and is not counted.
    samples.drain(..samples.len().saturating_sub(SAMPLES));
    samples.sort_by(f64::total_cmp);
    let median = samples[samples.len() / 2];
    println!(
        "; median {:.1} µs, {:.1} % of the floor's rate",
        1e6 * median,
        100.0 * floor / median
    );
}

/// Reproducible numbers between -1 and 1.
pub(crate) fn values(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A matrix as it would lie in a file. Sixteen encoded rows over and over: what the rows
/// hold does not change the speed, and encoding all of them would take minutes.
pub(crate) fn source(format: Format, rows: usize, cols: usize) -> WeightSource {
    let distinct = rows.min(16);
    let matrix = encode(format, distinct, cols, &values(distinct * cols)).expect("finite values");
    assert!(matrix.scales.is_empty(), "{format} keeps scales apart from its rows");
    let row_bytes = matrix.data.len() / distinct;
    let data: Vec<u8> = matrix.data.iter().copied().cycle().take(rows * row_bytes).collect();
    WeightSource::plain("w", format, rows, cols, data.into())
}

/// The same, placed.
pub(crate) fn weight(format: Format, rows: usize, cols: usize) -> Weight {
    BACKEND.place(&source(format, rows, cols)).expect("a format that the backend takes")
}

/// Rows of activations: token `i` is row `i`.
pub(crate) fn rows(b: &mut ProgramBuilder, rows: usize, cols: usize) -> Tensor {
    b.embed(&weight(Format::F32, rows, cols), 1.0)
}

/// One sequence's executor, made of a program that ends in `logits`.
pub(crate) fn compile(
    b: ProgramBuilder,
    logits: Tensor,
    max_tokens: usize,
    context: usize,
    kv: KvFormat,
) -> Box<dyn Executor> {
    let program = b.finish(logits, None).expect("logits of output rows");
    let options = ExecutorOptions { max_tokens, max_outputs: 1, max_sequences: 1, context, kv };
    let mut executor = BACKEND.compile(program, &options).expect("a program that fits");
    executor.begin_sequence(0, &SamplingSettings::GREEDY, &[]).expect("slot 0");
    executor
}

/// Tokens `0..count` at `position` and after it; the last one has an output.
pub(crate) fn tokens(count: usize, position: usize) -> Vec<StepToken> {
    (0..count as u32)
        .map(|i| StepToken {
            id: i,
            sequence: 0,
            position: position as u32 + i,
            output: i + 1 == count as u32,
        })
        .collect()
}

/// Runs one step.
pub(crate) fn step(executor: &mut dyn Executor, tokens: &[StepToken]) {
    executor.step(&Batch { tokens, logits: false }).expect("a batch that fits");
}
