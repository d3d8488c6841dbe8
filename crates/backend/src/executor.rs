//! The traits that a device implements.

use std::sync::Arc;

use marlin_placement::Ledger;

use crate::{BackendError, Batch, Program, SamplingSettings, Weight, WeightSource};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// 32-bit floats: for comparing with references.
    F32,
    /// Half precision.
    #[default]
    F16,
    /// 8-bit integers with one f32 scale per head and position.
    Q8,
}

/// What a session needs room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorOptions {
    /// Most tokens of one step, all sequences together.
    pub max_tokens: usize,
    /// Most tokens of one step after which logits are wanted.
    pub max_outputs: usize,
    /// Slots in the KV cache.
    pub max_sequences: usize,
    /// Positions per slot.
    pub context: usize,
    /// How keys and values are kept.
    pub kv: KvFormat,
}

/// What the device can do at most, measured: the denominators of every percentage we print.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes per second that can be read from memory.
    pub read_bytes_per_s: f64,
    /// Multiply-adds per second of the unit that quantised matrix products use.
    pub multiply_adds_per_s: f64,
    /// Those of the vector unit, where that unit is a matrix unit beside one.
    pub vector_multiply_adds_per_s: Option<f64>,
}

/// A product that was tuned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TunedProduct {
    /// Output features; of each of gate and up, where it is both.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Whether it is gate and up.
    pub gated: bool,
    /// Tokens.
    pub tokens: usize,
    /// Microseconds before.
    pub default_us: f64,
    /// Microseconds now.
    pub tuned_us: f64,
}

/// A device that holds weights and runs programs.
pub trait Backend: Send + Sync {
    /// A short name: `cpu`, `cuda`, …
    fn name(&self) -> &'static str;

    /// One line for people: the processor and the instruction set in use.
    fn description(&self) -> String;

    /// The book in which this backend counts.
    fn ledger(&self) -> &Arc<Ledger>;

    /// Puts a weight where the policy says: adopts the bytes where the device can read them
    /// as they are, otherwise copies or repacks them once and counts that.
    ///
    /// # Errors
    /// If the bytes do not fit the shape, the format is not supported, or memory is short.
    fn place(&self, source: &WeightSource) -> Result<Weight, BackendError>;

    /// Whether [`place`](Self::place) does all the work, and [`load`](Self::load) none: for progress bars.
    fn places_at_once(&self) -> bool {
        true
    }

    /// Brings the weights of `program` to the device, where [`place`](Self::place) only took note of them because the
    /// device wants matrices that are used together to lie together. Calls `progress` with the bytes of the file that
    /// each part was made from. Weights that are there already stay where they are.
    ///
    /// # Errors
    /// If a weight is another backend's, or memory is short: then nothing was begun, and the error says how much.
    fn load(&self, _program: &Program, _progress: &mut dyn FnMut(u64)) -> Result<(), BackendError> {
        Ok(())
    }

    /// Refuses a program for which there is no room together with what running it with `options` takes. Before
    /// [`load`](Self::load), so that nobody waits for weights beside which nothing fits.
    ///
    /// # Errors
    /// Memory is short, and by how much; a weight is another backend's.
    fn check_room(
        &self,
        _program: &Program,
        _options: &ExecutorOptions,
    ) -> Result<(), BackendError> {
        Ok(())
    }

    /// Makes everything that running `program` needs: activations, KV cache, sampler state.
    ///
    /// # Errors
    /// If an op is not supported, a weight is another backend's, or memory is short.
    fn compile(
        &self,
        program: Program,
        options: &ExecutorOptions,
    ) -> Result<Box<dyn Executor>, BackendError>;

    /// Measures how the products of `program` with each of `tokens` tokens are divided best, and keeps that for later
    /// runs; what is known is measured only `again`. `progress` gets how many products are done, and of how many. A
    /// backend that has nothing to choose returns nothing.
    ///
    /// # Errors
    /// If memory is short, the device fails, or the result cannot be kept.
    fn tune(
        &self,
        _program: &Program,
        _tokens: &[usize],
        _again: bool,
        _progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<TunedProduct>, BackendError> {
        Ok(Vec::new())
    }

    /// Measures the device's ceilings; takes about a second.
    fn measure_ceilings(&self) -> Ceilings;
}

/// A compiled program with its activations, KV cache and sampler state.
pub trait Executor: Send {
    /// Starts slot `sequence` anew: its count of random draws is cleared, its history of
    /// tokens (for penalties) becomes `history`, and `settings` hold from here on. What the
    /// KV cache holds stays readable up to the positions that later steps overwrite, so
    /// `history` is the part of a prompt that need not be computed again.
    ///
    /// # Errors
    /// If there is no such slot, or a step is in flight.
    fn begin_sequence(
        &mut self,
        sequence: u32,
        settings: &SamplingSettings,
        history: &[u32],
    ) -> Result<(), BackendError>;

    /// Runs one step to its end: [`submit`](Self::submit) and [`finish`](Self::finish).
    ///
    /// # Errors
    /// If the batch does not fit what the executor was made for, a step is in flight, or the device fails.
    fn step(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.submit(batch)?;
        self.finish()
    }

    /// Most steps that can be submitted and not finished: 1 where a step has run when `submit` returns, more where
    /// the device runs one while the host prepares the next. The latter takes
    /// [`StepToken::SAMPLED`](crate::StepToken::SAMPLED) for tokens that are not known yet.
    fn max_in_flight(&self) -> usize {
        1
    }

    /// Starts one step.
    ///
    /// # Errors
    /// If the batch does not fit what the executor was made for, [`max_in_flight`](Self::max_in_flight) steps
    /// are in flight already, or the device fails.
    fn submit(&mut self, batch: &Batch<'_>) -> Result<(), BackendError>;

    /// Waits for the oldest step in flight, if there is one. Afterwards [`sampled`](Self::sampled) has one token per
    /// output token of its batch, in batch order.
    ///
    /// # Errors
    /// If the device failed.
    fn finish(&mut self) -> Result<(), BackendError>;

    /// The next token after each output token of the step that was finished last.
    fn sampled(&self) -> &[u32];

    /// The logits after output token `output` of the step that was finished last, before any sampling
    /// setting was applied. `None` if the batch did not ask for logits.
    fn logits(&self, output: usize) -> Option<&[f32]>;

    /// Bytes of weights that a step with one token reads.
    fn weight_bytes_per_token(&self) -> u64;

    /// Bytes of keys and values that a token at `position` reads.
    fn kv_bytes_per_token(&self, position: usize) -> u64;

    /// Multiply-adds of the matrix products for one token, without the output head and
    /// attention.
    fn multiply_adds_per_token(&self) -> u64;

    /// Bytes that this executor holds: activations, KV cache, sampler state.
    fn held_bytes(&self) -> u64;
}
