//! The choice of the next token.

use half::f16;
use marlin_backend::{SamplingSettings, uniform};

use super::values::{Measured, compare, equal, numbers, output, run as run_list};
use super::{Checked, Runner};
use crate::Device;
use crate::ops::sample::{
    Sample, SampleScratch, SoftmaxScratch, SoftmaxShape, arg_max, sample, settings_record,
    softmax_in_blocks,
};

const VOCABULARY: usize = 2500;
const ROWS: usize = 6;
const HISTORY: usize = 16;

/// Temperature 1 and nothing else.
const OPEN: SamplingSettings = SamplingSettings { temperature: 1.0, ..SamplingSettings::GREEDY };

pub(super) fn run(device: &dyn Device, runner: &mut Runner<'_>) {
    runner.check("sample", "arg_max", || greatest(device));
    runner.check("sample", "softmax", || probabilities(device));
    for (name, settings) in [
        ("greedy", SamplingSettings::GREEDY),
        ("temperature 1", OPEN),
        ("temperature 0.3", SamplingSettings { temperature: 0.3, ..OPEN }),
        ("top-k 7", SamplingSettings { top_k: 7, ..OPEN }),
        ("top-p 0.7", SamplingSettings { top_p: 0.7, ..OPEN }),
        ("min-p 0.05", SamplingSettings { min_p: 0.05, ..OPEN }),
    ] {
        runner.check("sample", name, || chosen(device, &settings));
    }
}

/// Logits as a model gives them: most far below a few.
fn logits() -> Vec<f32> {
    numbers(41, ROWS * VOCABULARY).into_iter().map(|x| 8.0 * x * x.abs()).collect()
}

fn greatest_of(row: &[f32]) -> u32 {
    // The first of equals.
    (0..row.len()).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0) as u32
}

fn greatest(device: &dyn Device) -> Checked {
    let narrow: Vec<f16> = logits().into_iter().map(f16::from_f32).collect();
    let given = device.upload_new("logits", &narrow)?;
    let scratch = SampleScratch::new(device, ROWS, VOCABULARY)?;
    let tokens = output::<u32>(device, "tokens", ROWS)?;
    let outputs: Vec<u32> = (0..ROWS as u32).flat_map(|row| [row, 0]).collect();
    let slots = device.upload_new("outputs", &outputs)?;
    let sampled = output::<u32>(device, "sampled", ROWS)?;
    run_list(device, "arg_max", |list| {
        let (tokens, sampled) = (tokens.view_mut()?, sampled.view_mut()?);
        arg_max(list, ROWS, given.view(), slots.view(), tokens, sampled, &scratch)
    })?;
    let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
    let expected: Vec<u32> = wide.chunks(VOCABULARY).map(greatest_of).collect();
    Ok(equal(&device.download_all(&tokens)?, &expected))
}

fn probabilities(device: &dyn Device) -> Checked {
    let logits = logits();
    let given = device.upload_new("logits", &logits)?;
    let scratch = SoftmaxScratch::new(device, ROWS, VOCABULARY)?;
    let out = output::<f32>(device, "probabilities", logits.len())?;
    let shape = SoftmaxShape { rows: ROWS, columns: VOCABULARY, scale: 1.0 };
    run_list(device, "softmax", |list| {
        softmax_in_blocks(list, shape, given.view(), out.view_mut()?, &scratch)
    })?;
    let expected: Vec<f64> = logits.chunks(VOCABULARY).flat_map(|row| softmax(row, 1.0)).collect();
    Ok(compare(&device.download_all(&out)?, &expected, 1e-5))
}

fn softmax(row: &[f32], temperature: f32) -> Vec<f64> {
    let top = row.iter().copied().fold(f32::MIN, f32::max);
    let weight = |x: &f32| (f64::from(*x - top) / f64::from(temperature)).exp();
    let total: f64 = row.iter().map(weight).sum();
    row.iter().map(|x| weight(x) / total).collect()
}

/// Tokens with their probabilities after the filters, which look at probabilities at temperature 1; likeliest first where
/// top-k or top-p has sorted them, otherwise by token.
fn distribution(row: &[f32], settings: &SamplingSettings) -> Vec<(u32, f64)> {
    let plain = softmax(row, 1.0);
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
    let least = f64::from(settings.min_p) * plain[order[0] as usize];
    let sorted = settings.top_k > 0 || settings.top_p < 1.0;
    if settings.top_k > 0 {
        order.truncate(settings.top_k as usize);
    }
    if settings.top_p < 1.0 {
        let total: f64 = order.iter().map(|t| plain[*t as usize]).sum();
        let mut sum = 0.0;
        let enough = |token: &u32| {
            sum += plain[*token as usize];
            sum >= f64::from(settings.top_p) * total
        };
        let count = order.iter().position(enough).map_or(order.len(), |last| last + 1);
        order.truncate(count);
    }
    order.retain(|t| plain[*t as usize] >= least);
    if !sorted {
        order.sort_unstable();
    }
    let weights = softmax(row, settings.temperature);
    let total: f64 = order.iter().map(|t| weights[*t as usize]).sum();
    order.iter().map(|t| (*t, weights[*t as usize] / total)).collect()
}

/// The token at which the sum of probabilities passes the random number, and how near that was to another one.
fn choice(row: &[f32], settings: &SamplingSettings, u: f64) -> (u32, f64) {
    let distribution = distribution(row, settings);
    let (mut sum, mut nearest) = (0.0, f64::MAX);
    let mut found = None;
    for (token, p) in &distribution {
        sum += p;
        nearest = nearest.min((sum - u).abs());
        if found.is_none() && sum > u {
            found = Some(*token);
        }
    }
    (found.unwrap_or(distribution[distribution.len() - 1].0), nearest)
}

fn chosen(device: &dyn Device, settings: &SamplingSettings) -> Checked {
    let logits = logits();
    let all: Vec<SamplingSettings> =
        (0..ROWS as u64).map(|seed| SamplingSettings { seed, ..settings.clone() }).collect();
    let records: Vec<u32> = all.iter().flat_map(settings_record).collect();
    let rows: Vec<u32> = (0..ROWS as u32).flat_map(|row| [row, 0]).collect();
    let given = device.upload_new("logits", &logits)?;
    let records = device.upload_new("settings", &records)?;
    let rows = device.upload_new("rows", &rows)?;
    let history = device.upload_new("history", &[0u32; ROWS * HISTORY])?;
    let draws = device.upload_new("draws", &[0u64; ROWS])?;
    let tokens = output::<u32>(device, "tokens", ROWS)?;
    let sampled = output::<u32>(device, "sampled", ROWS)?;
    let scratch = SampleScratch::new(device, ROWS, VOCABULARY)?;
    let mut wrong = 0;
    for draw in 0..8 {
        run_list(device, "sample", |list| {
            let io = Sample {
                logits: given.view(),
                outputs: rows.view(),
                settings: records.view(),
                history: history.view(),
                history_length: HISTORY,
                draws: draws.view_mut()?,
                tokens: tokens.view_mut()?,
                sampled: sampled.view_mut()?,
                softcap: None,
            };
            sample(list, ROWS, io, &scratch)
        })?;
        let found = device.download_all(&tokens)?;
        for (row, (found, settings)) in logits.chunks(VOCABULARY).zip(found.iter().zip(&all)) {
            if settings.temperature <= 0.0 {
                wrong += usize::from(*found != greatest_of(row));
                continue;
            }
            let u = f64::from(uniform(settings.seed, draw));
            let (expected, nearest) = choice(row, settings, u);
            // Within rounding of the limit between two tokens either is right.
            wrong += usize::from(*found != expected && nearest > 1e-6);
        }
    }
    Ok(Measured { error: wrong as f64, allowed: 0.0 })
}
