//! From a program's ops to steps over matrices, vectors and places in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use marlin_backend::{
    Activation, AttentionSpec, BackendError, CacheInfo, HostBytes, LinearPart, Norm, Op, Program,
    Rows, Tensor, Union, Weight, stacks,
};
use marlin_formats::fragment::FragmentLayout;

use super::Shared;
use super::place;
pub(super) use super::places::Place;
use super::places::{Places, Slot};
use super::sharing::Sharing;
use super::weight::GpuWeight;
use crate::Buffer;
use crate::ops::linear::FragmentWeights;
use crate::tuning::Product;

/// A norm whose weight is a vector of the plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormStep {
    pub(super) weight: usize,
    pub(super) eps: f32,
    pub(super) offset: f32,
}

/// A norm between products that can share it: a residual's last product before it, and every reader after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedNormStep {
    pub(super) norm: NormStep,
    /// Where the norm's readers look.
    pub(super) out: Place,
    /// Whether output rows are selected in between, so that sharing needs every token to be one.
    pub(super) selects: bool,
}

/// One op, or what it was taken apart into. Numbers are indices in the plan.
pub(super) enum Step {
    Embed {
        table: usize,
        scale: f32,
        out: Place,
    },
    Norm {
        x: Place,
        norm: NormStep,
        out: Place,
        /// Its number, where products can share it.
        shared: Option<usize>,
    },
    AddNorm {
        x: Place,
        norm: NormStep,
        residual: Place,
    },
    Linear {
        x: Place,
        matrix: usize,
        bias: Option<usize>,
        gated: Option<Activation>,
        accumulate: bool,
        out: Place,
        /// The norm that it can share with the products before it.
        pending: Option<usize>,
        /// The norm that it can share with the products after it.
        next: Option<usize>,
    },
    /// Gate and up of different formats, multiplied apart.
    GateUp {
        gate_up: Place,
        activation: Activation,
        out: Place,
    },
    Attention(Box<AttentionStep>),
    Select {
        x: Place,
        out: Place,
    },
}

/// An attention op.
pub(super) struct AttentionStep {
    pub(super) q: Place,
    pub(super) k: Place,
    pub(super) v: Place,
    pub(super) out: Place,
    pub(super) cache: usize,
    pub(super) spec: AttentionSpec,
    pub(super) q_norm: Option<NormStep>,
    pub(super) k_norm: Option<NormStep>,
    /// Table of inverse frequencies.
    pub(super) frequencies: usize,
}

/// A matrix to be, of one or several weights.
struct MatrixSpec {
    weights: Vec<Weight>,
    layout: (FragmentLayout, usize),
    ids: Vec<u64>,
    placed: Mutex<Option<Arc<FragmentWeights>>>,
}

impl MatrixSpec {
    /// Whether the matrix is on the device already.
    fn is_placed(&self, shared: &Arc<Shared>) -> Result<bool, BackendError> {
        let Some(first) = self.weights.first() else { return Ok(false) };
        Ok(GpuWeight::of(first, shared)?.placed_matrix(&self.ids).is_some())
    }
}

/// A vector to be: weights one after the other, with zeros where there is none.
struct VectorSpec {
    parts: Vec<(Option<Weight>, usize)>,
    placed: Mutex<Option<Arc<Buffer<f32>>>>,
}

/// A program, taken apart.
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    matrices: Vec<MatrixSpec>,
    vectors: Vec<VectorSpec>,
    pub(super) shared_norms: Vec<SharedNormStep>,
    /// Distinct tables of rotary frequencies.
    pub(super) frequencies: Vec<Arc<[f32]>>,
    pub(super) slots: Vec<Slot>,
    pub(super) caches: Vec<CacheInfo>,
    pub(super) logits: Place,
    pub(super) softcap: Option<f32>,
    /// Token ids are below it.
    pub(super) vocabulary: usize,
    /// Bytes in the file of what a step with one token reads.
    pub(super) weight_bytes: u64,
    /// Of the matrices, for one token, without the output head.
    pub(super) multiply_adds: u64,
}

impl Plan {
    pub(super) fn new(shared: &Arc<Shared>, program: &Program) -> Result<Self, BackendError> {
        let mut apart = vec![false; program.ops.len()];
        for (apart, op) in apart.iter_mut().zip(&program.ops) {
            if let Op::GatedLinear { gate, up, .. } = op {
                let weights = [gate.clone(), up.clone()];
                *apart = place::layout_of(shared, &weights, Union::Gated)?.is_none();
            }
        }
        let places = Places::new(program, &apart);
        let mut builder = Builder {
            shared,
            program,
            sharing: Sharing::of(program),
            shared_numbers: HashMap::new(),
            begun: None,
            places: places.tensors,
            gate_up: places.gate_up,
            plan: Self {
                steps: Vec::new(),
                matrices: Vec::new(),
                vectors: Vec::new(),
                shared_norms: Vec::new(),
                frequencies: Vec::new(),
                slots: places.slots,
                caches: program.caches.clone(),
                logits: places.logits,
                softcap: program.logit_softcap,
                vocabulary: program.tensors[program.logits.index()].width,
                weight_bytes: 0,
                multiply_adds: 0,
            },
        };
        for (index, op) in program.ops.iter().enumerate() {
            builder.op(index, op)?;
        }
        Ok(builder.plan)
    }

    /// Brings every weight to the device that is not there.
    pub(super) fn place(
        &self,
        shared: &Arc<Shared>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), BackendError> {
        for spec in &self.vectors {
            let vector = place::vector(shared, &spec.parts, progress)?;
            *spec.placed.lock().unwrap_or_else(PoisonError::into_inner) = Some(vector);
        }
        for spec in &self.matrices {
            let matrix = place::matrix(shared, &spec.weights, spec.layout, progress)?;
            *spec.placed.lock().unwrap_or_else(PoisonError::into_inner) = Some(matrix);
        }
        Ok(())
    }

    /// What the file has of the weights that are not there yet as kernels read it. Vectors of files that are not packed are
    /// not in it: few bytes, for which the device would hold all of the file.
    pub(super) fn in_file(&self, shared: &Arc<Shared>) -> Result<Vec<HostBytes>, BackendError> {
        let mut found: Vec<HostBytes> = Vec::new();
        for spec in &self.matrices {
            let own: Vec<&GpuWeight> =
                spec.weights.iter().map(|w| GpuWeight::of(w, shared)).collect::<Result<_, _>>()?;
            if !spec.is_placed(shared)?
                && let Some(sections) = place::sections(&own)
            {
                found.extend(sections.into_iter().filter(|section| !section.is_empty()));
            }
        }
        for spec in &self.vectors {
            let own = place::parts_of(shared, &spec.parts)?;
            let packed = |bytes: &HostBytes| found.iter().any(|m| m.has_owner_of(bytes));
            found.extend(place::vector_in_file(&own).filter(packed));
        }
        Ok(found)
    }

    /// Bytes of device memory of the weights that are not there yet.
    pub(super) fn bytes_to_place(&self, shared: &Arc<Shared>) -> Result<u64, BackendError> {
        let mut bytes = 0;
        for spec in &self.matrices {
            if !spec.is_placed(shared)? {
                let (layout, parts) = &spec.layout;
                bytes += (layout.bytes() * parts) as u64;
            }
        }
        for spec in &self.vectors {
            if place::placed_vector(&place::parts_of(shared, &spec.parts)?).is_none() {
                bytes += 4 * spec.parts.iter().map(|(_, len)| *len as u64).sum::<u64>();
            }
        }
        Ok(bytes)
    }

    /// The layouts of single matrices of linear steps, each once, and of what rows their products are.
    pub(super) fn layouts(&self) -> Vec<(FragmentLayout, Rows)> {
        let mut found = Vec::new();
        for step in &self.steps {
            let Step::Linear { matrix, gated: None, out, .. } = step else { continue };
            let (layout, _) = self.matrices[*matrix].layout;
            if !found.contains(&(layout, out.rows)) {
                found.push((layout, out.rows));
            }
        }
        found
    }

    /// Matrix `index`, which is on the device.
    pub(super) fn matrix(&self, index: usize) -> Arc<FragmentWeights> {
        let spec = &self.matrices[index];
        let placed = spec.placed.lock().unwrap_or_else(PoisonError::into_inner);
        placed.clone().unwrap_or_else(|| unreachable!("a plan is placed before it is encoded"))
    }

    /// The matrices of linear steps that are alike, and whether they are gates and ups: each kind once.
    pub(super) fn products(&self) -> Vec<(Vec<Arc<FragmentWeights>>, bool)> {
        let mut kinds: Vec<(Vec<Arc<FragmentWeights>>, bool)> = Vec::new();
        for step in &self.steps {
            let Step::Linear { matrix, gated, .. } = step else { continue };
            let (matrix, gated) = (self.matrix(*matrix), gated.is_some());
            let product = Product::new(&matrix, 1, gated);
            let known =
                kinds.iter_mut().find(|(of, gated)| Product::new(&of[0], 1, *gated) == product);
            match known {
                Some((of, _)) => of.push(matrix),
                None => kinds.push((vec![matrix], gated)),
            }
        }
        kinds
    }

    /// Vector `index`, which is on the device.
    pub(super) fn vector(&self, index: usize) -> Arc<Buffer<f32>> {
        let spec = &self.vectors[index];
        let placed = spec.placed.lock().unwrap_or_else(PoisonError::into_inner);
        placed.clone().unwrap_or_else(|| unreachable!("a plan is placed before it is encoded"))
    }
}

struct Builder<'a> {
    shared: &'a Arc<Shared>,
    program: &'a Program,
    sharing: Sharing,
    /// For each op that is a shared norm its number.
    shared_numbers: HashMap<usize, usize>,
    /// The linear step that begins the next norm.
    begun: Option<usize>,
    places: Vec<Place>,
    gate_up: Vec<Option<Place>>,
    plan: Plan,
}

impl Builder<'_> {
    fn at(&self, tensor: Tensor) -> Place {
        self.places[tensor.index()]
    }

    fn op(&mut self, index: usize, op: &Op) -> Result<(), BackendError> {
        let step = match op {
            Op::Embed { table, scale, out } => {
                // One row of the table.
                self.plan.weight_bytes += table.file_bytes() / table.rows().max(1) as u64;
                self.plan.vocabulary = self.plan.vocabulary.min(table.rows());
                let Some(table) = self.matrix(std::slice::from_ref(table), Union::Stacked)? else {
                    return Ok(());
                };
                Step::Embed { table, scale: *scale, out: self.at(*out) }
            }
            Op::RmsNorm { x, norm, out } => {
                let (x, norm, out) = (self.at(*x), self.norm(norm)?, self.at(*out));
                let shared = self.sharing.norms[index].map(|selects| {
                    let number = self.plan.shared_norms.len();
                    self.plan.shared_norms.push(SharedNormStep { norm, out, selects });
                    self.shared_numbers.insert(index, number);
                    // The product before it was planned when nobody knew its number.
                    if let Some(step) = self.begun.take()
                        && let Step::Linear { next, .. } = &mut self.plan.steps[step]
                    {
                        *next = Some(number);
                    }
                    number
                });
                Step::Norm { x, norm, out, shared }
            }
            Op::AddRmsNorm { x, norm, residual } => {
                let norm = self.norm(norm)?;
                Step::AddNorm { x: self.at(*x), norm, residual: self.at(*residual) }
            }
            Op::Linear { x, parts } => {
                self.linear(index, *x, parts)?;
                if self.sharing.begins[index].is_some() {
                    self.begun = Some(self.plan.steps.len() - 1);
                }
                return Ok(());
            }
            Op::GatedLinear { x, gate, up, activation, out } => {
                return self.gated(index, *x, [gate, up], *activation, *out);
            }
            Op::Attention { q, k, v, out, cache, spec } => {
                let [q_norm, k_norm] = [&spec.q_norm, &spec.k_norm]
                    .map(|norm| norm.as_ref().map(|n| self.norm(n)).transpose());
                Step::Attention(Box::new(AttentionStep {
                    q: self.at(*q),
                    k: self.at(*k),
                    v: self.at(*v),
                    out: self.at(*out),
                    cache: cache.index(),
                    q_norm: q_norm?,
                    k_norm: k_norm?,
                    frequencies: self.frequencies(spec),
                    spec: (**spec).clone(),
                }))
            }
            Op::SelectOutputs { x, out } => Step::Select { x: self.at(*x), out: self.at(*out) },
        };
        self.plan.steps.push(step);
        Ok(())
    }

    /// Parts that lie side by side in one tensor are one matrix where their formats allow.
    fn linear(
        &mut self,
        index: usize,
        x: Tensor,
        parts: &[LinearPart],
    ) -> Result<(), BackendError> {
        let pending = self.pending(index);
        let is_head = parts.iter().any(|p| p.out == self.program.logits);
        let layouts: Vec<FragmentLayout> = parts
            .iter()
            .map(|part| GpuWeight::of(&part.weight, self.shared)?.layout())
            .collect::<Result<_, BackendError>>()?;
        let mut rest = parts;
        for count in stacks(&layouts, self.program.joins_parts(index)) {
            let weights: Vec<Weight> = rest[..count].iter().map(|p| p.weight.clone()).collect();
            let Some(matrix) = self.matrix(&weights, Union::Stacked)? else {
                return Err(self.shared.unsupported("a product with no matrix".to_owned()));
            };
            let (now, later) = rest.split_at(count);
            let biased = now.iter().any(|p| p.bias.is_some());
            let bias = biased.then(|| {
                self.vector(now.iter().map(|p| (p.bias.clone(), p.weight.rows())).collect())
            });
            let out = self.at(now[0].out);
            let width = now.iter().map(|p| p.weight.rows()).sum();
            for part in now {
                self.count(&part.weight, is_head);
            }
            self.plan.steps.push(Step::Linear {
                x: self.at(x),
                matrix,
                bias,
                gated: None,
                accumulate: now[0].accumulate,
                out: Place { width, ..out },
                pending,
                next: None,
            });
            rest = later;
        }
        Ok(())
    }

    fn gated(
        &mut self,
        index: usize,
        x: Tensor,
        weights: [&Weight; 2],
        activation: Activation,
        out: Tensor,
    ) -> Result<(), BackendError> {
        let (x, out, pending) = (self.at(x), self.at(out), self.pending(index));
        let linear = |matrix, gated, out| Step::Linear {
            x,
            matrix,
            bias: None,
            gated,
            accumulate: false,
            out,
            pending,
            next: None,
        };
        for weight in weights {
            self.count(weight, false);
        }
        if let Some(matrix) = self.matrix(&weights.map(Weight::clone), Union::Gated)? {
            self.plan.steps.push(linear(matrix, Some(activation), out));
            return Ok(());
        }
        let Some(gate_up) = self.gate_up[index] else {
            return Err(self.shared.unsupported("a gate with no room".to_owned()));
        };
        for (i, weight) in weights.into_iter().enumerate() {
            let alone = std::slice::from_ref(weight);
            let Some(matrix) = self.matrix(alone, Union::Stacked)? else { continue };
            let width = gate_up.width / 2;
            let out = Place { first: i * width, width, ..gate_up };
            self.plan.steps.push(linear(matrix, None, out));
        }
        self.plan.steps.push(Step::GateUp { gate_up, activation, out });
        Ok(())
    }

    /// The number of the shared norm that op `index` would finish.
    fn pending(&self, index: usize) -> Option<usize> {
        self.sharing.finishes[index].and_then(|norm| self.shared_numbers.get(&norm).copied())
    }

    /// The bytes and multiply-adds of a matrix.
    fn count(&mut self, weight: &Weight, is_head: bool) {
        self.plan.weight_bytes += weight.file_bytes();
        if !is_head {
            self.plan.multiply_adds += (weight.rows() * weight.cols()) as u64;
        }
    }

    /// The matrix that `weights` are, if they can be one.
    fn matrix(&mut self, weights: &[Weight], union: Union) -> Result<Option<usize>, BackendError> {
        let Some(layout) = place::layout_of(self.shared, weights, union)? else { return Ok(None) };
        let ids: Vec<u64> = weights
            .iter()
            .map(|w| Ok(GpuWeight::of(w, self.shared)?.id))
            .collect::<Result<_, BackendError>>()?;
        let known = self.plan.matrices.iter().position(|spec| spec.ids == ids);
        Ok(Some(known.unwrap_or_else(|| {
            let (weights, placed) = (weights.to_vec(), Mutex::default());
            self.plan.matrices.push(MatrixSpec { weights, layout, ids, placed });
            self.plan.matrices.len() - 1
        })))
    }

    fn vector(&mut self, parts: Vec<(Option<Weight>, usize)>) -> usize {
        self.plan.vectors.push(VectorSpec { parts, placed: Mutex::default() });
        self.plan.vectors.len() - 1
    }

    fn norm(&mut self, norm: &Norm) -> Result<NormStep, BackendError> {
        GpuWeight::of(&norm.weight, self.shared)?;
        let len = norm.weight.rows() * norm.weight.cols();
        let weight = self.vector(vec![(Some(norm.weight.clone()), len)]);
        Ok(NormStep { weight, eps: norm.eps, offset: norm.offset })
    }

    /// The table of `spec`'s rotary embedding; without one, a table of nothing.
    fn frequencies(&mut self, spec: &AttentionSpec) -> usize {
        let wanted: Arc<[f32]> =
            spec.rope.as_ref().map_or_else(|| Arc::from([]), |r| r.inverse_frequencies.clone());
        let known = self.plan.frequencies.iter().position(|table| *table == wanted);
        known.unwrap_or_else(|| {
            self.plan.frequencies.push(wanted);
            self.plan.frequencies.len() - 1
        })
    }
}
