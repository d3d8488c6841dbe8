//! Perplexity of a text, in the windows of `llama-perplexity`, so that the numbers compare.
//!
//! The text's tokens are cut into windows of `ctx` tokens; what remains at the end is left out.
//! Each window is computed from an empty context, its first token replaced by BOS where the model
//! wants one, and the tokens of its second half but the first of them are scored: those have at
//! least half a window of context (llama.cpp, `tools/perplexity/perplexity.cpp`).

use std::ops::ControlFlow;

use marlin_engine::{EngineError, Session};

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a window; at least [`MIN_CTX`].
    pub ctx: usize,
    /// Most windows to compute; all if `None`.
    pub chunks: Option<usize>,
}

/// The shortest window of which anything is scored.
pub const MIN_CTX: usize = 4;

/// A text's perplexity. The names are those of `marlin perplexity --json`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood of the scored tokens.
    pub perplexity: f64,
    /// Standard error of [`perplexity`](Self::perplexity).
    pub stderr: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// Windows computed.
    pub chunks: usize,
}

/// Why there is no perplexity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PerplexityError {
    /// The text does not fill two windows.
    #[error("the text has {tokens} tokens, expected at least {needed}: two windows of {} tokens", needed / 2)]
    TooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of two windows.
        needed: usize,
    },
    /// The window is too short for anything to be scored, or longer than the session's context.
    #[error("a window of {ctx} tokens, expected {MIN_CTX} to {limit}")]
    Window {
        /// Tokens of a window, as asked for.
        ctx: usize,
        /// Positions of the session.
        limit: usize,
    },
    /// The model failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Computes the perplexity of `tokens`, which begin with BOS where the model wants one.
///
/// After every window `on_chunk` gets the result so far and the number of windows to come in all,
/// and may stop there: the result so far is then the result.
///
/// # Errors
/// [`PerplexityError`].
pub fn perplexity(
    session: &mut Session,
    tokens: &[u32],
    options: &PerplexityOptions,
    on_chunk: &mut dyn FnMut(&Perplexity, usize) -> ControlFlow<()>,
) -> Result<Perplexity, PerplexityError> {
    let ctx = options.ctx;
    let limit = session.options().ctx;
    if !(MIN_CTX..=limit).contains(&ctx) {
        return Err(PerplexityError::Window { ctx, limit });
    }
    if tokens.len() < 2 * ctx {
        return Err(PerplexityError::TooShort { tokens: tokens.len(), needed: 2 * ctx });
    }
    let special = session.model().tokenizer().special();
    let bos = special.bos.filter(|_| special.add_bos);
    let total = options.chunks.unwrap_or(usize::MAX).min(tokens.len() / ctx);
    let mut sum = Sum::default();
    for window in tokens.chunks_exact(ctx).take(total) {
        let mut window = window.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        session.score(&window, ctx / 2)?.into_iter().for_each(|log_p| sum.add(log_p));
        sum.chunks += 1;
        if on_chunk(&sum.result(), total).is_break() {
            break;
        }
    }
    Ok(sum.result())
}

/// Sums over scored tokens.
#[derive(Default)]
struct Sum {
    nll: f64,
    nll_squared: f64,
    tokens: usize,
    chunks: usize,
}

impl Sum {
    fn add(&mut self, log_probability: f64) {
        self.nll -= log_probability;
        self.nll_squared += log_probability * log_probability;
        self.tokens += 1;
    }

    fn result(&self) -> Perplexity {
        let n = self.tokens as f64;
        let mean = self.nll / n;
        let variance = (self.nll_squared / n - mean * mean).max(0.0);
        let perplexity = mean.exp();
        // Of the mean, carried over to its exponential (the delta method), as llama-perplexity
        // does.
        let stderr = if self.tokens > 1 { perplexity * (variance / (n - 1.0)).sqrt() } else { 0.0 };
        Perplexity { perplexity, stderr, tokens: self.tokens, chunks: self.chunks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_guess_among_n_has_perplexity_n_and_no_error() {
        let mut sum = Sum::default();
        (0..100).for_each(|_| sum.add(-(50_f64.ln())));
        let result = sum.result();
        assert!((result.perplexity - 50.0).abs() < 1e-9 && result.stderr < 1e-5, "{result:?}");
    }

    /// Two values -1 and -3: mean 2, population variance 1.
    #[test]
    fn the_error_is_that_of_the_mean_times_the_perplexity() {
        let mut sum = Sum::default();
        for log_p in [-1.0, -3.0, -1.0, -3.0] {
            sum.add(log_p);
        }
        let result = sum.result();
        assert!((result.perplexity - 2_f64.exp()).abs() < 1e-12);
        assert!((result.stderr - 2_f64.exp() * (1.0_f64 / 3.0).sqrt()).abs() < 1e-12);
    }
}
