//! What a generation took, for people and for scripts.

use std::time::Duration;

use metal_marlin::{Generated, Model};
use serde::Serialize;

/// The numbers of one generation. The names are those of `run --json`, which scripts rely on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Totals {
    pub(crate) prompt_tokens: usize,
    pub(crate) generated_tokens: usize,
    pub(crate) stop_reason: &'static str,
    pub(crate) load_s: f64,
    /// Of the prompt's tokens that were not in the cache; null if there was no time to measure.
    pub(crate) prefill_tok_s: Option<f64>,
    pub(crate) decode_tok_s: Option<f64>,
    pub(crate) decode_gb_s: Option<f64>,
    /// Of the read bandwidth, if that is known.
    pub(crate) decode_floor_pct: Option<f64>,
}

impl Totals {
    /// `read_bytes_per_s` is the device's read bandwidth, if it was measured.
    pub(crate) fn new(generated: &Generated, model: &Model, read_bytes_per_s: Option<f64>) -> Self {
        let computed = generated.prompt_tokens - generated.cached_tokens;
        let decode_bytes_per_s = per_second(generated.decode_bytes as f64, generated.decode);
        Self {
            prompt_tokens: generated.prompt_tokens,
            generated_tokens: generated.tokens.len(),
            stop_reason: generated.stop_reason.name(),
            load_s: rounded(model.load_time().as_secs_f64()),
            prefill_tok_s: per_second(computed as f64, generated.prefill).map(rounded),
            decode_tok_s: per_second(generated.decode_tokens as f64, generated.decode).map(rounded),
            decode_gb_s: decode_bytes_per_s.map(|rate| rounded(rate / 1e9)),
            decode_floor_pct: decode_bytes_per_s
                .zip(read_bytes_per_s)
                .map(|(rate, ceiling)| rounded(100.0 * rate / ceiling)),
        }
    }

    /// One line for people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("prompt: {}", tokens(self.prompt_tokens));
        if let Some(speed) = self.prefill_tok_s {
            text += &format!(", {speed:.1} tok/s");
        }
        text += &format!(" | answer: {}", tokens(self.generated_tokens));
        if let Some(speed) = self.decode_tok_s {
            text += &format!(", {speed:.1} tok/s");
        }
        if let Some(rate) = self.decode_gb_s {
            text += &format!(", {rate:.1} GB/s");
        }
        if let Some(share) = self.decode_floor_pct {
            text += &format!(" ({share:.0} % of the read bandwidth)");
        }
        text + &format!(" | stopped: {}", self.stop_reason.replace('_', " "))
    }
}

fn tokens(count: usize) -> String {
    format!("{count} token{}", if count == 1 { "" } else { "s" })
}

/// `None` when nothing was counted, or no time passed.
fn per_second(count: f64, time: Duration) -> Option<f64> {
    (count > 0.0 && !time.is_zero()).then(|| count / time.as_secs_f64())
}

/// To three decimals: more are noise, and make JSON hard to read.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
