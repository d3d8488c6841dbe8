//! What a session keeps on the device: activations, KV caches, sampler state, and the few words that pass between host
//! and device in a step. Everything is sized when the session is made.

use std::sync::Arc;

use marlin_backend::{BackendError, ExecutorOptions, KvFormat, Rows, SamplingSettings};
use marlin_kernels::signature::ElementType;
use marlin_placement::AccessPattern;

use super::plan::{AttentionStep, Plan, Step};
use super::{Activation, Shared};
use crate::ops::attention::{DecodeShape, RowShape, workspace_len};
use crate::ops::gemm_batch::partial_room;
use crate::ops::kv_cache::{KV_BLOCK, KvLayout, KvStorage};
use crate::ops::linear::SHARED_NORM_TOKENS;
use crate::ops::sample::{SETTINGS_WORDS, SampleScratch, settings_record};
use crate::{Buffer, Command, CommandList, DeviceProperties, GpuError, Region};

/// Steps in flight: the device runs one while the host prepares the next.
pub(super) const IN_FLIGHT: usize = 2;

/// Distinct shapes in which attention layers divide a prompt's queries.
pub(super) const MAX_ROW_SHAPES: usize = 4;

/// A layer's cache and how its attention runs.
pub(super) struct Cache {
    pub(super) layout: KvLayout,
    pub(super) buffer: Buffer<[u32; 4]>,
    /// Which of [`Memory::row_shapes`] its prompts are divided by.
    pub(super) row_shape: usize,
}

/// Everything.
pub(super) struct Memory<T> {
    /// One for each of the plan's slots.
    pub(super) activations: Vec<Buffer<T>>,
    pub(super) caches: Vec<Cache>,
    /// Blocks of a sequence in each cache.
    pub(super) blocks: u32,
    pub(super) row_shapes: Vec<RowShape>,
    pub(super) frequencies: Vec<Buffer<f32>>,
    /// Partial results of a split context.
    pub(super) workspace: Buffer<f32>,
    /// Squares of a norm that products share, of each 16 values.
    pub(super) squares: Buffer<f32>,
    /// Partial sums of the products that are split between threadgroups.
    pub(super) partial: Buffer<f32>,
    /// What the host says of a step; each step in flight has its own.
    pub(super) step: [Buffer<u32>; IN_FLIGHT],
    /// What the host reads of a step.
    pub(super) chosen: [Buffer<u32>; IN_FLIGHT],
    /// The tokens' ids of the step that runs.
    pub(super) ids: Buffer<u32>,
    /// The token that each sequence was given last.
    pub(super) sampled: Buffer<u32>,
    /// The same by output, where one sequence has several.
    pub(super) scored: Buffer<u32>,
    pub(super) history: Buffer<u32>,
    pub(super) draws: Buffer<u64>,
    pub(super) settings: Buffer<u32>,
    pub(super) scratch: SampleScratch,
}

/// The layout of a layer's cache.
fn layout(
    shared: &Shared,
    plan: &Plan,
    step: &AttentionStep,
    options: &ExecutorOptions,
) -> Result<KvLayout, BackendError> {
    let info = plan.caches[step.cache];
    let storage = match options.kv {
        KvFormat::F32 => KvStorage::F32,
        KvFormat::F16 => KvStorage::F16,
        KvFormat::Q8 => KvStorage::Int8,
    };
    KvLayout::new(storage, info.kv_heads as u32, info.head_dim as u32)
        .map_err(|e| shared.unsupported(e.to_string()))
}

/// The attention steps in the order of their caches.
fn attention_steps(plan: &Plan) -> Vec<&AttentionStep> {
    let mut steps: Vec<&AttentionStep> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Attention(attention) => Some(&**attention),
            _ => None,
        })
        .collect();
    steps.sort_by_key(|step| step.cache);
    steps
}

/// Elements of each slot.
fn slot_elements(plan: &Plan, options: &ExecutorOptions) -> Vec<usize> {
    let elements = |&(width, rows): &(usize, Rows)| match rows {
        Rows::Tokens => width * options.max_tokens,
        Rows::Outputs => width * options.max_outputs,
    };
    plan.slots.iter().map(|s| s.shapes.iter().map(elements).max().unwrap_or(0)).collect()
}

/// Words that the host says of a step at most.
fn step_words(options: &ExecutorOptions, shapes: usize) -> usize {
    // Ids, places, sequences, positions; rows and places of outputs; tiles, at most one a token.
    5 * options.max_tokens + 3 * options.max_outputs + 2 * shapes * options.max_tokens
}

/// Blocks of a sequence's cache.
fn blocks(options: &ExecutorOptions) -> usize {
    options.context.div_ceil(KV_BLOCK as usize)
}

/// Elements of the largest workspace that single tokens need.
fn workspace(
    properties: &DeviceProperties,
    steps: &[(&AttentionStep, KvLayout)],
    options: &ExecutorOptions,
) -> usize {
    let mut most = 1;
    for (step, layout) in steps {
        let heads = step.spec.heads as u32;
        for tokens in 1..=options.max_sequences.min(options.max_tokens) as u32 {
            // Any context up to the longest: one that is just short may be split into more parts.
            let mut context = 1;
            loop {
                let shape = DecodeShape::choose(layout, heads, tokens, context, properties);
                most = most.max(workspace_len(tokens, heads, shape.splits, layout.head_dim()));
                if context as usize >= options.context {
                    break;
                }
                context *= 2;
            }
        }
    }
    most
}

/// Floats of the squares of the widest shared norm; 1 where there is none.
fn squares(plan: &Plan) -> usize {
    let widths = plan.shared_norms.iter().map(|shared| shared.out.width.div_ceil(16));
    (SHARED_NORM_TOKENS * widths.max().unwrap_or(0)).max(1)
}

/// Floats of the partial sums of the product that has most; 1 where none is in parts.
fn partial<T: Activation>(
    properties: &DeviceProperties,
    plan: &Plan,
    options: &ExecutorOptions,
) -> usize {
    // f32 has no matrix fragments.
    if T::TYPE == ElementType::F32 {
        return 1;
    }
    let rooms = plan.layouts().into_iter().map(|(layout, rows)| {
        let tokens = match rows {
            Rows::Tokens => options.max_tokens,
            Rows::Outputs => options.max_outputs,
        };
        partial_room(properties, &layout, tokens)
    });
    rooms.max().unwrap_or(0).max(1)
}

/// Bytes of device memory that a session takes, before it is made.
pub(super) fn bytes<T: Activation>(
    shared: &Shared,
    plan: &Plan,
    options: &ExecutorOptions,
) -> Result<u64, BackendError> {
    let mut bytes = 0;
    let mut steps = Vec::new();
    for step in attention_steps(plan) {
        let layout = layout(shared, plan, step, options)?;
        bytes += layout.block_pieces() * 16 * blocks(options) * options.max_sequences;
        steps.push((step, layout));
    }
    bytes += slot_elements(plan, options).iter().sum::<usize>() * size_of::<T>();
    bytes += 4 * workspace(shared.device.properties(), &steps, options);
    bytes += 4 * squares(plan);
    bytes += 4 * partial::<T>(shared.device.properties(), plan, options);
    bytes += 4 * options.max_sequences * options.context;
    bytes += SampleScratch::bytes(options.max_outputs, options.max_sequences, plan.vocabulary);
    bytes += 4 * IN_FLIGHT * step_words(options, MAX_ROW_SHAPES);
    Ok(bytes as u64)
}

impl<T: Activation> Memory<T> {
    /// Allocates everything; caches are filled with zeros, sequences are greedy.
    pub(super) fn new(
        shared: &Arc<Shared>,
        plan: &Plan,
        options: &ExecutorOptions,
    ) -> Result<Self, BackendError> {
        let steps: Vec<(&AttentionStep, KvLayout)> = attention_steps(plan)
            .into_iter()
            .map(|step| Ok((step, layout(shared, plan, step, options)?)))
            .collect::<Result<_, BackendError>>()?;
        Self::allocate(shared, plan, options, &steps).map_err(|e| shared.error(e))
    }

    fn allocate(
        shared: &Arc<Shared>,
        plan: &Plan,
        options: &ExecutorOptions,
        steps: &[(&AttentionStep, KvLayout)],
    ) -> Result<Self, GpuError> {
        let device = &*shared.device;
        let properties = device.properties();
        let own = AccessPattern::DEVICE_ONLY;
        let slots = options.max_sequences;
        let mut row_shapes: Vec<RowShape> = Vec::new();
        let mut caches = Vec::new();
        let mut zero = CommandList::new("zero caches");
        for (step, layout) in steps {
            let group = step.spec.heads as u32 / layout.kv_heads();
            let shape = RowShape::prefill::<T>(layout, group, properties);
            let known = row_shapes.iter().position(|&known| known == shape);
            let row_shape = known.unwrap_or_else(|| {
                row_shapes.push(shape);
                row_shapes.len() - 1
            });
            let pieces = layout.block_pieces() * blocks(options) * slots;
            let label = format!("kv cache {}", step.cache);
            let buffer = device.allocate::<[u32; 4]>(&label, pieces, own)?;
            let region = Region {
                allocation: buffer.allocation().clone(),
                offset: 0,
                bytes: 16 * pieces as u64,
            };
            zero.push(Command::Fill { region, value: 0 });
            caches.push(Cache { layout: *layout, buffer, row_shape });
        }
        if row_shapes.len() > MAX_ROW_SHAPES {
            return Err(GpuError::Launch {
                kernel: "attention".to_owned(),
                reason: format!(
                    "{} shapes of attention layers, expected at most {MAX_ROW_SHAPES}",
                    row_shapes.len()
                ),
            });
        }
        if !zero.commands().is_empty() {
            device.run(zero)?;
        }
        let words = step_words(options, row_shapes.len());
        let step = |i: usize| {
            device.allocate(&format!("step {i} input"), words, AccessPattern::STEP_INPUT)
        };
        let chosen = |i: usize| {
            let pattern = AccessPattern::READ_BACK;
            device.allocate(&format!("step {i} sampled"), options.max_outputs, pattern)
        };
        let memory = Self {
            activations: slot_elements(plan, options)
                .into_iter()
                .zip(&plan.slots)
                .map(|(elements, slot)| {
                    device.allocate(&format!("activations {}", slot.name), elements, own)
                })
                .collect::<Result<_, _>>()?,
            caches,
            blocks: blocks(options) as u32,
            row_shapes,
            frequencies: plan
                .frequencies
                .iter()
                .map(|table| device.upload_new("rotary frequencies", table))
                .collect::<Result<_, _>>()?,
            workspace: device.allocate(
                "attention workspace",
                workspace(properties, steps, options),
                own,
            )?,
            squares: device.allocate("norm squares", squares(plan), own)?,
            partial: device.allocate(
                "partial sums",
                partial::<T>(properties, plan, options),
                own,
            )?,
            step: [step(0)?, step(1)?],
            chosen: [chosen(0)?, chosen(1)?],
            ids: device.allocate("step ids", options.max_tokens, own)?,
            sampled: device.allocate("sampler last tokens", slots, own)?,
            scored: device.allocate("sampler scored tokens", options.max_outputs, own)?,
            history: device.allocate("sampler history", slots * options.context, own)?,
            draws: device.upload_new("sampler draws", &vec![0_u64; slots])?,
            settings: device.allocate(
                "sampler settings",
                slots * SETTINGS_WORDS,
                AccessPattern::STEP_INPUT,
            )?,
            scratch: SampleScratch::with_rows(
                device,
                options.max_outputs,
                slots,
                plan.logits.width,
            )?,
        };
        for slot in 0..slots {
            memory.set_settings(shared, slot, &SamplingSettings::GREEDY)?;
        }
        Ok(memory)
    }

    /// Writes a sequence's sampling settings.
    pub(super) fn set_settings(
        &self,
        shared: &Shared,
        slot: usize,
        settings: &SamplingSettings,
    ) -> Result<(), GpuError> {
        let record = settings_record(settings);
        let offset = (slot * size_of_val(&record)) as u64;
        let bytes: &[u8] = bytemuck::cast_slice(&record);
        let allocation = self.settings.allocation();
        shared.device.write(allocation, offset, bytes)?;
        shared.device.did_modify(allocation, offset..offset + bytes.len() as u64)
    }

    /// Starts a sequence's sampler anew.
    pub(super) fn begin_sequence(
        &self,
        shared: &Shared,
        slot: usize,
        settings: &SamplingSettings,
        history: &[u32],
        context: usize,
    ) -> Result<(), GpuError> {
        self.set_settings(shared, slot, settings)?;
        shared.device.upload(self.draws.allocation(), (8 * slot) as u64, &[0; 8])?;
        if history.is_empty() {
            return Ok(());
        }
        let offset = (4 * slot * context) as u64;
        shared.device.upload(self.history.allocation(), offset, bytemuck::cast_slice(history))
    }

    /// Bytes of all of it.
    pub(super) fn bytes(&self) -> u64 {
        let words = [&self.ids, &self.sampled, &self.scored, &self.history, &self.settings];
        let words = words.into_iter().chain(&self.step).chain(&self.chosen);
        let floats = self.frequencies.iter().chain([&self.workspace, &self.squares, &self.partial]);
        let activations = self.activations.iter().map(Buffer::allocation);
        let caches = self.caches.iter().map(|cache| cache.buffer.allocation());
        words
            .map(Buffer::allocation)
            .chain(floats.map(Buffer::allocation))
            .chain(activations)
            .chain(caches)
            .chain([self.draws.allocation()])
            .map(|allocation| allocation.bytes())
            .sum::<u64>()
            + self.scratch.held_bytes()
    }
}
