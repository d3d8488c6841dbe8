//! Packing on the device: the bytes and the errors of `formats::encode`.

mod common;
#[path = "common/values.rs"]
mod values;

use half::{bf16, f16};
use marlin_formats::{Code, Format, Group, GroupFormat, ScaleType, encode};
use marlin_gpu::ops::pack::{PackFault, PackedMatrix, pack};
use marlin_gpu::{CommandList, Device, GpuError};
use values::{Float, Random};

/// Every named group format.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|f| matches!(f, Format::Group(_)))
}

/// Packs on the device, and holds what comes out against `formats::encode`: bytes or error.
#[track_caller]
fn check<T: Float>(device: &dyn Device, format: Format, rows: usize, cols: usize, x: &[T]) {
    let wide: Vec<f32> = x.iter().map(|v| v.f32()).collect();
    let expected = encode(format, rows, cols, &wide);
    let found = (|| {
        let input = device.upload_new("weights", x)?;
        let packed = PackedMatrix::allocate(device, "packed", format, rows, cols)?;
        let mut list = CommandList::new("pack");
        pack(&mut list, input.view(), &packed)?;
        device.run(list)?;
        Ok::<_, GpuError>(match packed.fault(device)? {
            Some(fault) => Err(packed.format_error(fault, |row, col| wide[row * cols + col])),
            None => Ok(packed.download(device)?),
        })
    })()
    .unwrap_or_else(|e| panic!("{format} {rows}×{cols}: {e}"));
    match (&found, &expected) {
        (Ok(found), Ok(expected)) => {
            assert_eq!(found.tensor_scale.to_bits(), expected.tensor_scale.to_bits(), "{format}");
            for (part, found, expected) in [
                ("data", &found.data, &expected.data),
                ("scales", &found.scales, &expected.scales),
                ("zeros", &found.zeros, &expected.zeros),
            ] {
                let first = found.iter().zip(expected).position(|(a, b)| a != b);
                assert_eq!(first, None, "{format} {rows}×{cols}: {part} differ at this byte");
                assert_eq!(found.len(), expected.len(), "{format}");
            }
        }
        // Values may be NaN, so errors are compared as text.
        (Err(found), Err(expected)) => assert_eq!(found.to_string(), expected.to_string()),
        _ => panic!("{format} {rows}×{cols}: {found:?}, expected {expected:?}"),
    }
}

/// Columns that suit a format, some of them odd where the format allows it.
fn columns(format: Format) -> Vec<usize> {
    match format.block() {
        1 => vec![1, 77, 128, 300],
        block => vec![block, 3 * block, 1024 + 5 * block],
    }
}

fn random_weights<T: Float>() {
    for device in common::devices() {
        for format in formats() {
            for cols in columns(format) {
                let x: Vec<T> = Random::new(cols as u64).elements(3 * cols, 0.7);
                check(&*device, format, 3, cols, &x);
            }
        }
    }
}

#[test]
fn random_weights_of_f16() {
    random_weights::<f16>();
}

#[test]
fn random_weights_of_bf16() {
    random_weights::<bf16>();
}

#[test]
fn random_weights_of_f32() {
    random_weights::<f32>();
}

#[test]
fn tiles_are_cut_short_at_the_edges() {
    let device = common::emulated(32, false);
    let x: Vec<f32> = Random::new(5).elements(200 * 300, 1.0);
    for format in [Format::INT8_BLOCK, Format::FP8_BLOCK] {
        check(&*device, format, 200, 300, &x);
    }
}

/// Formats without a name: long groups, groups that are not a power of two, tiles, other scales.
#[test]
fn formats_without_a_name() {
    let format = |code, group, scale, zero, tensor_scale| {
        Format::Group(GroupFormat { code, group, scale, zero, tensor_scale })
    };
    let tile = |rows, cols| Group::Block { rows, cols };
    let formats = [
        format(Code::Int4, Group::Size(256), ScaleType::F16, true, false),
        format(Code::Int3, Group::Size(24), ScaleType::F16, true, false),
        format(Code::Int2, Group::Size(48), ScaleType::F32, true, false),
        format(Code::Int4, Group::Size(8), ScaleType::E4M3, true, false),
        format(Code::Int8, tile(3, 16), ScaleType::F32, true, false),
        format(Code::Int8, tile(2, 5), ScaleType::F16, false, false),
        format(Code::Int4, tile(2, 24), ScaleType::F16, true, false),
        format(Code::Fp4, Group::Channel, ScaleType::F16, false, false),
        format(Code::Fp8, Group::Size(32), ScaleType::E8M0, false, false),
        format(Code::Fp4, Group::Size(32), ScaleType::E4M3, false, false),
        format(Code::Int8, Group::Size(64), ScaleType::F16, true, true),
    ];
    for device in common::devices() {
        for format in formats {
            let x: Vec<f32> = Random::new(9).elements(5 * 768, 2.0);
            check(&*device, format, 5, 768, &x);
        }
    }
}

/// Values half-way between codes: a group that reaches to the largest code's value at scale 1, and quarters below it.
#[test]
fn ties_go_to_even() {
    for device in common::devices_of_width(32) {
        for format in formats() {
            let Format::Group(group) = format else { continue };
            let cols = format.block().max(128);
            let reach = if group.zero {
                ((1u32 << group.code.bits()) - 1) as f32
            } else {
                group.code.reach()
            };
            let mut random = Random::new(3);
            let mut x: Vec<f32> =
                (0..2 * cols).map(|_| random.below(1 + 4 * reach as u64) as f32 * 0.25).collect();
            if !group.zero {
                x.iter_mut().for_each(|v| *v = v.copysign(random.uniform()));
            }
            for start in (0..2 * cols).step_by(8) {
                x[start] = reach;
                x[start + 1] = 0.0;
            }
            check(&*device, format, 2, cols, &x);
        }
    }
}

/// Subnormals, underflowing scales, signed zeros, the largest numbers that a type and a format take.
#[test]
fn extreme_magnitudes() {
    let device = common::emulated(32, true);
    for format in formats() {
        let cols = format.block().max(128);
        for magnitude in [0.0, -0.0, 1e-45, 3e-39, 1e-8, 1e-5, 6e4, 1e30, 3.4e38] {
            let mut x: Vec<f32> = Random::new(11).elements(2 * cols, 0.3);
            x.iter_mut().for_each(|v| *v = v.clamp(-1.0, 1.0) * magnitude);
            check(&*device, format, 2, cols, &x);
        }
        // One group of ordinary values in a matrix of tiny ones.
        let mut x: Vec<f32> = Random::new(12).elements(4 * cols, 1e-7);
        x[3 * cols..].iter_mut().for_each(|v| *v *= 1e8);
        check(&*device, format, 4, cols, &x);
        let all_zero = vec![f16::ZERO; 2 * cols];
        check(&*device, format, 2, cols, &all_zero);
    }
}

/// NaN and infinities, alone and together with a scale that overflows before or after them: the same first error.
#[test]
fn what_a_format_cannot_hold_is_named() {
    let device = common::emulated(16, false);
    for format in formats() {
        let cols = format.block().max(256);
        let plain: Vec<f32> = Random::new(13).elements(4 * cols, 1.0);
        let with = |values: &[(usize, usize, f32)]| {
            let mut x = plain.clone();
            for (row, col, value) in values {
                x[row * cols + col] = *value;
            }
            x
        };
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            check(&*device, format, 4, cols, &with(&[(2, 7, bad)]));
            check(&*device, format, 4, cols, &with(&[(3, 0, bad), (1, cols - 1, bad)]));
            check(&*device, format, 4, cols, &with(&[(1, 9, 3e38), (2, 7, bad)]));
            check(&*device, format, 4, cols, &with(&[(1, 9, bad), (2, 7, -3e38)]));
            check(&*device, format, 4, cols, &with(&[(1, 9, bad), (1, cols - 1, -3e38)]));
        }
        check(&*device, format, 4, cols, &with(&[(2, 5, 1e37), (2, 6, -3e38), (3, 1, 3e38)]));
    }
}

#[test]
fn empty_matrices_and_unaligned_views() -> Result<(), GpuError> {
    for device in common::devices() {
        for format in [Format::INT4_G128, Format::NVFP4, Format::INT8_CHANNEL] {
            check::<f16>(&*device, format, 0, 128, &[]);
            check::<f16>(&*device, format, 3, 0, &[]);
        }
        let x: Vec<f16> = Random::new(2).elements(1 + 2 * 256, 1.0);
        let input = device.upload_new("weights", &x)?;
        let packed = PackedMatrix::allocate(&*device, "packed", Format::INT4_ASYM_G64, 2, 256)?;
        let mut list = CommandList::new("pack");
        pack(&mut list, input.slice(1..513)?, &packed)?;
        device.run(list)?;
        assert_eq!(packed.fault(&*device)?, None);
        let wide: Vec<f32> = x[1..].iter().map(|v| v.to_f32()).collect();
        let expected = encode(Format::INT4_ASYM_G64, 2, 256, &wide).expect("finite");
        assert_eq!(packed.download(&*device)?, expected);
    }
    Ok(())
}

/// The status starts anew with each pack.
#[test]
fn a_fault_does_not_stay() -> Result<(), GpuError> {
    let device = common::emulated(32, true);
    let bad = device.upload_new("weights", &[f32::NAN; 128])?;
    let good = device.upload_new("weights", &[0.5f32; 128])?;
    let packed = PackedMatrix::allocate(&*device, "packed", Format::NVFP4, 1, 128)?;
    for (input, fault) in [(&bad, Some(PackFault::NotFinite { row: 0, col: 0 })), (&good, None)] {
        let mut list = CommandList::new("pack");
        pack(&mut list, input.view(), &packed)?;
        device.run(list)?;
        assert_eq!(packed.fault(&*device)?, fault);
    }
    let expected = encode(Format::NVFP4, 1, 128, &[0.5; 128]).expect("finite");
    assert_eq!(packed.download(&*device)?, expected);
    Ok(())
}

#[test]
fn formats_and_shapes_without_groups_are_refused() {
    let device = common::emulated(32, true);
    let attempt = |format, rows, cols| {
        PackedMatrix::allocate(&*device, "packed", format, rows, cols).unwrap_err().to_string()
    };
    assert!(attempt(Format::F16, 2, 2).contains("f16 has no groups"));
    assert!(attempt(Format::INT4_G128, 2, 130).contains("130 columns do not divide"));
}
