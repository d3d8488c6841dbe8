//! Hadamard transforms against `formats::Hadamard`.

mod common;
#[path = "common/values.rs"]
mod values;

use half::{bf16, f16};
use marlin_formats::{Hadamard, fp8};
use marlin_gpu::ops::hadamard::{HadamardSize, hadamard, hadamard_quantise};
use marlin_gpu::ops::quantise_activations::ActivationCode;
use marlin_gpu::{CommandList, Device, GpuError};
use values::{Float, Random, assert_near};

/// The transform of `x` by the reference, in f32.
fn reference(size: usize, normalized: bool, x: &[f32]) -> Vec<f32> {
    let mut out = x.to_vec();
    Hadamard::new(size, normalized).expect("a size").apply(&mut out);
    out
}

fn transformed<T: Float>(
    device: &dyn Device,
    size: usize,
    normalized: bool,
    x: &[T],
) -> Result<Vec<T>, GpuError> {
    let buffer = device.upload_new("x", x)?;
    let mut list = CommandList::new("hadamard");
    let transform = HadamardSize::new(size)?;
    hadamard(&mut list, device.properties(), transform, normalized, buffer.view_mut()?)?;
    device.run(list)?;
    device.download_all(&buffer)
}

/// Normalised transforms of random values; the error is the type's, and f32's of some twenty additions.
fn check<T: Float>(device: &dyn Device, size: usize, batch: usize) -> Result<(), GpuError> {
    let x: Vec<T> = Random::new(size as u64).elements(size * batch, 1.0);
    let expected = reference(size, true, &x.iter().map(|v| v.f32()).collect::<Vec<_>>());
    // Where the transform takes more than one pass, elements are rounded in between as well.
    let one_pass = HadamardSize::new(size)?.is_one_pass(device.properties());
    let slack = 3e-6 + if one_pass { 0.0 } else { 5.0 * T::HALF_ULP };
    let found = transformed(device, size, true, &x)?;
    for (i, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        assert_near(found, f64::from(expected), slack, format!("size {size} × {batch} at {i}"));
    }
    Ok(())
}

fn every_size<T: Float>(sizes: impl Iterator<Item = usize> + Clone) -> Result<(), GpuError> {
    for device in common::devices() {
        for size in sizes.clone() {
            // Tiles hold several small transforms: a whole tile and a bit more, and one transform alone.
            check::<T>(&*device, size, 1)?;
            check::<T>(&*device, size, 4096 / size + 3)?;
        }
    }
    Ok(())
}

#[test]
fn powers_of_two() -> Result<(), GpuError> {
    every_size::<f16>((0..=13).map(|k| 1 << k))
}

#[test]
fn twelve_times_powers_of_two() -> Result<(), GpuError> {
    every_size::<bf16>((0..=9).map(|k| 12 << k))
}

#[test]
fn twenty_times_powers_of_two() -> Result<(), GpuError> {
    every_size::<f32>((0..=8).map(|k| 20 << k))
}

/// Beyond one tile: passes over runs.
#[test]
fn sizes_beyond_a_tile() -> Result<(), GpuError> {
    for device in common::devices() {
        check::<f32>(&*device, 16384, 1)?;
        check::<f16>(&*device, 12 << 10, 2)?;
        check::<f16>(&*device, 20 << 9, 1)?;
    }
    let device = common::emulated(32, false);
    check::<f32>(&*device, 1 << 18, 1)
}

/// Sums of small integers are exact in f32, so every bit must be right, and twice the transform is the identity times the size.
#[test]
fn integers_are_exact() -> Result<(), GpuError> {
    for device in common::devices() {
        for size in [2, 128, 4096, 8192, 12, 96, 3072, 6144, 20, 80, 2560, 5120, 12288, 16384] {
            let mut random = Random::new(size as u64);
            let x: Vec<f32> = (0..size).map(|_| random.below(17) as f32 - 8.0).collect();
            let once = transformed(&*device, size, false, &x)?;
            assert_eq!(once, reference(size, false, &x), "size {size}");
            let twice = transformed(&*device, size, false, &once)?;
            let scaled: Vec<f32> = x.iter().map(|v| v * size as f32).collect();
            assert_eq!(twice, scaled, "size {size}");
        }
    }
    Ok(())
}

#[test]
fn an_empty_batch_and_a_view_that_starts_anywhere() -> Result<(), GpuError> {
    for device in common::devices() {
        assert_eq!(transformed::<f16>(&*device, 128, true, &[])?, []);
        let x: Vec<f32> = Random::new(1).elements(1 + 3 * 32, 1.0);
        let buffer = device.upload_new("x", &x)?;
        let mut list = CommandList::new("hadamard");
        let view = buffer.view_mut()?.slice(1, 96)?;
        hadamard(&mut list, device.properties(), HadamardSize::new(32)?, true, view)?;
        device.run(list)?;
        let found = device.download_all(&buffer)?;
        assert_eq!(found[0], x[0]);
        for (found, expected) in found[1..].iter().zip(reference(32, true, &x[1..])) {
            assert_near(*found, f64::from(expected), 1e-6, "shifted");
        }
    }
    Ok(())
}

/// The largest values of f16 do not overflow a normalised transform, even in several passes.
#[test]
fn large_values_stay_finite() -> Result<(), GpuError> {
    let device = common::emulated(32, true);
    for size in [4096, 16384] {
        let mut random = Random::new(7);
        let x: Vec<f16> =
            (0..size).map(|_| f16::from_f32(1e4f32.copysign(random.uniform()))).collect();
        let expected = reference(size, true, &x.iter().map(|v| v.f32()).collect::<Vec<_>>());
        for (found, expected) in transformed(&*device, size, true, &x)?.into_iter().zip(expected) {
            assert!(expected.abs() < 65504.0);
            assert_near(found, f64::from(expected), 1e4 * 5.0 / 2048.0, size);
        }
    }
    Ok(())
}

/// Codes and scales of the transform. The transform itself is only equal to the reference but for f32's rounding, so a code may be
/// its neighbour's where the value lies between the two.
fn check_quantised<T: Float>(
    device: &dyn Device,
    size: usize,
    batch: usize,
    code: ActivationCode,
    group: usize,
) -> Result<(), GpuError> {
    let x: Vec<T> = Random::new(size as u64).elements(size * batch, 1.0);
    let input = device.upload_new("x", &x)?;
    let codes = common::output::<u8>(device, x.len());
    let scales = common::output::<f32>(device, x.len() / group);
    let mut list = CommandList::new("hadamard, quantise");
    let transform = HadamardSize::new(size)?;
    let (from, to, to_scales) = (input.view(), codes.view_mut()?, scales.view_mut()?);
    let properties = device.properties();
    hadamard_quantise(&mut list, properties, transform, true, code, group, from, to, to_scales)?;
    device.run(list)?;
    assert_eq!(device.download_all(&input)?, x, "the input is left alone");
    let expected = reference(size, true, &x.iter().map(|v| v.f32()).collect::<Vec<_>>());
    let (codes, scales) = (device.download_all(&codes)?, device.download_all(&scales)?);
    let reach = if code == ActivationCode::Int8 { 127.0 } else { 448.0 };
    for (g, (values, codes)) in expected.chunks(group).zip(codes.chunks(group)).enumerate() {
        let scale = values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / reach;
        assert!((scales[g] - scale).abs() <= 1e-5 * scale, "scale {g}: {} {scale}", scales[g]);
        for (value, code_found) in values.iter().zip(codes) {
            let (decoded, step) = match code {
                ActivationCode::Int8 => (f32::from(*code_found as i8), 1.0),
                ActivationCode::E4m3 => {
                    let decoded = fp8::decode_e4m3(*code_found);
                    (decoded, (decoded.abs() / 8.0).max(1.0 / 512.0))
                }
            };
            let error = (decoded * scales[g] - value).abs();
            assert!(
                error <= 0.501 * step * scale + 1e-5,
                "{value} became {decoded} × {}",
                scales[g]
            );
        }
    }
    Ok(())
}

#[test]
fn transforms_fused_with_quantisation() -> Result<(), GpuError> {
    use ActivationCode::{E4m3, Int8};
    for device in common::devices() {
        check_quantised::<f16>(&*device, 128, 35, Int8, 128)?;
        check_quantised::<f16>(&*device, 4096, 2, Int8, 32)?;
        check_quantised::<bf16>(&*device, 4096, 1, E4m3, 128)?;
        check_quantised::<f32>(&*device, 8192, 1, Int8, 64)?;
        check_quantised::<f16>(&*device, 96, 70, Int8, 32)?;
        check_quantised::<f16>(&*device, 3072, 3, E4m3, 128)?;
        check_quantised::<bf16>(&*device, 80, 70, Int8, 16)?;
        check_quantised::<f16>(&*device, 2560, 3, Int8, 128)?;
        check_quantised::<f16>(&*device, 5120, 1, Int8, 16)?;
    }
    Ok(())
}

#[test]
fn sizes_without_a_transform_are_refused() {
    for size in [0, 3, 10, 14 * 1024, 28 * 8] {
        let error = HadamardSize::new(size).unwrap_err().to_string();
        assert!(error.contains(&format!("no transform of size {size}")), "{error}");
        assert!(Hadamard::new(size, true).is_err());
    }
    let device = common::emulated(32, true);
    let error = transformed(&*device, 128, true, &[0.0f32; 192]).unwrap_err().to_string();
    assert!(error.contains("192 elements do not divide into transforms of 128"), "{error}");
}
