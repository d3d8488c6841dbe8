//! Rotation, the writing of keys and values into the cache, and attention over a short context as one dispatch:
//! `attention_append.metal`.

use std::marker::PhantomData;

use marlin_backend::RopeStyle;
use marlin_kernels::attention_append::{
    AttentionAppend as Launcher, AttentionAppendArgs, AttentionAppendConstants,
};
use marlin_kernels::{Element, View, ViewMut};

use super::attention::check_window;
use super::attention_reduce::{check_splits, encode_reduction};
use super::attention_shape::{DecodeShape, ShortShape};
use super::kv_cache::{KvAddressing, KvLayout, KvStorage, check_rows};
use super::lengths::{expect_len, refuse};
use super::rope::Rotation;
use super::rope_append::HeadRows;
use super::vectors::starts_whole;
use crate::{CommandList, DeviceProperties, GpuError};

const KERNEL: &str = "attention_append";

/// What [`RopeAppend`](super::rope_append::RopeAppend) and [`Attention`](super::attention::Attention) do after one another, to
/// the bit, for single tokens of different sequences over short contexts; queries stay as they were in their rows.
///
/// `sequences`, `positions`, the table of pages and the frequencies may be read before the dispatch in front of this one is
/// done: no dispatch of the same list may write them.
pub struct AttentionAppend<'a, T> {
    /// Queries, keys and values in the rows of one product.
    pub rows: View<'a, T>,
    /// Query heads, a multiple of the layout's key heads.
    pub heads: u32,
    /// Where the queries are.
    pub q: HeadRows,
    /// Where the keys are; as far from token to token as the queries.
    pub k: HeadRows,
    /// Where the values are; as far from token to token as the queries.
    pub v: HeadRows,
    /// What is done to queries and keys.
    pub rotation: Rotation<'a>,
    /// The sequence of each token, or [`NO_SEQUENCE`](super::kv_cache::NO_SEQUENCE). No two are alike.
    pub sequences: View<'a, u32>,
    /// The position of each token.
    pub positions: View<'a, u32>,
    /// The layer's cache, filled with zero bytes once.
    pub cache: ViewMut<'a, [u32; 4]>,
    /// Its layout.
    pub layout: KvLayout,
    /// Where sequences are in it.
    pub addressing: KvAddressing<'a>,
    /// Factor on the scores.
    pub scale: f32,
    /// Positions that a token sees, itself included.
    pub window: Option<u32>,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Parts of the context; a short one.
    pub shape: DecodeShape,
    /// [`workspace_len`](super::attention::workspace_len) floats, or more.
    pub workspace: ViewMut<'a, f32>,
    /// `[tokens][heads · head_dim]`, rows `out_stride` apart.
    pub out: ViewMut<'a, T>,
    /// Elements from one token's outputs to the next one's.
    pub out_stride: u32,
}

/// Whether the kernel has such a cache and such a rotation: a lane must hold values together with those that they form pairs
/// with.
pub fn can_append(
    layout: &KvLayout,
    heads: u32,
    style: RopeStyle,
    pairs: usize,
    shape: DecodeShape,
    properties: &DeviceProperties,
) -> bool {
    let short = ShortShape::new(layout, heads / layout.kv_heads(), shape.splits > 1, properties);
    layout.storage() == KvStorage::F16
        && shape.short
        && style == RopeStyle::HalfSplit
        && 2 * pairs == layout.head_dim() as usize
        && layout.head_dim().is_multiple_of(16 * short.slices)
}

impl<T: Element> AttentionAppend<'_, T> {
    /// Appends one dispatch, or two where the context is split. No tokens: nothing is appended.
    ///
    /// # Errors
    /// [`GpuError::Launch`] for what [`can_append`] says no to, and for lengths that do not fit each other.
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
        let shape = ShortShape::new(&layout, group, split, properties);
        commands.launch(
            Launcher {
                rows: self.rows,
                pages: self.addressing.pages(),
                sequences: self.sequences,
                positions: self.positions,
                inverse_frequencies: self.rotation.inverse_frequencies,
                cache: self.cache,
                out: self.out,
                partial: self.workspace,
                args: AttentionAppendArgs {
                    kv_heads: layout.kv_heads(),
                    group,
                    row_stride: self.q.stride as u32,
                    q_first: self.q.first as u32,
                    k_first: self.k.first as u32,
                    v_first: self.v.first as u32,
                    out_stride: self.out_stride,
                    stride: self.addressing.stride(),
                    window: self.window.unwrap_or(0),
                    scale: self.scale,
                    softcap: self.softcap.unwrap_or(1.0),
                    magnitude: self.rotation.magnitude,
                },
                shared: shape.shared_floats(&layout),
                constants: AttentionAppendConstants {
                    head_dim: layout.head_dim(),
                    kv_format: layout.storage().id(),
                    blocks_per_page: self.addressing.blocks_per_page(),
                    row_heads: shape.rows,
                    slices: shape.slices,
                    columns: shape.columns,
                    lane_rows: shape.lane_rows,
                    split,
                    softcap: self.softcap.is_some(),
                    whole: starts_whole(&self.rows)
                        && [self.q, self.k, self.v].iter().all(HeadRows::in_eights),
                    taken: properties.simd_width / shape.slices,
                },
                elements: PhantomData,
            },
            shape.grid(&layout, group, self.shape.splits, tokens, properties),
        );
        if split {
            let parts = (self.shape.splits, self.workspace.read());
            let (out, stride, dim) = (self.out, self.out_stride, layout.head_dim());
            encode_reduction(commands, parts, out, stride, tokens, self.heads, dim);
        }
        Ok(())
    }

    /// Checks everything and gives the query heads of a key head.
    fn check(&self, properties: &DeviceProperties) -> Result<u32, GpuError> {
        let layout = self.layout;
        let tokens = self.sequences.len();
        let Rotation { head_dim, style, inverse_frequencies, .. } = self.rotation;
        let pairs = inverse_frequencies.len();
        let group = layout.group(KERNEL, self.heads)?;
        if head_dim != layout.head_dim() as usize
            || !can_append(&layout, self.heads, style, pairs, self.shape, properties)
        {
            return Err(refuse(
                KERNEL,
                format!(
                    "{pairs} pairs ({style:?}) of heads of {head_dim} values over a cache of {:?} with heads of {}, in \
                     {:?}, which the kernel does not have",
                    layout.storage(),
                    layout.head_dim(),
                    self.shape
                ),
            ));
        }
        expect_len(KERNEL, "positions", self.positions.len(), tokens)?;
        for (name, rows, heads) in [
            ("q", self.q, self.heads),
            ("k", self.k, layout.kv_heads()),
            ("v", self.v, layout.kv_heads()),
        ] {
            rows.check(KERNEL, name, self.rows.len(), tokens, heads as usize * head_dim)?;
            if rows.stride != self.q.stride {
                return Err(refuse(
                    KERNEL,
                    format!("rows of {name} {} apart, expected {}", rows.stride, self.q.stride),
                ));
            }
        }
        let (width, stride) = (self.heads as usize * head_dim, self.out_stride as usize);
        check_rows(KERNEL, "out", self.out.len(), tokens, width, stride)?;
        self.addressing.check(KERNEL, self.cache.len(), layout.block_pieces())?;
        check_window(KERNEL, self.window)?;
        let rows = (tokens as u32, self.heads, layout.head_dim());
        check_splits(KERNEL, self.shape.splits, rows, self.workspace.len())?;
        Ok(group)
    }
}
