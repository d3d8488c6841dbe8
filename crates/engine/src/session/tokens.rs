//! Tokens in and numbers out, in slot 0 and without text: scores, logits, and the loops underneath generation.

use marlin_backend::{Batch, SamplingSettings, StepToken};

use super::Session;
use crate::EngineError;

impl Session {
    /// The logarithm of the probability that the model gives `tokens[i + 1]` after
    /// `tokens[..= i]`, for each `i` from `first` on, computed in slot 0 from an empty cache.
    ///
    /// # Errors
    /// If `tokens` is empty or does not fit the context, or the device fails.
    pub fn score(&mut self, tokens: &[u32], first: usize) -> Result<Vec<f64>, EngineError> {
        self.begin_whole(tokens)?;
        let limits = self.options.executor();
        let mut scores = Vec::with_capacity(tokens.len().saturating_sub(first + 1));
        let mut fed = 0;
        while fed < tokens.len() {
            self.batch.clear();
            let mut outputs = 0;
            while fed < tokens.len() && self.batch.len() < limits.max_tokens {
                let output = fed >= first && fed + 1 < tokens.len();
                if output && outputs == limits.max_outputs {
                    break;
                }
                outputs += usize::from(output);
                let (id, position) = (tokens[fed], fed as u32);
                self.batch.push(StepToken { id, sequence: 0, position, output });
                fed += 1;
            }
            self.step_batch(true)?;
            let outputs = self.batch.iter().filter(|t| t.output);
            for (o, token) in outputs.enumerate() {
                if let Some(logits) = self.executor.logits(o) {
                    let next = tokens[token.position as usize + 1];
                    scores.push(log_probability(logits, next));
                }
            }
        }
        Ok(scores)
    }

    /// The logits after every token of `tokens`, computed in slot 0 from an empty cache, in
    /// steps of at most `step` tokens: for comparing with other implementations.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub fn logits(&mut self, tokens: &[u32], step: usize) -> Result<Vec<Vec<f32>>, EngineError> {
        self.begin_whole(tokens)?;
        let limits = self.options.executor();
        let step = step.clamp(1, limits.max_tokens.min(limits.max_outputs));
        let mut all = Vec::with_capacity(tokens.len());
        for (start, chunk) in (0..).step_by(step).zip(tokens.chunks(step)) {
            self.batch.clear();
            for (position, &id) in (start..).zip(chunk) {
                self.batch.push(StepToken { id, sequence: 0, position, output: true });
            }
            self.step_batch(true)?;
            all.extend(
                (0..chunk.len()).filter_map(|o| self.executor.logits(o).map(<[f32]>::to_vec)),
            );
        }
        Ok(all)
    }

    /// Runs `steps` steps of one token in slot 0, the first of which feeds `token` at position `start` and each other
    /// what the one before it chose, and returns the chosen tokens. The device runs ahead of the host where it can:
    /// the loop underneath [`generate`](Self::generate), for benchmarks.
    ///
    /// # Errors
    /// If they do not fit the context, or the device fails.
    pub fn decode(
        &mut self,
        token: u32,
        start: usize,
        steps: usize,
    ) -> Result<Vec<u32>, EngineError> {
        self.check_fits(start + steps)?;
        let ahead = self.executor.max_in_flight();
        let mut chosen = Vec::with_capacity(steps);
        let mut submitted = 0;
        self.cached[0].clear();
        while chosen.len() < steps {
            while submitted < steps && submitted - chosen.len() < ahead {
                let id = match submitted {
                    0 => token,
                    n if n == chosen.len() => chosen[n - 1],
                    _ => StepToken::SAMPLED,
                };
                let position = (start + submitted) as u32;
                let tokens = [StepToken { id, sequence: 0, position, output: true }];
                self.executor.submit(&Batch { tokens: &tokens, logits: false })?;
                submitted += 1;
            }
            self.executor.finish()?;
            chosen.extend(self.executor.sampled().first());
        }
        Ok(chosen)
    }

    /// Sets how [`feed`](Self::feed) samples.
    ///
    /// # Errors
    /// If the device fails.
    pub fn begin(&mut self, sampling: &SamplingSettings) -> Result<(), EngineError> {
        self.cached[0].clear();
        Ok(self.executor.begin_sequence(0, sampling, &[])?)
    }

    /// Runs `tokens` through slot 0 as a prompt from position `start` on, and returns the
    /// token sampled after the last one: the loop underneath [`generate`](Self::generate),
    /// without text, for benchmarks and for callers that have their own.
    ///
    /// # Errors
    /// If they do not fit the context, or the device fails.
    pub fn feed(&mut self, tokens: &[u32], start: usize) -> Result<Option<u32>, EngineError> {
        self.check_fits(start + tokens.len())?;
        let limit = self.options.executor().max_tokens;
        let mut position = start;
        for chunk in tokens.chunks(limit) {
            self.batch.clear();
            for &id in chunk {
                let output = position + 1 == start + tokens.len();
                self.batch.push(StepToken { id, sequence: 0, position: position as u32, output });
                position += 1;
            }
            self.step_batch(false)?;
        }
        Ok(self.executor.sampled().first().copied())
    }
    /// Makes ready for `tokens`, all of a sequence, in slot 0 with an empty cache.
    fn begin_whole(&mut self, tokens: &[u32]) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        self.check_fits(tokens.len())?;
        self.begin(&SamplingSettings::GREEDY)
    }

    fn check_fits(&self, tokens: usize) -> Result<(), EngineError> {
        let context = self.options.ctx;
        if tokens > context {
            return Err(EngineError::PromptTooLong { tokens, context });
        }
        Ok(())
    }
}

/// `logits[token] - log Σ exp(logits)`, summed in double precision.
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - greatest).exp()).sum();
    f64::from(logits[token as usize] - greatest) - sum.ln()
}
