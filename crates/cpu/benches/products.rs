//! Matrix products, for one token (decode: the floor is reading the weights) and for 64
//! (prefill: the floor is the multiply-adds).
//!
//! An iteration is a step through so many matrices of one shape that they do not stay in the
//! caches, as in a model; each product is added to the same output.
//!
//! `MARLIN_CPU=avx2 cargo bench -p marlin-cpu --bench products` measures another instruction
//! set, `… -- 4096x14336/q4_k` one row.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use marlin_backend::{KvFormat, ProgramBuilder};
use marlin_formats::Format;
use support::{Work, compile, copies_beyond_caches, measure, rows, source, step, tokens, weight};

const FORMATS: [&str; 6] = ["q4_0", "q4_1", "q8_0", "q4_k", "q6_k", "f16"];

/// SmolLM2-135M's output head.
const HEAD: (usize, usize) = (576, 49_152);

/// Columns and rows (input and output features) of SmolLM2-135M and of Llama-3-8B.
const SHAPES: [(usize, usize); 7] =
    [(576, 576), (576, 1536), (1536, 576), HEAD, (4096, 4096), (4096, 14_336), (14_336, 4096)];

fn products(c: &mut Criterion) {
    for (test, count) in [("decode", 1), ("prefill-64", 64)] {
        for (cols, out) in SHAPES {
            // A prompt needs the output head for its last token only.
            if count > 1 && (cols, out) == HEAD {
                continue;
            }
            let mut group = c.benchmark_group(format!("product/{test}/{cols}x{out}"));
            for name in FORMATS {
                let format: Format = name.parse().expect("a format's name");
                // K-quants have blocks of 256: no 576 columns.
                if cols % format.block() == 0 {
                    bench(&mut group, name, format, cols, out, count);
                }
            }
        }
    }
}

fn bench(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    name: &str,
    format: Format,
    cols: usize,
    out: usize,
    count: usize,
) {
    let bytes = source(format, 16, cols).bytes() as usize / 16 * out;
    let copies = copies_beyond_caches(bytes);
    let work = Work {
        bytes: (copies * bytes) as u64,
        multiply_adds: (copies * cols * out * count) as u64,
    };
    measure(group, name, work, || {
        let mut b = ProgramBuilder::new();
        let x = rows(&mut b, count, cols);
        let [y] = b.linear(x, [(&weight(format, out, cols), None)]).expect("shapes that fit");
        for _ in 1..copies {
            b.linear_add(x, &weight(format, out, cols), None, y).expect("shapes that fit");
        }
        let logits = b.select_outputs(y);
        let mut executor = compile(b, logits, count, count, KvFormat::F16);
        let batch = tokens(count, 0);
        move || step(&mut *executor, &batch)
    });
}

criterion_group! {
    name = benches;
    config = support::criterion();
    targets = products
}
criterion_main!(benches);
