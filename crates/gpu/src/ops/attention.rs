//! Attention over the key/value cache: the op `attention` and its reduction after a split context.

use std::marker::PhantomData;

use marlin_kernels::attention::{
    Attention as Launcher, AttentionArgs, AttentionConstants, AttentionReduce, AttentionReduceArgs,
};
use marlin_kernels::attention_prefill::{
    AttentionPrefill, AttentionPrefillArgs, AttentionPrefillConstants,
};
use marlin_kernels::attention_short::{
    AttentionShort, AttentionShortArgs, AttentionShortConstants,
};
use marlin_kernels::signature::ElementType;
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::kv_cache::{KV_BLOCK, KvAddressing, KvLayout, KvStorage, check_rows};
use super::lengths::{expect_len, refuse};
use super::vectors::{EIGHT, starts_whole};
use crate::{CommandList, DeviceProperties, GpuError};

const KERNEL: &str = "attention";
/// SIMD-groups of a threadgroup.
const SIMDGROUPS: u32 = 4;
/// Query rows of a threadgroup.
const MAX_ROWS: u32 = 8;
/// What every device has; also what leaves room for two threadgroups on a core of an M-series GPU.
const THREADGROUP_BYTES: u32 = 32 << 10;

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
    fn most<T: Element>(&self, layout: &KvLayout, properties: &DeviceProperties) -> u32 {
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
fn fragment_halves(layout: &KvLayout) -> u32 {
    KV_BLOCK * (layout.head_dim().next_multiple_of(16) + 16) + layout.head_dim() * (KV_BLOCK + 16)
}

/// Threadgroup memory of `rows` rows, in floats.
fn shared_floats(layout: &KvLayout, rows: u32, simd_width: u32) -> u32 {
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
    pub(super) simdgroups: u32,
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

    pub(super) fn shared_floats(&self, layout: &KvLayout) -> u32 {
        self.simdgroups * self.rows * (layout.head_dim() + 2)
    }
}

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

/// Attention of new tokens, whose keys and values are in the cache already.
///
/// `sequences`, `positions` and the table of pages may be read before the dispatch in front of this one is done: no dispatch
/// of the same list may write them.
///
/// Single tokens (decoding, or any mix of tokens) with `tiles: None`; runs of tokens with the tiles of
/// [`RowShape::tiles`], which share what they read of the cache.
pub struct Attention<'a, T> {
    /// `[tokens][heads · head_dim]`, rows `query_stride` apart.
    pub query: View<'a, T>,
    /// Elements from one token's queries to the next one's.
    pub query_stride: u32,
    /// Query heads, a multiple of the layout's key heads.
    pub heads: u32,
    /// The layer's cache.
    pub cache: View<'a, [u32; 4]>,
    /// Its layout.
    pub layout: KvLayout,
    /// Where sequences are in it.
    pub addressing: KvAddressing<'a>,
    /// The sequence of each token, or [`NO_SEQUENCE`](super::kv_cache::NO_SEQUENCE).
    pub sequences: View<'a, u32>,
    /// The position of each token.
    pub positions: View<'a, u32>,
    /// `[tiles][2]`, for the given shape.
    pub tiles: Option<(View<'a, u32>, RowShape)>,
    /// Factor on the scores.
    pub scale: f32,
    /// Positions that a token sees, itself included.
    pub window: Option<u32>,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Parts of the context, more than 1 only for single tokens; and the kernel.
    pub shape: DecodeShape,
    /// [`workspace_len`] floats, or more.
    pub workspace: ViewMut<'a, f32>,
    /// `[tokens][heads · head_dim]`, rows `out_stride` apart.
    pub out: ViewMut<'a, T>,
    /// Elements from one token's outputs to the next one's.
    pub out_stride: u32,
}

impl<T: Element> Attention<'_, T> {
    /// Appends one dispatch, or two where the context is split. No tokens: nothing is appended.
    ///
    /// # Errors
    /// [`GpuError::Launch`] for lengths and shapes that do not fit each other.
    pub fn encode(
        self,
        properties: &DeviceProperties,
        commands: &mut CommandList,
    ) -> Result<(), GpuError> {
        let tokens = self.sequences.len() as u32;
        let group = self.check(properties)?;
        if tokens == 0 {
            return Ok(());
        }
        let layout = self.layout;
        let split = self.shape.splits > 1;
        if self.shape.short && self.tiles.is_none() {
            self.encode_short(group, properties, commands);
            if split {
                self.encode_reduction(commands);
            }
            return Ok(());
        }
        let (tiles, shape) = match &self.tiles {
            Some((tiles, shape)) => ((tiles.len() / 2) as u32, *shape),
            None => (tokens, RowShape::decode(&layout, group, properties)),
        };
        if shape.fragments {
            self.encode_fragments(group, shape, tiles, commands);
            return Ok(());
        }
        let lane_dims = if layout.storage() == KvStorage::F32 { 4 } else { 8 };
        let constants = AttentionConstants {
            head_dim: layout.head_dim(),
            kv_format: layout.storage().id(),
            blocks_per_page: self.addressing.blocks_per_page(),
            row_heads: shape.heads,
            row_tokens: shape.tokens,
            columns: (layout.head_dim() / lane_dims).div_ceil(properties.simd_width),
            split,
            softcap: self.softcap.is_some(),
        };
        commands.launch(
            Launcher {
                query: self.query,
                cache: self.cache,
                pages: self.addressing.pages(),
                sequences: self.sequences,
                positions: self.positions,
                tiles: self.tiles.as_ref().map(|(tiles, _)| *tiles),
                out: self.out,
                partial: self.workspace,
                args: AttentionArgs {
                    kv_heads: layout.kv_heads(),
                    group,
                    query_stride: self.query_stride,
                    out_stride: self.out_stride,
                    stride: self.addressing.stride(),
                    window: self.window.unwrap_or(0),
                    scale: self.scale,
                    softcap: self.softcap.unwrap_or(1.0),
                },
                shared: shared_floats(&layout, shape.heads * shape.tokens, properties.simd_width),
                constants,
                elements: PhantomData,
            },
            Grid::xyz(
                self.shape.splits,
                layout.kv_heads() * group.div_ceil(shape.heads),
                tiles,
                SIMDGROUPS * properties.simd_width,
            ),
        );
        if split {
            self.encode_reduction(commands);
        }
        Ok(())
    }

    /// Appends the dispatch of `attention_short`.
    fn encode_short(&self, group: u32, properties: &DeviceProperties, commands: &mut CommandList) {
        let layout = self.layout;
        let split = self.shape.splits > 1;
        let shape = ShortShape::new(&layout, group, split, properties);
        commands.launch(
            AttentionShort {
                query: self.query,
                cache: self.cache,
                pages: self.addressing.pages(),
                sequences: self.sequences,
                positions: self.positions,
                out: self.out,
                partial: self.workspace,
                args: AttentionShortArgs {
                    kv_heads: layout.kv_heads(),
                    group,
                    query_stride: self.query_stride,
                    out_stride: self.out_stride,
                    stride: self.addressing.stride(),
                    window: self.window.unwrap_or(0),
                    scale: self.scale,
                    softcap: self.softcap.unwrap_or(1.0),
                },
                shared: shape.shared_floats(&layout),
                constants: AttentionShortConstants {
                    head_dim: layout.head_dim(),
                    kv_format: layout.storage().id(),
                    blocks_per_page: self.addressing.blocks_per_page(),
                    row_heads: shape.rows,
                    slices: shape.slices,
                    columns: shape.columns,
                    lane_rows: shape.lane_rows,
                    split,
                    softcap: self.softcap.is_some(),
                    whole: starts_whole(&self.query)
                        && (self.query_stride as usize).is_multiple_of(EIGHT),
                    taken: properties.simd_width / shape.slices,
                },
                elements: PhantomData,
            },
            Grid::xyz(
                self.shape.splits,
                layout.kv_heads() * group.div_ceil(shape.rows),
                self.sequences.len() as u32,
                shape.simdgroups * properties.simd_width,
            ),
        );
    }

    fn encode_reduction(&self, commands: &mut CommandList) {
        let tokens = self.sequences.len() as u32;
        let head_dim = self.layout.head_dim();
        let parts = (self.shape.splits, self.workspace.read());
        encode_reduction(commands, parts, self.out, self.out_stride, tokens, self.heads, head_dim);
    }

    /// Appends the dispatch of `attention_prefill`.
    fn encode_fragments(
        self,
        group: u32,
        shape: RowShape,
        tile_count: u32,
        commands: &mut CommandList,
    ) {
        let layout = self.layout;
        let Some((tiles, _)) = self.tiles else { return };
        commands.launch(
            AttentionPrefill {
                query: self.query,
                cache: self.cache,
                pages: self.addressing.pages(),
                sequences: self.sequences,
                positions: self.positions,
                tiles,
                out: self.out,
                args: AttentionPrefillArgs {
                    kv_heads: layout.kv_heads(),
                    group,
                    query_stride: self.query_stride,
                    out_stride: self.out_stride,
                    stride: self.addressing.stride(),
                    window: self.window.unwrap_or(0),
                    scale: self.scale,
                    softcap: self.softcap.unwrap_or(1.0),
                },
                shared: fragment_halves(&layout),
                constants: AttentionPrefillConstants {
                    head_dim: layout.head_dim(),
                    kv_format: layout.storage().id(),
                    blocks_per_page: self.addressing.blocks_per_page(),
                    row_heads: shape.heads,
                    row_tokens: shape.tokens,
                    softcap: self.softcap.is_some(),
                },
                elements: PhantomData,
            },
            Grid::xy(layout.kv_heads() * group.div_ceil(shape.heads), tile_count, SIMDGROUPS * 32),
        );
    }

    /// Checks everything and gives the query heads of a key head.
    fn check(&self, properties: &DeviceProperties) -> Result<u32, GpuError> {
        let layout = self.layout;
        let tokens = self.sequences.len();
        if self.heads == 0 || !self.heads.is_multiple_of(layout.kv_heads()) {
            return Err(refuse(
                KERNEL,
                format!(
                    "{} query heads for {} key heads, expected a multiple",
                    self.heads,
                    layout.kv_heads()
                ),
            ));
        }
        let width = self.heads as usize * layout.head_dim() as usize;
        expect_len(KERNEL, "positions", self.positions.len(), tokens)?;
        let (query, out) = (self.query.len(), self.out.len());
        check_rows(KERNEL, "query", query, tokens, width, self.query_stride as usize)?;
        check_rows(KERNEL, "out", out, tokens, width, self.out_stride as usize)?;
        self.addressing.check(KERNEL, self.cache.len(), layout.block_pieces())?;
        if self.window == Some(0) {
            return Err(refuse(KERNEL, "a window of 0 positions, expected at least 1".to_owned()));
        }
        if let Some((tiles, shape)) = &self.tiles {
            let rows = shape.heads * shape.tokens;
            let most = shape.most::<T>(&layout, properties);
            if rows == 0 || rows > most || !tiles.len().is_multiple_of(2) {
                return Err(refuse(
                    KERNEL,
                    format!(
                        "tiles of {} tokens × {} heads in {} numbers, expected at most {most} rows and two \
                         numbers a tile",
                        shape.tokens,
                        shape.heads,
                        tiles.len()
                    ),
                ));
            }
        }
        let most = if self.tiles.is_some() { 1 } else { MAX_SPLITS };
        if self.shape.splits == 0 || self.shape.splits > most {
            return Err(refuse(
                KERNEL,
                format!("{} splits, expected 1 to {most} (1 with tiles)", self.shape.splits),
            ));
        }
        let needed = workspace_len(tokens as u32, self.heads, self.shape.splits, layout.head_dim());
        if self.workspace.len() < needed {
            return Err(refuse(
                KERNEL,
                format!("a workspace of {} floats, expected {needed}", self.workspace.len()),
            ));
        }
        Ok(self.heads / layout.kv_heads())
    }
}
