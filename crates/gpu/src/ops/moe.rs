//! Mixture of experts: `moe.metal`, `moe_group.metal`, `moe_product.metal` and `moe_gemm.metal`.
//!
//! A layer is: router logits → [`route`] → [`group`] → [`gather`] (for tiles of more than 8 rows) → [`product`] (gate and up) →
//! [`product`] (down) → [`combine`]. Shared experts are an ordinary feed-forward layer whose output [`combine`] adds to.

use std::marker::PhantomData;

use marlin_formats::fragment::FragmentLayout;
use marlin_kernels::moe::{CombineArgs, MoeCombine, MoeConstants, MoeGather, MoeRoute, RouteArgs};
use marlin_kernels::moe_gemm::{MoeGemm, MoeGemmArgs, MoeGemmConstants};
use marlin_kernels::moe_group::{
    GroupArgs, MoeCountBlocks, MoeGroup, MoePlaceBlocks, MoePlacePairs,
};
use marlin_kernels::moe_product::{MoeProduct, MoeProductArgs, MoeProductConstants};
use marlin_kernels::signature::ElementType;
use marlin_kernels::{Element, Grid, View, ViewMut};
use marlin_placement::AccessPattern;

use super::lengths::{expect_at_least, expect_len, refuse};
use super::linear::{Activation, FragmentWeights};
use crate::{Buffer, CommandList, Device, DeviceProperties, GpuError};

/// The most experts of a layer: `MOE_EXPERTS` of the kernels.
pub const MAX_EXPERTS: usize = 512;

/// Pairs that a threadgroup ranks at once: `MOE_BLOCK` of `moe_group.metal`.
const BLOCK: usize = 256;

/// Pairs up to which one threadgroup sorts them all: its blocks one after the other still take less time
/// than two more dispatches.
const ONE_THREADGROUP: usize = 1024;

/// Threads of a router's threadgroup: more would only wait for one another.
const ROUTE_THREADS: u32 = 64;

/// How a router's logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts: Mixtral, Qwen3-MoE.
    Softmax,
    /// Sigmoid of each: DeepSeek-V3.
    Sigmoid,
}

/// How experts are chosen and weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts of the layer.
    pub experts: usize,
    /// Experts of a token (`num_experts_per_tok`).
    pub chosen: usize,
    /// From logits to scores.
    pub scoring: Scoring,
    /// Whether a token's weights are divided by their sum: always for Mixtral, `norm_topk_prob` for others.
    pub renormalise: bool,
    /// Groups of experts (`n_group`); 1 where there are none.
    pub groups: usize,
    /// Groups that a token chooses from (`topk_group`).
    pub kept_groups: usize,
    /// Factor on the weights (`routed_scaling_factor`).
    pub scaling: f32,
}

impl Routing {
    /// Mixtral's: the softmax over the chosen experts.
    pub const fn mixtral(experts: usize, chosen: usize) -> Self {
        Self {
            experts,
            chosen,
            scoring: Scoring::Softmax,
            renormalise: true,
            groups: 1,
            kept_groups: 1,
            scaling: 1.0,
        }
    }

    /// Qwen3-MoE's: the softmax over all, renormalised where the configuration says so.
    pub const fn qwen3(experts: usize, chosen: usize, norm_topk_prob: bool) -> Self {
        Self { renormalise: norm_topk_prob, ..Self::mixtral(experts, chosen) }
    }

    fn check(&self) -> Result<(), GpuError> {
        let Self { experts, chosen, groups, kept_groups, .. } = *self;
        let kernel = "moe_route";
        if experts == 0 || experts > MAX_EXPERTS {
            return Err(refuse(kernel, format!("{experts} experts, expected 1 to {MAX_EXPERTS}")));
        }
        if groups == 0 || !experts.is_multiple_of(groups) {
            return Err(refuse(kernel, format!("{experts} experts in {groups} equal groups")));
        }
        if kept_groups == 0 || kept_groups > groups {
            return Err(refuse(kernel, format!("{kept_groups} of {groups} groups kept")));
        }
        let reachable = experts / groups * kept_groups;
        if chosen == 0 || chosen > reachable {
            let reason = format!("{chosen} experts of a token, expected 1 to {reachable}");
            return Err(refuse(kernel, reason));
        }
        Ok(())
    }
}

/// Appends the choice of experts for `tokens` rows of router logits.
///
/// `logits`: `[tokens, experts]`; `bias`: `[experts]`, for the choice only (DeepSeek-V3's `e_score_correction_bias`); `chosen` and
/// `weights`: `[tokens, chosen]`, best expert first.
///
/// # Errors
/// [`GpuError::Launch`] for a routing that cannot be, or a buffer of another size.
pub fn route<T: Element>(
    list: &mut CommandList,
    routing: &Routing,
    logits: View<'_, T>,
    bias: Option<View<'_, f32>>,
    chosen: ViewMut<'_, u32>,
    weights: ViewMut<'_, f32>,
) -> Result<(), GpuError> {
    let kernel = "moe_route";
    routing.check()?;
    let tokens = chosen.len() / routing.chosen;
    expect_len(kernel, "chosen", chosen.len(), tokens * routing.chosen)?;
    expect_len(kernel, "weights", weights.len(), tokens * routing.chosen)?;
    expect_len(kernel, "logits", logits.len(), tokens * routing.experts)?;
    if let Some(bias) = &bias {
        expect_len(kernel, "bias", bias.len(), routing.experts)?;
    }
    list.launch(
        MoeRoute {
            logits,
            bias,
            chosen,
            weights,
            args: RouteArgs {
                experts: routing.experts as u32,
                chosen: routing.chosen as u32,
                groups: routing.groups as u32,
                kept_groups: routing.kept_groups as u32,
                scaling: routing.scaling,
            },
            constants: MoeConstants {
                scoring: u32::from(routing.scoring == Scoring::Sigmoid),
                renormalise: routing.renormalise,
                has_bias: bias.is_some(),
                accumulate: false,
            },
            elements: PhantomData::<(T,)>,
        },
        Grid::x(tokens as u32, ROUTE_THREADS),
    );
    Ok(())
}

/// Pairs of token and expert in order of experts, in device memory.
#[derive(Debug)]
pub struct Groups {
    experts: usize,
    /// First row of each expert, and the end: `[experts + 1]`.
    offsets: Buffer<u32>,
    /// First tile of each expert, and the end: `[experts + 1]`.
    tiles: Buffer<u32>,
    /// Row to pair: `[pairs]`.
    order: Buffer<u32>,
    /// Pair to row: `[pairs]`.
    places: Buffer<u32>,
    /// `[blocks, experts]`, twice, for more pairs than one threadgroup sorts.
    block_counts: Buffer<u32>,
    block_starts: Buffer<u32>,
}

impl Groups {
    /// Memory for up to `pairs` pairs.
    ///
    /// # Errors
    /// No memory.
    #[track_caller]
    pub fn new(device: &dyn Device, experts: usize, pairs: usize) -> Result<Self, GpuError> {
        let blocks = if pairs > ONE_THREADGROUP { pairs.div_ceil(BLOCK) } else { 0 };
        let buffer = |name: &str, len: usize| {
            device.allocate::<u32>(name, len.max(1), AccessPattern::DEVICE_ONLY)
        };
        Ok(Self {
            experts,
            offsets: buffer("moe.offsets", experts + 1)?,
            tiles: buffer("moe.tiles", experts + 1)?,
            order: buffer("moe.order", pairs)?,
            places: buffer("moe.places", pairs)?,
            block_counts: buffer("moe.block_counts", blocks * experts)?,
            block_starts: buffer("moe.block_starts", blocks * experts)?,
        })
    }

    /// First row of each expert, and the end.
    pub fn offsets(&self) -> &Buffer<u32> {
        &self.offsets
    }

    /// First tile of each expert, and the end.
    pub fn tiles(&self) -> &Buffer<u32> {
        &self.tiles
    }

    /// Row to pair.
    pub fn order(&self) -> &Buffer<u32> {
        &self.order
    }

    /// Pair to row.
    pub fn places(&self) -> &Buffer<u32> {
        &self.places
    }
}

/// Appends the counting sort of pairs by expert, in tiles of `tile` rows: pairs of one expert stay in the
/// order of their tokens. One dispatch for few pairs, three for many.
///
/// `chosen`: `[tokens · experts of a token]`, from [`route`].
///
/// # Errors
/// [`GpuError::Launch`] for more experts or pairs than there is room for.
pub fn group(
    list: &mut CommandList,
    chosen: View<'_, u32>,
    tile: usize,
    groups: &Groups,
) -> Result<(), GpuError> {
    let kernel = "moe_group";
    let pairs = chosen.len();
    if groups.experts == 0 || groups.experts > MAX_EXPERTS {
        let reason = format!("{} experts, expected 1 to {MAX_EXPERTS}", groups.experts);
        return Err(refuse(kernel, reason));
    }
    expect_at_least(kernel, "pairs of room", groups.order.len(), pairs)?;
    expect_at_least(kernel, "rows of a tile", tile, 1)?;
    let blocks = pairs.div_ceil(BLOCK);
    let args = GroupArgs {
        pairs: pairs as u32,
        experts: groups.experts as u32,
        tile: tile as u32,
        blocks: blocks as u32,
    };
    let threads = BLOCK as u32;
    if pairs <= ONE_THREADGROUP {
        list.launch(
            MoeGroup {
                chosen,
                offsets: groups.offsets.view_mut()?,
                tiles: groups.tiles.view_mut()?,
                order: groups.order.view_mut()?,
                places: groups.places.view_mut()?,
                args,
            },
            Grid::x(1, threads),
        );
        return Ok(());
    }
    let needed = blocks * groups.experts;
    expect_at_least(kernel, "counts of blocks", groups.block_counts.len(), needed)?;
    list.launch(
        MoeCountBlocks { chosen, block_counts: groups.block_counts.view_mut()?, args },
        Grid::x(blocks as u32, threads),
    );
    list.launch(
        MoePlaceBlocks {
            block_counts: groups.block_counts.view(),
            block_starts: groups.block_starts.view_mut()?,
            offsets: groups.offsets.view_mut()?,
            tiles: groups.tiles.view_mut()?,
            args,
        },
        Grid::x(1, threads),
    );
    list.launch(
        MoePlacePairs {
            chosen,
            block_starts: groups.block_starts.view(),
            order: groups.order.view_mut()?,
            places: groups.places.view_mut()?,
            args,
        },
        Grid::x(blocks as u32, threads),
    );
    Ok(())
}

/// Threads along the columns of a row.
const COLUMN_THREADS: u32 = 256;

fn columns_grid(columns: usize, rows: usize) -> Grid {
    Grid::xy((columns as u32).div_ceil(COLUMN_THREADS), rows as u32, COLUMN_THREADS)
}

fn no_constants() -> MoeConstants {
    MoeConstants { scoring: 0, renormalise: false, has_bias: false, accumulate: false }
}

/// Appends `out[row] = x[token of row]` for `rows` rows in order of experts.
///
/// `x`: `[tokens, columns]`, `out`: `[rows, columns]`.
///
/// # Errors
/// [`GpuError::Launch`] if a buffer has another size.
pub fn gather<T: Element>(
    list: &mut CommandList,
    groups: &Groups,
    columns: usize,
    chosen: usize,
    x: View<'_, T>,
    out: ViewMut<'_, T>,
) -> Result<(), GpuError> {
    let kernel = "moe_gather";
    expect_at_least(kernel, "columns", columns, 1)?;
    let rows = out.len() / columns;
    expect_len(kernel, "out", out.len(), rows * columns)?;
    expect_len(kernel, "x", x.len() * chosen, rows * columns)?;
    expect_at_least(kernel, "pairs of room", groups.order.len(), rows)?;
    list.launch(
        MoeGather {
            x,
            order: groups.order.view(),
            out,
            args: CombineArgs { columns: columns as u32, chosen: chosen as u32, rows: rows as u32 },
            constants: no_constants(),
            elements: PhantomData::<(T,)>,
        },
        columns_grid(columns, rows),
    );
    Ok(())
}

/// Appends `out[token] = Σ weight · y[row of the pair]`, added to what `out` holds where `accumulate`: the
/// residual, or the shared experts' output.
///
/// `y`: `[tokens · chosen, columns]` in order of experts; `weights`: `[tokens, chosen]`; `out`: `[tokens, columns]`.
///
/// # Errors
/// [`GpuError::Launch`] if a buffer has another size.
pub fn combine<T: Element>(
    list: &mut CommandList,
    groups: &Groups,
    columns: usize,
    y: View<'_, T>,
    weights: View<'_, f32>,
    out: ViewMut<'_, T>,
    accumulate: bool,
) -> Result<(), GpuError> {
    let kernel = "moe_combine";
    expect_at_least(kernel, "columns", columns, 1)?;
    let tokens = out.len() / columns;
    expect_len(kernel, "out", out.len(), tokens * columns)?;
    let pairs = weights.len();
    let chosen = pairs.checked_div(tokens).unwrap_or(0);
    expect_len(kernel, "weights", pairs, tokens * chosen)?;
    expect_len(kernel, "y", y.len(), pairs * columns)?;
    expect_at_least(kernel, "pairs of room", groups.places.len(), pairs)?;
    list.launch(
        MoeCombine {
            y,
            places: groups.places.view(),
            weights,
            out,
            args: CombineArgs {
                columns: columns as u32,
                chosen: chosen as u32,
                rows: tokens as u32,
            },
            constants: MoeConstants { accumulate, ..no_constants() },
            elements: PhantomData::<(T,)>,
        },
        columns_grid(columns, tokens),
    );
    Ok(())
}

/// What a grouped product multiplies.
#[derive(Clone, Copy, Debug)]
pub struct Experts<'a> {
    /// The experts' matrices one after the other; gate and up of each, where `gated`.
    pub weights: &'a FragmentWeights,
    /// Experts of the layer.
    pub experts: usize,
    /// Experts of a token.
    pub chosen: usize,
    /// The weights are gate and up: y = activation(gate) · up.
    pub gated: Option<Activation>,
    /// x has a row per token instead of a row per pair.
    pub gather: bool,
}

/// Rows of the highest tile of `moe_product`, whose sums are registers of one thread.
const MOST_ROWS: usize = 8;

/// Rows of the highest tile of `moe_gemm`.
const MOST_FRAGMENT_ROWS: usize = 32;

/// Whether elements and device allow products by matrix fragments.
fn has_fragments<T: Element>(properties: &DeviceProperties) -> bool {
    properties.simd_width == 32 && T::TYPE != ElementType::F32
}

/// The tile for [`group`] and [`product`] with so many pairs: weights are read once per tile, so tiles are as
/// high as experts have rows on average, up to 8 in f32, and up to 32 where there are matrix fragments. Tiles of more
/// than 8 rows need x in order of experts ([`gather`]).
pub fn tile_rows<T: Element>(properties: &DeviceProperties, pairs: usize, experts: usize) -> usize {
    let most = if has_fragments::<T>(properties) { MOST_FRAGMENT_ROWS } else { MOST_ROWS };
    pairs.div_ceil(experts.max(1)).next_power_of_two().clamp(1, most)
}

/// Appends the product of each row with its expert's matrix, after [`group`] with the same `tile`: by matrix
/// fragments where the device has them, for tiles of 8 rows and more in order of experts; otherwise in f32.
///
/// `x`: `[tokens, columns]` where `gather`, otherwise `[pairs, columns]` in order of experts; `y`: `[pairs, rows]`.
/// The factor of a whole tensor is that of the first expert.
///
/// # Errors
/// [`GpuError::Launch`] if a buffer has another size, or a tile that the kernel does not have.
pub fn product<T: Element>(
    list: &mut CommandList,
    properties: &DeviceProperties,
    experts: Experts<'_>,
    groups: &Groups,
    tile: usize,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
) -> Result<(), GpuError> {
    let kernel = "moe_product";
    let weights = experts.weights;
    let FragmentLayout { rows, cols, .. } = *weights.layout();
    expect_len(kernel, "experts of the groups", groups.experts, experts.experts)?;
    let parts = experts.experts * if experts.gated.is_some() { 2 } else { 1 };
    expect_len(kernel, "matrices", weights.parts, parts)?;
    let pairs = y.len() / rows.max(1);
    expect_len(kernel, "y", y.len(), pairs * rows)?;
    if experts.gather {
        expect_len(kernel, "x", x.len() * experts.chosen, pairs * cols)?;
    } else {
        expect_len(kernel, "x", x.len(), pairs * cols)?;
    }
    expect_at_least(kernel, "pairs of room", groups.order.len(), pairs)?;
    // Every expert may end in a tile that is not full.
    let tiles = (pairs + tile.saturating_sub(1) * experts.experts.min(pairs)) / tile.max(1);
    let fragments = has_fragments::<T>(properties) && !experts.gather && cols.is_multiple_of(8);
    match tile {
        8 | 16 | 32 if fragments => product_by_fragments(list, experts, groups, tile, tiles, x, y),
        1 | 2 | 4 | 8 => product_in_f32(list, experts, groups, tile, tiles, x, y),
        _ => {
            let most = if fragments { "8, 16 or 32" } else { "1, 2, 4 or 8" };
            Err(refuse(kernel, format!("tiles of {tile} rows, expected {most}")))
        }
    }
}

fn product_in_f32<T: Element>(
    list: &mut CommandList,
    experts: Experts<'_>,
    groups: &Groups,
    tile: usize,
    tiles: usize,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
) -> Result<(), GpuError> {
    let weights = experts.weights;
    let layout = weights.layout();
    let blocks = layout.blocks() as u32;
    let shares = blocks.next_power_of_two().clamp(1, 8);
    list.launch(
        MoeProduct {
            codes: weights.codes.view(),
            scales: weights.scales.as_ref().map(Buffer::view),
            mins: weights.mins.as_ref().map(Buffer::view),
            supers: weights.supers.as_ref().map(Buffer::view),
            x,
            offsets: groups.offsets.view(),
            tiles: groups.tiles.view(),
            order: groups.order.view(),
            y,
            args: MoeProductArgs {
                rows: layout.rows as u32,
                columns: layout.cols as u32,
                blocks,
                groups: layout.groups() as u32,
                experts: experts.experts as u32,
                chosen: experts.chosen.max(1) as u32,
                factor: layout.factor,
            },
            constants: MoeProductConstants {
                code: layout.code as u32,
                offset: layout.offset,
                scale: layout.scale as u32,
                min: layout.min as u32,
                group: weights.group_constant(),
                tile: tile as u32,
                gated: experts.gated.is_some(),
                activation: u32::from(experts.gated == Some(Activation::Gelu)),
                gather: experts.gather,
            },
            elements: PhantomData::<(T,)>,
        },
        Grid::xy(layout.row_blocks() as u32, tiles as u32, 32 * shares),
    );
    Ok(())
}

fn product_by_fragments<T: Element>(
    list: &mut CommandList,
    experts: Experts<'_>,
    groups: &Groups,
    tile: usize,
    tiles: usize,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
) -> Result<(), GpuError> {
    let weights = experts.weights;
    let layout = weights.layout();
    let (blocks, row_blocks) = (layout.blocks() as u32, layout.row_blocks() as u32);
    // Eight SIMD-groups at most, which with both matrices and 32 rows fill 32 KiB with their sums.
    let row_groups = row_blocks.next_power_of_two().min(4);
    let k_groups = blocks.next_power_of_two().min(8 / row_groups).min(2);
    let parts = if experts.gated.is_some() { 2 } else { 1 };
    list.launch(
        MoeGemm {
            codes: weights.codes.view(),
            scales: weights.scales.as_ref().map(Buffer::view),
            mins: weights.mins.as_ref().map(Buffer::view),
            supers: weights.supers.as_ref().map(Buffer::view),
            x,
            offsets: groups.offsets.view(),
            tiles: groups.tiles.view(),
            y,
            args: MoeGemmArgs {
                rows: layout.rows as u32,
                columns: layout.cols as u32,
                blocks,
                groups: layout.groups() as u32,
                experts: experts.experts as u32,
                factor: layout.factor,
            },
            scratch: k_groups * row_groups * 16 * parts * tile as u32,
            constants: MoeGemmConstants {
                code: layout.code as u32,
                offset: layout.offset,
                scale: layout.scale as u32,
                min: layout.min as u32,
                group: weights.group_constant(),
                tiles: tile as u32 / 8,
                row_groups,
                k_groups,
                gated: experts.gated.is_some(),
                activation: u32::from(experts.gated == Some(Activation::Gelu)),
            },
            elements: PhantomData::<(T,)>,
        },
        Grid::xy(row_blocks.div_ceil(row_groups), tiles as u32, 32 * row_groups * k_groups),
    );
    Ok(())
}
