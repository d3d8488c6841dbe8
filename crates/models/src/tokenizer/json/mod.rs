//! Tokenizers from Hugging Face's `tokenizer.json`.
//!
//! The file is read into structures of our own, and only its pre-tokeniser is handed to the `tokenizers` crate as it
//! is: reading the vocabulary here is several times faster than the crate's way through a generic JSON value, and a
//! hostile file meets our checks before it meets code that takes them for granted.

mod decoder;
mod file;

use std::borrow::Cow;
use std::path::Path;

use ahash::AHashMap;
use serde_json::Value;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::utils::SysRegex;

use super::added::{AddedToken, AddedTokens};
use super::normalizer::Normalizer;
use super::pipeline::{BpeParts, Pipeline};
use super::special::{SpecialTokens, ends_generation_by_name};
use super::vocabulary::{TokenKind, Vocabulary, byte_token};
use super::{Encoder, Tokenizer};
use crate::error::{At, ModelError, quote};
use decoder::Decoder;
use file::{AddedTokenEntry, File, Merge, Model};

/// What the files beside `tokenizer.json` say about tokens.
#[derive(Debug, Default)]
pub(crate) struct HuggingFaceTokens {
    pub(crate) bos_id: Option<u32>,
    pub(crate) eos_ids: Vec<u32>,
    /// BOS and EOS by text (`tokenizer_config.json`).
    pub(crate) bos_text: Option<String>,
    pub(crate) eos_text: Option<String>,
    pub(crate) add_bos: Option<bool>,
}

/// The tokenizer that the text of `tokenizer.json`, and the files beside it, describe.
pub(crate) fn from_json(
    path: &Path,
    text: &str,
    beside: &HuggingFaceTokens,
) -> Result<Tokenizer, ModelError> {
    let file: File<'_> = serde_json::from_str(text).map_err(|e| {
        ModelError::invalid(path, At::File, e.to_string(), "a tokenizer in Hugging Face's format")
    })?;
    let reader = Reader { path };
    let File { added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model } = file;
    reader.check_model(&model)?;
    let decoder = reader.decoder(&decoder)?;
    let normalizer = match normalizer.is_null() {
        true => None,
        false => Some(reader.normalizer(&normalizer, 0)?),
    };
    let pre_tokenizer = reader.pre_tokenizer(pre_tokenizer)?;

    let mut ids = AHashMap::with_capacity(model.vocab.0.len());
    for (token, id) in &model.vocab.0 {
        if ids.insert(token.clone().into_owned(), *id).is_some() {
            let at = At::Field("model.vocab".into());
            return Err(ModelError::invalid(path, at, quote(token), "every token once"));
        }
    }
    for token in &added_tokens {
        if let Some(&id) = ids.get(&token.content).filter(|&&id| id != token.id) {
            let (found, expected) =
                (format!("id {}", token.id), format!("{id}, as in model.vocab"));
            let at = At::Field(format!("added_tokens, {}", quote(&token.content)));
            return Err(ModelError::invalid(path, at, found, expected));
        }
    }
    let special = reader.special(&post_processor, &added_tokens, &ids, beside)?;
    let vocabulary =
        reader.vocabulary(&model.vocab.0, &added_tokens, normalizer.as_ref(), &decoder)?;

    let (normalized, plain): (Vec<_>, Vec<_>) =
        added_tokens.into_iter().partition(|token| token.normalized && normalizer.is_some());
    let normalized_tokens = reader.added(normalized, normalizer.as_ref())?;
    let added = reader.added(plain, None)?;
    let model = BpeParts {
        vocabulary: ids,
        merges: model.merges.into_iter().map(|Merge(left, right)| (left, right)).collect(),
        unknown: model.unk_token,
        fuse_unknown: model.fuse_unk,
        byte_fallback: model.byte_fallback,
        ignore_merges: model.ignore_merges,
    }
    .build(path, At::Field("model.merges".into()))?;
    let pipeline = Pipeline { normalizer, pre_tokenizer, model, normalized_tokens };
    Ok(Tokenizer {
        encoder: Encoder::Pipeline(Box::new(pipeline)),
        added,
        vocabulary: vocabulary.into(),
        special: special.tokens,
        prefix: special.prefix,
        suffix: special.suffix,
        strip_first_space: decoder.strip_first_space,
    })
}

/// Pre-tokenisers of the `tokenizers` crate that are let through; language models use no others.
const PRE_TOKENIZERS: &[&str] = &[
    "Sequence",
    "ByteLevel",
    "Split",
    "Metaspace",
    "Digits",
    "Punctuation",
    "Whitespace",
    "WhitespaceSplit",
];
/// How deep normalisers may nest.
const MAX_NORMALIZER_DEPTH: usize = 4;
/// Bytes of what a normaliser or decoder may put in place of a match.
const LONGEST_REPLACEMENT: usize = 64;

struct Roles {
    tokens: SpecialTokens,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn unsupported(&self, field: &str, found: &str, expected: &str) -> ModelError {
        ModelError::unsupported(self.path, At::Field(field.into()), quote(found), expected)
    }

    fn invalid(&self, field: &str, found: impl Into<String>, expected: &str) -> ModelError {
        ModelError::invalid(self.path, At::Field(field.into()), found, expected)
    }

    fn check_model(&self, model: &Model<'_>) -> Result<(), ModelError> {
        // Files from before the field existed are BPE if they have merges.
        match model.model_type.as_deref() {
            Some("BPE") => {}
            None if !model.merges.is_empty() => {}
            other => {
                return Err(self.unsupported("model.type", other.unwrap_or("null"), "`BPE`"));
            }
        }
        if model.vocab.0.is_empty() {
            return Err(self.invalid("model.vocab", "no tokens", "at least one"));
        }
        for (field, affix) in [
            ("model.continuing_subword_prefix", &model.continuing_subword_prefix),
            ("model.end_of_word_suffix", &model.end_of_word_suffix),
        ] {
            if let Some(affix) = affix.as_deref().filter(|affix| !affix.is_empty()) {
                return Err(self.unsupported(field, affix, "none"));
            }
        }
        if let Some(dropout) = model.dropout.filter(|&dropout| dropout != 0.0) {
            return Err(self.unsupported("model.dropout", &dropout.to_string(), "none"));
        }
        Ok(())
    }

    fn normalizer(&self, value: &Value, depth: usize) -> Result<Normalizer, ModelError> {
        const FIELD: &str = "normalizer";
        let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(true);
        let inserted = |name: &str| {
            let text = value.get(name).and_then(Value::as_str);
            // What is put into text must not grow it out of proportion.
            text.filter(|text| text.len() <= LONGEST_REPLACEMENT).map(str::to_owned).ok_or_else(
                || {
                    let found = format!("{name} of {} bytes", text.map_or(0, str::len));
                    self.invalid(
                        FIELD,
                        found,
                        &format!("a text of at most {LONGEST_REPLACEMENT} bytes"),
                    )
                },
            )
        };
        Ok(match value.get("type").and_then(Value::as_str).unwrap_or("null") {
            "NFC" => Normalizer::Nfc,
            "NFD" => Normalizer::Nfd,
            "NFKC" => Normalizer::Nfkc,
            "NFKD" => Normalizer::Nfkd,
            "Lowercase" => Normalizer::Lowercase,
            "Strip" => Normalizer::Strip { left: flag("strip_left"), right: flag("strip_right") },
            "Prepend" => Normalizer::Prepend(inserted("prepend")?),
            "Replace" => {
                let content = inserted("content")?;
                let pattern = |kind: &str| value.get("pattern")?.get(kind)?.as_str();
                match (pattern("String"), pattern("Regex")) {
                    (Some(pattern), _) if !pattern.is_empty() => {
                        Normalizer::ReplaceText { pattern: pattern.to_owned(), content }
                    }
                    (None, Some(pattern)) => {
                        let compiled = SysRegex::new(pattern).map_err(|e| {
                            self.invalid(FIELD, quote(&e.to_string()), "a regular expression")
                        })?;
                        Normalizer::ReplaceMatches { pattern: compiled, content }
                    }
                    _ => return Err(self.invalid(FIELD, "Replace of nothing", "a pattern")),
                }
            }
            "Sequence" if depth < MAX_NORMALIZER_DEPTH => {
                let list = value.get("normalizers").and_then(Value::as_array);
                let parts = list.into_iter().flatten().map(|part| self.normalizer(part, depth + 1));
                Normalizer::Sequence(parts.collect::<Result<_, _>>()?)
            }
            other => {
                let expected =
                    "NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, Replace or a Sequence";
                return Err(self.unsupported(FIELD, other, expected));
            }
        })
    }

    fn pre_tokenizer(&self, value: Value) -> Result<Option<PreTokenizerWrapper>, ModelError> {
        const FIELD: &str = "pre_tokenizer";
        if value.is_null() {
            return Ok(None);
        }
        self.check_types(FIELD, &value, PRE_TOKENIZERS)?;
        serde_json::from_value(value)
            .map(Some)
            .map_err(|e| self.invalid(FIELD, quote(&e.to_string()), "parameters that fit the type"))
    }

    fn check_types(&self, field: &str, value: &Value, allowed: &[&str]) -> Result<(), ModelError> {
        let kind = value.get("type").and_then(Value::as_str).unwrap_or("null");
        if !allowed.contains(&kind) {
            return Err(self.unsupported(field, kind, &format!("one of {}", allowed.join(", "))));
        }
        for part in value.get("pretokenizers").and_then(Value::as_array).into_iter().flatten() {
            self.check_types(field, part, allowed)?;
        }
        Ok(())
    }

    fn vocabulary(
        &self,
        entries: &[(Cow<'_, str>, u32)],
        added: &[AddedTokenEntry],
        normalizer: Option<&Normalizer>,
        decoder: &Decoder,
    ) -> Result<Vocabulary, ModelError> {
        let mut seen: AHashMap<u32, &str> = AHashMap::with_capacity(added.len());
        let mut tokens = Vec::with_capacity(entries.len() + added.len());
        for token in added {
            let (text, kind) = match (token.special, normalizer) {
                (true, _) => (token.content.clone(), TokenKind::Control),
                (false, Some(normalizer)) if token.normalized => {
                    (normalizer.apply(token.content.clone()), TokenKind::UserDefined)
                }
                (false, _) => (token.content.clone(), TokenKind::UserDefined),
            };
            // Markers are shown as they are written; text goes the way of all text, but is never in byte characters.
            let bytes = match kind {
                TokenKind::UserDefined if !decoder.byte_level => decoder.text(&text),
                _ => text.into_bytes(),
            };
            tokens.push((token.id, bytes, kind));
            if seen.insert(token.id, &token.content).is_some() {
                let at = At::Token(token.id.into());
                let found = "two added tokens with this id";
                return Err(ModelError::invalid(self.path, at, found, "one token per id"));
            }
        }
        for (text, id) in entries {
            // The same token may be in both lists.
            if seen.get(id).is_some_and(|content| content == text) {
                continue;
            }
            let (bytes, kind) = match byte_token(text).filter(|_| decoder.byte_fallback) {
                Some(byte) => (vec![byte], TokenKind::Byte),
                None => (decoder.text(text), TokenKind::Normal),
            };
            tokens.push((*id, bytes, kind));
        }
        Vocabulary::from_unordered(self.path, tokens)
    }

    fn added(
        &self,
        tokens: Vec<AddedTokenEntry>,
        normalizer: Option<&Normalizer>,
    ) -> Result<AddedTokens, ModelError> {
        let tokens = tokens.into_iter().map(|token| {
            let AddedTokenEntry { id, content, single_word, lstrip, rstrip, special, .. } = token;
            let content = match normalizer {
                None => content,
                Some(normalizer) => normalizer.apply(content),
            };
            AddedToken { id, content, special, lstrip, rstrip, single_word }
        });
        AddedTokens::new(tokens.collect())
            .map_err(|e| self.invalid("added_tokens", e.to_string(), "fewer or shorter tokens"))
    }

    /// What goes around a text (`post_processor`), and which tokens have a role.
    fn special(
        &self,
        post_processor: &Value,
        added: &[AddedTokenEntry],
        ids: &AHashMap<String, u32>,
        beside: &HuggingFaceTokens,
    ) -> Result<Roles, ModelError> {
        let id_of = |text: &str| {
            added
                .iter()
                .find(|token| token.content == text)
                .map(|token| token.id)
                .or_else(|| ids.get(text).copied())
        };
        let (mut prefix, suffix) = self.around_text(post_processor, &id_of)?;
        let bos = beside.bos_text.as_deref().and_then(id_of).or(beside.bos_id);
        match (beside.add_bos, bos) {
            (Some(true), Some(bos)) if prefix.is_empty() => prefix.push(bos),
            (Some(false), Some(bos)) => prefix.retain(|&id| id != bos),
            _ => {}
        }
        let eos_text = beside.eos_text.as_deref().and_then(id_of);
        let mut tokens = SpecialTokens {
            bos,
            eos: eos_text.or(beside.eos_ids.first().copied()),
            end_of_generation: Vec::new(),
            add_bos: bos.is_some_and(|bos| prefix.contains(&bos)),
        };
        tokens.end_with(tokens.eos);
        tokens.end_with(beside.eos_ids.iter().copied());
        let by_name = added.iter().filter(|token| ends_generation_by_name(&token.content));
        tokens.end_with(by_name.map(|token| token.id));
        Ok(Roles { tokens, prefix, suffix })
    }

    fn around_text(
        &self,
        post_processor: &Value,
        id_of: &impl Fn(&str) -> Option<u32>,
    ) -> Result<(Vec<u32>, Vec<u32>), ModelError> {
        const FIELD: &str = "post_processor";
        let processors = match post_processor.get("type").and_then(Value::as_str) {
            Some("Sequence") => match post_processor.get("processors").and_then(Value::as_array) {
                Some(list) => list.as_slice(),
                None => return Err(self.invalid(FIELD, "a Sequence of nothing", "processors")),
            },
            _ => std::slice::from_ref(post_processor),
        };
        let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
        for processor in processors {
            let kind = processor.get("type").and_then(Value::as_str);
            match kind {
                // This one only moves offsets.
                Some("ByteLevel") => {}
                None if processor.is_null() => {}
                Some("TemplateProcessing") => {
                    let single = processor.get("single").and_then(Value::as_array);
                    let mut after_text = false;
                    for part in single.into_iter().flatten() {
                        if part.get("Sequence").is_some() {
                            after_text = true;
                            continue;
                        }
                        let token = part.get("SpecialToken").and_then(|t| t.get("id")?.as_str());
                        let id = token.and_then(id_of).ok_or_else(|| {
                            let found = quote(token.unwrap_or("something else"));
                            self.invalid(FIELD, found, "a text and tokens of the vocabulary")
                        })?;
                        if after_text { &mut suffix } else { &mut prefix }.push(id);
                    }
                }
                other => {
                    let expected = "ByteLevel, TemplateProcessing or a Sequence of them";
                    return Err(self.unsupported(FIELD, other.unwrap_or("null"), expected));
                }
            }
        }
        Ok((prefix, suffix))
    }
}
