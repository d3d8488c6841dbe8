//! Tokenizers from GGUF metadata (`tokenizer.ggml.*`).

use ahash::AHashMap;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::added::{AddedToken, AddedTokens};
use super::normalizer::Normalizer;
use super::pipeline::{BpeParts, Pipeline};
use super::pre_tokenizers::{self, PreTokenizer};
use super::sentencepiece::SentencePiece;
use super::special::{SpecialTokens, ends_generation_by_name};
use super::vocabulary::{
    SPACE_MARK, TokenKind, Vocabulary, byte_level_bytes, byte_token, unmarked,
};
use super::{Encoder, Tokenizer};
use crate::error::{At, ModelError};
use crate::gguf::Metadata;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// The tokenizer that the metadata describe.
pub(crate) fn from_gguf(metadata: &Metadata) -> Result<Tokenizer, ModelError> {
    let model =
        metadata.string(MODEL)?.ok_or_else(|| metadata.missing(MODEL, "a tokenizer model"))?;
    match model {
        "gpt2" => byte_level_bpe(metadata),
        "llama" => sentencepiece(metadata),
        "gemma4" => marked_bpe(metadata),
        _ => Err(metadata.unsupported(
            MODEL,
            "`gpt2` (byte-level BPE), `llama` (SentencePiece) or `gemma4` (BPE over marked spaces)",
        )),
    }
}

/// The token list, checked: UTF-8, no token twice, a type for each.
struct TokenList<'a> {
    texts: Vec<&'a str>,
    kinds: Vec<TokenKind>,
}

impl<'a> TokenList<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, ModelError> {
        let list =
            metadata.strings(TOKENS)?.ok_or_else(|| metadata.missing(TOKENS, "the vocabulary"))?;
        if list.len() == 0 {
            return Err(metadata.unexpected(TOKENS, "at least one token"));
        }
        let mut texts = Vec::with_capacity(list.len());
        for (index, token) in list.enumerate() {
            texts.push(
                std::str::from_utf8(token)
                    .map_err(|_| metadata.bad_element(TOKENS, index, token, "a token in UTF-8"))?,
            );
        }
        let mut kinds = vec![TokenKind::Normal; texts.len()];
        if let Some(types) = metadata.numbers(TYPES)? {
            if types.len() != texts.len() {
                let expected = format!("a type for each of the {} tokens", texts.len());
                return Err(metadata.unexpected(TYPES, expected));
            }
            for (kind, number) in kinds.iter_mut().zip(types) {
                // The numbers are SentencePiece's (`ModelProto.SentencePiece.Type`); others mean nothing in particular.
                *kind = match number {
                    2.0 => TokenKind::Unknown,
                    3.0 => TokenKind::Control,
                    4.0 => TokenKind::UserDefined,
                    5.0 => TokenKind::Unused,
                    6.0 => TokenKind::Byte,
                    _ => TokenKind::Normal,
                };
            }
        }
        // Some converters forget to mark these, and a marker that user text can produce would end a turn. Others of
        // the names, such as `</s>`, can be ordinary text.
        for (kind, text) in kinds.iter_mut().zip(&texts) {
            if text.starts_with("<|") && ends_generation_by_name(text) {
                *kind = TokenKind::Control;
            }
        }
        Ok(Self { texts, kinds })
    }

    /// Ids by text, of the tokens that text can become.
    fn ids_by_text<V>(
        &self,
        metadata: &Metadata,
        value: impl Fn(u32) -> V,
    ) -> Result<AHashMap<String, V>, ModelError> {
        let mut ids = AHashMap::with_capacity(self.texts.len());
        for (id, (&text, &kind)) in self.texts.iter().zip(&self.kinds).enumerate() {
            if matches!(kind, TokenKind::Control | TokenKind::Unknown) || text.is_empty() {
                continue;
            }
            if ids.insert(text.to_owned(), value(id as u32)).is_some() {
                let expected = "every token once";
                return Err(metadata.bad_element(TOKENS, id, text.as_bytes(), expected));
            }
        }
        Ok(ids)
    }

    fn added(&self, metadata: &Metadata) -> Result<AddedTokens, ModelError> {
        let tokens =
            self.texts.iter().zip(&self.kinds).enumerate().filter_map(|(id, (&text, kind))| {
                let special = match kind {
                    TokenKind::Control | TokenKind::Unknown => true,
                    TokenKind::UserDefined => false,
                    TokenKind::Normal | TokenKind::Byte | TokenKind::Unused => return None,
                };
                Some(AddedToken::plain(id as u32, text, special))
            });
        AddedTokens::new(tokens.collect()).map_err(|e| {
            let (path, found) = (metadata.path(), e.to_string());
            ModelError::invalid(path, At::key(TOKENS), found, "fewer special tokens")
        })
    }

    /// What each token decodes to; `normal` says it of those that are text.
    fn vocabulary(&self, normal: impl Fn(&str) -> Vec<u8>) -> Vocabulary {
        let mut vocabulary = Vocabulary::default();
        for (&text, &kind) in self.texts.iter().zip(&self.kinds) {
            match (kind, byte_token(text)) {
                (TokenKind::Byte, Some(byte)) => vocabulary.push(&[byte], kind),
                (TokenKind::Normal | TokenKind::Byte | TokenKind::Unused, _) => {
                    vocabulary.push(&normal(text), kind);
                }
                (TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown, _) => {
                    vocabulary.push(text.as_bytes(), kind);
                }
            }
        }
        vocabulary
    }

    /// The tokens with a role. The defaults are those that hold where a file says nothing.
    fn special(
        &self,
        metadata: &Metadata,
        default_bos: Option<u32>,
        default_eos: Option<u32>,
        add_bos: bool,
    ) -> Result<SpecialTokens, ModelError> {
        let token = |role: &str| -> Result<Option<u32>, ModelError> {
            let key = format!("tokenizer.ggml.{role}_token_id");
            match metadata.integer::<u32>(&key)? {
                Some(id) if id as usize >= self.texts.len() => {
                    let expected = format!("the id of one of the {} tokens", self.texts.len());
                    Err(metadata.unexpected(&key, expected))
                }
                id => Ok(id),
            }
        };
        let known = |id: &u32| (*id as usize) < self.texts.len();
        let mut special = SpecialTokens {
            bos: token("bos")?.or(default_bos.filter(known)),
            eos: token("eos")?.or(default_eos.filter(known)),
            end_of_generation: Vec::new(),
            add_bos: metadata.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos),
        };
        special.end_with(special.eos);
        for role in ["eot", "eom"] {
            special.end_with(token(role)?);
        }
        let by_name = self.texts.iter().zip(&self.kinds).enumerate().filter(|(_, (text, kind))| {
            matches!(kind, TokenKind::Control | TokenKind::UserDefined)
                && ends_generation_by_name(text)
        });
        special.end_with(by_name.map(|(id, _)| id as u32));
        special.add_bos &= special.bos.is_some();
        Ok(special)
    }

    fn assemble(
        &self,
        metadata: &Metadata,
        encoder: Encoder,
        vocabulary: Vocabulary,
        special: SpecialTokens,
        strip_first_space: bool,
    ) -> Result<Tokenizer, ModelError> {
        let add_eos = metadata.boolean("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        Ok(Tokenizer {
            encoder,
            added: self.added(metadata)?,
            vocabulary: vocabulary.into(),
            prefix: special.bos.filter(|_| special.add_bos).into_iter().collect(),
            suffix: special.eos.filter(|_| add_eos).into_iter().collect(),
            special,
            strip_first_space,
        })
    }
}

fn byte_level_bpe(metadata: &Metadata) -> Result<Tokenizer, ModelError> {
    let name = metadata.string(PRE)?.unwrap_or("default");
    let Some(words) = pre_tokenizers::find(name) else {
        return Err(metadata.unsupported(PRE, pre_tokenizers::FAMILIES));
    };
    let tokens = TokenList::read(metadata)?;
    let model = BpeParts {
        vocabulary: tokens.ids_by_text(metadata, |id| id)?,
        merges: merges(metadata)?,
        unknown: None,
        fuse_unknown: false,
        byte_fallback: false,
        ignore_merges: words.ignore_merges,
    }
    .build(metadata.path(), At::key(MERGES))?;
    let pipeline = Pipeline {
        normalizer: None,
        pre_tokenizer: Some(cut_words(metadata, &words)?),
        model,
        normalized_tokens: AddedTokens::default(),
    };
    let vocabulary = tokens.vocabulary(byte_level_bytes);
    let special = tokens.special(metadata, None, None, words.add_bos)?;
    tokens.assemble(metadata, Encoder::Pipeline(Box::new(pipeline)), vocabulary, special, false)
}

fn cut_words(metadata: &Metadata, words: &PreTokenizer) -> Result<PreTokenizerWrapper, ModelError> {
    let mut stages = Vec::with_capacity(words.patterns.len() + 1);
    for pattern in words.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| metadata.unexpected(PRE, e.to_string()))?;
        stages.push(PreTokenizerWrapper::Split(split));
    }
    stages.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
    Ok(PreTokenizerWrapper::Sequence(Sequence::new(stages)))
}

/// BPE over text with marked spaces instead of byte substitutes, cut only at line ends (Gemma 4).
fn marked_bpe(metadata: &Metadata) -> Result<Tokenizer, ModelError> {
    let tokens = TokenList::read(metadata)?;
    let model = BpeParts {
        vocabulary: tokens.ids_by_text(metadata, |id| id)?,
        merges: merges(metadata)?,
        unknown: None,
        fuse_unknown: false,
        byte_fallback: true,
        ignore_merges: false,
    }
    .build(metadata.path(), At::key(MERGES))?;
    let bad_stage = |e: tokenizers::Error| metadata.unexpected(PRE, e.to_string());
    let lines = SplitPattern::Regex("[^\n]+|[\n]+".into());
    let lines = Split::new(lines, SplitDelimiterBehavior::Isolated, false).map_err(bad_stage)?;
    let pipeline = Pipeline {
        normalizer: Some(Normalizer::ReplaceText {
            pattern: " ".into(),
            content: SPACE_MARK.into(),
        }),
        pre_tokenizer: Some(PreTokenizerWrapper::Split(lines)),
        model,
        normalized_tokens: AddedTokens::default(),
    };
    let vocabulary = tokens.vocabulary(unmarked);
    let special = tokens.special(metadata, None, None, true)?;
    tokens.assemble(metadata, Encoder::Pipeline(Box::new(pipeline)), vocabulary, special, false)
}

fn merges(metadata: &Metadata) -> Result<Vec<(String, String)>, ModelError> {
    let list =
        metadata.strings(MERGES)?.ok_or_else(|| metadata.missing(MERGES, "the merges of BPE"))?;
    let mut merges = Vec::with_capacity(list.len());
    for (index, merge) in list.enumerate() {
        // The first character belongs to the left token even if it is a space.
        let parts = std::str::from_utf8(merge).ok().and_then(|text| {
            let first = text.chars().next()?.len_utf8();
            let space = first + text[first..].find(' ')?;
            Some((text[..space].to_owned(), text[space + 1..].to_owned()))
        });
        let expected = "two tokens with a space between, in UTF-8";
        merges.push(parts.ok_or_else(|| metadata.bad_element(MERGES, index, merge, expected))?);
    }
    Ok(merges)
}

fn sentencepiece(metadata: &Metadata) -> Result<Tokenizer, ModelError> {
    let tokens = TokenList::read(metadata)?;
    let scores =
        metadata.numbers(SCORES)?.ok_or_else(|| metadata.missing(SCORES, "the pieces' scores"))?;
    if scores.len() != tokens.texts.len() {
        let expected = format!("a score for each of the {} tokens", tokens.texts.len());
        return Err(metadata.unexpected(SCORES, expected));
    }
    let mut model = SentencePiece {
        pieces: AHashMap::with_capacity(tokens.texts.len()),
        byte_tokens: Box::new([None; 256]),
        unknown: None,
        add_space_prefix: metadata.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
    };
    for (id, ((&text, &kind), score)) in
        tokens.texts.iter().zip(&tokens.kinds).zip(scores).enumerate()
    {
        let piece = (id as u32, score as f32);
        match kind {
            TokenKind::Normal | TokenKind::UserDefined => {
                if !text.is_empty() && model.pieces.insert(text.into(), piece).is_some() {
                    return Err(metadata.bad_element(
                        TOKENS,
                        id,
                        text.as_bytes(),
                        "every token once",
                    ));
                }
            }
            TokenKind::Byte => {
                let byte = byte_token(text).ok_or_else(|| {
                    metadata.bad_element(
                        TOKENS,
                        id,
                        text.as_bytes(),
                        "a byte token such as `<0x0A>`",
                    )
                })?;
                model.byte_tokens[usize::from(byte)] = Some(id as u32);
            }
            TokenKind::Unknown => model.unknown = Some(id as u32),
            TokenKind::Control | TokenKind::Unused => {}
        }
    }
    let strip_first_space = model.add_space_prefix;
    let vocabulary = tokens.vocabulary(unmarked);
    let special = tokens.special(metadata, Some(1), Some(2), true)?;
    tokens.assemble(metadata, Encoder::SentencePiece(model), vocabulary, special, strip_first_space)
}
