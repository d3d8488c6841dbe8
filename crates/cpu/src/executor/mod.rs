//! Running programs: the stages of a step, shared among threads.

mod accesses;
mod activations;
mod attention;
mod kv_cache;
mod linear;
mod plan;
mod step;
mod work;

use std::sync::{Arc, Mutex, PoisonError};

use marlin_backend::{
    BackendError, Batch, Executor, ExecutorOptions, KvFormat, Program, Rows, SamplingSettings,
    StepToken, Tensor,
};
use marlin_placement::{AccessPattern, AccessTally, BufferTally, Direction, Ledger, Phase, Tally};

use crate::backend::Inner;
use crate::executor::activations::Activations;
use crate::executor::attention::PartialSums;
use crate::executor::kv_cache::KvCache;
use crate::executor::plan::Plan;
use crate::executor::work::Cursors;
use crate::kernels::quantise::{BLOCK, PANEL};
use crate::memory::Buffer;
use crate::sampler::{SamplerScratch, SequenceState};

/// Up to so many rows a stage's input is normed and quantised by every thread for itself:
/// cheaper than sharing the work and meeting at a barrier.
const LOCAL_ROWS: usize = 2;
/// Most tokens of one work item of a matrix product. Weights are read from memory once an item, and for a
/// matrix unit unpacked.
const TOKEN_BLOCK: usize = 256;
/// Bytes of their activations, which stay in the second-level cache while the item's weights go by; but
/// an item has at least four panels.
const ACTIVATION_BYTES: usize = 512 << 10;

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Index of the first in the batch.
    start: usize,
    len: usize,
    sequence: usize,
    /// Position of the first.
    position: usize,
}

/// A compiled program with its memory.
pub(crate) struct CpuExecutor {
    inner: Arc<Inner>,
    options: ExecutorOptions,
    plan: Plan,
    logits: Tensor,
    softcap: Option<f32>,
    cursors: Cursors,
    activations: Activations,
    kv: KvCache,
    partials: PartialSums,
    /// Input rows of the current stage, normed, as f32.
    normed: Buffer,
    /// Input rows of the current stage, quantised.
    quantised: Quantised,
    /// For each distinct rotary embedding `[tokens][pairs]` of cosine and sine.
    rotations: Vec<Buffer>,
    threads: Vec<Scratch>,
    /// One lock per slot, never contended: an output row is sampled by one thread.
    sequences: Vec<Mutex<SequenceState>>,
    /// The tokens that all of them remember.
    history: BufferTally,
    tokens: Vec<StepToken>,
    runs: Vec<Run>,
    /// Batch indices of the output tokens.
    outputs: Vec<usize>,
    sampled: Vec<u32>,
    /// Whether the last step's logits may be read.
    has_logits: bool,
    step_input: Buffer,
    result: Buffer,
    logits_read: Tally,
    sampling: Tally,
    submissions: Tally,
    /// What a step touches, for each of `accesses::Regime`.
    accesses: Vec<AccessTally>,
}

// SAFETY: the raw memory in here belongs to the executor alone; `step` takes `&mut self`,
// and its threads write disjoint parts between barriers.
unsafe impl Sync for CpuExecutor {}

/// Quantised activations with all their forms of sums (see `kernels::quantise`).
struct Quantised {
    /// Rows of a panel.
    lanes: usize,
    codes: Buffer,
    scales: Buffer,
    half_sums: Buffer,
    sums: Buffer,
    biases: Buffer,
}

impl Quantised {
    fn new(
        ledger: &Ledger,
        name: &str,
        rows: usize,
        lanes: usize,
        plan: &Plan,
    ) -> Result<Self, BackendError> {
        let rows = if plan.any_quantised { rows.next_multiple_of(lanes) } else { 0 };
        let blocks = plan.max_cols.div_ceil(BLOCK);
        let halves = usize::from(plan.any_halves);
        let buffer = |part: &str, bytes| {
            Buffer::new(ledger, format!("{name}.{part}"), AccessPattern::DEVICE_ONLY, bytes)
        };
        Ok(Self {
            lanes,
            codes: buffer("codes", rows * blocks * BLOCK)?,
            scales: buffer("scales", rows * blocks * 4)?,
            half_sums: buffer("half_sums", rows * blocks * 8 * halves)?,
            sums: buffer("sums", rows * blocks * 4)?,
            biases: buffer("biases", rows * blocks * 8 * plan.max_biases)?,
        })
    }

    fn bytes(&self) -> usize {
        let parts = [&self.codes, &self.scales, &self.half_sums, &self.sums, &self.biases];
        parts.iter().map(|b| b.len()).sum()
    }
}

/// One thread's own memory.
struct Scratch {
    /// `LOCAL_ROWS` normed rows.
    normed: Buffer,
    quantised: Quantised,
    /// A tile's scales and minimums.
    header: Buffer,
    /// A tile's codes as bytes, for a matrix unit.
    unpacked: Buffer,
    /// Products of three tiles for a block of tokens: of a gate, of what it gates, and of a
    /// tile that fills no rows of its own.
    products: Buffer,
    /// Queries, a key, a value and running sums of one attention item.
    attention: Buffer,
    /// Only ever locked by the thread that it belongs to.
    sampler: Mutex<SamplerScratch>,
    sampler_tally: BufferTally,
}

impl Scratch {
    fn new(ledger: &Ledger, plan: &Plan, vocabulary: usize) -> Result<Self, BackendError> {
        let cols = plan.max_cols;
        let buffer = |name: &str, floats: usize| {
            Buffer::new(ledger, name, AccessPattern::DEVICE_ONLY, floats * 4)
        };
        Ok(Self {
            normed: buffer("thread.normed", if plan.any_norm { LOCAL_ROWS * cols } else { 0 })?,
            quantised: Quantised::new(ledger, "thread.quantised", LOCAL_ROWS, 1, plan)?,
            header: buffer("thread.header", plan.max_header)?,
            unpacked: buffer("thread.unpacked", plan.max_unpacked / 4)?,
            products: buffer("thread.products", 3 * TOKEN_BLOCK * 16)?,
            attention: buffer("thread.attention", attention::scratch_floats(plan))?,
            sampler: Mutex::new(SamplerScratch::new(vocabulary)),
            sampler_tally: ledger.buffer(
                "sampler.candidates",
                AccessPattern::DEVICE_ONLY,
                SamplerScratch::bytes(vocabulary) as u64,
            ),
        })
    }

    fn bytes(&self) -> usize {
        let parts = [&self.normed, &self.header, &self.unpacked, &self.products, &self.attention];
        parts.iter().map(|b| b.len()).sum::<usize>() + self.quantised.bytes()
    }
}

impl CpuExecutor {
    pub(crate) fn new(
        inner: Arc<Inner>,
        program: &Program,
        options: ExecutorOptions,
    ) -> Result<Self, BackendError> {
        for (what, found) in [
            ("tokens per step", options.max_tokens),
            ("outputs per step", options.max_outputs),
            ("sequences", options.max_sequences),
            ("positions", options.context),
        ] {
            if found == 0 {
                return Err(BackendError::Shape {
                    name: "session".into(),
                    what,
                    found,
                    expected: 1,
                });
            }
        }
        let ledger = inner.ledger.clone();
        let ledger = &*ledger;
        let kv_index = match options.kv {
            KvFormat::F32 => 0,
            KvFormat::F16 => 1,
            KvFormat::Q8 => 2,
        };
        let plan = Plan::new(program, inner.kernels, kv_index, ledger)?;
        let vocabulary = program.tensors[program.logits.index()].width;
        let threads = inner.pool.threads();
        let (tokens, outputs) = (options.max_tokens, options.max_outputs);
        let buffer =
            |name: &str, bytes| Buffer::new(ledger, name, AccessPattern::DEVICE_ONLY, bytes);
        let mut executor = Self {
            cursors: Cursors::new(2 * plan.stages.len() + 2, threads),
            activations: Activations::new(ledger, program, tokens, outputs)?,
            kv: KvCache::new(ledger, &program.caches, &options)?,
            partials: PartialSums::new(ledger, &plan, &options)?,
            normed: buffer(
                "linear.normed",
                if plan.any_norm { tokens.max(outputs) * plan.max_cols * 4 } else { 0 },
            )?,
            quantised: Quantised::new(
                ledger,
                "linear.quantised",
                tokens.max(outputs),
                PANEL,
                &plan,
            )?,
            rotations: plan
                .ropes
                .iter()
                .map(|r| buffer("rotations", tokens * r.inverse_frequencies.len() * 8))
                .collect::<Result<_, _>>()?,
            threads: (0..threads)
                .map(|_| Scratch::new(ledger, &plan, vocabulary))
                .collect::<Result<_, _>>()?,
            sequences: (0..options.max_sequences)
                .map(|_| Mutex::new(SequenceState::new()))
                .collect(),
            history: ledger.buffer(
                "sampler.history",
                AccessPattern::STEP_INPUT,
                (options.max_sequences * SequenceState::HISTORY_BYTES) as u64,
            ),
            tokens: Vec::with_capacity(tokens),
            runs: Vec::with_capacity(tokens),
            outputs: Vec::with_capacity(outputs),
            sampled: Vec::with_capacity(outputs),
            has_logits: false,
            step_input: Buffer::new(
                ledger,
                "step.input",
                AccessPattern::STEP_INPUT,
                tokens * size_of::<StepToken>(),
            )?,
            result: Buffer::new(ledger, "step.sampled", AccessPattern::READ_BACK, outputs * 4)?,
            logits_read: ledger.copies(Direction::DeviceToHost, "logits that the host asked for"),
            sampling: ledger.dispatches("sample"),
            submissions: ledger.submissions("step"),
            accesses: Vec::new(),
            logits: program.logits,
            softcap: program.logit_softcap,
            inner,
            options,
            plan,
        };
        let accesses = accesses::Regime::ALL.map(|regime| executor.accesses_of(regime));
        executor.accesses = accesses.map(|a| executor.inner.ledger.accesses(a)).into();
        Ok(executor)
    }

    /// Whether a tensor has a row per output instead of a row per token.
    fn is_per_output(&self, tensor: Tensor) -> bool {
        self.activations.rows(tensor) == Rows::Outputs
    }

    /// Checks a batch and takes it apart into runs and outputs.
    fn accept(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        let check = |what, found: usize, limit: usize| {
            if found <= limit { Ok(()) } else { Err(BackendError::Batch { what, found, limit }) }
        };
        let options = &self.options;
        check("tokens", batch.tokens.len(), options.max_tokens)?;
        let outputs = batch.tokens.iter().filter(|t| t.output).count();
        check("outputs", outputs, options.max_outputs)?;
        self.runs.clear();
        for (i, token) in batch.tokens.iter().enumerate() {
            check("sequence", token.sequence as usize, options.max_sequences - 1)?;
            check("position", token.position as usize, options.context - 1)?;
            check("token", token.id as usize, self.plan.vocabulary - 1)?;
            let (sequence, position) = (token.sequence as usize, token.position as usize);
            match self.runs.last_mut() {
                Some(run) if run.sequence == sequence => {
                    let expected = run.position + run.len;
                    if position != expected {
                        let what = "position after its predecessor";
                        return Err(BackendError::Batch { what, found: position, limit: expected });
                    }
                    run.len += 1;
                }
                _ => {
                    if self.runs.iter().any(|r| r.sequence == sequence) {
                        let what = "sequence, which is not in one piece,";
                        return Err(BackendError::Batch { what, found: sequence, limit: 1 });
                    }
                    self.runs.push(Run { start: i, len: 1, sequence, position });
                }
            }
        }
        self.tokens.clear();
        self.tokens.extend_from_slice(batch.tokens);
        self.outputs.clear();
        self.outputs.extend((0..batch.tokens.len()).filter(|&i| batch.tokens[i].output));
        for token in batch.tokens {
            let state = &mut self.sequences[token.sequence as usize];
            state.get_mut().unwrap_or_else(PoisonError::into_inner).push(token.id);
        }
        Ok(())
    }
}

impl Executor for CpuExecutor {
    fn begin_sequence(
        &mut self,
        sequence: u32,
        settings: &SamplingSettings,
        history: &[u32],
    ) -> Result<(), BackendError> {
        let slots = self.sequences.len();
        let state = self.sequences.get_mut(sequence as usize).ok_or(BackendError::Batch {
            what: "sequence",
            found: sequence as usize,
            limit: slots - 1,
        })?;
        let state = state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.begin(settings);
        history.iter().for_each(|&token| state.push(token));
        if !history.is_empty() {
            self.history.host_wrote(4 * history.len() as u64);
        }
        Ok(())
    }

    fn submit(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.has_logits = false;
        self.sampled.clear();
        self.accept(batch)?;
        if batch.tokens.is_empty() {
            return Ok(());
        }
        let (tokens, outputs) = (batch.tokens.len(), self.outputs.len());
        let prefill = self.runs.iter().any(|r| r.len > 1);
        let phase = if prefill { Phase::Prefill } else { Phase::Decode };
        self.inner.ledger.begin_step(phase, tokens as u64, outputs as u64);
        self.step_input.tally().host_wrote(size_of_val(batch.tokens) as u64);
        self.history.host_wrote(4 * tokens as u64);
        self.cursors.reset();
        let this = &*self;
        let submitted = this.submissions.start();
        this.inner.pool.run(&|worker| this.run_stages(worker));
        this.submissions.record_since(submitted, 0);
        this.accesses[accesses::Regime::of(tokens, outputs) as usize].record();
        // SAFETY: `result` holds max_outputs tokens, and the threads are done.
        let sampled =
            unsafe { std::slice::from_raw_parts(self.result.as_ptr::<u32>(), self.outputs.len()) };
        self.sampled.extend_from_slice(sampled);
        // The host reads them where they are.
        self.result.tally().host_read(4 * sampled.len() as u64);
        self.has_logits = batch.logits;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn sampled(&self) -> &[u32] {
        &self.sampled
    }

    fn logits(&self, output: usize) -> Option<&[f32]> {
        if !self.has_logits || output >= self.outputs.len() {
            return None;
        }
        let (logits, vocabulary) = self.activations.get(self.logits);
        self.logits_read.record(4 * vocabulary as u64);
        // SAFETY: the tensor has a row for each of max_outputs outputs, all its values were
        // written by the last step, and nothing writes them while `self` is borrowed.
        Some(unsafe { std::slice::from_raw_parts(logits.add(output * vocabulary), vocabulary) })
    }

    fn weight_bytes_per_token(&self) -> u64 {
        self.plan.weight_bytes
    }

    fn kv_bytes_per_token(&self, position: usize) -> u64 {
        self.kv.bytes_per_token(position)
    }

    fn multiply_adds_per_token(&self) -> u64 {
        self.plan.multiply_adds
    }

    fn held_bytes(&self) -> u64 {
        let scratch: usize = self.threads.iter().map(Scratch::bytes).sum();
        let own = [&self.normed, &self.step_input, &self.result];
        let own: usize = own.into_iter().chain(&self.rotations).map(Buffer::len).sum();
        (self.activations.bytes()
            + self.kv.bytes()
            + self.partials.bytes()
            + self.quantised.bytes()
            + scratch
            + own) as u64
    }
}
