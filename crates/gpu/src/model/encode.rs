//! A step as a command list. Everything that changes from one step to the next of the same shape (tokens,
//! positions, tiles) lies in the step's input, so that one recording serves all of them.

use std::ops::Range;

use marlin_backend::{Activation as Gate, ExecutorOptions, RopeStyle};
use marlin_kernels::signature::ElementType;
use marlin_kernels::{View, ViewMut};

use super::memory::{MAX_ROW_SHAPES, Memory};
use super::plan::{AttentionStep, NormStep, Place, Plan, Step};
use super::{Activation, Shared};
use crate::ops::activation::{GateActivation, gated_activation};
use crate::ops::attention::{Attention, DecodeShape};
use crate::ops::attention_append::{AttentionAppend, can_append};
use crate::ops::embed::{gather_rows, gather_weight_rows};
use crate::ops::kv_cache::{AppendKv, KvAddressing};
use crate::ops::linear::{
    Activation as Gated, Epilogue, FragmentWeights, Neighbours, NextNorm, PendingNorm,
    SHARED_NORM_TOKENS, gemm_among_others, gemv,
};
use crate::ops::norm::{NormWeight, rms_norm, rms_norm_add};
use crate::ops::rope::Rotation;
use crate::ops::rope_append::{HeadRows, QkvValues, RopeAppend};
use crate::ops::sample::{Sample, arg_max, sample};
use crate::ops::step::{StepTokens, begin_step};
use crate::{Buffer, Command, CommandList, DeviceProperties, GpuError, Region};

/// How a step's tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Choice {
    /// The likeliest, whatever the settings: nobody penalises.
    ArgMax,
    /// By the settings.
    Sample,
    /// The likeliest after each of several outputs of one sequence, which none of them continues: for scoring.
    EachOutput,
}

/// What tells one recording from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StepShape {
    pub(super) tokens: usize,
    pub(super) outputs: usize,
    /// For each of the memory's row shapes how many tiles; `None` where every token is of a sequence of its own.
    pub(super) tiles: Option<[usize; MAX_ROW_SHAPES]>,
    /// Positions that single tokens may look back at: decides into how many parts a context is split.
    pub(super) context: usize,
    pub(super) choice: Choice,
    /// Whether the host will read the logits.
    pub(super) logits: bool,
}

impl StepShape {
    /// Where the parts of the step's input are, in words.
    pub(super) fn words(&self) -> StepWords {
        let mut at = 0;
        let mut take = |len: usize| {
            let start = at;
            at += len;
            start..at
        };
        let n = self.tokens;
        let given = take(n);
        let places = take(2 * n);
        let sequences = take(n);
        let positions = take(n);
        let rows = take(self.outputs);
        let outputs = take(2 * self.outputs);
        let tiles = self.tiles.unwrap_or_default().map(|count| take(2 * count));
        StepWords { given, places, sequences, positions, rows, outputs, tiles, len: at }
    }
}

/// The parts of a step's input.
pub(super) struct StepWords {
    /// Ids of the tokens.
    pub(super) given: Range<usize>,
    /// Slot and position of each token.
    pub(super) places: Range<usize>,
    pub(super) sequences: Range<usize>,
    pub(super) positions: Range<usize>,
    /// Tokens that are outputs.
    pub(super) rows: Range<usize>,
    /// Slot and position of each output; its own number and position where [`Choice::EachOutput`].
    pub(super) outputs: Range<usize>,
    /// First token and number of tokens of each tile, for each row shape.
    pub(super) tiles: [Range<usize>; MAX_ROW_SHAPES],
    pub(super) len: usize,
}

/// Writes one step.
pub(super) struct Encoder<'a, T> {
    pub(super) shared: &'a Shared,
    pub(super) plan: &'a Plan,
    pub(super) memory: &'a Memory<T>,
    pub(super) options: &'a ExecutorOptions,
    pub(super) shape: StepShape,
    /// Which of the steps in flight.
    pub(super) turn: usize,
}

impl<T: Activation> Encoder<'_, T> {
    /// The whole step. `logits` is where the host reads them, if it does.
    pub(super) fn encode(&self, logits: Option<&Buffer<T>>) -> Result<CommandList, GpuError> {
        let label = match self.shape.tiles {
            None => "decode",
            Some(_) => "prefill",
        };
        let mut list = CommandList::new(label);
        let words = self.shape.words();
        let memory = self.memory;
        let tokens = StepTokens {
            given: self.input(&words.given)?,
            places: self.input(&words.places)?,
            sampled: memory.sampled.view(),
        };
        let history = memory.history.view_mut()?;
        begin_step(&mut list, tokens, self.ids()?, history, self.options.context)?;
        // Rows of a selection that changes nothing are read where they are.
        let mut selected = None;
        for step in &self.plan.steps {
            if let Step::Select { x, out } = step
                && self.shape.outputs == self.shape.tokens
            {
                selected = Some((*out, *x));
                continue;
            }
            self.step(&mut list, step, selected, &words)?;
        }
        self.choose(&mut list, &words)?;
        if let Some(logits) = logits
            && self.shape.logits
        {
            let source = &memory.activations[self.plan.logits.slot];
            let bytes = (self.shape.outputs * self.plan.logits.width * size_of::<T>()) as u64;
            let region = |buffer: &Buffer<T>| Region {
                allocation: buffer.allocation().clone(),
                offset: 0,
                bytes,
            };
            list.push(Command::Copy { source: region(source), destination: region(logits) });
        }
        Ok(list)
    }

    fn properties(&self) -> &DeviceProperties {
        self.shared.device.properties()
    }

    fn input(&self, words: &Range<usize>) -> Result<View<'_, u32>, GpuError> {
        Ok(self.memory.step[self.turn].slice(words.clone())?)
    }

    fn ids(&self) -> Result<ViewMut<'_, u32>, GpuError> {
        Ok(self.memory.ids.slice_mut(0..self.shape.tokens)?)
    }

    fn rows(&self, place: Place) -> usize {
        match place.rows {
            marlin_backend::Rows::Tokens => self.shape.tokens,
            marlin_backend::Rows::Outputs => self.shape.outputs,
        }
    }

    /// The elements of a tensor from its first to its last row's end; rows are its stride apart.
    fn range(&self, place: Place) -> Range<usize> {
        match self.rows(place) {
            0 => 0..0,
            rows => place.first..(rows - 1) * place.stride + place.first + place.width,
        }
    }

    fn read(&self, place: Place) -> Result<View<'_, T>, GpuError> {
        Ok(self.memory.activations[place.slot].slice(self.range(place))?)
    }

    fn write(&self, place: Place) -> Result<ViewMut<'_, T>, GpuError> {
        Ok(self.memory.activations[place.slot].slice_mut(self.range(place))?)
    }

    fn step(
        &self,
        list: &mut CommandList,
        step: &Step,
        selected: Option<(Place, Place)>,
        words: &StepWords,
    ) -> Result<(), GpuError> {
        let input = |place: Place| match selected {
            Some((out, x)) if out == place => x,
            _ => place,
        };
        match step {
            Step::Embed { table, scale, out } => {
                let table = self.plan.matrix(*table);
                let ids = self.memory.ids.slice(0..self.shape.tokens)?;
                gather_weight_rows(list, &table, ids, *scale, self.write(*out)?)
            }
            Step::Norm { shared: Some(number), .. } if self.shares(*number) => Ok(()),
            Step::Norm { x, norm, out, .. } => {
                let weight = self.plan.vector(norm.weight);
                let norm = norm_weight(norm, &weight);
                let rows = self.rows(*out);
                rms_norm(list, self.read(input(*x))?, norm, self.write(*out)?, rows)
            }
            Step::AddNorm { x, norm, residual } => {
                let weight = self.plan.vector(norm.weight);
                let norm = norm_weight(norm, &weight);
                let (x, rows) = (input(*x), self.rows(*residual));
                rms_norm_add(list, self.read(x)?, norm, self.write(*residual)?, rows)
            }
            Step::Linear { x, matrix, bias, gated, accumulate, out, pending, next } => {
                let bias = bias.map(|bias| self.plan.vector(bias));
                let epilogue = Epilogue {
                    bias: bias.as_ref().map(|bias| bias.view()),
                    gated: gated.map(|gate| match gate {
                        Gate::Silu => Gated::Silu,
                        Gate::GeluTanh => Gated::Gelu,
                    }),
                    accumulate: *accumulate,
                    stride: if out.stride == out.width { 0 } else { out.stride },
                };
                let shared = [*pending, *next].map(|number| number.filter(|&n| self.shares(n)));
                self.linear(list, input(*x), *matrix, epilogue, *out, shared)
            }
            Step::GateUp { gate_up, activation, out } => {
                let activation = match activation {
                    Gate::Silu => GateActivation::Silu,
                    Gate::GeluTanh => GateActivation::GeluTanh,
                };
                let rows = self.rows(*out);
                let (x, y) = (self.read(*gate_up)?, self.write(*out)?);
                gated_activation(list, activation, x, y, rows, out.width)
            }
            Step::Attention(attention) => self.attention(list, attention, words),
            Step::Select { x, out } => {
                let ids = self.input(&words.rows)?;
                let table = self.read(*x)?;
                let rows = self.rows(*x);
                gather_rows(list, table, ids, 1.0, self.write(*out)?, rows, out.width)
            }
        }
    }

    fn linear(
        &self,
        list: &mut CommandList,
        x: Place,
        matrix: usize,
        epilogue: Epilogue<'_>,
        out: Place,
        [pending, next]: [Option<usize>; 2],
    ) -> Result<(), GpuError> {
        let weights = self.plan.matrix(matrix);
        let tokens = self.rows(out);
        let (x, y) = (self.read(x)?, self.write(out)?);
        let properties = self.properties();
        if !self.multiplies_fragments(&weights) {
            return gemv(list, &weights, x, y, tokens, epilogue);
        }
        let gated = epilogue.gated.is_some();
        let partial = &self.memory.partial;
        let shape = self.shared.tuning.shape(properties, &weights, tokens, gated, partial.len());
        let shared = |number: Option<usize>| number.map(|n| &self.plan.shared_norms[n]);
        let squares = |width: usize| 0..tokens * width.div_ceil(16);
        let pending = match shared(pending) {
            Some(shared) => Some(PendingNorm {
                squares: self.memory.squares.slice(squares(shared.out.width))?,
                epsilon: shared.norm.eps,
            }),
            None => None,
        };
        let weight = shared(next).map(|shared| self.plan.vector(shared.norm.weight));
        let next = match (shared(next), &weight) {
            (Some(shared), Some(weight)) => Some(NextNorm {
                weight: weight.view(),
                offset: shared.norm.offset,
                scaled: self.write(shared.out)?,
                squares: self.memory.squares.slice_mut(squares(shared.out.width))?,
            }),
            _ => None,
        };
        let neighbours = Neighbours { pending, next };
        let partial = (shape.splits > 1).then(|| partial.view_mut()).transpose()?;
        gemm_among_others(list, shape, &weights, x, y, tokens, epilogue, partial, neighbours)
    }

    /// Whether a product runs on matrix fragments.
    fn multiplies_fragments(&self, weights: &FragmentWeights) -> bool {
        self.properties().simd_width == 32
            && T::TYPE != ElementType::F32
            && weights.layout().cols.is_multiple_of(8)
    }

    /// Whether the products around a norm do it: few tokens, all of which go on, and products that can.
    fn shares(&self, number: usize) -> bool {
        let shared = &self.plan.shared_norms[number];
        self.shape.tokens <= SHARED_NORM_TOKENS
            && (!shared.selects || self.shape.outputs == self.shape.tokens)
            && self.plan.steps.iter().all(|step| match step {
                Step::Linear { matrix, pending, next, .. }
                    if *pending == Some(number) || *next == Some(number) =>
                {
                    self.multiplies_fragments(&self.plan.matrix(*matrix))
                }
                _ => true,
            })
    }

    fn attention(
        &self,
        list: &mut CommandList,
        step: &AttentionStep,
        words: &StepWords,
    ) -> Result<(), GpuError> {
        let AttentionStep { q, k, v, out, spec, .. } = step;
        let properties = self.properties();
        let cache = &self.memory.caches[step.cache];
        let (sequences, positions) = (self.input(&words.sequences)?, self.input(&words.positions)?);
        let addressing = KvAddressing::Contiguous { blocks: self.memory.blocks };
        if self.appends(step) {
            return self.append_and_attend(list, step, sequences, positions);
        }
        if spec.rope.is_some() || step.q_norm.is_some() || step.k_norm.is_some() {
            self.rotate_and_append(list, step, sequences, positions)?;
        } else {
            AppendKv {
                keys: self.read(*k)?,
                key_stride: k.stride as u32,
                values: self.read(*v)?,
                value_stride: v.stride as u32,
                sequences,
                positions,
                cache: cache.buffer.view_mut()?,
                layout: cache.layout,
                addressing,
            }
            .encode(properties, list)?;
        }
        let heads = spec.heads as u32;
        let (tiles, shape) = match self.shape.tiles {
            Some(_) => {
                let shape = self.memory.row_shapes[cache.row_shape];
                (Some((self.input(&words.tiles[cache.row_shape])?, shape)), DecodeShape::WHOLE)
            }
            None => (None, self.decode_shape(step)),
        };
        Attention {
            query: self.read(*q)?,
            query_stride: q.stride as u32,
            heads,
            cache: cache.buffer.view(),
            layout: cache.layout,
            addressing,
            sequences,
            positions,
            tiles,
            scale: spec.scale,
            window: spec.window.map(|window| window as u32),
            softcap: spec.softcap,
            shape,
            workspace: self.memory.workspace.view_mut()?,
            out: self.write(*out)?,
            out_stride: out.stride as u32,
        }
        .encode(properties, list)
    }

    /// How single tokens' context is divided.
    fn decode_shape(&self, step: &AttentionStep) -> DecodeShape {
        let AttentionStep { spec, .. } = step;
        let layout = &self.memory.caches[step.cache].layout;
        let (tokens, heads) = (self.shape.tokens as u32, spec.heads as u32);
        let context = self.shape.context.min(spec.window.unwrap_or(usize::MAX)) as u32;
        DecodeShape::choose(layout, heads, tokens, context, self.properties())
    }

    /// Whether rotation, cache and attention can be one dispatch: every token of a sequence of its own, and nothing normed.
    fn appends(&self, step: &AttentionStep) -> bool {
        let AttentionStep { q, k, v, spec, .. } = step;
        let together = q.slot == k.slot && k.slot == v.slot;
        let layout = &self.memory.caches[step.cache].layout;
        self.shape.tiles.is_none()
            && together
            && step.q_norm.is_none()
            && step.k_norm.is_none()
            && spec.rope.as_ref().is_some_and(|rope| {
                let (heads, pairs) = (spec.heads as u32, rope.inverse_frequencies.len());
                let shape = self.decode_shape(step);
                can_append(layout, heads, rope.style, pairs, shape, self.properties())
            })
    }

    fn append_and_attend(
        &self,
        list: &mut CommandList,
        step: &AttentionStep,
        sequences: View<'_, u32>,
        positions: View<'_, u32>,
    ) -> Result<(), GpuError> {
        let AttentionStep { q, k, v, out, spec, .. } = step;
        let cache = &self.memory.caches[step.cache];
        let heads = |place: Place| HeadRows { first: place.first, stride: place.stride };
        AttentionAppend {
            // The whole rows: each finds its own columns.
            rows: self.read(Place { first: 0, width: q.stride, ..*q })?,
            heads: spec.heads as u32,
            q: heads(*q),
            k: heads(*k),
            v: heads(*v),
            rotation: self.rotation(step),
            sequences,
            positions,
            cache: cache.buffer.view_mut()?,
            layout: cache.layout,
            addressing: KvAddressing::Contiguous { blocks: self.memory.blocks },
            scale: spec.scale,
            window: spec.window.map(|window| window as u32),
            softcap: spec.softcap,
            shape: self.decode_shape(step),
            workspace: self.memory.workspace.view_mut()?,
            out: self.write(*out)?,
            out_stride: out.stride as u32,
        }
        .encode(self.properties(), list)
    }

    fn rotation(&self, step: &AttentionStep) -> Rotation<'_> {
        let rope = step.spec.rope.as_ref();
        Rotation {
            head_dim: step.spec.head_dim,
            style: rope.map_or(RopeStyle::HalfSplit, |r| r.style),
            inverse_frequencies: self.memory.frequencies[step.frequencies].view(),
            magnitude: rope.map_or(1.0, |r| r.magnitude),
        }
    }

    /// Norms and rotates queries in place, and keys on their way into the cache, where the values go too.
    fn rotate_and_append(
        &self,
        list: &mut CommandList,
        step: &AttentionStep,
        sequences: View<'_, u32>,
        positions: View<'_, u32>,
    ) -> Result<(), GpuError> {
        let AttentionStep { q, k, v, spec, .. } = step;
        let cache = &self.memory.caches[step.cache];
        let [q_weight, k_weight] =
            [step.q_norm, step.k_norm].map(|norm| norm.map(|norm| self.plan.vector(norm.weight)));
        fn norm<'a>(
            step: Option<NormStep>,
            weight: Option<&'a Buffer<f32>>,
        ) -> Option<NormWeight<'a>> {
            Some(norm_weight(&step?, weight?))
        }
        let together = q.slot == k.slot && k.slot == v.slot;
        let heads = |place: Place| HeadRows {
            first: if together { place.first } else { 0 },
            stride: place.stride,
        };
        let values = if together {
            // The whole rows: each finds its own columns.
            QkvValues::Together(self.write(Place { first: 0, width: q.stride, ..*q })?)
        } else {
            QkvValues::Apart { q: self.write(*q)?, k: self.read(*k)?, v: self.read(*v)? }
        };
        RopeAppend {
            values,
            q_heads: spec.heads as u32,
            q: heads(*q),
            k: heads(*k),
            v: heads(*v),
            q_norm: norm(step.q_norm, q_weight.as_deref()),
            k_norm: norm(step.k_norm, k_weight.as_deref()),
            rotation: self.rotation(step),
            sequences,
            positions,
            cache: cache.buffer.view_mut()?,
            layout: cache.layout,
            addressing: KvAddressing::Contiguous { blocks: self.memory.blocks },
        }
        .encode(self.properties(), list)
    }

    fn choose(&self, list: &mut CommandList, words: &StepWords) -> Result<(), GpuError> {
        let rows = self.shape.outputs;
        if rows == 0 {
            return Ok(());
        }
        let memory = self.memory;
        let logits = self.read(self.plan.logits)?;
        let outputs = self.input(&words.outputs)?;
        let tokens = memory.chosen[self.turn].slice_mut(0..rows)?;
        let sampled = memory.sampled.view_mut()?;
        match self.shape.choice {
            Choice::EachOutput => {
                let sampled = memory.scored.view_mut()?;
                arg_max(list, rows, logits, outputs, tokens, sampled, &memory.scratch)
            }
            Choice::ArgMax => {
                arg_max(list, rows, logits, outputs, tokens, sampled, &memory.scratch)
            }
            Choice::Sample => {
                let io = Sample {
                    logits,
                    outputs,
                    settings: memory.settings.view(),
                    history: memory.history.view(),
                    history_length: self.options.context,
                    draws: memory.draws.view_mut()?,
                    tokens,
                    sampled,
                    softcap: self.plan.softcap,
                };
                sample(list, rows, io, &memory.scratch)
            }
        }
    }
}

fn norm_weight<'a>(step: &NormStep, weight: &'a Buffer<f32>) -> NormWeight<'a> {
    NormWeight { weight: weight.view(), epsilon: step.eps, offset: step.offset }
}
