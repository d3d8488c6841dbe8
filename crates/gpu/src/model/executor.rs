//! Steps in flight: the host writes the next step's input and submits its recording while the device runs the
//! last one, whose tokens it reads when they are there.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use marlin_backend::{BackendError, Batch, Executor, ExecutorOptions, SamplingSettings, StepToken};
use marlin_placement::Phase;

use super::encode::{Choice, Encoder, StepShape};
use super::memory::{IN_FLIGHT, MAX_ROW_SHAPES, Memory};
use super::plan::Plan;
use super::{Activation, Shared};
use crate::{Buffer, GpuError, Recording, Submission};

/// Contexts are split by powers of two from this one on.
const LEAST_CONTEXT: usize = 256;
/// Recordings of prompts that are kept: those of a session's chunk sizes and some ends.
const MAX_RECORDINGS: usize = 64;

/// A step that was submitted.
struct InFlight {
    /// Taken when it is waited for.
    submission: Option<Box<dyn Submission>>,
    turn: usize,
    outputs: usize,
    logits: bool,
}

/// What a batch has had of a sequence so far.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// Its last token's index.
    last: Option<usize>,
    has_output: bool,
}

/// A compiled program with its memory.
pub(super) struct GpuExecutor<T> {
    shared: Arc<Shared>,
    plan: Plan,
    options: ExecutorOptions,
    memory: Memory<T>,
    recordings: HashMap<(StepShape, usize), Arc<dyn Recording>>,
    in_flight: VecDeque<InFlight>,
    /// Which of the inputs the next step takes.
    turn: usize,
    settings: Vec<SamplingSettings>,
    /// Words of a step's input, written anew for each.
    words: Vec<u32>,
    /// Tiles of each row shape.
    tiles: [Vec<u32>; MAX_ROW_SHAPES],
    places: Vec<(u32, u32)>,
    /// Each sequence's part of the batch at hand.
    seen: Vec<Seen>,
    sampled: Vec<u32>,
    /// Where the device leaves logits for the host, made when they are first asked for.
    logits_read: Option<Buffer<T>>,
    logits: Vec<f32>,
    raw_logits: Vec<T>,
}

impl<T: Activation> GpuExecutor<T> {
    pub(super) fn new(
        shared: Arc<Shared>,
        plan: Plan,
        options: ExecutorOptions,
    ) -> Result<Self, BackendError> {
        for (what, found) in [
            ("tokens per step", options.max_tokens),
            ("outputs per step", options.max_outputs),
            ("sequences", options.max_sequences),
            ("positions", options.context),
        ] {
            if found == 0 {
                let name = "session".into();
                return Err(BackendError::Shape { name, what, found, expected: 1 });
            }
        }
        let memory = Memory::new(&shared, &plan, &options)?;
        let mut executor = Self {
            recordings: HashMap::new(),
            in_flight: VecDeque::with_capacity(IN_FLIGHT),
            turn: 0,
            settings: vec![SamplingSettings::GREEDY; options.max_sequences],
            words: Vec::new(),
            tiles: Default::default(),
            places: Vec::with_capacity(options.max_tokens),
            seen: Vec::with_capacity(options.max_sequences),
            sampled: Vec::with_capacity(options.max_outputs),
            logits_read: None,
            logits: Vec::new(),
            raw_logits: Vec::new(),
            shared,
            plan,
            options,
            memory,
        };
        executor.prepare()?;
        Ok(executor)
    }

    /// Records the steps that every generation has, so that none of them waits for a compiler.
    fn prepare(&mut self) -> Result<(), BackendError> {
        let decode = |context, choice| StepShape {
            tokens: 1,
            outputs: 1,
            tiles: None,
            context,
            choice,
            logits: false,
        };
        let mut context = self.context_class(1);
        loop {
            for turn in 0..IN_FLIGHT {
                self.recording(decode(context, Choice::ArgMax), turn)?;
            }
            let next = self.context_class(context + 1);
            if next == context {
                break;
            }
            context = next;
        }
        for turn in 0..IN_FLIGHT {
            self.recording(decode(self.context_class(1), Choice::Sample), turn)?;
        }
        // One prompt of each size that kernels tell apart.
        let mut tokens = self.options.max_tokens;
        loop {
            let shape = self.prompt_shape(tokens);
            let list = self.encoder(shape, 0).encode(None).map_err(|e| self.shared.error(e))?;
            self.shared.device.record(list).map_err(|e| self.shared.error(e))?;
            if tokens <= 8 {
                return Ok(());
            }
            tokens = tokens.min(128).div_ceil(2);
        }
    }

    /// Contexts of so many positions are divided like this one, which is no longer than the session's.
    fn context_class(&self, positions: usize) -> usize {
        positions.next_power_of_two().max(LEAST_CONTEXT).min(self.options.context)
    }

    /// The shape of a prompt of one sequence.
    fn prompt_shape(&self, tokens: usize) -> StepShape {
        let mut tiles = [0; MAX_ROW_SHAPES];
        for (count, shape) in tiles.iter_mut().zip(&self.memory.row_shapes) {
            *count = tokens.div_ceil(shape.tokens as usize);
        }
        StepShape {
            tokens,
            outputs: 1,
            tiles: Some(tiles),
            context: 0,
            choice: Choice::ArgMax,
            logits: false,
        }
    }

    fn encoder(&self, shape: StepShape, turn: usize) -> Encoder<'_, T> {
        Encoder {
            shared: &self.shared,
            plan: &self.plan,
            memory: &self.memory,
            options: &self.options,
            shape,
            turn,
        }
    }

    fn recording(
        &mut self,
        shape: StepShape,
        turn: usize,
    ) -> Result<Arc<dyn Recording>, BackendError> {
        if let Some(known) = self.recordings.get(&(shape, turn)) {
            return Ok(known.clone());
        }
        if self.recordings.len() >= MAX_RECORDINGS {
            self.recordings.retain(|(shape, _), _| shape.tiles.is_none());
        }
        let encoder = self.encoder(shape, turn);
        let recording = encoder
            .encode(self.logits_read.as_ref())
            .and_then(|list| self.shared.device.record(list))
            .map_err(|e| self.shared.error(e))?;
        self.recordings.insert((shape, turn), recording.clone());
        Ok(recording)
    }

    /// Checks a batch and writes down what the device must know of it.
    fn accept(&mut self, batch: &Batch<'_>) -> Result<StepShape, BackendError> {
        let check = |what, found: usize, limit: usize| {
            if found <= limit { Ok(()) } else { Err(BackendError::Batch { what, found, limit }) }
        };
        let (options, tokens) = (&self.options, batch.tokens);
        check("steps in flight", self.in_flight.len() + 1, IN_FLIGHT)?;
        check("tokens", tokens.len(), options.max_tokens)?;
        let outputs = tokens.iter().filter(|t| t.output).count();
        check("outputs", outputs, options.max_outputs)?;
        let mut runs = false;
        let mut several_outputs = false;
        self.seen.clear();
        self.seen.resize(options.max_sequences, Seen::default());
        for (i, token) in tokens.iter().enumerate() {
            let (sequence, position) = (token.sequence as usize, token.position as usize);
            check("sequence", sequence, options.max_sequences - 1)?;
            check("position", position, options.context - 1)?;
            if token.id != StepToken::SAMPLED {
                check("token", token.id as usize, self.plan.vocabulary - 1)?;
            }
            let seen = &mut self.seen[sequence];
            if let Some(before) = seen.last {
                if before + 1 != i {
                    let what = "sequence, which is not in one piece,";
                    return Err(BackendError::Batch { what, found: sequence, limit: 1 });
                }
                let expected = tokens[before].position as usize + 1;
                if position != expected {
                    let what = "position after its predecessor";
                    return Err(BackendError::Batch { what, found: position, limit: expected });
                }
                runs = true;
            }
            several_outputs |= token.output && seen.has_output;
            seen.has_output |= token.output;
            seen.last = Some(i);
        }
        self.places.clear();
        self.places.extend(tokens.iter().map(|t| (t.sequence, t.position)));
        let mut counts = [0; MAX_ROW_SHAPES];
        if runs {
            for (i, shape) in self.memory.row_shapes.iter().enumerate() {
                self.tiles[i] = shape.tiles(&self.places);
                counts[i] = self.tiles[i].len() / 2;
            }
        }
        let longest = tokens.iter().map(|t| t.position as usize + 1).max().unwrap_or(1);
        let greedy = tokens
            .iter()
            .filter(|t| t.output)
            .all(|t| self.settings[t.sequence as usize].is_plain_greedy());
        Ok(StepShape {
            tokens: tokens.len(),
            outputs,
            tiles: runs.then_some(counts),
            context: match runs {
                // Prompts are divided by tiles.
                true => 0,
                false => self.context_class(longest),
            },
            choice: match (several_outputs, greedy) {
                (true, _) => Choice::EachOutput,
                (false, true) => Choice::ArgMax,
                (false, false) => Choice::Sample,
            },
            logits: batch.logits && outputs > 0,
        })
    }

    /// Writes the step's input.
    fn write(&mut self, batch: &Batch<'_>, shape: &StepShape) -> Result<(), GpuError> {
        let at = shape.words();
        let words = &mut self.words;
        words.clear();
        words.resize(at.len, 0);
        for (i, token) in batch.tokens.iter().enumerate() {
            words[at.given.start + i] = token.id;
            words[at.places.start + 2 * i] = token.sequence;
            words[at.places.start + 2 * i + 1] = token.position;
            words[at.sequences.start + i] = token.sequence;
            words[at.positions.start + i] = token.position;
        }
        let outputs = batch.tokens.iter().enumerate().filter(|(_, t)| t.output);
        for (o, (i, token)) in outputs.enumerate() {
            words[at.rows.start + o] = i as u32;
            words[at.outputs.start + 2 * o] = match shape.choice {
                Choice::EachOutput => o as u32,
                Choice::ArgMax | Choice::Sample => token.sequence,
            };
            words[at.outputs.start + 2 * o + 1] = token.position;
        }
        if shape.tiles.is_some() {
            for (range, tiles) in at.tiles.iter().zip(&self.tiles) {
                words[range.clone()].copy_from_slice(&tiles[..range.len()]);
            }
        }
        let allocation = self.memory.step[self.turn].allocation();
        let bytes: &[u8] = bytemuck::cast_slice(words);
        self.shared.device.write(allocation, 0, bytes)?;
        self.shared.device.did_modify(allocation, 0..bytes.len() as u64)
    }

    /// Memory for the host's logits, which recordings copy to.
    fn make_room_for_logits(&mut self) -> Result<(), BackendError> {
        if self.logits_read.is_none() {
            let len = self.options.max_outputs * self.plan.logits.width;
            let pattern = marlin_placement::AccessPattern::READ_BACK;
            let buffer = self.shared.device.allocate("logits for the host", len, pattern);
            self.logits_read = Some(buffer.map_err(|e| self.shared.error(e))?);
        }
        Ok(())
    }

    /// Reads what a finished step left.
    fn collect(&mut self, step: &InFlight) -> Result<(), GpuError> {
        let device = &self.shared.device;
        self.sampled.resize(step.outputs, 0);
        if step.outputs > 0 {
            let from = self.memory.chosen[step.turn].allocation();
            device.read(from, 0, bytemuck::cast_slice_mut(&mut self.sampled))?;
        }
        self.logits.clear();
        if step.logits
            && let Some(from) = &self.logits_read
        {
            self.raw_logits.resize(step.outputs * self.plan.logits.width, T::zeroed());
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.raw_logits);
            device.read(from.allocation(), 0, bytes)?;
            let cap = self.plan.softcap;
            self.logits.extend(self.raw_logits.iter().map(|x| match cap {
                Some(cap) => cap * (x.to_f32() / cap).tanh(),
                None => x.to_f32(),
            }));
        }
        Ok(())
    }
}

impl<T: Activation> Executor for GpuExecutor<T> {
    fn begin_sequence(
        &mut self,
        sequence: u32,
        settings: &SamplingSettings,
        history: &[u32],
    ) -> Result<(), BackendError> {
        let (slot, slots) = (sequence as usize, self.settings.len());
        for (what, found, limit) in [
            ("sequence", slot, slots - 1),
            ("steps in flight", self.in_flight.len(), 0),
            ("tokens of history", history.len(), self.options.context),
        ] {
            if found > limit {
                return Err(BackendError::Batch { what, found, limit });
            }
        }
        self.settings[slot] = settings.clone();
        // What is uploaded for a sequence belongs to its prompt, not to loading or to the decoding before it.
        self.shared.device.ledger().enter(Phase::Prefill);
        self.memory
            .begin_sequence(&self.shared, slot, settings, history, self.options.context)
            .map_err(|e| self.shared.error(e))
    }

    fn max_in_flight(&self) -> usize {
        IN_FLIGHT
    }

    fn submit(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        let shape = self.accept(batch)?;
        if batch.tokens.is_empty() {
            return Ok(());
        }
        if shape.logits {
            self.make_room_for_logits()?;
        }
        let phase = if shape.tiles.is_some() { Phase::Prefill } else { Phase::Decode };
        let recording = self.recording(shape, self.turn)?;
        // What the host reads of it, it reads in place or by a copy of the recording's: either is counted
        // where it happens.
        let ledger = self.shared.device.ledger();
        ledger.begin_step(phase, batch.tokens.len() as u64, shape.outputs as u64);
        self.write(batch, &shape).map_err(|e| self.shared.error(e))?;
        let submission = self.shared.device.submit(&recording).map_err(|e| self.shared.error(e))?;
        self.in_flight.push_back(InFlight {
            submission: Some(submission),
            turn: self.turn,
            outputs: shape.outputs,
            logits: shape.logits,
        });
        self.turn = (self.turn + 1) % IN_FLIGHT;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), BackendError> {
        self.sampled.clear();
        self.logits.clear();
        let Some(mut step) = self.in_flight.pop_front() else { return Ok(()) };
        let waited = step.submission.take().map_or(Ok(()), |s| s.wait().map(drop));
        let result = waited.and_then(|()| self.collect(&step));
        result.map_err(|error| {
            // What comes after a failed step builds on it.
            self.in_flight.clear();
            self.shared.error(error)
        })
    }

    fn sampled(&self) -> &[u32] {
        &self.sampled
    }

    fn logits(&self, output: usize) -> Option<&[f32]> {
        let width = self.plan.logits.width;
        self.logits.get(output * width..(output + 1) * width)
    }

    fn weight_bytes_per_token(&self) -> u64 {
        self.plan.weight_bytes
    }

    fn kv_bytes_per_token(&self, position: usize) -> u64 {
        let caches = self.memory.caches.iter().zip(&self.plan.caches);
        caches
            .map(|(cache, info)| {
                let seen = (position + 1).min(info.window.unwrap_or(usize::MAX));
                cache.layout.bytes(seen as u64)
            })
            .sum()
    }

    fn multiply_adds_per_token(&self) -> u64 {
        self.plan.multiply_adds
    }

    fn held_bytes(&self) -> u64 {
        self.memory.bytes()
    }
}
