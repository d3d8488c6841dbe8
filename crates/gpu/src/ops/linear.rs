//! Products with quantised matrices: `gemv` and `gemm` of `marlin-kernels`.

use marlin_formats::Matrix;
use marlin_formats::fragment::{
    BLOCK_ROWS, FragmentCode, FragmentLayout, FragmentMatrix, FragmentMin, FragmentScale,
};
use marlin_kernels::gemm::{Gemm, GemmArgs, GemmConstants, GemmReduce};
use marlin_kernels::gemv::{Gemv, GemvArgs, GemvConstants};
use marlin_kernels::signature::ElementType;
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::gemm_batch;
use crate::{Buffer, CommandList, Device, DeviceProperties, GpuError};

/// A matrix in device memory, in the fragment layout; or two of the same shape, gate and up, one
/// after the other.
#[derive(Clone, Debug)]
pub struct FragmentWeights {
    layout: FragmentLayout,
    pub(super) parts: usize,
    pub(crate) codes: Buffer<u32>,
    pub(crate) scales: Option<Buffer<u8>>,
    pub(crate) mins: Option<Buffer<u8>>,
    pub(crate) supers: Option<Buffer<half::f16>>,
}

impl FragmentWeights {
    /// Packs one matrix, or gate and up, and uploads it.
    ///
    /// # Errors
    /// A format without a fragment layout, matrices that differ in shape or format, or the device failed.
    #[track_caller]
    pub fn upload(
        device: &dyn Device,
        label: &str,
        matrices: &[Matrix<'_>],
    ) -> Result<Self, GpuError> {
        let refuse = |reason: String| GpuError::Launch { kernel: label.to_owned(), reason };
        let first = matrices.first().ok_or_else(|| refuse("no matrix".to_owned()))?;
        let layout = FragmentLayout::new(first.format, first.rows, first.cols, first.tensor_scale)
            .ok_or_else(|| {
                refuse(format!(
                    "{} has no fragment layout: its groups are not 16, 32 or a multiple of 64 \
                         columns",
                    first.format
                ))
            })?;
        let mut all = FragmentMatrix::default();
        for matrix in matrices {
            let packed = layout.pack(matrix).map_err(|e| refuse(e.to_string()))?;
            all.codes.extend(packed.codes);
            all.scales.extend(packed.scales);
            all.mins.extend(packed.mins);
            all.supers.extend(packed.supers);
        }
        Self::from_packed(device, label, layout, matrices.len(), &all)
    }

    /// Uploads `parts` matrices of `layout` that are packed already, one after the other.
    ///
    /// # Errors
    /// Buffers of another size than the layout's, or the device failed.
    #[track_caller]
    pub fn from_packed(
        device: &dyn Device,
        label: &str,
        layout: FragmentLayout,
        parts: usize,
        packed: &FragmentMatrix,
    ) -> Result<Self, GpuError> {
        let lengths =
            [packed.codes.len(), packed.scales.len(), packed.mins.len(), packed.supers.len()];
        let expected = layout.sizes().map(|bytes| bytes * parts);
        if lengths != expected {
            return Err(GpuError::Launch {
                kernel: label.to_owned(),
                reason: format!("buffers of {lengths:?} bytes, expected {expected:?}"),
            });
        }
        let bytes = |part: &str, b: &[u8]| match b.is_empty() {
            true => Ok(None),
            false => device.upload_new(&format!("{label} {part}"), b).map(Some),
        };
        Ok(Self {
            layout,
            parts,
            codes: device.upload_bytes(&format!("{label} codes"), &packed.codes)?,
            scales: bytes("scales", &packed.scales)?,
            mins: bytes("minimums", &packed.mins)?,
            supers: match packed.supers.is_empty() {
                true => None,
                false => {
                    Some(device.upload_bytes(&format!("{label} super-blocks"), &packed.supers)?)
                }
            },
        })
    }

    /// Matrices whose parts are in device memory already: codes, scales, minimums and super-blocks of
    /// [`FragmentLayout::sizes`] bytes, `parts` times.
    pub(crate) fn from_buffers(
        layout: FragmentLayout,
        parts: usize,
        codes: Buffer<u32>,
        [scales, mins]: [Option<Buffer<u8>>; 2],
        supers: Option<Buffer<half::f16>>,
    ) -> Self {
        Self { layout, parts, codes, scales, mins, supers }
    }

    /// The layout of one part.
    pub fn layout(&self) -> &FragmentLayout {
        &self.layout
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.layout.bytes() * self.parts
    }

    /// Whether units of 128 columns have one scale.
    pub(crate) fn allows_wide(&self) -> bool {
        self.layout.blocks().is_multiple_of(2) && self.group_constant().is_multiple_of(128)
    }

    /// Whether scales can multiply the weights in f16.
    pub(crate) fn allows_prescaled(&self) -> bool {
        self.layout.scale == FragmentScale::F16 && self.layout.min == FragmentMin::None
    }

    /// Whether weights with their scales can be f16, as `gemm_batch` needs them.
    pub fn allows_batched(&self) -> bool {
        use FragmentScale::{E4M3, F16, None, SuperBlock};
        matches!(self.layout.scale, None | F16 | E4M3 | SuperBlock)
            && !matches!(self.layout.min, FragmentMin::F32)
    }

    pub(super) fn group_constant(&self) -> u32 {
        if self.layout.group == self.layout.padded_cols() { 0 } else { self.layout.group as u32 }
    }
}

/// What follows the sums.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// `[rows]` (gate and up: each padded to a multiple of 16).
    pub bias: Option<View<'a, f32>>,
    /// The weights are gate and up: y = activation(gate) · up.
    pub gated: Option<Activation>,
    /// y is added to: the residual.
    pub accumulate: bool,
    /// Elements from one token's y to the next one's; 0 where there are just the rows.
    pub stride: usize,
}

/// A norm that two products share, without a dispatch of its own: the one before it writes its result times the norm's
/// weight, and the one after it divides its sums by the root of the mean square.
pub struct SharedNorm<'a, T> {
    /// This product's x was written by a product with `next`.
    pub pending: Option<PendingNorm<'a>>,
    /// What comes after this product.
    pub next: Option<NextNorm<'a, T>>,
}

impl<T> Default for SharedNorm<'_, T> {
    fn default() -> Self {
        Self { pending: None, next: None }
    }
}

/// What is left to do of a norm.
#[derive(Clone, Copy)]
pub struct PendingNorm<'a> {
    /// `[tokens, columns / 16]`, rounded up: the squares of each 16 values.
    pub squares: View<'a, f32>,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// A norm that is begun.
#[derive(Clone, Copy)]
pub struct NextNorm<'a, T> {
    /// One factor a row.
    pub weight: View<'a, f32>,
    /// Added to the weight.
    pub offset: f32,
    /// `[tokens, rows]`: y times the weight.
    pub scaled: ViewMut<'a, T>,
    /// `[tokens, rows / 16]`, rounded up.
    pub squares: ViewMut<'a, f32>,
}

/// Tokens that products can share a norm of.
pub const SHARED_NORM_TOKENS: usize = 8;

/// The activation of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU with tanh.
    Gelu,
}

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
}

impl GemmShape {
    /// A shape that is good without measuring, for a product with `weights` and so many tokens.
    ///
    /// Few tokens: enough SIMD-groups along k that every compute unit has one threadgroup per 16 rows or so. More
    /// tokens: x is read once per threadgroup, so threadgroups take as many rows as leave no unit without one.
    /// The numbers are those that were fastest on an H100 (`docs/performance.md`).
    pub fn choose(
        properties: &DeviceProperties,
        weights: &FragmentWeights,
        tokens: usize,
        gated: bool,
    ) -> Self {
        // Up to two tiles memory is the bound, and what SIMD-groups do on their own is the faster for it.
        if properties.multiplies_in_teams() && weights.allows_batched() && tokens > 16 {
            return gemm_batch::choose(properties, weights, tokens, gated);
        }
        let layout = weights.layout();
        let blocks = layout.blocks() as u32;
        let wide = weights.allows_wide();
        let units = if wide { blocks / 2 } else { blocks };
        // Row blocks that each compute unit has to take.
        let share = layout.row_blocks() as f32 / properties.compute_units.max(1) as f32;
        let tiles = (tokens.div_ceil(8) as u32).next_power_of_two().clamp(1, 8);
        let (tiles, row_blocks, row_groups, k_groups, depth, stages) = match tiles {
            1 if gated => (1, 2, 1, 4, 1, 2),
            // Where all of a SIMD-group's blocks are asked for at once, nothing is left to wait for.
            1 if share <= 2.5 && units <= 32 => (1, 1, 1, 16, 2, 2),
            1 if share <= 2.5 => (1, 1, 1, 16, 1, 2),
            1 if share <= 5.0 => (1, 1, 1, 8, 2, 2),
            // E2M1 takes more instructions to decode, and so more threads.
            1 if share > 10.0 && layout.code == FragmentCode::Fp4 => (1, 1, 1, 8, 1, 2),
            1 => (1, 2, 1, 4, 2, 2),
            2 if share <= 3.0 => (2, 1, 2, 8, 1, 4),
            2 if share <= 5.0 => (2, 1, 4, 8, 1, 3),
            2 if share <= 7.0 => (2, 2, 2, 4, 2, 2),
            2 if share <= 10.0 => (2, 2, 4, 4, 2, 3),
            2 => (2, 2, 4, 2, 2, 2),
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
            staged: tiles > 1,
            splits: 1,
            wide,
            stages,
            prescaled: tiles == 8 && weights.allows_prescaled(),
            batched: false,
        };
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
        (sums + squares).max(if self.staged { stages } else { 0 })
    }
}

/// The sizes of a product and where they come from, checked.
pub(super) struct Sizes {
    pub(super) tokens: u32,
    pub(super) rows: u32,
    pub(super) columns: u32,
    pub(super) y_stride: u32,
}

pub(super) fn sizes<T: Element>(
    weights: &FragmentWeights,
    x: &View<'_, T>,
    y: &ViewMut<'_, T>,
    tokens: usize,
    epilogue: &Epilogue<'_>,
) -> Result<Sizes, GpuError> {
    let FragmentLayout { rows, cols, .. } = weights.layout;
    let refuse = |reason: String| Err(GpuError::Launch { kernel: "linear".to_owned(), reason });
    let parts = if epilogue.gated.is_some() { 2 } else { 1 };
    if weights.parts != parts {
        return refuse(format!("{} matrices, expected {parts}", weights.parts));
    }
    if x.len() != tokens * cols {
        return refuse(format!("x has {} elements, expected {tokens} × {cols}", x.len()));
    }
    let stride = if epilogue.stride == 0 { rows } else { epilogue.stride };
    let needed = tokens.checked_sub(1).map_or(0, |before| before * stride + rows);
    if stride < rows || (epilogue.stride == 0 && y.len() != needed) || y.len() < needed {
        return refuse(format!(
            "y has {} elements, expected {tokens} × {rows}, {stride} apart",
            y.len()
        ));
    }
    if let Some(bias) = &epilogue.bias {
        let expected = if parts == 2 { rows.next_multiple_of(BLOCK_ROWS) + rows } else { rows };
        if bias.len() < expected {
            return refuse(format!("bias has {} elements, expected {expected}", bias.len()));
        }
    }
    Ok(Sizes {
        tokens: tokens as u32,
        rows: rows as u32,
        columns: cols as u32,
        y_stride: stride as u32,
    })
}

/// The partial sums of a product that is split between threadgroups, if it is.
pub(super) fn check_partial<'a>(
    kernel: &str,
    partial: Option<ViewMut<'a, f32>>,
    splits: u32,
    gated: bool,
    rows: usize,
    tokens: usize,
) -> Result<Option<ViewMut<'a, f32>>, GpuError> {
    let parts = if gated { 2 } else { 1 };
    let needed = splits as usize * parts * rows * tokens;
    match partial {
        _ if splits == 1 => Ok(None),
        Some(partial) if partial.len() >= needed => Ok(Some(partial)),
        found => {
            let found = found.map_or(0, |p| p.len());
            let reason = format!("{found} partial sums, expected {needed}");
            Err(GpuError::Launch { kernel: kernel.to_owned(), reason })
        }
    }
}

pub(super) fn activation(epilogue: &Epilogue<'_>) -> u32 {
    u32::from(epilogue.gated == Some(Activation::Gelu))
}

/// Appends y = W · x for `tokens` rows of x, by the kernel that suits: `gemm` where SIMD-groups have
/// 32 threads and the elements are 16 bits wide, otherwise `gemv`.
///
/// x: `[tokens, columns]`, y: `[tokens, rows]`.
///
/// # Errors
/// Lengths that do not fit the weights.
pub fn linear<T: Element>(
    list: &mut CommandList,
    properties: &DeviceProperties,
    weights: &FragmentWeights,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
    tokens: usize,
    epilogue: Epilogue<'_>,
) -> Result<(), GpuError> {
    let fragments = properties.simd_width == 32 && T::TYPE != ElementType::F32;
    if fragments && weights.layout.cols.is_multiple_of(8) {
        let shape = GemmShape::choose(properties, weights, tokens, epilogue.gated.is_some());
        gemm(list, shape, weights, x, y, tokens, epilogue, None)
    } else {
        gemv(list, weights, x, y, tokens, epilogue)
    }
}

/// Appends y = W · x in f32, 8 tokens at a time.
///
/// # Errors
/// Lengths that do not fit the weights.
pub fn gemv<T: Element>(
    list: &mut CommandList,
    weights: &FragmentWeights,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
    tokens: usize,
    epilogue: Epilogue<'_>,
) -> Result<(), GpuError> {
    let s = sizes(weights, &x, &y, tokens, &epilogue)?;
    let layout = weights.layout();
    let blocks = layout.blocks() as u32;
    // Shares of the columns: enough threads to hide memory, no more than there are blocks.
    let shares = blocks.next_power_of_two().clamp(1, 8);
    for first in (0..tokens).step_by(8) {
        let count = (tokens - first).min(8);
        let view_x = x.slice(first * layout.cols, count * layout.cols)?;
        let (stride, start) = (s.y_stride as usize, first * s.y_stride as usize);
        let view_y = y.slice(start, (count - 1) * stride + layout.rows)?;
        list.launch(
            Gemv {
                codes: weights.codes.view(),
                scales: weights.scales.as_ref().map(Buffer::view),
                mins: weights.mins.as_ref().map(Buffer::view),
                supers: weights.supers.as_ref().map(Buffer::view),
                x: view_x,
                bias: epilogue.bias,
                y: view_y,
                args: GemvArgs {
                    rows: s.rows,
                    columns: s.columns,
                    tokens: count as u32,
                    x_stride: s.columns,
                    y_stride: s.y_stride,
                    blocks,
                    groups: layout.groups() as u32,
                    factor: layout.factor,
                },
                constants: GemvConstants {
                    code: layout.code as u32,
                    offset: layout.offset,
                    scale: layout.scale as u32,
                    min: layout.min as u32,
                    group: weights.group_constant(),
                    tokens: (count as u32).next_power_of_two(),
                    gated: epilogue.gated.is_some(),
                    accumulate: epilogue.accumulate,
                    activation: activation(&epilogue),
                    has_bias: epilogue.bias.is_some(),
                },
                elements: std::marker::PhantomData,
            },
            Grid::x(layout.row_blocks() as u32, 32 * shares),
        );
    }
    Ok(())
}

/// Appends y = W · x by matrix fragments, in the given shape. `partial` is needed where the shape
/// splits k: f32, splits × rows × tokens (twice that for gate and up).
///
/// # Errors
/// Lengths that do not fit the weights; columns that are not a multiple of 8; a shape that the
/// kernel does not have.
#[allow(clippy::too_many_arguments, reason = "a product has so many parts")]
pub fn gemm<T: Element>(
    list: &mut CommandList,
    shape: GemmShape,
    weights: &FragmentWeights,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
    tokens: usize,
    epilogue: Epilogue<'_>,
    partial: Option<ViewMut<'_, f32>>,
) -> Result<(), GpuError> {
    gemm_between_norms(list, shape, weights, x, y, tokens, epilogue, partial, SharedNorm::default())
}

/// As [`gemm`], with norms that it shares with the products before and after it.
///
/// # Errors
/// As [`gemm`]; more than [`SHARED_NORM_TOKENS`] tokens, parts of k between threadgroups, or buffers of other lengths.
#[allow(clippy::too_many_arguments, reason = "a product has so many parts")]
pub fn gemm_between_norms<T: Element>(
    list: &mut CommandList,
    shape: GemmShape,
    weights: &FragmentWeights,
    x: View<'_, T>,
    y: ViewMut<'_, T>,
    tokens: usize,
    epilogue: Epilogue<'_>,
    partial: Option<ViewMut<'_, f32>>,
    norms: SharedNorm<'_, T>,
) -> Result<(), GpuError> {
    let shares = norms.pending.is_some() || norms.next.is_some();
    if shape.batched && !shares {
        return gemm_batch::gemm_batch(list, shape, weights, x, y, tokens, epilogue, partial);
    }
    let s = sizes(weights, &x, &y, tokens, &epilogue)?;
    let layout = weights.layout();
    let refuse = |reason: String| Err(GpuError::Launch { kernel: "gemm".to_owned(), reason });
    let GemmShape { tiles, row_blocks, row_groups, k_groups, depth, staged, .. } = shape;
    let GemmShape { splits, wide, stages, prescaled, .. } = shape;
    let gated = epilogue.gated.is_some();
    if !matches!(tiles, 1 | 2 | 4 | 8)
        || !matches!(depth, 1 | 2 | 4)
        || row_blocks != if gated { 2 } else { row_blocks.clamp(1, 2) }
        || row_groups * k_groups == 0
        || row_groups * k_groups > 32
        || splits == 0
        || !matches!(stages, 2..=4)
        || (tiles > 1 && !staged)
        || (wide && !weights.allows_wide())
        || (prescaled && !weights.allows_prescaled())
    {
        return refuse(format!("{shape:?}, which the kernel does not have"));
    }
    if !layout.cols.is_multiple_of(8) {
        return refuse(format!("{} columns, expected a multiple of 8", layout.cols));
    }
    if shares {
        if shape.batched || tiles != 1 || tokens > SHARED_NORM_TOKENS || splits > 1 {
            return refuse(format!(
                "{tokens} tokens in {tiles} tiles and {splits} parts of k share a norm, expected at most \
                 {SHARED_NORM_TOKENS} in 1 tile and 1 part"
            ));
        }
        let (rows, cols) = (layout.rows, layout.cols);
        let lengths = [
            ("pending squares", norms.pending.map(|n| n.squares.len()), tokens * cols.div_ceil(16)),
            ("the next norm's weight", norms.next.map(|n| n.weight.len()), rows),
            ("scaled y", norms.next.map(|n| n.scaled.len()), tokens * rows),
            ("squares", norms.next.map(|n| n.squares.len()), tokens * rows.div_ceil(16)),
        ];
        for (name, found, expected) in lengths {
            if let Some(found) = found.filter(|found| *found != expected) {
                return refuse(format!("{name}: {found} elements, expected {expected}"));
            }
        }
    }
    let partial = check_partial("gemm", partial, splits, gated, layout.rows, tokens)?;
    let constants = GemmConstants {
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
        staged,
        gated,
        accumulate: epilogue.accumulate,
        activation: activation(&epilogue),
        has_bias: epilogue.bias.is_some(),
        splits,
        wide,
        stages,
        prescaled,
        norm_in: norms.pending.is_some(),
        norm_out: norms.next.is_some(),
    };
    let args = GemmArgs {
        rows: s.rows,
        columns: s.columns,
        tokens: s.tokens,
        x_stride: s.columns,
        y_stride: s.y_stride,
        blocks: layout.blocks() as u32,
        groups: layout.groups() as u32,
        factor: layout.factor,
        epsilon: norms.pending.map_or(0.0, |n| n.epsilon),
        offset: norms.next.map_or(0.0, |n| n.offset),
    };
    let rows_of_group = row_groups * if gated { 1 } else { row_blocks };
    let grid = Grid::xyz(
        (layout.row_blocks() as u32).div_ceil(rows_of_group),
        s.tokens.div_ceil(8 * tiles),
        splits,
        32 * row_groups * k_groups,
    );
    list.launch(
        Gemm {
            codes: weights.codes.view(),
            scales: weights.scales.as_ref().map(Buffer::view),
            mins: weights.mins.as_ref().map(Buffer::view),
            supers: weights.supers.as_ref().map(Buffer::view),
            x,
            bias: epilogue.bias,
            y,
            partial,
            squares: norms.pending.map(|n| n.squares),
            next_weight: norms.next.map(|n| n.weight),
            scaled: norms.next.map(|n| n.scaled),
            squares_out: norms.next.map(|n| n.squares),
            args,
            scratch: shape.threadgroup_bytes() / 4,
            constants,
            elements: std::marker::PhantomData,
        },
        grid,
    );
    if let Some(partial) = partial {
        list.launch(
            GemmReduce {
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
