//! Text from tokens as they come, never cut inside a character.

use std::sync::Arc;

use super::vocabulary::{TokenKind, Vocabulary};

/// Turns a stream of tokens into text. Bytes of an unfinished character wait for the rest of it.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    vocabulary: Arc<Vocabulary>,
    show_control: bool,
    pending: Vec<u8>,
}

impl Detokenizer {
    pub(super) fn new(vocabulary: Arc<Vocabulary>, show_control: bool) -> Self {
        Self { vocabulary, show_control, pending: Vec::new() }
    }

    /// The text that token `id` completes, if any. Bytes that can no longer become a character are replaced by
    /// U+FFFD; ids beyond the vocabulary have no text.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.show_control || self.vocabulary.kind(id) != Some(TokenKind::Control) {
            self.pending.extend_from_slice(self.vocabulary.bytes(id).unwrap_or_default());
        }
        let text = take_characters(&mut self.pending);
        (!text.is_empty()).then_some(text)
    }

    /// What is left at the end: U+FFFD for an unfinished character.
    pub fn flush(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

/// Takes the whole characters from the front of `bytes`, leaving a last one that is unfinished.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        done += chunk.valid().len();
        let broken = chunk.invalid();
        if broken.is_empty() {
            break;
        }
        if done + broken.len() == bytes.len() && is_unfinished(broken) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        done += broken.len();
    }
    bytes.drain(..done);
    text
}

/// Whether more bytes could make `bytes`, which are not a character, into one.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One token per byte.
    fn byte_vocabulary() -> Arc<Vocabulary> {
        let mut vocabulary = Vocabulary::default();
        for byte in 0..=255 {
            vocabulary.push(&[byte], TokenKind::Byte);
        }
        vocabulary.push(b"<end>", TokenKind::Control);
        Arc::new(vocabulary)
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        let mut stream = Detokenizer::new(byte_vocabulary(), false);
        let bytes = "🙂".as_bytes();
        for &byte in &bytes[..3] {
            assert_eq!(stream.push(byte.into()), None);
        }
        assert_eq!(stream.push(bytes[3].into()).as_deref(), Some("🙂"));
        assert_eq!(stream.flush(), None);
    }

    #[test]
    fn an_unfinished_character_is_shown_as_broken_at_the_end() {
        let mut stream = Detokenizer::new(byte_vocabulary(), false);
        assert_eq!(stream.push(0xe2), None);
        assert_eq!(stream.flush().as_deref(), Some("\u{fffd}"));
    }

    #[test]
    fn control_tokens_have_no_text_unless_asked_for() {
        assert_eq!(Detokenizer::new(byte_vocabulary(), false).push(256), None);
        assert_eq!(Detokenizer::new(byte_vocabulary(), true).push(256).as_deref(), Some("<end>"));
        assert_eq!(Detokenizer::new(byte_vocabulary(), true).push(9999), None);
    }

    proptest! {
        /// Whatever the bytes, and however they come, the stream says what decoding them at once says.
        #[test]
        fn streaming_says_what_decoding_at_once_says(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut stream = Detokenizer::new(byte_vocabulary(), false);
            let mut text: String = bytes.iter().filter_map(|&b| stream.push(b.into())).collect();
            text.extend(stream.flush());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
