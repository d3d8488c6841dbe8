//! What every thread does in a step.

use std::sync::PoisonError;

use marlin_backend::Tensor;

use super::plan::StageKind;
use super::{CpuExecutor, LOCAL_ROWS};
use crate::pool::Worker;
use crate::sampler::sample;
use crate::weight::CpuWeight;

impl CpuExecutor {
    /// Runs all stages of a step on one of the threads.
    pub(super) fn run_stages(&self, worker: Worker<'_>) {
        let rows = self.tokens.len();
        for (i, stage) in self.plan.stages.iter().enumerate() {
            let started = stage.tally.start();
            match &stage.kind {
                StageKind::Embed { table, scale, out } => {
                    // The rotations are needed from the first attention on.
                    self.rotations(worker);
                    if let Some(table) = table.as_any().downcast_ref::<CpuWeight>() {
                        self.embed(i, table, *scale, *out, worker);
                    }
                }
                StageKind::Norm { x, norm, out } => {
                    self.each_row(i, *x, worker, |row, x, width| {
                        let (out, _) = self.activations.get(*out);
                        let weight = norm.weight.as_ptr::<f32>();
                        let rms_norm = self.inner.kernels.rms_norm;
                        // SAFETY: both tensors have this row, `width` wide; one thread has it.
                        unsafe {
                            rms_norm(x, weight, norm.eps, norm.offset, out.add(row * width), width);
                        }
                    });
                }
                StageKind::AddNorm { x, norm, residual } => {
                    self.each_row(i, *x, worker, |row, x, width| {
                        let (residual, _) = self.activations.get(*residual);
                        let weight = norm.weight.as_ptr::<f32>();
                        let kernels = self.inner.kernels;
                        // SAFETY: as above; `x` is not read again, so the norm goes in place.
                        unsafe {
                            (kernels.rms_norm)(x, weight, norm.eps, norm.offset, x, width);
                            (kernels.axpy)(1.0, x, residual.add(row * width), width);
                        }
                    });
                }
                StageKind::Linear(plan) => {
                    let rows = if self.is_per_output(plan.x) { self.outputs.len() } else { rows };
                    self.linear(i, plan, rows, worker);
                }
                StageKind::Attention(plan) => self.attention(i, plan, worker),
                StageKind::Select { x, out } => {
                    let ((x, width), (out, _)) =
                        (self.activations.get(*x), self.activations.get(*out));
                    self.cursors.share(2 * i, worker.index, self.outputs.len(), 16, |range| {
                        for o in range {
                            let token = self.outputs[o];
                            // SAFETY: row `token` of x and row `o` of out exist, and tensors
                            // that live at once do not overlap.
                            unsafe {
                                let from = x.add(token * width);
                                std::ptr::copy_nonoverlapping(from, out.add(o * width), width);
                            }
                        }
                    });
                }
            }
            worker.barrier.wait();
            if worker.index == 0 {
                stage.tally.record_since(started, 0);
            }
            if rows <= LOCAL_ROWS
                && let Some(StageKind::Linear(next)) = self.plan.stages.get(i + 1).map(|s| &s.kind)
            {
                next.prefetch(worker, self.inner.prefetch_distance);
            }
        }
        if !self.outputs.is_empty() {
            let started = self.sampling.start();
            self.sample(worker);
            if worker.index == 0 {
                self.sampling.record_since(started, 0);
            }
        }
    }

    /// Calls `run(row, pointer to the row, width)` for every row of a tensor.
    fn each_row(
        &self,
        stage: usize,
        tensor: Tensor,
        worker: Worker<'_>,
        mut run: impl FnMut(usize, *mut f32, usize),
    ) {
        let rows = if self.is_per_output(tensor) { self.outputs.len() } else { self.tokens.len() };
        let (data, width) = self.activations.get(tensor);
        self.cursors.share(2 * stage, worker.index, rows, 4, |range| {
            for row in range {
                // SAFETY: the tensor has this row.
                run(row, unsafe { data.add(row * width) }, width);
            }
        });
    }

    /// Cosines and sines of every token's position, for each distinct rotary embedding.
    fn rotations(&self, worker: Worker<'_>) {
        for (rope, table) in self.plan.ropes.iter().zip(&self.rotations) {
            let pairs = rope.inverse_frequencies.len();
            let own = self.tokens.iter().enumerate().skip(worker.index).step_by(worker.count);
            for (t, token) in own {
                // SAFETY: the table has a row of 2 · pairs floats per token; one thread has it.
                let row = unsafe {
                    let start = table.as_ptr::<f32>().add(t * 2 * pairs);
                    std::slice::from_raw_parts_mut(start, 2 * pairs)
                };
                for (i, &frequency) in rope.inverse_frequencies.iter().enumerate() {
                    // In f32, as every implementation that models are compared with.
                    let (sin, cos) = (token.position as f32 * frequency).sin_cos();
                    row[i] = cos * rope.magnitude;
                    row[pairs + i] = sin * rope.magnitude;
                }
            }
        }
    }

    fn embed(&self, stage: usize, table: &CpuWeight, scale: f32, out: Tensor, worker: Worker<'_>) {
        let (out, width) = self.activations.get(out);
        self.cursors.share(2 * stage, worker.index, self.tokens.len(), 1, |range| {
            for t in range {
                // SAFETY: row t of the tensor is `width` wide; one thread has it.
                let row = unsafe { std::slice::from_raw_parts_mut(out.add(t * width), width) };
                // Ids were checked against the table when the batch came in.
                table.decode_row(self.tokens[t].id as usize, row);
                if scale != 1.0 {
                    row.iter_mut().for_each(|x| *x *= scale);
                }
            }
        });
    }

    /// Chooses the next token of every output row.
    fn sample(&self, worker: Worker<'_>) {
        let (logits, vocabulary) = self.activations.get(self.logits);
        let stage = self.plan.stages.len();
        self.cursors.share(2 * stage, worker.index, self.outputs.len(), 1, |range| {
            for o in range {
                // SAFETY: the tensor has a row for every output; one thread has it.
                let row = unsafe {
                    std::slice::from_raw_parts_mut(logits.add(o * vocabulary), vocabulary)
                };
                if let Some(cap) = self.softcap {
                    row.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
                }
                let sequence = self.tokens[self.outputs[o]].sequence as usize;
                let mut state =
                    self.sequences[sequence].lock().unwrap_or_else(PoisonError::into_inner);
                let scratch = &self.threads[worker.index].sampler;
                let mut scratch = scratch.lock().unwrap_or_else(PoisonError::into_inner);
                let token = sample(self.inner.kernels, row, &mut state, &mut scratch);
                // SAFETY: the result has room for every output.
                unsafe { self.result.as_ptr::<u32>().add(o).write(token) };
            }
        });
    }
}
