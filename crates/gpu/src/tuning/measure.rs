//! Measuring every division of a product that makes sense.

use std::sync::Arc;
use std::time::Instant;

use marlin_kernels::Element;

use super::{Product, Tuned};
use crate::ops::gemm_batch;
use crate::ops::linear::{Activation, Epilogue, FragmentWeights, GemmShape, gemm};
use crate::{Buffer, CommandList, Device, DeviceProperties, GpuError};

/// Weights that go by in a measurement at least: more than any cache holds.
const BYTES: usize = 256 << 20;
/// Products of a measurement, at least and at most.
const RUNS: std::ops::RangeInclusive<usize> = 4..=64;
/// Submissions that count.
const REPETITIONS: usize = 5;

/// What products are measured with.
pub(crate) struct Operands<'a, T> {
    pub(crate) x: &'a Buffer<T>,
    pub(crate) y: &'a Buffer<T>,
    /// For products in parts; as long as the longest needs it.
    pub(crate) partial: &'a Buffer<f32>,
}

/// The divisions that are tried: enough SIMD-groups to hide memory, no more than a threadgroup holds.
fn candidates(
    properties: &DeviceProperties,
    weights: &FragmentWeights,
    tokens: usize,
    gated: bool,
) -> Vec<GemmShape> {
    let tiles = (tokens.div_ceil(8) as u32).next_power_of_two().clamp(1, 8);
    let few = tiles == 1;
    let blocks = (weights.layout().blocks() as u32).next_power_of_two();
    let row_blocks: &[u32] = if gated || tiles > 2 { &[2] } else { &[1, 2] };
    let ways: &[bool] = match (tiles, tokens) {
        (1, 1) => &[false],
        (1, _) => &[false, true],
        _ => &[true],
    };
    let mut all = Vec::new();
    if properties.multiplies_in_teams() && weights.allows_batched() && !few {
        all.extend(gemm_batch::candidates(weights, gated));
    }
    if few && properties.copies_asynchronously() && weights.allows_ring() {
        all.extend(rings(blocks, gated));
    }
    for &staged in ways {
        let row_groups: &[u32] = match (staged, tiles) {
            (false, _) => &[1, 2],
            // As whole waves want them.
            (true, 1 | 2) => &[1, 2, 3, 4, 5, 6, 7, 8, 14, 16],
            (true, _) => &[1, 2, 4, 8],
        };
        let depths: &[u32] = if staged { &[1, 2] } else { &[1, 2, 4] };
        let stages: &[u32] = if staged { &[2, 3, 4] } else { &[2] };
        let most = (properties.max_threads / 32).min(32);
        for (&row_blocks, &row_groups) in product(row_blocks, row_groups) {
            for (&depth, &stages) in product(depths, stages) {
                for k_groups in [1, 2, 4, 8, 16] {
                    if !(4..=most).contains(&(row_groups * k_groups)) || k_groups > blocks {
                        continue;
                    }
                    all.push(GemmShape {
                        tiles,
                        row_blocks,
                        row_groups,
                        k_groups,
                        depth,
                        staged,
                        splits: 1,
                        wide: weights.allows_wide(),
                        stages,
                        prescaled: tiles == 8 && weights.allows_prescaled(),
                        batched: false,
                        ring: 0,
                    });
                }
            }
        }
    }
    all.retain(|shape| shape.threadgroup_bytes() <= properties.threadgroup_bytes);
    all
}

/// Every pair of `a` and `b`.
fn product<'a>(a: &'a [u32], b: &'a [u32]) -> impl Iterator<Item = (&'a u32, &'a u32)> {
    a.iter().flat_map(move |a| b.iter().map(move |b| (a, b)))
}

/// Divisions whose weights wait in threadgroup memory.
fn rings(blocks: u32, gated: bool) -> Vec<GemmShape> {
    let mut all = Vec::new();
    for row_blocks in if gated { 2..=2 } else { 1..=2 } {
        for k_groups in [2, 4, 8, 16] {
            for ring in [2, 4, 8] {
                // Threadgroups of some 8 to 80 KiB, with enough threads to decode as fast as memory reads.
                if !(8..=64).contains(&(ring * k_groups * row_blocks)) || 2 * k_groups > blocks {
                    continue;
                }
                all.push(GemmShape {
                    tiles: 1,
                    row_blocks,
                    row_groups: 1,
                    k_groups,
                    depth: 1,
                    staged: false,
                    splits: 1,
                    wide: true,
                    stages: 2,
                    prescaled: false,
                    batched: false,
                    ring,
                });
            }
        }
    }
    all
}

/// The fastest division of the product of `matrices`, which are alike, with `tokens` tokens. `None` if none runs.
pub(crate) fn measure<T: Element>(
    device: &dyn Device,
    matrices: &[Arc<FragmentWeights>],
    tokens: usize,
    gated: bool,
    operands: &Operands<'_, T>,
) -> Result<Option<Tuned>, GpuError> {
    let Some(first) = matrices.first() else { return Ok(None) };
    let properties = device.properties();
    let room = operands.partial.len();
    let default = GemmShape::choose(properties, first, tokens, gated, room);
    let mut shapes = candidates(properties, first, tokens, gated);
    if !shapes.contains(&default) {
        shapes.push(default);
    }
    // Compiling is most of the work, and many compile at once. A shape that does not is left out below.
    let mut all = CommandList::new("tuning");
    for shape in &shapes {
        append(&mut all, *shape, first, tokens, gated, operands)?;
    }
    drop(device.record(all));
    let mut best: Option<(GemmShape, f64)> = None;
    let mut default_time = f64::NAN;
    for shape in shapes {
        let Some(time) = time(device, shape, matrices, tokens, gated, operands)? else { continue };
        if shape == default {
            default_time = time;
        }
        if best.is_none_or(|(_, least)| time < least) {
            best = Some((shape, time));
        }
    }
    Ok(best.map(|(shape, seconds)| Tuned {
        product: Product::new(first, tokens, gated),
        shape,
        microseconds: 1e6 * seconds,
        default_microseconds: 1e6 * default_time,
    }))
}

fn append<T: Element>(
    list: &mut CommandList,
    shape: GemmShape,
    weights: &FragmentWeights,
    tokens: usize,
    gated: bool,
    operands: &Operands<'_, T>,
) -> Result<(), GpuError> {
    let layout = weights.layout();
    let x = operands.x.slice(0..tokens * layout.cols)?;
    let y = operands.y.slice_mut(0..tokens * layout.rows)?;
    let epilogue = Epilogue { gated: gated.then_some(Activation::Silu), ..Epilogue::default() };
    let partial = (shape.splits > 1).then(|| operands.partial.view_mut()).transpose()?;
    gemm(list, shape, weights, x, y, tokens, epilogue, partial)
}

/// Seconds of one product; `None` if the device does not run it that way.
fn time<T: Element>(
    device: &dyn Device,
    shape: GemmShape,
    matrices: &[Arc<FragmentWeights>],
    tokens: usize,
    gated: bool,
    operands: &Operands<'_, T>,
) -> Result<Option<f64>, GpuError> {
    // On the emulator a measurement says nothing, but must end.
    let emulated = device.properties().kind == "emulated";
    let bytes = matrices.first().map_or(1, |m| m.bytes());
    let runs = if emulated { 1 } else { BYTES.div_ceil(bytes).clamp(*RUNS.start(), *RUNS.end()) };
    let mut list = CommandList::new("tuning");
    for weights in matrices.iter().cycle().take(runs) {
        append(&mut list, shape, weights, tokens, gated, operands)?;
    }
    // Too many registers or too much threadgroup memory for the device.
    let Ok(recording) = device.record(list) else { return Ok(None) };
    let mut times = Vec::with_capacity(REPETITIONS);
    let repetitions = if emulated { 1 } else { REPETITIONS };
    for repetition in 0..=repetitions {
        let start = Instant::now();
        let completed = device.submit(&recording)?.wait()?;
        if repetition > 0 {
            let time = completed.gpu_time.unwrap_or_else(|| start.elapsed());
            times.push(time.as_secs_f64() / runs as f64);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times.get(times.len() / 2).copied())
}
