//! Objective-C++: rewritten to C++ before parsing, since no grammar reads both.
//!
//! Message sends become calls under their selectors' canonical names (`[b setBuffer:x offset:0
//! atIndex:1]` → `b->setBuffer_offset_atIndex(x, 0, 1)`), methods become member functions, blocks
//! become lambdas, and `@` literals lose their sign. Every line stays on its line.

use super::objcpp_tokens::{Kind, Token, partners, tokens};

/// The C++ that stands for `source`, line for line.
pub(super) fn to_cpp(source: &str) -> String {
    let tokens = tokens(source);
    let partner = partners(&tokens, source);
    let mut rewriter = Rewriter {
        source,
        tokens,
        partner,
        out: String::with_capacity(source.len() + 64),
        copied: 0,
    };
    let end = rewriter.tokens.len();
    rewriter.rewrite(0, end, false);
    rewriter.gap_to(source.len());
    rewriter.out
}

struct Rewriter<'s> {
    source: &'s str,
    tokens: Vec<Token>,
    partner: Vec<Option<usize>>,
    out: String,
    /// Up to where the source is accounted for.
    copied: usize,
}

impl<'s> Rewriter<'s> {
    fn text(&self, i: usize) -> &'s str {
        self.tokens.get(i).and_then(|t| self.source.get(t.start..t.end)).unwrap_or("")
    }

    fn is_word(&self, i: usize) -> bool {
        self.tokens.get(i).is_some_and(|t| t.kind == Kind::Word)
    }

    /// Keeps the line breaks between what was copied and `to`.
    fn gap_to(&mut self, to: usize) {
        if to <= self.copied {
            return;
        }
        let gap = self.source.get(self.copied..to).unwrap_or("");
        let breaks = gap.bytes().filter(|b| *b == b'\n').count();
        if breaks > 0 {
            self.out.extend(std::iter::repeat_n('\n', breaks));
        } else if !gap.is_empty() {
            self.out.push(' ');
        }
        self.copied = to;
    }

    fn copy(&mut self, i: usize) {
        let token = self.tokens[i];
        self.gap_to(token.start);
        self.out.push_str(self.text(i));
        self.copied = self.copied.max(token.end);
    }

    /// Leaves out tokens up to `to`, keeping their line breaks.
    fn skip_to(&mut self, to: usize) {
        let end = match to.checked_sub(1).and_then(|i| self.tokens.get(i)) {
            Some(token) => token.end,
            None => return,
        };
        self.gap_to(end);
    }

    fn find(&self, from: usize, end: usize, text: &str) -> usize {
        (from..end).find(|i| self.text(*i) == text).unwrap_or(end)
    }

    /// Rewrites tokens; `in_class` is inside of an `@implementation`, outside of its methods.
    fn rewrite(&mut self, from: usize, end: usize, in_class: bool) {
        let mut i = from;
        while i < end {
            i = match self.text(i) {
                "@" => self.at_sign(i, end),
                "[" => self.bracket(i, end),
                "^" => self.caret(i, end),
                "-" | "+" if in_class && self.text(i + 1) == "(" => self.method(i, end),
                "{" if in_class => {
                    // The body of a C function between methods.
                    let close = self.partner[i].unwrap_or(end).min(end);
                    self.copy(i);
                    self.rewrite(i + 1, close, false);
                    close
                }
                _ => {
                    self.copy(i);
                    i + 1
                }
            };
        }
    }

    fn at_sign(&mut self, i: usize, end: usize) -> usize {
        let next = self.text(i + 1);
        match next {
            "implementation" => self.class(i, end, true),
            "interface" => self.class(i, end, false),
            "protocol" => {
                let semicolon = self.find(i, end, ";");
                let finish = (i..end)
                    .find(|k| self.text(*k) == "@" && self.text(k + 1) == "end")
                    .unwrap_or(end);
                // A forward declaration, or `@protocol(Name)` as a value.
                if self.text(i + 2) == "(" {
                    self.out.push('0');
                    let after = self.partner[i + 2].unwrap_or(i + 2) + 1;
                    self.skip_to(after);
                    return after;
                }
                let braces =
                    (i..semicolon).any(|k| matches!(self.text(k), "-" | "+" | "@") && k > i);
                let after = if semicolon < finish && !braces {
                    semicolon + 1
                } else {
                    (finish + 2).min(end)
                };
                self.skip_to(after);
                after
            }
            "class" | "import" | "synthesize" | "dynamic" => {
                let after = (self.find(i, end, ";") + 1).min(end);
                self.skip_to(after);
                after
            }
            "selector" | "encode" | "available" => {
                self.out.push_str(" 1");
                let after = self.partner.get(i + 2).copied().flatten().unwrap_or(i + 1) + 1;
                self.skip_to(after);
                after
            }
            "autoreleasepool" | "optional" | "required" | "public" | "private" | "protected"
            | "package" | "end" => {
                self.skip_to(i + 2);
                i + 2
            }
            "synchronized" => {
                self.skip_to(i + 2);
                self.out.push_str(" if ");
                i + 2
            }
            "try" | "catch" | "throw" => {
                self.skip_to(i + 1);
                self.copy(i + 1);
                i + 2
            }
            "finally" => {
                self.skip_to(i + 2);
                self.out.push_str(" if (1) ");
                i + 2
            }
            "[" | "{" => {
                // `@[a, b]` and `@{k: v}`.
                let close = self.partner[i + 1].unwrap_or(end).min(end);
                self.skip_to(i + 2);
                self.out.push_str(" NSLIST(");
                let mut from = i + 2;
                for k in i + 2..close {
                    let top =
                        self.text(k) == ":" && next == "{" && self.depth_between(i + 2, k) == 0;
                    if top {
                        self.rewrite(from, k, false);
                        self.skip_to(k + 1);
                        self.out.push_str(", ");
                        from = k + 1;
                    }
                }
                self.rewrite(from, close, false);
                self.skip_to(close + 1);
                self.out.push(')');
                close + 1
            }
            _ => {
                // `@"text"`, `@(value)`, `@42`, `@YES`.
                self.skip_to(i + 1);
                i + 1
            }
        }
    }

    fn depth_between(&self, from: usize, to: usize) -> i32 {
        (from..to).fold(0, |depth, k| match self.text(k) {
            "(" | "[" | "{" => depth + 1,
            ")" | "]" | "}" => depth - 1,
            _ => depth,
        })
    }

    /// `@interface` and `@implementation`, up to `@end`.
    fn class(&mut self, i: usize, end: usize, implementation: bool) -> usize {
        let finish =
            (i..end).find(|k| self.text(*k) == "@" && self.text(k + 1) == "end").unwrap_or(end);
        let name = self.text(i + 2);
        self.skip_to(i + 3);
        self.out.push_str(" class ");
        self.out.push_str(name);
        let mut at = i + 3;
        if self.text(at) == ":" && self.is_word(at + 1) {
            self.out.push_str(" : public ");
            self.out.push_str(self.text(at + 1));
            at += 2;
        } else if self.text(at) == "(" {
            at = self.partner[at].unwrap_or(at) + 1;
        }
        if self.text(at) == "<" {
            at = self.find(at, finish, ">") + 1;
        }
        self.skip_to(at);
        self.out.push_str(" {");
        if self.text(at) == "{" {
            let close = self.partner[at].unwrap_or(finish).min(finish);
            self.skip_to(at + 1);
            self.rewrite(at + 1, close, true);
            at = (close + 1).min(finish);
            self.skip_to(at);
        }
        if implementation {
            self.rewrite(at, finish, true);
        } else {
            self.declarations(at, finish);
        }
        self.skip_to((finish + 2).min(end));
        self.out.push_str(" };");
        (finish + 2).min(end)
    }

    /// Of an interface's declarations only the properties matter, as fields.
    fn declarations(&mut self, from: usize, finish: usize) {
        let mut at = from;
        while at < finish {
            let semicolon = self.find(at, finish, ";");
            if self.text(at) == "@" && self.text(at + 1) == "property" {
                let mut first = at + 2;
                if self.text(first) == "(" {
                    first = self.partner[first].unwrap_or(first) + 1;
                }
                self.skip_to(first);
                let block = (first..semicolon).any(|k| self.text(k) == "^");
                if !block {
                    self.out.push(' ');
                    for k in first..semicolon {
                        if !is_annotation(self.text(k)) {
                            self.copy(k);
                        }
                    }
                    self.out.push(';');
                }
            } else if self.text(at) == "@" {
                at += 2;
                self.skip_to(at);
                continue;
            }
            at = (semicolon + 1).min(finish);
            self.skip_to(at);
        }
    }

    /// `- (Type)part:(Type)name part:(Type)name { … }`.
    fn method(&mut self, i: usize, end: usize) -> usize {
        let after_type = self.partner[i + 1].unwrap_or(i + 1) + 1;
        let mut at = after_type;
        let mut parts: Vec<&str> = Vec::new();
        let mut params: Vec<(usize, usize, &str)> = Vec::new();
        while at < end && !matches!(self.text(at), "{" | ";") {
            if self.is_word(at) && self.text(at + 1) == ":" {
                parts.push(self.text(at));
                at += 2;
            } else if self.text(at) == ":" {
                parts.push("");
                at += 1;
            } else if self.is_word(at) && parts.is_empty() {
                parts.push(self.text(at));
                at += 1;
                continue;
            } else {
                at += 1;
                continue;
            }
            let ty = if self.text(at) == "(" {
                let close = self.partner[at].unwrap_or(at);
                let range = (at + 1, close);
                at = close + 1;
                range
            } else {
                (at, at)
            };
            while is_annotation(self.text(at)) {
                at += 1;
            }
            params.push((ty.0, ty.1, self.text(at)));
            at += 1;
        }
        if self.text(at) != "{" {
            // A declaration.
            let after = (at + 1).min(end);
            self.skip_to(after);
            return after;
        }
        let mut line = format!(" __objc_method {}(", parts.join("_"));
        for (k, (from, to, name)) in params.iter().enumerate() {
            if k > 0 {
                line.push_str(", ");
            }
            let block = (*from..*to).any(|t| self.text(t) == "^");
            if block || from == to {
                line.push_str("id");
            } else {
                for t in *from..*to {
                    if !is_annotation(self.text(t)) {
                        line.push_str(self.text(t));
                        line.push(' ');
                    }
                }
            }
            line.push(' ');
            line.push_str(name);
        }
        line.push(')');
        self.out.push_str(&line);
        self.skip_to(at);
        let close = self.partner[at].unwrap_or(end).min(end);
        self.copy(at);
        self.rewrite(at + 1, close, false);
        if close < end {
            self.copy(close);
        }
        (close + 1).min(end)
    }

    /// A message send, or a bracket of C++.
    fn bracket(&mut self, i: usize, end: usize) -> usize {
        let Some(close) = self.partner[i].filter(|c| *c < end) else {
            self.copy(i);
            return i + 1;
        };
        if !self.is_message(i, close) {
            self.copy(i);
            self.rewrite(i + 1, close, false);
            self.copy(close);
            return close + 1;
        }
        let parts = self.selector(i + 1, close);
        let first = parts.first().map_or(close, |p| p.name);
        let simple = first == i + 2;
        self.skip_to(i + 1);
        self.out.push_str(if simple { " " } else { " (" });
        self.rewrite(i + 1, first, false);
        self.out.push_str(if simple { "->" } else { ")->" });
        let name: Vec<&str> = parts.iter().map(|p| self.text(p.name)).collect();
        self.out.push_str(&name.join("_"));
        self.out.push('(');
        for (k, part) in parts.iter().enumerate() {
            let Some(colon) = part.colon else { continue };
            self.skip_to(colon + 1);
            if k > 0 {
                self.out.push(',');
            }
            let stop = parts.get(k + 1).map_or(close, |p| p.name);
            self.rewrite(colon + 1, stop, false);
        }
        self.skip_to(close + 1);
        self.out.push(')');
        close + 1
    }

    fn is_message(&self, open: usize, close: usize) -> bool {
        // After an operand a bracket subscripts it.
        if let Some(before) = open.checked_sub(1) {
            let text = self.text(before);
            let keyword = matches!(
                text,
                "return"
                    | "case"
                    | "else"
                    | "in"
                    | "throw"
                    | "co_return"
                    | "do"
                    | "and"
                    | "or"
                    | "not"
            );
            let operand = (self.is_word(before) && !keyword)
                || matches!(text, ")" | "]")
                || matches!(self.tokens[before].kind, Kind::Text | Kind::Number);
            if operand {
                // `(Type *)[x y]` is a cast of a message.
                let cast = text == ")" && self.is_cast(before);
                if !cast {
                    return false;
                }
            }
        }
        if close < open + 3 {
            return false;
        }
        // `[[nodiscard]]`.
        if self.text(open + 1) == "[" && self.partner[open + 1] == Some(close - 1) {
            return false;
        }
        if matches!(self.text(open + 1), "&" | "=" | "*") {
            return false;
        }
        !self.selector(open + 1, close).is_empty()
    }

    fn is_cast(&self, close: usize) -> bool {
        let Some(open) = self.partner[close] else { return false };
        let words = (open + 1..close)
            .all(|k| self.is_word(k) || matches!(self.text(k), "*" | "<" | ">" | "::" | "&"));
        let called = open.checked_sub(1).is_some_and(|b| {
            self.is_word(b) && !matches!(self.text(b), "return" | "case" | "in" | "else")
                || matches!(self.text(b), ")" | "]")
        });
        words && close > open + 1 && !called
    }

    /// The parts of the selector of a message; none if this is no message.
    fn selector(&self, from: usize, close: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = from;
        let mut ternaries = 0;
        while at < close {
            match self.text(at) {
                "(" | "[" | "{" => {
                    at = self.partner[at].unwrap_or(at) + 1;
                    continue;
                }
                "?" => ternaries += 1,
                ":" if ternaries > 0 => ternaries -= 1,
                ":" if at > from + 1 || !parts.is_empty() => {
                    let name = at - 1;
                    let member = name > from && matches!(self.text(name - 1), "." | "->" | "::");
                    if self.is_word(name) && name > from && !member {
                        parts.push(Part { name, colon: Some(at) });
                    }
                }
                "," if parts.is_empty() => return Vec::new(),
                _ => {}
            }
            at += 1;
        }
        if parts.is_empty() {
            // `[receiver message]`: the last word, with an operand directly before it.
            let last = close - 1;
            let before = last.checked_sub(1).filter(|b| *b >= from);
            let after_operand = before.is_some_and(|b| {
                self.is_word(b)
                    || matches!(self.text(b), ")" | "]" | ">")
                    || self.tokens[b].kind == Kind::Text
            });
            if self.is_word(last) && after_operand {
                parts.push(Part { name: last, colon: None });
            }
        }
        parts
    }

    /// A block literal or a block type.
    fn caret(&mut self, i: usize, end: usize) -> usize {
        let before = i.checked_sub(1).map_or("", |b| self.text(b));
        let operand = i > 0
            && (self.is_word(i - 1) && before != "return" || matches!(before, ")" | "]"))
            || i > 0 && self.tokens[i - 1].kind == Kind::Number;
        let next = self.text(i + 1);
        if before == "(" && (self.is_word(i + 1) && self.text(i + 2) == ")" || next == ")") {
            self.skip_to(i + 1);
            self.out.push('*');
            return i + 1;
        }
        if operand && !(before == ")" && next == "{") {
            self.copy(i);
            return i + 1;
        }
        let brace = (i + 1..end.min(i + 40)).find(|k| self.text(*k) == "{");
        let Some(brace) = brace else {
            self.copy(i);
            return i + 1;
        };
        // `^Type *(args) {`: the parameter list is what ends before the brace.
        self.skip_to(i + 1);
        self.out.push_str(" [&]");
        if self.text(brace - 1) == ")"
            && let Some(open) = self.partner[brace - 1].filter(|o| *o > i)
        {
            self.skip_to(open);
            return open;
        }
        self.skip_to(brace);
        brace
    }
}

struct Part {
    name: usize,
    colon: Option<usize>,
}

fn is_annotation(word: &str) -> bool {
    matches!(
        word,
        "nullable"
            | "nonnull"
            | "_Nullable"
            | "_Nonnull"
            | "__kindof"
            | "__unused"
            | "__strong"
            | "__weak"
            | "__block"
            | "null_unspecified"
            | "inout"
            | "out"
            | "bycopy"
            | "byref"
            | "oneway"
            | "IBOutlet"
            | "__nullable"
            | "__nonnull"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squeezed(source: &str) -> String {
        source.chars().filter(|c| !c.is_whitespace()).collect()
    }

    fn check(source: &str, expected: &str) {
        let out = to_cpp(source);
        assert_eq!(out.lines().count(), source.lines().count(), "{out}");
        assert_eq!(squeezed(&out), squeezed(expected));
    }

    #[test]
    fn messages_become_calls_under_their_selectors() {
        check(
            "[enc setBuffer:b offset:0 atIndex:i+1];",
            "enc->setBuffer_offset_atIndex(b, 0, i+1);",
        );
        check("id x = [[Foo alloc] initWith:y];", "id x = (Foo->alloc())->initWith(y);");
        check("float *p = (float *)[buf contents];", "float *p = (float *)buf->contents();");
        check("[a foo:b ? c : d bar:e];", "a->foo_bar(b ? c : d, e);");
    }

    #[test]
    fn brackets_of_cpp_stay() {
        for source in [
            "auto f = [&](int x) { return x; };",
            "v[i] = w[j];",
            "[[nodiscard]] int f();",
            "auto g = [x, y] { };",
        ] {
            check(source, source);
        }
    }

    #[test]
    fn methods_blocks_and_literals() {
        let source = "@implementation Foo\n- (void)run:(id<MTLBuffer>)b with:(int)n {\n  dispatch(^{ use(@\"x\"); });\n}\n@end\n";
        check(
            source,
            "class Foo { __objc_method run_with(id<MTLBuffer> b, int n) { dispatch([&]{ use(\"x\"); }); } };",
        );
    }

    #[test]
    fn interfaces_keep_their_fields() {
        let source = "@interface Foo : NSObject <P> {\n  id<MTLBuffer> _a;\n}\n@property (nonatomic) id<MTLBuffer> b;\n- (void)run;\n@end\n";
        check(source, "class Foo : public NSObject { id<MTLBuffer> _a; id<MTLBuffer> b; };");
    }
}
