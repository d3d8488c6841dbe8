//! How the next token is chosen.

/// Sampling settings of one sequence.
///
/// Order of application, the one of llama.cpp's default sampler chain
/// (`common/sampling.cpp`): penalties → top-k → top-p → min-p → temperature → draw.
/// A temperature of 0 takes the most likely token after the penalties and draws nothing.
///
/// * Penalties look at the last [`repeat_last_n`](Self::repeat_last_n) tokens of the
///   sequence, prompt included. The repetition penalty divides positive logits and
///   multiplies negative ones (Keskar et al. 2019, "CTRL", §4.1); the presence penalty is
///   subtracted once and the frequency penalty once per occurrence (OpenAI API reference).
/// * top-k keeps the k most likely tokens.
/// * top-p keeps the smallest set of most likely tokens whose probability reaches p
///   (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration").
/// * min-p keeps tokens at least min-p times as likely as the most likely one
///   (Nguyen et al. 2024, "Turning Up the Heat").
///
/// Random numbers are counter-based (Philox4x32-10, Salmon et al. 2011), keyed by the seed
/// and counted by the number of tokens the sequence has drawn: same seed, same text,
/// whatever else runs in the batch.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingSettings {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Tokens kept by rank; 0 keeps all.
    pub top_k: u32,
    /// Probability mass kept; 1 keeps all.
    pub top_p: f32,
    /// Least probability relative to the most likely token; 0 keeps all.
    pub min_p: f32,
    /// 1 does nothing.
    pub repeat_penalty: f32,
    /// 0 does nothing.
    pub presence_penalty: f32,
    /// 0 does nothing.
    pub frequency_penalty: f32,
    /// How many of the last tokens the penalties look at.
    pub repeat_last_n: u32,
    /// Key of the random numbers.
    pub seed: u64,
}

impl SamplingSettings {
    /// The longest window that the penalties can look at, in tokens.
    pub const MAX_REPEAT_LAST_N: u32 = 4096;

    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repeat_last_n: 64,
        seed: 0,
    };

    /// Whether any penalty does something.
    pub fn penalises(&self) -> bool {
        self.repeat_last_n > 0
            && (self.repeat_penalty != 1.0
                || self.presence_penalty != 0.0
                || self.frequency_penalty != 0.0)
    }

    /// Whether the choice is the arg-max of the logits as they are.
    pub fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && !self.penalises()
    }
}

impl Default for SamplingSettings {
    /// Temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalties, seed 0.
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..Self::GREEDY }
    }
}
