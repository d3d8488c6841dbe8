//! Linear stages: norm and quantise the input, multiply tiles of rows, combine.

use marlin_backend::Activation;

use super::plan::{Combine, LinearPlan, MatrixPlan, Product};
use super::{CpuExecutor, LOCAL_ROWS, Quantised, TOKEN_BLOCK};
use crate::kernels::float::{FloatCall, FloatScales};
use crate::kernels::quantise::{BLOCK, PANEL, RowOut};
use crate::kernels::tile::{Activations, TileCall, prefetch};
use crate::pool::Worker;
use crate::weight::Storage;

/// Cache lines that are asked for ahead of a stage: what arrives in the microsecond or two
/// that a barrier and the preparation of the input take.
const PREFETCH_LINES: usize = 384;

impl LinearPlan {
    /// Tiles of the stage.
    fn tiles(&self) -> usize {
        match self.combine {
            Combine::Separate => self.matrices.iter().map(|m| m.tiles).sum(),
            Combine::Gated(_) => self.matrices[0].tiles,
        }
    }

    /// Tiles of one work item. Decode: small ones, a few microseconds of memory each, that
    /// other threads can take. Prefill: an item's weights stay in the second-level cache for
    /// all blocks of tokens.
    fn chunk(&self, rows: usize, threads: usize) -> usize {
        if rows > LOCAL_ROWS { 4 } else { (self.tiles() / (8 * threads)).clamp(1, 32) }
    }
}

/// Rows of input in the forms that a stage's matrices want.
struct Input<'a> {
    /// f32 rows and the distance between them.
    floats: (*const f32, usize),
    quantised: &'a Quantised,
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
        let input = Input { floats, quantised };
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
        let (tiles, blocks) = (plan.tiles(), rows.div_ceil(TOKEN_BLOCK));
        let chunk = plan.chunk(rows, worker.count);
        let groups = tiles.div_ceil(chunk);
        self.cursors.share(2 * stage + 1, worker.index, groups * blocks, 1, |range| {
            for item in range {
                let (group, block) = (item / blocks, item % blocks);
                let tokens = block * TOKEN_BLOCK..rows.min((block + 1) * TOKEN_BLOCK);
                for tile in group * chunk..tiles.min((group + 1) * chunk) {
                    self.tile(plan, tile, tokens.clone(), &input, worker.index);
                }
            }
        });
    }

    /// Asks for the first weights that this thread will need in a linear stage, while it
    /// waits for the others and prepares the input: without this, memory would idle around
    /// every barrier.
    pub(super) fn prefetch_linear(&self, plan: &LinearPlan, rows: usize, worker: Worker<'_>) {
        let (tiles, chunk) = (plan.tiles(), plan.chunk(rows, worker.count));
        let group = worker.index * tiles.div_ceil(chunk) / worker.count;
        let mut tile = group * chunk;
        for matrix in &plan.matrices {
            if tile < matrix.tiles {
                if let Storage::Tiles { layout, packed } = matrix.storage() {
                    let start = packed.as_ptr::<u8>().wrapping_add(tile * layout.tile_bytes());
                    for line in 0..PREFETCH_LINES {
                        prefetch(start.wrapping_add(64 * line));
                    }
                }
                return;
            }
            tile -= matrix.tiles;
        }
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
                let weight = norm.weight.as_ptr();
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
                    half_sums: quantised.half_sums.as_ptr::<f32>().add(2 * first + lane),
                    sums: quantised.sums.as_ptr::<f32>().add(first + lane),
                    biases: quantised.biases.as_ptr::<i32>().add(panel * bias_stride + lane),
                };
                (kernels.quantise_row)(x, plan.cols, &plan.biases, &out);
            }
        }
    }

    /// Computes tile `tile` of the stage for a block of tokens.
    fn tile(
        &self,
        plan: &LinearPlan,
        tile: usize,
        tokens: std::ops::Range<usize>,
        input: &Input<'_>,
        thread: usize,
    ) {
        let products = self.threads[thread].products.as_ptr::<f32>();
        match plan.combine {
            Combine::Separate => {
                let mut tile = tile;
                for matrix in &plan.matrices {
                    if tile < matrix.tiles {
                        self.multiply(plan, matrix, tile, tokens.clone(), input, thread, products);
                        self.finish(matrix, tile, tokens, products);
                        return;
                    }
                    tile -= matrix.tiles;
                }
            }
            Combine::Gated(activation) => {
                // SAFETY: the scratch has room for the products of two tiles.
                let second = unsafe { products.add(TOKEN_BLOCK * 16) };
                let [gate, up] = &plan.matrices[..] else { return };
                self.multiply(plan, gate, tile, tokens.clone(), input, thread, products);
                self.multiply(plan, up, tile, tokens.clone(), input, thread, second);
                let kernels = self.inner.kernels;
                let kernel = match activation {
                    Activation::Silu => kernels.gate_silu,
                    Activation::GeluTanh => kernels.gate_gelu,
                };
                for i in 0..tokens.len() {
                    // SAFETY: 16 products per token in both; the result goes over the first.
                    unsafe {
                        kernel(products.add(16 * i), second.add(16 * i), products.add(16 * i))
                    }
                }
                self.finish(gate, tile, tokens, products);
            }
        }
    }

    /// Products of one tile of a matrix with a block of tokens, as `[tokens][16]`.
    #[allow(clippy::too_many_arguments, reason = "the two callers above have them all at hand")]
    fn multiply(
        &self,
        plan: &LinearPlan,
        matrix: &MatrixPlan,
        tile: usize,
        tokens: std::ops::Range<usize>,
        input: &Input<'_>,
        thread: usize,
        out: *mut f32,
    ) {
        let blocks = plan.cols.div_ceil(BLOCK);
        let first = tokens.start;
        let tokens = tokens.len();
        // SAFETY: the tile is one of the matrix's, the rows are prepared, and the products
        // have room for a block of tokens.
        unsafe {
            match (matrix.storage(), &matrix.product) {
                (Storage::Tiles { layout, packed }, Product::Tiles { kernel, bias, halves }) => {
                    // Blocks of tokens begin with a panel.
                    let q = input.quantised;
                    let panel = first / q.lanes;
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
                    kernel(&TileCall {
                        layout,
                        tile: packed.as_ptr::<u8>().add(tile * layout.tile_bytes()),
                        x: Activations {
                            lanes: q.lanes,
                            codes: q.codes.as_ptr::<i8>().add(start * BLOCK),
                            scales: q.scales.as_ptr::<f32>().add(start),
                            sums,
                            biases,
                            bias_stride,
                        },
                        tokens,
                        scratch: self.threads[thread].header.as_ptr(),
                        out,
                    });
                }
                (Storage::Float { data, scales, .. }, Product::Float { kernel }) => {
                    let (x, stride) = input.floats;
                    kernel(&FloatCall {
                        weights: data.as_ptr(),
                        cols: plan.cols,
                        row: tile * 16,
                        rows: (matrix.weight.rows() - tile * 16).min(16),
                        scales: scales.as_ref().map(|s| FloatScales {
                            scales: s.values.as_ptr(),
                            group_rows: s.group_rows,
                            group_cols: s.group_cols,
                        }),
                        x: x.add(first * stride),
                        x_stride: stride,
                        tokens,
                        out,
                    });
                }
                _ => unreachable!("the product was planned from the storage"),
            }
        }
    }

    /// Adds the bias and writes a tile's products to the output tensor.
    fn finish(
        &self,
        matrix: &MatrixPlan,
        tile: usize,
        tokens: std::ops::Range<usize>,
        products: *const f32,
    ) {
        let (out, width) = self.activations.get(matrix.out);
        let start = tile * 16;
        let count = (matrix.weight.rows() - start).min(16);
        let bias = matrix.bias.as_ref().map(|b| &b[start..start + count]);
        for (i, token) in tokens.enumerate() {
            // SAFETY: row `token` of the tensor is `width` wide and holds columns
            // start..start + count; each tile of each row is written by one thread.
            let (to, from) = unsafe {
                (
                    std::slice::from_raw_parts_mut(out.add(token * width + start), count),
                    std::slice::from_raw_parts(products.add(16 * i), count),
                )
            };
            match (bias, matrix.accumulate) {
                (None, false) => to.copy_from_slice(from),
                (None, true) => to.iter_mut().zip(from).for_each(|(t, f)| *t += f),
                (Some(bias), false) => {
                    for ((t, f), b) in to.iter_mut().zip(from).zip(bias) {
                        *t = f + b;
                    }
                }
                (Some(bias), true) => {
                    for ((t, f), b) in to.iter_mut().zip(from).zip(bias) {
                        *t += f + b;
                    }
                }
            }
        }
    }
}
