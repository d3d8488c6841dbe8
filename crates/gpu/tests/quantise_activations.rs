//! Activations as 8-bit codes: the same codes and scales as the arithmetic gives on the host.

mod common;
#[path = "common/values.rs"]
mod values;

use half::{bf16, f16};
use marlin_formats::fp8;
use marlin_gpu::ops::quantise_activations::{
    ActivationCode, ActivationGroup, quantise_activations,
};
use marlin_gpu::{CommandList, Device, GpuError};
use values::{Float, Random};

const CODES: [ActivationCode; 2] = [ActivationCode::Int8, ActivationCode::E4m3];
const GROUPS: [ActivationGroup; 5] = [
    ActivationGroup::Token,
    ActivationGroup::Size(16),
    ActivationGroup::Size(32),
    ActivationGroup::Size(64),
    ActivationGroup::Size(128),
];

/// Codes and scale of one group.
fn reference(code: ActivationCode, x: &[f32]) -> (Vec<u8>, f32) {
    let reach = if code == ActivationCode::Int8 { 127.0 } else { 448.0 };
    let scale = if x.iter().all(|v| v.is_finite()) {
        x.iter().fold(0.0f32, |m, v| m.max(v.abs())) / reach
    } else {
        f32::NAN
    };
    let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    let codes = x
        .iter()
        .map(|v| if inverse > 0.0 { v * inverse } else { 0.0 })
        .map(|v| match code {
            ActivationCode::Int8 => v.round_ties_even().clamp(-127.0, 127.0) as i8 as u8,
            ActivationCode::E4m3 => fp8::encode_e4m3(v),
        })
        .collect();
    (codes, scale)
}

fn check<T: Float>(
    device: &dyn Device,
    x: &[T],
    rows: usize,
    columns: usize,
) -> Result<(), GpuError> {
    let input = device.upload_new("x", x)?;
    for (code, group) in CODES.into_iter().flat_map(|c| GROUPS.map(|g| (c, g))) {
        let codes = common::output::<u8>(device, x.len());
        let scales = common::output::<f32>(device, rows * group.scales(columns));
        let mut list = CommandList::new("quantise");
        let (from, to, to_scales) = (input.view(), codes.view_mut()?, scales.view_mut()?);
        quantise_activations(&mut list, code, group, from, to, to_scales, rows, columns)?;
        device.run(list)?;
        let size = match group {
            ActivationGroup::Token => columns,
            ActivationGroup::Size(size) => size,
        };
        let (codes, scales) = (device.download_all(&codes)?, device.download_all(&scales)?);
        let values: Vec<f32> = x.iter().map(|v| v.f32()).collect();
        let (mut at, mut n) = (0, 0);
        for row in values.chunks(columns) {
            for part in row.chunks(size) {
                let (expected, scale) = reference(code, part);
                let what = format!("{code:?} {group:?} {rows}×{columns} group {n}");
                assert!(scales[n] == scale || scales[n].is_nan() && scale.is_nan(), "{what}");
                assert_eq!(codes[at..at + part.len()], expected, "{what}");
                at += part.len();
                n += 1;
            }
        }
        assert_eq!((at, n), (codes.len(), scales.len()));
    }
    Ok(())
}

fn every_shape<T: Float>() -> Result<(), GpuError> {
    for device in common::devices() {
        for (rows, columns) in [(0, 64), (1, 1), (3, 16), (2, 100), (1, 4096), (40, 144), (7, 33)] {
            let x: Vec<T> = Random::new(columns as u64).elements(rows * columns, 1.5);
            check(&*device, &x, rows, columns)?;
        }
    }
    Ok(())
}

#[test]
fn codes_of_f16() -> Result<(), GpuError> {
    every_shape::<f16>()
}

#[test]
fn codes_of_bf16() -> Result<(), GpuError> {
    every_shape::<bf16>()
}

#[test]
fn codes_of_f32() -> Result<(), GpuError> {
    every_shape::<f32>()
}

/// Zeros, subnormals, the largest numbers, values half-way between codes, NaN and infinity.
#[test]
fn difficult_values() -> Result<(), GpuError> {
    for device in common::devices() {
        let mut rows: Vec<Vec<f32>> = vec![
            vec![0.0; 128],
            vec![-0.0; 128],
            (0..128).map(|i| i as f32 * 1e-42).collect(),
            (0..128).map(|i| if i % 2 == 0 { f32::MAX } else { -f32::MAX }).collect(),
            // The scale is 1: every second value is a tie.
            (0..128).map(|i| if i == 5 { 127.0 } else { (i as f32 - 64.0) * 0.5 }).collect(),
        ];
        for (at, bad) in [(3, f32::NAN), (100, f32::INFINITY), (127, f32::NEG_INFINITY)] {
            let mut row = vec![1.0; 128];
            row[at] = bad;
            rows.push(row);
        }
        check(&*device, &rows.concat(), rows.len(), 128)?;
    }
    Ok(())
}

#[test]
fn unknown_groups_are_refused() -> Result<(), GpuError> {
    let device = common::emulated(32, true);
    let x = device.upload_new("x", &[0.0f32; 96])?;
    let (codes, scales) = (common::output::<u8>(&*device, 96), common::output::<f32>(&*device, 4));
    let mut list = CommandList::new("quantise");
    let (to, to_scales) = (codes.view_mut()?, scales.view_mut()?);
    let group = ActivationGroup::Size(24);
    let error = quantise_activations(
        &mut list,
        ActivationCode::Int8,
        group,
        x.view(),
        to,
        to_scales,
        1,
        96,
    )
    .unwrap_err();
    assert!(error.to_string().contains("groups of 24, expected 16, 32, 64 or 128"), "{error}");
    Ok(())
}
