//! The norms against their formula in f64.

mod common;
#[path = "common/values.rs"]
mod values;

use std::marker::PhantomData;

use half::{bf16, f16};
use marlin_gpu::ops::norm::{NormWeight, add_rms_norm, rms_norm, rms_norm_add};
use marlin_gpu::{CommandList, Device, GpuError};
use marlin_kernels::Grid;
use marlin_kernels::norm::{NormArgs, NormConstants, RmsNorm};
use values::{Float, Random, assert_near};

const EPSILON: f32 = 1e-5;

/// One norm's input.
struct Case<T> {
    rows: usize,
    columns: usize,
    x: Vec<T>,
    residual: Vec<T>,
    weight: Vec<f32>,
    offset: f32,
}

impl<T: Float> Case<T> {
    fn new(rows: usize, columns: usize, deviation: f32) -> Self {
        let mut random = Random::new((rows * 1000 + columns) as u64);
        Self {
            rows,
            columns,
            x: random.elements(rows * columns, deviation),
            residual: random.elements(rows * columns, deviation),
            weight: random.elements(columns, 1.0),
            offset: (columns % 2) as f32,
        }
    }

    /// norm(x) in f64.
    fn norm(&self, x: &[f64]) -> Vec<f64> {
        let mut out = Vec::new();
        for row in x.chunks(self.columns.max(1)) {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
            out.extend(
                row.iter()
                    .zip(&self.weight)
                    .map(|(v, w)| v * scale * (f64::from(*w) + f64::from(self.offset))),
            );
        }
        out
    }
}

fn wide<T: Float>(x: &[T]) -> Vec<f64> {
    x.iter().map(|v| f64::from(v.f32())).collect()
}

/// f32's share of the error: the sum's, the root's and three products'.
fn slack(expected: f64) -> f64 {
    expected.abs() * 1e-6
}

const SHAPES: [(usize, usize); 9] =
    [(0, 64), (1, 1), (3, 5), (2, 64), (5, 100), (1, 576), (3, 1023), (2, 4096), (300, 40)];

fn plain<T: Float>(device: &dyn Device, case: &Case<T>) -> Result<(), GpuError> {
    let (x, weight) = (device.upload_new("x", &case.x)?, device.upload_new("w", &case.weight)?);
    let y = common::output::<T>(device, case.x.len());
    let norm = NormWeight { weight: weight.view(), epsilon: EPSILON, offset: case.offset };
    let mut list = CommandList::new("norm");
    rms_norm(&mut list, x.view(), norm, y.view_mut()?, case.rows)?;
    device.run(list)?;
    let expected = case.norm(&wide(&case.x));
    for (i, (found, expected)) in device.download_all(&y)?.into_iter().zip(expected).enumerate() {
        assert_near(
            found,
            expected,
            slack(expected),
            format!("{}×{} at {i}", case.rows, case.columns),
        );
    }
    Ok(())
}

fn fused<T: Float>(device: &dyn Device, case: &Case<T>) -> Result<(), GpuError> {
    let (x, weight) = (device.upload_new("x", &case.x)?, device.upload_new("w", &case.weight)?);
    let y = common::output::<T>(device, case.x.len());
    let norm = NormWeight { weight: weight.view(), epsilon: EPSILON, offset: case.offset };

    // The residual holds the rounded sum, and y is the norm of just that.
    let residual = device.upload_new("residual", &case.residual)?;
    let mut list = CommandList::new("add, norm");
    add_rms_norm(&mut list, x.view(), residual.view_mut()?, norm, y.view_mut()?, case.rows)?;
    device.run(list)?;
    let sums: Vec<T> =
        case.x.iter().zip(&case.residual).map(|(a, b)| T::of(a.f32() + b.f32())).collect();
    assert_eq!(device.download_all(&residual)?, sums);
    let expected = case.norm(&wide(&sums));
    for (i, (found, expected)) in device.download_all(&y)?.into_iter().zip(expected).enumerate() {
        assert_near(
            found,
            expected,
            slack(expected),
            format!("{}×{} at {i}", case.rows, case.columns),
        );
    }

    let residual = device.upload_new("residual", &case.residual)?;
    let mut list = CommandList::new("norm, add");
    rms_norm_add(&mut list, x.view(), norm, residual.view_mut()?, case.rows)?;
    device.run(list)?;
    let normed = case.norm(&wide(&case.x));
    for (i, found) in device.download_all(&residual)?.into_iter().enumerate() {
        let expected = normed[i] + f64::from(case.residual[i].f32());
        let slack = slack(normed[i]) + slack(expected);
        assert_near(found, expected, slack, format!("{}×{} at {i}", case.rows, case.columns));
    }
    Ok(())
}

fn every_shape<T: Float>() -> Result<(), GpuError> {
    for device in common::devices() {
        for (rows, columns) in SHAPES {
            let case = Case::<T>::new(rows, columns, 3.0);
            plain(&*device, &case)?;
            fused(&*device, &case)?;
        }
    }
    Ok(())
}

#[test]
fn norms_of_f16() -> Result<(), GpuError> {
    every_shape::<f16>()
}

#[test]
fn norms_of_bf16() -> Result<(), GpuError> {
    every_shape::<bf16>()
}

#[test]
fn norms_of_f32() -> Result<(), GpuError> {
    every_shape::<f32>()
}

#[test]
fn magnitudes_at_the_ends_of_the_type() -> Result<(), GpuError> {
    for device in common::devices() {
        let mut largest = Case::<f16>::new(2, 96, 1.0);
        largest.x.iter_mut().for_each(|x| *x = f16::MAX.copysign(*x));
        plain(&*device, &largest)?;
        // Squares of f16's smallest are f32 numbers, and epsilon then decides.
        plain(&*device, &Case::<f16>::new(2, 96, 1e-7))?;
        plain(&*device, &Case::<f32>::new(2, 96, 1e17))?;
        let mut zeros = Case::<bf16>::new(2, 96, 1.0);
        zeros.x.fill(bf16::ZERO);
        plain(&*device, &zeros)?;
    }
    Ok(())
}

#[test]
fn a_nan_stays_in_its_row() -> Result<(), GpuError> {
    for device in common::devices() {
        let mut case = Case::<f16>::new(3, 200, 1.0);
        case.x[200 + 77] = f16::NAN;
        let (x, w) = (device.upload_new("x", &case.x)?, device.upload_new("w", &case.weight)?);
        let y = common::output::<f16>(&*device, 600);
        let norm = NormWeight { weight: w.view(), epsilon: EPSILON, offset: 0.0 };
        let mut list = CommandList::new("norm");
        rms_norm(&mut list, x.view(), norm, y.view_mut()?, 3)?;
        device.run(list)?;
        let y = device.download_all(&y)?;
        assert!(y[200..400].iter().all(|v| v.is_nan()));
        assert!(y[..200].iter().chain(&y[400..]).all(|v| v.is_finite()));
    }
    Ok(())
}

/// Rows longer than a threadgroup's registers are read twice; with few threads that is soon.
#[test]
fn rows_longer_than_the_registers() -> Result<(), GpuError> {
    for device in common::devices() {
        for columns in [64 * 32 - 1, 64 * 32 + 8, 5000] {
            let case = Case::<f16>::new(2, columns, 1.0);
            let (x, w) = (device.upload_new("x", &case.x)?, device.upload_new("w", &case.weight)?);
            let y = common::output::<f16>(&*device, case.x.len());
            let launcher = RmsNorm {
                x: x.view(),
                weight: w.view(),
                y: y.view_mut()?,
                args: NormArgs { columns: columns as u32, epsilon: EPSILON, offset: case.offset },
                constants: NormConstants { whole: columns % 8 == 0 },
                elements: PhantomData,
            };
            common::run(&*device, launcher, Grid::x(2, 64))?;
            let expected = case.norm(&wide(&case.x));
            for (found, expected) in device.download_all(&y)?.into_iter().zip(expected) {
                assert_near(found, expected, slack(expected), columns);
            }
        }
    }
    Ok(())
}

/// Views that start between vectors are read element by element.
#[test]
fn views_that_start_anywhere() -> Result<(), GpuError> {
    for device in common::devices() {
        let case = Case::<f16>::new(4, 64, 1.0);
        let shifted: Vec<f16> = [f16::NAN].into_iter().chain(case.x.iter().copied()).collect();
        let (x, w) = (device.upload_new("x", &shifted)?, device.upload_new("w", &case.weight)?);
        let y = common::output::<f16>(&*device, 3 + 4 * 64);
        let norm = NormWeight { weight: w.view(), epsilon: EPSILON, offset: case.offset };
        let mut list = CommandList::new("norm");
        let (from, to) = (x.view().slice(1, 256)?, y.view_mut()?.slice(3, 256)?);
        rms_norm(&mut list, from, norm, to, 4)?;
        device.run(list)?;
        let mut found = vec![f16::ZERO; 256];
        device.download(y.allocation(), 6, bytemuck::cast_slice_mut(&mut found))?;
        let expected = case.norm(&wide(&case.x));
        for (found, expected) in found.into_iter().zip(expected) {
            assert_near(found, expected, slack(expected), "shifted");
        }
    }
    Ok(())
}

#[test]
fn wrong_lengths_are_refused() -> Result<(), GpuError> {
    let device = common::emulated(32, true);
    let x = device.upload_new("x", &[0.0f32; 64])?;
    let y = common::output::<f32>(&*device, 63);
    let weight = device.upload_new("w", &[1.0f32; 32])?;
    let norm = NormWeight { weight: weight.view(), epsilon: EPSILON, offset: 0.0 };
    let mut list = CommandList::new("norm");
    let error = rms_norm(&mut list, x.view(), norm, y.view_mut()?, 2).unwrap_err();
    assert!(error.to_string().contains("y has 63 elements, expected 64"), "{error}");
    assert!(list.commands().is_empty());
    Ok(())
}
