//! Gated activations against their formulas in f64.

mod common;
#[path = "common/values.rs"]
mod values;

use half::{bf16, f16};
use marlin_gpu::ops::activation::{GateActivation, gated_activation};
use marlin_gpu::{CommandList, GpuError};
use values::{Float, Random, assert_near};

fn expected(activation: GateActivation, gate: f64) -> f64 {
    match activation {
        GateActivation::Silu => gate / (1.0 + (-gate).exp()),
        GateActivation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
            0.5 * gate * (1.0 + inner.tanh())
        }
        GateActivation::Relu => gate.max(0.0),
    }
}

/// `[rows, 2 · columns]`, gates first; some gates so large that the exponential overflows or vanishes.
fn gates_and_ups<T: Float>(rows: usize, columns: usize) -> Vec<T> {
    let mut random = Random::new((rows + 31 * columns) as u64);
    let mut values: Vec<T> = random.elements(2 * rows * columns, 2.0);
    for row in values.chunks_mut((2 * columns).max(1)) {
        for (x, extreme) in row.iter_mut().zip([0.0, -0.0, 90.0, -90.0, 1e4, -1e4, 6e-8]) {
            *x = T::of(extreme);
        }
    }
    values
}

fn every_shape<T: Float>() -> Result<(), GpuError> {
    use GateActivation::{GeluTanh, Relu, Silu};
    for device in common::devices() {
        for (rows, columns) in [(0, 8), (1, 8), (3, 13), (2, 256), (7, 1000)] {
            let values = gates_and_ups::<T>(rows, columns);
            let gate_up = device.upload_new("gate and up", &values)?;
            for activation in [Silu, GeluTanh, Relu] {
                let out = common::output::<T>(&*device, rows * columns);
                let mut list = CommandList::new("activation");
                let (from, to) = (gate_up.view(), out.view_mut()?);
                gated_activation(&mut list, activation, from, to, rows, columns)?;
                device.run(list)?;
                for (i, found) in device.download_all(&out)?.into_iter().enumerate() {
                    let at = i / columns * 2 * columns + i % columns;
                    let (gate, up) = (values[at].f32(), values[at + columns].f32());
                    let value = expected(activation, f64::from(gate)) * f64::from(up);
                    // 1 + tanh cancels where the gate is negative: f32's rounding there is of 1, not of the sum.
                    let slack = 3e-7 * (f64::from(gate) * f64::from(up)).abs();
                    assert_near(found, value, slack, format!("{activation:?} of {gate}"));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn gated_activations_of_f16() -> Result<(), GpuError> {
    every_shape::<f16>()
}

#[test]
fn gated_activations_of_bf16() -> Result<(), GpuError> {
    every_shape::<bf16>()
}

#[test]
fn gated_activations_of_f32() -> Result<(), GpuError> {
    every_shape::<f32>()
}

#[test]
fn wrong_lengths_are_refused() -> Result<(), GpuError> {
    let device = common::emulated(32, true);
    let gate_up = device.upload_new("gate and up", &[0.0f32; 31])?;
    let out = common::output::<f32>(&*device, 16);
    let mut list = CommandList::new("activation");
    let (from, to) = (gate_up.view(), out.view_mut()?);
    let error = gated_activation(&mut list, GateActivation::Silu, from, to, 2, 8).unwrap_err();
    assert!(error.to_string().contains("gate_up has 31 elements, expected 32"), "{error}");
    Ok(())
}
