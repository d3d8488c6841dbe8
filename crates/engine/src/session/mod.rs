//! Sequences in flight: what goes into each step, and what comes out.

mod tokens;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use marlin_backend::{Batch, Executor, ExecutorOptions, KvFormat, SamplingSettings, StepToken};

use crate::stream::TextStream;
use crate::{EngineError, Model};

/// What a session has room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Positions per sequence: prompt and answer together.
    pub ctx: usize,
    /// Sequences at once.
    pub max_sequences: usize,
    /// Most tokens of one step; longer prompts take several.
    pub batch: usize,
    /// Most tokens of one step after which logits are kept; at least `max_sequences`.
    /// Generation needs one per sequence, scoring profits from more.
    pub outputs: usize,
    /// How keys and values are kept.
    pub kv: KvFormat,
}

impl Default for SessionOptions {
    /// 4096 positions, one sequence, steps of up to 512 tokens, a half-precision KV cache.
    fn default() -> Self {
        Self { ctx: 4096, max_sequences: 1, batch: 512, outputs: 1, kv: KvFormat::F16 }
    }
}

impl SessionOptions {
    pub(crate) fn executor(&self) -> ExecutorOptions {
        ExecutorOptions {
            max_tokens: self.batch.max(self.max_sequences),
            max_outputs: self.outputs.max(self.max_sequences),
            max_sequences: self.max_sequences,
            context: self.ctx,
            kv: self.kv,
        }
    }
}

/// How to continue a prompt.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: SamplingSettings,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts at which generation stops; they are not part of the answer.
    pub stop: Vec<String>,
    /// Whether the model's own end tokens stop generation.
    pub stop_at_end: bool,
    /// Stops generation when it becomes true.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for GenerateOptions {
    /// Default sampling, at most 512 tokens.
    fn default() -> Self {
        Self {
            sampling: SamplingSettings::default(),
            max_tokens: 512,
            stop: Vec::new(),
            stop_at_end: true,
            cancel: None,
        }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended the text or its turn.
    EndOfText,
    /// As many tokens as were asked for.
    MaxTokens,
    /// A stop string.
    StopString,
    /// The context is full.
    Context,
    /// Somebody asked for it.
    Cancelled,
}

impl StopReason {
    /// The name as it stands in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndOfText => "end_of_text",
            Self::MaxTokens => "max_tokens",
            Self::StopString => "stop_string",
            Self::Context => "context",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A finished generation.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The answer.
    pub text: String,
    /// Its tokens, an end token included.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache already.
    pub cached_tokens: usize,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// From the beginning until the first token was chosen.
    pub prefill: Duration,
    /// From then until the end.
    pub decode: Duration,
    /// Tokens chosen during `decode`: one less than all.
    pub decode_tokens: usize,
    /// Bytes of weights, keys and values that those tokens had to read.
    pub decode_bytes: u64,
}

/// One of several prompts that are continued together.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its tokens.
    pub prompt: Vec<u32>,
    /// How to continue it.
    pub options: GenerateOptions,
}

/// Sequences over one KV cache.
pub struct Session {
    model: Arc<Model>,
    executor: Box<dyn Executor>,
    options: SessionOptions,
    /// For each slot, the tokens whose keys and values the cache holds.
    cached: Vec<Vec<u32>>,
    batch: Vec<StepToken>,
    /// Batches of the steps in flight, oldest first; of finished ones the memory, to be used again.
    in_flight: VecDeque<Vec<StepToken>>,
    spare: Vec<Vec<StepToken>>,
}

/// A request on its way.
struct Sequence<'a> {
    slot: usize,
    options: &'a GenerateOptions,
    prompt_tokens: usize,
    cached_tokens: usize,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// Tokens that steps in flight will add to them.
    pending: usize,
    /// How many of them, pending ones included, are in the cache or in a step in flight.
    fed: usize,
    stream: TextStream,
    first_token: Option<Instant>,
    decode_bytes: u64,
    end: Option<(StopReason, Instant)>,
}

impl Session {
    pub(crate) fn new(
        model: Arc<Model>,
        executor: Box<dyn Executor>,
        options: SessionOptions,
    ) -> Self {
        let executor_options = options.executor();
        let cached = (0..options.max_sequences).map(|_| Vec::with_capacity(options.ctx)).collect();
        let batch = || Vec::with_capacity(executor_options.max_tokens);
        let spare = (0..executor.max_in_flight()).map(|_| batch()).collect();
        let in_flight = VecDeque::with_capacity(executor.max_in_flight());
        Self { model, batch: batch(), executor, options, cached, in_flight, spare }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What the session was made for.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Bytes of activations, KV cache and sampler state.
    pub fn held_bytes(&self) -> u64 {
        self.executor.held_bytes()
    }

    /// Bytes of weights that a step with one token reads.
    pub fn weight_bytes_per_token(&self) -> u64 {
        self.executor.weight_bytes_per_token()
    }

    /// Bytes of keys and values that a token at `position` reads.
    pub fn kv_bytes_per_token(&self, position: usize) -> u64 {
        self.executor.kv_bytes_per_token(position)
    }

    /// Multiply-adds of the matrix products for one prompt token.
    pub fn multiply_adds_per_token(&self) -> u64 {
        self.executor.multiply_adds_per_token()
    }

    /// Forgets what the KV cache holds.
    pub fn reset(&mut self) {
        self.cached.iter_mut().for_each(Vec::clear);
        self.spare.extend(self.in_flight.drain(..));
    }

    /// Continues `prompt`, calling `on_text` with each piece of text as soon as it is
    /// certain; `on_text` may end the generation.
    ///
    /// Tokens at the start that the cache holds from the last call are not computed again.
    ///
    /// # Errors
    /// If the prompt is empty or does not fit the context, or the device fails.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, EngineError> {
        let request = Request { prompt: prompt.to_vec(), options: options.clone() };
        let mut generated =
            self.generate_batch(std::slice::from_ref(&request), &mut |_, text| on_text(text))?;
        match generated.pop() {
            Some(generated) => Ok(generated),
            None => Err(EngineError::EmptyPrompt),
        }
    }

    /// Continues several prompts at once, one per slot, in the order of the requests.
    /// `on_text` also gets the index of the request.
    ///
    /// # Errors
    /// If there are more requests than slots, a prompt is empty or does not fit the
    /// context, or the device fails.
    pub fn generate_batch(
        &mut self,
        requests: &[Request],
        on_text: &mut dyn FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<Generated>, EngineError> {
        let limit = self.options.max_sequences;
        if requests.len() > limit {
            return Err(EngineError::TooManySequences { found: requests.len(), limit });
        }
        let start = Instant::now();
        let mut sequences = Vec::with_capacity(requests.len());
        for (slot, request) in requests.iter().enumerate() {
            sequences.push(self.admit(slot, request, start)?);
        }
        loop {
            for s in &mut sequences {
                s.heed_cancel();
            }
            if let Err(error) = self.advance(&mut sequences) {
                // What the cache holds is not known after a failed step, nor what the steps after it did.
                while !self.in_flight.is_empty() {
                    // The first error is the one that says something.
                    let _ = self.executor.finish();
                    self.spare.extend(self.in_flight.pop_front());
                }
                self.reset();
                return Err(error);
            }
            let Some(step) = self.in_flight.pop_front() else { break };
            self.remember(&step, &sequences);
            self.distribute(&step, &mut sequences, on_text);
            self.spare.push(step);
        }
        Ok(sequences.into_iter().map(|s| s.finish(start)).collect())
    }

    /// Takes a request into a slot.
    fn admit<'a>(
        &mut self,
        slot: usize,
        request: &'a Request,
        now: Instant,
    ) -> Result<Sequence<'a>, EngineError> {
        let prompt = &request.prompt;
        let context = self.options.ctx;
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if prompt.len() > context {
            return Err(EngineError::PromptTooLong { tokens: prompt.len(), context });
        }
        // The last token is always computed, since its logits are needed.
        let shared = self.cached[slot].iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let cached_tokens = shared.min(prompt.len() - 1);
        self.cached[slot].truncate(cached_tokens);
        let sampling = &request.options.sampling;
        self.executor.begin_sequence(slot as u32, sampling, &prompt[..cached_tokens])?;
        let room = request.options.max_tokens.min(context - prompt.len()) + 1;
        let mut tokens = Vec::with_capacity(prompt.len() + room);
        tokens.extend_from_slice(prompt);
        let stream = TextStream::new(self.model.tokenizer(), &request.options.stop);
        let end = (request.options.max_tokens == 0).then_some((StopReason::MaxTokens, now));
        Ok(Sequence {
            slot,
            options: &request.options,
            prompt_tokens: prompt.len(),
            cached_tokens,
            tokens,
            pending: 0,
            fed: cached_tokens,
            stream,
            first_token: None,
            decode_bytes: 0,
            end,
        })
    }

    /// Submits as many steps as the device takes ahead, and waits for the oldest.
    fn advance(&mut self, sequences: &mut [Sequence<'_>]) -> Result<(), EngineError> {
        while self.in_flight.len() < self.executor.max_in_flight() {
            let Some(mut batch) = self.spare.pop() else { break };
            self.compose(sequences, &mut batch);
            if batch.is_empty() {
                self.spare.push(batch);
                break;
            }
            self.executor.submit(&Batch { tokens: &batch, logits: false })?;
            self.in_flight.push_back(batch);
        }
        Ok(self.executor.finish()?)
    }

    /// Fills the next batch: the latest token of every sequence that is generating, then as
    /// much of the prompts as fits. A token that a step in flight is about to choose is taken where it is.
    fn compose(&mut self, sequences: &mut [Sequence<'_>], batch: &mut Vec<StepToken>) {
        batch.clear();
        let capacity = self.options.executor().max_tokens;
        for decoding in [true, false] {
            for s in sequences.iter_mut().filter(|s| s.goes_on(self.options.ctx)) {
                let length = s.tokens.len() + s.pending;
                if (length - s.fed == 1) != decoding {
                    continue;
                }
                let room = capacity - batch.len();
                let count = (length - s.fed).min(room);
                for i in s.fed..s.fed + count {
                    let output = i + 1 == length;
                    batch.push(StepToken {
                        id: s.tokens.get(i).copied().unwrap_or(StepToken::SAMPLED),
                        sequence: s.slot as u32,
                        position: i as u32,
                        output,
                    });
                    s.pending += usize::from(output);
                }
                s.fed += count;
            }
        }
    }

    /// Notes what a finished step left in the cache.
    fn remember(&mut self, step: &[StepToken], sequences: &[Sequence<'_>]) {
        for token in step {
            let known = || {
                let of = sequences.iter().find(|s| s.slot == token.sequence as usize)?;
                of.tokens.get(token.position as usize).copied()
            };
            let id = if token.id == StepToken::SAMPLED { known() } else { Some(token.id) };
            let cached = &mut self.cached[token.sequence as usize];
            cached.truncate(token.position as usize);
            cached.extend(id);
        }
    }

    fn step_batch(&mut self, logits: bool) -> Result<(), EngineError> {
        self.executor.step(&Batch { tokens: &self.batch, logits })?;
        for token in &self.batch {
            let cached = &mut self.cached[token.sequence as usize];
            cached.truncate(token.position as usize);
            cached.push(token.id);
        }
        Ok(())
    }

    /// Gives every sequence with an output in a finished step its next token.
    fn distribute(
        &mut self,
        step: &[StepToken],
        sequences: &mut [Sequence<'_>],
        on_text: &mut dyn FnMut(usize, &str) -> ControlFlow<()>,
    ) {
        let now = Instant::now();
        let outputs = step.iter().filter(|t| t.output);
        for (step, &token) in outputs.zip(self.executor.sampled()) {
            let Some((index, s)) =
                sequences.iter_mut().enumerate().find(|(_, s)| s.slot == step.sequence as usize)
            else {
                continue;
            };
            s.pending -= 1;
            if s.end.is_some() {
                // It ended while the device was a step ahead.
                continue;
            }
            if s.first_token.is_some() {
                s.decode_bytes += self.executor.weight_bytes_per_token()
                    + self.executor.kv_bytes_per_token(step.position as usize);
            }
            s.first_token.get_or_insert(now);
            s.tokens.push(token);
            s.end =
                s.end_after(token, &self.model, self.options.ctx, index, on_text).map(|r| (r, now));
        }
    }
}

impl Sequence<'_> {
    /// Whether there is something to feed: it has not ended, and will not with what is on its way.
    fn goes_on(&self, context: usize) -> bool {
        let length = self.tokens.len() + self.pending;
        let generated = length - self.prompt_tokens;
        self.end.is_none()
            && self.fed < length
            && (self.pending == 0 || (generated < self.options.max_tokens && length <= context))
    }

    /// Ends the sequence if somebody asked for it: also in the middle of a long prompt.
    fn heed_cancel(&mut self) {
        let cancelled = self.options.cancel.as_ref().is_some_and(|c| c.load(Ordering::Relaxed));
        if cancelled && self.end.is_none() {
            self.end = Some((StopReason::Cancelled, Instant::now()));
        }
    }

    /// Streams the text of a new token; returns why the sequence ends with it, if it does.
    fn end_after(
        &mut self,
        token: u32,
        model: &Model,
        context: usize,
        index: usize,
        on_text: &mut dyn FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Option<StopReason> {
        let generated = self.tokens.len() - self.prompt_tokens;
        let ended = self.options.stop_at_end && model.tokenizer().ends_generation(token);
        let mut broken = false;
        if !ended && let Some(text) = self.stream.push(token) {
            broken = on_text(index, text).is_break();
        }
        let reason = if ended {
            StopReason::EndOfText
        } else if self.stream.stopped() {
            StopReason::StopString
        } else if broken {
            StopReason::Cancelled
        } else if generated >= self.options.max_tokens {
            StopReason::MaxTokens
        } else if self.tokens.len() > context {
            StopReason::Context
        } else {
            return None;
        };
        if let Some(text) = self.stream.finish() {
            // The end is decided already.
            let _ = on_text(index, text);
        }
        Some(reason)
    }

    fn finish(self, start: Instant) -> Generated {
        let (stop_reason, end) = self.end.unwrap_or((StopReason::Cancelled, start));
        let first = self.first_token.unwrap_or(end);
        let tokens = self.tokens[self.prompt_tokens..].to_vec();
        Generated {
            text: self.stream.into_text(),
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            stop_reason,
            prefill: first - start,
            decode: end - first,
            decode_tokens: tokens.len().saturating_sub(1),
            decode_bytes: self.decode_bytes,
            tokens,
        }
    }
}
