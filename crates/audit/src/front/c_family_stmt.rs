//! C, C++ and Objective-C: statements.

use std::borrow::Cow;

use tree_sitter::Node;

use super::c_family::{CFamily, last_of_path};
use super::{children, field_children, literal, span};
use crate::ir::{Arg, Call, Expr, ExprKind, Span, Stmt};

impl<'s> CFamily<'s> {
    pub(super) fn statements(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        for child in children(node) {
            self.statement(child, out);
        }
    }

    fn arm(&mut self, node: Option<Node<'_>>) -> Vec<Stmt<'s>> {
        let mut out = Vec::new();
        if let Some(node) = node {
            self.statement(node, &mut out);
        }
        out
    }

    pub(super) fn statement(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        if self.cx.depth > super::MAX_DEPTH {
            return;
        }
        self.cx.depth += 1;
        self.statement_inner(node, out);
        self.cx.depth -= 1;
    }

    fn statement_inner(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        match node.kind() {
            "declaration" => self.declaration(node, out),
            "expression_statement"
            | "throw_statement"
            | "co_return_statement"
            | "co_yield_statement" => {
                for child in children(node) {
                    let value = self.expr(child);
                    out.push(match value.kind {
                        ExprKind::Assign(stmt) => *stmt,
                        kind => Stmt::Expr(Expr::new(kind, value.span)),
                    });
                }
            }
            "return_statement" => {
                let value = children(node).into_iter().next().map(|n| self.expr(n));
                out.push(Stmt::Return(value));
            }
            "if_statement" => {
                if let Some(condition) = node.child_by_field_name("condition") {
                    self.condition(condition, out);
                }
                let arms = vec![
                    self.arm(node.child_by_field_name("consequence")),
                    self.arm(node.child_by_field_name("alternative")),
                ];
                out.push(Stmt::Branch(arms));
            }
            "for_statement" => {
                if let Some(initializer) = node.child_by_field_name("initializer") {
                    self.statement(initializer, out);
                }
                // Objective-C's `for (id x in list)` has its list as the right side.
                if let Some(right) = node.child_by_field_name("right") {
                    self.range_loop(node, right, out);
                    return;
                }
                let mut body = Vec::new();
                for field in ["condition", "update"] {
                    if let Some(part) = node.child_by_field_name(field) {
                        let value = self.expr(part);
                        body.push(Stmt::Expr(value));
                    }
                }
                body.extend(self.arm(node.child_by_field_name("body")));
                out.push(Stmt::Loop { target: None, iter: None, body });
            }
            "for_range_loop" | "for_in_statement" => {
                if let Some(right) = node.child_by_field_name("right") {
                    self.range_loop(node, right, out);
                }
            }
            "while_statement" | "do_statement" => {
                let mut body = Vec::new();
                if let Some(condition) = node.child_by_field_name("condition") {
                    self.condition(condition, &mut body);
                }
                body.extend(self.arm(node.child_by_field_name("body")));
                out.push(Stmt::Loop { target: None, iter: None, body });
            }
            "switch_statement" => {
                if let Some(condition) = node.child_by_field_name("condition") {
                    self.condition(condition, out);
                }
                let mut arms = vec![Vec::new()];
                if let Some(body) = node.child_by_field_name("body") {
                    for case in children(body) {
                        let mut arm = Vec::new();
                        for part in children(case) {
                            if part.kind().ends_with("statement") || part.kind() == "declaration" {
                                self.statement(part, &mut arm);
                            }
                        }
                        arms.push(arm);
                    }
                }
                out.push(Stmt::Branch(arms));
            }
            "comment"
            | "break_statement"
            | "continue_statement"
            | "goto_statement"
            | "preproc_include"
            | "preproc_call"
            | "preproc_function_def"
            | "using_declaration"
            | "type_definition"
            | "static_assert_declaration"
            | "alias_declaration"
            | "statement_identifier"
            | "preproc_arg" => {}
            "preproc_def" => self.define(node),
            "class_specifier" | "struct_specifier" | "enum_specifier" => self.item(node),
            "compound_statement"
            | "else_clause"
            | "labeled_statement"
            | "try_statement"
            | "catch_clause"
            | "preproc_if"
            | "preproc_ifdef"
            | "preproc_else"
            | "preproc_elif"
            | "case_statement"
            | "ERROR"
            | "autoreleasepool_statement"
            | "synchronized_statement"
            | "init_statement"
            | "finally_clause" => {
                self.statements(node, out);
            }
            kind if kind.ends_with("_statement") && kind != "message_statement" => {
                self.statements(node, out)
            }
            _ => {
                let value = self.expr(node);
                out.push(Stmt::Expr(value));
            }
        }
    }

    fn range_loop(&mut self, node: Node<'_>, right: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        let target = node
            .child_by_field_name("declarator")
            .or_else(|| node.child_by_field_name("left"))
            .and_then(|d| Some((self.declared_name_within(d)?, span(d))))
            .map(|(name, at)| Expr::new(ExprKind::Name(name), at));
        let iter = Some(self.expr(right));
        let body = self.arm(node.child_by_field_name("body"));
        out.push(Stmt::Loop { target, iter, body });
    }

    fn declared_name_within(&self, node: Node<'_>) -> Option<&'s str> {
        self.declared_name(node)
            .or_else(|| children(node).into_iter().rev().find_map(|n| self.declared_name_within(n)))
    }

    /// `if (auto x = f(); x)` declares before the branch.
    fn condition(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        if node.kind() == "condition_clause" {
            for child in children(node) {
                self.statement(child, out);
            }
            return;
        }
        let value = self.expr(node);
        out.push(Stmt::Expr(value));
    }

    pub(super) fn declaration(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        let ty = self.cx.field_text(node, "type");
        for declarator in field_children(node, "declarator") {
            if declarator.kind() == "function_declarator" {
                continue;
            }
            let Some(name) = self.declared_name(declarator) else { continue };
            self.types.insert(name, ty.unwrap_or(""));
            let target = Expr::new(ExprKind::Name(name), declared_span(declarator));
            let value = match declarator.kind() {
                "init_declarator" => {
                    declarator.child_by_field_name("value").map(|v| self.initial(v, ty))
                }
                _ => declarator
                    .child_by_field_name("value")
                    .or_else(|| node.child_by_field_name("value"))
                    .map(|v| self.initial(v, ty)),
            };
            out.push(Stmt::Assign { target, ty, value, compound: false, declares: true });
        }
        // `Type name = value` where the grammar puts the value in the declaration (conditions).
        if node.child_by_field_name("declarator").is_none() {
            for child in children(node) {
                if child.kind() == "init_declarator" {
                    let Some(name) = self.declared_name(child) else { continue };
                    let target = Expr::new(ExprKind::Name(name), span(child));
                    let value = child.child_by_field_name("value").map(|v| self.initial(v, ty));
                    out.push(Stmt::Assign { target, ty, value, compound: false, declares: true });
                }
            }
        }
    }

    /// An initialiser; `T x(a, b)` and `T x{a, b}` call the constructor of `T`.
    fn initial(&mut self, node: Node<'_>, ty: Option<&'s str>) -> Expr<'s> {
        if node.kind() == "argument_list" {
            let mut values = self.all(node);
            // `NS::SharedPtr<MTL::Buffer> b(buffer)` and `id<MTLBuffer> b(buffer)` hold their argument.
            if values.len() == 1 {
                return values.remove(0);
            }
            let name = last_of_path(ty.unwrap_or("").split('<').next().unwrap_or(""));
            let args = values.into_iter().map(|value| Arg { label: None, value }).collect();
            let call = Call {
                name: Cow::Borrowed(name),
                receiver: None,
                args,
                name_span: Span { start: span(node).start, end: span(node).start },
                is_macro: false,
            };
            return Expr::new(ExprKind::Call(Box::new(call)), span(node));
        }
        if node.is_missing() {
            return literal(node);
        }
        self.expr(node)
    }
}

/// Where the declared name stands, past `*` and `&`.
fn declared_span(node: Node<'_>) -> Span {
    match node.child_by_field_name("declarator") {
        Some(inner) => declared_span(inner),
        None => span(node),
    }
}
