//! `gemm_batch.metal`: products with many tokens.

use marlin_formats::fragment::{FragmentCode, FragmentLayout, FragmentMin};
use marlin_kernels::gemm_batch::{GemmBatch, GemmBatchArgs, GemmBatchConstants, GemmBatchReduce};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::fragment_weights::allows_batched;
use super::linear::{Epilogue, FragmentWeights, GemmShape, activation, check_partial, sizes};
use crate::{Buffer, CommandList, DeviceProperties, GpuError};

const KERNEL: &str = "gemm_batch";
/// Units of x in a team's threadgroup memory: the kernel's own number.
const UNITS: u32 = 3;
/// Bytes that sums go through at the end: the kernel's own number.
const SUMS_BYTES: u32 = 32 << 10;

/// A shape, and how long an H100's compute unit takes for 64 columns with one threadgroup of it, in nanoseconds.
struct Candidate {
    tiles: u32,
    row_blocks: u32,
    row_groups: u32,
    k_groups: u32,
    depth: u32,
    stages: u32,
    nanoseconds: f32,
}

const fn candidate(
    [tiles, row_blocks, row_groups, k_groups, depth, stages]: [u32; 6],
    nanoseconds: f32,
) -> Candidate {
    Candidate { tiles, row_blocks, row_groups, k_groups, depth, stages, nanoseconds }
}

const CANDIDATES: [Candidate; 7] = [
    candidate([4, 1, 4, 4, 2, 4], 160.0),
    candidate([4, 1, 8, 2, 2, 4], 280.0),
    candidate([8, 1, 4, 4, 2, 3], 210.0),
    candidate([8, 1, 8, 2, 2, 3], 325.0),
    candidate([8, 2, 8, 1, 2, 3], 610.0),
    candidate([16, 1, 8, 2, 1, 3], 500.0),
    candidate([16, 1, 16, 1, 1, 3], 900.0),
];

/// Gate and up: a SIMD-group has a block of both.
const GATED: [Candidate; 4] = [
    candidate([4, 2, 4, 2, 2, 4], 300.0),
    candidate([8, 2, 4, 2, 2, 3], 350.0),
    candidate([8, 2, 8, 1, 2, 3], 700.0),
    candidate([16, 2, 8, 1, 1, 3], 1000.0),
];

/// Nanoseconds that a split costs: another dispatch, and for each float of the parts a store and a load. On an H200.
const SPLIT_NANOSECONDS: f32 = 2500.0;
const PARTIAL_NANOSECONDS: f32 = 8.0 / 2900.0;
/// Parts of k that are worth a try.
const SPLITS: [u32; 3] = [2, 4, 8];
/// What a split must save: estimates are no better than that.
const SPLIT_GAIN: f32 = 0.9;

/// The shape that takes least time by its cost on an H100: threadgroups come in waves of one for each compute unit. Where there are
/// fewer, k is split if the partial sums fit `room` floats.
pub(super) fn choose(
    properties: &DeviceProperties,
    layout: &FragmentLayout,
    tokens: usize,
    gated: bool,
    room: usize,
) -> GemmShape {
    let units = u64::from(properties.compute_units.max(1));
    let blocks = layout.blocks();
    let groups = |c: &Candidate| {
        let rows = c.row_groups * if gated { 1 } else { c.row_blocks };
        (layout.row_blocks() as u64).div_ceil(u64::from(rows))
            * (tokens as u64).div_ceil(u64::from(8 * c.tiles))
    };
    let time = |c: &Candidate, splits: u32| {
        let waves = (groups(c) * u64::from(splits)).div_ceil(units) as f32;
        waves * c.nanoseconds * (blocks as f32 / splits as f32)
    };
    let candidates = if gated { &GATED[..] } else { &CANDIDATES[..] };
    let best = candidates[1..]
        .iter()
        .fold(&candidates[0], |a, b| if time(b, 1) < time(a, 1) { b } else { a });
    let mut found = (best, 1, SPLIT_GAIN * time(best, 1));
    for candidate in if gated { &[] } else { candidates } {
        for splits in SPLITS {
            let floats = partial_floats(layout, tokens, splits);
            // Every part has a round for each team at least.
            let rounds = blocks >= (splits * candidate.k_groups) as usize;
            if groups(candidate) * u64::from(splits) > units || floats > room || !rounds {
                continue;
            }
            let all =
                time(candidate, splits) + SPLIT_NANOSECONDS + floats as f32 * PARTIAL_NANOSECONDS;
            if all < found.2 {
                found = (candidate, splits, all);
            }
        }
    }
    let (best, splits, _) = found;
    let light = layout.group.is_multiple_of(64) && layout.min == FragmentMin::None;
    // Registers allowing, more at a time; E2M1 takes longer to decode.
    let deeper = light
        && !gated
        && best.tiles == 8
        && best.row_blocks == 1
        && layout.code == FragmentCode::Fp4;
    GemmShape { splits, ..shape(best, layout, if deeper { 4 } else { best.depth }) }
}

/// Floats of the partial sums of a product in so many parts.
pub(super) fn partial_floats(layout: &FragmentLayout, tokens: usize, splits: u32) -> usize {
    splits as usize * tokens * layout.rows
}

/// Floats of the partial sums that products with up to `tokens` tokens are the faster for; 0 where all are in one part.
pub(crate) fn partial_room(
    properties: &DeviceProperties,
    layout: &FragmentLayout,
    tokens: usize,
) -> usize {
    if !properties.multiplies_in_teams() || !allows_batched(layout) {
        return 0;
    }
    // Longer prompts than that have enough threadgroups.
    let some = (32..=512).step_by(32).take_while(|&some| some < tokens).chain([tokens]);
    some.filter(|&some| some > 16)
        .map(|some| match choose(properties, layout, some, false, usize::MAX).splits {
            1 => 0,
            splits => partial_floats(layout, some, splits),
        })
        .max()
        .unwrap_or(0)
}

fn shape(c: &Candidate, layout: &FragmentLayout, depth: u32) -> GemmShape {
    GemmShape {
        tiles: c.tiles,
        row_blocks: c.row_blocks,
        row_groups: c.row_groups,
        // No more than there are blocks, as a power of two.
        k_groups: c.k_groups.min((layout.blocks() as u32).next_power_of_two()),
        depth,
        staged: true,
        splits: 1,
        wide: false,
        stages: c.stages,
        prescaled: true,
        batched: true,
        ring: 0,
    }
}

/// The shapes that an autotuner may try.
pub(crate) fn candidates(weights: &FragmentWeights, gated: bool) -> Vec<GemmShape> {
    let candidates = if gated { &GATED[..] } else { &CANDIDATES[..] };
    let shapes = candidates.iter().flat_map(|c| {
        let depths: &[u32] = if gated || c.tiles == 16 { &[1, 2] } else { &[2, 4] };
        depths.iter().map(|&depth| shape(c, weights.layout(), depth))
    });
    // One that asks for x two rounds ahead has an even depth.
    shapes.filter(|shape| shape.stages == 3 || shape.depth > 1).collect()
}

/// Bytes of threadgroup memory: units of 64 columns of x for each team, or the sums of as many tiles as 32 KiB
/// hold, at least of one.
pub(super) fn threadgroup_bytes(shape: &GemmShape) -> u32 {
    let GemmShape { tiles, row_blocks, row_groups, k_groups, .. } = *shape;
    // Granules, eight of a unit, are padded by 16 bytes.
    let x = k_groups * UNITS * 8 * (tiles * 8 + 1) * 16;
    // Rows are padded by four.
    let tile = k_groups * (row_groups * row_blocks * 16 + 4) * 8 * 4;
    let fit = SUMS_BYTES / tile;
    let at_once = match fit {
        _ if fit >= tiles => tiles,
        8.. => 8,
        4.. => 4,
        2.. => 2,
        _ => 1,
    };
    x.max(at_once * tile)
}

/// Appends y = W · x; see [`super::linear::gemm`].
#[allow(clippy::too_many_arguments, reason = "a product has so many parts")]
pub(super) fn gemm_batch<T: Element>(
    list: &mut CommandList,
    shape: GemmShape,
    weights: &FragmentWeights,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
    tokens: usize,
    epilogue: Epilogue<'_>,
    partial: Option<ViewMut<'_, f32>>,
) -> Result<(), GpuError> {
    let s = sizes(weights, &x, &y, tokens, &epilogue)?;
    let layout = weights.layout();
    let refuse = |reason: String| Err(GpuError::Launch { kernel: KERNEL.to_owned(), reason });
    let GemmShape { tiles, row_blocks, row_groups, k_groups, depth, splits, stages, .. } = shape;
    let gated = epilogue.gated.is_some();
    if !matches!(tiles, 1 | 2 | 4 | 8 | 16)
        || !matches!(depth, 1 | 2 | 4)
        || row_blocks != if gated { 2 } else { row_blocks.clamp(1, 2) }
        || row_groups * k_groups == 0
        || !row_groups.is_multiple_of(4)
        || row_groups * k_groups > 32
        || k_groups > 15
        || tiles > 4 * row_groups
        || splits == 0
        || !matches!(stages, 3 | 4)
        || (stages == 4 && depth == 1)
        || !weights.allows_batched()
    {
        return refuse(format!("{shape:?}, which the kernel does not have"));
    }
    if !layout.cols.is_multiple_of(8) {
        return refuse(format!("{} columns, expected a multiple of 8", layout.cols));
    }
    let partial = check_partial(KERNEL, partial, splits, gated, layout.rows, tokens)?;
    let constants = GemmBatchConstants {
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
        ahead: stages - 2,
        gated,
        accumulate: epilogue.accumulate,
        activation: activation(&epilogue),
        has_bias: epilogue.bias.is_some(),
        splits,
    };
    let args = GemmBatchArgs {
        rows: s.rows,
        columns: s.columns,
        tokens: s.tokens,
        x_stride: s.columns,
        y_stride: s.y_stride,
        blocks: layout.blocks() as u32,
        groups: layout.groups() as u32,
        factor: layout.factor,
    };
    let rows_of_group = row_groups * if gated { 1 } else { row_blocks };
    let grid = Grid::xyz(
        (layout.row_blocks() as u32).div_ceil(rows_of_group),
        s.tokens.div_ceil(8 * tiles),
        splits,
        32 * row_groups * k_groups,
    );
    list.launch(
        GemmBatch {
            codes: weights.codes.view(),
            scales: weights.scales.as_ref().map(Buffer::view),
            mins: weights.mins.as_ref().map(Buffer::view),
            supers: weights.supers.as_ref().map(Buffer::view),
            x,
            bias: epilogue.bias,
            y,
            partial,
            args,
            scratch: threadgroup_bytes(&shape) / 4,
            constants,
            elements: std::marker::PhantomData,
        },
        grid,
    );
    if let Some(partial) = partial {
        list.launch(
            GemmBatchReduce {
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

#[cfg(test)]
mod tests {
    use super::*;
    use marlin_placement::Device as Memory;

    fn hopper() -> DeviceProperties {
        DeviceProperties {
            name: "H200".to_owned(),
            kind: "cuda",
            architecture: "sm_90a".to_owned(),
            memory: Memory::Discrete,
            total_bytes: 141 << 30,
            simd_width: 32,
            max_threads: 1024,
            threadgroup_bytes: 227 << 10,
            compute_units: 132,
            adoption_alignment: 4096,
            max_buffer_bytes: 141 << 30,
        }
    }

    fn layout(columns: usize, rows: usize) -> FragmentLayout {
        FragmentLayout::new("int4-g128".parse().unwrap(), rows, columns, 1.0).unwrap()
    }

    #[test]
    fn few_rows_and_many_columns_are_split_where_there_is_room() {
        let (device, down) = (hopper(), layout(14336, 4096));
        for tokens in [32, 64, 128] {
            let whole = choose(&device, &down, tokens, false, 0);
            let split = choose(&device, &down, tokens, false, usize::MAX);
            assert_eq!(whole.splits, 1);
            assert!(split.splits > 1, "{tokens}: {split}");
            let needed = partial_floats(&down, tokens, split.splits);
            assert!(needed <= partial_room(&device, &down, 128));
            assert_eq!(choose(&device, &down, tokens, false, needed), split);
            let smaller = choose(&device, &down, tokens, false, needed - 1);
            assert!(smaller.splits < split.splits, "{tokens}: {smaller}");
            assert_eq!(choose(&device, &down, tokens, true, usize::MAX).splits, 1);
        }
    }

    #[test]
    fn nothing_is_split_where_every_unit_has_a_threadgroup() {
        for (columns, rows) in [(8192, 28672), (16384, 16384), (8192, 8192), (4096, 14336)] {
            let shape = choose(&hopper(), &layout(columns, rows), 64, false, usize::MAX);
            assert_eq!(shape.splits, 1, "{columns}×{rows}: {shape}");
        }
        assert_eq!(partial_room(&hopper(), &layout(14336, 4096), 16), 0);
        let other = DeviceProperties { architecture: "sm_80".to_owned(), ..hopper() };
        assert_eq!(partial_room(&other, &layout(14336, 4096), 512), 0);
    }
}
