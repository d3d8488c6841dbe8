//! Words and signs of a kernel source, with their lines.

/// A piece of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) line: usize,
    /// The comment that ends on the line before this token or stands between the last
    /// token and this one.
    pub(super) comment: String,
}

/// Splits the source into words, numbers, strings and single signs. Comments are kept
/// with the token that follows them; preprocessor lines come as one token each, `#` first.
pub(super) fn tokens(source: &str) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::new();
    let mut comment = String::new();
    let bytes = source.as_bytes();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let rest = &source[at..];
        let (len, kind) = next(rest);
        let text = &rest[..len];
        match kind {
            Kind::Space => {
                // A blank line ends a comment's claim on what follows.
                if text.bytes().filter(|&b| b == b'\n').count() > 1 {
                    comment.clear();
                }
            }
            Kind::Comment => {
                let body = text.trim_start_matches('/').trim_start_matches('*');
                let body = body.trim_end_matches('/').trim_end_matches('*');
                // A comment beside a member belongs to it.
                match out.last_mut() {
                    Some(last) if last.line == line && matches!(last.text.as_str(), ";" | ",") => {
                        last.comment = body.trim().to_owned();
                    }
                    _ => {
                        if !comment.is_empty() {
                            comment.push('\n');
                        }
                        comment.push_str(body.strip_prefix(' ').unwrap_or(body).trim_end());
                    }
                }
            }
            Kind::Token => out.push(Token {
                text: text.to_owned(),
                line,
                comment: std::mem::take(&mut comment),
            }),
        }
        line += text.bytes().filter(|&b| b == b'\n').count();
        at += len;
    }
    out
}

enum Kind {
    Space,
    Comment,
    Token,
}

/// Length in bytes and kind of the first piece of `rest`, which is not empty.
fn next(rest: &str) -> (usize, Kind) {
    let first = rest.chars().next().unwrap_or(' ');
    let span = |test: fn(char) -> bool| rest.find(|c| !test(c)).unwrap_or(rest.len());
    if first.is_whitespace() {
        (span(char::is_whitespace), Kind::Space)
    } else if rest.starts_with("//") {
        (rest.find('\n').unwrap_or(rest.len()), Kind::Comment)
    } else if rest.starts_with("/*") {
        (rest.find("*/").map_or(rest.len(), |end| end + 2), Kind::Comment)
    } else if first == '#' {
        let mut end = 0;
        for part in rest.split_inclusive('\n') {
            end += part.len();
            if !part.trim_end_matches(['\n', '\r']).ends_with('\\') {
                break;
            }
        }
        let length = rest[..end].trim_end_matches(['\n', '\r']).len();
        (length, Kind::Token)
    } else if first == '"' {
        let close = rest[1..].find(['"', '\n']).map_or(rest.len(), |end| end + 2);
        (close.min(rest.len()), Kind::Token)
    } else if first.is_alphanumeric() || first == '_' {
        (span(|c| c.is_alphanumeric() || c == '_' || c == '.'), Kind::Token)
    } else {
        (first.len_utf8(), Kind::Token)
    }
}
