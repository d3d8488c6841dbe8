//! C, C++ and Objective-C: expressions.

use std::borrow::Cow;

use tree_sitter::Node;

use super::c_family::{CFamily, last_of_path};
use super::{children, field_children, literal, parse_int, span};
use crate::ir::{Arg, Call, Expr, ExprKind, Lambda, Stmt};

impl<'s> CFamily<'s> {
    fn boxed(&mut self, node: Node<'_>) -> Box<Expr<'s>> {
        Box::new(self.expr(node))
    }

    pub(super) fn all(&mut self, node: Node<'_>) -> Vec<Expr<'s>> {
        children(node).into_iter().map(|n| self.expr(n)).collect()
    }

    pub(super) fn expr(&mut self, node: Node<'_>) -> Expr<'s> {
        self.cx.depth += 1;
        let out =
            if self.cx.depth > super::MAX_DEPTH { literal(node) } else { self.expr_inner(node) };
        self.cx.depth -= 1;
        out
    }

    fn field_boxed(&mut self, node: Node<'_>, field: &str) -> Option<Box<Expr<'s>>> {
        node.child_by_field_name(field).map(|n| self.boxed(n))
    }

    fn expr_inner(&mut self, node: Node<'_>) -> Expr<'s> {
        let at = span(node);
        let kind = match node.kind() {
            "identifier"
            | "field_identifier"
            | "type_identifier"
            | "this"
            | "namespace_identifier"
            | "self" => ExprKind::Name(self.cx.text(node)),
            "number_literal" => {
                parse_int(self.cx.text(node)).map_or(ExprKind::Literal, ExprKind::Int)
            }
            "true" | "false" | "null" | "nullptr" | "char_literal" => ExprKind::Literal,
            "string_literal"
            | "raw_string_literal"
            | "concatenated_string"
            | "string_expression" => {
                return self.string(node);
            }
            "qualified_identifier" => {
                let (scope, name) =
                    (node.child_by_field_name("scope"), node.child_by_field_name("name"));
                match (scope, name) {
                    (Some(scope), Some(name)) if name.kind() == "qualified_identifier" => {
                        let _ = scope;
                        return self.expr(name);
                    }
                    (Some(scope), Some(name)) => {
                        let object = Expr::new(ExprKind::Name(self.cx.text(scope)), span(scope));
                        ExprKind::Field(Box::new(object), template_name(self.cx.text(name)))
                    }
                    _ => ExprKind::Name(last_of_path(self.cx.text(node))),
                }
            }
            "template_function" | "template_method" => {
                ExprKind::Name(self.cx.field_text(node, "name").unwrap_or(""))
            }
            "field_expression" => {
                let Some(object) = self.field_boxed(node, "argument") else { return literal(node) };
                let name = self.cx.field_text(node, "field").unwrap_or("");
                ExprKind::Field(object, template_name(name))
            }
            "subscript_expression" => {
                let Some(base) = self.field_boxed(node, "argument") else { return literal(node) };
                let index = node.child_by_field_name("index").or_else(|| {
                    node.child_by_field_name("indices").and_then(|n| children(n).into_iter().next())
                });
                match index {
                    Some(index) => ExprKind::Index(base, self.boxed(index)),
                    None => ExprKind::Index(base, Box::new(literal(node))),
                }
            }
            "call_expression" => self.call(node),
            "message_expression" => self.message(node),
            "assignment_expression" => {
                let (Some(left), Some(right)) =
                    (node.child_by_field_name("left"), node.child_by_field_name("right"))
                else {
                    return literal(node);
                };
                let value = Some(self.expr(right));
                let target = self.expr(left);
                let compound = self.cx.field_text(node, "operator") != Some("=");
                ExprKind::Assign(Box::new(Stmt::Assign {
                    target,
                    ty: None,
                    value,
                    compound,
                    declares: false,
                }))
            }
            "pointer_expression" => {
                let Some(inner) = self.field_boxed(node, "argument") else { return literal(node) };
                match self.cx.field_text(node, "operator") {
                    Some("&") => ExprKind::AddressOf(inner),
                    _ => ExprKind::Deref(inner),
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
            "cast_expression" | "bridge_cast_expression" => {
                let ty = self.cx.field_text(node, "type").unwrap_or("");
                match self.field_boxed(node, "value") {
                    Some(value) => ExprKind::Cast(value, ty),
                    None => ExprKind::Other(self.all(node)),
                }
            }
            "sizeof_expression" => {
                let of =
                    node.child_by_field_name("type").or_else(|| node.child_by_field_name("value"));
                let text = of.map_or("", |n| self.cx.text(n)).trim_matches(['(', ')', ' ']);
                ExprKind::SizeOf(self.types.get(text).copied().unwrap_or(text))
            }
            "conditional_expression" => {
                let condition = node.child_by_field_name("condition").map(|n| self.expr(n));
                let mut values = Vec::new();
                for field in ["consequence", "alternative"] {
                    values.extend(node.child_by_field_name(field).map(|n| self.expr(n)));
                }
                let value = Box::new(Expr::new(ExprKind::OneOf(values), at));
                ExprKind::Block(condition.into_iter().map(Stmt::Expr).collect(), Some(value))
            }
            "initializer_list" | "array_literal" => self.initializer(node),
            "compound_literal_expression" => match node.child_by_field_name("value") {
                Some(value) => return self.expr(value),
                None => ExprKind::Literal,
            },
            "lambda_expression" => self.lambda(node),
            "block_literal" | "block_expression" => self.block_literal(node),
            "parenthesized_expression" | "condition_clause" | "at_expression" => {
                let parts = children(node);
                match parts.as_slice() {
                    [inner] => return self.expr(*inner),
                    _ => ExprKind::Other(self.all(node)),
                }
            }
            "expression_statement"
            | "declaration"
            | "compound_statement"
            | "return_statement"
            | "if_statement" => {
                let mut body = Vec::new();
                if node.kind() == "compound_statement" {
                    self.statements(node, &mut body);
                } else {
                    self.statements_of_one(node, &mut body);
                }
                ExprKind::Block(body, None)
            }
            "new_expression" => {
                let name = self
                    .cx
                    .field_text(node, "type")
                    .map(|t| last_of_path(t.split('<').next().unwrap_or(t)));
                let args =
                    node.child_by_field_name("arguments").map(|a| self.all(a)).unwrap_or_default();
                self.plain_call(name.unwrap_or(""), None, args, node)
            }
            "type_descriptor" | "primitive_type" | "sized_type_specifier" | "comment" => {
                ExprKind::Literal
            }
            _ => ExprKind::Other(self.all(node)),
        };
        Expr::new(kind, at)
    }

    fn statements_of_one(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        for child in children(node) {
            let value = self.expr(child);
            out.push(Stmt::Expr(value));
        }
    }

    fn plain_call(
        &mut self,
        name: &'s str,
        receiver: Option<Expr<'s>>,
        args: Vec<Expr<'s>>,
        at: Node<'_>,
    ) -> ExprKind<'s> {
        let args = args.into_iter().map(|value| Arg { label: None, value }).collect();
        let call = Call {
            name: Cow::Borrowed(name),
            receiver,
            args,
            name_span: span(at),
            is_macro: false,
        };
        ExprKind::Call(Box::new(call))
    }

    fn call(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let Some(function) = node.child_by_field_name("function") else { return ExprKind::Literal };
        let args = node.child_by_field_name("arguments").map(|a| self.all(a)).unwrap_or_default();
        let (receiver, name_node) = match function.kind() {
            "field_expression" => {
                let object = function.child_by_field_name("argument").map(|n| self.expr(n));
                (object, function.child_by_field_name("field").unwrap_or(function))
            }
            "qualified_identifier" => {
                let mut scope = function.child_by_field_name("scope");
                let mut name = function.child_by_field_name("name").unwrap_or(function);
                while name.kind() == "qualified_identifier" {
                    scope = name.child_by_field_name("scope");
                    name = name.child_by_field_name("name").unwrap_or(function);
                    if name.id() == function.id() {
                        break;
                    }
                }
                let object = scope.map(|s| Expr::new(ExprKind::Name(self.cx.text(s)), span(s)));
                (object, name)
            }
            "identifier" | "template_function" => (None, function),
            _ => (Some(self.expr(function)), function),
        };
        let name = match function.kind() {
            "field_expression" | "qualified_identifier" | "identifier" | "template_function" => {
                template_name(self.cx.text(name_node))
            }
            _ => "",
        };
        match name {
            // Lists and dictionaries of Objective-C++ literals.
            "NSLIST" => return ExprKind::List(args),
            "static_cast" | "reinterpret_cast" | "const_cast" | "dynamic_cast"
                if args.len() == 1 =>
            {
                let ty = template_argument(self.cx.text(name_node));
                let mut args = args;
                return ExprKind::Cast(Box::new(args.remove(0)), ty);
            }
            _ => {}
        }
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

    /// `[receiver part:argument part:argument]`.
    fn message(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let receiver = node.child_by_field_name("receiver");
        let methods = field_children(node, "method");
        let mut parts = Vec::new();
        let mut args = Vec::new();
        for child in children(node) {
            if receiver.is_some_and(|r| r.id() == child.id()) {
                continue;
            }
            if methods.iter().any(|m| m.id() == child.id()) {
                parts.push(self.cx.text(child));
            } else {
                let value = self.expr(child);
                args.push(Arg { label: parts.last().copied().filter(|_| parts.len() > 1), value });
            }
        }
        let name = match parts.as_slice() {
            [one] => Cow::Borrowed(*one),
            many => Cow::Owned(many.join("_")),
        };
        let name_span = methods.first().map_or(span(node), |m| span(*m));
        let receiver = receiver.map(|r| self.expr(r));
        ExprKind::Call(Box::new(Call { name, receiver, args, name_span, is_macro: false }))
    }

    /// `{a, b}`, or `{.x = a, .y = b}`.
    fn initializer(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let parts = children(node);
        if !parts.iter().any(|p| p.kind() == "initializer_pair") {
            return ExprKind::List(self.all(node));
        }
        let mut entries = Vec::new();
        for part in parts {
            let name = part
                .child_by_field_name("designator")
                .map(|d| self.cx.text(d).trim_start_matches(['.', '[']).trim_end_matches(']'));
            let value = part.child_by_field_name("value").unwrap_or(part);
            let value = self.expr(value);
            entries.push((name.unwrap_or(""), value));
        }
        ExprKind::Record { ty: None, entries }
    }

    fn lambda(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let mut params = Vec::new();
        if let Some(list) =
            node.child_by_field_name("declarator").and_then(|d| d.child_by_field_name("parameters"))
        {
            for param in children(list) {
                params.extend(
                    param.child_by_field_name("declarator").and_then(|d| self.declared_name(d)),
                );
            }
        }
        let mut body = Vec::new();
        if let Some(block) = node.child_by_field_name("body") {
            self.statements(block, &mut body);
        }
        ExprKind::Lambda(Box::new(Lambda { params, body }))
    }

    fn block_literal(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let mut params = Vec::new();
        let mut body = Vec::new();
        for child in children(node) {
            match child.kind() {
                "parameter_list" => {
                    for param in children(child) {
                        params.extend(
                            param
                                .child_by_field_name("declarator")
                                .and_then(|d| self.declared_name(d)),
                        );
                    }
                }
                "compound_statement" => self.statements(child, &mut body),
                _ => {}
            }
        }
        ExprKind::Lambda(Box::new(Lambda { params, body }))
    }

    fn string(&mut self, node: Node<'_>) -> Expr<'s> {
        let mut content: Option<(u32, u32)> = None;
        self.string_content(node, &mut content);
        let (start, end) = content.unwrap_or((0, 0));
        let text = self.cx.source.get(start as usize..end as usize).unwrap_or("");
        self.cx.note_string(start, text);
        Expr::new(ExprKind::Str(text), span(node))
    }

    /// The range from the first to the last content of a string and its continuations.
    fn string_content(&self, node: Node<'_>, content: &mut Option<(u32, u32)>) {
        for child in children(node) {
            if matches!(child.kind(), "string_content" | "raw_string_content") {
                let at = span(child);
                let start = content.map_or(at.start, |c| c.0);
                *content = Some((start, at.end));
            } else {
                self.string_content(child, content);
            }
        }
    }
}

/// `make` of `make<float>`.
fn template_name(name: &str) -> &str {
    name.split('<').next().unwrap_or(name).trim()
}

/// `float*` of `static_cast<float*>`.
fn template_argument(name: &str) -> &str {
    name.split_once('<').map_or("", |(_, rest)| rest.trim_end_matches('>'))
}
