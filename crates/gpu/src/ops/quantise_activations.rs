//! Activations as 8-bit codes: `quantise_activations.metal`.

use std::marker::PhantomData;

use marlin_kernels::quantise_activations::{
    QuantiseActivationsConstants, QuantiseArgs, QuantiseGroups, QuantiseTokens,
};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::lengths::{expect_len, refuse};
use super::vectors::{groups_of, row_threads, starts_whole, starts_whole_mut};
use crate::{CommandList, GpuError};

const THREADS: u32 = 256;
/// Values that a thread takes.
const SIXTEEN: usize = 16;

/// What a value becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationCode {
    /// Two's complement, −127…127.
    Int8,
    /// E4M3FN.
    E4m3,
}

impl ActivationCode {
    pub(super) const fn constant(self) -> u32 {
        match self {
            Self::Int8 => 0,
            Self::E4m3 => 1,
        }
    }
}

/// Which values share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationGroup {
    /// A token's.
    Token,
    /// So many consecutive ones of a token: 16, 32, 64 or 128.
    Size(usize),
}

impl ActivationGroup {
    /// Scales of a row of `columns`.
    pub const fn scales(self, columns: usize) -> usize {
        match self {
            Self::Token => 1,
            Self::Size(size) => columns.div_ceil(size),
        }
    }
}

/// That `size` is one that the kernels have.
pub(super) fn check_group(kernel: &str, size: usize) -> Result<(), GpuError> {
    match size {
        16 | 32 | 64 | 128 => Ok(()),
        _ => Err(refuse(kernel, format!("groups of {size}, expected 16, 32, 64 or 128"))),
    }
}

/// Appends codes = round(x / scale) with scale = max|x| / 127 (int8) or / 448 (E4M3).
///
/// x, codes: `[rows, columns]`; scales: `[rows, group.scales(columns)]`. A group with an infinity or NaN gets the scale NaN.
///
/// # Errors
/// Views of other lengths, another group size, more elements than one dispatch numbers.
#[allow(clippy::too_many_arguments, reason = "the kernel's own operands")]
pub fn quantise_activations<T: Element>(
    list: &mut CommandList,
    code: ActivationCode,
    group: ActivationGroup,
    x: View<'_, T>,
    codes: ViewMut<'_, u8>,
    scales: ViewMut<'_, f32>,
    rows: usize,
    columns: usize,
) -> Result<(), GpuError> {
    const KERNEL: &str = "quantise_activations";
    expect_len(KERNEL, "x", x.len(), rows * columns)?;
    expect_len(KERNEL, "codes", codes.len(), x.len())?;
    if let ActivationGroup::Size(size) = group {
        check_group(KERNEL, size)?;
    }
    expect_len(KERNEL, "scales", scales.len(), rows * group.scales(columns))?;
    let whole = columns.is_multiple_of(SIXTEEN) && starts_whole(&x) && starts_whole_mut(&codes);
    let args = QuantiseArgs { rows: rows as u32, columns: columns as u32 };
    let code = code.constant();
    let elements = PhantomData;
    match group {
        ActivationGroup::Token => {
            // The group is the other kernel's; any will do.
            let constants = QuantiseActivationsConstants { code, group: 16, whole };
            let grid = Grid::x(rows as u32, row_threads(columns, rows));
            list.launch(QuantiseTokens { x, codes, scales, args, constants, elements }, grid);
        }
        ActivationGroup::Size(size) => {
            let constants = QuantiseActivationsConstants { code, group: size as u32, whole };
            let threads = rows * columns.div_ceil(size) * (size / SIXTEEN);
            let grid = Grid::x(groups_of(KERNEL, threads, THREADS)?, THREADS);
            list.launch(QuantiseGroups { x, codes, scales, args, constants, elements }, grid);
        }
    }
    Ok(())
}
