//! Linear stages: norm and quantise the input, multiply tiles of rows, combine.

use std::ops::Range;

use marlin_backend::Activation;

use super::plan::{Combine, LinearPlan, MatrixPlan, Product, StageKind};
use super::work::own_share;
use super::{ACTIVATION_BYTES, CpuExecutor, LOCAL_ROWS, Quantised, TOKEN_BLOCK};
use crate::kernels::float::{FloatCall, FloatScales};
use crate::kernels::prefetch::{Ahead, prefetch_far};
use crate::kernels::quantise::{BLOCK, PANEL, RowOut};
use crate::kernels::tile::{Activations, TileCall};
use crate::pool::Worker;
use crate::weight::Storage;

/// Bytes of weights of one work item of a decode: a run long enough for the processor's own
/// prefetching, which does better than any asked for, and few enough microseconds of memory
/// that no thread waits long for another's last item.
const ITEM_BYTES: usize = 48 << 10;
/// Cache lines of a stage's weights that are asked for before its input is prepared: memory
/// would otherwise idle meanwhile.
const AHEAD: usize = 64;

impl LinearPlan {
    /// Tiles of the stage.
    fn tiles(&self) -> usize {
        match self.combine {
            Combine::Separate => self.matrices.iter().map(|m| m.tiles).sum(),
            Combine::Gated(_) => self.matrices[0].tiles,
        }
    }

    /// Most tokens of one work item, whole panels.
    fn token_block(&self) -> usize {
        let least = 4 * PANEL;
        // Nothing is unpacked of floats: they gain nothing by more.
        if self.any_float {
            return least;
        }
        (ACTIVATION_BYTES / self.cols.max(1) / PANEL * PANEL).clamp(least, TOKEN_BLOCK)
    }

    /// Tiles of one work item. Prefill: an item's weights stay in the second-level cache for
    /// all blocks of tokens.
    fn chunk(&self, rows: usize) -> usize {
        if rows > LOCAL_ROWS {
            return 4;
        }
        let bytes = match self.combine {
            Combine::Separate => self.matrices[0].tile_bytes,
            Combine::Gated(_) => 2 * self.matrices[0].tile_bytes,
        };
        (ITEM_BYTES / bytes.max(1)).clamp(1, 16)
    }

    /// Where the first tile of `worker`'s own share lies, of matrix `part` of a gated stage.
    fn start(&self, worker: Worker<'_>, part: usize) -> *const u8 {
        let mut tile = own_share(self.tiles(), worker.index, worker.count).start;
        let matrices = match self.combine {
            Combine::Separate => &self.matrices[..],
            Combine::Gated(_) => &self.matrices[part..=part],
        };
        for matrix in matrices {
            if tile < matrix.tiles {
                return matrix.tile(tile);
            }
            tile -= matrix.tiles;
        }
        std::ptr::null()
    }

    /// Asks for the first weights that `worker` will need, but for those that the stage before
    /// asked for at its end, `distance` bytes.
    pub(super) fn prefetch(&self, worker: Worker<'_>, distance: usize) {
        let start = match self.combine {
            _ if distance == 0 => self.start(worker, 0),
            Combine::Separate => return,
            Combine::Gated(_) => self.start(worker, 1),
        };
        for line in 0..AHEAD {
            prefetch_far(start.wrapping_add(64 * line));
        }
    }
}

impl MatrixPlan {
    /// The start of tile `tile`; null where weights are floats, which are not in tiles.
    fn tile(&self, tile: usize) -> *const u8 {
        match &self.product {
            Product::Tiles { packed, .. } => packed.tile(tile),
            Product::Float { .. } => std::ptr::null(),
        }
    }
}

/// A thread's way through the weights of a stage, as far as nobody takes work off it.
#[derive(Clone, Copy)]
struct Way {
    /// How far ahead it asks for weights.
    distance: usize,
    /// Tiles of its own share; none where it has no place of its own.
    own: (usize, usize),
    /// Where its weights of the next linear stage begin.
    next: *const u8,
}

impl Way {
    /// What to ask for while tiles from `tile` on, of the stage's, are multiplied, which are matrix
    /// `part`'s, whose first is the stage's tile `first`.
    fn ahead(&self, plan: &LinearPlan, part: usize, first: usize, tile: usize) -> Ahead {
        if !(self.own.0..self.own.1).contains(&tile) {
            return Ahead { distance: self.distance, ..Ahead::NOTHING };
        }
        let matrix = &plan.matrices[part];
        let end = matrix.tile((self.own.1 - first).min(matrix.tiles));
        let next = match plan.combine {
            Combine::Separate if self.own.1 > first + matrix.tiles => {
                plan.matrices[part + 1].tile(0)
            }
            Combine::Separate => self.next,
            // Both matrices end here, one after the other.
            Combine::Gated(_) => self.next.wrapping_add(part * self.distance),
        };
        Ahead::new(self.distance, end, next)
    }
}

/// Rows of input in the forms that a stage's matrices want.
struct Input<'a> {
    /// f32 rows and the distance between them.
    floats: (*const f32, usize),
    quantised: &'a Quantised,
    way: Way,
}

/// Neighbouring tiles of a matrix, and what is asked for while they are multiplied.
struct Part<'a> {
    matrix: &'a MatrixPlan,
    tiles: Range<usize>,
    ahead: Ahead,
}

/// Where the products of some tokens with a matrix go.
#[derive(Clone, Copy)]
struct Destination {
    /// `[tokens][rows]`, from the first row of the first tile on.
    start: *mut f32,
    /// Floats from one token to the next.
    stride: usize,
    /// Rows that there is room for.
    rows: usize,
    accumulate: bool,
}

impl CpuExecutor {
    /// Runs a linear stage over `rows` rows.
    pub(super) fn linear(&self, stage: usize, plan: &LinearPlan, rows: usize, worker: Worker<'_>) {
        let scratch = &self.threads[worker.index];
        let local = rows <= LOCAL_ROWS;
        let (normed, quantised) = if local {
            (&scratch.normed, &scratch.quantised)
        } else {
            (&self.normed, &self.quantised)
        };
        let (x, width) = self.activations.get(plan.x);
        // With a norm, f32 consumers read its result; without, the tensor itself.
        let floats = match plan.norm {
            Some(_) => (normed.as_ptr::<f32>().cast_const(), plan.cols),
            None => (x.cast_const(), width),
        };
        let mut way = Way { distance: 0, own: (0, 0), next: std::ptr::null() };
        if rows < PANEL {
            way.distance = self.inner.prefetch_distance;
        }
        if local && way.distance != 0 {
            let Range { start, end } = own_share(plan.tiles(), worker.index, worker.count);
            way.own = (start, end);
            let next = self.plan.stages[stage + 1..].iter().find_map(|stage| match &stage.kind {
                StageKind::Linear(plan) => Some(plan.start(worker, 0)),
                _ => None,
            });
            way.next = next.unwrap_or(std::ptr::null());
        }
        let input = Input { floats, quantised, way };
        if local {
            for row in 0..rows {
                self.prepare_row(plan, row, normed.as_ptr(), quantised);
            }
        } else if plan.norm.is_some() || plan.any_quantised {
            // Whole panels: two threads in one would write to the same cache lines.
            let panels = rows.div_ceil(PANEL);
            self.cursors.share(2 * stage, worker.index, panels, 1, |range| {
                for row in range.start * PANEL..rows.min(range.end * PANEL) {
                    self.prepare_row(plan, row, normed.as_ptr(), quantised);
                }
            });
            worker.barrier.wait();
        }
        let most = plan.token_block();
        let (tiles, blocks) = (plan.tiles(), rows.div_ceil(most));
        let chunk = plan.chunk(rows);
        if local {
            self.cursors.share_dwindling(2 * stage + 1, worker.index, tiles, chunk, |range| {
                self.tiles(plan, range, 0..rows, &input, worker.index);
            });
            return;
        }
        let groups = tiles.div_ceil(chunk);
        self.cursors.share(2 * stage + 1, worker.index, groups * blocks, 1, |range| {
            for item in range {
                let (group, block) = (item / blocks, item % blocks);
                let tokens = block * most..rows.min((block + 1) * most);
                let tiles = group * chunk..tiles.min((group + 1) * chunk);
                self.tiles(plan, tiles, tokens, &input, worker.index);
            }
        });
    }

    /// Norms and quantises one row of a stage's input.
    fn prepare_row(&self, plan: &LinearPlan, row: usize, normed: *mut f32, quantised: &Quantised) {
        let kernels = self.inner.kernels;
        let (x, width) = self.activations.get(plan.x);
        let blocks = plan.cols.div_ceil(BLOCK);
        // SAFETY: `row` is one of the rows that the buffers have room for, each row is
        // prepared by one thread (or in that thread's own memory), and the table is this
        // processor's.
        unsafe {
            let mut x = x.add(row * width).cast_const();
            if let Some(norm) = &plan.norm {
                let out = normed.add(row * plan.cols);
                let weight = norm.weight.as_ptr::<f32>();
                (kernels.rms_norm)(x, weight, norm.eps, norm.offset, out, plan.cols);
                x = out;
            }
            if plan.any_quantised {
                let lanes = quantised.lanes;
                let (panel, lane) = (row / lanes, row % lanes);
                let bias_stride = plan.biases.len() * 2 * blocks * lanes;
                let first = panel * blocks * lanes;
                let out = RowOut {
                    lanes,
                    codes: quantised.codes.as_ptr::<i8>().add((first + lane) * BLOCK),
                    scales: quantised.scales.as_ptr::<f32>().add(first + lane),
                    half_sums: if plan.any_halves {
                        quantised.half_sums.as_ptr::<f32>().add(2 * first + lane)
                    } else {
                        std::ptr::null_mut()
                    },
                    sums: quantised.sums.as_ptr::<f32>().add(first + lane),
                    biases: quantised.biases.as_ptr::<i32>().add(panel * bias_stride + lane),
                };
                (kernels.quantise_row)(x, plan.cols, &plan.biases, &out);
            }
        }
    }

    /// Computes some tiles of the stage for a block of tokens.
    fn tiles(
        &self,
        plan: &LinearPlan,
        tiles: Range<usize>,
        tokens: Range<usize>,
        input: &Input<'_>,
        thread: usize,
    ) {
        match plan.combine {
            Combine::Separate => {
                let mut end = 0;
                for (part, matrix) in plan.matrices.iter().enumerate() {
                    let first = end;
                    end += matrix.tiles;
                    let from = tiles.start.max(first) - first;
                    let to = tiles.end.clamp(first, end) - first;
                    if from >= to {
                        continue;
                    }
                    let ahead = input.way.ahead(plan, part, first, first + from);
                    let (out, width) = self.activations.get(matrix.out);
                    let destination = Destination {
                        start: out.wrapping_add(tokens.start * width + 16 * from),
                        stride: width,
                        rows: matrix.rows - 16 * from,
                        accumulate: matrix.accumulate,
                    };
                    let part = Part { matrix, tiles: from..to, ahead };
                    self.multiply(plan, &part, &tokens, input, thread, destination);
                }
            }
            Combine::Gated(activation) => {
                let [gate, up] = &plan.matrices[..] else { return };
                let (out, width) = self.activations.get(gate.out);
                let kernels = self.inner.kernels;
                let combine = match activation {
                    Activation::Silu => kernels.gate_silu,
                    Activation::GeluTanh => kernels.gate_gelu,
                };
                // As many tiles at a time as the scratch has room for.
                let most = TOKEN_BLOCK / tokens.len();
                let mut from = tiles.start;
                while from < tiles.end {
                    let to = tiles.end.min(from + most);
                    let stride = 16 * (to - from);
                    let start = self.threads[thread].products.as_ptr::<f32>();
                    let first = Destination { start, stride, rows: stride, accumulate: false };
                    // The scratch has room for three blocks of products.
                    let start = start.wrapping_add(TOKEN_BLOCK * 16);
                    let second = Destination { start, ..first };
                    for (i, (matrix, to_scratch)) in
                        [(gate, first), (up, second)].into_iter().enumerate()
                    {
                        let ahead = input.way.ahead(plan, i, 0, from);
                        let part = Part { matrix, tiles: from..to, ahead };
                        self.multiply(plan, &part, &tokens, input, thread, to_scratch);
                    }
                    let rows = (gate.rows - 16 * from).min(stride);
                    for (i, token) in tokens.clone().enumerate() {
                        // SAFETY: `stride` products of each token in both blocks of the
                        // scratch; row `token` of the output has room for `rows` from 16 · from
                        // on, and each of its tiles is written by one thread.
                        unsafe {
                            let (g, u) = (first.start.add(i * stride), start.add(i * stride));
                            let to = out.add(token * width + 16 * from);
                            if rows == stride {
                                combine(g, u, to, stride);
                            } else {
                                combine(g, u, g, stride);
                                std::ptr::copy_nonoverlapping(g, to, rows);
                            }
                        }
                    }
                    from = to;
                }
            }
        }
    }

    /// Products of some tiles of a matrix with a block of tokens.
    fn multiply(
        &self,
        plan: &LinearPlan,
        Part { matrix, tiles, ahead }: &Part<'_>,
        tokens: &Range<usize>,
        input: &Input<'_>,
        thread: usize,
        to: Destination,
    ) {
        let blocks = plan.cols.div_ceil(BLOCK);
        let scratch = &self.threads[thread];
        // A tile that there is no room for goes to the scratch first.
        let spare = scratch.products.as_ptr::<f32>().wrapping_add(2 * TOKEN_BLOCK * 16);
        // SAFETY: the tiles are some of the matrix's, the rows are prepared, and the
        // destination has room for the products of whole tiles up to its number of rows.
        unsafe {
            match &matrix.product {
                Product::Tiles { kernel, layout, packed, bias, halves } => {
                    // Blocks of tokens begin with a panel.
                    let q = input.quantised;
                    let panel = tokens.start / q.lanes;
                    let start = panel * blocks * q.lanes;
                    let sums = if *halves {
                        q.half_sums.as_ptr::<f32>().add(2 * start)
                    } else {
                        q.sums.as_ptr::<f32>().add(start)
                    };
                    let bias_stride = plan.biases.len() * 2 * blocks * q.lanes;
                    let biases = bias.map_or(std::ptr::null(), |b| {
                        let start = panel * bias_stride + b * 2 * blocks * q.lanes;
                        q.biases.as_ptr::<i32>().add(start).cast_const()
                    });
                    let bias_of = |tile: usize| match &matrix.bias {
                        Some(bias) => bias.floats()[16 * tile..].as_ptr(),
                        None => std::ptr::null(),
                    };
                    let mut call = TileCall {
                        layout,
                        tile: packed.tile(tiles.start),
                        tiles: (to.rows / 16).min(tiles.len()),
                        x: Activations {
                            lanes: q.lanes,
                            codes: q.codes.as_ptr::<i8>().add(start * BLOCK),
                            scales: q.scales.as_ptr::<f32>().add(start),
                            sums,
                            biases,
                            bias_stride,
                        },
                        tokens: tokens.len(),
                        scratch: scratch.header.as_ptr(),
                        unpacked: scratch.unpacked.as_ptr(),
                        out: to.start,
                        out_stride: to.stride,
                        accumulate: to.accumulate,
                        bias: bias_of(tiles.start),
                        ahead: *ahead,
                    };
                    kernel(&call);
                    let whole = call.tiles;
                    if whole < tiles.len() {
                        let tile = tiles.start + whole;
                        call.tile = packed.tile(tile);
                        call.tiles = 1;
                        (call.out, call.out_stride, call.accumulate) = (spare, 16, false);
                        call.bias = bias_of(tile);
                        kernel(&call);
                        place(spare, tokens.len(), whole, None, to);
                    }
                }
                Product::Float { kernel } => {
                    let Storage::Float { data, scales, .. } = matrix.storage() else {
                        unreachable!("the product was planned from the storage")
                    };
                    let (x, stride) = input.floats;
                    for (i, tile) in tiles.clone().enumerate() {
                        kernel(&FloatCall {
                            weights: data.as_ptr(),
                            cols: plan.cols,
                            row: tile * 16,
                            rows: (matrix.rows - tile * 16).min(16),
                            scales: scales.as_ref().map(|s| FloatScales {
                                scales: s.values.as_ptr(),
                                group_rows: s.group_rows,
                                group_cols: s.group_cols,
                            }),
                            x: x.add(tokens.start * stride),
                            x_stride: stride,
                            tokens: tokens.len(),
                            out: spare,
                        });
                        let bias = matrix.bias.as_ref().map(|b| &b.floats()[16 * tile..]);
                        place(spare, tokens.len(), i, bias, to);
                    }
                }
            }
        }
    }
}

/// Puts `[tokens][16]` products where tile `tile` of the destination is, as many rows as it has.
///
/// # Safety
/// `products` must be readable for all tokens, and the destination writable for as many rows.
unsafe fn place(
    products: *const f32,
    tokens: usize,
    tile: usize,
    bias: Option<&[f32]>,
    to: Destination,
) {
    let rows = (to.rows - 16 * tile).min(16);
    for token in 0..tokens {
        for row in 0..rows {
            // SAFETY: forwarded from the caller.
            unsafe {
                let to_row = to.start.add(token * to.stride + 16 * tile + row);
                let before = if to.accumulate { *to_row } else { 0.0 };
                *to_row = *products.add(16 * token + row) + bias.map_or(0.0, |b| b[row]) + before;
            }
        }
    }
}
