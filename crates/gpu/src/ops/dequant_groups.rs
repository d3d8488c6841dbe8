//! Group formats back to floats: `dequant_groups.metal`.

use std::marker::PhantomData;

use marlin_formats::{Format, GroupFormat};
use marlin_kernels::dequant_groups::{DequantGroups, DequantGroupsArgs, DequantGroupsConstants};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::lengths::{expect_len, refuse};
use super::pack::{code_constant, scale_constant};
use super::vectors::{EIGHT, groups_of, starts_whole, starts_whole_mut};
use crate::{CommandList, GpuError};

const KERNEL: &str = "dequant_groups";
const THREADS: u32 = 256;

/// A matrix of a group format in device memory, in the canonical buffers of [`marlin_formats::group`].
#[derive(Clone, Copy)]
pub struct GroupMatrix<'a> {
    /// Its format.
    pub format: Format,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Codes: [`marlin_formats::Matrix::data`].
    pub data: View<'a, u8>,
    /// Scales: [`marlin_formats::Matrix::scales`].
    pub scales: View<'a, u8>,
    /// Zero points, where the format has them: [`marlin_formats::Matrix::zeros`].
    pub zeros: Option<View<'a, u8>>,
    /// The factor of the whole matrix, where the format has one.
    pub tensor_scale: Option<View<'a, f32>>,
}

impl GroupMatrix<'_> {
    /// The group format, if the buffers are as long as it says.
    fn checked(&self) -> Result<GroupFormat, GpuError> {
        let Format::Group(group) = self.format else {
            return Err(refuse(KERNEL, format!("{} has no groups", self.format)));
        };
        let sizes =
            self.format.sizes(self.rows, self.cols).map_err(|e| refuse(KERNEL, e.to_string()))?;
        expect_len(KERNEL, "data", self.data.len(), sizes.data)?;
        expect_len(KERNEL, "scales", self.scales.len(), sizes.scales)?;
        expect_len(KERNEL, "zeros", self.zeros.map_or(0, |z| z.len()), sizes.zeros)?;
        let factors = usize::from(group.tensor_scale);
        expect_len(KERNEL, "tensor_scale", self.tensor_scale.map_or(0, |s| s.len()), factors)?;
        Ok(group)
    }
}

/// Appends the values of `matrix`, `[rows, cols]`: in f32 those of [`marlin_formats::Matrix::decode_row`] to the bit, otherwise
/// those rounded.
///
/// # Errors
/// Buffers of other lengths than the format says, more elements than one dispatch numbers.
pub fn dequant_groups<T: Element>(
    list: &mut CommandList,
    matrix: GroupMatrix<'_>,
    out: ViewMut<'_, T>,
) -> Result<(), GpuError> {
    let group = matrix.checked()?;
    let GroupMatrix { format, rows, cols, data, scales, zeros, tensor_scale } = matrix;
    expect_len(KERNEL, "out", out.len(), rows * cols)?;
    let (grid_rows, grid_cols) = group.grid(rows, cols);
    let group_cols = group.group_cols(cols);
    let zero_bytes = zeros.map_or(0, |z| z.len()).checked_div(grid_rows).unwrap_or(0);
    let launcher = DequantGroups {
        data,
        scales,
        zeros,
        tensor_scale,
        out,
        args: DequantGroupsArgs {
            rows: rows as u32,
            columns: cols as u32,
            group_rows: group.group_rows() as u32,
            group_columns: group_cols as u32,
            grid_columns: grid_cols as u32,
            row_bytes: format.row_bytes(cols) as u32,
            zero_bytes: zero_bytes as u32,
        },
        constants: DequantGroupsConstants {
            code: code_constant(group.code),
            bits: group.code.bits(),
            scale: scale_constant(group.scale),
            zero: group.zero,
            tensor_scale: group.tensor_scale,
            whole: cols.is_multiple_of(EIGHT) && starts_whole(&data) && starts_whole_mut(&out),
            eights_share: group_cols.is_multiple_of(EIGHT) || grid_cols <= 1,
        },
        elements: PhantomData,
    };
    let threads = rows * cols.div_ceil(EIGHT);
    list.launch(launcher, Grid::x(groups_of(KERNEL, threads, THREADS)?, THREADS));
    Ok(())
}
