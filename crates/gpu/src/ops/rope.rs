//! Rotary position embedding with the norms of heads before it: `rope.metal`.

use std::marker::PhantomData;

use marlin_backend::RopeStyle;
use marlin_kernels::rope::{Rope as Launcher, RopeArgs, RopeConstants};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::lengths::{expect_len, refuse};
use super::norm::NormWeight;
use crate::{CommandList, DeviceProperties, GpuError};

const KERNEL: &str = "rope";
/// The kernel's MAX_PAIRS.
const MAX_PAIRS: usize = 512;
const THREADS: u32 = 256;

/// Where the heads of queries or keys are: head h of token t begins at element `first + t · token_stride + h · head_stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Heads of a token.
    pub heads: usize,
    /// Element of the first token's first head.
    pub first: usize,
    /// Elements from one token to the next.
    pub token_stride: usize,
    /// Elements from one head to the next.
    pub head_stride: usize,
}

impl HeadLayout {
    /// `[tokens, heads, head_dim]` without gaps.
    pub const fn contiguous(heads: usize, head_dim: usize) -> Self {
        Self { heads, first: 0, token_stride: heads * head_dim, head_stride: head_dim }
    }

    /// One past the last head's last element.
    const fn end(&self, tokens: usize, head_dim: usize) -> usize {
        if tokens == 0 || self.heads == 0 {
            return 0;
        }
        self.first
            + (tokens - 1) * self.token_stride
            + (self.heads - 1) * self.head_stride
            + head_dim
    }
}

/// What is rotated, in place.
pub enum HeadValues<'a, T> {
    /// Queries and keys in memory of their own.
    Apart {
        /// The queries.
        q: ViewMut<'a, T>,
        /// The keys.
        k: ViewMut<'a, T>,
    },
    /// Both in the rows of one product.
    Together(ViewMut<'a, T>),
}

/// Queries or keys.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// Where each head is.
    pub layout: HeadLayout,
    /// Norm of each head before it is rotated (Qwen 3, Gemma 3); the weight has a value for each of the head's.
    pub norm: Option<NormWeight<'a>>,
}

/// What is done to every head.
#[derive(Clone, Copy)]
pub struct Rotation<'a> {
    /// Values of a head.
    pub head_dim: usize,
    /// Which values form a pair.
    pub style: RopeStyle,
    /// One angle per position step and pair, scaling applied. The first twice as many values of a head are rotated;
    /// none, and only the norms are done.
    pub inverse_frequencies: View<'a, f32>,
    /// Factor on rotated values: YaRN's attention factor, otherwise 1.
    pub magnitude: f32,
}

/// Appends the norms and rotations of queries and keys, in place. positions: one for each token.
///
/// # Errors
/// More pairs than half a head or than 512, norms of another width than the heads, views shorter than the layouts say.
pub fn rope<T: Element>(
    list: &mut CommandList,
    properties: &DeviceProperties,
    values: HeadValues<'_, T>,
    q: Heads<'_>,
    k: Heads<'_>,
    positions: View<'_, u32>,
    rotation: Rotation<'_>,
) -> Result<(), GpuError> {
    let tokens = positions.len();
    let Rotation { head_dim, style, inverse_frequencies, magnitude } = rotation;
    let pairs = inverse_frequencies.len();
    if 2 * pairs > head_dim || pairs > MAX_PAIRS {
        return Err(refuse(
            KERNEL,
            format!("{pairs} pairs, expected at most half of {head_dim} values and {MAX_PAIRS}"),
        ));
    }
    let (q_values, k_values) = match values {
        HeadValues::Apart { q, k } => (q, Some(k)),
        HeadValues::Together(rows) => (rows, None),
    };
    for (name, heads, values) in [("q", &q, q_values), ("k", &k, k_values.unwrap_or(q_values))] {
        let (end, found) = (heads.layout.end(tokens, head_dim), values.len());
        if found < end {
            return Err(refuse(
                KERNEL,
                format!("{name} has {found} elements, its layout takes {end}"),
            ));
        }
        if let Some(norm) = &heads.norm {
            expect_len(KERNEL, &format!("{name}'s norm"), norm.weight.len(), head_dim)?;
        }
    }
    let (epsilon, offset) = (|n: &NormWeight<'_>| n.epsilon, |n: &NormWeight<'_>| n.offset);
    let launcher = Launcher {
        q: q_values,
        k: k_values,
        positions,
        inverse_frequencies,
        q_weight: q.norm.map(|n| n.weight),
        k_weight: k.norm.map(|n| n.weight),
        args: RopeArgs {
            q_heads: q.layout.heads as u32,
            k_heads: k.layout.heads as u32,
            head_dim: head_dim as u32,
            pairs: pairs as u32,
            q_first: q.layout.first as u32,
            k_first: k.layout.first as u32,
            q_token_stride: q.layout.token_stride as u32,
            q_head_stride: q.layout.head_stride as u32,
            k_token_stride: k.layout.token_stride as u32,
            k_head_stride: k.layout.head_stride as u32,
            magnitude,
            q_epsilon: q.norm.as_ref().map_or(0.0, epsilon),
            k_epsilon: k.norm.as_ref().map_or(0.0, epsilon),
            q_offset: q.norm.as_ref().map_or(0.0, offset),
            k_offset: k.norm.as_ref().map_or(0.0, offset),
        },
        constants: RopeConstants {
            interleaved: style == RopeStyle::Interleaved,
            q_norm: q.norm.is_some(),
            k_norm: k.norm.is_some(),
            together: k_values.is_none(),
        },
        elements: PhantomData,
    };
    let heads = (q.layout.heads + k.layout.heads) as u32;
    list.launch(launcher, head_grid(heads, tokens as u32, properties));
    Ok(())
}

/// A SIMD-group a head while tokens are few; one threadgroup a token when they fill the device.
pub(super) fn head_grid(heads: u32, tokens: u32, properties: &DeviceProperties) -> Grid {
    let shares = heads.div_ceil(THREADS / properties.simd_width);
    let wanted = (4 * properties.compute_units).div_ceil(tokens.max(1));
    Grid::xy(tokens, shares.min(wanted).max(1), THREADS)
}
