//! Swift: expressions.

use std::borrow::Cow;

use tree_sitter::Node;

use super::swift::Swift;
use super::{children, field_children, literal, parse_int, span};
use crate::ir::{Arg, Call, Expr, ExprKind, Lambda, Stmt};

impl<'s> Swift<'s> {
    fn boxed(&mut self, node: Node<'_>) -> Box<Expr<'s>> {
        Box::new(self.expr(node))
    }

    pub(super) fn expr(&mut self, node: Node<'_>) -> Expr<'s> {
        self.cx.depth += 1;
        let out =
            if self.cx.depth > super::MAX_DEPTH { literal(node) } else { self.expr_inner(node) };
        self.cx.depth -= 1;
        out
    }

    fn field(&mut self, node: Node<'_>, name: &str) -> Expr<'s> {
        node.child_by_field_name(name).map_or_else(|| literal(node), |n| self.expr(n))
    }

    fn expr_inner(&mut self, node: Node<'_>) -> Expr<'s> {
        let at = span(node);
        let kind = match node.kind() {
            "simple_identifier" | "self_expression" | "super_expression" | "type_identifier" => {
                ExprKind::Name(self.cx.text(node))
            }
            "integer_literal" | "hex_literal" | "bin_literal" | "oct_literal" => {
                parse_int(self.cx.text(node)).map_or(ExprKind::Literal, ExprKind::Int)
            }
            "boolean_literal" | "nil_literal" | "real_literal" | "nil" => ExprKind::Literal,
            "line_string_literal" | "multi_line_string_literal" | "raw_string_literal" => {
                return self.string(node);
            }
            "navigation_expression" => {
                let object = Box::new(self.field(node, "target"));
                let name = node
                    .child_by_field_name("suffix")
                    .and_then(|s| {
                        s.child_by_field_name("suffix").or_else(|| children(s).into_iter().next())
                    })
                    .map_or("", |n| self.cx.text(n));
                match name.parse::<i64>() {
                    Ok(i) => ExprKind::Index(object, Box::new(Expr::new(ExprKind::Int(i), at))),
                    Err(_) => ExprKind::Field(object, name),
                }
            }
            "prefix_expression" => {
                let target = node.child_by_field_name("target");
                match (self.cx.field_text(node, "operation"), target) {
                    (Some("&"), Some(target)) => ExprKind::AddressOf(self.boxed(target)),
                    (_, Some(target)) => return self.expr(target),
                    _ => ExprKind::Literal,
                }
            }
            "postfix_expression" => return self.field(node, "target"),
            "try_expression" | "await_expression" => return self.field(node, "expr"),
            "as_expression" => {
                let ty = self.cx.field_text(node, "name").unwrap_or("");
                ExprKind::Cast(Box::new(self.field(node, "expr")), ty)
            }
            "call_expression" | "constructor_expression" => self.call(node),
            "assignment" => match self.assignment(node) {
                Some(stmt) => ExprKind::Assign(Box::new(stmt)),
                None => ExprKind::Literal,
            },
            "nil_coalescing_expression" => {
                ExprKind::OneOf(vec![self.field(node, "value"), self.field(node, "if_nil")])
            }
            "ternary_expression" => {
                let condition = Stmt::Expr(self.field(node, "condition"));
                let values = ExprKind::OneOf(vec![
                    self.field(node, "if_true"),
                    self.field(node, "if_false"),
                ]);
                ExprKind::Block(vec![condition], Some(Box::new(Expr::new(values, at))))
            }
            "additive_expression"
            | "multiplicative_expression"
            | "bitwise_operation"
            | "range_expression"
            | "comparison_expression"
            | "equality_expression"
            | "conjunction_expression"
            | "disjunction_expression"
            | "infix_expression" => return self.binary(node),
            "array_literal" => ExprKind::List(
                field_children(node, "element").into_iter().map(|n| self.expr(n)).collect(),
            ),
            "tuple_expression" => {
                let mut items: Vec<_> =
                    field_children(node, "value").into_iter().map(|n| self.expr(n)).collect();
                if items.len() == 1 {
                    return items.remove(0);
                }
                ExprKind::List(items)
            }
            "dictionary_literal" => {
                let keys = field_children(node, "key");
                let values = field_children(node, "value");
                let mut entries = Vec::new();
                for (key, value) in keys.into_iter().zip(values) {
                    let key = match self.expr(key).kind {
                        ExprKind::Str(text) | ExprKind::Name(text) => text,
                        _ => "",
                    };
                    entries.push((key, self.expr(value)));
                }
                ExprKind::Record { ty: None, entries }
            }
            "lambda_literal" => self.lambda(node),
            "if_statement"
            | "switch_statement"
            | "do_statement"
            | "for_statement"
            | "while_statement"
            | "guard_statement"
            | "control_transfer_statement"
            | "property_declaration"
            | "statements" => {
                let mut body = Vec::new();
                self.statement(node, &mut body);
                ExprKind::Block(body, None)
            }
            "function_declaration" | "class_declaration" => {
                let mut body = Vec::new();
                self.statement(node, &mut body);
                ExprKind::Block(body, None)
            }
            _ => ExprKind::Other(children(node).into_iter().map(|n| self.expr(n)).collect()),
        };
        Expr::new(kind, at)
    }

    fn binary(&mut self, node: Node<'_>) -> Expr<'s> {
        let at = span(node);
        let text = self.cx.text(node);
        // `MemoryLayout<UInt32>.stride * n` reads as comparisons to the grammar.
        if let Some(rest) = text.strip_prefix("MemoryLayout<")
            && let Some((ty, rest)) = rest.split_once('>')
        {
            let size = Expr::new(ExprKind::SizeOf(ty), at);
            let rest = rest.trim_start_matches(".stride").trim_start_matches(".size").trim();
            return match rest.strip_prefix('*').map(str::trim) {
                None if rest.is_empty() => size,
                Some(count) => {
                    let kind = if count.bytes().all(|b| b.is_ascii_digit()) {
                        parse_int(count).map_or(ExprKind::Literal, ExprKind::Int)
                    } else {
                        ExprKind::Literal
                    };
                    Expr::new(
                        ExprKind::Binary("*", Box::new(size), Box::new(Expr::new(kind, at))),
                        at,
                    )
                }
                None => literal(node),
            };
        }
        let left = node.child_by_field_name("lhs").or_else(|| node.child_by_field_name("start"));
        let right = node.child_by_field_name("rhs").or_else(|| node.child_by_field_name("end"));
        let op = self.cx.field_text(node, "op").unwrap_or("");
        match (left, right) {
            (Some(left), Some(right)) => {
                Expr::new(ExprKind::Binary(op, self.boxed(left), self.boxed(right)), at)
            }
            _ => Expr::new(
                ExprKind::Other(children(node).into_iter().map(|n| self.expr(n)).collect()),
                at,
            ),
        }
    }

    fn call(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let parts = children(node);
        let Some(function) = parts.first().copied() else { return ExprKind::Literal };
        let mut args = Vec::new();
        let mut subscript = false;
        for suffix in &parts[1..] {
            for part in children(*suffix) {
                match part.kind() {
                    "value_arguments" => {
                        subscript = self.cx.text(part).starts_with('[');
                        for argument in children(part) {
                            let label = self.cx.field_text(argument, "name");
                            let value = argument
                                .child_by_field_name("value")
                                .map_or_else(|| literal(argument), |n| self.expr(n));
                            args.push(Arg { label, value });
                        }
                    }
                    "lambda_literal" => {
                        let value = self.expr(part);
                        args.push(Arg { label: None, value });
                    }
                    _ => {}
                }
            }
        }
        if subscript {
            let base = self.boxed(function);
            let index = match args.len() {
                1 => args.remove(0).value,
                _ => Expr::new(
                    ExprKind::Other(args.into_iter().map(|a| a.value).collect()),
                    span(node),
                ),
            };
            return ExprKind::Index(base, Box::new(index));
        }
        let (receiver, name, name_span) = match function.kind() {
            "navigation_expression" => {
                let object = function.child_by_field_name("target").map(|n| self.expr(n));
                let suffix = function.child_by_field_name("suffix").unwrap_or(function);
                let name_node = suffix.child_by_field_name("suffix").unwrap_or(suffix);
                (object, self.cx.text(name_node), span(name_node))
            }
            "simple_identifier" | "user_type" | "array_type" => {
                let text = self.cx.text(function);
                (None, text.split('<').next().unwrap_or(text), span(function))
            }
            "prefix_expression" => {
                let target = function.child_by_field_name("target").unwrap_or(function);
                (None, self.cx.text(target), span(target))
            }
            _ => (Some(self.expr(function)), "", span(function)),
        };
        ExprKind::Call(Box::new(Call {
            name: Cow::Borrowed(name),
            receiver,
            args,
            name_span,
            is_macro: false,
        }))
    }

    fn lambda(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let mut params = Vec::new();
        if let Some(ty) = node.child_by_field_name("type") {
            self.lambda_params(ty, &mut params);
        }
        let mut body = self.body(node);
        if let [Stmt::Expr(_)] = body.as_slice()
            && let Some(Stmt::Expr(value)) = body.pop()
        {
            body.push(Stmt::Return(Some(value)));
        }
        ExprKind::Lambda(Box::new(Lambda { params, body }))
    }

    fn lambda_params(&self, node: Node<'_>, out: &mut Vec<&'s str>) {
        for child in children(node) {
            if child.kind() == "lambda_parameter" {
                out.extend(self.cx.field_text(child, "name"));
            } else {
                self.lambda_params(child, out);
            }
        }
    }

    fn string(&mut self, node: Node<'_>) -> Expr<'s> {
        let mut parts = Vec::new();
        for child in children(node) {
            if child.kind() == "interpolated_expression" {
                parts.push(self.expr(child));
            }
        }
        let texts = field_children(node, "text");
        let (Some(first), Some(last)) = (texts.first(), texts.last()) else {
            return Expr::new(ExprKind::Other(parts), span(node));
        };
        let (start, end) = (span(*first).start, span(*last).end);
        let text = self.cx.source.get(start as usize..end as usize).unwrap_or("");
        self.cx.note_string(start, text);
        if parts.is_empty() {
            Expr::new(ExprKind::Str(text), span(node))
        } else {
            Expr::new(ExprKind::Other(parts), span(node))
        }
    }
}
