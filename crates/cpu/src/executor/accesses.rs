//! Which buffers the stages of a step read and write: known when a program is compiled, counted once
//! a step.

use marlin_backend::{Rows, Tensor};
use marlin_placement::Accesses;

use super::plan::{AttentionPlan, Combine, LinearPlan, NormPlan, StageKind};
use super::{CpuExecutor, LOCAL_ROWS, Quantised};
use crate::memory::Buffer;
use crate::weight::{CpuWeight, Storage};

/// Which scratch memory a step's linear stages use depends on its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Regime {
    /// Every thread prepares the few rows for itself.
    Local = 0,
    /// Threads share the rows, but those of the outputs are few.
    LocalOutputs = 1,
    /// Threads share all rows.
    Shared = 2,
}

impl Regime {
    pub(super) const ALL: [Self; 3] = [Self::Local, Self::LocalOutputs, Self::Shared];

    pub(super) fn of(tokens: usize, outputs: usize) -> Self {
        if tokens <= LOCAL_ROWS {
            Self::Local
        } else if outputs <= LOCAL_ROWS {
            Self::LocalOutputs
        } else {
            Self::Shared
        }
    }

    fn is_local(self, rows: Rows) -> bool {
        match self {
            Self::Local => true,
            Self::LocalOutputs => rows == Rows::Outputs,
            Self::Shared => false,
        }
    }
}

/// The accesses of one stage.
struct StageAccesses<'a> {
    all: &'a mut Accesses,
    kernel: &'static str,
}

impl StageAccesses<'_> {
    fn reads(&mut self, buffer: &Buffer) {
        self.all.reads(buffer.tally(), self.kernel);
    }

    fn writes(&mut self, buffer: &Buffer) {
        self.all.writes(buffer.tally(), self.kernel);
    }

    /// What is written to be read again.
    fn uses(&mut self, buffer: &Buffer) {
        self.writes(buffer);
        self.reads(buffer);
    }

    fn norm(&mut self, norm: &NormPlan) {
        self.reads(&norm.weight);
    }

    fn weight(&mut self, storage: &Storage) {
        match storage {
            Storage::Tiles { packed, .. } => self.reads(packed),
            Storage::Float { tally, scales, .. } => {
                self.all.reads(tally, self.kernel);
                if let Some(scales) = scales {
                    self.reads(&scales.values);
                }
            }
        }
    }
}

impl CpuExecutor {
    /// What a step of `regime` touches.
    pub(super) fn accesses_of(&self, regime: Regime) -> Accesses {
        let mut all = Accesses::new();
        for stage in &self.plan.stages {
            let mut step = StageAccesses { all: &mut all, kernel: stage.tally.label() };
            match &stage.kind {
                StageKind::Embed { table, out, .. } => {
                    step.reads(&self.step_input);
                    if let Some(table) = table.as_any().downcast_ref::<CpuWeight>() {
                        step.weight(&table.storage);
                    }
                    self.rotations.iter().for_each(|table| step.writes(table));
                    step.writes(self.buffer_of(*out));
                }
                StageKind::Norm { x, norm, out } => {
                    step.reads(self.buffer_of(*x));
                    step.norm(norm);
                    step.writes(self.buffer_of(*out));
                }
                StageKind::AddNorm { x, norm, residual } => {
                    step.uses(self.buffer_of(*x));
                    step.norm(norm);
                    step.uses(self.buffer_of(*residual));
                }
                StageKind::Linear(plan) => self.linear_accesses(plan, regime, &mut step),
                StageKind::Attention(plan) => self.attention_accesses(plan, &mut step),
                StageKind::Select { x, out } => {
                    step.reads(self.buffer_of(*x));
                    step.writes(self.buffer_of(*out));
                }
            }
        }
        let mut step = StageAccesses { all: &mut all, kernel: self.sampling.label() };
        // The softcap is applied in place.
        step.uses(self.buffer_of(self.logits));
        step.reads(&self.step_input);
        step.writes(&self.result);
        all.reads(&self.history, self.sampling.label());
        for scratch in &self.threads {
            all.writes(&scratch.sampler_tally, self.sampling.label());
            all.reads(&scratch.sampler_tally, self.sampling.label());
        }
        all
    }

    fn buffer_of(&self, tensor: Tensor) -> &Buffer {
        self.activations.buffer(tensor)
    }

    fn linear_accesses(&self, plan: &LinearPlan, regime: Regime, step: &mut StageAccesses<'_>) {
        let local = regime.is_local(self.activations.rows(plan.x));
        step.reads(self.buffer_of(plan.x));
        if let Some(norm) = &plan.norm {
            step.norm(norm);
        }
        let input = |step: &mut StageAccesses<'_>, normed: &Buffer, quantised: &Quantised| {
            if plan.norm.is_some() {
                step.uses(normed);
            }
            if plan.any_quantised {
                step.uses(&quantised.codes);
                step.uses(&quantised.scales);
                step.uses(&quantised.sums);
            }
            if plan.any_halves {
                step.uses(&quantised.half_sums);
            }
            if !plan.biases.is_empty() {
                step.uses(&quantised.biases);
            }
        };
        if !local {
            input(step, &self.normed, &self.quantised);
        }
        let gated = matches!(plan.combine, Combine::Gated(_));
        for scratch in &self.threads {
            if local {
                input(step, &scratch.normed, &scratch.quantised);
            }
            if plan.any_quantised {
                step.uses(&scratch.header);
                if self.inner.kernels.has_matrix_unit() && !local {
                    step.uses(&scratch.unpacked);
                }
            }
            let partly = plan.matrices.iter().any(|m| !m.rows.is_multiple_of(16));
            if gated || plan.any_float || partly {
                step.uses(&scratch.products);
            }
        }
        for matrix in &plan.matrices {
            step.weight(matrix.storage());
            if let Some(bias) = &matrix.bias {
                step.reads(bias);
            }
            if matrix.accumulate {
                step.reads(self.buffer_of(matrix.out));
            }
            step.writes(self.buffer_of(matrix.out));
        }
    }

    fn attention_accesses(&self, plan: &AttentionPlan, step: &mut StageAccesses<'_>) {
        for tensor in [plan.q, plan.k, plan.v] {
            step.reads(self.buffer_of(tensor));
        }
        for norm in plan.q_norm.iter().chain(&plan.k_norm) {
            step.norm(norm);
        }
        if let Some(rope) = plan.rope {
            step.reads(&self.rotations[rope]);
        }
        step.uses(self.kv.buffer());
        self.threads.iter().for_each(|scratch| step.uses(&scratch.attention));
        step.uses(self.partials.buffer());
        step.writes(self.buffer_of(plan.out));
    }
}
