//! The reduction after attention over a context in parts: the kernel `attention_reduce`.

use std::marker::PhantomData;

use marlin_kernels::attention::{AttentionConstants, AttentionReduce, AttentionReduceArgs};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::lengths::refuse;
use crate::{CommandList, GpuError};

/// What every device has; also what leaves room for two threadgroups on a core of an M-series GPU.
pub(super) const THREADGROUP_BYTES: u32 = 32 << 10;

/// A reduction depends on the head's size alone: one pipeline serves every cache.
pub(super) const REDUCE_CONSTANTS: AttentionConstants = AttentionConstants {
    head_dim: 0,
    kv_format: 0,
    blocks_per_page: 0,
    row_heads: 1,
    row_tokens: 1,
    columns: 1,
    split: true,
    softcap: false,
};

/// Threads of a reduction.
pub(super) const REDUCE_THREADS: u32 = 512;

/// Floats of threadgroup memory of a reduction.
pub(super) fn reduce_shared(splits: u32) -> u32 {
    4 * REDUCE_THREADS + 2 * splits
}

/// The most parts of a context: their weights pass through a reduction's threadgroup memory.
pub const MAX_SPLITS: u32 = (THREADGROUP_BYTES / 4 - 4 * REDUCE_THREADS) / 2;

/// Appends the reduction after a context in so many parts, whose results are there.
pub(super) fn encode_reduction<T: Element>(
    commands: &mut CommandList,
    (splits, partial): (u32, View<'_, f32>),
    out: ViewMut<'_, T>,
    out_stride: u32,
    tokens: u32,
    heads: u32,
    head_dim: u32,
) {
    commands.launch(
        AttentionReduce {
            partial,
            out,
            args: AttentionReduceArgs { heads, splits, out_stride, unused: 0 },
            shared: reduce_shared(splits),
            constants: AttentionConstants { head_dim, ..REDUCE_CONSTANTS },
            elements: PhantomData,
        },
        Grid::xy(
            heads,
            tokens,
            // Few splits leave most threads of a large threadgroup without any.
            if splits <= 32 { REDUCE_THREADS / 4 } else { REDUCE_THREADS },
        ),
    );
}

/// Floats that a split context needs for its partial results; 1 without a split.
pub fn workspace_len(tokens: u32, heads: u32, splits: u32, head_dim: u32) -> usize {
    if splits <= 1 {
        return 1;
    }
    tokens as usize * heads as usize * splits as usize * (head_dim as usize + 2)
}

/// Refuses no parts, more than there can be, and a workspace too small for those of so many tokens and heads of so many values.
pub(super) fn check_splits(
    kernel: &str,
    splits: u32,
    (tokens, heads, head_dim): (u32, u32, u32),
    workspace: usize,
) -> Result<(), GpuError> {
    if splits == 0 || splits > MAX_SPLITS {
        return Err(refuse(kernel, format!("{splits} splits, expected 1 to {MAX_SPLITS}")));
    }
    let needed = workspace_len(tokens, heads, splits, head_dim);
    if workspace < needed {
        return Err(refuse(
            kernel,
            format!("a workspace of {workspace} floats, expected {needed}"),
        ));
    }
    Ok(())
}
