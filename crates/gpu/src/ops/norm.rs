//! Root-mean-square norms: `norm.metal`.

use std::marker::PhantomData;

use marlin_kernels::norm::{AddRmsNorm, NormArgs, NormConstants, RmsNorm, RmsNormAdd};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::lengths::expect_len;
use super::vectors::{EIGHT, row_threads, starts_whole, starts_whole_mut};
use crate::{CommandList, GpuError};

/// `norm(x) = x / sqrt(mean(x²) + epsilon) · (offset + weight)` (Zhang & Sennrich 2019).
#[derive(Clone, Copy)]
pub struct NormWeight<'a> {
    /// One factor a column.
    pub weight: View<'a, f32>,
    /// Added to the mean square.
    pub epsilon: f32,
    /// Added to the weight: 1 for Gemma's files, otherwise 0.
    pub offset: f32,
}

impl NormWeight<'_> {
    fn columns(&self) -> usize {
        self.weight.len()
    }

    fn args(&self) -> NormArgs {
        NormArgs { columns: self.columns() as u32, epsilon: self.epsilon, offset: self.offset }
    }

    /// Constants, where the rows themselves start whole or not.
    fn constants(&self, rows_whole: bool) -> NormConstants {
        let columns_whole = self.columns().is_multiple_of(EIGHT);
        NormConstants { whole: rows_whole && columns_whole && starts_whole(&self.weight) }
    }

    fn grid(&self, rows: usize) -> Grid {
        Grid::x(rows as u32, row_threads(self.columns(), rows))
    }
}

/// Appends y = norm(x). x, y: `[rows, columns]`; the columns are the weight's.
///
/// # Errors
/// Views of other lengths.
pub fn rms_norm<T: Element>(
    list: &mut CommandList,
    x: View<'_, T>,
    norm: NormWeight<'_>,
    y: ViewMut<'_, T>,
    rows: usize,
) -> Result<(), GpuError> {
    expect_len("rms_norm", "x", x.len(), rows * norm.columns())?;
    expect_len("rms_norm", "y", y.len(), x.len())?;
    let constants = norm.constants(starts_whole(&x) && starts_whole_mut(&y));
    let launcher =
        RmsNorm { x, weight: norm.weight, y, args: norm.args(), constants, elements: PhantomData };
    list.launch(launcher, norm.grid(rows));
    Ok(())
}

/// Appends residual += x, y = norm(residual). x, residual, y: `[rows, columns]`.
///
/// # Errors
/// Views of other lengths.
pub fn add_rms_norm<T: Element>(
    list: &mut CommandList,
    x: View<'_, T>,
    residual: ViewMut<'_, T>,
    norm: NormWeight<'_>,
    y: ViewMut<'_, T>,
    rows: usize,
) -> Result<(), GpuError> {
    expect_len("add_rms_norm", "x", x.len(), rows * norm.columns())?;
    expect_len("add_rms_norm", "residual", residual.len(), x.len())?;
    expect_len("add_rms_norm", "y", y.len(), x.len())?;
    let whole = starts_whole(&x) && starts_whole_mut(&residual) && starts_whole_mut(&y);
    let launcher = AddRmsNorm {
        x,
        residual,
        weight: norm.weight,
        y,
        args: norm.args(),
        constants: norm.constants(whole),
        elements: PhantomData,
    };
    list.launch(launcher, norm.grid(rows));
    Ok(())
}

/// Appends residual += norm(x), as Gemma 2 and 3 do after attention and feed-forward. x, residual: `[rows, columns]`.
///
/// # Errors
/// Views of other lengths.
pub fn rms_norm_add<T: Element>(
    list: &mut CommandList,
    x: View<'_, T>,
    norm: NormWeight<'_>,
    residual: ViewMut<'_, T>,
    rows: usize,
) -> Result<(), GpuError> {
    expect_len("rms_norm_add", "x", x.len(), rows * norm.columns())?;
    expect_len("rms_norm_add", "residual", residual.len(), x.len())?;
    let constants = norm.constants(starts_whole(&x) && starts_whole_mut(&residual));
    let launcher = RmsNormAdd {
        x,
        weight: norm.weight,
        residual,
        args: norm.args(),
        constants,
        elements: PhantomData,
    };
    list.launch(launcher, norm.grid(rows));
    Ok(())
}
