//! What one step works on.

/// One token of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepToken {
    /// Its id in the vocabulary, or [`SAMPLED`](Self::SAMPLED).
    pub id: u32,
    /// The sequence's slot in the KV cache.
    pub sequence: u32,
    /// Its position in the sequence, from 0. The slot must already hold all earlier
    /// positions, or they must precede it in this batch.
    pub position: u32,
    /// Whether logits are wanted (and a next token is sampled) after this token.
    pub output: bool,
}

impl StepToken {
    /// As an id: the token that the last output of this sequence was given, which the host need not have seen yet.
    /// Only executors that have several steps [in flight](crate::Executor::max_in_flight) take it.
    pub const SAMPLED: u32 = u32::MAX;
}

/// The tokens of one step: any mix of prefill chunks and single decode tokens.
///
/// The tokens of one sequence must be in order of position, without gaps, and next to
/// each other.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The tokens, grouped by sequence.
    pub tokens: &'a [StepToken],
    /// Whether the host will read logits after the step. Without, a backend need not
    /// keep them.
    pub logits: bool,
}
