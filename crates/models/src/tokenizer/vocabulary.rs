//! What every token id stands for, in bytes.

use crate::error::{At, ModelError};
use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

/// How a token takes part in encoding and decoding (the token types of GGUF and SentencePiece).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// A marker such as `<|im_end|>`: no text of its own, never made from user text.
    Control,
    /// Text that is always this one token.
    UserDefined,
    /// One byte, for what no piece covers.
    Byte,
    /// Stands for what the vocabulary cannot say.
    Unknown,
    /// An id without a meaning.
    Unused,
}

/// The bytes and kind of each token id.
#[derive(Debug, Default)]
pub struct Vocabulary {
    /// All tokens' bytes, one after the other: one allocation instead of one per token.
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
}

impl Vocabulary {
    /// How many ids there are.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// The bytes that `id` decodes to; not necessarily whole characters. `None` for an id beyond the vocabulary
    /// (models may have more embeddings than tokens).
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index)? as usize;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        Some(&self.bytes[start..end])
    }

    /// The kind of `id`.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    pub(super) fn push(&mut self, bytes: &[u8], kind: TokenKind) {
        self.bytes.extend_from_slice(bytes);
        // A vocabulary's text comes from a file that was mapped or read whole; 4 GiB of it cannot be meant.
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        self.kinds.push(kind);
    }

    /// A vocabulary from tokens in any order of ids. Ids that no token has are [`TokenKind::Unused`].
    pub(super) fn from_unordered(
        path: &Path,
        mut tokens: Vec<(u32, Vec<u8>, TokenKind)>,
    ) -> Result<Self, ModelError> {
        tokens.sort_unstable_by_key(|token| token.0);
        // Real vocabularies have few gaps; a single huge id must not cost memory that the file's size does not justify.
        let limit = 4 * tokens.len() as u64 + 1024;
        let mut vocabulary = Self::default();
        for (id, bytes, kind) in &tokens {
            let at = At::Token(u64::from(*id));
            if u64::from(*id) >= limit {
                let found = format!("an id far beyond the {} tokens", tokens.len());
                return Err(ModelError::invalid(path, at, found, format!("ids below {limit}")));
            }
            if (*id as usize) < vocabulary.len() {
                let found = "two tokens with this id";
                return Err(ModelError::invalid(path, at, found, "one token per id"));
            }
            while vocabulary.len() < *id as usize {
                vocabulary.push(&[], TokenKind::Unused);
            }
            vocabulary.push(bytes, *kind);
        }
        Ok(vocabulary)
    }
}

/// The bytes that a token of a byte-level BPE stands for. Characters outside the byte alphabet (in tokens that were
/// added later) stand for themselves.
pub(super) fn byte_level_bytes(token: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len());
    for c in token.chars() {
        match byte_level_alphabet().get(&c) {
            Some(byte) => bytes.push(*byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// GPT-2's alphabet: the character that stands for each byte. Printable Latin-1 characters stand for themselves,
/// the other 68 bytes take the characters from U+0100 on (Radford et al. 2019, `bytes_to_unicode`).
fn byte_level_alphabet() -> &'static HashMap<char, u8> {
    static ALPHABET: OnceLock<HashMap<char, u8>> = OnceLock::new();
    ALPHABET.get_or_init(|| {
        let mut next_substitute = 0x100u32;
        (0..=255u8)
            .map(|byte| match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => (char::from(byte), byte),
                _ => {
                    let substitute = char::from_u32(next_substitute).unwrap_or('\0');
                    next_substitute += 1;
                    (substitute, byte)
                }
            })
            .collect()
    })
}

/// The byte of a byte-fallback token such as `<0x0A>`.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(hex, 16).ok())?
}

/// The mark that SentencePiece writes for a space.
pub(super) const SPACE_MARK: &str = "\u{2581}";

/// The text of a SentencePiece piece: its marks as spaces.
pub(super) fn unmarked(piece: &str) -> Vec<u8> {
    piece.replace(SPACE_MARK, " ").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_covers_every_byte_once() {
        let mut bytes: Vec<u8> = byte_level_alphabet().values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        // The two that everyone knows from token lists.
        assert_eq!(byte_level_bytes("ĠtheĊ"), b" the\n");
    }

    #[test]
    fn byte_tokens_are_read_and_lookalikes_are_not() {
        assert_eq!(byte_token("<0x0A>"), Some(b'\n'));
        assert_eq!(byte_token("<0xff>"), Some(0xff));
        for text in ["<0x0>", "<0x+1>", "<0x0A", "0x0A>", "<0x00A>", "<0xéé>"] {
            assert_eq!(byte_token(text), None, "{text}");
        }
    }
}
