//! Signatures of kernels: names, address spaces and buffer indices.

use std::collections::HashMap;

use super::body::{self, Functions};
use super::lexer::{Kind, Token, lex};
use super::macros::{arguments, expand};
use super::{Index, Kernel, KernelParam};

/// Every kernel, vertex and fragment function in the shader `source`.
pub fn kernels(source: &str) -> Vec<Kernel> {
    let (tokens, constants) = expand(lex(source));
    let functions = body::functions(&tokens);
    let mut found = Vec::new();
    // `template [[host_name("add_f32")]] kernel add_t add<float>;` gives a name to a template.
    let mut aliases: Vec<(String, String, u32)> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !is_stage(&tokens, at) {
            at += 1;
            continue;
        }
        let host_name = host_name_before(&tokens, at);
        let Some(head) = head(&tokens, at + 1) else {
            at += 1;
            continue;
        };
        let name_token = &tokens[head.name];
        let name = host_name.unwrap_or_else(|| name_token.text.to_string());
        match head.open {
            Some(open) => {
                let (args, after) = arguments(&tokens, open);
                let has_body = body_range(&tokens, after);
                let params =
                    params(&args, &constants, has_body.map(|r| &tokens[r.0..r.1]), &functions);
                let is_definition = has_body.is_some();
                let known = found.iter().position(|k: &Kernel| k.name == name);
                let kernel = Kernel { name, params, offset: name_token.offset };
                match known {
                    Some(i) if is_definition => found[i] = kernel,
                    Some(_) => {}
                    // An explicit instantiation repeats the signature; the template's body decides.
                    None if !is_definition => {
                        let template = name_token.text.to_string();
                        if found.iter().any(|k| k.name == template) {
                            aliases.push((kernel.name, template, kernel.offset));
                        } else {
                            found.push(kernel);
                        }
                    }
                    None => found.push(kernel),
                }
                at = has_body.map_or(after, |r| r.1);
            }
            None => {
                aliases.push((name, name_token.text.to_string(), name_token.offset));
                at = head.name + 1;
            }
        }
    }
    for (alias, template, offset) in aliases {
        if let Some(kernel) = found.iter().find(|k| k.name == template) {
            let params = kernel.params.clone();
            if !found.iter().any(|k| k.name == alias) {
                found.push(Kernel { name: alias, params, offset });
            }
        }
    }
    found
}

/// Whether a stage keyword stands at `at`: `kernel void …` or `[[kernel]] void …`.
fn is_stage(tokens: &[Token<'_>], at: usize) -> bool {
    if !matches!(tokens[at].text.as_ref(), "kernel" | "vertex" | "fragment")
        || !tokens[at].is_word()
    {
        return false;
    }
    let next_ok = tokens.get(at + 1).is_some_and(|t| t.is_word() || t.is("]") || t.is("["));
    let before = at.checked_sub(1).map(|b| tokens[b].text.as_ref());
    next_ok && !matches!(before, Some("." | ">" | "(" | ","))
}

/// The string of the `host_name` attribute in the same declaration, before `at`.
fn host_name_before(tokens: &[Token<'_>], at: usize) -> Option<String> {
    let from = tokens[..at].iter().rposition(|t| matches!(t.text.as_ref(), ";" | "}" | "{"));
    let declaration = &tokens[from.map_or(0, |f| f + 1)..at];
    let attribute = declaration.iter().position(|t| t.is("host_name"))?;
    let mut name = String::new();
    for token in declaration[attribute..].iter().skip(2) {
        if token.kind != Kind::Text {
            break;
        }
        name.push_str(token.text.trim_matches('"'));
    }
    (!name.is_empty()).then_some(name)
}

struct Head {
    name: usize,
    open: Option<usize>,
}

/// The function's name and, unless it is an instantiation by type, its parameter list.
fn head(tokens: &[Token<'_>], from: usize) -> Option<Head> {
    let mut name = None;
    let mut at = from;
    let mut angle = 0u32;
    while at < tokens.len() {
        let token = &tokens[at];
        match token.text.as_ref() {
            "[" if tokens.get(at + 1).is_some_and(|t| t.is("[")) => {
                // An attribute: skip to its end.
                while at < tokens.len()
                    && !(tokens[at].is("]") && tokens.get(at + 1).is_some_and(|t| t.is("]")))
                {
                    at += 1;
                }
                at += 1;
            }
            "<" => angle += 1,
            ">" => angle = angle.saturating_sub(1),
            "(" if angle == 0 => {
                // `decltype(f<T>) f<T>`: the parenthesis belongs to the type.
                if at > 0 && tokens[at - 1].is("decltype") {
                    at = arguments(tokens, at).1;
                    continue;
                }
                return name.map(|name| Head { name, open: Some(at) });
            }
            ";" => return name.map(|name| Head { name, open: None }),
            "{" | "}" | "=" => return None,
            _ if angle == 0 && token.is_word() => name = Some(at),
            _ => {}
        }
        at += 1;
        if at > from + 200 {
            return None;
        }
    }
    None
}

/// The tokens between the braces of the body that follows a parameter list, if one does.
fn body_range(tokens: &[Token<'_>], mut at: usize) -> Option<(usize, usize)> {
    while at < tokens.len() && !tokens[at].is("{") {
        if tokens[at].is(";") {
            return None;
        }
        at += 1;
    }
    let (_, after) = arguments(tokens, at);
    (at < tokens.len()).then_some((at + 1, after.max(at + 1)))
}

/// A parameter's address space and name, as far as buffers are concerned.
pub(super) struct Declared<'a, 's> {
    pub(super) name: &'a str,
    pub(super) space: Option<&'static str>,
    pub(super) is_const: bool,
    pub(super) attribute: Option<&'a [Token<'s>]>,
}

pub(super) fn declared<'a, 's>(tokens: &'a [Token<'s>]) -> Option<Declared<'a, 's>> {
    let attribute_at = tokens.windows(2).position(|w| w[0].is("[") && w[1].is("["));
    let declaration = &tokens[..attribute_at.unwrap_or(tokens.len())];
    let pointer = declaration.iter().rposition(|t| t.is("*") || t.is("&") || t.is("["));
    let name = match pointer {
        Some(p) if declaration[p].is("[") => declaration[..p].iter().rev().find(|t| t.is_word()),
        _ => declaration.iter().rev().find(|t| t.is_word()),
    }?;
    let space = if pointer.is_none() {
        None
    } else if declaration.iter().any(|t| t.is("constant")) {
        Some("constant")
    } else if declaration.iter().any(|t| t.is("device")) {
        Some("device")
    } else {
        None
    };
    let is_const = declaration[..pointer.unwrap_or(0)].iter().any(|t| t.is("const"));
    let attribute = attribute_at.map(|a| &tokens[a..]);
    Some(Declared { name: name.text.as_ref(), space, is_const, attribute })
}

fn params(
    args: &[&[Token<'_>]],
    constants: &HashMap<&str, u32>,
    body: Option<&[Token<'_>]>,
    functions: &Functions<'_, '_>,
) -> Vec<KernelParam> {
    let mut out: Vec<KernelParam> = Vec::new();
    for tokens in args {
        let Some(declared) = declared(tokens) else { continue };
        let Some(space) = declared.space else { continue };
        let index = match declared.attribute.and_then(|a| buffer_index(a, constants)) {
            Some(index) => index,
            None if declared.attribute.is_some_and(|a| !a.iter().any(|t| t.is("buffer"))) => {
                continue;
            }
            None => Index::Number(out.len() as u32),
        };
        let is_constant = space == "constant";
        let (reads, writes) = if is_constant || declared.is_const {
            (true, false)
        } else {
            match body {
                // Without a body the signature is all there is.
                None => (false, true),
                Some(body) => match functions.access(body, declared.name) {
                    (false, false) => (false, true),
                    access => access,
                },
            }
        };
        out.push(KernelParam {
            name: declared.name.to_string(),
            index,
            is_constant,
            reads,
            writes,
        });
    }
    out
}

fn buffer_index(attribute: &[Token<'_>], constants: &HashMap<&str, u32>) -> Option<Index> {
    let at = attribute.iter().position(|t| t.is("buffer"))?;
    let index = attribute[at + 1..].iter().find(|t| t.is_word() || t.kind == Kind::Number)?;
    // `static_cast<int>(Name)` and `Enum::Name`: the last word is the constant.
    let last_word = attribute[at + 1..].iter().rev().find(|t| t.is_word());
    match index.kind {
        Kind::Number => index.text.parse().ok().map(Index::Number),
        _ => {
            let name = last_word.unwrap_or(index).text.as_ref();
            Some(
                constants
                    .get(name)
                    .map_or_else(|| Index::Name(name.to_string()), |n| Index::Number(*n)),
            )
        }
    }
}
