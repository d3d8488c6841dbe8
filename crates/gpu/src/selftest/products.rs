//! Products with quantised matrices.

use half::{bf16, f16};
use marlin_formats::{Format, GgmlType, encode};

use super::values::{Measured, Real, compare, numbers, output, run as run_list, values, wide};
use super::{Checked, Runner};
use crate::Device;
use crate::ops::linear::{Activation, Epilogue, FragmentWeights, gemv, linear};

const FORMATS: [Format; 16] = [
    Format::INT4_G128,
    Format::INT4_ASYM_G64,
    Format::INT3_G64,
    Format::INT2_G64,
    Format::INT8_CHANNEL,
    Format::FP4_G128,
    Format::FP4_G32,
    Format::MXFP4,
    Format::NVFP4,
    Format::Ggml(GgmlType::Q4_0),
    Format::Ggml(GgmlType::Q4_1),
    Format::Ggml(GgmlType::Q8_0),
    Format::Ggml(GgmlType::Q4K),
    Format::Ggml(GgmlType::Q6K),
    Format::F16,
    Format::F32,
];

const ROWS: usize = 72;
const COLUMNS: usize = 512;

pub(super) fn run(device: &dyn Device, runner: &mut Runner<'_>) {
    for format in FORMATS {
        runner.check("linear", format!("gemv {format} × f32"), || {
            plain::<f32>(device, format, &[1, 5])
        });
        runner.check("linear", format!("linear {format} × f16"), || {
            plain::<f16>(device, format, &[1, 9, 70])
        });
    }
    for format in [Format::INT4_G128, Format::FP4_G128] {
        runner.check("linear", format!("linear {format} × bf16"), || {
            plain::<bf16>(device, format, &[1, 17])
        });
        runner.check("linear", format!("gate, up and SiLU {format} × f16"), || {
            gated::<f16>(device, format)
        });
        runner.check("linear", format!("bias and residual {format} × f16"), || {
            finished::<f16>(device, format)
        });
    }
}

/// `[tokens, ROWS]`.
fn product(weights: &[f32], x: &[f64], tokens: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(tokens * ROWS);
    for token in 0..tokens {
        for row in 0..ROWS {
            let weights = &weights[row * COLUMNS..][..COLUMNS];
            let x = &x[token * COLUMNS..][..COLUMNS];
            out.push(weights.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum());
        }
    }
    out
}

/// Sums of f32 in any order, one rounding of the result, and of weights that are wider than the activations.
fn allowed<T: Real>(format: Format) -> f64 {
    let weights = if format == Format::F32 { T::ROUNDING } else { 0.0 };
    2.0 * T::ROUNDING + weights + 2e-5
}

fn plain<T: Real>(device: &dyn Device, format: Format, counts: &[usize]) -> Checked {
    let matrix = encode(format, ROWS, COLUMNS, &numbers(11, ROWS * COLUMNS))?;
    let weights = FragmentWeights::upload(device, "weights", &[matrix.view()])?;
    let decoded = matrix.view().decode();
    let mut all = Measured::default();
    for &tokens in counts {
        let x: Vec<T> = values(12, tokens * COLUMNS);
        let given = device.upload_new("x", &x)?;
        let y = output::<T>(device, "y", tokens * ROWS)?;
        run_list(device, "product", |list| {
            let (x, y, plain) = (given.view(), y.view_mut()?, Epilogue::default());
            match T::NAME {
                "f32" => gemv(list, &weights, x, y, tokens, plain),
                _ => linear(list, device.properties(), &weights, x, y, tokens, plain),
            }
        })?;
        let expected = product(&decoded, &wide(&x), tokens);
        all = all.and(compare(&device.download_all(&y)?, &expected, allowed::<T>(format)));
    }
    Ok(all)
}

fn gated<T: Real>(device: &dyn Device, format: Format) -> Checked {
    let [gate, up] =
        [13, 14].map(|seed| encode(format, ROWS, COLUMNS, &numbers(seed, ROWS * COLUMNS)));
    let (gate, up) = (gate?, up?);
    let weights = FragmentWeights::upload(device, "weights", &[gate.view(), up.view()])?;
    let mut all = Measured::default();
    for tokens in [1, 9] {
        let x: Vec<T> = values(15, tokens * COLUMNS)
            .into_iter()
            .map(|v: T| T::of(v.value() as f32 * 0.2))
            .collect();
        let given = device.upload_new("x", &x)?;
        let y = output::<T>(device, "y", tokens * ROWS)?;
        run_list(device, "gated", |list| {
            let epilogue = Epilogue { gated: Some(Activation::Silu), ..Epilogue::default() };
            linear(
                list,
                device.properties(),
                &weights,
                given.view(),
                y.view_mut()?,
                tokens,
                epilogue,
            )
        })?;
        let x = wide(&x);
        let [gates, ups] = [&gate, &up].map(|matrix| product(&matrix.view().decode(), &x, tokens));
        let expected: Vec<f64> =
            gates.iter().zip(ups).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
        all = all.and(compare(&device.download_all(&y)?, &expected, 2.0 * allowed::<T>(format)));
    }
    Ok(all)
}

fn finished<T: Real>(device: &dyn Device, format: Format) -> Checked {
    let matrix = encode(format, ROWS, COLUMNS, &numbers(16, ROWS * COLUMNS))?;
    let weights = FragmentWeights::upload(device, "weights", &[matrix.view()])?;
    let bias = numbers(17, ROWS);
    let biases = device.upload_new("bias", &bias)?;
    let mut all = Measured::default();
    for tokens in [1, 9] {
        let x: Vec<T> = values(18, tokens * COLUMNS);
        let before: Vec<T> = values(19, tokens * ROWS);
        let (given, y) = (device.upload_new("x", &x)?, device.upload_new("y", &before)?);
        run_list(device, "finished", |list| {
            let epilogue =
                Epilogue { bias: Some(biases.view()), accumulate: true, ..Epilogue::default() };
            linear(
                list,
                device.properties(),
                &weights,
                given.view(),
                y.view_mut()?,
                tokens,
                epilogue,
            )
        })?;
        let sums = product(&matrix.view().decode(), &wide(&x), tokens);
        let expected: Vec<f64> = sums
            .iter()
            .zip(wide(&before))
            .enumerate()
            .map(|(i, (sum, before))| sum + before + f64::from(bias[i % ROWS]))
            .collect();
        all = all.and(compare(&device.download_all(&y)?, &expected, 2.0 * allowed::<T>(format)));
    }
    Ok(all)
}
