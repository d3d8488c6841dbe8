//! Tokens of Objective-C++ and the pairs of its brackets.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Number,
    Text,
    Directive,
    Punct,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) kind: Kind,
}

pub(super) fn tokens(source: &str) -> Vec<Token> {
    let bytes = source.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    let mut line_start = true;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let byte = bytes[at];
        if byte.is_ascii_whitespace() {
            line_start |= byte == b'\n';
            at += 1;
            continue;
        }
        if rest.starts_with(b"//") {
            at += rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
            continue;
        }
        if rest.starts_with(b"/*") {
            at += rest.windows(2).skip(2).position(|w| w == b"*/").map_or(rest.len(), |p| p + 4);
            continue;
        }
        let (len, kind) = if byte == b'#' && line_start {
            (directive_len(rest), Kind::Directive)
        } else if rest.starts_with(b"R\"") {
            (raw_string_len(rest), Kind::Text)
        } else if byte == b'"' || byte == b'\'' {
            (quoted_len(rest, byte), Kind::Text)
        } else if byte.is_ascii_digit() {
            let word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'\'');
            (rest.iter().position(|b| !word(b)).unwrap_or(rest.len()), Kind::Number)
        } else if byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80 {
            let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80;
            (rest.iter().position(|b| !word(b)).unwrap_or(rest.len()), Kind::Word)
        } else {
            let two = matches!(rest.get(..2), Some(b"::" | b"->"));
            (if two { 2 } else { 1 }, Kind::Punct)
        };
        line_start = false;
        out.push(Token { start: at, end: (at + len).min(bytes.len()), kind });
        at += len.max(1);
    }
    out
}

fn directive_len(rest: &[u8]) -> usize {
    let mut at = 0;
    while at < rest.len() {
        if rest[at] == b'\n' && !(at > 0 && rest[at - 1] == b'\\') {
            return at;
        }
        at += 1;
    }
    rest.len()
}

fn raw_string_len(rest: &[u8]) -> usize {
    let Some(open) = rest.iter().position(|b| *b == b'(') else { return 2 };
    let mut close = vec![b')'];
    close.extend_from_slice(&rest[2..open]);
    close.push(b'"');
    rest[open..]
        .windows(close.len())
        .position(|w| w == close)
        .map_or(rest.len(), |p| open + p + close.len())
}

fn quoted_len(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote && rest[at] != b'\n' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// For every bracket, the position of its partner.
pub(super) fn partners(tokens: &[Token], source: &str) -> Vec<Option<usize>> {
    let mut out = vec![None; tokens.len()];
    let mut open: Vec<(usize, u8)> = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        if token.kind != Kind::Punct {
            continue;
        }
        match source.as_bytes()[token.start] {
            b @ (b'(' | b'[' | b'{') => open.push((i, b)),
            b @ (b')' | b']' | b'}') => {
                let wanted = match b {
                    b')' => b'(',
                    b']' => b'[',
                    _ => b'{',
                };
                // An unbalanced bracket must not mispair everything after it.
                if let Some(at) = open.iter().rposition(|(_, o)| *o == wanted) {
                    let (o, _) = open[at];
                    open.truncate(at);
                    out[o] = Some(i);
                    out[i] = Some(o);
                }
            }
            _ => {}
        }
    }
    out
}
