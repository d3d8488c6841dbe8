//! Rust: macro invocations, whose token trees are read as expressions as far as they look like ones.

use std::borrow::Cow;

use tree_sitter::Node;

use super::rust::Rust;
use super::{children, literal, span};
use crate::ir::{Arg, Call, Expr, ExprKind, Span};

impl<'s> Rust<'s> {
    // ---- macros: token trees, read as expressions as far as they look like ones ----

    pub(super) fn macro_invocation(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let name_node = node.child_by_field_name("macro");
        let name = name_node.map_or("", |n| self.cx.text(n)).rsplit(':').next().unwrap_or("");
        let tree = children(node).into_iter().find(|n| n.kind() == "token_tree");
        if matches!(name, "msg_send" | "msg_send_id" | "msg_send_bool")
            && let Some(call) = tree.and_then(|t| self.message(t))
        {
            return call;
        }
        let args = tree.map(|t| self.token_list(t)).unwrap_or_default();
        let name_span = name_node.map_or(span(node), span);
        if name == "vec" {
            return ExprKind::List(args);
        }
        let args = args.into_iter().map(|value| Arg { label: None, value }).collect();
        ExprKind::Call(Box::new(Call {
            name: Cow::Borrowed(name),
            receiver: None,
            args,
            name_span,
            is_macro: true,
        }))
    }

    /// `msg_send![receiver, setBuffer: b offset: 0 atIndex: 1]` is a call under its selector's name.
    fn message(&mut self, tree: Node<'_>) -> Option<ExprKind<'s>> {
        let mut cursor = tree.walk();
        let tokens: Vec<Node<'_>> = tree.children(&mut cursor).collect();
        let inner = tokens.get(1..tokens.len().checked_sub(1)?)?;
        let comma = inner.iter().position(|t| t.kind() == ",")?;
        let receiver = Some(self.token_expr(&inner[..comma]));
        let rest = &inner[comma + 1..];
        let colons: Vec<usize> = (1..rest.len())
            .filter(|&i| rest[i].kind() == ":" && rest[i - 1].kind() == "identifier")
            .collect();
        let first = rest.first()?;
        if colons.is_empty() {
            let name = Cow::Borrowed(self.cx.text(*first));
            let call =
                Call { name, receiver, args: Vec::new(), name_span: span(*first), is_macro: false };
            return Some(ExprKind::Call(Box::new(call)));
        }
        let mut parts = Vec::new();
        let mut args = Vec::new();
        for (k, &colon) in colons.iter().enumerate() {
            parts.push(self.cx.text(rest[colon - 1]));
            let end = colons.get(k + 1).map_or(rest.len(), |next| next - 1);
            let value = &rest[colon + 1..end];
            // objc2 separates the parts with commas.
            let value = match value.split_last() {
                Some((last, before)) if last.kind() == "," => before,
                _ => value,
            };
            args.push(Arg { label: None, value: self.token_expr(value) });
        }
        let call = Call {
            name: Cow::Owned(parts.join("_")),
            receiver,
            args,
            name_span: span(*first),
            is_macro: false,
        };
        Some(ExprKind::Call(Box::new(call)))
    }

    /// The expressions between the commas of a token tree.
    fn token_list(&mut self, tree: Node<'_>) -> Vec<Expr<'s>> {
        if self.cx.depth > super::MAX_DEPTH {
            return Vec::new();
        }
        self.cx.depth += 1;
        let mut cursor = tree.walk();
        let tokens: Vec<Node<'_>> = tree.children(&mut cursor).collect();
        let inner = tokens.get(1..tokens.len().saturating_sub(1)).unwrap_or_default();
        let mut out = Vec::new();
        for group in inner.split(|t| matches!(t.kind(), "," | ";")) {
            if !group.is_empty() {
                out.push(self.token_expr(group));
            }
        }
        self.cx.depth -= 1;
        out
    }

    fn token_expr(&mut self, tokens: &[Node<'_>]) -> Expr<'s> {
        let start = tokens.first().map_or(0, |t| span(*t).start);
        let at = Span { start, end: tokens.last().map_or(start, |t| span(*t).end) };
        let mut operands: Vec<Expr<'s>> = Vec::new();
        let mut current: Option<Expr<'s>> = None;
        let mut i = 0;
        while i < tokens.len() {
            let token = tokens[i];
            match token.kind() {
                "identifier" | "self" | "type_identifier" | "primitive_type" => {
                    let name = self.cx.text(token);
                    let dotted = i > 0 && matches!(tokens[i - 1].kind(), "." | "::");
                    let receiver = if dotted { current.take() } else { None };
                    operands.extend(current.take());
                    let called = tokens.get(i + 1).is_some_and(|t| {
                        t.kind() == "token_tree" && self.cx.text(*t).starts_with('(')
                    });
                    current = Some(if called {
                        let args = self.token_list(tokens[i + 1]);
                        let args =
                            args.into_iter().map(|value| Arg { label: None, value }).collect();
                        let end = span(tokens[i + 1]).end;
                        i += 1;
                        let call = Call {
                            name: Cow::Borrowed(name),
                            receiver,
                            args,
                            name_span: span(token),
                            is_macro: false,
                        };
                        Expr::new(ExprKind::Call(Box::new(call)), Span { start, end })
                    } else if let Some(receiver) = receiver {
                        let end = span(token).end;
                        Expr::new(ExprKind::Field(Box::new(receiver), name), Span { start, end })
                    } else {
                        Expr::new(ExprKind::Name(name), span(token))
                    });
                }
                "token_tree" => {
                    let text = self.cx.text(token);
                    let mut items = self.token_list(token);
                    if text.starts_with('(') && items.len() == 1 {
                        operands.extend(current.take());
                        current = Some(items.remove(0));
                    } else if text.starts_with('[') && current.is_some() {
                        let index = if items.is_empty() { literal(token) } else { items.remove(0) };
                        current = current.take().map(|base| {
                            let at = Span { start: base.span.start, end: span(token).end };
                            Expr::new(ExprKind::Index(Box::new(base), Box::new(index)), at)
                        });
                    } else {
                        operands.extend(current.take());
                        current = Some(Expr::new(ExprKind::List(items), span(token)));
                    }
                }
                "." | "::" | "&" | "mut" | "mutable_specifier" | "?" | "as" => {}
                "integer_literal" => {
                    operands.extend(current.take());
                    current = Some(self.expr(token));
                }
                "string_literal" | "raw_string_literal" => {
                    operands.extend(current.take());
                    current = Some(self.string(token));
                }
                _ => operands.extend(current.take()),
            }
            i += 1;
        }
        match (operands.is_empty(), current) {
            (true, Some(only)) => only,
            (_, current) => {
                operands.extend(current);
                Expr::new(ExprKind::Other(operands), at)
            }
        }
    }
}
