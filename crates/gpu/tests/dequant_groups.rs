//! Dequantisation of canonical buffers: the bits of `Matrix::decode_row`.

mod common;
#[path = "common/values.rs"]
mod values;

use half::{bf16, f16};
use marlin_formats::{Code, Format, Group, GroupFormat, OwnedMatrix, ScaleType, encode};
use marlin_gpu::ops::dequant_groups::{GroupMatrix, dequant_groups};
use marlin_gpu::ops::pack::{PackedMatrix, pack};
use marlin_gpu::{Buffer, CommandList, Device, GpuError};
use values::{Float, Random};

/// Every named group format, and some without a name.
fn formats() -> Vec<Format> {
    let format = |code, group, scale, zero| {
        Format::Group(GroupFormat { code, group, scale, zero, tensor_scale: false })
    };
    let mut out: Vec<Format> =
        Format::ALL.into_iter().filter(|f| matches!(f, Format::Group(_))).collect();
    out.extend([
        format(Code::Int3, Group::Size(24), ScaleType::F16, true),
        format(Code::Int8, Group::Block { rows: 2, cols: 5 }, ScaleType::F16, true),
        format(Code::Int2, Group::Channel, ScaleType::E4M3, true),
        format(Code::Fp8, Group::Size(32), ScaleType::E8M0, false),
    ]);
    out
}

fn dequantised<T: Float>(device: &dyn Device, matrix: &OwnedMatrix) -> Result<Vec<T>, GpuError> {
    let buffer = |bytes: &[u8]| device.upload_new("part", bytes);
    let (data, scales) = (buffer(&matrix.data)?, buffer(&matrix.scales)?);
    let Format::Group(group) = matrix.format else { unreachable!("a group format") };
    let zeros = group.zero.then(|| buffer(&matrix.zeros)).transpose()?;
    let factor = device.upload_new("factor", &[matrix.tensor_scale])?;
    let out = common::output::<T>(device, matrix.rows * matrix.cols);
    let mut list = CommandList::new("dequant");
    let on_device = GroupMatrix {
        format: matrix.format,
        rows: matrix.rows,
        cols: matrix.cols,
        data: data.view(),
        scales: scales.view(),
        zeros: zeros.as_ref().map(Buffer::view),
        tensor_scale: group.tensor_scale.then(|| factor.view()),
    };
    dequant_groups(&mut list, on_device, out.view_mut()?)?;
    device.run(list)?;
    device.download_all(&out)
}

/// The same bits; NaN for NaN.
#[track_caller]
fn assert_equal<T: Float>(found: &[T], expected: &[f32], what: impl std::fmt::Display) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (found, expected) = (found.f32(), T::of(*expected).f32());
        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(same, "{what} at {i}: {found:e}, expected {expected:e}");
    }
}

fn every_format<T: Float>() -> Result<(), GpuError> {
    for device in common::devices() {
        for format in formats() {
            let columns = match format.block() {
                1 => vec![1, 77, 160],
                block => vec![block, 5 * block],
            };
            for cols in columns {
                let values: Vec<f32> = Random::new(cols as u64).elements(3 * cols, 2.0);
                let matrix = encode(format, 3, cols, &values).expect("finite values");
                let found = dequantised::<T>(&*device, &matrix)?;
                assert_equal(&found, &matrix.decode(), format!("{format} × {cols}"));
            }
        }
    }
    Ok(())
}

#[test]
fn to_f16() -> Result<(), GpuError> {
    every_format::<f16>()
}

#[test]
fn to_bf16() -> Result<(), GpuError> {
    every_format::<bf16>()
}

#[test]
fn to_f32() -> Result<(), GpuError> {
    every_format::<f32>()
}

/// Every code with every byte of a scale: NaN, infinities, subnormals and negative zeros included.
#[test]
fn any_bytes_decode_as_on_the_host() -> Result<(), GpuError> {
    let device = common::emulated(32, false);
    for format in formats() {
        let mut random = Random::new(21);
        let (rows, cols) = (16, format.block().max(240) / format.block() * format.block());
        let zero = encode(format, rows, cols, &vec![0.0; rows * cols]).expect("zeros");
        let mut bytes = |n: usize| (0..n).map(|_| random.bits() as u8).collect::<Vec<u8>>();
        let matrix = OwnedMatrix {
            data: bytes(zero.data.len()),
            scales: bytes(zero.scales.len()),
            zeros: bytes(zero.zeros.len()),
            ..zero
        };
        let found = dequantised::<f32>(&*device, &matrix)?;
        assert_equal(&found, &matrix.decode(), format);
    }
    Ok(())
}

/// From floats to codes and back without the host, the tensor's scale included.
#[test]
fn what_was_packed_on_the_device() -> Result<(), GpuError> {
    for device in common::devices() {
        for format in [Format::NVFP4, Format::INT4_ASYM_G64, Format::FP4_G128] {
            let values: Vec<f32> = Random::new(4).elements(5 * 256, 1.0);
            let input = device.upload_new("weights", &values)?;
            let packed = PackedMatrix::allocate(&*device, "packed", format, 5, 256)?;
            let out = common::output::<f32>(&*device, 5 * 256);
            let mut list = CommandList::new("pack, dequant");
            pack(&mut list, input.view(), &packed)?;
            let matrix = GroupMatrix {
                format,
                rows: 5,
                cols: 256,
                data: packed.data().view(),
                scales: packed.scales().view(),
                zeros: packed.zeros().map(Buffer::view),
                tensor_scale: packed.tensor_scale().map(Buffer::view),
            };
            dequant_groups(&mut list, matrix, out.view_mut()?)?;
            device.run(list)?;
            let expected = encode(format, 5, 256, &values).expect("finite values").decode();
            assert_equal(&device.download_all(&out)?, &expected, format);
        }
    }
    Ok(())
}

#[test]
fn wrong_lengths_are_refused() -> Result<(), GpuError> {
    let device = common::emulated(32, true);
    let bytes = device.upload_new("bytes", &[0u8; 64])?;
    let out = common::output::<f32>(&*device, 128);
    let matrix = GroupMatrix {
        format: Format::INT4_G128,
        rows: 1,
        cols: 128,
        data: bytes.view(),
        scales: bytes.slice(0..3)?,
        zeros: None,
        tensor_scale: None,
    };
    let mut list = CommandList::new("dequant");
    let error = dequant_groups(&mut list, matrix, out.view_mut()?).unwrap_err().to_string();
    assert!(error.contains("scales has 3 elements, expected 2"), "{error}");
    Ok(())
}
