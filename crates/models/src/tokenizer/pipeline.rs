//! Encoding through the `tokenizers` crate: normalise, cut into words, merge.

use std::ops::Range;
use std::path::Path;

use ahash::AHashMap;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizer;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{
    Model, NormalizedString, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Token,
};

use super::added::{AddedTokens, Fragment};
use super::normalizer::Normalizer;
use crate::error::{At, ModelError, quote};

/// The stages that text goes through.
pub(super) struct Pipeline {
    pub(super) normalizer: Option<Normalizer>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) model: BPE,
    /// Added tokens that are looked for after normalising, with their contents normalised too.
    pub(super) normalized_tokens: AddedTokens,
}

type Result<T> = tokenizers::Result<T>;

impl Pipeline {
    /// The ids of `text`; `tokens` are looked for before everything else. Characters equal to `shield` keep what
    /// they are in from being such a token, and are then left out.
    pub(super) fn encode(
        &self,
        text: &str,
        tokens: &AddedTokens,
        parse_special: bool,
        shield: Option<char>,
    ) -> Result<Vec<u32>> {
        let mut normalized = Normalized::default();
        for fragment in tokens.fragments(text, parse_special) {
            let part = &text[fragment.range];
            if fragment.id.is_some() {
                normalized.push(part, fragment.id);
                continue;
            }
            let part = match &self.normalizer {
                None => part.to_owned(),
                Some(normalizer) => normalizer.apply(part.to_owned()),
            };
            for fragment in self.normalized_tokens.fragments(&part, parse_special) {
                let part = &part[fragment.range];
                match shield {
                    Some(shield) => normalized.push(&part.replace(shield, ""), fragment.id),
                    None => normalized.push(part, fragment.id),
                }
            }
        }
        // As one text: some pre-tokenisers treat what is at its start in another way.
        let mut parts = PreTokenizedString::from(normalized.text);
        parts.split(|_, whole| cut(&whole, &normalized.fragments))?;
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut parts)?;
        }
        parts.tokenize(|part| self.model.tokenize(part.get()))?;
        Ok(parts
            .get_splits(OffsetReferential::Normalized, OffsetType::None)
            .into_iter()
            .flat_map(|(_, _, tokens)| tokens.iter().flatten().map(|token| token.id))
            .collect())
    }
}

/// Text after normalising, and the tokens that are known in it.
#[derive(Default)]
struct Normalized {
    text: String,
    fragments: Vec<Fragment>,
}

impl Normalized {
    fn push(&mut self, part: &str, id: Option<u32>) {
        let start = self.text.len();
        self.text.push_str(part);
        self.fragments.push(Fragment { range: start..self.text.len(), id });
    }
}

type Cut = Vec<(NormalizedString, Option<Vec<Token>>)>;

fn cut(text: &NormalizedString, fragments: &[Fragment]) -> Result<Cut> {
    let piece = |range: &Range<usize>| {
        let range = normalizer::Range::Normalized(range.clone());
        text.slice(range).ok_or("an added token was found in the middle of a character")
    };
    fragments
        .iter()
        .map(|Fragment { range, id }| {
            let token = |id| Token::new(id, String::new(), (0, range.len()));
            Ok((piece(range)?, id.map(|id| vec![token(id)])))
        })
        .collect()
}

/// What a BPE model is made of.
pub(super) struct BpeParts {
    pub(super) vocabulary: AHashMap<String, u32>,
    /// Pairs to join, in order of priority.
    pub(super) merges: Vec<(String, String)>,
    pub(super) unknown: Option<String>,
    pub(super) fuse_unknown: bool,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
}

impl BpeParts {
    /// # Errors
    /// [`ModelError::Invalid`], at `at`, when a merge joins, or makes, what is not a token.
    pub(super) fn build(self, path: &Path, at: At) -> std::result::Result<BPE, ModelError> {
        // The builder looks up each pair and its union, but takes for granted that no union is longer than the
        // longest token; that is all there is to check beforehand.
        let longest = self.vocabulary.keys().map(String::len).max().unwrap_or(0);
        for (index, (left, right)) in self.merges.iter().enumerate() {
            if left.len() + right.len() > longest {
                let found = format!("the pair {} {} as number {index}", quote(left), quote(right));
                let expected = "pairs whose union is a token";
                return Err(ModelError::invalid(path, at, found, expected));
            }
        }
        let mut builder = BPE::builder()
            .vocab_and_merges(self.vocabulary, self.merges)
            .fuse_unk(self.fuse_unknown)
            .byte_fallback(self.byte_fallback)
            .ignore_merges(self.ignore_merges);
        if let Some(unknown) = self.unknown {
            builder = builder.unk_token(unknown);
        }
        builder.build().map_err(|e| {
            let expected = "pairs of tokens whose union is a token";
            ModelError::invalid(path, at, quote(&e.to_string()), expected)
        })
    }
}
