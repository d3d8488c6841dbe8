//! Tokens of a shader, with comments and preprocessor lines taken out.

use std::borrow::Cow;

/// A token: an identifier, number, string or single punctuation character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token<'s> {
    pub(super) text: Cow<'s, str>,
    pub(super) offset: u32,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Number,
    Text,
    Punct,
}

impl Token<'_> {
    pub(super) fn is(&self, text: &str) -> bool {
        self.text == text
    }

    pub(super) fn is_word(&self) -> bool {
        self.kind == Kind::Word
    }
}

/// A `#define`: its parameters (absent for an object-like macro) and the tokens it stands for.
#[derive(Debug)]
pub(super) struct Macro<'s> {
    pub(super) params: Option<Vec<&'s str>>,
    pub(super) body: Vec<Token<'s>>,
}

/// The tokens of a shader and its macros in order of definition.
pub(super) struct Lexed<'s> {
    pub(super) tokens: Vec<Token<'s>>,
    pub(super) macros: Vec<(&'s str, Macro<'s>)>,
}

pub(super) fn lex(source: &str) -> Lexed<'_> {
    let mut lexed = Lexed { tokens: Vec::new(), macros: Vec::new() };
    let bytes = source.as_bytes();
    let mut at = 0;
    let mut line_start = true;
    while at < bytes.len() {
        if line_start && bytes[at] == b'#' {
            let end = directive_end(bytes, at);
            directive(source, at, end, &mut lexed.macros);
            at = end;
            continue;
        }
        if bytes[at] == b'\n' {
            line_start = true;
        } else if !bytes[at].is_ascii_whitespace() {
            line_start = false;
        }
        at = token(source, at, &mut lexed.tokens);
    }
    lexed
}

/// Lexes one token or skips one piece of white space or comment; returns where the next begins.
fn token<'s>(source: &'s str, at: usize, out: &mut Vec<Token<'s>>) -> usize {
    let bytes = source.as_bytes();
    let byte = bytes[at];
    let rest = &bytes[at..];
    if byte.is_ascii_whitespace() || byte == b'\\' {
        return at + 1;
    }
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        let end = source.get(at + 2..).and_then(|s| s.find("*/"));
        return end.map_or(bytes.len(), |e| at + 2 + e + 2);
    }
    let (len, kind) = if byte == b'"' {
        let mut i = 1;
        while i < rest.len() && rest[i] != b'"' && rest[i] != b'\n' {
            i += if rest[i] == b'\\' { 2 } else { 1 };
        }
        ((i + 1).min(rest.len()), Kind::Text)
    } else if byte.is_ascii_digit() {
        let len = rest.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'.'));
        (len.unwrap_or(rest.len()), Kind::Number)
    } else if byte.is_ascii_alphabetic() || byte == b'_' {
        let len = rest.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_'));
        (len.unwrap_or(rest.len()), Kind::Word)
    } else {
        let width = source[at..].chars().next().map_or(1, char::len_utf8);
        (width, Kind::Punct)
    };
    if let Some(text) = source.get(at..at + len) {
        out.push(Token { text: Cow::Borrowed(text), offset: at as u32, kind });
    }
    at + len
}

/// Where a preprocessor line ends, continuation lines included.
fn directive_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    while at < bytes.len() {
        if bytes[at] == b'\n' {
            let continued = bytes[start..at].iter().rev().find(|b| **b != b'\r') == Some(&b'\\');
            if !continued {
                return at;
            }
        }
        at += 1;
    }
    at
}

fn directive<'s>(
    source: &'s str,
    start: usize,
    end: usize,
    macros: &mut Vec<(&'s str, Macro<'s>)>,
) {
    let Some(line) = source.get(start + 1..end) else { return };
    let trimmed = line.trim_start();
    let Some(rest) = trimmed.strip_prefix("define") else { return };
    let name_text = rest.trim_start();
    let name_len = name_text
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(name_text.len());
    let (name, after) = name_text.split_at(name_len);
    if name.is_empty() {
        return;
    }
    // A parenthesis directly after the name makes it function-like.
    let (params, body) = match after.strip_prefix('(').and_then(|a| a.split_once(')')) {
        Some((list, body)) => {
            let list =
                list.split(',').map(|p| p.trim_matches(|c: char| c.is_whitespace() || c == '\\'));
            (Some(list.collect()), body)
        }
        None => (None, after),
    };
    let mut tokens = Vec::new();
    let base = end - body.len();
    let mut at = base;
    while at < end {
        at = token(source, at, &mut tokens);
    }
    macros.push((name, Macro { params, body: tokens }));
}
