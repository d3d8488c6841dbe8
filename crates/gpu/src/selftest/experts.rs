//! A mixture-of-experts layer: choice, sorting, products, sum.

use half::f16;
use marlin_formats::{Format, OwnedMatrix, encode};

use super::values::{Measured, Real, compare, numbers, output, run as run_list, values, wide};
use super::{Checked, Runner};
use crate::Device;
use crate::ops::linear::{Activation, FragmentWeights};
use crate::ops::moe::{self, Experts, Groups, Routing};

const EXPERTS: usize = 8;
const CHOSEN: usize = 2;
const HIDDEN: usize = 256;
const INNER: usize = 128;

pub(super) fn run(device: &dyn Device, runner: &mut Runner<'_>) {
    for format in [Format::INT4_G128, Format::MXFP4] {
        // One token reads each expert's weights for itself; many share them, by matrix fragments in f16.
        runner.check("experts", format!("{format}, one token of f32"), || {
            layer::<f32>(device, format, 1)
        });
        runner.check("experts", format!("{format}, 70 tokens of f16"), || {
            layer::<f16>(device, format, 70)
        });
    }
}

fn matrices(
    format: Format,
    seed: u32,
    count: usize,
    rows: usize,
    cols: usize,
) -> Result<Vec<OwnedMatrix>, marlin_formats::FormatError> {
    let scale = (3.0 / cols as f32).sqrt();
    (0..count as u32)
        .map(|i| {
            let values: Vec<f32> =
                numbers(seed + i, rows * cols).into_iter().map(|x| x * scale).collect();
            encode(format, rows, cols, &values)
        })
        .collect()
}

fn upload(
    device: &dyn Device,
    label: &str,
    matrices: &[OwnedMatrix],
) -> Result<FragmentWeights, crate::GpuError> {
    let views: Vec<_> = matrices.iter().map(OwnedMatrix::view).collect();
    FragmentWeights::upload(device, label, &views)
}

fn layer<T: Real>(device: &dyn Device, format: Format, tokens: usize) -> Checked {
    let properties = device.properties();
    // Gate and up of each expert, one after the other.
    let gate_up = matrices(format, 100, 2 * EXPERTS, INNER, HIDDEN)?;
    let down = matrices(format, 200, EXPERTS, HIDDEN, INNER)?;
    let x: Vec<T> = values(300, tokens * HIDDEN);
    let logits = numbers(301, tokens * EXPERTS);
    let (first, second) = (upload(device, "gate up", &gate_up)?, upload(device, "down", &down)?);
    let (given, router) = (device.upload_new("x", &x)?, device.upload_new("logits", &logits)?);
    let pairs = tokens * CHOSEN;
    let chosen = output::<u32>(device, "chosen", pairs)?;
    let weights = output::<f32>(device, "weights", pairs)?;
    let sorted = output::<T>(device, "sorted", pairs * HIDDEN)?;
    let middle = output::<T>(device, "middle", pairs * INNER)?;
    let parts = output::<T>(device, "parts", pairs * HIDDEN)?;
    let out = output::<T>(device, "out", tokens * HIDDEN)?;
    let groups = Groups::new(device, EXPERTS, pairs)?;
    let tile = moe::tile_rows::<T>(properties, pairs, EXPERTS);
    run_list(device, "experts", |list| {
        let routing = Routing::mixtral(EXPERTS, CHOSEN);
        let (choice, shares) = (chosen.view_mut()?, weights.view_mut()?);
        moe::route(list, &routing, router.view(), None, choice, shares)?;
        moe::group(list, chosen.view(), tile, &groups)?;
        moe::gather(list, &groups, HIDDEN, CHOSEN, given.view(), sorted.view_mut()?)?;
        let gated = Experts {
            weights: &first,
            experts: EXPERTS,
            chosen: CHOSEN,
            gated: Some(Activation::Silu),
            gather: false,
        };
        let plain = Experts { weights: &second, gated: None, ..gated };
        moe::product(list, properties, gated, &groups, tile, sorted.view(), middle.view_mut()?)?;
        moe::product(list, properties, plain, &groups, tile, middle.view(), parts.view_mut()?)?;
        moe::combine(list, &groups, HIDDEN, parts.view(), weights.view(), out.view_mut()?, false)
    })?;

    let decoded = |all: &[OwnedMatrix]| all.iter().map(|m| m.view().decode()).collect::<Vec<_>>();
    let (gate_up, down) = (decoded(&gate_up), decoded(&down));
    let expected: Vec<f64> = wide(&x)
        .chunks(HIDDEN)
        .zip(logits.chunks(EXPERTS))
        .flat_map(|(x, logits)| {
            let mut out = vec![0.0; HIDDEN];
            for (expert, share) in shares(logits) {
                let [gate, up] = [0, 1].map(|part| product(&gate_up[2 * expert + part], x));
                let silu = |(gate, up): (&f64, &f64)| gate / (1.0 + (-gate).exp()) * up;
                let middle: Vec<f64> = gate.iter().zip(&up).map(silu).collect();
                for (out, part) in out.iter_mut().zip(product(&down[expert], &middle)) {
                    *out += share * part;
                }
            }
            out
        })
        .collect();
    let found: Measured = compare(&device.download_all(&out)?, &expected, 5.0 * T::ROUNDING + 2e-5);
    Ok(found)
}

/// The chosen experts and the softmax over them (Jiang et al. 2024, "Mixtral of Experts", §2.1).
fn shares(logits: &[f32]) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    order.truncate(CHOSEN);
    let weights: Vec<f64> = order.iter().map(|e| f64::from(logits[*e]).exp()).collect();
    let total: f64 = weights.iter().sum();
    order.into_iter().zip(weights).map(|(expert, weight)| (expert, weight / total)).collect()
}

fn product(weights: &[f32], x: &[f64]) -> Vec<f64> {
    let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
    weights.chunks(x.len()).map(dot).collect()
}
