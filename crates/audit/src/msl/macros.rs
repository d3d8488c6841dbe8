//! Kernels that macros make: `UNARY(cos, float, cos_f32)` and `instantiate_kernel(…)`.
//!
//! Only macros whose body leads to a kernel are expanded; everything else stays as it is
//! written, since what is looked for is signatures and assignments.

use std::borrow::Cow;
use std::collections::HashMap;

use super::lexer::{Kind, Lexed, Macro, Token};

/// How many macros may be nested in one another.
const MAX_NESTING: u32 = 6;

/// The most tokens that one shader may expand to.
const MAX_TOKENS: usize = 4_000_000;

/// The tokens of a shader with its kernel-making macros expanded, and its numeric constants.
pub(super) fn expand<'s>(lexed: Lexed<'s>) -> (Vec<Token<'s>>, HashMap<&'s str, u32>) {
    let constants = lexed
        .macros
        .iter()
        .filter(|(_, m)| m.params.is_none())
        .filter_map(|(name, m)| match m.body.as_slice() {
            [only] if only.kind == Kind::Number => Some((*name, only.text.parse().ok()?)),
            _ => None,
        })
        .collect();
    let macros: HashMap<&str, Macro<'s>> = lexed.macros.into_iter().collect();
    let mut makes_kernels: HashMap<&str, bool> = HashMap::new();
    for _ in 0..MAX_NESTING {
        for (name, m) in &macros {
            let leads = m.params.is_some()
                && m.body.iter().any(|t| {
                    matches!(t.text.as_ref(), "kernel" | "host_name" | "vertex" | "fragment")
                        || makes_kernels.get(t.text.as_ref()).copied().unwrap_or(false)
                });
            makes_kernels.insert(name, leads);
        }
    }
    if !makes_kernels.values().any(|&leads| leads) {
        return (lexed.tokens, constants);
    }
    let mut out = Vec::with_capacity(lexed.tokens.len());
    let env = Env { macros: &macros, makes_kernels: &makes_kernels };
    env.expand(&lexed.tokens, 0, &mut out);
    (out, constants)
}

struct Env<'a, 's> {
    macros: &'a HashMap<&'s str, Macro<'s>>,
    makes_kernels: &'a HashMap<&'s str, bool>,
}

impl<'s> Env<'_, 's> {
    fn expand(&self, tokens: &[Token<'s>], nesting: u32, out: &mut Vec<Token<'s>>) {
        let mut at = 0;
        while at < tokens.len() {
            let token = &tokens[at];
            let leads = token.is_word()
                && self.makes_kernels.get(token.text.as_ref()).copied().unwrap_or(false)
                && tokens.get(at + 1).is_some_and(|t| t.is("("));
            let mac = self.macros.get(token.text.as_ref()).filter(|_| leads);
            let Some(mac) = mac.filter(|_| nesting < MAX_NESTING && out.len() < MAX_TOKENS) else {
                out.push(token.clone());
                at += 1;
                continue;
            };
            let (args, after) = arguments(tokens, at + 1);
            let body = substitute(mac, &args, token.offset);
            self.expand(&body, nesting + 1, out);
            at = after;
        }
    }
}

/// The arguments of a call whose parenthesis opens at `open`, and the position after it.
pub(super) fn arguments<'a, 's>(
    tokens: &'a [Token<'s>],
    open: usize,
) -> (Vec<&'a [Token<'s>]>, usize) {
    let mut args = Vec::new();
    let mut depth = 0u32;
    let mut start = open + 1;
    for at in open..tokens.len() {
        match tokens[at].text.as_ref() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    if at > start || !args.is_empty() {
                        args.push(&tokens[start..at]);
                    }
                    return (args, at + 1);
                }
            }
            "," if depth == 1 => {
                args.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    (args, tokens.len())
}

fn substitute<'s>(mac: &Macro<'s>, args: &[&[Token<'s>]], offset: u32) -> Vec<Token<'s>> {
    let params = mac.params.as_deref().unwrap_or_default();
    let value = |name: &str| -> Option<Vec<Token<'s>>> {
        if name == "__VA_ARGS__" {
            let fixed = params.iter().position(|p| *p == "...")?;
            let mut all = Vec::new();
            for (i, arg) in args.iter().skip(fixed).enumerate() {
                if i > 0 {
                    all.push(Token { text: Cow::Borrowed(","), offset, kind: Kind::Punct });
                }
                all.extend(arg.iter().cloned());
            }
            return Some(all);
        }
        let at = params.iter().position(|p| *p == name)?;
        Some(args.get(at).map(|a| a.to_vec()).unwrap_or_default())
    };
    let mut out: Vec<Token<'s>> = Vec::new();
    let mut at = 0;
    let body = &mac.body;
    let mut paste = false;
    while at < body.len() {
        let token = &body[at];
        if token.is("#") && body.get(at + 1).is_some_and(|t| t.is("#")) {
            paste = true;
            at += 2;
            continue;
        }
        let mut piece;
        if token.is("#") && body.get(at + 1).is_some_and(|t| value(&t.text).is_some()) {
            let parts = value(&body[at + 1].text).unwrap_or_default();
            let text: String = parts.iter().map(|t| t.text.as_ref()).collect();
            piece =
                vec![Token { text: Cow::Owned(format!("\"{text}\"")), offset, kind: Kind::Text }];
            at += 2;
        } else {
            piece = match value(&token.text).filter(|_| token.is_word()) {
                Some(parts) => parts,
                None => vec![token.clone()],
            };
            at += 1;
        }
        if paste && !piece.is_empty() {
            if let Some(last) = out.last_mut() {
                let first = piece.remove(0);
                last.text = Cow::Owned(format!("{}{}", last.text, first.text));
            }
            paste = false;
        }
        out.extend(piece);
    }
    for token in &mut out {
        token.offset = offset;
    }
    out
}
