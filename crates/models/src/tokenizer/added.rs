//! Tokens that are found in the text before anything else looks at it.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

/// A token that is matched as a whole (`added_tokens` of `tokenizer.json`; control and user-defined tokens of GGUF).
#[derive(Debug, Clone)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    /// Only matched where special tokens may be written as text.
    pub(super) special: bool,
    /// Takes the white space before it along.
    pub(super) lstrip: bool,
    /// Takes the white space after it along.
    pub(super) rstrip: bool,
    /// Only matches between non-word characters.
    pub(super) single_word: bool,
}

impl AddedToken {
    pub(super) fn plain(id: u32, content: impl Into<String>, special: bool) -> Self {
        Self {
            id,
            content: content.into(),
            special,
            lstrip: false,
            rstrip: false,
            single_word: false,
        }
    }
}

/// A part of a text: one added token, or what lies between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) range: Range<usize>,
    pub(super) id: Option<u32>,
}

/// Finds added tokens; of several that start at the same place, the longest.
#[derive(Debug, Default)]
pub(super) struct AddedTokens {
    all: Matcher,
    /// Without the special ones.
    text_only: Matcher,
}

#[derive(Debug, Default)]
struct Matcher {
    tokens: Vec<AddedToken>,
    automaton: Option<AhoCorasick>,
}

impl AddedTokens {
    /// # Errors
    /// When the automaton would be larger than its implementation allows.
    pub(super) fn new(mut tokens: Vec<AddedToken>) -> Result<Self, aho_corasick::BuildError> {
        tokens.retain(|token| !token.content.is_empty());
        let text = tokens.iter().filter(|token| !token.special).cloned().collect();
        Ok(Self { all: Matcher::new(tokens)?, text_only: Matcher::new(text)? })
    }

    /// `text` in fragments that cover it without gaps. Special tokens are only looked for if `parse_special`.
    pub(super) fn fragments(&self, text: &str, parse_special: bool) -> Vec<Fragment> {
        if parse_special { self.all.fragments(text) } else { self.text_only.fragments(text) }
    }
}

impl Matcher {
    fn new(tokens: Vec<AddedToken>) -> Result<Self, aho_corasick::BuildError> {
        let automaton = match tokens.as_slice() {
            [] => None,
            tokens => Some(
                AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    .build(tokens.iter().map(|token| &token.content))?,
            ),
        };
        Ok(Self { tokens, automaton })
    }

    fn fragments(&self, text: &str) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        let mut done = 0;
        for found in self.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            // White space that an earlier token took along can hold the start of this one.
            if start < done || (token.single_word && !stands_alone(text, start..end)) {
                continue;
            }
            if token.lstrip {
                start = done + text[done..start].trim_end().len();
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                fragments.push(Fragment { range: done..start, id: None });
            }
            fragments.push(Fragment { range: start..end, id: Some(token.id) });
            done = end;
        }
        if done < text.len() {
            fragments.push(Fragment { range: done..text.len(), id: None });
        }
        fragments
    }
}

fn stands_alone(text: &str, range: Range<usize>) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..range.start].ends_with(word) && !text[range.end..].starts_with(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(
        tokens: Vec<AddedToken>,
        text: &str,
        parse_special: bool,
    ) -> Vec<(&str, Option<u32>)> {
        AddedTokens::new(tokens)
            .unwrap()
            .fragments(text, parse_special)
            .into_iter()
            .map(|fragment| (&text[fragment.range], fragment.id))
            .collect()
    }

    #[test]
    fn the_longest_of_tokens_that_start_together_wins() {
        let tokens = vec![AddedToken::plain(1, "  ", false), AddedToken::plain(2, "    ", false)];
        assert_eq!(
            pieces(tokens, "a      b", false),
            [("a", None), ("    ", Some(2)), ("  ", Some(1)), ("b", None)]
        );
    }

    #[test]
    fn special_tokens_stay_text_unless_asked_for() {
        let tokens =
            vec![AddedToken::plain(7, "<|end|>", true), AddedToken::plain(8, "\n\n", false)];
        assert_eq!(
            pieces(tokens.clone(), "a<|end|>\n\n", false),
            [("a<|end|>", None), ("\n\n", Some(8))]
        );
        assert_eq!(
            pieces(tokens, "a<|end|>\n\n", true),
            [("a", None), ("<|end|>", Some(7)), ("\n\n", Some(8))]
        );
    }

    #[test]
    fn stripping_tokens_take_white_space_along_but_never_twice() {
        let mut token = AddedToken::plain(3, "<m>", true);
        (token.lstrip, token.rstrip) = (true, true);
        let mut space = AddedToken::plain(4, " ", true);
        space.lstrip = true;
        assert_eq!(
            pieces(vec![token, space], "a <m>  <m>b", true),
            [("a", None), (" ", Some(4)), ("<m>  ", Some(3)), ("<m>", Some(3)), ("b", None)]
        );
    }

    #[test]
    fn a_single_word_token_does_not_match_inside_a_word() {
        let mut token = AddedToken::plain(5, "cat", false);
        token.single_word = true;
        assert_eq!(pieces(vec![token], "concat cat", false), [("concat ", None), ("cat", Some(5))]);
    }
}
