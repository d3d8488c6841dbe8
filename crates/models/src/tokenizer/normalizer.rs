//! What is done to text before it is cut into words: the normalisers of `tokenizer.json`.
//!
//! The `tokenizers` crate keeps, for each byte, which byte of the original it came from. Nothing here asks for that,
//! and with parameters that its authors did not think of the bookkeeping panics; so text is normalised here.

use tokenizers::utils::SysRegex;
use unicode_normalization::UnicodeNormalization;

/// One normaliser.
#[derive(Debug)]
pub(super) enum Normalizer {
    /// Canonical composition.
    Nfc,
    /// Canonical decomposition.
    Nfd,
    /// Compatibility composition.
    Nfkc,
    /// Compatibility decomposition.
    Nfkd,
    Lowercase,
    /// Without white space at the ends.
    Strip {
        left: bool,
        right: bool,
    },
    /// Puts text before any that is not empty.
    Prepend(String),
    ReplaceText {
        pattern: String,
        content: String,
    },
    ReplaceMatches {
        pattern: SysRegex,
        content: String,
    },
    /// One after the other.
    Sequence(Vec<Normalizer>),
}

impl Normalizer {
    /// `text`, normalised.
    pub(super) fn apply(&self, text: String) -> String {
        match self {
            Normalizer::Nfc => text.nfc().collect(),
            Normalizer::Nfd => text.nfd().collect(),
            Normalizer::Nfkc => text.nfkc().collect(),
            Normalizer::Nfkd => text.nfkd().collect(),
            // Character by character: unlike `str::to_lowercase` without regard to neighbours, as the models'
            // vocabularies were made.
            Normalizer::Lowercase => text.chars().flat_map(char::to_lowercase).collect(),
            Normalizer::Strip { left, right } => {
                let text = if *left { text.trim_start() } else { &text };
                if *right { text.trim_end() } else { text }.to_owned()
            }
            Normalizer::Prepend(prefix) if !text.is_empty() => format!("{prefix}{text}"),
            Normalizer::Prepend(_) => text,
            Normalizer::ReplaceText { pattern, content } => text.replace(pattern, content),
            Normalizer::ReplaceMatches { pattern, content } => {
                let mut replaced = String::with_capacity(text.len());
                let mut done = 0;
                for (start, end) in pattern.find_iter(&text) {
                    replaced.push_str(&text[done..start]);
                    replaced.push_str(content);
                    done = end;
                }
                replaced.push_str(&text[done..]);
                replaced
            }
            Normalizer::Sequence(list) => list.iter().fold(text, |text, next| next.apply(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_does_what_its_name_says() {
        let matches = |pattern: &str, content: &str| Normalizer::ReplaceMatches {
            pattern: SysRegex::new(pattern).unwrap(),
            content: content.into(),
        };
        let text = |pattern: &str, content: &str| Normalizer::ReplaceText {
            pattern: pattern.into(),
            content: content.into(),
        };
        for (normalizer, input, output) in [
            (Normalizer::Nfc, "e\u{301}ﬁ", "éﬁ"),
            (Normalizer::Nfd, "éﬁ", "e\u{301}ﬁ"),
            (Normalizer::Nfkc, "e\u{301}ﬁ", "éfi"),
            (Normalizer::Nfkd, "éﬁ", "e\u{301}fi"),
            (Normalizer::Lowercase, "ÄΣ", "äσ"),
            (Normalizer::Strip { left: true, right: false }, " a ", "a "),
            (Normalizer::Strip { left: false, right: true }, " a ", " a"),
            (Normalizer::Prepend("▁".into()), "a", "▁a"),
            (Normalizer::Prepend("▁".into()), "", ""),
            (text(" ", "▁"), "a b ", "a▁b▁"),
            (matches(" +", "_"), "a  b c", "a_b_c"),
            (matches("x*", "-"), "aéb", "-a-é-b-"),
            (
                Normalizer::Sequence(vec![Normalizer::Prepend(" ".into()), text(" ", "▁")]),
                "a b",
                "▁a▁b",
            ),
        ] {
            assert_eq!(normalizer.apply(input.into()), output, "{normalizer:?}");
        }
    }
}
