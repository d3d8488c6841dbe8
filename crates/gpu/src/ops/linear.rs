//! Products with quantised matrices: `gemv` and `gemm` of `marlin-kernels`.

use marlin_formats::fragment::{BLOCK_ROWS, FragmentLayout};
use marlin_kernels::gemm::{Gemm, GemmArgs, GemmConstants, GemmReduce};
use marlin_kernels::gemv::{Gemv, GemvArgs, GemvConstants};
use marlin_kernels::signature::ElementType;
use marlin_kernels::{Element, Grid, View, ViewMut};

pub use super::fragment_weights::FragmentWeights;
use super::gemm_batch;
pub use super::gemm_shape::GemmShape;
use crate::{Buffer, CommandList, DeviceProperties, GpuError};

/// What follows the sums.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// `[rows]` (gate and up: each padded to a multiple of 16).
    pub bias: Option<View<'a, f32>>,
    /// The weights are gate and up: y = activation(gate) · up.
    pub gated: Option<Activation>,
    /// y is added to: the residual.
    pub accumulate: bool,
    /// Elements from one token's y to the next one's; 0 where there are just the rows.
    pub stride: usize,
}

/// What a product does for the products before and after it.
pub struct Neighbours<'a, T> {
    /// This product's x was written by a product with `next`: a norm that two products share, without a dispatch of its
    /// own. The one before it writes its result times the norm's weight, and the one after it divides its sums by the root
    /// of the mean square.
    pub pending: Option<PendingNorm<'a>>,
    /// The norm that comes after this product.
    pub next: Option<NextNorm<'a, T>>,
}

impl<T> Default for Neighbours<'_, T> {
    fn default() -> Self {
        Self { pending: None, next: None }
    }
}

/// What is left to do of a norm.
#[derive(Clone, Copy)]
pub struct PendingNorm<'a> {
    /// `[tokens, columns / 16]`, rounded up: the squares of each 16 values.
    pub squares: View<'a, f32>,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// A norm that is begun.
#[derive(Clone, Copy)]
pub struct NextNorm<'a, T> {
    /// One factor a row.
    pub weight: View<'a, f32>,
    /// Added to the weight.
    pub offset: f32,
    /// `[tokens, rows]`: y times the weight.
    pub scaled: ViewMut<'a, T>,
    /// `[tokens, rows / 16]`, rounded up.
    pub squares: ViewMut<'a, f32>,
}

/// Tokens that products can share a norm of.
pub const SHARED_NORM_TOKENS: usize = 8;

/// The activation of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU with tanh.
    Gelu,
}

/// The sizes of a product and where they come from, checked.
pub(super) struct Sizes {
    pub(super) tokens: u32,
    pub(super) rows: u32,
    pub(super) columns: u32,
    pub(super) y_stride: u32,
}

pub(super) fn sizes<T: Element>(
    weights: &FragmentWeights,
    x: &View<'_, T>,
    y: &ViewMut<'_, T>,
    tokens: usize,
    epilogue: &Epilogue<'_>,
) -> Result<Sizes, GpuError> {
    let FragmentLayout { rows, cols, .. } = weights.layout;
    let refuse = |reason: String| Err(GpuError::Launch { kernel: "linear".to_owned(), reason });
    let parts = if epilogue.gated.is_some() { 2 } else { 1 };
    if weights.parts != parts {
        return refuse(format!("{} matrices, expected {parts}", weights.parts));
    }
    if x.len() != tokens * cols {
        return refuse(format!("x has {} elements, expected {tokens} × {cols}", x.len()));
    }
    let stride = if epilogue.stride == 0 { rows } else { epilogue.stride };
    let needed = tokens.checked_sub(1).map_or(0, |before| before * stride + rows);
    if stride < rows || (epilogue.stride == 0 && y.len() != needed) || y.len() < needed {
        return refuse(format!(
            "y has {} elements, expected {tokens} × {rows}, {stride} apart",
            y.len()
        ));
    }
    if let Some(bias) = &epilogue.bias {
        let expected = if parts == 2 { rows.next_multiple_of(BLOCK_ROWS) + rows } else { rows };
        if bias.len() < expected {
            return refuse(format!("bias has {} elements, expected {expected}", bias.len()));
        }
    }
    Ok(Sizes {
        tokens: tokens as u32,
        rows: rows as u32,
        columns: cols as u32,
        y_stride: stride as u32,
    })
}

/// The partial sums of a product that is split between threadgroups, if it is.
pub(super) fn check_partial<'a>(
    kernel: &str,
    partial: Option<ViewMut<'a, f32>>,
    splits: u32,
    gated: bool,
    rows: usize,
    tokens: usize,
) -> Result<Option<ViewMut<'a, f32>>, GpuError> {
    let parts = if gated { 2 } else { 1 };
    let needed = splits as usize * parts * rows * tokens;
    match partial {
        _ if splits == 1 => Ok(None),
        Some(partial) if partial.len() >= needed => Ok(Some(partial)),
        found => {
            let found = found.map_or(0, |p| p.len());
            let reason = format!("{found} partial sums, expected {needed}");
            Err(GpuError::Launch { kernel: kernel.to_owned(), reason })
        }
    }
}

pub(super) fn activation(epilogue: &Epilogue<'_>) -> u32 {
    u32::from(epilogue.gated == Some(Activation::Gelu))
}

/// Appends y = W · x for `tokens` rows of x, by the kernel that suits: `gemm` where SIMD-groups have
/// 32 threads and the elements are 16 bits wide, otherwise `gemv`.
///
/// x: `[tokens, columns]`, y: `[tokens, rows]`.
///
/// # Errors
/// Lengths that do not fit the weights.
pub fn linear<T: Element>(
    list: &mut CommandList,
    properties: &DeviceProperties,
    weights: &FragmentWeights,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
    tokens: usize,
    epilogue: Epilogue<'_>,
) -> Result<(), GpuError> {
    let fragments = properties.simd_width == 32 && T::TYPE != ElementType::F32;
    if fragments && weights.layout.cols.is_multiple_of(8) {
        let gated = epilogue.gated.is_some();
        let shape = GemmShape::choose(properties, weights, tokens, gated, 0);
        gemm(list, shape, weights, x, y, tokens, epilogue, None)
    } else {
        gemv(list, weights, x, y, tokens, epilogue)
    }
}

/// Appends y = W · x in f32, 8 tokens at a time.
///
/// # Errors
/// Lengths that do not fit the weights.
pub fn gemv<T: Element>(
    list: &mut CommandList,
    weights: &FragmentWeights,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
    tokens: usize,
    epilogue: Epilogue<'_>,
) -> Result<(), GpuError> {
    let s = sizes(weights, &x, &y, tokens, &epilogue)?;
    let layout = weights.layout();
    let blocks = layout.blocks() as u32;
    // Shares of the columns: enough threads to hide memory, no more than there are blocks.
    let shares = blocks.next_power_of_two().clamp(1, 8);
    for first in (0..tokens).step_by(8) {
        let count = (tokens - first).min(8);
        let view_x = x.slice(first * layout.cols, count * layout.cols)?;
        let (stride, start) = (s.y_stride as usize, first * s.y_stride as usize);
        let view_y = y.slice(start, (count - 1) * stride + layout.rows)?;
        list.launch(
            Gemv {
                codes: weights.codes.view(),
                scales: weights.scales.as_ref().map(Buffer::view),
                mins: weights.mins.as_ref().map(Buffer::view),
                supers: weights.supers.as_ref().map(Buffer::view),
                x: view_x,
                bias: epilogue.bias,
                y: view_y,
                args: GemvArgs {
                    rows: s.rows,
                    columns: s.columns,
                    tokens: count as u32,
                    x_stride: s.columns,
                    y_stride: s.y_stride,
                    blocks,
                    groups: layout.groups() as u32,
                    factor: layout.factor,
                },
                constants: GemvConstants {
                    code: layout.code as u32,
                    offset: layout.offset,
                    scale: layout.scale as u32,
                    min: layout.min as u32,
                    group: weights.group_constant(),
                    tokens: (count as u32).next_power_of_two(),
                    gated: epilogue.gated.is_some(),
                    accumulate: epilogue.accumulate,
                    activation: activation(&epilogue),
                    has_bias: epilogue.bias.is_some(),
                },
                elements: std::marker::PhantomData,
            },
            Grid::x(layout.row_blocks() as u32, 32 * shares),
        );
    }
    Ok(())
}

/// Appends y = W · x by matrix fragments, in the given shape. `partial` is needed where the shape
/// splits k: f32, splits × rows × tokens (twice that for gate and up).
///
/// # Errors
/// Lengths that do not fit the weights; columns that are not a multiple of 8; a shape that the
/// kernel does not have.
#[allow(clippy::too_many_arguments, reason = "a product has so many parts")]
pub fn gemm<T: Element>(
    list: &mut CommandList,
    shape: GemmShape,
    weights: &FragmentWeights,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
    tokens: usize,
    epilogue: Epilogue<'_>,
    partial: Option<ViewMut<'_, f32>>,
) -> Result<(), GpuError> {
    let neighbours = Neighbours::default();
    gemm_among_others(list, shape, weights, x, y, tokens, epilogue, partial, neighbours)
}

/// As [`gemm`], with what it does for the products before and after it.
///
/// # Errors
/// As [`gemm`]; more than [`SHARED_NORM_TOKENS`] tokens, parts of k between threadgroups, or buffers of other lengths.
#[allow(clippy::too_many_arguments, reason = "a product has so many parts")]
pub fn gemm_among_others<T: Element>(
    list: &mut CommandList,
    shape: GemmShape,
    weights: &FragmentWeights,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
    tokens: usize,
    epilogue: Epilogue<'_>,
    partial: Option<ViewMut<'_, f32>>,
    neighbours: Neighbours<'_, T>,
) -> Result<(), GpuError> {
    let shares = neighbours.pending.is_some() || neighbours.next.is_some();
    if shape.batched && !shares {
        return gemm_batch::gemm_batch(list, shape, weights, x, y, tokens, epilogue, partial);
    }
    let s = sizes(weights, &x, &y, tokens, &epilogue)?;
    let layout = weights.layout();
    let refuse = |reason: String| Err(GpuError::Launch { kernel: "gemm".to_owned(), reason });
    let GemmShape { tiles, row_blocks, row_groups, k_groups, depth, staged, .. } = shape;
    let GemmShape { splits, wide, stages, prescaled, ring, .. } = shape;
    let gated = epilogue.gated.is_some();
    if !matches!(tiles, 1 | 2 | 4 | 8)
        || !matches!(depth, 1 | 2 | 4)
        || row_blocks != if gated { 2 } else { row_blocks.clamp(1, 2) }
        || row_groups * k_groups == 0
        || row_groups * k_groups > 32
        || splits == 0
        || !matches!(stages, 2..=4)
        || (tiles > 1 && !staged)
        || (wide && !weights.allows_wide())
        || (prescaled && !weights.allows_prescaled())
        || !matches!(ring, 0 | 2 | 4 | 8)
        || (ring > 0 && (tiles > 1 || staged || !wide || !weights.allows_ring()))
    {
        return refuse(format!("{shape:?}, which the kernel does not have"));
    }
    if !layout.cols.is_multiple_of(8) {
        return refuse(format!("{} columns, expected a multiple of 8", layout.cols));
    }
    if shares {
        if shape.batched || tiles != 1 || tokens > SHARED_NORM_TOKENS || splits > 1 {
            return refuse(format!(
                "{tokens} tokens in {tiles} tiles and {splits} parts of k share a norm, expected at most \
                 {SHARED_NORM_TOKENS} in 1 tile and 1 part"
            ));
        }
        let (rows, cols) = (layout.rows, layout.cols);
        let lengths = [
            (
                "pending squares",
                neighbours.pending.map(|n| n.squares.len()),
                tokens * cols.div_ceil(16),
            ),
            ("the next norm's weight", neighbours.next.map(|n| n.weight.len()), rows),
            ("scaled y", neighbours.next.map(|n| n.scaled.len()), tokens * rows),
            ("squares", neighbours.next.map(|n| n.squares.len()), tokens * rows.div_ceil(16)),
        ];
        for (name, found, expected) in lengths {
            if let Some(found) = found.filter(|found| *found != expected) {
                return refuse(format!("{name}: {found} elements, expected {expected}"));
            }
        }
    }
    let partial = check_partial("gemm", partial, splits, gated, layout.rows, tokens)?;
    let constants = GemmConstants {
        code: layout.code as u32,
        offset: layout.offset,
        scale: layout.scale as u32,
        min: layout.min as u32,
        group: weights.group_constant(),
        tiles,
        row_blocks,
        row_groups,
        k_groups,
        depth,
        staged,
        gated,
        accumulate: epilogue.accumulate,
        activation: activation(&epilogue),
        has_bias: epilogue.bias.is_some(),
        splits,
        wide,
        stages,
        prescaled,
        norm_in: neighbours.pending.is_some(),
        norm_out: neighbours.next.is_some(),
        ring,
    };
    let rows_of_group = row_groups * if gated { 1 } else { row_blocks };
    let grid = Grid::xyz(
        (layout.row_blocks() as u32).div_ceil(rows_of_group),
        s.tokens.div_ceil(8 * tiles),
        splits,
        32 * row_groups * k_groups,
    );
    let args = GemmArgs {
        rows: s.rows,
        columns: s.columns,
        tokens: s.tokens,
        x_stride: s.columns,
        y_stride: s.y_stride,
        blocks: layout.blocks() as u32,
        groups: layout.groups() as u32,
        factor: layout.factor,
        epsilon: neighbours.pending.map_or(0.0, |n| n.epsilon),
        offset: neighbours.next.map_or(0.0, |n| n.offset),
    };
    list.launch(
        Gemm {
            codes: weights.codes.view(),
            scales: weights.scales.as_ref().map(Buffer::view),
            mins: weights.mins.as_ref().map(Buffer::view),
            supers: weights.supers.as_ref().map(Buffer::view),
            x,
            bias: epilogue.bias,
            y,
            partial,
            squares: neighbours.pending.map(|n| n.squares),
            next_weight: neighbours.next.map(|n| n.weight),
            scaled: neighbours.next.map(|n| n.scaled),
            squares_out: neighbours.next.map(|n| n.squares),
            args,
            scratch: shape.threadgroup_bytes() / 4,
            constants,
            elements: std::marker::PhantomData,
        },
        grid,
    );
    if let Some(partial) = partial {
        list.launch(
            GemmReduce {
                partial: partial.read(),
                bias: epilogue.bias,
                y,
                args,
                constants,
                elements: std::marker::PhantomData,
            },
            Grid::x((s.rows * s.tokens).div_ceil(256), 256),
        );
    }
    Ok(())
}
