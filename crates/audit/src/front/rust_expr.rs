//! Rust: expressions.

use std::borrow::Cow;

use tree_sitter::Node;

use super::rust::{Rust, base_type, bind_pattern};
use super::{children, literal, parse_int, span};
use crate::ir::{Arg, Call, Expr, ExprKind, Lambda, Span, Stmt};

impl<'s> Rust<'s> {
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

    fn only_child(&mut self, node: Node<'_>) -> Expr<'s> {
        match children(node).into_iter().next() {
            Some(inner) => self.expr(inner),
            None => literal(node),
        }
    }

    fn expr_inner(&mut self, node: Node<'_>) -> Expr<'s> {
        let at = span(node);
        let kind = match node.kind() {
            "identifier" | "self" | "type_identifier" | "crate" | "super" => {
                ExprKind::Name(self.cx.text(node))
            }
            "integer_literal" => {
                parse_int(self.cx.text(node)).map_or(ExprKind::Literal, ExprKind::Int)
            }
            "float_literal" | "boolean_literal" | "char_literal" | "unit_expression"
            | "negative_literal" => ExprKind::Literal,
            "string_literal" | "raw_string_literal" => return self.string(node),
            "scoped_identifier" => {
                let name = self.cx.field_text(node, "name").unwrap_or("");
                match node.child_by_field_name("path") {
                    Some(path) => ExprKind::Field(self.boxed(path), name),
                    None => ExprKind::Name(name),
                }
            }
            "field_expression" => {
                let (Some(value), Some(field)) =
                    (node.child_by_field_name("value"), node.child_by_field_name("field"))
                else {
                    return literal(node);
                };
                let name = self.cx.text(field);
                match name.parse::<i64>() {
                    // A tuple's element.
                    Ok(i) => {
                        let index = Expr::new(ExprKind::Int(i), span(field));
                        ExprKind::Index(self.boxed(value), Box::new(index))
                    }
                    Err(_) => ExprKind::Field(self.boxed(value), name),
                }
            }
            "index_expression" => {
                let parts = children(node);
                let [base, index] = parts.as_slice() else { return literal(node) };
                ExprKind::Index(self.boxed(*base), self.boxed(*index))
            }
            "call_expression" => self.call(node),
            "macro_invocation" => self.macro_invocation(node),
            "unary_expression" => {
                let starred = self.cx.text(node).starts_with('*');
                let inner = self.only_child(node);
                if starred {
                    ExprKind::Deref(Box::new(inner))
                } else {
                    ExprKind::Other(vec![inner])
                }
            }
            "reference_expression" => match node.child_by_field_name("value") {
                Some(value) => ExprKind::AddressOf(self.boxed(value)),
                None => ExprKind::Literal,
            },
            "try_expression" | "await_expression" | "parenthesized_expression" => {
                return self.only_child(node);
            }
            "type_cast_expression" => {
                let ty = self.cx.field_text(node, "type").unwrap_or("");
                match node.child_by_field_name("value") {
                    Some(value) => ExprKind::Cast(self.boxed(value), ty),
                    None => ExprKind::Literal,
                }
            }
            "binary_expression" => {
                let (Some(left), Some(right)) =
                    (node.child_by_field_name("left"), node.child_by_field_name("right"))
                else {
                    return literal(node);
                };
                let op = self.cx.field_text(node, "operator").unwrap_or("");
                ExprKind::Binary(op, self.boxed(left), self.boxed(right))
            }
            "array_expression" | "tuple_expression" => ExprKind::List(self.all(node)),
            "struct_expression" => self.struct_expression(node),
            "block" => {
                let mut body = Vec::new();
                let value = self.block(node, &mut body).map(Box::new);
                ExprKind::Block(body, value)
            }
            "unsafe_block" | "async_block" | "const_block" | "gen_block" | "try_block" => {
                return self.only_child(node);
            }
            "if_expression" => self.if_expression(node),
            "match_expression" => self.match_expression(node),
            "closure_expression" => self.closure(node),
            "assignment_expression" | "compound_assignment_expr" => match self.assignment(node) {
                Some(stmt) => ExprKind::Assign(Box::new(stmt)),
                None => ExprKind::Literal,
            },
            "return_expression" | "for_expression" | "while_expression" | "loop_expression" => {
                let mut body = Vec::new();
                self.statement(node, &mut body);
                ExprKind::Block(body, None)
            }
            "generic_function" => match node.child_by_field_name("function") {
                Some(function) => return self.expr(function),
                None => ExprKind::Literal,
            },
            _ => ExprKind::Other(self.all(node)),
        };
        Expr::new(kind, at)
    }

    fn all(&mut self, node: Node<'_>) -> Vec<Expr<'s>> {
        children(node).into_iter().map(|n| self.expr(n)).collect()
    }

    fn call(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let Some(mut function) = node.child_by_field_name("function") else {
            return ExprKind::Literal;
        };
        let mut type_arguments = None;
        if function.kind() == "generic_function" {
            type_arguments = self.cx.field_text(function, "type_arguments");
            if let Some(inner) = function.child_by_field_name("function") {
                function = inner;
            }
        }
        let (receiver, name_node) = match function.kind() {
            "field_expression" => {
                let value = function.child_by_field_name("value").map(|n| self.expr(n));
                (value, function.child_by_field_name("field").unwrap_or(function))
            }
            "scoped_identifier" => {
                let path = function.child_by_field_name("path").map(|n| self.expr(n));
                (path, function.child_by_field_name("name").unwrap_or(function))
            }
            "identifier" => (None, function),
            _ => (Some(self.expr(function)), function),
        };
        let name = match function.kind() {
            "field_expression" | "scoped_identifier" | "identifier" => self.cx.text(name_node),
            _ => "",
        };
        // `size_of::<u32>()`.
        if name == "size_of"
            && let Some(ty) = type_arguments
        {
            return ExprKind::SizeOf(ty.trim_start_matches("::").trim_matches(['<', '>']));
        }
        let args = node.child_by_field_name("arguments").map(|a| self.all(a)).unwrap_or_default();
        let args = args.into_iter().map(|value| Arg { label: None, value }).collect();
        let name_span = span(name_node);
        ExprKind::Call(Box::new(Call {
            name: Cow::Borrowed(name),
            receiver,
            args,
            name_span,
            is_macro: false,
        }))
    }

    fn struct_expression(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let ty = self.cx.field_text(node, "name").map(base_type);
        let mut entries = Vec::new();
        if let Some(body) = node.child_by_field_name("body") {
            for field in children(body) {
                match field.kind() {
                    "field_initializer" => {
                        let name = self
                            .cx
                            .field_text(field, "field")
                            .or_else(|| self.cx.field_text(field, "name"));
                        let value = field.child_by_field_name("value").map(|n| self.expr(n));
                        if let (Some(name), Some(value)) = (name, value) {
                            entries.push((name, value));
                        }
                    }
                    "shorthand_field_initializer" => {
                        let name = self.cx.text(field);
                        entries.push((name, Expr::new(ExprKind::Name(name), span(field))));
                    }
                    _ => {}
                }
            }
        }
        ExprKind::Record { ty, entries }
    }

    /// Branches of which the value may be used: each arm assigns it.
    fn branches(
        &mut self,
        before: Vec<Stmt<'s>>,
        arms: Vec<(Vec<Stmt<'s>>, Option<Expr<'s>>)>,
        at: Span,
    ) -> ExprKind<'s> {
        let mut out = before;
        let mut has_value = false;
        let arms = arms
            .into_iter()
            .map(|(mut body, value)| {
                if let Some(value) = value {
                    has_value = true;
                    let target = Expr::new(ExprKind::Name("<element>"), at);
                    body.push(Stmt::Assign {
                        target,
                        ty: None,
                        value: Some(value),
                        compound: false,
                        declares: true,
                    });
                }
                body
            })
            .collect();
        out.push(Stmt::Branch(arms));
        let value = has_value.then(|| Box::new(Expr::new(ExprKind::Name("<element>"), at)));
        ExprKind::Block(out, value)
    }

    fn if_expression(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let mut before = Vec::new();
        if let Some(condition) = node.child_by_field_name("condition") {
            self.condition(condition, &mut before);
        }
        let mut arms = Vec::new();
        if let Some(consequence) = node.child_by_field_name("consequence") {
            let mut body = Vec::new();
            let value = self.block(consequence, &mut body);
            arms.push((body, value));
        }
        match node.child_by_field_name("alternative").and_then(|a| children(a).into_iter().next()) {
            Some(block) if block.kind() == "block" => {
                let mut body = Vec::new();
                let value = self.block(block, &mut body);
                arms.push((body, value));
            }
            Some(other) => arms.push((Vec::new(), Some(self.expr(other)))),
            None => arms.push((Vec::new(), None)),
        }
        self.branches(before, arms, span(node))
    }

    fn match_expression(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let at = span(node);
        let mut before = Vec::new();
        let subject = Expr::new(ExprKind::Name("<subject>"), at);
        if let Some(value) = node.child_by_field_name("value").map(|n| self.expr(n)) {
            before.push(Stmt::Assign {
                target: subject,
                ty: None,
                value: Some(value),
                compound: false,
                declares: true,
            });
        }
        let mut arms = Vec::new();
        if let Some(body) = node.child_by_field_name("body") {
            for arm in children(body) {
                if arm.kind() != "match_arm" {
                    continue;
                }
                let mut stmts = Vec::new();
                if let Some(pattern) = arm.child_by_field_name("pattern") {
                    let target = self.pattern(pattern);
                    bind_pattern(target, at, &mut stmts);
                }
                let value = match arm.child_by_field_name("value") {
                    Some(block) if block.kind() == "block" => self.block(block, &mut stmts),
                    Some(value) => Some(self.expr(value)),
                    None => None,
                };
                arms.push((stmts, value));
            }
        }
        self.branches(before, arms, at)
    }

    fn closure(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let params = node
            .child_by_field_name("parameters")
            .map(|p| {
                children(p)
                    .into_iter()
                    .map(|n| {
                        let pattern = n.child_by_field_name("pattern").unwrap_or(n);
                        self.pattern_name(pattern)
                    })
                    .collect()
            })
            .unwrap_or_default();
        let mut body = Vec::new();
        if let Some(node) = node.child_by_field_name("body") {
            if node.kind() == "block" {
                let value = self.block(node, &mut body);
                body.extend(value.map(|v| Stmt::Return(Some(v))));
            } else {
                let value = self.expr(node);
                body.push(Stmt::Return(Some(value)));
            }
        }
        ExprKind::Lambda(Box::new(Lambda { params, body }))
    }

    pub(super) fn string(&mut self, node: Node<'_>) -> Expr<'s> {
        for child in children(node) {
            if child.kind() == "string_content" {
                let text = self.cx.text(child);
                self.cx.note_string(span(child).start, text);
                return Expr::new(ExprKind::Str(text), span(node));
            }
        }
        Expr::new(ExprKind::Str(""), span(node))
    }
}
