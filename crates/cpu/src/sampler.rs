//! Choosing the next token where the logits are.

use marlin_backend::{SamplingSettings, uniform};

use crate::isa::Kernels;

/// What the sampler remembers of one sequence.
pub(crate) struct SequenceState {
    settings: SamplingSettings,
    /// The last tokens, as a ring.
    history: Box<[u32]>,
    /// Tokens seen so far.
    seen: usize,
    /// Random numbers drawn so far.
    draws: u64,
}

impl SequenceState {
    /// Bytes of the tokens that it remembers.
    pub(crate) const HISTORY_BYTES: usize = 4 * SamplingSettings::MAX_REPEAT_LAST_N as usize;

    pub(crate) fn new() -> Self {
        Self {
            settings: SamplingSettings::GREEDY,
            history: vec![0; SamplingSettings::MAX_REPEAT_LAST_N as usize].into(),
            seen: 0,
            draws: 0,
        }
    }

    /// Forgets everything and takes new settings.
    pub(crate) fn begin(&mut self, settings: &SamplingSettings) {
        self.settings.clone_from(settings);
        self.seen = 0;
        self.draws = 0;
    }

    /// Remembers a token of the sequence.
    pub(crate) fn push(&mut self, token: u32) {
        let at = self.seen % self.history.len();
        self.history[at] = token;
        self.seen += 1;
    }

    /// Copies the penalties' window into `out`; returns its length.
    fn window(&self, out: &mut [u32]) -> usize {
        let len = self.history.len();
        let n = (self.settings.repeat_last_n as usize).min(self.seen).min(len);
        for (i, slot) in out.iter_mut().take(n).enumerate() {
            *slot = self.history[(self.seen - n + i) % len];
        }
        n
    }
}

/// Buffers of one thread, sized once.
pub(crate) struct SamplerScratch {
    window: Box<[u32]>,
    saved: Vec<(u32, f32)>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    logit: f32,
    token: u32,
}

impl Candidate {
    /// Higher logit first, then lower token: a total order, so that equal logits give the
    /// same text on every device.
    fn before(&self, other: &Self) -> std::cmp::Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

impl SamplerScratch {
    /// Bytes of one.
    pub(crate) const fn bytes(vocabulary: usize) -> usize {
        let window = SamplingSettings::MAX_REPEAT_LAST_N as usize;
        window * (size_of::<u32>() + size_of::<(u32, f32)>()) + vocabulary * size_of::<Candidate>()
    }

    pub(crate) fn new(vocabulary: usize) -> Self {
        let window = SamplingSettings::MAX_REPEAT_LAST_N as usize;
        Self {
            window: vec![0; window].into(),
            saved: Vec::with_capacity(window),
            candidates: Vec::with_capacity(vocabulary),
        }
    }
}

/// The next token of a sequence. `logits` are changed while this runs and are as before
/// afterwards.
pub(crate) fn sample(
    kernels: &Kernels,
    logits: &mut [f32],
    state: &mut SequenceState,
    scratch: &mut SamplerScratch,
) -> u32 {
    scratch.saved.clear();
    if state.settings.penalises() {
        penalise(logits, state, scratch);
    }
    let token = if state.settings.temperature > 0.0 {
        let u = uniform(state.settings.seed, state.draws);
        state.draws += 1;
        draw(kernels, logits, &state.settings, u, &mut scratch.candidates)
    } else {
        // SAFETY: the slice is readable for its length; the table is this processor's.
        unsafe { (kernels.arg_max)(logits.as_ptr(), logits.len()) as u32 }
    };
    for &(token, logit) in &scratch.saved {
        logits[token as usize] = logit;
    }
    token
}

fn penalise(logits: &mut [f32], state: &SequenceState, scratch: &mut SamplerScratch) {
    let n = state.window(&mut scratch.window);
    let window = &mut scratch.window[..n];
    window.sort_unstable();
    let s = &state.settings;
    for run in window.chunk_by(|a, b| a == b) {
        let token = run[0];
        let Some(logit) = logits.get_mut(token as usize) else { continue };
        scratch.saved.push((token, *logit));
        *logit = if *logit > 0.0 { *logit / s.repeat_penalty } else { *logit * s.repeat_penalty };
        *logit -= s.presence_penalty + s.frequency_penalty * run.len() as f32;
    }
}

/// Draws a token with the uniform number `u`.
fn draw(
    kernels: &Kernels,
    logits: &[f32],
    settings: &SamplingSettings,
    u: f32,
    candidates: &mut Vec<Candidate>,
) -> u32 {
    let n = logits.len();
    // SAFETY: the slice is readable for its length; the table is this processor's.
    let greatest = unsafe { (kernels.max)(logits.as_ptr(), n) };
    if !greatest.is_finite() {
        // Nothing to choose from by probability.
        // SAFETY: as above.
        return unsafe { (kernels.arg_max)(logits.as_ptr(), n) as u32 };
    }
    let k = if settings.top_k == 0 { n } else { (settings.top_k as usize).min(n) };
    if k < n {
        top_k(kernels, logits, k, candidates);
        if settings.top_p < 1.0 {
            let total = total_weight(candidates, greatest);
            keep_top_p(candidates, settings.top_p * total, greatest);
        }
    } else if settings.top_p < 1.0 {
        // The nucleus is nearly always small: look among the most likely first.
        // SAFETY: as above.
        let total = unsafe { (kernels.sum_exp)(logits.as_ptr(), n, greatest, 1.0) };
        let mut k = 256.min(n);
        loop {
            top_k(kernels, logits, k, candidates);
            let reached = keep_top_p(candidates, settings.top_p * total, greatest);
            if reached || k == n {
                break;
            }
            k = (4 * k).min(n);
        }
    } else {
        candidates.clear();
        let all = logits.iter().zip(0..).map(|(&logit, token)| Candidate { logit, token });
        candidates.extend(all);
    }
    if settings.min_p > 0.0 {
        let least = greatest + settings.min_p.ln();
        candidates.retain(|c| c.logit >= least);
    }
    // Temperature, then the draw: the first candidate at which the running sum passes u.
    let weight = |c: &Candidate| ((c.logit - greatest) / settings.temperature).exp();
    let total: f64 = candidates.iter().map(|c| f64::from(weight(c))).sum();
    let target = f64::from(u) * total;
    let mut sum = 0.0;
    let mut last = 0;
    for c in candidates.iter() {
        let w = f64::from(weight(c));
        if w > 0.0 {
            last = c.token;
            sum += w;
            if sum > target {
                break;
            }
        }
    }
    last
}

fn total_weight(candidates: &[Candidate], greatest: f32) -> f32 {
    candidates.iter().map(|c| (c.logit - greatest).exp()).sum()
}

/// Cuts sorted candidates after the first at which their weight reaches `target`; returns
/// whether it did.
fn keep_top_p(candidates: &mut Vec<Candidate>, target: f32, greatest: f32) -> bool {
    let mut sum = 0.0;
    for i in 0..candidates.len() {
        sum += (candidates[i].logit - greatest).exp();
        if sum >= target {
            candidates.truncate(i + 1);
            return true;
        }
    }
    false
}

/// The `k` most likely tokens, most likely first.
///
/// A heap of the best so far, its worst on top; blocks whose greatest logit does not beat
/// that are skipped by one vector comparison, so nearly all of the vocabulary is only read.
fn top_k(kernels: &Kernels, logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    const BLOCK: usize = 256;
    out.clear();
    if k == 0 {
        return;
    }
    for (b, block) in logits.chunks(BLOCK).enumerate() {
        if out.len() == k {
            // SAFETY: the slice is readable for its length; the table is this processor's.
            let greatest = unsafe { (kernels.max)(block.as_ptr(), block.len()) };
            if greatest <= out[0].logit {
                continue;
            }
        }
        for (&logit, token) in block.iter().zip((b * BLOCK) as u32..) {
            if logit.is_nan() {
                continue;
            }
            let candidate = Candidate { logit, token };
            if out.len() < k {
                out.push(candidate);
                sift_up(out);
            } else if candidate.before(&out[0]).is_lt() {
                out[0] = candidate;
                sift_down(out);
            }
        }
    }
    out.sort_unstable_by(Candidate::before);
}

fn sift_up(heap: &mut [Candidate]) {
    let mut i = heap.len() - 1;
    while i > 0 {
        let parent = (i - 1) / 2;
        if heap[i].before(&heap[parent]).is_le() {
            return;
        }
        heap.swap(i, parent);
        i = parent;
    }
}

fn sift_down(heap: &mut [Candidate]) {
    let mut i = 0;
    loop {
        let mut worst = i;
        for child in [2 * i + 1, 2 * i + 2] {
            if child < heap.len() && heap[child].before(&heap[worst]).is_gt() {
                worst = child;
            }
        }
        if worst == i {
            return;
        }
        heap.swap(i, worst);
        i = worst;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::{Isa, kernels};

    fn table() -> &'static Kernels {
        kernels(Isa::best()).unwrap()
    }

    fn counts(settings: &SamplingSettings, logits: &[f32], draws: u32) -> Vec<u32> {
        let mut state = SequenceState::new();
        state.begin(settings);
        let mut scratch = SamplerScratch::new(logits.len());
        let mut logits = logits.to_vec();
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sample(table(), &mut logits, &mut state, &mut scratch) as usize] += 1;
        }
        counts
    }

    const OPEN: SamplingSettings = SamplingSettings {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        ..SamplingSettings::GREEDY
    };

    proptest! {
        #[test]
        fn top_k_is_the_head_of_a_full_sort(
            logits in proptest::collection::vec(-5i8..5, 1..900),
            k in 1usize..64,
        ) {
            // Few distinct values, so that ties are common.
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let k = k.min(logits.len());
            let mut found = Vec::new();
            top_k(table(), &logits, k, &mut found);
            let mut all: Vec<Candidate> =
                logits.iter().zip(0..).map(|(&logit, token)| Candidate { logit, token }).collect();
            all.sort_by(Candidate::before);
            prop_assert_eq!(&found[..], &all[..k]);
        }

        #[test]
        fn sampling_leaves_the_logits_as_they_were(
            logits in proptest::collection::vec(-8.0f32..8.0, 20),
            history in proptest::collection::vec(0u32..20, 0..40),
            greedy: bool,
        ) {
            let mut state = SequenceState::new();
            state.begin(&SamplingSettings {
                temperature: if greedy { 0.0 } else { 0.7 },
                repeat_penalty: 1.3,
                presence_penalty: 0.2,
                frequency_penalty: 0.1,
                ..OPEN
            });
            history.iter().for_each(|&t| state.push(t));
            let mut scratch = SamplerScratch::new(20);
            let mut work = logits.clone();
            let token = sample(table(), &mut work, &mut state, &mut scratch);
            prop_assert!(token < 20);
            prop_assert_eq!(work, logits);
        }
    }

    /// Pearson's statistic against `expected` probabilities.
    fn chi_squared(counts: &[u32], expected: &[f64]) -> f64 {
        let n: f64 = counts.iter().map(|&c| f64::from(c)).sum();
        counts
            .iter()
            .zip(expected)
            .filter(|(_, p)| **p > 0.0)
            .map(|(&c, &p)| (f64::from(c) - n * p).powi(2) / (n * p))
            .sum()
    }

    fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
        let w: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
        let total: f64 = w.iter().sum();
        w.into_iter().map(|w| w / total).collect()
    }

    #[test]
    fn draws_follow_the_softmax_at_every_temperature() {
        let logits = [0.0, 1.0, 2.0, -1.0, 0.5];
        for temperature in [0.5, 1.0, 2.0] {
            let counts = counts(&SamplingSettings { temperature, ..OPEN }, &logits, 20_000);
            let chi = chi_squared(&counts, &softmax(&logits, f64::from(temperature)));
            // 4 degrees of freedom: above 18.5 once in a thousand.
            assert!(chi < 18.5, "{chi} at {temperature}");
        }
    }

    #[test]
    fn filters_keep_what_their_definitions_say() {
        let p = [0.5f32, 0.25, 0.15, 0.07, 0.03];
        let logits: Vec<f32> = p.iter().map(|p| p.ln()).collect();
        let kept = |settings: &SamplingSettings| -> Vec<usize> {
            let counts = counts(settings, &logits, 4000);
            (0..p.len()).filter(|&i| counts[i] > 0).collect()
        };
        assert_eq!(kept(&OPEN), [0, 1, 2, 3, 4]);
        assert_eq!(kept(&SamplingSettings { top_k: 2, ..OPEN }), [0, 1]);
        // 0.5 + 0.25 < 0.8 ≤ 0.5 + 0.25 + 0.15.
        assert_eq!(kept(&SamplingSettings { top_p: 0.8, ..OPEN }), [0, 1, 2]);
        // At least 0.2 · 0.5.
        assert_eq!(kept(&SamplingSettings { min_p: 0.2, ..OPEN }), [0, 1, 2]);
        // Among the two that top-k leaves, the first has two thirds.
        assert_eq!(kept(&SamplingSettings { top_k: 2, top_p: 0.6, ..OPEN }), [0]);
    }

    #[test]
    fn penalties_follow_their_formulas() {
        let mut state = SequenceState::new();
        state.begin(&SamplingSettings {
            repeat_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            repeat_last_n: 3,
            ..OPEN
        });
        // The first 0 is outside the window of three.
        for token in [0, 1, 1, 2] {
            state.push(token);
        }
        let mut scratch = SamplerScratch::new(4);
        let mut logits = [1.0, 3.0, -1.0, 1.0];
        penalise(&mut logits, &state, &mut scratch);
        assert_eq!(logits, [1.0, 3.0 / 2.0 - 0.5 - 2.0 * 0.25, -2.0 - 0.5 - 0.25, 1.0]);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_another_seed_others() {
        let logits: Vec<f32> = (0..300).map(|i| (i % 17) as f32 * 0.1).collect();
        let run = |seed| {
            let mut state = SequenceState::new();
            state.begin(&SamplingSettings { seed, ..SamplingSettings::default() });
            let mut scratch = SamplerScratch::new(300);
            let mut work = logits.clone();
            (0..50)
                .map(|_| sample(table(), &mut work, &mut state, &mut scratch))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }
}
