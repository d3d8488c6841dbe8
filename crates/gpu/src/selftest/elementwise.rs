//! Norms, activations, embeddings and rotations.

use half::{bf16, f16};
use marlin_backend::RopeStyle;
use marlin_formats::{Format, encode};

use super::values::{
    Measured, Real, compare, equal, numbers, output, run as run_list, values, wide,
};
use super::{Checked, Runner};
use crate::Device;
use crate::ops::activation::{GateActivation, gated_activation};
use crate::ops::embed::{gather_rows, gather_weight_rows};
use crate::ops::linear::FragmentWeights;
use crate::ops::norm::{NormWeight, add_rms_norm, rms_norm, rms_norm_add};
use crate::ops::rope::{HeadLayout, HeadValues, Heads, Rotation, rope};

const EPSILON: f32 = 1e-5;

pub(super) fn run(device: &dyn Device, runner: &mut Runner<'_>) {
    of_type::<f16>(device, runner);
    of_type::<bf16>(device, runner);
    of_type::<f32>(device, runner);
    for format in [Format::INT4_G128, Format::FP4_G32, Format::MXFP4] {
        let name = format!("gather_weight_rows {format}");
        runner.check("embed", name, || quantised_rows(device, format));
    }
}

fn of_type<T: Real>(device: &dyn Device, runner: &mut Runner<'_>) {
    let named = |what: &str| format!("{what} {}", T::NAME);
    for (rows, columns) in [(1, 576), (3, 77), (2, 4096)] {
        runner.check("norm", named(&format!("rms_norm {rows}×{columns}")), || {
            norms::<T>(device, rows, columns)
        });
    }
    for (name, activation) in [
        ("SiLU", GateActivation::Silu),
        ("GELU", GateActivation::GeluTanh),
        ("ReLU", GateActivation::Relu),
    ] {
        runner.check("activation", named(name), || activated::<T>(device, activation));
    }
    runner.check("embed", named("gather_rows"), || rows::<T>(device));
    for (name, style) in
        [("interleaved", RopeStyle::Interleaved), ("half-split", RopeStyle::HalfSplit)]
    {
        runner.check("rope", named(name), || rotated::<T>(device, style));
    }
}

/// `x / sqrt(mean(x²) + epsilon) · (offset + weight)`.
fn normed(x: &[f64], weight: &[f32], offset: f64) -> Vec<f64> {
    let columns = weight.len();
    x.chunks(columns)
        .flat_map(|row| {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / columns as f64;
            let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
            row.iter().zip(weight).map(move |(v, w)| v * scale * (offset + f64::from(*w)))
        })
        .collect()
}

fn norms<T: Real>(device: &dyn Device, rows: usize, columns: usize) -> Checked {
    let allowed = 3.0 * T::ROUNDING + 2e-6;
    let x: Vec<T> = values(1, rows * columns);
    let before: Vec<T> = values(2, rows * columns);
    let weight = numbers(3, columns);
    let given = device.upload_new("x", &x)?;
    let weights = device.upload_new("weight", &weight)?;
    let norm = |offset| NormWeight { weight: weights.view(), epsilon: EPSILON, offset };
    let y = output::<T>(device, "y", x.len())?;
    run_list(device, "rms_norm", |list| {
        rms_norm(list, given.view(), norm(1.0), y.view_mut()?, rows)
    })?;
    let plain = compare(&device.download_all(&y)?, &normed(&wide(&x), &weight, 1.0), allowed);

    let residual = device.upload_new("residual", &before)?;
    run_list(device, "add_rms_norm", |list| {
        add_rms_norm(list, given.view(), residual.view_mut()?, norm(0.0), y.view_mut()?, rows)
    })?;
    let sum: Vec<f64> = wide(&x).iter().zip(wide(&before)).map(|(a, b)| a + b).collect();
    let added = compare(&device.download_all(&residual)?, &sum, allowed).and(compare(
        &device.download_all(&y)?,
        &normed(&sum, &weight, 0.0),
        allowed,
    ));

    let residual = device.upload_new("residual", &before)?;
    run_list(device, "rms_norm_add", |list| {
        rms_norm_add(list, given.view(), norm(0.0), residual.view_mut()?, rows)
    })?;
    let own = normed(&wide(&x), &weight, 0.0);
    let sum: Vec<f64> = own.iter().zip(wide(&before)).map(|(a, b)| a + b).collect();
    Ok(plain.and(added).and(compare(&device.download_all(&residual)?, &sum, allowed)))
}

fn activated<T: Real>(device: &dyn Device, activation: GateActivation) -> Checked {
    let mut all = Measured::default();
    for (rows, columns) in [(1, 1536), (3, 45)] {
        let x: Vec<T> = values(4, 2 * rows * columns);
        let given = device.upload_new("gate up", &x)?;
        let out = output::<T>(device, "out", rows * columns)?;
        run_list(device, "activation", |list| {
            gated_activation(list, activation, given.view(), out.view_mut()?, rows, columns)
        })?;
        let expected: Vec<f64> = wide(&x)
            .chunks(2 * columns)
            .flat_map(|row| {
                let (gate, up) = row.split_at(columns);
                gate.iter().zip(up).map(|(x, up)| activate(activation, *x) * up).collect::<Vec<_>>()
            })
            .collect();
        let allowed = 2.0 * T::ROUNDING + 4e-6;
        all = all.and(compare(&device.download_all(&out)?, &expected, allowed));
    }
    Ok(all)
}

fn activate(activation: GateActivation, x: f64) -> f64 {
    match activation {
        GateActivation::Silu => x / (1.0 + (-x).exp()),
        GateActivation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        GateActivation::Relu => x.max(0.0),
    }
}

const IDS: [u32; 5] = [3, 0, 6, 6, 1];

fn rows<T: Real>(device: &dyn Device) -> Checked {
    let mut all = Measured::default();
    for columns in [13, 576] {
        let table: Vec<T> = values(5, 7 * columns);
        let (given, ids) = (device.upload_new("table", &table)?, device.upload_new("ids", &IDS)?);
        let out = output::<T>(device, "out", IDS.len() * columns)?;
        run_list(device, "gather", |list| {
            gather_rows(list, given.view(), ids.view(), 1.0, out.view_mut()?, 7, columns)
        })?;
        let expected: Vec<T> = IDS
            .iter()
            .flat_map(|id| &table[*id as usize * columns..][..columns])
            .copied()
            .collect();
        let bits = |values: &[T]| values.iter().map(|v| v.value().to_bits()).collect::<Vec<_>>();
        all = all.and(equal(&bits(&device.download_all(&out)?), &bits(&expected)));
    }
    Ok(all)
}

fn quantised_rows(device: &dyn Device, format: Format) -> Checked {
    let (count, columns) = (7, 256);
    let table = encode(format, count, columns, &numbers(6, count * columns))?;
    let weights = FragmentWeights::upload(device, "table", &[table.view()])?;
    let ids = device.upload_new("ids", &IDS)?;
    let out = output::<f32>(device, "out", IDS.len() * columns)?;
    run_list(device, "gather", |list| {
        gather_weight_rows(list, &weights, ids.view(), 1.0, out.view_mut()?)
    })?;
    let decoded = table.view().decode();
    let expected: Vec<f64> = IDS
        .iter()
        .flat_map(|id| &decoded[*id as usize * columns..][..columns])
        .map(|v| f64::from(*v))
        .collect();
    Ok(compare(&device.download_all(&out)?, &expected, 1e-6))
}

fn rotated<T: Real>(device: &dyn Device, style: RopeStyle) -> Checked {
    const DIM: usize = 64;
    const PAIRS: usize = 24;
    let heads = [4, 2];
    let positions = [0u32, 1, 77, 4000];
    let frequencies: Vec<f32> =
        (0..PAIRS).map(|i| 10_000f32.powf(-(i as f32) / PAIRS as f32)).collect();
    let norm_weight = numbers(8, DIM);
    let given: [Vec<T>; 2] =
        [0, 1].map(|i| values(9 + i, positions.len() * heads[i as usize] * DIM));
    let [q, k] = [device.upload_new("q", &given[0])?, device.upload_new("k", &given[1])?];
    let weight = device.upload_new("norm", &norm_weight)?;
    let (places, angles) =
        (device.upload_new("positions", &positions)?, device.upload_new("angles", &frequencies)?);
    let norm = NormWeight { weight: weight.view(), epsilon: EPSILON, offset: 0.0 };
    run_list(device, "rope", |list| {
        rope(
            list,
            device.properties(),
            HeadValues::Apart { q: q.view_mut()?, k: k.view_mut()? },
            Heads { layout: HeadLayout::contiguous(heads[0], DIM), norm: Some(norm) },
            Heads { layout: HeadLayout::contiguous(heads[1], DIM), norm: None },
            places.view(),
            Rotation { head_dim: DIM, style, inverse_frequencies: angles.view(), magnitude: 1.0 },
        )
    })?;
    let mut all = Measured::default();
    for (i, buffer) in [q, k].iter().enumerate() {
        let before = wide(&given[i]);
        let before = if i == 0 { normed(&before, &norm_weight, 0.0) } else { before };
        let mut expected = Vec::new();
        for (at, head) in before.chunks(DIM).enumerate() {
            let position = positions[at / heads[i]];
            expected.extend(rotation(head, style, position, &frequencies));
        }
        // Angles are made in f32 and reach some thousands.
        let allowed = 3.0 * T::ROUNDING + 1e-3;
        all = all.and(compare(&device.download_all(buffer)?, &expected, allowed));
    }
    Ok(all)
}

/// RoFormer, equation 34.
pub(super) fn rotation(
    head: &[f64],
    style: RopeStyle,
    position: u32,
    frequencies: &[f32],
) -> Vec<f64> {
    let mut out = head.to_vec();
    for (i, frequency) in frequencies.iter().enumerate() {
        let (first, second) = match style {
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
            RopeStyle::HalfSplit => (i, i + frequencies.len()),
        };
        let (sin, cos) = (f64::from(position) * f64::from(*frequency)).sin_cos();
        (out[first], out[second]) =
            (head[first] * cos - head[second] * sin, head[first] * sin + head[second] * cos);
    }
    out
}
