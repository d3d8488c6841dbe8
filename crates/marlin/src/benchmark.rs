//! Speed of a model on a device, in the shapes of `llama-bench`, beside what the device can do at
//! most.

use std::time::{Duration, Instant};

use marlin_engine::{Ceilings, EngineError, Session};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchmarkOptions {
    /// Tokens of the prompt; 0 leaves that measurement out.
    pub prompt: usize,
    /// Tokens decoded one by one, from an empty context; 0 leaves that measurement out.
    pub decode: usize,
    /// How often each is repeated.
    pub repetitions: usize,
}

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Benchmark {
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens of each decoding.
    pub decode_tokens: usize,
    /// Seconds of each prompt; none if it was left out.
    pub prefill: Vec<f64>,
    /// Seconds of each decoding; none if it was left out.
    pub decode: Vec<f64>,
    /// What the device could do before the first repetition and after each.
    pub ceilings: Vec<Ceilings>,
    /// Bytes that one decoding has to read: weights, keys and values.
    pub decode_bytes: u64,
    /// Multiply-adds of one prompt's matrix products.
    pub multiply_adds: u64,
}

impl BenchmarkOptions {
    /// Measures, after one round that does not count. `on_round` is called after every repetition
    /// and ends the measurement when it returns `false`.
    ///
    /// The prompt is of arbitrary tokens: speed does not depend on which.
    ///
    /// # Errors
    /// If the session's context is too short, or the device fails.
    pub fn run(
        &self,
        session: &mut Session,
        on_round: &mut dyn FnMut() -> bool,
    ) -> Result<Benchmark, EngineError> {
        let vocab = session.model().config().vocab;
        let prompt = arbitrary_tokens(self.prompt, vocab);
        let first = arbitrary_tokens(1, vocab);
        let weights = session.weight_bytes_per_token();
        let mut result = Benchmark {
            prompt_tokens: self.prompt,
            decode_tokens: self.decode,
            decode_bytes: (0..self.decode).map(|at| weights + session.kv_bytes_per_token(at)).sum(),
            multiply_adds: session.multiply_adds_per_token() * self.prompt as u64,
            ..Benchmark::default()
        };
        for round in 0..=self.repetitions {
            let prefill = (!prompt.is_empty())
                .then(|| measure(|| session.feed(&prompt, 0).map(drop)))
                .transpose()?;
            // The uncounted round need not be as long as the others.
            let steps = if round == 0 { self.decode.min(8) } else { self.decode };
            let decode =
                (steps > 0).then(|| measure(|| decode(session, first[0], steps))).transpose()?;
            result.ceilings.push(session.model().measure_ceilings());
            if round > 0 {
                result.prefill.extend(prefill);
                result.decode.extend(decode);
                if !on_round() {
                    break;
                }
            }
        }
        Ok(result)
    }
}

impl Benchmark {
    /// Median speed of the prompt in tokens per second, if it was measured.
    #[must_use]
    pub fn prefill_tok_s(&self) -> Option<f64> {
        Some(self.prompt_tokens as f64 / median(&self.prefill)?)
    }

    /// Median speed of decoding in tokens per second, if it was measured.
    #[must_use]
    pub fn decode_tok_s(&self) -> Option<f64> {
        Some(self.decode_tokens as f64 / median(&self.decode)?)
    }

    /// Multiply-adds per second of the prompt's matrix products, at the median.
    #[must_use]
    pub fn multiply_adds_per_s(&self) -> Option<f64> {
        Some(self.multiply_adds as f64 / median(&self.prefill)?)
    }

    /// Bytes read per second of decoding, at the median, in GB/s (10⁹).
    #[must_use]
    pub fn decode_gb_s(&self) -> Option<f64> {
        Some(self.decode_bytes as f64 / median(&self.decode)? / 1e9)
    }

    /// Median of the measured read bandwidths in GB/s (10⁹).
    #[must_use]
    pub fn read_gb_s(&self) -> Option<f64> {
        let rates: Vec<f64> = self.ceilings.iter().map(|c| c.read_bytes_per_s / 1e9).collect();
        median(&rates)
    }

    /// Bytes read per second of decoding as a percentage of the read bandwidth: 100 is the floor
    /// of what a decode step can take. As are the two below, the median over repetitions, each of
    /// which is compared with the mean of what was measured right before and right after it: other
    /// users of a machine come and go.
    #[must_use]
    pub fn decode_floor_pct(&self) -> Option<f64> {
        self.share(&self.decode, self.decode_bytes, |c| Some(c.read_bytes_per_s))
    }

    /// Multiply-adds per second of the prompt's matrix products as a percentage of the peak of the
    /// unit that does them.
    #[must_use]
    pub fn prefill_peak_pct(&self) -> Option<f64> {
        self.share(&self.prefill, self.multiply_adds, |c| Some(c.multiply_adds_per_s))
    }

    /// The same of the vector unit's peak, on a processor that has a matrix unit beside it.
    #[must_use]
    pub fn prefill_vector_peak_pct(&self) -> Option<f64> {
        self.share(&self.prefill, self.multiply_adds, |c| c.vector_multiply_adds_per_s)
    }

    fn share(
        &self,
        seconds: &[f64],
        work: u64,
        ceiling: fn(&Ceilings) -> Option<f64>,
    ) -> Option<f64> {
        let around = self.ceilings.windows(2);
        let shares: Option<Vec<f64>> = seconds
            .iter()
            .zip(around)
            .map(|(seconds, around)| {
                let ceiling = f64::midpoint(ceiling(&around[0])?, ceiling(&around[1])?);
                Some(100.0 * work as f64 / seconds / ceiling)
            })
            .collect();
        median(&shares?)
    }
}

fn measure(run: impl FnOnce() -> Result<(), EngineError>) -> Result<f64, EngineError> {
    let start = Instant::now();
    run()?;
    // A clock that stands still would make every speed infinite.
    Ok(start.elapsed().max(Duration::from_nanos(1)).as_secs_f64())
}

/// Decodes `steps` tokens from an empty context, each step taking the token that the last one
/// chose.
fn decode(session: &mut Session, first: u32, steps: usize) -> Result<(), EngineError> {
    session.decode(first, 0, steps).map(drop)
}

/// Tokens of a multiplicative generator (Park and Miller 1988), the same in every run.
fn arbitrary_tokens(count: usize, vocab: usize) -> Vec<u32> {
    let mut state = 1_u64;
    let mut next = || {
        state = state * 48_271 % 0x7fff_ffff;
        (state % vocab.max(1) as u64) as u32
    };
    (0..count).map(|_| next()).collect()
}

/// The middle value, or the mean of the two in the middle; `None` of nothing.
#[must_use]
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn speeds_follow_from_counts_and_median_times() {
        let ceilings = |read: f64| Ceilings {
            read_bytes_per_s: read,
            multiply_adds_per_s: 4_000.0,
            vector_multiply_adds_per_s: Some(1_000.0),
        };
        let result = Benchmark {
            prompt_tokens: 100,
            decode_tokens: 10,
            prefill: vec![1.0, 0.5, 2.0],
            decode: vec![2.0, 2.0, 9.0],
            ceilings: vec![ceilings(12e9), ceilings(20e9), ceilings(12e9), ceilings(1e9)],
            decode_bytes: 8_000_000_000,
            multiply_adds: 1_000,
        };
        assert_eq!(result.prefill_tok_s(), Some(100.0));
        assert_eq!(result.decode_tok_s(), Some(5.0));
        assert_eq!(result.decode_gb_s(), Some(4.0));
        assert_eq!(result.read_gb_s(), Some(12.0));
        // 4 of 16, 4 of 16 and 0.89 of 6.5 GB/s.
        assert_eq!(result.decode_floor_pct(), Some(25.0));
        assert_eq!(result.prefill_peak_pct(), Some(25.0));
        assert_eq!(result.prefill_vector_peak_pct(), Some(100.0));
        let nothing = Benchmark { prefill: Vec::new(), decode: Vec::new(), ..result };
        assert_eq!(nothing.decode_floor_pct(), None);
    }

    #[test]
    fn a_device_with_one_unit_has_no_second_peak() {
        let ceilings = Ceilings {
            read_bytes_per_s: 1.0,
            multiply_adds_per_s: 1.0,
            vector_multiply_adds_per_s: None,
        };
        let result = Benchmark {
            prefill: vec![1.0],
            ceilings: vec![ceilings; 2],
            multiply_adds: 1,
            ..Benchmark::default()
        };
        assert_eq!(result.prefill_peak_pct(), Some(100.0));
        assert_eq!(result.prefill_vector_peak_pct(), None);
    }

    #[test]
    fn arbitrary_tokens_are_in_the_vocabulary() {
        let tokens = arbitrary_tokens(1000, 10);
        assert!(tokens.iter().all(|&token| token < 10));
        assert!((0..10).all(|token| tokens.contains(&token)));
    }
}
