//! What the preprocessor would do to C and C++, as far as a grammar needs it to find its way.
//!
//! Everything is replaced by as many bytes as it had, so that positions stay what they are:
//! conditional lines go (of alternatives with unbalanced braces the first stays), attribute-like macros go, and
//! types passed to macros are spelled so that they read as expressions.

/// Attribute-like words that no grammar knows, or only in some places.
const WORDS: &[&str] = &[
    "__strong",
    "__weak",
    "__unsafe_unretained",
    "__autoreleasing",
    "__host__",
    "__device__",
    "__global__",
    "__forceinline",
    "__forceinline__",
    "_Nullable",
    "_Nonnull",
    "_Null_unspecified",
    "__nullable",
    "__nonnull",
    "NS_ASSUME_NONNULL_BEGIN",
    "NS_ASSUME_NONNULL_END",
    "PyObject_HEAD",
    "NS_DESIGNATED_INITIALIZER",
    "NS_UNAVAILABLE",
    "NS_RETURNS_RETAINED",
    "NS_REQUIRES_SUPER",
];

/// Parts of the names of macros that stand before declarations: `GGML_API`, `FOO_EXPORT`.
const PREFIX_PARTS: &[&str] = &[
    "API",
    "EXPORT",
    "EXTERN",
    "INLINE",
    "DECL",
    "PUBLIC",
    "DLL",
    "CALL",
    "NODISCARD",
    "DEPRECATED",
    "ATTRIBUTE",
    "VISIBLE",
    "VISIBILITY",
    "NORETURN",
    "UNUSED",
];

const TYPES: &[&str] = &[
    "int8_t",
    "int16_t",
    "int32_t",
    "int64_t",
    "uint8_t",
    "uint16_t",
    "uint32_t",
    "uint64_t",
    "size_t",
    "ssize_t",
    "ptrdiff_t",
    "intptr_t",
    "uintptr_t",
    "int",
    "float",
    "double",
    "bool",
    "char",
    "void",
    "unsigned",
    "short",
    "long",
];

/// The source with what the preprocessor would take out replaced by spaces, byte for byte.
pub(crate) fn prepared(source: &str) -> String {
    let mut bytes = source.as_bytes().to_vec();
    conditionals(source, &mut bytes);
    words(&mut bytes);
    // Only ASCII was replaced by ASCII.
    String::from_utf8(bytes).unwrap_or_else(|_| source.to_string())
}

struct Group {
    /// Where the text of the current alternative starts.
    start: usize,
    /// Alternatives as byte ranges.
    arms: Vec<(usize, usize)>,
    /// `#if 0`.
    dead: bool,
}

/// Takes out `#if` … `#endif` lines and the alternatives that would unbalance the braces.
fn conditionals(source: &str, bytes: &mut [u8]) {
    let mut open: Vec<Group> = Vec::new();
    let mut at = 0;
    let mut continued = false;
    for line in source.split_inclusive('\n') {
        let (start, end) = (at, at + line.len());
        at = end;
        if continued {
            blank(&mut bytes[start..end]);
            continued = line.trim_end().ends_with('\\');
            continue;
        }
        let Some(directive) = line.trim_start().strip_prefix('#') else { continue };
        let directive = directive.trim_start();
        let word = directive.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or("");
        match word {
            "if" | "ifdef" | "ifndef" => {
                let dead =
                    directive.strip_prefix("if").is_some_and(|c| matches!(c.trim(), "0" | "(0)"));
                open.push(Group { start: end, arms: Vec::new(), dead });
            }
            "else" | "elif" | "elifdef" | "elifndef" => {
                if let Some(group) = open.last_mut() {
                    group.arms.push((group.start, start));
                    group.start = end;
                }
            }
            "endif" => {
                if let Some(mut group) = open.pop() {
                    group.arms.push((group.start, start));
                    let unbalanced = group.arms.len() > 1
                        && group.arms.iter().any(|(s, e)| balance(&source[*s..*e]) != 0);
                    for (i, (s, e)) in group.arms.iter().enumerate() {
                        if group.dead && i == 0 || unbalanced && i > 0 {
                            blank(&mut bytes[*s..*e]);
                        }
                    }
                }
            }
            _ => continue,
        }
        blank(&mut bytes[start..end]);
        continued = line.trim_end().ends_with('\\');
    }
}

fn balance(text: &str) -> i32 {
    text.bytes().fold(0, |n, b| match b {
        b'{' | b'(' => n + 1,
        b'}' | b')' => n - 1,
        _ => n,
    })
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn words(bytes: &mut [u8]) {
    let mut at = 0;
    let mut line_start = true;
    while at < bytes.len() {
        match bytes[at] {
            b'\n' => {
                line_start = true;
                at += 1;
            }
            b' ' | b'\t' | b'\r' => at += 1,
            b'"' => {
                at = string_end(bytes, at);
                line_start = false;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += bytes[at..].iter().position(|b| *b == b'\n').unwrap_or(bytes.len() - at);
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = bytes[at + 2..].windows(2).position(|w| w == b"*/");
                at = end.map_or(bytes.len(), |e| at + 2 + e + 2);
            }
            b'#' if line_start => {
                // Other directives are the grammar's.
                while at < bytes.len() && !(bytes[at] == b'\n' && bytes[at - 1] != b'\\') {
                    at += 1;
                }
            }
            byte if is_word(byte) => {
                let end =
                    at + bytes[at..].iter().position(|b| !is_word(*b)).unwrap_or(bytes.len() - at);
                let first = line_start;
                line_start = false;
                at = word(bytes, at, end, first);
            }
            _ => {
                line_start = false;
                at += 1;
            }
        }
    }
}

/// Handles one word; returns where to go on.
fn word(bytes: &mut [u8], start: usize, end: usize, first: bool) -> usize {
    let text = String::from_utf8_lossy(&bytes[start..end]).into_owned();
    if WORDS.contains(&text.as_str()) {
        blank(&mut bytes[start..end]);
        return end;
    }
    let upper = text.len() > 2
        && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        && text.bytes().any(|b| b.is_ascii_uppercase());
    if !upper {
        return end;
    }
    let next =
        bytes[end..].iter().position(|b| !matches!(b, b' ' | b'\t' | b'\r')).map(|p| end + p);
    match next.map(|n| bytes[n]) {
        // `GGML_API int f(…)`: a macro before a declaration.
        Some(b)
            if first && is_word(b) && text.split('_').any(|part| PREFIX_PARTS.contains(&part)) =>
        {
            blank(&mut bytes[start..end]);
            end
        }
        // A macro alone on its line, without a semicolon.
        Some(b'\n') if first && !continues(bytes, next.unwrap_or(end)) => {
            blank(&mut bytes[start..end]);
            end
        }
        Some(b'(') if first => {
            let open = next.unwrap_or(end);
            let close = closing(bytes, open);
            mask_types(&mut bytes[open..close]);
            let after = bytes[close..]
                .iter()
                .position(|b| !matches!(b, b' ' | b'\t' | b'\r'))
                .map(|p| close + p);
            if after.is_some_and(|a| bytes[a] == b'\n') && !continues(bytes, after.unwrap_or(close))
            {
                blank(&mut bytes[start..close]);
            }
            end
        }
        _ => end,
    }
}

/// Whether the first thing after the line break at `at` goes on with the same statement.
fn continues(bytes: &[u8], at: usize) -> bool {
    let next = bytes[at..].iter().find(|b| !b.is_ascii_whitespace());
    next.is_some_and(|b| {
        matches!(
            b,
            b'{' | b'('
                | b')'
                | b','
                | b';'
                | b'.'
                | b'='
                | b'+'
                | b'-'
                | b'*'
                | b'|'
                | b'&'
                | b'<'
                | b'>'
                | b'?'
                | b':'
                | b'['
                | b']'
                | b'"'
                | b'%'
                | b'^'
                | b'!'
                | b'}'
        )
    })
}

fn closing(bytes: &[u8], open: usize) -> usize {
    let mut depth = 0u32;
    let mut at = open;
    while at < bytes.len() {
        match bytes[at] {
            b'(' => depth += 1,
            b')' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b'"' => {
                at = string_end(bytes, at);
                continue;
            }
            b'{' | b'}' if depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

fn string_end(bytes: &[u8], open: usize) -> usize {
    let raw = open > 0 && bytes[open - 1] == b'R';
    if raw && let Some(paren) = bytes[open..].iter().position(|b| *b == b'(') {
        let mut close = vec![b')'];
        close.extend_from_slice(&bytes[open + 1..open + paren]);
        close.push(b'"');
        let from = open + paren;
        let found = bytes[from..].windows(close.len()).position(|w| w == close);
        return found.map_or(bytes.len(), |p| from + p + close.len());
    }
    let mut at = open + 1;
    while at < bytes.len() && bytes[at] != b'"' && bytes[at] != b'\n' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// `MACRO(int32_t, x)` → `MACRO(Int32_t, x)`: a type's name where an expression is expected.
fn mask_types(bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        if !is_word(bytes[at]) {
            at += 1;
            continue;
        }
        let end = at + bytes[at..].iter().position(|b| !is_word(*b)).unwrap_or(bytes.len() - at);
        let before = bytes[..at].iter().rev().find(|b| !b.is_ascii_whitespace());
        let after = bytes[end..].iter().find(|b| !b.is_ascii_whitespace());
        let alone = matches!(before, Some(b'(' | b',')) && matches!(after, Some(b',' | b')'));
        if alone && TYPES.iter().any(|t| t.as_bytes() == &bytes[at..end]) {
            bytes[at] = bytes[at].to_ascii_uppercase();
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squeezed(source: &str) -> String {
        let out = prepared(source);
        assert_eq!(out.len(), source.len());
        assert_eq!(out.lines().count(), source.lines().count());
        out.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn conditionals_keep_what_balances() {
        assert_eq!(
            squeezed(
                "#ifdef __cplusplus\nextern \"C\" {\n#endif\nint a;\n#ifdef __cplusplus\n}\n#endif\n"
            ),
            "extern \"C\" { int a; }"
        );
        assert_eq!(
            squeezed("#if A\nif (x) {\n#else\nif (y) {\n#endif\nf(); }\n"),
            "if (x) { f(); }"
        );
        assert_eq!(squeezed("#if A\nf();\n#else\ng();\n#endif\n"), "f(); g();");
        assert_eq!(squeezed("#if 0\nf(;\n#endif\ng();\n"), "g();");
    }

    #[test]
    fn macros_read_as_calls_or_nothing() {
        assert_eq!(squeezed("  LOCALS(int32_t, x, y);\n"), "LOCALS(Int32_t, x, y);");
        assert_eq!(squeezed("FOO_API struct s f(void);\n"), "struct s f(void);");
        assert_eq!(squeezed("  UNARY_OP_LOCALS\n  int x;\n"), "int x;");
        assert_eq!(squeezed("TEST(a, b) {\n}\n"), "TEST(a, b) { }");
        assert_eq!(squeezed("id __strong *p;\n"), "id *p;");
        assert_eq!(squeezed("int x = \"__strong\";\n"), "int x = \"__strong\";");
    }
}
