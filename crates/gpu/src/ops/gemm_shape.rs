//! How products by matrix fragments divide their work.

use std::fmt;

use marlin_formats::fragment::FragmentCode;

use super::fragment_weights::FragmentWeights;
use super::gemm_batch;
use crate::DeviceProperties;

/// How a `gemm` divides its work; what an autotuner chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct GemmShape {
    /// Tiles of 8 tokens of a SIMD-group: 1, 2, 4 or 8; where batched also 16.
    pub tiles: u32,
    /// Blocks of 16 rows of a SIMD-group: 1 or 2.
    pub row_blocks: u32,
    /// SIMD-groups along the rows; where batched a multiple of 4.
    pub row_groups: u32,
    /// SIMD-groups along k.
    pub k_groups: u32,
    /// Blocks asked for ahead: 1, 2 or 4.
    pub depth: u32,
    /// x goes through threadgroup memory.
    pub staged: bool,
    /// Parts of k between threadgroups.
    pub splits: u32,
    /// Units of 128 columns instead of 64; needs an even number of blocks, and groups of a multiple of
    /// 128 columns or of the whole row.
    pub wide: bool,
    /// Rounds of x in threadgroup memory at a time, where staged: 2, 3 or 4. Where batched, 3, or 4 to ask for x
    /// two rounds ahead.
    pub stages: u32,
    /// Scales multiply the weights in f16 instead of the sums in f32; needs f16 scales and no minimums.
    pub prescaled: bool,
    /// By `gemm_batch`, whose SIMD-groups multiply in teams: needs scales with the range of f16. `staged`, `wide` and
    /// `prescaled` say nothing then.
    #[serde(default)]
    pub batched: bool,
    /// Units that each SIMD-group has on their way in threadgroup memory: 2, 4 or 8; 0: `depth` in registers.
    #[serde(default)]
    pub ring: u32,
}

/// In the words of a table.
impl fmt::Display for GemmShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tiles, row_blocks, row_groups, k_groups, depth, stages, splits, ring, .. } =
            self;
        write!(
            f,
            "{row_blocks}·{row_groups} row blocks × {k_groups} along k, {tiles} tiles, {depth} deep"
        )?;
        if self.staged {
            write!(f, ", {stages} stages")?;
        }
        if self.batched {
            f.write_str(", batched")?;
        }
        if *splits > 1 {
            write!(f, ", {splits} parts")?;
        }
        if *ring > 0 {
            write!(f, ", ring of {ring}")?;
        }
        Ok(())
    }
}

/// Tiles, row blocks, row groups, SIMD-groups along k, depth and stages for 2 to 16 tokens in one or two `tiles`, where
/// each compute unit has `share` row blocks to take.
///
/// Every threadgroup takes the same, and there are as many as compute units, or a few less: what is left over
/// after whole waves, most units wait for. One tile: all have as many SIMD-groups as there can be. Two tiles: sums of two row blocks leave
/// registers for half as many, which load each token's fragment for both.
fn whole_waves(tiles: u32, share: f32, gated: bool) -> (u32, u32, u32, u32, u32, u32) {
    const SIMD_GROUPS: u32 = 32;
    let most_row_groups = if tiles == 1 { 7 } else { 8 };
    // Gate and up are the two row blocks of a SIMD-group.
    let most = if gated { most_row_groups } else { 2 * most_row_groups };
    let waves = (share / most as f32).ceil().max(1.0);
    let each = (share / waves).ceil().max(1.0) as u32;
    if tiles == 1 {
        let row_blocks = if !gated && each > most_row_groups { 2 } else { 1 };
        let row_groups = each.div_ceil(row_blocks);
        let k_groups = 1 << (SIMD_GROUPS / row_groups).ilog2();
        return (tiles, row_blocks, row_groups, k_groups.min(16), 1, 3);
    }
    let in_pairs = !gated && each <= most_row_groups && each.is_multiple_of(2);
    if gated || in_pairs {
        let row_groups = if gated { each } else { each / 2 };
        return (tiles, 2, row_groups, SIMD_GROUPS / 2 / row_groups, 1, 3);
    }
    let k_groups = 1 << (SIMD_GROUPS / each).ilog2();
    (tiles, 1, each, k_groups.min(16), 1, 2)
}

impl GemmShape {
    /// A shape that is good without measuring, for a product with `weights` and so many tokens.
    ///
    /// Few tokens: enough SIMD-groups along k that every compute unit has one threadgroup per 16 rows or so. More
    /// tokens: x is read once per threadgroup, so threadgroups take as many rows as leave no unit without one.
    /// The numbers are those that were fastest on an H100 or an H200 (`docs/performance.md`). k is split between threadgroups only
    /// where the partial sums fit `room` floats: 0 for callers that have none.
    pub fn choose(
        properties: &DeviceProperties,
        weights: &FragmentWeights,
        tokens: usize,
        gated: bool,
        room: usize,
    ) -> Self {
        // Up to two tiles memory is the bound, and what SIMD-groups do on their own is the faster for it.
        if properties.multiplies_in_teams() && weights.allows_batched() && tokens > 16 {
            return gemm_batch::choose(properties, weights.layout(), tokens, gated, room);
        }
        let layout = weights.layout();
        let blocks = layout.blocks() as u32;
        let wide = weights.allows_wide();
        let units = if wide { blocks / 2 } else { blocks };
        // Row blocks that each compute unit has to take.
        let share = layout.row_blocks() as f32 / properties.compute_units.max(1) as f32;
        let tiles = (tokens.div_ceil(8) as u32).next_power_of_two().clamp(1, 8);
        // Few tokens of smaller matrices are faster the other way in a model, where the products around them want room.
        let staged = tokens > 8 || (tokens > 1 && !gated && share > 3.0);
        let (tiles, row_blocks, row_groups, k_groups, depth, stages) = match tiles {
            1 | 2 if staged => whole_waves(tiles, share, gated),
            1 if gated => (1, 2, 1, 4, 1, 2),
            // Where all of a SIMD-group's blocks are asked for at once, nothing is left to wait for.
            1 if share <= 2.5 && units <= 32 => (1, 1, 1, 16, 2, 2),
            1 if share <= 2.5 => (1, 1, 1, 16, 1, 2),
            // E2M1 keeps its places, for which two row blocks or two units leave no registers.
            1 if (share <= 5.0 || share > 10.0) && layout.code == FragmentCode::Fp4 => {
                (1, 1, 1, 8, 1, 2)
            }
            1 if share <= 5.0 => (1, 1, 1, 8, 2, 2),
            1 => (1, 2, 1, 4, 2, 2),
            // Prompts: threadgroups as large as they can be, and along k only as many as leave no unit without one.
            _ if tokens > 64 && share * (tokens as f32 / 64.0) < 32.0 => (8, 2, 8, 2, 1, 4),
            _ if tokens > 64 => (8, 2, 8, 1, 1, 4),
            _ if share <= 3.0 => (4, 2, 2, 4, 1, 2),
            _ if share <= 5.0 => (4, 2, 2, 4, 1, 3),
            tiles if share <= 10.0 => (tiles, 2, 4, 4, 1, 3),
            tiles => (tiles, 2, 4, 2, 1, 3),
        };
        // Sixteen SIMD-groups with eight tiles each have no registers for two blocks of weights.
        let wide = wide && !(tiles == 8 && k_groups == 4);
        let mut shape = Self {
            tiles,
            row_blocks: if gated { 2 } else { row_blocks },
            row_groups,
            // No more than there are units of work, as a power of two.
            k_groups: k_groups.min(blocks.next_power_of_two()),
            // Units of one block are half as long: ask for twice as many, registers allowing.
            depth: if wide || tiles == 8 { depth } else { (2 * depth).min(4) },
            staged,
            splits: 1,
            wide,
            stages,
            prescaled: tiles == 8 && weights.allows_prescaled(),
            batched: false,
            ring: 0,
        };
        if shape.tiles == 1 && properties.copies_asynchronously() && weights.allows_ring() {
            // The fastest on an H200 in a model, where the product before it and the one after it want room too.
            let ring = match (gated, share) {
                _ if staged => None,
                (true, _) | (_, 10.0..) => Some((2, 4, 1, 2)),
                (_, ..=2.5) => Some((1, 16, 1, 0)),
                (_, ..=3.0) => Some((2, 8, 2, 0)),
                _ => None,
            };
            if let Some((row_blocks, k_groups, depth, ring)) = ring.filter(|(_, k, ..)| *k <= units)
            {
                shape = Self {
                    row_blocks,
                    row_groups: 1,
                    k_groups,
                    depth,
                    ring,
                    staged: false,
                    ..shape
                };
            }
        }
        // What does not fit into threadgroup memory: first less of x ahead, then fewer SIMD-groups.
        while shape.threadgroup_bytes() > properties.threadgroup_bytes {
            if shape.stages > 2 {
                shape.stages -= 1;
            } else if shape.k_groups > 1 {
                shape.k_groups /= 2;
            } else if shape.wide && shape.staged {
                shape.wide = false;
            } else if shape.row_groups > 1 {
                shape.row_groups /= 2;
            } else {
                break;
            }
        }
        shape
    }

    /// Whether the partial sums of a product in parts fit `room` floats.
    pub(crate) fn fits(
        &self,
        weights: &FragmentWeights,
        tokens: usize,
        gated: bool,
        room: usize,
    ) -> bool {
        let parts = self.splits * if gated { 2 } else { 1 };
        self.splits == 1 || gemm_batch::partial_floats(weights.layout(), tokens, parts) <= room
    }

    /// Bytes of threadgroup memory.
    pub fn threadgroup_bytes(&self) -> u32 {
        if self.batched {
            return gemm_batch::threadgroup_bytes(self);
        }
        let sums = self.k_groups * self.row_groups * self.row_blocks * 16 * self.tiles * 8 * 4;
        let columns = self.k_groups * if self.wide { 128 } else { 64 };
        let stages = self.stages * self.tiles * 8 * (columns + 16) * 2;
        // Of a shared norm: the SIMD-groups' squares.
        let squares = if self.tiles == 1 { self.k_groups * self.row_groups * 8 * 4 } else { 0 };
        // Two blocks of 4-bit codes and 16 scales for each row block.
        let ring = self.ring * self.k_groups * self.row_groups * self.row_blocks * 264 * 4;
        (sums + squares + ring).max(if self.staged { stages } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tokens_fill_whole_waves_with_as_many_simd_groups_as_there_can_be() {
        for row_blocks in 1..=4096u32 {
            for units in [8, 10, 20, 40, 132] {
                for (tiles, gated) in [(1, false), (1, true), (2, false), (2, true)] {
                    let share = row_blocks as f32 / units as f32;
                    let (_, blocks, groups, k_groups, ..) = whole_waves(tiles, share, gated);
                    assert!(!gated || tiles == 1 || blocks == 2);
                    let rows = groups * if gated { 1 } else { blocks };
                    let least = row_blocks.div_ceil(units);
                    let waves = row_blocks.div_ceil(rows).div_ceil(units);
                    // A unit takes no more than it must, but for what makes its waves alike.
                    assert!(
                        waves * rows <= least + 2 * waves,
                        "{row_blocks} on {units}: {waves} of {rows}"
                    );
                    let simd_groups = groups * k_groups;
                    assert!((12..=32).contains(&simd_groups), "{groups} × {k_groups}");
                    assert!(simd_groups <= 16 || tiles == 1 || blocks == 1, "registers");
                }
            }
        }
    }

    #[test]
    fn rows_of_large_models_on_132_units() {
        let shape = |tiles, rows: u32| whole_waves(tiles, rows as f32 / 16.0 / 132.0, false);
        assert_eq!(shape(2, 28672), (2, 1, 14, 2, 1, 2));
        assert_eq!(shape(2, 14336), (2, 1, 7, 4, 1, 2));
        assert_eq!(shape(2, 16384), (2, 2, 4, 4, 1, 3));
        assert_eq!(shape(1, 16384), (1, 2, 4, 8, 1, 3));
        assert_eq!(shape(2, 8192), (2, 2, 2, 8, 1, 3));
        assert_eq!(shape(2, 4096), (2, 2, 1, 16, 1, 3));
    }
}
