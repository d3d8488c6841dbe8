//! Text to tokens and back.
//!
//! Byte-level BPE and the encoding side of `tokenizer.json` go through the `tokenizers` crate; SentencePiece scores
//! (`sentencepiece`), finding special tokens (`added`) and decoding (`vocabulary`, [`Detokenizer`]) are here,
//! because they decide what is special, and must hold for both kinds of file.

mod added;
mod detokenizer;
mod gguf;
mod json;
mod normalizer;
mod pipeline;
mod pre_tokenizers;
mod sentencepiece;
mod special;
mod vocabulary;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::error::ModelError;
use crate::gguf::Metadata;
use added::AddedTokens;
pub use detokenizer::Detokenizer;
pub(crate) use json::{HuggingFaceTokens, from_json};
use pipeline::Pipeline;
use sentencepiece::SentencePiece;
pub use special::SpecialTokens;
pub use vocabulary::{TokenKind, Vocabulary};

/// Text that could not be turned into tokens.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer failed on a text of {len} bytes: {reason}")]
pub struct TokenizeError {
    /// Bytes of the text.
    pub len: usize,
    /// What the tokenizer said.
    pub reason: String,
}

/// A model's tokenizer.
pub struct Tokenizer {
    encoder: Encoder,
    added: AddedTokens,
    vocabulary: Arc<Vocabulary>,
    special: SpecialTokens,
    /// What `add_special` puts before a text, usually BOS.
    prefix: Vec<u32>,
    /// What `add_special` puts after a text, usually nothing.
    suffix: Vec<u32>,
    /// Whether the first space of a decoded text is the one that encoding added.
    strip_first_space: bool,
}

enum Encoder {
    Pipeline(Box<Pipeline>),
    SentencePiece(SentencePiece),
}

impl Tokenizer {
    /// The tokenizer that a GGUF file's metadata describe.
    ///
    /// # Errors
    /// [`ModelError`] when there is none, or it is damaged or of a kind that is not supported.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, ModelError> {
        gguf::from_gguf(metadata)
    }

    /// The ids of `text`.
    ///
    /// `add_special` adds what the model expects around a text (BOS). Special tokens written in the text, such as
    /// `<|im_end|>`, are only read as such with `parse_special`; without it they are text like any other.
    ///
    /// # Errors
    /// [`TokenizeError`] when a stage of the tokenizer refuses the text.
    pub fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TokenizeError> {
        self.encode_shielded(text, add_special, parse_special, None)
    }

    /// [`encode`](Self::encode) for text in which `shield` marks what must not be read as a special token.
    pub(crate) fn encode_shielded(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
        shield: Option<char>,
    ) -> Result<Vec<u32>, TokenizeError> {
        let mut ids = Vec::new();
        if add_special {
            ids.extend_from_slice(&self.prefix);
        }
        match &self.encoder {
            Encoder::Pipeline(pipeline) => ids.extend(
                pipeline
                    .encode(text, &self.added, parse_special, shield)
                    .map_err(|e| TokenizeError { len: text.len(), reason: e.to_string() })?,
            ),
            Encoder::SentencePiece(model) => {
                let mut at_start = true;
                for fragment in self.added.fragments(text, parse_special) {
                    if let Some(id) = fragment.id {
                        ids.push(id);
                    } else {
                        let text = match shield {
                            None => Cow::Borrowed(&text[fragment.range]),
                            Some(shield) => Cow::Owned(text[fragment.range].replace(shield, "")),
                        };
                        model.encode(&text, at_start, &mut ids);
                    }
                    at_start = fragment.id.is_some();
                }
            }
        }
        if add_special {
            ids.extend_from_slice(&self.suffix);
        }
        Ok(ids)
    }

    /// `text` with `shield` put into every special token written in it, for [`encode_shielded`](Self::encode_shielded).
    pub(crate) fn shield<'t>(&self, text: &'t str, shield: char) -> Cow<'t, str> {
        let fragments = self.added.fragments(text, true);
        if fragments.iter().all(|fragment| fragment.id.is_none()) {
            return Cow::Borrowed(text);
        }
        let mut shielded = String::with_capacity(text.len() + fragments.len() * shield.len_utf8());
        for fragment in fragments {
            let mut characters = text[fragment.range].chars();
            if fragment.id.is_some() {
                // After each character: whatever part of the token is a token of its own must not match either.
                for c in characters.by_ref() {
                    shielded.push(c);
                    shielded.push(shield);
                }
            }
            shielded.push_str(characters.as_str());
        }
        Cow::Owned(shielded)
    }

    /// The text of `ids`. Control tokens are left out unless `show_control`; bytes that are no character become U+FFFD.
    pub fn decode(&self, ids: &[u32], show_control: bool) -> String {
        let mut stream = self.detokenizer(show_control);
        let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        text.extend(stream.flush());
        match text.strip_prefix(' ') {
            Some(rest) if self.strip_first_space => rest.to_owned(),
            _ => text,
        }
    }

    /// A stream of text for tokens that continue another text: its first space is kept.
    pub fn detokenizer(&self, show_control: bool) -> Detokenizer {
        Detokenizer::new(self.vocabulary.clone(), show_control)
    }

    /// BOS, and the tokens that end a generation.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Whether `id` ends a generation.
    pub fn ends_generation(&self, id: u32) -> bool {
        self.special.end_of_generation.contains(&id)
    }

    /// What every id stands for.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The text of a token that stands for itself, such as BOS in a chat template. Empty without such a token.
    pub(crate) fn token_text(&self, id: Option<u32>) -> String {
        let bytes = id.and_then(|id| self.vocabulary.bytes(id)).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoder = match &self.encoder {
            Encoder::Pipeline(_) => "BPE",
            Encoder::SentencePiece(_) => "SentencePiece",
        };
        f.debug_struct("Tokenizer")
            .field("encoder", &encoder)
            .field("tokens", &self.vocabulary.len())
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}
