//! Tokenizers from Hugging Face's `tokenizer.json`.
//!
//! The file is read into structures of our own, and only its normaliser and pre-tokeniser are handed to the
//! `tokenizers` crate as they are: reading the vocabulary here is several times faster than the crate's way through
//! a generic JSON value, and a hostile file meets our checks before it meets code that takes them for granted.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use ahash::AHashMap;
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{NormalizedString, Normalizer};

use super::added::{AddedToken, AddedTokens};
use super::pipeline::{BpeParts, Pipeline};
use super::special::{SpecialTokens, ends_generation_by_name};
use super::vocabulary::{TokenKind, Vocabulary, byte_level_bytes, byte_token};
use super::{Encoder, Tokenizer};
use crate::error::{At, ModelError, quote};

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

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<AddedTokenEntry>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
struct AddedTokenEntry {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(rename = "type")]
    model_type: Option<String>,
    #[serde(borrow, default)]
    vocab: Entries<'a>,
    #[serde(default)]
    merges: Vec<Merge>,
    unk_token: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// The vocabulary of a BPE model: an object from text to id. Other models write a list, whose entries are skipped.
#[derive(Default)]
struct Entries<'a>(Vec<(Cow<'a, str>, u32)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tokens to ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(text), id)) = map.next_entry()? {
                    entries.push((text, id));
                }
                Ok(Entries(entries))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                while list.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(Entries::default())
            }
        }
        deserializer.deserialize_any(EntriesVisitor)
    }
}

/// A string that is borrowed from the file where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A merge: two tokens, in a list or (older files) with a space between.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens, in a list or with one space between")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => {
                        Ok(Merge(left.to_owned(), right.to_owned()))
                    }
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                match (list.next_element()?, list.next_element()?, list.next_element::<String>()?) {
                    (Some(left), Some(right), None) => Ok(Merge(left, right)),
                    _ => Err(de::Error::invalid_length(2, &self)),
                }
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
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
    let normalizer: Option<NormalizerWrapper> =
        reader.stage("normalizer", normalizer, NORMALIZERS)?;
    let pre_tokenizer: Option<PreTokenizerWrapper> =
        reader.stage("pre_tokenizer", pre_tokenizer, PRE_TOKENIZERS)?;

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
    let vocabulary = reader.vocabulary(&model.vocab.0, &added_tokens, &decoder)?;

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

/// Stages of the `tokenizers` crate that are let through. Left out is what needs data of its own that only that
/// crate could check (`Precompiled`), and what language models do not use.
const NORMALIZERS: &[&str] = &[
    "Sequence",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "Strip",
    "StripAccents",
    "Replace",
    "Prepend",
    "Nmt",
];
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

/// Bytes of what a normaliser or decoder may put in place of a match.
const LONGEST_REPLACEMENT: usize = 64;

/// How tokens become text.
#[derive(Default)]
struct Decoder {
    /// Tokens are written in GPT-2's byte alphabet.
    byte_level: bool,
    /// Tokens such as `<0x0A>` are bytes.
    byte_fallback: bool,
    /// What is written in tokens, and the text that it stands for.
    replace: Vec<(String, String)>,
    strip_first_space: bool,
}

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

    /// A normaliser or pre-tokeniser, if every part of it is of a type in `allowed`.
    fn stage<T: DeserializeOwned>(
        &self,
        field: &str,
        value: Value,
        allowed: &[&str],
    ) -> Result<Option<T>, ModelError> {
        if value.is_null() {
            return Ok(None);
        }
        self.check_types(field, &value, allowed)?;
        serde_json::from_value(value)
            .map(Some)
            .map_err(|e| self.invalid(field, e.to_string(), "parameters that fit the type"))
    }

    fn check_types(&self, field: &str, value: &Value, allowed: &[&str]) -> Result<(), ModelError> {
        let kind = value.get("type").and_then(Value::as_str).unwrap_or("null");
        if !allowed.contains(&kind) {
            return Err(self.unsupported(field, kind, &format!("one of {}", allowed.join(", "))));
        }
        // What a stage puts into text must not grow it out of proportion; and `tokenizers` loses count of its
        // offsets, and then panics, if nothing is prepended.
        for (parameter, shortest) in [("content", 0), ("prepend", 1)] {
            let Some(text) = value.get(parameter).and_then(Value::as_str) else { continue };
            if !(shortest..=LONGEST_REPLACEMENT).contains(&text.len()) {
                let found = format!("{parameter} of {} bytes", text.len());
                let expected = format!("{shortest} to {LONGEST_REPLACEMENT}");
                return Err(self.invalid(field, found, &expected));
            }
        }
        let parts =
            ["normalizers", "pretokenizers"].iter().find_map(|list| value.get(list)?.as_array());
        for part in parts.into_iter().flatten() {
            self.check_types(field, part, allowed)?;
        }
        Ok(())
    }

    fn decoder(&self, value: &Value) -> Result<Decoder, ModelError> {
        let mut decoder = Decoder::default();
        self.add_decoder(value, &mut decoder)?;
        Ok(decoder)
    }

    fn add_decoder(&self, value: &Value, decoder: &mut Decoder) -> Result<(), ModelError> {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        match value.get("type").and_then(Value::as_str).unwrap_or("null") {
            "ByteLevel" => decoder.byte_level = true,
            "ByteFallback" => decoder.byte_fallback = true,
            "Fuse" => {}
            "Metaspace" => {
                let mark = text(value.get("replacement")).unwrap_or_default();
                decoder.replace.push((mark, " ".into()));
                let scheme = value.get("prepend_scheme").and_then(Value::as_str);
                let legacy = value.get("add_prefix_space").and_then(Value::as_bool);
                decoder.strip_first_space =
                    scheme.map_or(legacy != Some(false), |scheme| scheme != "never");
            }
            "Replace" => {
                let pattern = text(value.get("pattern").and_then(|p| p.get("String")));
                let (Some(pattern), Some(content)) = (pattern, text(value.get("content"))) else {
                    return Err(self.unsupported("decoder", "Replace of a pattern", "of a string"));
                };
                decoder.replace.push((pattern, content));
            }
            "Strip" => {
                let content = value.get("content").and_then(Value::as_str);
                let count = |field| value.get(field).and_then(Value::as_u64);
                if (content, count("start"), count("stop")) != (Some(" "), Some(1), Some(0)) {
                    let found = "Strip of something else";
                    return Err(self.unsupported("decoder", found, "of one space at the start"));
                }
                decoder.strip_first_space = true;
            }
            "Sequence" => {
                for part in value.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                    if part.get("type").and_then(Value::as_str) == Some("Sequence") {
                        return Err(self.unsupported(
                            "decoder",
                            "Sequence in a Sequence",
                            "one level",
                        ));
                    }
                    self.add_decoder(part, decoder)?;
                }
            }
            other => {
                let expected =
                    "ByteLevel, Metaspace, or a Sequence of Replace, ByteFallback, Fuse and Strip";
                return Err(self.unsupported("decoder", other, expected));
            }
        }
        for (pattern, content) in &decoder.replace {
            if pattern.is_empty() || content.len() > LONGEST_REPLACEMENT {
                let found =
                    format!("a replacement of {} by {} bytes", quote(pattern), content.len());
                return Err(self.invalid("decoder", found, "a pattern and a short replacement"));
            }
        }
        Ok(())
    }

    fn vocabulary(
        &self,
        entries: &[(Cow<'_, str>, u32)],
        added: &[AddedTokenEntry],
        decoder: &Decoder,
    ) -> Result<Vocabulary, ModelError> {
        let mut seen: AHashMap<u32, &str> = AHashMap::with_capacity(added.len());
        let mut tokens = Vec::with_capacity(entries.len() + added.len());
        for token in added {
            let kind = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
            tokens.push((token.id, token.content.clone().into_bytes(), kind));
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
        normalizer: Option<&NormalizerWrapper>,
    ) -> Result<AddedTokens, ModelError> {
        let mut list = Vec::with_capacity(tokens.len());
        for token in tokens {
            let AddedTokenEntry { id, content, single_word, lstrip, rstrip, special, .. } = token;
            let mut normalized = NormalizedString::from(content);
            if let Some(normalizer) = normalizer {
                normalizer.normalize(&mut normalized).map_err(|e| {
                    self.invalid("added_tokens", e.to_string(), "contents that normalise")
                })?;
            }
            let content = normalized.get().to_owned();
            list.push(AddedToken { id, content, special, lstrip, rstrip, single_word });
        }
        AddedTokens::new(list)
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

impl Decoder {
    fn text(&self, token: &str) -> Vec<u8> {
        if self.byte_level {
            return byte_level_bytes(token);
        }
        let mut text = Cow::Borrowed(token);
        for (pattern, content) in &self.replace {
            if text.contains(pattern) {
                text = Cow::Owned(text.replace(pattern, content));
            }
        }
        text.into_owned().into_bytes()
    }
}
