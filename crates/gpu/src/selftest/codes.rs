//! Numbers into codes and back: packing, quantised activations, Hadamard transforms.

use half::f16;
use marlin_formats::hadamard::Hadamard;
use marlin_formats::{Format, encode};

use super::values::{
    Measured, Real, compare, equal, numbers, output, run as run_list, values, wide,
};
use super::{Checked, Problem, Runner};
use crate::Device;
use crate::ops::dequant_groups::{GroupMatrix, dequant_groups};
use crate::ops::hadamard::{HadamardSize, hadamard};
use crate::ops::pack::{PackedMatrix, pack};
use crate::ops::quantise_activations::{ActivationCode, ActivationGroup, quantise_activations};

const ROWS: usize = 24;
const COLUMNS: usize = 256;

pub(super) fn run(device: &dyn Device, runner: &mut Runner<'_>) {
    for format in [
        Format::INT4_G128,
        Format::INT4_ASYM_G64,
        Format::INT3_G64,
        Format::FP4_G32,
        Format::MXFP4,
        Format::NVFP4,
        Format::INT8_CHANNEL,
    ] {
        runner.check("pack", format!("{format}, as on the host"), || packed(device, format));
        runner.check("pack", format!("{format}, back to f32"), || unpacked(device, format));
    }
    for group in [ActivationGroup::Token, ActivationGroup::Size(32)] {
        runner.check("activations", format!("int8, {group:?}"), || quantised(device, group));
    }
    for size in [32, 128, 4096, 768] {
        runner.check("hadamard", format!("{size} f32"), || transformed::<f32>(device, size));
        runner.check("hadamard", format!("{size} f16"), || transformed::<f16>(device, size));
    }
}

fn packed(device: &dyn Device, format: Format) -> Checked {
    let x = numbers(31, ROWS * COLUMNS);
    let given = device.upload_new("x", &x)?;
    let matrix = PackedMatrix::allocate(device, "packed", format, ROWS, COLUMNS)?;
    run_list(device, "pack", |list| pack(list, given.view(), &matrix))?;
    if matrix.fault(device)?.is_some() {
        return Err(Problem::Failed("it reports a value that cannot be packed".to_owned()));
    }
    let (found, expected) = (matrix.download(device)?, encode(format, ROWS, COLUMNS, &x)?);
    Ok(equal(&found.data, &expected.data)
        .and(equal(&found.scales, &expected.scales))
        .and(equal(&found.zeros, &expected.zeros))
        .and(equal(&[found.tensor_scale.to_bits()], &[expected.tensor_scale.to_bits()])))
}

fn unpacked(device: &dyn Device, format: Format) -> Checked {
    let matrix = encode(format, ROWS, COLUMNS, &numbers(32, ROWS * COLUMNS))?;
    let Format::Group(group) = format else {
        return Err(Problem::Skipped(format!("{format} has no groups")));
    };
    let data = device.upload_new("data", &matrix.data)?;
    let scales = device.upload_new("scales", &matrix.scales)?;
    let zeros = match group.zero {
        true => Some(device.upload_new("zeros", &matrix.zeros)?),
        false => None,
    };
    let tensor_scale = match group.tensor_scale {
        true => Some(device.upload_new("tensor scale", &[matrix.tensor_scale])?),
        false => None,
    };
    let out = output::<f32>(device, "out", ROWS * COLUMNS)?;
    run_list(device, "dequant", |list| {
        let matrix = GroupMatrix {
            format,
            rows: ROWS,
            cols: COLUMNS,
            data: data.view(),
            scales: scales.view(),
            zeros: zeros.as_ref().map(|zeros| zeros.view()),
            tensor_scale: tensor_scale.as_ref().map(|scale| scale.view()),
        };
        dequant_groups(list, matrix, out.view_mut()?)
    })?;
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    Ok(equal(&bits(&device.download_all(&out)?), &bits(&matrix.view().decode())))
}

fn quantised(device: &dyn Device, group: ActivationGroup) -> Checked {
    let x: Vec<f16> = values(33, ROWS * COLUMNS);
    let given = device.upload_new("x", &x)?;
    let codes = output::<u8>(device, "codes", x.len())?;
    let scales = output::<f32>(device, "scales", ROWS * group.scales(COLUMNS))?;
    run_list(device, "quantise", |list| {
        let (codes, scales) = (codes.view_mut()?, scales.view_mut()?);
        let code = ActivationCode::Int8;
        quantise_activations(list, code, group, given.view(), codes, scales, ROWS, COLUMNS)
    })?;
    let size = match group {
        ActivationGroup::Token => COLUMNS,
        ActivationGroup::Size(size) => size,
    };
    let (codes, scales) = (device.download_all(&codes)?, device.download_all(&scales)?);
    // Decoded, each value is off by at most half a step of its group.
    let mut worst = 0.0f64;
    for (i, x) in wide(&x).iter().enumerate() {
        let scale = f64::from(scales[i / size]);
        let decoded = f64::from(codes[i] as i8) * scale;
        let off = (decoded - x).abs() / scale.max(1e-30);
        worst = worst.max(if off.is_nan() { f64::INFINITY } else { off });
    }
    Ok(Measured { error: worst, allowed: 0.5001 })
}

fn transformed<T: Real>(device: &dyn Device, size: usize) -> Checked {
    let x: Vec<T> = values(34, 3 * size);
    let given = device.upload_new("x", &x)?;
    let transform = HadamardSize::new(size)?;
    run_list(device, "hadamard", |list| {
        hadamard(list, device.properties(), transform, true, given.view_mut()?)
    })?;
    let mut expected: Vec<f32> = x.iter().map(|x| x.value() as f32).collect();
    Hadamard::new(size, true)?.apply(&mut expected);
    let expected: Vec<f64> = expected.iter().map(|x| f64::from(*x)).collect();
    // Large sizes take several passes, with a rounding in between.
    Ok(compare(&device.download_all(&given)?, &expected, 4.0 * T::ROUNDING + 4e-6))
}
