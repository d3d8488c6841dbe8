//! Gated activations that are not fused into a product: `activation.metal`.

use std::marker::PhantomData;

use marlin_kernels::activation::{ActivationConstants, GatedActivation, GatedActivationArgs};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::lengths::expect_len;
use super::vectors::{EIGHT, starts_whole, starts_whole_mut};
use crate::{CommandList, GpuError};

const THREADS: u32 = 256;

/// The non-linearity of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateActivation {
    /// x · sigmoid(x) (SwiGLU, Shazeer 2020).
    Silu,
    /// GELU in its tanh approximation (Hendrycks & Gimpel 2016).
    GeluTanh,
    /// max(x, 0).
    Relu,
}

/// Appends out = activation(gate) · up. gate_up: `[rows, 2 · columns]`, the gate first; out: `[rows, columns]`.
///
/// # Errors
/// Views of other lengths, or more elements than one dispatch numbers.
pub fn gated_activation<T: Element>(
    list: &mut CommandList,
    activation: GateActivation,
    gate_up: View<'_, T>,
    out: ViewMut<'_, T>,
    rows: usize,
    columns: usize,
) -> Result<(), GpuError> {
    const KERNEL: &str = "gated_activation";
    expect_len(KERNEL, "gate_up", gate_up.len(), 2 * rows * columns)?;
    expect_len(KERNEL, "out", out.len(), rows * columns)?;
    let whole = columns.is_multiple_of(EIGHT) && starts_whole(&gate_up) && starts_whole_mut(&out);
    let threads = rows * columns.div_ceil(EIGHT);
    let launcher = GatedActivation {
        gate_up,
        out,
        args: GatedActivationArgs { rows: rows as u32, columns: columns as u32 },
        constants: ActivationConstants {
            activation: match activation {
                GateActivation::Silu => 0,
                GateActivation::GeluTanh => 1,
                GateActivation::Relu => 2,
            },
            whole,
        },
        elements: PhantomData,
    };
    list.launch(launcher, Grid::x(super::vectors::groups_of(KERNEL, threads, THREADS)?, THREADS));
    Ok(())
}
