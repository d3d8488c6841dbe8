//! What a function's body does with a pointer: reads through it, writes through it, or both.

use std::collections::HashMap;

use super::lexer::{Kind, Token};
use super::macros::arguments;
use super::signature::declared;

/// How many calls deep a pointer is followed.
const MAX_CALLS: u32 = 4;

/// The functions of a shader that a pointer may be passed to.
pub(super) struct Functions<'a, 's> {
    by_name: HashMap<&'a str, Vec<Definition<'a, 's>>>,
}

struct Definition<'a, 's> {
    params: Vec<&'a [Token<'s>]>,
    body: &'a [Token<'s>],
}

/// Collects every function definition: a name, a parameter list and a body in braces.
pub(super) fn functions<'a, 's>(tokens: &'a [Token<'s>]) -> Functions<'a, 's> {
    let mut by_name: HashMap<&str, Vec<Definition<'a, 's>>> = HashMap::new();
    let mut at = 0;
    while at + 1 < tokens.len() {
        if !(tokens[at].is_word() && tokens[at + 1].is("(") && !is_keyword(&tokens[at].text)) {
            at += 1;
            continue;
        }
        let (params, after) = arguments(tokens, at + 1);
        let mut open = after;
        while tokens.get(open).is_some_and(|t| t.is("const") || t.is("noexcept")) {
            open += 1;
        }
        if tokens.get(open).is_some_and(|t| t.is("{")) {
            let (_, end) = arguments(tokens, open);
            let body = &tokens[open + 1..end.max(open + 1)];
            by_name.entry(tokens[at].text.as_ref()).or_default().push(Definition { params, body });
        }
        at += 1;
    }
    Functions { by_name }
}

fn is_keyword(word: &str) -> bool {
    matches!(
        word,
        "if" | "for" | "while" | "switch" | "return" | "sizeof" | "else" | "do" | "decltype"
    )
}

impl Functions<'_, '_> {
    /// Whether `body` reads and whether it writes through the pointer `name`.
    pub(super) fn access(&self, body: &[Token<'_>], name: &str) -> (bool, bool) {
        let mut seen = Vec::new();
        self.access_within(body, name, MAX_CALLS, &mut seen)
    }

    fn access_within(
        &self,
        body: &[Token<'_>],
        name: &str,
        calls_left: u32,
        seen: &mut Vec<String>,
    ) -> (bool, bool) {
        let (mut reads, mut writes) = (false, false);
        seen.push(name.to_string());
        for at in 0..body.len() {
            if !body[at].is(name)
                || (at > 0 && (body[at - 1].is(".") || arrow(body, at) || body[at - 1].is(":")))
            {
                continue;
            }
            let (r, w) = self.use_at(body, at, calls_left, seen);
            reads |= r;
            writes |= w;
            if reads && writes {
                break;
            }
        }
        (reads, writes)
    }

    /// The access that one occurrence of the pointer makes.
    fn use_at(
        &self,
        body: &[Token<'_>],
        at: usize,
        calls_left: u32,
        seen: &mut Vec<String>,
    ) -> (bool, bool) {
        let mut before = at;
        let mut after = at + 1;
        let mut through = false;
        loop {
            // Follow `[i]`, `.x`, `->x`.
            match body.get(after).map(|t| t.text.as_ref()) {
                Some("[") => {
                    after = arguments(body, after).1;
                    through = true;
                    continue;
                }
                Some(".") if body.get(after + 1).is_some_and(Token::is_word) => {
                    after += 2;
                    continue;
                }
                Some("-") if body.get(after + 1).is_some_and(|t| t.is(">")) => {
                    after += 3;
                    through = true;
                    continue;
                }
                // Pointer arithmetic: up to the end of the argument or group.
                Some("+" | "-") if !through && !body.get(after + 1).is_some_and(|t| t.is("=")) => {
                    after = skip_sum(body, after);
                    continue;
                }
                _ => {}
            }
            let starred = before > 0 && body[before - 1].is("*") && is_prefix(body, before - 1);
            if starred {
                before -= 1;
                through = true;
                continue;
            }
            let address = before > 0 && body[before - 1].is("&") && is_prefix(body, before - 1);
            if address && through {
                before -= 1;
                through = false;
                continue;
            }
            // `(device float4*)p` : a cast before the pointer.
            if before > 0
                && body[before - 1].is(")")
                && let Some(open) = opening(body, before - 1)
                && body[open + 1..before - 1].iter().any(|t| t.is("*"))
                && !(open > 0 && body[open - 1].is_word() && !is_keyword(&body[open - 1].text))
            {
                before = open;
                continue;
            }
            if body.get(after).is_some_and(|t| t.is(")") || t.is(",")) {
                let open = enclosing(body, before);
                let Some(open) = open else { break };
                let callee = callee(body, open);
                match callee {
                    Some(name) if !through => {
                        return self.passed(body, open, before, name, calls_left, seen);
                    }
                    // A group in parentheses or a cast's operand.
                    None if body.get(after).is_some_and(|t| t.is(")")) => {
                        before = open;
                        after += 1;
                        continue;
                    }
                    _ => return (true, false),
                }
            }
            break;
        }
        self.stored(body, before, after, through, calls_left, seen)
    }

    /// The access made by the statement around a place that ends at `after`.
    fn stored(
        &self,
        body: &[Token<'_>],
        before: usize,
        after: usize,
        through: bool,
        calls_left: u32,
        seen: &mut Vec<String>,
    ) -> (bool, bool) {
        let text = |i: usize| body.get(i).map_or("", |t| t.text.as_ref());
        if through {
            let (a, b, c) = (text(after), text(after + 1), text(after + 2));
            return match (a, b, c) {
                ("=", "=", _) => (true, false),
                ("=", _, _) => (false, true),
                ("+" | "-" | "*" | "/" | "%" | "&" | "|" | "^", "=", _) => (true, true),
                ("<", "<", "=") | (">", ">", "=") | ("+", "+", _) | ("-", "-", _) => (true, true),
                _ if before >= 2
                    && matches!((text(before - 2), text(before - 1)), ("+", "+") | ("-", "-")) =>
                {
                    (true, true)
                }
                _ => (true, false),
            };
        }
        // `device T *q = p + n;` makes another name for it.
        if before >= 2 && text(before - 1) == "=" && body[before - 2].is_word() {
            let alias = body[before - 2].text.to_string();
            let start = body[..before]
                .iter()
                .rposition(|t| matches!(t.text.as_ref(), ";" | "{" | "}" | "("));
            let declaration = &body[start.map_or(0, |s| s + 1)..before];
            if declaration.iter().any(|t| t.is("const")) {
                return (true, false);
            }
            if seen.contains(&alias) {
                return (false, false);
            }
            return self.access_within(body, &alias, calls_left, seen);
        }
        // `p += n` and `p = q` move the pointer, not what it points to.
        (false, false)
    }

    /// The access made by passing the pointer to `callee`.
    fn passed(
        &self,
        body: &[Token<'_>],
        open: usize,
        at: usize,
        callee: &str,
        calls_left: u32,
        seen: &mut Vec<String>,
    ) -> (bool, bool) {
        let (args, _) = arguments(body, open);
        let target = body[at].offset;
        let position = args.iter().position(|a| a.iter().any(|t| std::ptr::eq(t, &body[at])));
        let position = position
            .or_else(|| args.iter().position(|a| a.iter().any(|t| t.offset == target)))
            .unwrap_or(0);
        match callee {
            _ if callee.starts_with("atomic_load") => return (true, false),
            _ if callee.starts_with("atomic_store") => return (false, true),
            _ if callee.starts_with("atomic_") => return (true, true),
            "simdgroup_load" => return (true, false),
            "simdgroup_store" => return (false, true),
            "sizeof" | "decltype" | "if" | "while" | "static_assert" => return (false, false),
            _ => {}
        }
        let Some(definitions) = self.by_name.get(callee).filter(|_| calls_left > 0) else {
            // A constructor or an unknown function of a pointer: it may do either.
            return (true, true);
        };
        let (mut reads, mut writes) = (false, false);
        for definition in definitions.iter().filter(|d| d.params.len() == args.len()) {
            let Some(param) = definition.params.get(position).and_then(|p| declared(p)) else {
                continue;
            };
            if param.is_const || param.space == Some("constant") {
                reads = true;
                continue;
            }
            let mut inner = Vec::new();
            let (r, w) =
                self.access_within(definition.body, param.name, calls_left - 1, &mut inner);
            reads |= r;
            writes |= w;
        }
        let _ = seen;
        if !reads && !writes && !definitions.iter().any(|d| d.params.len() == args.len()) {
            return (true, true);
        }
        (reads, writes)
    }
}

fn arrow(body: &[Token<'_>], at: usize) -> bool {
    at > 1 && body[at - 1].is(">") && body[at - 2].is("-")
}

/// Whether the operator at `at` is a prefix: nothing before it that it could join.
fn is_prefix(body: &[Token<'_>], at: usize) -> bool {
    let Some(before) = at.checked_sub(1).map(|b| &body[b]) else { return true };
    match before.kind {
        Kind::Punct => !matches!(before.text.as_ref(), ")" | "]" | ">"),
        Kind::Word => before.is("return"),
        Kind::Number | Kind::Text => false,
    }
}

/// The position after a sum, at the end of its argument, group or statement.
fn skip_sum(body: &[Token<'_>], mut at: usize) -> usize {
    while at < body.len() {
        match body[at].text.as_ref() {
            "(" | "[" | "{" => {
                at = arguments(body, at).1;
                continue;
            }
            ")" | "]" | "}" | "," | ";" | "=" => return at,
            _ => at += 1,
        }
    }
    at
}

/// The parenthesis that closes at `close`.
fn opening(body: &[Token<'_>], close: usize) -> Option<usize> {
    let mut depth = 0u32;
    for at in (0..=close).rev() {
        match body[at].text.as_ref() {
            ")" => depth += 1,
            "(" => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// The parenthesis that `at` lies in.
fn enclosing(body: &[Token<'_>], at: usize) -> Option<usize> {
    let mut depth = 0u32;
    for i in (0..at).rev() {
        match body[i].text.as_ref() {
            ")" | "]" | "}" => depth += 1,
            "(" | "[" | "{" => {
                if depth == 0 {
                    return body[i].is("(").then_some(i);
                }
                depth -= 1;
            }
            ";" if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The function called by the parenthesis at `open`: `f(`, `f<T>(`.
fn callee<'a>(body: &'a [Token<'_>], open: usize) -> Option<&'a str> {
    let mut at = open.checked_sub(1)?;
    let mut template = false;
    if body[at].is(">") {
        let mut depth = 0u32;
        loop {
            match body[at].text.as_ref() {
                ">" => depth += 1,
                "<" => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                }
                ";" | "{" => return None,
                _ => {}
            }
            at = at.checked_sub(1)?;
        }
        at = at.checked_sub(1)?;
        template = true;
    }
    let word = &body[at];
    if !word.is_word() || word.is("return") {
        return None;
    }
    // `reinterpret_cast<device float4*>(p)` is a cast.
    if template && word.text.ends_with("_cast") {
        return None;
    }
    Some(word.text.as_ref())
}
