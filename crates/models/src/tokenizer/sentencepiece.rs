//! SentencePiece's BPE: pieces have scores, and the pair whose union scores highest is joined first.
//!
//! Source: Kudo & Richardson 2018, "SentencePiece"; `bpe_model.cc` of the sentencepiece project. The scores are used
//! as they are: the `tokenizers` crate would need them turned into a merge list first, which for 262,144 pieces
//! takes longer than mapping the model, and which loses the rule that of equal scores the leftmost pair goes first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use ahash::AHashMap;

use super::vocabulary::SPACE_MARK;

/// Pieces, scores and the byte tokens to fall back to.
#[derive(Debug)]
pub(super) struct SentencePiece {
    /// Normal pieces only: control and byte tokens are never made from text.
    pub(super) pieces: AHashMap<Box<str>, (u32, f32)>,
    /// The token of each byte, where the vocabulary has one.
    pub(super) byte_tokens: Box<[Option<u32>; 256]>,
    /// For characters that neither a piece nor byte tokens cover.
    pub(super) unknown: Option<u32>,
    /// Whether text that begins, or follows a special token, is read as if a space came before it.
    pub(super) add_space_prefix: bool,
}

/// A part of the text: a character at first, later what was joined. Parts form a list by index.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// 0 once joined to its left neighbour.
    len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

/// Two neighbours whose union is a piece.
#[derive(PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of the union, by which pairs are recognised that a later join made stale.
    len: usize,
}

impl Eq for Pair {}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pair {
    /// The higher score first, then the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl SentencePiece {
    /// Appends the ids of `text`. `at_start` says that nothing but special tokens came before it.
    pub(super) fn encode(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) {
        let prefix = if at_start && self.add_space_prefix { SPACE_MARK } else { "" };
        let text = format!("{prefix}{}", text.replace(' ', SPACE_MARK));
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                before: index.checked_sub(1),
                after: Some(index + 1),
            })
            .collect();
        let Some(last) = symbols.last_mut() else {
            return;
        };
        last.after = None;

        let mut pairs = BinaryHeap::with_capacity(symbols.len());
        for right in 1..symbols.len() {
            pairs.extend(self.pair(&text, &symbols, right - 1, right));
        }
        while let Some(Pair { left, right, len, .. }) = pairs.pop() {
            let joined = symbols[right];
            if symbols[left].len == 0 || joined.len == 0 || symbols[left].len + joined.len != len {
                continue;
            }
            symbols[right].len = 0;
            symbols[left].len = len;
            symbols[left].after = joined.after;
            if let Some(after) = joined.after {
                symbols[after].before = Some(left);
                pairs.extend(self.pair(&text, &symbols, left, after));
            }
            if let Some(before) = symbols[left].before {
                pairs.extend(self.pair(&text, &symbols, before, left));
            }
        }

        let mut next = Some(0);
        while let Some(index) = next {
            let symbol = symbols[index];
            self.emit(&text[symbol.start..symbol.start + symbol.len], ids);
            next = symbol.after;
        }
    }

    fn pair(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let len = symbols[left].len + symbols[right].len;
        let start = symbols[left].start;
        let &(_, score) = self.pieces.get(&text[start..start + len])?;
        Some(Pair { score, left, right, len })
    }

    fn emit(&self, symbol: &str, ids: &mut Vec<u32>) {
        if let Some(&(id, _)) = self.pieces.get(symbol) {
            ids.push(id);
            return;
        }
        let bytes: Option<Vec<u32>> =
            symbol.bytes().map(|byte| self.byte_tokens[usize::from(byte)]).collect();
        match bytes {
            Some(bytes) => ids.extend(bytes),
            None => ids.extend(self.unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(pieces: &[(&str, f32)]) -> SentencePiece {
        SentencePiece {
            pieces: pieces
                .iter()
                .zip(1..)
                .map(|(&(piece, score), id)| (piece.into(), (id, score)))
                .collect(),
            byte_tokens: Box::new(std::array::from_fn(|byte| (byte == 0xc3).then_some(100))),
            unknown: Some(0),
            add_space_prefix: false,
        }
    }

    fn encode(model: &SentencePiece, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        model.encode(text, true, &mut ids);
        ids
    }

    #[test]
    fn the_highest_score_is_joined_first_and_of_equals_the_leftmost() {
        let model = model(&[("a", -9.), ("b", -9.), ("ab", -2.), ("ba", -1.), ("aa", -3.)]);
        // "ba" beats "ab" wherever they compete.
        assert_eq!(encode(&model, "aba"), [1, 4]);
        // Of the two equal pairs in "aaa" the left one is joined.
        assert_eq!(encode(&model, "aaa"), [5, 1]);
    }

    #[test]
    fn what_no_piece_covers_becomes_bytes_and_otherwise_unknown() {
        let model = model(&[("a", -1.)]);
        assert_eq!(encode(&model, "a€"), [1, 0]);
        let all_bytes = SentencePiece {
            byte_tokens: Box::new(std::array::from_fn(|byte| Some(byte as u32 + 1000))),
            ..model
        };
        assert_eq!(encode(&all_bytes, "é"), [1000 + 0xc3, 1000 + 0xa9]);
    }

    #[test]
    fn a_space_goes_before_text_at_the_start_only_if_the_model_wants_it() {
        let mut model = model(&[("\u{2581}", -2.), ("a", -3.), ("\u{2581}a", -1.)]);
        assert_eq!(encode(&model, "a a"), [2, 3]);
        model.add_space_prefix = true;
        assert_eq!(encode(&model, "a a"), [3, 3]);
        let mut ids = Vec::new();
        model.encode("a", false, &mut ids);
        assert_eq!(ids, [2]);
        assert!(encode(&SentencePiece { add_space_prefix: false, ..model }, "").is_empty());
    }
}
