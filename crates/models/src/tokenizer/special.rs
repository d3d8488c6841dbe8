//! The tokens with a role.

/// BOS, EOS and the tokens that end a generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text, if the model has such a token.
    pub bos: Option<u32>,
    /// Ends a text: the first of the file's EOS tokens.
    pub eos: Option<u32>,
    /// All tokens after which generation stops: end of text, of turn, of message. Sorted.
    pub end_of_generation: Vec<u32>,
    /// Whether `add_special` puts BOS before a text.
    pub add_bos: bool,
}

impl SpecialTokens {
    /// Adds `ids` to the tokens that end a generation.
    pub(super) fn end_with(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.end_of_generation.extend(ids);
        self.end_of_generation.sort_unstable();
        self.end_of_generation.dedup();
    }
}

/// Whether a control token of this name ends a turn or a text. Files rarely say so of any but EOS: a model that was
/// tuned for chat ends its turns with another token. The names are those that llama.cpp goes by.
pub(super) fn ends_generation_by_name(name: &str) -> bool {
    matches!(
        name,
        "<|eot_id|>"
            | "<|eom_id|>"
            | "<|im_end|>"
            | "<|end|>"
            | "<|return|>"
            | "<|call|>"
            | "<end_of_turn>"
            | "<turn|>"
            | "<|endoftext|>"
            | "<|end_of_text|>"
            | "<|eos|>"
            | "<eos>"
            | "</s>"
            | "<EOT>"
            | "_<EOT>"
            | "[EOT]"
            | "[EOS]"
            | "<end_of_utterance>"
            | "<｜end▁of▁sentence｜>"
    )
}
