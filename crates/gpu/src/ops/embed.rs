//! Rows of a table by index: `embed.metal`, and of a quantised one: `embed_weights.metal`.

use std::marker::PhantomData;

use marlin_kernels::embed::{EmbedConstants, GatherRows, GatherRowsArgs};
use marlin_kernels::embed_weights::{
    EmbedWeightsConstants, GatherWeightRows, GatherWeightRowsArgs,
};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::lengths::expect_len;
use super::linear::FragmentWeights;
use super::vectors::{EIGHT, row_threads, starts_whole, starts_whole_mut};
use crate::{Buffer, CommandList, GpuError};

/// Appends `out[i] = scale · table[ids[i]]`: token embeddings, or (with scale 1) the rows of output tokens.
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

/// Appends `out[i] = scale · table[ids[i]]` for a quantised table, such as an output matrix that embeds tokens as well.
///
/// ids: `[n]`; out: `[n, columns]`. An id that is not a row of the table gives a row of NaN.
///
/// # Errors
/// An output of another length.
pub fn gather_weight_rows<T: Element>(
    list: &mut CommandList,
    table: &FragmentWeights,
    ids: View<'_, u32>,
    scale: f32,
    out: ViewMut<'_, T>,
) -> Result<(), GpuError> {
    let layout = table.layout();
    expect_len("gather_weight_rows", "out", out.len(), ids.len() * layout.cols)?;
    let launcher = GatherWeightRows {
        codes: table.codes.view(),
        scales: table.scales.as_ref().map(Buffer::view),
        mins: table.mins.as_ref().map(Buffer::view),
        supers: table.supers.as_ref().map(Buffer::view),
        ids,
        out,
        args: GatherWeightRowsArgs {
            rows: layout.rows as u32,
            columns: layout.cols as u32,
            blocks: layout.blocks() as u32,
            groups: layout.groups() as u32,
            factor: layout.factor * scale,
        },
        constants: EmbedWeightsConstants {
            code: layout.code as u32,
            offset: layout.offset,
            scale: layout.scale as u32,
            min: layout.min as u32,
            group: table.group_constant(),
        },
        elements: PhantomData,
    };
    // A thread for each slot of a row: sixteen columns.
    let threads = (4 * layout.blocks()).next_multiple_of(64).clamp(64, 256);
    list.launch(launcher, Grid::x(ids.len() as u32, threads as u32));
    Ok(())
}
