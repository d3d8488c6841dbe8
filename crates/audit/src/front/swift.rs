//! Swift.

use std::borrow::Cow;

use tree_sitter::Node;

use super::{Context, assign, children, field_children, literal, span};
use crate::ir::{Class, Expr, ExprKind, Function, FunctionKind, Module, Param, Stmt};

pub(super) fn lower<'s>(cx: Context<'s>, root: Node<'_>) -> Module<'s> {
    let mut swift = Swift { cx, class: None };
    let mut body = Vec::new();
    for child in children(root) {
        swift.statement(child, &mut body);
    }
    swift.cx.into_module("<file>", body, span(root))
}

pub(super) struct Swift<'s> {
    pub(super) cx: Context<'s>,
    class: Option<&'s str>,
}

impl<'s> Swift<'s> {
    fn statements_in(&mut self, node: Node<'_>) -> Vec<Stmt<'s>> {
        let mut out = Vec::new();
        if self.cx.depth > super::MAX_DEPTH {
            return out;
        }
        self.cx.depth += 1;
        for child in children(node) {
            self.statement(child, &mut out);
        }
        self.cx.depth -= 1;
        out
    }

    /// The statements of the first `statements` child.
    pub(super) fn body(&mut self, node: Node<'_>) -> Vec<Stmt<'s>> {
        let block = children(node).into_iter().find(|n| n.kind() == "statements");
        block.map(|b| self.statements_in(b)).unwrap_or_default()
    }

    pub(super) fn statement(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        match node.kind() {
            "import_declaration" => {}
            "class_declaration" | "protocol_declaration" => self.class(node, out),
            "function_declaration" | "init_declaration" | "deinit_declaration" => {
                self.function(node)
            }
            "property_declaration" => self.property(node, out),
            "statements" | "ERROR" | "function_body" => out.extend(self.statements_in(node)),
            "assignment" => {
                if let Some(stmt) = self.assignment(node) {
                    out.push(stmt);
                }
            }
            "control_transfer_statement" => {
                let value = node.child_by_field_name("result").map(|n| self.expr(n));
                if self.cx.text(node).starts_with("return") {
                    out.push(Stmt::Return(value));
                } else {
                    out.extend(value.map(Stmt::Expr));
                }
            }
            "if_statement" => self.if_statement(node, out),
            "guard_statement" => {
                self.conditions(node, out);
                let body = self.body(node);
                out.push(Stmt::Branch(vec![body, Vec::new()]));
            }
            "for_statement" => {
                let target = node.child_by_field_name("item").map(|n| self.pattern(n));
                let iter = node.child_by_field_name("collection").map(|n| self.expr(n));
                let body = self.body(node);
                out.push(Stmt::Loop { target, iter, body });
            }
            "while_statement" | "repeat_while_statement" => {
                let mut body = Vec::new();
                self.conditions(node, &mut body);
                body.extend(self.body(node));
                out.push(Stmt::Loop { target: None, iter: None, body });
            }
            "do_statement" => {
                out.extend(self.body(node));
                let mut arms = vec![Vec::new()];
                for child in children(node) {
                    if child.kind() == "catch_block" {
                        arms.push(self.body(child));
                    }
                }
                out.push(Stmt::Branch(arms));
            }
            "switch_statement" => {
                if let Some(subject) = node.child_by_field_name("expr") {
                    let value = self.expr(subject);
                    out.push(Stmt::Expr(value));
                }
                let mut arms = vec![Vec::new()];
                for child in children(node) {
                    if child.kind() == "switch_entry" {
                        arms.push(self.body(child));
                    }
                }
                out.push(Stmt::Branch(arms));
            }
            "typealias_declaration"
            | "comment"
            | "multiline_comment"
            | "operator_declaration"
            | "directive"
            | "enum_entry"
            | "subscript_declaration"
            | "associatedtype_declaration" => {
                if node.kind() == "subscript_declaration" {
                    let _ = self.statements_in(node);
                }
            }
            _ => {
                let value = self.expr(node);
                out.push(match value.kind {
                    ExprKind::Assign(stmt) => *stmt,
                    kind => Stmt::Expr(Expr::new(kind, value.span)),
                });
            }
        }
    }

    fn class(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        let name = self.cx.field_text(node, "name").map(|n| n.split('<').next().unwrap_or(n));
        let mut bases = Vec::new();
        for child in children(node) {
            if child.kind() == "inheritance_specifier" {
                bases.push(self.cx.text(child).split('<').next().unwrap_or(""));
            }
        }
        let outer = std::mem::replace(&mut self.class, name);
        let mut body = Vec::new();
        if let Some(block) = node.child_by_field_name("body") {
            for child in children(block) {
                self.statement(child, &mut body);
            }
        }
        self.class = outer;
        let mut fields = Vec::new();
        for stmt in &mut body {
            if let Stmt::Assign { target, ty, .. } = stmt
                && let (ExprKind::Name(field), Some(name)) = (&target.kind, name)
            {
                let field = *field;
                fields.push((field, ty.unwrap_or("")));
                let object = Expr::new(ExprKind::Name(name), target.span);
                target.kind = ExprKind::Field(Box::new(object), field);
            }
        }
        out.extend(body);
        if let Some(name) = name {
            // Extensions add methods; only what has fields tells the class apart.
            let is_extension = self.cx.field_text(node, "declaration_kind") == Some("extension");
            if !is_extension || !fields.is_empty() {
                self.cx.module.classes.push(Class { name, fields, bases });
            }
        }
    }

    fn function(&mut self, node: Node<'_>) {
        let name = match node.kind() {
            "init_declaration" => "init",
            "deinit_declaration" => "deinit",
            _ => self.cx.field_text(node, "name").unwrap_or(""),
        };
        let params = self.params(node);
        let mut body =
            node.child_by_field_name("body").map(|b| self.statements_in(b)).unwrap_or_default();
        // A body of one expression returns it.
        if let [Stmt::Expr(_)] = body.as_slice()
            && let Some(Stmt::Expr(value)) = body.pop()
        {
            body.push(Stmt::Return(Some(value)));
        }
        let kind = match (self.class, name) {
            (Some(_), "init") => FunctionKind::Constructor,
            (Some(_), _) => FunctionKind::Method,
            (None, _) => FunctionKind::Free,
        };
        self.cx.module.functions.push(Function {
            name: Cow::Borrowed(name),
            class: self.class,
            kind,
            params,
            body,
            span: span(node),
            is_test: name.starts_with("test"),
            is_selector: false,
        });
    }

    fn params(&mut self, node: Node<'_>) -> Vec<Param<'s>> {
        let mut out: Vec<Param<'s>> = Vec::new();
        let mut cursor = node.walk();
        for (i, child) in node.children(&mut cursor).enumerate() {
            if node.field_name_for_child(i as u32) == Some("default_value") {
                let value = self.expr(child);
                if let Some(last) = out.last_mut() {
                    last.default = Some(value);
                }
                continue;
            }
            if child.kind() != "parameter" {
                continue;
            }
            let label = self.cx.field_text(child, "external_name");
            let parts = field_children(child, "name");
            let name = parts.first().map_or("", |n| self.cx.text(*n));
            let ty = parts.get(1).map(|n| self.cx.text(*n));
            out.push(Param { name, label: label.or(Some(name)), ty, default: None });
        }
        out
    }

    fn property(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        let Some(name) = node.child_by_field_name("name") else { return };
        let ty = children(node)
            .into_iter()
            .find(|n| n.kind() == "type_annotation")
            .map(|n| self.cx.text(n).trim_start_matches([':', ' ']));
        if let Some(computed) = node.child_by_field_name("computed_value") {
            self.computed(computed, self.cx.text(name));
            return;
        }
        let value = node.child_by_field_name("value").map(|n| self.expr(n));
        let target = self.pattern(name);
        out.push(Stmt::Assign { target, ty, value, compound: false, declares: true });
        for child in children(node) {
            if child.kind() == "willset_didset_block" {
                let _ = self.statements_in(child);
            }
        }
    }

    /// A computed property is a method without parameters.
    fn computed(&mut self, node: Node<'_>, name: &'s str) {
        let mut body = self.body(node);
        if body.is_empty() {
            for accessor in children(node) {
                body.extend(self.body(accessor));
            }
        }
        self.cx.module.functions.push(Function {
            name: Cow::Borrowed(name),
            class: self.class,
            kind: if self.class.is_some() { FunctionKind::Method } else { FunctionKind::Free },
            params: Vec::new(),
            body,
            span: span(node),
            is_test: false,
            is_selector: false,
        });
    }

    fn pattern(&mut self, node: Node<'_>) -> Expr<'s> {
        let at = span(node);
        if node.kind() == "simple_identifier" {
            return Expr::new(ExprKind::Name(self.cx.text(node)), at);
        }
        if let Some(bound) = node.child_by_field_name("bound_identifier") {
            return Expr::new(ExprKind::Name(self.cx.text(bound)), at);
        }
        let parts: Vec<_> = children(node)
            .into_iter()
            .filter(|n| matches!(n.kind(), "pattern" | "simple_identifier"))
            .map(|n| self.pattern(n))
            .collect();
        match parts.len() {
            0 => literal(node),
            1 => parts.into_iter().next().unwrap_or_else(|| literal(node)),
            _ => Expr::new(ExprKind::List(parts), at),
        }
    }

    pub(super) fn assignment(&mut self, node: Node<'_>) -> Option<Stmt<'s>> {
        let target = node.child_by_field_name("target")?;
        let value = node.child_by_field_name("result").map(|n| self.expr(n));
        let target = match children(target).into_iter().next() {
            Some(inner) if target.kind() == "directly_assignable_expression" => self.expr(inner),
            _ => self.expr(target),
        };
        let compound = self.cx.field_text(node, "operator").is_some_and(|op| op != "=");
        Some(Stmt::Assign { target, ty: None, value, compound, declares: false })
    }

    /// Conditions and the names that `let x = y` in them binds.
    fn conditions(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        let mut cursor = node.walk();
        let mut bound: Option<Expr<'s>> = None;
        let mut has_value = false;
        for (i, child) in node.children(&mut cursor).enumerate() {
            match node.field_name_for_child(i as u32) {
                Some("bound_identifier") => {
                    if let Some(target) = bound.take() {
                        out.push(shorthand(target));
                    }
                    bound = Some(Expr::new(ExprKind::Name(self.cx.text(child)), span(child)));
                    has_value = false;
                }
                Some("condition")
                    if child.is_named() && child.kind() != "value_binding_pattern" =>
                {
                    let value = self.expr(child);
                    match bound.take() {
                        Some(target) => {
                            has_value = true;
                            out.push(Stmt::Assign {
                                target,
                                ty: None,
                                value: Some(value),
                                compound: false,
                                declares: true,
                            });
                        }
                        None => out.push(Stmt::Expr(value)),
                    }
                }
                _ => {}
            }
        }
        if let Some(target) = bound.filter(|_| !has_value) {
            out.push(shorthand(target));
        }
    }

    fn if_statement(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        self.conditions(node, out);
        let mut arms = Vec::new();
        for child in children(node) {
            match child.kind() {
                "statements" => arms.push(self.statements_in(child)),
                "if_statement" => {
                    let mut arm = Vec::new();
                    self.statement(child, &mut arm);
                    arms.push(arm);
                }
                _ => {}
            }
        }
        if arms.len() < 2 {
            arms.push(Vec::new());
        }
        out.push(Stmt::Branch(arms));
    }
}

/// `if let buffer { … }` binds the name to itself.
fn shorthand<'s>(target: Expr<'s>) -> Stmt<'s> {
    match target.kind {
        ExprKind::Name(name) => {
            let value = Expr::new(ExprKind::Name(name), target.span);
            assign(target, Some(value))
        }
        _ => Stmt::Expr(target),
    }
}
