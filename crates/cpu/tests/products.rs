//! Every format on every instruction set of this machine, against the reference decoder in
//! `formats`, at shapes that fit no tile.

use std::num::NonZeroUsize;

use marlin_backend::{
    Backend, Batch, ExecutorOptions, HostBytes, KvFormat, ProgramBuilder, SamplingSettings,
    StepToken, Weight, WeightSource,
};
use marlin_cpu::{CpuBackend, Isa};
use marlin_formats::{Format, OwnedMatrix, encode};

/// A fixed sequence of numbers between -1 and 1 with a few outliers.
fn values(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..n)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            if i % 61 == 7 { 4.0 * x } else { x }
        })
        .collect()
}

fn backends() -> Vec<CpuBackend> {
    let threads = NonZeroUsize::new(3);
    let available = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    available.map(|isa| CpuBackend::with_isa(threads, isa).unwrap()).collect()
}

fn source(name: &str, matrix: &OwnedMatrix) -> WeightSource {
    WeightSource {
        name: name.into(),
        format: matrix.format,
        rows: matrix.rows,
        cols: matrix.cols,
        data: matrix.data.clone().into(),
        scales: matrix.scales.clone().into(),
        zeros: matrix.zeros.clone().into(),
        tensor_scale: matrix.tensor_scale,
        fragments: None,
    }
}

fn floats(backend: &CpuBackend, rows: usize, cols: usize, x: &[f32]) -> Weight {
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let source = WeightSource::plain("x", Format::F32, rows, cols, HostBytes::from(bytes));
    backend.place(&source).unwrap()
}

/// `x · weightᵀ` as the backend computes it, `[tokens][rows]`.
fn product(backend: &CpuBackend, weight: &OwnedMatrix, x: &[f32], tokens: usize) -> Vec<f32> {
    let (rows, cols) = (weight.rows, weight.cols);
    let table = floats(backend, tokens, cols, x);
    let weight = backend.place(&source("w", weight)).unwrap();
    let mut b = ProgramBuilder::new();
    let h = b.embed(&table, 1.0);
    let [y] = b.linear(h, [(&weight, None)]).unwrap();
    let out = b.select_outputs(y);
    let options = ExecutorOptions {
        max_tokens: tokens,
        max_outputs: tokens,
        max_sequences: 1,
        context: tokens,
        kv: KvFormat::F32,
    };
    let mut executor = backend.compile(b.finish(out, None).unwrap(), &options).unwrap();
    executor.begin_sequence(0, &SamplingSettings::GREEDY, &[]).unwrap();
    let batch: Vec<StepToken> = (0..tokens as u32)
        .map(|i| StepToken { id: i, sequence: 0, position: i, output: true })
        .collect();
    executor.step(&Batch { tokens: &batch, logits: true }).unwrap();
    let y: Vec<f32> = (0..tokens).flat_map(|o| executor.logits(o).unwrap().to_vec()).collect();
    assert_eq!(y.len(), tokens * rows);
    y
}

/// What the integer kernels multiply with: blocks of 32 rounded to `max / 127` steps.
fn quantised(x: &[f32]) -> Vec<f32> {
    x.chunks(32)
        .flat_map(|block| {
            let scale = block.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            block.iter().map(move |v| (v * inverse).round_ties_even() * scale).collect::<Vec<_>>()
        })
        .collect()
}

/// Compares with sums in double precision over the decoded matrix.
fn check(backend: &CpuBackend, format: Format, rows: usize, cols: usize, tokens: usize) {
    let weight = encode(format, rows, cols, &values(7, rows * cols)).unwrap();
    let x = values(11, tokens * cols);
    let found = product(backend, &weight, &x, tokens);
    let w = weight.view().decode();
    for t in 0..tokens {
        let row = &x[t * cols..][..cols];
        let row = if format.affine().is_some() { quantised(row) } else { row.to_vec() };
        for r in 0..rows {
            let terms = w[r * cols..][..cols].iter().zip(&row);
            let (mut sum, mut size) = (0.0, 0.0);
            for (&w, &x) in terms {
                sum += f64::from(w) * f64::from(x);
                size += (f64::from(w) * f64::from(x)).abs();
            }
            let y = f64::from(found[t * rows + r]);
            // A few roundings of f32 on sums whose terms add up to `size`.
            assert!(
                (y - sum).abs() <= 2e-6 * size + 1e-6,
                "{} {format} [{rows}, {cols}] with {tokens} tokens at ({t}, {r}): {y}, expected {sum}",
                backend.isa()
            );
        }
    }
}

#[test]
fn every_format_on_every_instruction_set() {
    for backend in backends() {
        for format in Format::ALL {
            let block = format.block();
            // One column block, an odd number of them, and a row count on either side of a tile.
            for (rows, cols) in [(1, block.max(32)), (17, 3 * block.max(32)), (47, 512)] {
                for tokens in [1, 2, 3, 5] {
                    check(&backend, format, rows, cols, tokens);
                }
            }
        }
    }
}

#[test]
fn columns_that_fill_no_block() {
    for backend in backends() {
        for format in Format::ALL.into_iter().filter(|f| f.block() == 1) {
            for cols in [1, 15, 33, 100, 129] {
                check(&backend, format, 5, cols, 3);
            }
        }
    }
}

#[test]
fn batches_of_any_size() {
    let formats = ["q4_0", "q4_1", "q8_0", "q4_k", "q6_k", "q2_k", "nvfp4", "f16", "fp8-block"];
    for backend in backends() {
        for format in formats.map(|name| name.parse().unwrap()) {
            for tokens in [4, 7, 8, 16, 19, 33, 64, 65, 130, 300] {
                check(&backend, format, 33, 256, tokens);
            }
        }
        // Wide rows: fewer tokens to a work item.
        for format in ["q4_0", "q6_k"].map(|name| name.parse().unwrap()) {
            check(&backend, format, 17, 9216, 70);
        }
    }
}

#[test]
fn activations_that_are_zero_tiny_or_huge() {
    for backend in backends() {
        for format in ["q4_0", "q4_1", "q8_0", "q6_k", "f16"].map(|n| n.parse::<Format>().unwrap())
        {
            let weight = encode(format, 16, 256, &values(3, 16 * 256)).unwrap();
            for scale in [0.0, 1e-38, 1e30] {
                let x: Vec<f32> = values(5, 256).iter().map(|v| v * scale).collect();
                let y = product(&backend, &weight, &x, 1);
                assert!(y.iter().all(|v| v.is_finite()), "{format} at {scale}: {y:?}");
                if scale == 0.0 {
                    assert!(y.iter().all(|&v| v == 0.0), "{format}: {y:?}");
                }
            }
        }
    }
}

#[test]
fn a_nan_in_the_input_is_a_nan_in_the_output() {
    for backend in backends() {
        for format in ["q4_0", "q4_k", "q6_k", "q8_0", "f32"].map(|n| n.parse::<Format>().unwrap())
        {
            let weight = encode(format, 4, 256, &values(3, 4 * 256)).unwrap();
            let mut x = values(5, 256);
            x[77] = f32::NAN;
            let y = product(&backend, &weight, &x, 1);
            assert!(y.iter().all(|v| v.is_nan()), "{} {format}: {y:?}", backend.isa());
        }
    }
}
