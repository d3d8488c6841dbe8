//! How attention divides its work among threadgroups.

use marlin_kernels::signature::ElementType;
use marlin_kernels::{Element, Grid};

use super::attention_reduce::{MAX_SPLITS, THREADGROUP_BYTES};
use super::kv_cache::{KV_BLOCK, KvLayout, KvStorage};
use crate::DeviceProperties;

/// SIMD-groups of a threadgroup.
pub(super) const SIMDGROUPS: u32 = 4;
/// Query rows of a threadgroup.
const MAX_ROWS: u32 = 8;

/// How the queries are divided among threadgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowShape {
    /// Query heads of one key head.
    pub heads: u32,
    /// Tokens of one sequence.
    pub tokens: u32,
    /// Products by matrix fragments (`attention_prefill`), operands rounded to f16.
    pub fragments: bool,
}

impl RowShape {
    /// For single tokens: all heads of a key head, or equal parts of them, so that the cache is read as
    /// few times as can be.
    pub fn decode(layout: &KvLayout, group: u32, properties: &DeviceProperties) -> Self {
        let most = most_rows(layout, properties);
        let heads = group.div_ceil(group.div_ceil(most).max(1)).max(1);
        Self { heads, tokens: 1, fragments: false }
    }

    /// For runs of tokens: as many as fit. Matrix fragments wherever they can be had; activations of f32 keep
    /// products of f32.
    pub fn prefill<T: Element>(
        layout: &KvLayout,
        group: u32,
        properties: &DeviceProperties,
    ) -> Self {
        if fragments_fit::<T>(layout, properties) {
            let heads = group.div_ceil(group.div_ceil(16).max(1)).max(1);
            return Self { heads, tokens: FRAGMENT_ROWS / heads, fragments: true };
        }
        let Self { heads, .. } = Self::decode(layout, group, properties);
        Self { heads, tokens: (most_rows(layout, properties) / heads).max(1), fragments: false }
    }

    /// The most rows that a threadgroup can have.
    pub(super) fn most<T: Element>(&self, layout: &KvLayout, properties: &DeviceProperties) -> u32 {
        match (self.fragments, fragments_fit::<T>(layout, properties)) {
            (true, true) => FRAGMENT_ROWS,
            (true, false) => 0,
            (false, _) => most_rows(layout, properties),
        }
    }

    /// Tiles for runs of tokens: `[first token, tokens]` of each, from the `(sequence, position)` of every token.
    /// A tile's tokens are of one sequence and have consecutive positions.
    pub fn tiles(&self, tokens: &[(u32, u32)]) -> Vec<u32> {
        let mut tiles: Vec<u32> = Vec::new();
        let mut first = 0;
        for i in 1..=tokens.len() {
            let ends = tokens.get(i).is_none_or(|&(sequence, position)| {
                let (before, at) = tokens[i - 1];
                sequence != before
                    || position != at.wrapping_add(1)
                    || (i - first) as u32 == self.tokens
            });
            if ends {
                tiles.extend([first as u32, (i - first) as u32]);
                first = i;
            }
        }
        tiles
    }
}

/// Query rows of a threadgroup with matrix fragments: 16 a SIMD-group.
const FRAGMENT_ROWS: u32 = 16 * SIMDGROUPS;

fn fragments_fit<T: Element>(layout: &KvLayout, properties: &DeviceProperties) -> bool {
    properties.simd_width == 32
        && T::TYPE != ElementType::F32
        && layout.head_dim() <= 192
        && 2 * fragment_halves(layout) <= properties.threadgroup_bytes.min(THREADGROUP_BYTES)
}

/// Threadgroup memory of `attention_prefill`, in halves: 32 keys and, transposed, 32 values.
pub(super) fn fragment_halves(layout: &KvLayout) -> u32 {
    KV_BLOCK * (layout.head_dim().next_multiple_of(16) + 16) + layout.head_dim() * (KV_BLOCK + 16)
}

/// Threadgroup memory of `rows` rows, in floats.
pub(super) fn shared_floats(layout: &KvLayout, rows: u32, simd_width: u32) -> u32 {
    let loop_floats =
        rows * layout.padded_dim() + SIMDGROUPS * simd_width * rows.next_multiple_of(4);
    loop_floats.max(SIMDGROUPS * rows * (layout.head_dim() + 2))
}

fn most_rows(layout: &KvLayout, properties: &DeviceProperties) -> u32 {
    let limit = properties.threadgroup_bytes.min(THREADGROUP_BYTES);
    (1..=MAX_ROWS)
        .rev()
        .find(|&rows| 4 * shared_floats(layout, rows, properties.simd_width) <= limit)
        .unwrap_or(1)
}

/// Parts of a context of at most `context` positions for `tokens` single tokens: enough
/// threadgroups to fill the device, none with less than two blocks for each of its SIMD-groups.
pub fn decode_splits(
    layout: &KvLayout,
    heads: u32,
    tokens: u32,
    context: u32,
    properties: &DeviceProperties,
) -> u32 {
    let group = heads / layout.kv_heads();
    let rows = RowShape::decode(layout, group, properties);
    let others = (tokens * layout.kv_heads() * group.div_ceil(rows.heads)).max(1);
    // One wave: what a streaming multiprocessor's registers hold of threadgroups of 128 threads. A second,
    // partly filled wave cost a quarter of the speed on an H100.
    let resident = match (rows.heads, layout.storage()) {
        (0..=4, _) | (_, KvStorage::F32) => 4,
        (_, KvStorage::F16 | KvStorage::Int8) => 3,
        (_, KvStorage::Fp4) => 2,
    };
    let wanted = (resident * properties.compute_units / others).max(1);
    let most = context.div_ceil(2 * SIMDGROUPS * KV_BLOCK);
    wanted.min(most).clamp(1, MAX_SPLITS)
}

/// How a context is divided for single tokens, and which kernel goes over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeShape {
    /// Parts of the context.
    pub splits: u32,
    /// `attention_short`, for which latency counts and not bandwidth.
    pub short: bool,
}

/// Positions of all tokens up to which contexts are short: from there on bytes cost more than latency does, on an H100
/// (`docs/performance.md`). Codes take instructions, which `attention` has fewer of a byte.
const fn short_positions(storage: KvStorage) -> u32 {
    match storage {
        KvStorage::F16 | KvStorage::F32 => 16384,
        KvStorage::Int8 | KvStorage::Fp4 => 8192,
    }
}

/// Positions that threadgroups without help go over faster than a reduction is done.
const WHOLE_CONTEXT: u32 = 512;

impl DecodeShape {
    /// Not split, whatever the context's length.
    pub const WHOLE: Self = Self { splits: 1, short: false };

    /// For contexts of at most `context` positions and `tokens` single tokens.
    pub fn choose(
        layout: &KvLayout,
        heads: u32,
        tokens: u32,
        context: u32,
        properties: &DeviceProperties,
    ) -> Self {
        // Threads in plenty for every head: with more tokens the device is busy anyway, and a cache read once for several
        // heads is worth more.
        let few = tokens.max(1) * heads <= 4 * properties.compute_units;
        let positions = tokens.max(1).saturating_mul(context);
        if few && positions <= short_positions(layout.storage()) {
            let mut splits = 1;
            if context > WHOLE_CONTEXT {
                let group = heads / layout.kv_heads();
                let shape = ShortShape::new(layout, group, true, properties);
                let others = tokens.max(1) * layout.kv_heads() * group.div_ceil(shape.rows);
                let round = shape.simdgroups * properties.simd_width / shape.slices;
                splits = (properties.compute_units / others).clamp(1, context.div_ceil(round));
            }
            return Self { splits, short: true };
        }
        let splits = decode_splits(layout, heads, tokens, context, properties);
        Self { splits, short: false }
    }
}

/// How `attention_short` and `attention_append` divide their work.
#[derive(Clone, Copy)]
pub(super) struct ShortShape {
    /// Query heads of a threadgroup.
    pub(super) rows: u32,
    simdgroups: u32,
    /// Lanes that share a position's key.
    pub(super) slices: u32,
    pub(super) columns: u32,
    pub(super) lane_rows: u32,
}

impl ShortShape {
    pub(super) fn new(
        layout: &KvLayout,
        group: u32,
        split: bool,
        properties: &DeviceProperties,
    ) -> Self {
        let width = properties.simd_width;
        let limit = properties.threadgroup_bytes.min(THREADGROUP_BYTES);
        let threads = if split { 256 } else { 512 };
        let simdgroups = (threads / width).clamp(4, 16);
        let fits = |rows: u32| 4 * simdgroups * rows * (layout.head_dim() + 2) <= limit;
        // A head a threadgroup while the context is whole: what is read again comes from a cache, and every head adds to the
        // chain of sums. The parts of a split context are short already.
        let most = if split { (1..=4).rev().find(|&rows| fits(rows)).unwrap_or(1) } else { 1 };
        let rows = group.div_ceil(group.div_ceil(most).max(1)).max(1);
        // At least four positions a SIMD-group: fp4 has the values of four in one piece.
        let slices = (width / 4).clamp(1, 4);
        let elements = layout.storage().piece_elements();
        let unit = elements.min(8);
        let units = layout.head_dim() / unit;
        let piece_rows = width / slices / (elements / unit);
        let lane_rows = (width / units).min(piece_rows).max(1);
        Self {
            rows,
            simdgroups,
            slices,
            columns: units.div_ceil(width),
            // Halved again and again when they are added up.
            lane_rows: 1 << lane_rows.ilog2(),
        }
    }

    pub(super) fn grid(
        &self,
        layout: &KvLayout,
        group: u32,
        splits: u32,
        tokens: u32,
        properties: &DeviceProperties,
    ) -> Grid {
        Grid::xyz(
            splits,
            layout.kv_heads() * group.div_ceil(self.rows),
            tokens,
            self.simdgroups * properties.simd_width,
        )
    }

    pub(super) fn shared_floats(&self, layout: &KvLayout) -> u32 {
        self.simdgroups * self.rows * (layout.head_dim() + 2)
    }
}
