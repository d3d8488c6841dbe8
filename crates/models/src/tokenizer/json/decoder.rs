//! From tokens back to text: the decoders of `tokenizer.json`, as a rule for one token at a time.

use std::borrow::Cow;

use serde_json::Value;

use super::{LONGEST_REPLACEMENT, Reader};
use crate::error::{ModelError, quote};
use crate::tokenizer::vocabulary::byte_level_bytes;

/// How tokens become text.
#[derive(Default)]
pub(super) struct Decoder {
    /// Tokens are written in GPT-2's byte alphabet.
    pub(super) byte_level: bool,
    /// Tokens such as `<0x0A>` are bytes.
    pub(super) byte_fallback: bool,
    /// What is written in tokens, and the text that it stands for.
    pub(super) replace: Vec<(String, String)>,
    pub(super) strip_first_space: bool,
}

impl Reader<'_> {
    pub(super) fn decoder(&self, value: &Value) -> Result<Decoder, ModelError> {
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
}

impl Decoder {
    /// What a token decodes to.
    pub(super) fn text(&self, token: &str) -> Vec<u8> {
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
