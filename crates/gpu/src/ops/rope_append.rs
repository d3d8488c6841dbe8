//! Rotary position embedding and the writing of keys and values into the cache as one dispatch: `rope_append.metal`.

use std::marker::PhantomData;

use marlin_backend::RopeStyle;
use marlin_kernels::rope_append::{RopeAppend as Launcher, RopeAppendArgs, RopeAppendConstants};
use marlin_kernels::{Element, View, ViewMut};

use super::kv_cache::{KvAddressing, KvLayout};
use super::lengths::{expect_len, refuse};
use super::norm::NormWeight;
use super::rope::{Rotation, head_grid};
use super::vectors::{EIGHT, starts_whole, starts_whole_mut};
use crate::{CommandList, DeviceProperties, GpuError};

const KERNEL: &str = "rope_append";

/// Where the heads of queries, keys or values are: token t's first head begins at element `first + t · stride`, and the others
/// follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRows {
    /// Element of the first token's first head.
    pub first: usize,
    /// Elements from one token to the next.
    pub stride: usize,
}

impl HeadRows {
    /// Refuses rows of `width` elements that overlap or reach past the buffer's end.
    pub(super) fn check(
        &self,
        kernel: &str,
        name: &str,
        found: usize,
        tokens: usize,
        width: usize,
    ) -> Result<(), GpuError> {
        let Self { first, stride } = *self;
        let needed = tokens.checked_sub(1).map_or(0, |last| first + last * stride + width);
        if stride >= width && found >= needed {
            return Ok(());
        }
        Err(refuse(
            kernel,
            format!(
                "{name} has {found} elements for {tokens} rows of {width}, {stride} apart from {first} on, expected \
                 at least {needed} and rows that do not overlap"
            ),
        ))
    }

    /// Whether all of them start at multiples of eight elements.
    pub(super) fn in_eights(&self) -> bool {
        self.first.is_multiple_of(EIGHT) && self.stride.is_multiple_of(EIGHT)
    }
}

/// Where queries, keys and values are.
pub enum QkvValues<'a, T> {
    /// In memory of their own.
    Apart {
        /// The queries, rotated in place.
        q: ViewMut<'a, T>,
        /// The keys.
        k: View<'a, T>,
        /// The values.
        v: View<'a, T>,
    },
    /// All in the rows of one product.
    Together(ViewMut<'a, T>),
}

/// Rotates queries in place, and writes rotated keys and values into the cache: what [`rope`](super::rope::rope) and
/// [`AppendKv`](super::kv_cache::AppendKv) do after one another, to the bit, but that keys stay as they were in their rows.
///
/// `sequences`, `positions`, the table of pages and the frequencies may be read before the dispatch in front of this one is
/// done: no dispatch of the same list may write them.
pub struct RopeAppend<'a, T> {
    /// Queries, keys and values.
    pub values: QkvValues<'a, T>,
    /// Query heads.
    pub q_heads: u32,
    /// Where the queries are.
    pub q: HeadRows,
    /// Where the keys are.
    pub k: HeadRows,
    /// Where the values are.
    pub v: HeadRows,
    /// Norm of each query head before it is rotated.
    pub q_norm: Option<NormWeight<'a>>,
    /// Norm of each key head before it is rotated.
    pub k_norm: Option<NormWeight<'a>>,
    /// What is done to queries and keys.
    pub rotation: Rotation<'a>,
    /// The sequence of each token, or [`NO_SEQUENCE`](super::kv_cache::NO_SEQUENCE).
    pub sequences: View<'a, u32>,
    /// The position of each token.
    pub positions: View<'a, u32>,
    /// The layer's cache, filled with zero bytes once.
    pub cache: ViewMut<'a, [u32; 4]>,
    /// Its layout; heads are of the rotation's size.
    pub layout: KvLayout,
    /// Where sequences are in it.
    pub addressing: KvAddressing<'a>,
}

impl<T: Element> RopeAppend<'_, T> {
    /// Appends the dispatch. No tokens: nothing is appended.
    ///
    /// # Errors
    /// [`GpuError::Launch`] for more pairs than half a head, norms of another width than the heads, heads of another size than
    /// the cache's, and views shorter than what is said of them.
    pub fn encode(
        self,
        properties: &DeviceProperties,
        commands: &mut CommandList,
    ) -> Result<(), GpuError> {
        let tokens = self.sequences.len();
        let whole = self.check()?;
        if tokens == 0 {
            return Ok(());
        }
        let (layout, rotation) = (self.layout, self.rotation);
        let kv_heads = layout.kv_heads();
        let (q, k, v, together) = match self.values {
            QkvValues::Apart { q, k, v } => (q, Some(k), Some(v), false),
            QkvValues::Together(rows) => (rows, None, None, true),
        };
        let (epsilon, offset) = (|n: &NormWeight<'_>| n.epsilon, |n: &NormWeight<'_>| n.offset);
        let launcher = Launcher {
            q,
            k,
            v,
            sequences: self.sequences,
            positions: self.positions,
            pages: self.addressing.pages(),
            inverse_frequencies: rotation.inverse_frequencies,
            q_weight: self.q_norm.map(|n| n.weight),
            k_weight: self.k_norm.map(|n| n.weight),
            cache: self.cache,
            args: RopeAppendArgs {
                q_heads: self.q_heads,
                kv_heads,
                pairs: rotation.inverse_frequencies.len() as u32,
                q_first: self.q.first as u32,
                k_first: self.k.first as u32,
                v_first: self.v.first as u32,
                q_stride: self.q.stride as u32,
                k_stride: self.k.stride as u32,
                v_stride: self.v.stride as u32,
                cache_stride: self.addressing.stride(),
                magnitude: rotation.magnitude,
                q_epsilon: self.q_norm.as_ref().map_or(0.0, epsilon),
                k_epsilon: self.k_norm.as_ref().map_or(0.0, epsilon),
                q_offset: self.q_norm.as_ref().map_or(0.0, offset),
                k_offset: self.k_norm.as_ref().map_or(0.0, offset),
            },
            constants: RopeAppendConstants {
                head_dim: layout.head_dim(),
                kv_format: layout.storage().id(),
                blocks_per_page: self.addressing.blocks_per_page(),
                interleaved: rotation.style == RopeStyle::Interleaved,
                q_norm: self.q_norm.is_some(),
                k_norm: self.k_norm.is_some(),
                together,
                whole,
            },
            elements: PhantomData,
        };
        let grid = head_grid(self.q_heads + 2 * kv_heads, tokens as u32, properties);
        commands.launch(launcher, grid);
        Ok(())
    }

    /// Checks everything, and says whether all heads start at multiples of 16 bytes and pairs lie whole eights apart.
    fn check(&self) -> Result<bool, GpuError> {
        let tokens = self.sequences.len();
        let layout = self.layout;
        let Rotation { head_dim, style, inverse_frequencies, .. } = self.rotation;
        let pairs = inverse_frequencies.len();
        if head_dim != layout.head_dim() as usize || 2 * pairs > head_dim {
            return Err(refuse(
                KERNEL,
                format!(
                    "{pairs} pairs of heads of {head_dim} values, expected heads of {} as in the cache and at \
                     most half as many pairs",
                    layout.head_dim()
                ),
            ));
        }
        expect_len(KERNEL, "positions", self.positions.len(), tokens)?;
        for (name, norm) in [("q", &self.q_norm), ("k", &self.k_norm)] {
            if let Some(norm) = norm {
                expect_len(KERNEL, &format!("{name}'s norm"), norm.weight.len(), head_dim)?;
            }
        }
        let (q_len, k_len, v_len, starts) = match &self.values {
            QkvValues::Apart { q, k, v } => {
                let starts = starts_whole_mut(q) && starts_whole(k) && starts_whole(v);
                (q.len(), k.len(), v.len(), starts)
            }
            QkvValues::Together(rows) => {
                (rows.len(), rows.len(), rows.len(), starts_whole_mut(rows))
            }
        };
        let kv_heads = layout.kv_heads();
        for (name, rows, heads, found) in [
            ("q", self.q, self.q_heads, q_len),
            ("k", self.k, kv_heads, k_len),
            ("v", self.v, kv_heads, v_len),
        ] {
            rows.check(KERNEL, name, found, tokens, heads as usize * head_dim)?;
        }
        self.addressing.check(KERNEL, self.cache.len(), layout.block_pieces())?;
        Ok(starts
            && [self.q, self.k, self.v].iter().all(HeadRows::in_eights)
            && (style == RopeStyle::Interleaved || pairs.is_multiple_of(EIGHT)))
    }
}
