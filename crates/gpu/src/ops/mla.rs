//! Multi-head latent attention: the ops of `mla.metal`, in the order of a forward pass.

use std::marker::PhantomData;

use half::f16;
use marlin_formats::fragment::{
    BLOCK_COLS, BLOCK_ROWS, FragmentLayout, FragmentMin, FragmentScale,
};
use marlin_kernels::attention::{AttentionConstants, AttentionReduce, AttentionReduceArgs};
use marlin_kernels::mla::{
    MlaAbsorb, MlaAppend, MlaAppendArgs, MlaAttend, MlaAttendArgs, MlaConstants, MlaExpand,
    MlaFused as FusedLauncher, MlaFusedArgs, MlaHeadArgs,
};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::attention_reduce::{
    MAX_SPLITS, REDUCE_CONSTANTS, REDUCE_THREADS, reduce_shared, workspace_len,
};
use super::kv_cache::{KV_BLOCK, KvAddressing, check_rows};
use super::lengths::{expect_len, refuse};
use crate::{CommandList, DeviceProperties, GpuError};

/// Tokens of a threadgroup of the two-stage projection.
const TILE_TOKENS: u32 = 4;
/// Heads of a SIMD-group in the latent attention: on an H100 two are faster than four, which take twice the registers.
const ROW_HEADS: u32 = 2;
/// SIMD-groups of a threadgroup there.
const SIMDGROUPS: u32 = 4;
/// The most threadgroup memory that every device has.
const THREADGROUP_BYTES: u32 = 32 << 10;

/// A matrix in the fragment layout (`marlin_formats::fragment`).
#[derive(Clone, Copy)]
pub struct MlaWeights<'a> {
    /// Shape and format; no super-blocks.
    pub layout: &'a FragmentLayout,
    /// Codes.
    pub codes: View<'a, u32>,
    /// Scales.
    pub scales: View<'a, u8>,
    /// Minimums, where the format has any.
    pub mins: Option<View<'a, u8>>,
}

impl MlaWeights<'_> {
    fn check(&self, kernel: &str) -> Result<(), GpuError> {
        let layout = self.layout;
        if layout.scale == FragmentScale::SuperBlock
            || layout.min == FragmentMin::SuperBlock
            || layout.scale == FragmentScale::None
        {
            return Err(refuse(
                kernel,
                format!("scales {:?}, expected one number per group", layout.scale),
            ));
        }
        let [codes, scales, mins, _] = layout.sizes();
        expect_len(kernel, "codes", self.codes.len() * 4, codes)?;
        expect_len(kernel, "scales", self.scales.len(), scales)?;
        expect_len(kernel, "minimums", self.mins.map_or(0, |m| m.len()), mins)
    }
}

/// What one token's cached vector is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LatentLayout {
    /// Values of the latent: a multiple of 8 up to 512.
    pub latent: u32,
    /// Values of the rotary key: a multiple of 8 up to 128.
    pub rope: u32,
}

impl LatentLayout {
    /// f16 elements that a cache needs for each block of [`KV_BLOCK`] positions.
    pub fn block_elements(&self) -> usize {
        (KV_BLOCK * self.width()) as usize
    }

    /// Values of a position.
    pub fn width(&self) -> u32 {
        self.latent + self.rope
    }

    fn check(&self, kernel: &str) -> Result<(), GpuError> {
        let Self { latent, rope } = *self;
        let fits = |n: u32, most: u32| n > 0 && n <= most && n.is_multiple_of(8);
        if fits(latent, 512) && fits(rope, 128) {
            return Ok(());
        }
        Err(refuse(
            kernel,
            format!("{latent} + {rope} values a token, expected multiples of 8 up to 512 + 128"),
        ))
    }
}

fn constants(weights: Option<&FragmentLayout>, layout: LatentLayout) -> MlaConstants {
    MlaConstants {
        code: weights.map_or(0, |w| w.code as u32),
        offset: weights.map_or(0, |w| w.offset),
        scale: weights.map_or(0, |w| w.scale as u32),
        min: weights.map_or(0, |w| w.min as u32),
        norm: false,
        latent: layout.latent,
        rope: layout.rope,
        blocks_per_page: 0,
        row_heads: ROW_HEADS,
        pieces: 1,
        split: false,
    }
}

/// `out = B · norm(A · x)` in one dispatch: the two-stage projection, hidden → latent → out.
///
/// Every threadgroup of `TILE_TOKENS` tokens makes their latents anew, so `shares` above 1 pays only where A
/// is small; with few tokens and a large A two products of `ops::linear` are faster.
pub struct MlaFused<'a, T> {
    /// `[latent, hidden]`.
    pub a: MlaWeights<'a>,
    /// `[out rows, latent]`, quantised as A but for the group size.
    pub b: MlaWeights<'a>,
    /// Weight `[latent]` and epsilon of the RMS norm between the stages.
    pub norm: Option<(View<'a, f32>, f32)>,
    /// `[tokens, hidden]`, rows `x_stride` apart.
    pub x: View<'a, T>,
    /// Elements from one row of x to the next.
    pub x_stride: u32,
    /// Rows of x.
    pub tokens: u32,
    /// `[tokens, out rows]`, rows `out_stride` apart.
    pub out: ViewMut<'a, T>,
    /// Elements from one row of out to the next.
    pub out_stride: u32,
    /// Threadgroups among which B's rows are divided.
    pub shares: u32,
}

impl<T: Element> MlaFused<'_, T> {
    /// Appends the dispatch. No tokens: nothing is appended.
    ///
    /// # Errors
    /// [`GpuError::Launch`] for lengths and formats that do not fit each other.
    pub fn encode(
        self,
        properties: &DeviceProperties,
        commands: &mut CommandList,
    ) -> Result<(), GpuError> {
        let name = "mla_fused";
        self.a.check(name)?;
        self.b.check(name)?;
        let (a, b) = (self.a.layout, self.b.layout);
        let alike = |l: &FragmentLayout| (l.code, l.offset, l.scale, l.min);
        if alike(a) != alike(b) || b.cols != a.rows {
            return Err(refuse(
                name,
                format!(
                    "A {}×{} of {:?} and B {}×{} of {:?}, expected the same format and as many columns of B \
                     as rows of A",
                    a.rows, a.cols, a.code, b.rows, b.cols, b.code
                ),
            ));
        }
        let (tokens, shared) = (self.tokens as usize, TILE_TOKENS * a.rows as u32);
        check_rows(name, "x", self.x.len(), tokens, a.cols, self.x_stride as usize)?;
        check_rows(name, "out", self.out.len(), tokens, b.rows, self.out_stride as usize)?;
        if let Some((weight, _)) = self.norm {
            expect_len(name, "the norm's weight", weight.len(), a.rows)?;
        }
        if 4 * shared > THREADGROUP_BYTES.min(properties.threadgroup_bytes) || self.shares == 0 {
            return Err(refuse(
                name,
                format!(
                    "a latent of {} values and {} shares, expected at most {} values and at least 1 share",
                    a.rows,
                    self.shares,
                    THREADGROUP_BYTES / 4 / TILE_TOKENS
                ),
            ));
        }
        let row_blocks = b.row_blocks() as u32;
        commands.launch(
            FusedLauncher {
                codes_a: self.a.codes,
                scales_a: self.a.scales,
                mins_a: self.a.mins,
                codes_b: self.b.codes,
                scales_b: self.b.scales,
                mins_b: self.b.mins,
                norm_weight: self.norm.map(|n| n.0),
                x: self.x,
                out: self.out,
                args: MlaFusedArgs {
                    tokens: self.tokens,
                    hidden: a.cols as u32,
                    latent: a.rows as u32,
                    out_rows: b.rows as u32,
                    x_stride: self.x_stride,
                    out_stride: self.out_stride,
                    blocks_a: a.blocks() as u32,
                    groups_a: a.groups() as u32,
                    columns_a: a.group as u32,
                    blocks_b: b.blocks() as u32,
                    groups_b: b.groups() as u32,
                    columns_b: b.group as u32,
                    factor_a: a.factor,
                    factor_b: b.factor,
                    epsilon: self.norm.map_or(0.0, |n| n.1),
                    unused: 0,
                },
                shared,
                constants: MlaConstants {
                    norm: self.norm.is_some(),
                    ..constants(Some(a), LatentLayout { latent: 8, rope: 8 })
                },
                elements: PhantomData,
            },
            Grid::xy(self.shares.min(row_blocks), self.tokens.div_ceil(TILE_TOKENS), 256),
        );
        Ok(())
    }
}

/// Writes new tokens' latents, normed where the model norms them, and rotary keys into the cache.
pub struct MlaAppendKv<'a, T> {
    /// `[tokens][latent + rope]`, the rotary part turned, rows `x_stride` apart.
    pub x: View<'a, T>,
    /// Elements from one row of x to the next.
    pub x_stride: u32,
    /// Weight `[latent]` and epsilon of the latent's RMS norm.
    pub norm: Option<(View<'a, f32>, f32)>,
    /// The sequence of each token, or [`NO_SEQUENCE`](super::kv_cache::NO_SEQUENCE).
    pub sequences: View<'a, u32>,
    /// The position of each token.
    pub positions: View<'a, u32>,
    /// `[blocks][32][latent + rope]`.
    pub cache: ViewMut<'a, f16>,
    /// What a position is made of.
    pub layout: LatentLayout,
    /// Where sequences are in the cache.
    pub addressing: KvAddressing<'a>,
}

impl<T: Element> MlaAppendKv<'_, T> {
    /// Appends the dispatch. No tokens: nothing is appended.
    ///
    /// # Errors
    /// [`GpuError::Launch`] for lengths that do not fit each other.
    pub fn encode(
        self,
        properties: &DeviceProperties,
        commands: &mut CommandList,
    ) -> Result<(), GpuError> {
        let name = "mla_append";
        self.layout.check(name)?;
        let (tokens, width) = (self.sequences.len(), self.layout.width() as usize);
        expect_len(name, "positions", self.positions.len(), tokens)?;
        check_rows(name, "x", self.x.len(), tokens, width, self.x_stride as usize)?;
        if let Some((weight, _)) = self.norm {
            expect_len(name, "the norm's weight", weight.len(), self.layout.latent as usize)?;
        }
        let block_pieces = self.layout.block_elements() / 8;
        self.addressing.check(name, self.cache.len() / 8, block_pieces)?;
        commands.launch(
            MlaAppend {
                x: self.x,
                norm_weight: self.norm.map(|n| n.0),
                sequences: self.sequences,
                positions: self.positions,
                pages: self.addressing.pages(),
                cache: self.cache,
                args: MlaAppendArgs {
                    x_stride: self.x_stride,
                    stride: self.addressing.stride(),
                    epsilon: self.norm.map_or(0.0, |n| n.1),
                },
                constants: MlaConstants {
                    norm: self.norm.is_some(),
                    blocks_per_page: self.addressing.blocks_per_page(),
                    ..constants(None, self.layout)
                },
                elements: PhantomData,
            },
            Grid::x(tokens as u32, properties.simd_width),
        );
        Ok(())
    }
}

/// The rows of `kv_b_proj`, `[heads · (key_dim + value_dim), latent]`: of each head first the keys' rows, then the values'.
#[derive(Clone, Copy)]
pub struct MlaHeads<'a> {
    /// The matrix.
    pub weights: MlaWeights<'a>,
    /// Heads.
    pub heads: u32,
    /// Values of a head's key without the rotary part, a multiple of 16.
    pub key_dim: u32,
    /// Values of a head's value, a multiple of 16.
    pub value_dim: u32,
    /// What the cache holds.
    pub layout: LatentLayout,
}

impl MlaHeads<'_> {
    fn check(&self, kernel: &str) -> Result<(), GpuError> {
        self.layout.check(kernel)?;
        self.weights.check(kernel)?;
        let Self { heads, key_dim, value_dim, .. } = *self;
        let rows = BLOCK_ROWS as u32;
        let matrix = self.weights.layout;
        if heads > 0
            && key_dim > 0
            && value_dim > 0
            && key_dim.is_multiple_of(rows)
            && value_dim.is_multiple_of(rows)
            && matrix.rows == (heads * (key_dim + value_dim)) as usize
            && matrix.cols == self.layout.latent as usize
        {
            return Ok(());
        }
        Err(refuse(
            kernel,
            format!(
                "a matrix {}×{} for {heads} heads of {key_dim} + {value_dim} rows over {} values, expected \
                 multiples of 16 that make it up",
                matrix.rows, matrix.cols, self.layout.latent
            ),
        ))
    }

    fn args(&self, x_stride: u32, out_stride: u32) -> MlaHeadArgs {
        let matrix = self.weights.layout;
        MlaHeadArgs {
            heads: self.heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            x_stride,
            out_stride,
            blocks: matrix.blocks() as u32,
            groups: matrix.groups() as u32,
            columns: matrix.group as u32,
            factor: matrix.factor,
        }
    }

    /// Queries into the latent space: `q` is `[tokens][heads][key_dim + rope]`, its rotary part turned, `out`
    /// `[tokens][heads][latent + rope]`. No tokens: nothing is appended.
    ///
    /// # Errors
    /// [`GpuError::Launch`] for lengths that do not fit each other.
    pub fn absorb<T: Element>(
        &self,
        tokens: u32,
        q: View<'_, T>,
        out: ViewMut<'_, T>,
        commands: &mut CommandList,
    ) -> Result<(), GpuError> {
        let name = "mla_absorb";
        self.check(name)?;
        let q_stride = self.heads * (self.key_dim + self.layout.rope);
        let out_stride = self.heads * self.layout.width();
        expect_len(name, "q", q.len(), (tokens * q_stride) as usize)?;
        expect_len(name, "out", out.len(), (tokens * out_stride) as usize)?;
        let matrix = self.weights.layout;
        commands.launch(
            MlaAbsorb {
                codes: self.weights.codes,
                scales: self.weights.scales,
                mins: self.weights.mins,
                q,
                out,
                args: self.args(q_stride, out_stride),
                shared: (8 * matrix.blocks() * BLOCK_COLS) as u32,
                constants: constants(Some(matrix), self.layout),
                elements: PhantomData,
            },
            Grid::xy(self.heads, tokens, 256),
        );
        Ok(())
    }

    /// Out of the latent space: `x` is `[tokens][heads][latent]`, `out` `[tokens][heads][value_dim]`. No tokens:
    /// nothing is appended.
    ///
    /// # Errors
    /// [`GpuError::Launch`] for lengths that do not fit each other.
    pub fn expand<T: Element>(
        &self,
        tokens: u32,
        x: View<'_, T>,
        out: ViewMut<'_, T>,
        commands: &mut CommandList,
    ) -> Result<(), GpuError> {
        let name = "mla_expand";
        self.check(name)?;
        let (x_stride, out_stride) = (self.heads * self.layout.latent, self.heads * self.value_dim);
        expect_len(name, "x", x.len(), (tokens * x_stride) as usize)?;
        expect_len(name, "out", out.len(), (tokens * out_stride) as usize)?;
        commands.launch(
            MlaExpand {
                codes: self.weights.codes,
                scales: self.weights.scales,
                mins: self.weights.mins,
                x,
                out,
                args: self.args(x_stride, out_stride),
                constants: constants(Some(self.weights.layout), self.layout),
                elements: PhantomData,
            },
            Grid::xy(self.heads, tokens, 256),
        );
        Ok(())
    }
}

/// Attention in the latent space, over a cache that [`MlaAppendKv`] wrote.
pub struct MlaAttention<'a, T> {
    /// `[tokens][heads][latent + rope]`.
    pub query: View<'a, T>,
    /// Query heads.
    pub heads: u32,
    /// `[blocks][32][latent + rope]` f16, as 16-byte pieces.
    pub cache: View<'a, [u32; 4]>,
    /// What a position is made of.
    pub layout: LatentLayout,
    /// Where sequences are in the cache.
    pub addressing: KvAddressing<'a>,
    /// The sequence of each token, or [`NO_SEQUENCE`](super::kv_cache::NO_SEQUENCE).
    pub sequences: View<'a, u32>,
    /// The position of each token.
    pub positions: View<'a, u32>,
    /// Factor on the scores.
    pub scale: f32,
    /// Parts of the context.
    pub splits: u32,
    /// [`workspace_len`] floats for `latent` values a head, or more.
    pub workspace: ViewMut<'a, f32>,
    /// `[tokens][heads][latent]`.
    pub out: ViewMut<'a, T>,
}

/// Parts of a context of at most `context` positions for `tokens` tokens.
pub fn latent_splits(heads: u32, tokens: u32, context: u32, properties: &DeviceProperties) -> u32 {
    let others = (tokens * heads.div_ceil(SIMDGROUPS * ROW_HEADS)).max(1);
    // Four threadgroups of 128 registers a thread fit a streaming multiprocessor.
    (4 * properties.compute_units / others).min(context.div_ceil(KV_BLOCK)).clamp(1, MAX_SPLITS)
}

impl<T: Element> MlaAttention<'_, T> {
    /// Appends one dispatch, or two where the context is split. No tokens: nothing is appended.
    ///
    /// # Errors
    /// [`GpuError::Launch`] for lengths that do not fit each other.
    pub fn encode(
        self,
        properties: &DeviceProperties,
        commands: &mut CommandList,
    ) -> Result<(), GpuError> {
        let name = "mla_attend";
        self.layout.check(name)?;
        let LatentLayout { latent, .. } = self.layout;
        let (tokens, heads) = (self.sequences.len() as u32, self.heads);
        let (query_stride, out_stride) = (heads * self.layout.width(), heads * latent);
        expect_len(name, "positions", self.positions.len(), tokens as usize)?;
        expect_len(name, "query", self.query.len(), (tokens * query_stride) as usize)?;
        expect_len(name, "out", self.out.len(), (tokens * out_stride) as usize)?;
        self.addressing.check(name, self.cache.len(), self.layout.block_elements() / 8)?;
        let needed = workspace_len(tokens, heads, self.splits, latent);
        if heads == 0
            || self.splits == 0
            || self.splits > MAX_SPLITS
            || self.workspace.len() < needed
        {
            return Err(refuse(
                name,
                format!(
                    "{heads} heads, {} splits and a workspace of {} floats, expected at least one head, 1 to \
                     {MAX_SPLITS} splits and {needed} floats",
                    self.splits,
                    self.workspace.len()
                ),
            ));
        }
        if tokens == 0 {
            return Ok(());
        }
        let split = self.splits > 1;
        let simdgroups = heads.div_ceil(ROW_HEADS).min(SIMDGROUPS);
        commands.launch(
            MlaAttend {
                query: self.query,
                cache: self.cache,
                pages: self.addressing.pages(),
                sequences: self.sequences,
                positions: self.positions,
                out: self.out,
                partial: self.workspace,
                args: MlaAttendArgs {
                    heads,
                    query_stride,
                    out_stride,
                    stride: self.addressing.stride(),
                    scale: self.scale,
                },
                constants: MlaConstants {
                    blocks_per_page: self.addressing.blocks_per_page(),
                    row_heads: ROW_HEADS.min(heads),
                    pieces: (latent / 8).div_ceil(properties.simd_width),
                    split,
                    ..constants(None, self.layout)
                },
                elements: PhantomData,
            },
            Grid::xyz(
                self.splits,
                heads.div_ceil(simdgroups * ROW_HEADS.min(heads)),
                tokens,
                simdgroups * properties.simd_width,
            ),
        );
        if split {
            commands.launch(
                AttentionReduce {
                    partial: self.workspace.read(),
                    out: self.out,
                    args: AttentionReduceArgs { heads, splits: self.splits, out_stride, unused: 0 },
                    shared: reduce_shared(self.splits),
                    constants: AttentionConstants { head_dim: latent, ..REDUCE_CONSTANTS },
                    elements: PhantomData,
                },
                Grid::xy(heads, tokens, REDUCE_THREADS),
            );
        }
        Ok(())
    }
}
