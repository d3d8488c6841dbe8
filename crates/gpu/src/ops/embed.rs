//! Rows of a table by index: `embed.metal`.

use std::marker::PhantomData;

use marlin_kernels::embed::{EmbedConstants, GatherRows, GatherRowsArgs};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::lengths::expect_len;
use super::vectors::{EIGHT, row_threads, starts_whole, starts_whole_mut};
use crate::{CommandList, GpuError};

/// Appends out[i] = scale · table[ids[i]]: token embeddings, or (with scale 1) the rows of output tokens.
///
/// table: `[rows, columns]`; ids: `[n]`; out: `[n, columns]`. An id that is not a row of the table gives a row of NaN.
///
/// # Errors
/// Views of other lengths.
pub fn gather_rows<T: Element, U: Element>(
    list: &mut CommandList,
    table: View<'_, T>,
    ids: View<'_, u32>,
    scale: f32,
    out: ViewMut<'_, U>,
    rows: usize,
    columns: usize,
) -> Result<(), GpuError> {
    expect_len("gather_rows", "table", table.len(), rows * columns)?;
    expect_len("gather_rows", "out", out.len(), ids.len() * columns)?;
    let whole = columns.is_multiple_of(EIGHT) && starts_whole(&table) && starts_whole_mut(&out);
    let launcher = GatherRows {
        table,
        ids,
        out,
        args: GatherRowsArgs { rows: rows as u32, columns: columns as u32, scale },
        constants: EmbedConstants { whole },
        elements: PhantomData,
    };
    list.launch(launcher, Grid::x(ids.len() as u32, row_threads(columns, ids.len())));
    Ok(())
}
