//! Attention over the key/value cache: the kernels `attention`, `attention_short` and `attention_prefill`.

use std::marker::PhantomData;

use marlin_kernels::attention::{Attention as Launcher, AttentionArgs, AttentionConstants};
use marlin_kernels::attention_prefill::{
    AttentionPrefill, AttentionPrefillArgs, AttentionPrefillConstants,
};
use marlin_kernels::attention_short::{
    AttentionShort, AttentionShortArgs, AttentionShortConstants,
};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::attention_reduce::{check_splits, encode_reduction};
use super::attention_shape::{SIMDGROUPS, ShortShape, fragment_halves, shared_floats};
use super::kv_cache::{KvAddressing, KvLayout, KvStorage, check_rows};
use super::lengths::{expect_len, refuse};
use super::vectors::{EIGHT, starts_whole};
use crate::{CommandList, DeviceProperties, GpuError};

pub use super::attention_reduce::{MAX_SPLITS, workspace_len};
pub use super::attention_shape::{DecodeShape, RowShape, decode_splits};

const KERNEL: &str = "attention";
/// Refuses a window that hides a token from itself.
pub(super) fn check_window(kernel: &str, window: Option<u32>) -> Result<(), GpuError> {
    if window == Some(0) {
        return Err(refuse(kernel, "a window of 0 positions, expected at least 1".to_owned()));
    }
    Ok(())
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
            shape.grid(&layout, group, self.shape.splits, self.sequences.len() as u32, properties),
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
        let group = layout.group(KERNEL, self.heads)?;
        let width = self.heads as usize * layout.head_dim() as usize;
        expect_len(KERNEL, "positions", self.positions.len(), tokens)?;
        let (query, out) = (self.query.len(), self.out.len());
        check_rows(KERNEL, "query", query, tokens, width, self.query_stride as usize)?;
        check_rows(KERNEL, "out", out, tokens, width, self.out_stride as usize)?;
        self.addressing.check(KERNEL, self.cache.len(), layout.block_pieces())?;
        check_window(KERNEL, self.window)?;
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
        if self.tiles.is_some() && self.shape.splits > 1 {
            let reason = format!("{} splits with tiles, expected 1", self.shape.splits);
            return Err(refuse(KERNEL, reason));
        }
        let rows = (tokens as u32, self.heads, layout.head_dim());
        check_splits(KERNEL, self.shape.splits, rows, self.workspace.len())?;
        Ok(group)
    }
}
