//! One sequence's text as it comes: detokenised, and held back while it may still turn out
//! to be a stop string.

use marlin_models::{Detokenizer, Tokenizer};

/// Text on its way out.
pub(crate) struct TextStream {
    detokenizer: Detokenizer,
    stops: Vec<String>,
    /// Text that is not out yet: it may be the beginning of a stop string.
    held: String,
    /// Everything that is out.
    text: String,
    stopped: bool,
}

impl TextStream {
    pub(crate) fn new(tokenizer: &Tokenizer, stops: &[String]) -> Self {
        Self {
            detokenizer: tokenizer.detokenizer(false),
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
            text: String::new(),
            stopped: false,
        }
    }

    /// Takes a token; returns the text that is certain now.
    pub(crate) fn push(&mut self, token: u32) -> Option<&str> {
        let piece = self.detokenizer.push(token)?;
        self.held.push_str(&piece);
        self.release(false)
    }

    /// Ends the stream; returns the text that was still held.
    pub(crate) fn finish(&mut self) -> Option<&str> {
        if let Some(piece) = self.detokenizer.flush() {
            self.held.push_str(&piece);
        }
        self.release(true)
    }

    fn release(&mut self, all: bool) -> Option<&str> {
        if self.stopped {
            return None;
        }
        let first = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min();
        let certain = match first {
            Some(at) => {
                self.stopped = true;
                at
            }
            None if all => self.held.len(),
            None => {
                self.held.len()
                    - self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0)
            }
        };
        if certain == 0 {
            return None;
        }
        let start = self.text.len();
        self.text.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        Some(&self.text[start..])
    }

    /// Whether a stop string came.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Everything that is out.
    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

/// Bytes at the end of `text` that are the beginning of `stop`, but not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|&n| text.as_bytes()[text.len() - n..] == stop.as_bytes()[..n])
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn text_that_may_become_a_stop_string_is_counted_from_its_end() {
        assert_eq!(overlap("hello\nUs", "\nUser:"), 3);
        assert_eq!(overlap("hello", "\nUser:"), 0);
        assert_eq!(overlap("aab", "aabaab"), 3);
        assert_eq!(overlap("aaba", "abc"), 1);
        // All of the stop string is a match, not an overlap.
        assert_eq!(overlap("abc", "abc"), 0);
        assert_eq!(overlap("é", "éa"), 2);
        assert_eq!(overlap("", "x"), 0);
    }
}
