//! Sampling on the device gives the tokens that the CPU backend gives for the same logits, settings and
//! seed, and follows the distribution that the settings define.

mod common;

use half::{bf16, f16};
use marlin_backend::{
    Backend, Batch, Executor, ExecutorOptions, HostBytes, ProgramBuilder, SamplingSettings,
    StepToken, WeightSource, uniform,
};
use marlin_cpu::CpuBackend;
use marlin_formats::Format;
use marlin_gpu::ops::sample::{self, SETTINGS_WORDS, Sample, SampleScratch, settings_record};
use marlin_gpu::ops::step::{StepTokens, begin_step};
use marlin_gpu::{CommandList, Device, GpuError};
use marlin_kernels::Element;

/// Temperature 1 and nothing else.
const OPEN: SamplingSettings = SamplingSettings { temperature: 1.0, ..SamplingSettings::GREEDY };

/// Tokens of a history: the longest window and some to spare.
const HISTORY: usize = SamplingSettings::MAX_REPEAT_LAST_N as usize + 64;

/// Whether the tests run on a real device, where more of everything costs little.
fn on_hardware() -> bool {
    std::env::var_os("MARLIN_TEST_DEVICE").is_some()
}

/// Numbers that look random, the same in every run.
fn noise(seed: u64, count: usize) -> impl Iterator<Item = f32> {
    // The sum of four uniform numbers is normal enough for logits.
    (0..count as u64).map(move |i| (0..4).map(|j| uniform(seed, 4 * i + j) - 0.5).sum::<f32>())
}

/// Logits as a model gives them: most far below a few.
fn peaked(seed: u64, count: usize) -> Vec<f32> {
    noise(seed, count).map(|x| 14.0 * x).collect()
}

/// Sequences that are sampled from step by step, on a device.
struct Sampler<'a> {
    device: &'a dyn Device,
    vocabulary: usize,
    scratch: SampleScratch,
    settings: marlin_gpu::Buffer<u32>,
    history: marlin_gpu::Buffer<u32>,
    draws: marlin_gpu::Buffer<u64>,
    tokens: marlin_gpu::Buffer<u32>,
    sampled: marlin_gpu::Buffer<u32>,
    softcap: Option<f32>,
}

impl<'a> Sampler<'a> {
    /// One sequence per entry of `settings`.
    fn new(device: &'a dyn Device, vocabulary: usize, settings: &[SamplingSettings]) -> Self {
        let records: Vec<u32> = settings.iter().flat_map(settings_record).collect();
        let history = vec![0_u32; settings.len() * HISTORY];
        Self {
            device,
            vocabulary,
            scratch: SampleScratch::new(device, settings.len(), vocabulary).unwrap(),
            settings: device.upload_new("settings", &records).unwrap(),
            history: device.upload_new("history", &history).unwrap(),
            draws: device.upload_new("draws", &vec![0_u64; settings.len()]).unwrap(),
            tokens: common::output(device, settings.len()),
            sampled: common::output(device, settings.len()),
            softcap: None,
        }
    }

    /// Enters tokens of slot 0 from position `first` on.
    fn remember(&self, tokens: &[u32], first: usize) {
        if tokens.is_empty() {
            return;
        }
        let places: Vec<u32> = (0..tokens.len()).flat_map(|i| [0, (first + i) as u32]).collect();
        let ids = self.device.upload_new("ids", tokens).unwrap();
        let places = self.device.upload_new("places", &places).unwrap();
        let mut list = CommandList::new("remember");
        let history = self.history.view_mut().unwrap();
        let found = common::output::<u32>(self.device, tokens.len());
        let given =
            StepTokens { given: ids.view(), places: places.view(), sampled: self.sampled.view() };
        begin_step(&mut list, given, found.view_mut().unwrap(), history, HISTORY).unwrap();
        self.device.run(list).unwrap();
    }

    /// The next token of each sequence, its last token being at `position`.
    fn sample<T: Element>(&self, logits: &[T], position: usize) -> Vec<u32> {
        let rows = logits.len() / self.vocabulary;
        let outputs: Vec<u32> = (0..rows as u32).flat_map(|r| [r, position as u32]).collect();
        let logits = self.device.upload_new("logits", logits).unwrap();
        let outputs = self.device.upload_new("outputs", &outputs).unwrap();
        let mut list = CommandList::new("sample");
        let io = Sample {
            logits: logits.view(),
            outputs: outputs.view(),
            settings: self.settings.view(),
            history: self.history.view(),
            history_length: HISTORY,
            draws: self.draws.view_mut().unwrap(),
            tokens: self.tokens.slice_mut(0..rows).unwrap(),
            sampled: self.sampled.view_mut().unwrap(),
            softcap: self.softcap,
        };
        sample::sample(&mut list, rows, io, &self.scratch).unwrap();
        self.device.run(list).unwrap();
        self.device.download_all(&self.tokens).unwrap()[..rows].to_vec()
    }
}

/// The CPU backend with a program whose logits after token `i` are row `i` of a table.
fn cpu(table: &[Vec<f32>], softcap: Option<f32>) -> Box<dyn Executor> {
    let backend = CpuBackend::new(std::num::NonZeroUsize::new(1)).unwrap();
    let bytes: Vec<u8> = table.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    let source = WeightSource::plain(
        "logits",
        Format::F32,
        table.len(),
        table[0].len(),
        HostBytes::from(bytes),
    );
    let weight = backend.place(&source).unwrap();
    let mut builder = ProgramBuilder::new();
    let rows = builder.embed(&weight, 1.0);
    let logits = builder.select_outputs(rows);
    let program = builder.finish(logits, softcap).unwrap();
    let options = ExecutorOptions {
        max_tokens: 1,
        max_outputs: 1,
        max_sequences: 1,
        context: 1 << 16,
        kv: marlin_backend::KvFormat::F32,
    };
    backend.compile(program, &options).unwrap()
}

fn cpu_step(executor: &mut dyn Executor, row: usize, position: usize) -> u32 {
    let token = StepToken { id: row as u32, sequence: 0, position: position as u32, output: true };
    executor.step(&Batch { tokens: &[token], logits: false }).unwrap();
    executor.sampled()[0]
}

/// Steps both through the rows of `table`, after `history`, and compares every token. Returns at how many
/// the CPU backend differed from exact arithmetic, and the device did not.
fn assert_as_on_the_cpu(
    device: &dyn Device,
    name: &str,
    settings: &SamplingSettings,
    table: &[Vec<f32>],
    history: &[u32],
    softcap: Option<f32>,
) -> usize {
    let mut rounded = 0;
    let mut executor = cpu(table, softcap);
    executor.begin_sequence(0, settings, history).unwrap();
    let mut sampler = Sampler::new(device, table[0].len(), std::slice::from_ref(settings));
    sampler.softcap = softcap;
    // A step's tokens may not overwrite one another in the ring.
    for (i, part) in history.chunks(64).enumerate() {
        sampler.remember(part, 64 * i);
    }
    for (row, logits) in table.iter().enumerate() {
        let position = history.len() + row;
        let expected = cpu_step(&mut *executor, row, position);
        sampler.remember(&[row as u32], position);
        let found = sampler.sample(logits, position)[0];
        // The CPU backend adds weights up in f32. Where top-p or the draw comes within that rounding of
        // another token, exact arithmetic decides.
        if found != expected && settings.temperature > 0.0 && !settings.penalises() {
            let u = uniform(settings.seed, row as u64);
            let exact = exact_choice(logits, settings, u);
            assert_eq!(found, exact, "{name}, row {row}, neither exact nor the CPU's {expected}");
            rounded += 1;
            continue;
        }
        let width = device.properties().simd_width;
        assert_eq!(found, expected, "{name}, row {row}, SIMD-groups of {width}");
    }
    rounded
}

fn settings_to_try() -> Vec<(&'static str, SamplingSettings)> {
    let default = SamplingSettings::default();
    vec![
        ("greedy", SamplingSettings::GREEDY),
        ("default", default.clone()),
        ("open", OPEN),
        ("cold", SamplingSettings { temperature: 0.05, ..OPEN }),
        ("hot", SamplingSettings { temperature: 3.0, ..OPEN }),
        ("top-k 1", SamplingSettings { top_k: 1, ..OPEN }),
        ("top-k 7", SamplingSettings { top_k: 7, seed: 9, ..OPEN }),
        ("top-k 900, hot", SamplingSettings { top_k: 900, temperature: 5.0, ..OPEN }),
        ("top-k of everything", SamplingSettings { top_k: u32::MAX, ..OPEN }),
        ("top-p 0", SamplingSettings { top_p: 0.0, ..OPEN }),
        ("top-p 0.3", SamplingSettings { top_p: 0.3, ..OPEN }),
        ("top-p 0.99, hot", SamplingSettings { top_p: 0.99, temperature: 4.0, ..OPEN }),
        ("top-p just under 1", SamplingSettings { top_p: 1.0 - f32::EPSILON / 2.0, ..OPEN }),
        ("min-p 0.02", SamplingSettings { min_p: 0.02, ..OPEN }),
        ("min-p 1", SamplingSettings { min_p: 1.0, ..OPEN }),
        ("top-p 0.9 and min-p 0.1", SamplingSettings { top_p: 0.9, min_p: 0.1, ..OPEN }),
        ("top-k 20 and top-p 0.7", SamplingSettings { top_k: 20, top_p: 0.7, ..OPEN }),
        ("top-k 20 and min-p 0.3", SamplingSettings { top_k: 20, min_p: 0.3, ..OPEN }),
        (
            "penalties, greedy",
            SamplingSettings {
                repeat_penalty: 1.7,
                presence_penalty: 0.4,
                frequency_penalty: 0.3,
                ..SamplingSettings::GREEDY
            },
        ),
        (
            "penalties, all filters",
            SamplingSettings {
                repeat_penalty: 1.2,
                frequency_penalty: 0.9,
                repeat_last_n: 5,
                seed: u64::MAX - 3,
                ..default
            },
        ),
    ]
}

#[test]
fn tokens_are_those_of_the_cpu_backend() {
    let (mut tokens, mut rounded) = (0, 0);
    // One block with a tail, several blocks with a tail, one block exactly, and the smallest.
    for vocabulary in [1, 20, 1024, 2500] {
        let table: Vec<Vec<f32>> = (0..4).map(|row| peaked(100 + row, vocabulary)).collect();
        let history: Vec<u32> = (0..40).map(|i| i * i % vocabulary.max(1) as u32).collect();
        for device in common::devices() {
            for (name, settings) in settings_to_try() {
                // Rows are tokens of the history too, so they must be in the vocabulary.
                let rows = vocabulary.min(table.len());
                let name = format!("{name}, vocabulary {vocabulary}");
                let table = &table[..rows];
                tokens += rows;
                rounded += assert_as_on_the_cpu(&*device, &name, &settings, table, &history, None);
            }
        }
    }
    assert!(100 * rounded <= tokens, "{rounded} of {tokens} tokens are not the CPU's");
}

/// Few distinct logits: cuts and draws fall between equals, which go by token.
#[test]
fn equal_logits_go_by_token() {
    let table: Vec<Vec<f32>> =
        (0..3).map(|row| noise(row, 1500).map(|x| (x * 4.0).round()).collect()).collect();
    for device in common::devices() {
        for (name, settings) in settings_to_try() {
            assert_as_on_the_cpu(&*device, name, &settings, &table, &[], None);
        }
    }
}

/// Flat distributions leave more candidates than the list holds: the last step goes through the row, by
/// classes of which some again hold more than the list does.
#[test]
fn more_candidates_than_the_list_holds() {
    for device in common::devices_of_width(32) {
        for spread in [0.0, 0.1, 0.5, 3.0] {
            let table: Vec<Vec<f32>> =
                (0..2).map(|row| noise(row, 9000).map(|x| spread * x - 1.0).collect()).collect();
            for settings in [
                SamplingSettings { top_p: 0.9, ..OPEN },
                SamplingSettings { top_p: 0.999, temperature: 2.0, ..OPEN },
                SamplingSettings { top_k: 8000, top_p: 0.8, min_p: 0.01, ..OPEN },
                SamplingSettings { top_k: 4500, temperature: 0.3, ..OPEN },
            ] {
                let name = format!("spread {spread}, {settings:?}");
                assert_as_on_the_cpu(&*device, &name, &settings, &table, &[], None);
            }
        }
    }
}

/// The whole window counts, and nothing before it; a history longer than its ring wraps around.
#[test]
fn the_longest_window_of_penalties() {
    let settings = SamplingSettings {
        frequency_penalty: 0.01,
        repeat_last_n: u32::MAX,
        ..SamplingSettings::GREEDY
    };
    let vocabulary = 64;
    let history: Vec<u32> =
        (0..HISTORY as u32 + 500).map(|i| (i / 7 + i % 5) % vocabulary).collect();
    let table: Vec<Vec<f32>> =
        (0..4).map(|row| noise(row, vocabulary as usize).collect()).collect();
    for device in common::devices() {
        assert_as_on_the_cpu(&*device, "window", &settings, &table, &history, None);
    }
}

#[test]
fn softcap_comes_first() {
    let table: Vec<Vec<f32>> = (0..6).map(|row| peaked(row, 300)).collect();
    let settings = SamplingSettings { repeat_penalty: 1.5, ..SamplingSettings::default() };
    for device in common::devices() {
        assert_as_on_the_cpu(&*device, "softcap", &settings, &table, &[3, 3, 9], Some(2.0));
    }
}

/// No finite logit, an infinite one, and NaN: the choice is the arg-max, in which NaN never wins.
#[test]
fn logits_that_are_not_finite() {
    let mut table = vec![vec![f32::NEG_INFINITY; 1100], peaked(1, 1100), peaked(2, 1100)];
    table[1][1070] = f32::INFINITY;
    table[2][0] = f32::NAN;
    table[2][700] = f32::NAN;
    table[2][701] = f32::NEG_INFINITY;
    for device in common::devices() {
        for settings in [SamplingSettings::GREEDY, SamplingSettings::default()] {
            assert_as_on_the_cpu(&*device, "not finite", &settings, &table, &[], None);
        }
    }
}

/// Equal weights turn a random number straight into a token, so its bits can be read off.
#[test]
fn random_numbers_are_philox_bit_for_bit() {
    let vocabulary: usize = 1 << 14;
    let seeds = [0, 7, 0x0123_4567_89ab_cdef, u64::MAX];
    let settings: Vec<_> = seeds.iter().map(|&seed| SamplingSettings { seed, ..OPEN }).collect();
    let logits = vec![0.25_f32; seeds.len() * vocabulary];
    for device in common::devices_of_width(32) {
        let sampler = Sampler::new(&*device, vocabulary, &settings);
        for draw in 0..4 {
            let expected: Vec<u32> = seeds
                .iter()
                .map(|&seed| (f64::from(uniform(seed, draw)) * vocabulary as f64) as u32)
                .collect();
            assert_eq!(sampler.sample(&logits, 0), expected, "draw {draw}");
        }
        assert_eq!(device.download_all(&sampler.draws).unwrap(), [4; 4]);
    }
}

#[test]
fn greedy_sequences_draw_nothing_and_settings_hold_per_sequence() {
    let settings =
        [SamplingSettings::GREEDY, SamplingSettings::default(), SamplingSettings::GREEDY];
    let row = peaked(5, 1300);
    let logits = row.repeat(3);
    let greatest =
        (0..row.len() as u32).max_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize])).unwrap();
    for device in common::devices() {
        let sampler = Sampler::new(&*device, row.len(), &settings);
        let tokens = sampler.sample(&logits, 0);
        assert_eq!([tokens[0], tokens[2]], [greatest; 2]);
        assert_eq!(device.download_all(&sampler.draws).unwrap(), [0, 1, 0]);
    }
}

/// Half-precision logits are sampled as the floats that they are.
#[test]
fn logits_in_half_precision() {
    let table: Vec<f16> = peaked(3, 1200).into_iter().map(f16::from_f32).collect();
    let brain: Vec<bf16> = peaked(3, 1200).into_iter().map(bf16::from_f32).collect();
    for device in common::devices() {
        let run = |floats: Vec<f32>| {
            let sampler = Sampler::new(&*device, 1200, &[SamplingSettings::default()]);
            (0..5).map(|_| sampler.sample(&floats, 0)[0]).collect::<Vec<_>>()
        };
        let halves = Sampler::new(&*device, 1200, &[SamplingSettings::default()]);
        let found: Vec<u32> = (0..5).map(|_| halves.sample(&table, 0)[0]).collect();
        assert_eq!(found, run(table.iter().map(|x| x.to_f32()).collect()));
        let halves = Sampler::new(&*device, 1200, &[SamplingSettings::default()]);
        let found: Vec<u32> = (0..5).map(|_| halves.sample(&brain, 0)[0]).collect();
        assert_eq!(found, run(brain.iter().map(|x| x.to_f32()).collect()));
    }
}

/// Pearson's statistic of `counts` against `probabilities`, which must not be small.
fn chi_squared(counts: &[u32], probabilities: &[f64]) -> f64 {
    let n: f64 = counts.iter().map(|&c| f64::from(c)).sum();
    counts
        .iter()
        .zip(probabilities)
        .filter(|(_, p)| **p > 0.0)
        .map(|(&c, &p)| (f64::from(c) - n * p).powi(2) / (n * p))
        .sum()
}

/// What the settings leave of softmax(logits), exactly: the definitions, over a full sort in f64. Tokens and
/// probabilities in the order of the draw.
fn exact_distribution(logits: &[f32], s: &SamplingSettings) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let greatest = logits[order[0]];
    let weight = |token: usize, temperature: f32| {
        ((f64::from(logits[token]) - f64::from(greatest)) / f64::from(temperature)).exp()
    };
    let mut kept = if s.top_k == 0 { order.len() } else { order.len().min(s.top_k as usize) };
    let sorted = kept < order.len() || s.top_p < 1.0;
    let total: f64 = order[..kept].iter().map(|&t| weight(t, 1.0)).sum();
    if s.top_p < 1.0 {
        let mut sum = 0.0;
        kept = 1 + order[..kept]
            .iter()
            .position(|&t| {
                sum += weight(t, 1.0);
                sum >= f64::from(s.top_p) * total
            })
            .unwrap_or(kept - 1);
    }
    order.truncate(kept);
    let least = f64::from(greatest) + f64::from(s.min_p).ln();
    order.retain(|&t| f64::from(logits[t]) >= least);
    if !sorted {
        order.sort_unstable();
    }
    let total: f64 = order.iter().map(|&t| weight(t, s.temperature)).sum();
    order.into_iter().map(|t| (t, weight(t, s.temperature) / total)).collect()
}

/// The token that the random number `u` falls on, exactly.
fn exact_choice(logits: &[f32], settings: &SamplingSettings, u: f32) -> u32 {
    let distribution = exact_distribution(logits, settings);
    let mut sum = 0.0;
    for &(token, p) in &distribution {
        sum += p;
        if sum > f64::from(u) {
            return token as u32;
        }
    }
    distribution[distribution.len() - 1].0 as u32
}

#[test]
fn draws_follow_the_exact_distribution() {
    let logits: Vec<f32> = noise(11, 16).map(|x| 2.0 * x).collect();
    let (rows, rounds) = if on_hardware() { (1000, 100) } else { (150, 2) };
    for device in common::devices_of_width(32) {
        for settings in [
            OPEN,
            SamplingSettings { temperature: 0.6, ..OPEN },
            SamplingSettings { min_p: 0.1, ..OPEN },
            SamplingSettings { top_k: 9, temperature: 1.5, ..OPEN },
            SamplingSettings { top_p: 0.8, ..OPEN },
            SamplingSettings { top_k: 12, top_p: 0.9, min_p: 0.05, temperature: 0.8, ..OPEN },
        ] {
            // Many sequences, each with its own stream of random numbers.
            let all: Vec<_> = (0..rows)
                .map(|seed| SamplingSettings { seed: seed as u64, ..settings.clone() })
                .collect();
            let sampler = Sampler::new(&*device, logits.len(), &all);
            let repeated = logits.repeat(rows);
            let mut counts = vec![0; logits.len()];
            for _ in 0..rounds {
                for token in sampler.sample(&repeated, 0) {
                    counts[token as usize] += 1;
                }
            }
            let mut expected = vec![0.0; logits.len()];
            for (token, p) in exact_distribution(&logits, &settings) {
                expected[token] = p;
            }
            for (token, (&count, &p)) in counts.iter().zip(&expected).enumerate() {
                assert!(p > 0.0 || count == 0, "{settings:?} drew {token} {count} times");
            }
            let freedom = expected.iter().filter(|p| **p > 0.0).count() as f64 - 1.0;
            let chi = chi_squared(&counts, &expected);
            // Wilson & Hilferty 1931: the cube root of chi-squared over its freedom is nearly normal; 3.1
            // deviations are exceeded once in a thousand.
            let spread = (2.0 / (9.0 * freedom)).sqrt();
            let limit = freedom * (1.0 - spread * spread + 3.1 * spread).powi(3);
            assert!(chi < limit, "{settings:?}: chi-squared {chi}, limit {limit}");
        }
    }
}

#[test]
fn arg_max_of_many_rows() {
    for device in common::devices() {
        for vocabulary in [1, 33, 1024, 5001] {
            let mut rows: Vec<Vec<f32>> = (0..4).map(|row| peaked(row, vocabulary)).collect();
            // The first of equals; NaN never; nothing but minus infinity.
            rows[1] = vec![2.5; vocabulary];
            rows[2][0] = f32::NAN;
            rows[3] = vec![f32::NEG_INFINITY; vocabulary];
            let expected: Vec<u32> = rows
                .iter()
                .map(|row| {
                    let mut best = 0;
                    for (i, &x) in row.iter().enumerate() {
                        if x > row[best] || row[best].is_nan() {
                            best = i;
                        }
                    }
                    // A row of NaN has no greatest value.
                    if row[best].is_nan() { 0 } else { best as u32 }
                })
                .collect();
            let logits = device.upload_new("logits", &rows.concat()).unwrap();
            let scratch = SampleScratch::new(&*device, rows.len(), vocabulary).unwrap();
            let tokens = common::output(&*device, rows.len());
            let mut list = CommandList::new("arg-max");
            let out = tokens.view_mut().unwrap();
            // Row i is of the slot that many before the last.
            let last = rows.len() as u32 - 1;
            let outputs: Vec<u32> = (0..=last).flat_map(|row| [last - row, 0]).collect();
            let outputs = device.upload_new("outputs", &outputs).unwrap();
            let sampled = common::output(&*device, rows.len());
            let by_slot = sampled.view_mut().unwrap();
            let (logits, outputs) = (logits.view(), outputs.view());
            sample::arg_max(&mut list, rows.len(), logits, outputs, out, by_slot, &scratch)
                .unwrap();
            device.run(list).unwrap();
            assert_eq!(device.download_all(&tokens).unwrap(), expected, "of {vocabulary}");
            let by_slot: Vec<u32> = expected.iter().rev().copied().collect();
            assert_eq!(device.download_all(&sampled).unwrap(), by_slot, "of {vocabulary}");
        }
    }
}

#[test]
fn an_empty_batch_is_no_work() {
    for device in common::devices_of_width(32) {
        let scratch = SampleScratch::new(&*device, 1, 10).unwrap();
        let buffer = common::output::<f32>(&*device, 4);
        let tokens = common::output::<u32>(&*device, 4);
        let mut list = CommandList::new("nothing");
        let logits = buffer.slice(0..0).unwrap();
        let none = || tokens.slice_mut(0..0).unwrap();
        let outputs = tokens.slice(0..0).unwrap();
        sample::arg_max(&mut list, 0, logits, outputs, none(), none(), &scratch).unwrap();
        assert!(list.commands().is_empty());
    }
}

/// Softmax by definition, in f64.
fn softmax(x: &[f32], scale: f32) -> Vec<f64> {
    let greatest = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(scale * x)));
    let weights: Vec<f64> = x.iter().map(|&x| (f64::from(scale * x) - greatest).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

#[test]
fn softmax_in_one_pass_and_in_several() {
    for device in common::devices() {
        for (columns, scale) in [(1, 1.0), (5, 0.5), (1024, 1.0), (2600, 2.0)] {
            let mut x: Vec<f32> = peaked(columns as u64, 2 * columns);
            if columns > 4 {
                // A long way down, and far up: neither may overflow.
                x[3] = f32::NEG_INFINITY;
                x[columns + 1] = 3000.0;
            }
            let shape = sample::SoftmaxShape { rows: 2, columns, scale };
            let scratch = sample::SoftmaxScratch::new(&*device, 2, columns).unwrap();
            let input = device.upload_new("x", &x).unwrap();
            let one = common::output::<f32>(&*device, x.len());
            let several = common::output::<f32>(&*device, x.len());
            let tokens = [0, columns as u32 - 1];
            let chosen = device.upload_new("tokens", &tokens).unwrap();
            let logs = common::output::<f32>(&*device, 2);
            let mut list = CommandList::new("softmax");
            sample::softmax(&mut list, shape, input.view(), one.view_mut().unwrap()).unwrap();
            let out = several.view_mut().unwrap();
            sample::softmax_in_blocks(&mut list, shape, input.view(), out, &scratch).unwrap();
            let out = logs.view_mut().unwrap();
            sample::log_probabilities(&mut list, shape, input.view(), chosen.view(), out, &scratch)
                .unwrap();
            device.run(list).unwrap();
            let one = device.download_all(&one).unwrap();
            let several = device.download_all(&several).unwrap();
            let logs = device.download_all(&logs).unwrap();
            for row in 0..2 {
                let range = row * columns..(row + 1) * columns;
                let expected = softmax(&x[range.clone()], scale);
                for (i, &p) in expected.iter().enumerate() {
                    for found in [one[range.start + i], several[range.start + i]] {
                        let error = (f64::from(found) - p).abs();
                        // The exponent itself is rounded to a float.
                        let relative = 3e-6 + 2e-7 * p.max(1e-300).ln().abs();
                        assert!(error <= relative * p + 1e-37, "{found}, expected {p}");
                    }
                }
                // From the difference to the greatest, since a probability may be too small for a float.
                let token = row * columns + tokens[row] as usize;
                let greatest = x[range.clone()].iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
                let most = expected.iter().fold(0.0, |m: f64, &p| m.max(p));
                let log = f64::from(scale * x[token] - scale * greatest) + most.ln();
                let error = (f64::from(logs[row]) - log).abs();
                assert!(error <= 1e-5 * log.abs().max(1.0), "{}, expected {log}", logs[row]);
            }
        }
    }
}

#[test]
fn wrong_lengths_are_refused_with_both_numbers() {
    for device in common::devices_of_width(32) {
        let scratch = SampleScratch::new(&*device, 2, 100).unwrap();
        let floats = common::output::<f32>(&*device, 199);
        let words = common::output::<u32>(&*device, 2);
        let mut list = CommandList::new("wrong");
        let outputs = common::output::<u32>(&*device, 4);
        let out = || words.view_mut().unwrap();
        let (logits, outputs) = (floats.view(), outputs.view());
        let error =
            sample::arg_max(&mut list, 2, logits, outputs, out(), out(), &scratch).unwrap_err();
        assert!(matches!(&error, GpuError::Launch { .. }));
        let text = error.to_string();
        assert!(text.contains("logits has 199 elements, expected 200"), "{text}");
        let error = SampleScratch::new(&*device, 1, sample::MAX_VOCABULARY + 1).unwrap_err();
        assert!(error.to_string().contains("524289, expected 1 to 524288"), "{error}");
    }
    assert_eq!(settings_record(&OPEN).len(), SETTINGS_WORDS);
}

#[test]
fn a_step_takes_ids_from_the_host_or_from_what_was_sampled_and_remembers_them() {
    for device in common::devices_of_width(32) {
        let device = &*device;
        let given =
            device.upload_new("given", &[5, StepToken::SAMPLED, StepToken::SAMPLED]).unwrap();
        // Slot and position; a history of four is a ring.
        let places = device.upload_new("places", &[1_u32, 6, 2, 3, 0, 0]).unwrap();
        let sampled = device.upload_new("sampled", &[70_u32, 71, 72]).unwrap();
        let ids = common::output::<u32>(device, 3);
        let history = device.upload_new("history", &[0_u32; 12]).unwrap();
        let mut list = CommandList::new("begin");
        let tokens =
            StepTokens { given: given.view(), places: places.view(), sampled: sampled.view() };
        let (out, past) = (ids.view_mut().unwrap(), history.view_mut().unwrap());
        begin_step(&mut list, tokens, out, past, 4).unwrap();
        device.run(list).unwrap();
        assert_eq!(device.download_all(&ids).unwrap(), [5, 72, 70]);
        let expected = [70, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 72];
        assert_eq!(device.download_all(&history).unwrap(), expected);
    }
}
