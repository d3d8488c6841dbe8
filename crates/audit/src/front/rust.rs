//! Rust.

use std::borrow::Cow;

use tree_sitter::Node;

use super::{Context, assign, children, literal, span};
use crate::ir::{Class, Expr, ExprKind, Function, FunctionKind, Import, Module, Param, Span, Stmt};

pub(super) fn lower<'s>(cx: Context<'s>, root: Node<'_>) -> Module<'s> {
    let mut rust = Rust { cx, class: None, in_function: false, test: false, top: Vec::new() };
    rust.items(root);
    let body = std::mem::take(&mut rust.top);
    rust.cx.into_module("<module>", body, span(root))
}

pub(super) struct Rust<'s> {
    pub(super) cx: Context<'s>,
    class: Option<&'s str>,
    in_function: bool,
    test: bool,
    /// Constants and statics, as the statements of the file.
    top: Vec<Stmt<'s>>,
}

impl<'s> Rust<'s> {
    fn items(&mut self, node: Node<'_>) {
        let mut test_next = false;
        for child in children(node) {
            if child.kind() == "attribute_item" {
                let text = self.cx.text(child);
                test_next |= text.contains("test");
                continue;
            }
            let outer = self.test;
            self.test |= test_next;
            self.item(child);
            self.test = outer;
            test_next = false;
        }
    }

    /// Handles an item; false if the node is none.
    fn item(&mut self, node: Node<'_>) -> bool {
        match node.kind() {
            "function_item" => self.function(node),
            "impl_item" => {
                let ty = self.cx.field_text(node, "type").map(base_type);
                let outer = std::mem::replace(&mut self.class, ty);
                if let Some(body) = node.child_by_field_name("body") {
                    self.items(body);
                }
                self.class = outer;
            }
            "trait_item" => {
                let name = self.cx.field_text(node, "name");
                let outer = std::mem::replace(&mut self.class, name);
                if let Some(body) = node.child_by_field_name("body") {
                    self.items(body);
                }
                self.class = outer;
            }
            "mod_item" => {
                if let Some(body) = node.child_by_field_name("body") {
                    self.items(body);
                }
            }
            "struct_item" => self.structure(node),
            "enum_item" => {}
            "const_item" | "static_item" => {
                let name_node = node.child_by_field_name("name");
                let value = node.child_by_field_name("value").map(|n| self.expr(n));
                if let Some(name_node) = name_node {
                    let name = self.cx.text(name_node);
                    let target = Expr::new(ExprKind::Name(name), span(name_node));
                    self.top.push(assign(target, value));
                }
            }
            "use_declaration" => {
                if let Some(argument) = node.child_by_field_name("argument") {
                    let root = self.cx.text(argument).split("::").next().unwrap_or("").trim();
                    self.import(argument, root);
                }
            }
            "extern_crate_declaration" => {
                if let Some(name) = self.cx.field_text(node, "name") {
                    self.cx.module.imports.push(Import { local: name, module: name, item: None });
                }
            }
            "macro_definition"
            | "attribute_item"
            | "inner_attribute_item"
            | "type_item"
            | "union_item"
            | "associated_type"
            | "function_signature_item"
            | "foreign_mod_item"
            | "empty_statement" => {}
            _ => return false,
        }
        true
    }

    fn import(&mut self, node: Node<'_>, root: &'s str) {
        match node.kind() {
            "identifier" | "crate" | "self" | "super" => {
                let name = self.cx.text(node);
                self.cx.module.imports.push(Import { local: name, module: root, item: None });
            }
            "scoped_identifier" => {
                let name = self.cx.field_text(node, "name").unwrap_or("");
                self.cx.module.imports.push(Import { local: name, module: root, item: Some(name) });
            }
            "use_as_clause" => {
                let local = self.cx.field_text(node, "alias").unwrap_or("");
                let item =
                    self.cx.field_text(node, "path").map(|p| p.rsplit(':').next().unwrap_or(p));
                self.cx.module.imports.push(Import { local, module: root, item });
            }
            "use_wildcard" => {
                self.cx.module.imports.push(Import { local: "*", module: root, item: None });
            }
            "scoped_use_list" => {
                if let Some(list) = node.child_by_field_name("list") {
                    children(list).into_iter().for_each(|n| self.import(n, root));
                }
            }
            "use_list" => {
                for child in children(node) {
                    let own = self.cx.text(child).split("::").next().unwrap_or("").trim();
                    self.import(child, if root.starts_with('{') { own } else { root });
                }
            }
            _ => {}
        }
    }

    fn structure(&mut self, node: Node<'_>) {
        let name = self.cx.field_text(node, "name").unwrap_or("");
        let mut fields = Vec::new();
        if let Some(body) = node.child_by_field_name("body") {
            for field in children(body) {
                if let (Some(field_name), Some(ty)) =
                    (self.cx.field_text(field, "name"), self.cx.field_text(field, "type"))
                {
                    fields.push((field_name, ty));
                }
            }
        }
        self.cx.module.classes.push(Class { name, fields, bases: Vec::new() });
    }

    fn function(&mut self, node: Node<'_>) {
        let name = self.cx.field_text(node, "name").unwrap_or("");
        let params =
            node.child_by_field_name("parameters").map(|p| self.params(p)).unwrap_or_default();
        let outer = std::mem::replace(&mut self.in_function, true);
        let mut body = Vec::new();
        if let Some(block) = node.child_by_field_name("body") {
            let value = self.block(block, &mut body);
            body.extend(value.map(|v| Stmt::Return(Some(v))));
        }
        self.in_function = outer;
        self.cx.module.functions.push(Function {
            name: Cow::Borrowed(name),
            class: self.class,
            kind: if self.class.is_some() { FunctionKind::Method } else { FunctionKind::Free },
            params,
            body,
            span: span(node),
            is_test: self.test,
            is_selector: false,
        });
    }

    fn params(&mut self, node: Node<'_>) -> Vec<Param<'s>> {
        let mut out = Vec::new();
        for child in children(node) {
            if child.kind() != "parameter" {
                continue;
            }
            let name = child.child_by_field_name("pattern").map_or("", |p| self.pattern_name(p));
            let ty = self.cx.field_text(child, "type");
            out.push(Param { name, label: None, ty, default: None });
        }
        out
    }

    /// The variable that a pattern binds, if it is one.
    pub(super) fn pattern_name(&self, node: Node<'_>) -> &'s str {
        match node.kind() {
            "identifier" | "self" => self.cx.text(node),
            _ => children(node).into_iter().last().map_or("", |n| self.pattern_name(n)),
        }
    }

    pub(super) fn pattern(&mut self, node: Node<'_>) -> Expr<'s> {
        let at = span(node);
        match node.kind() {
            "identifier" | "shorthand_field_identifier" => {
                Expr::new(ExprKind::Name(self.cx.text(node)), at)
            }
            "tuple_pattern" | "slice_pattern" => {
                let parts = children(node).into_iter().map(|n| self.pattern(n)).collect();
                Expr::new(ExprKind::List(parts), at)
            }
            "tuple_struct_pattern" => {
                let parts: Vec<_> =
                    children(node).into_iter().skip(1).map(|n| self.pattern(n)).collect();
                Expr::new(ExprKind::Other(parts), at)
            }
            "match_pattern" | "ref_pattern" | "mut_pattern" | "reference_pattern"
            | "captured_pattern" => {
                let parts: Vec<_> = children(node)
                    .into_iter()
                    .filter(|n| n.kind() != "mutable_specifier")
                    .map(|n| self.pattern(n))
                    .collect();
                Expr::new(ExprKind::Other(parts), at)
            }
            _ => literal(node),
        }
    }

    /// Lowers a block's statements; the value of its last expression comes back.
    pub(super) fn block(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) -> Option<Expr<'s>> {
        if self.cx.depth > super::MAX_DEPTH {
            return None;
        }
        self.cx.depth += 1;
        let nodes = children(node);
        let count = nodes.len();
        let mut value = None;
        for (i, child) in nodes.into_iter().enumerate() {
            match child.kind() {
                "let_declaration" => self.let_declaration(child, out),
                "expression_statement" => {
                    let inner = children(child).into_iter().next();
                    let Some(inner) = inner else { continue };
                    // `if … { a } else { b }` at the end is the block's value.
                    let ends = i + 1 == count && !self.cx.text(child).trim_end().ends_with(';');
                    if ends {
                        value = Some(self.expr(inner));
                    } else {
                        self.statement(inner, out);
                    }
                }
                _ if self.item(child) => {}
                _ if i + 1 == count => value = Some(self.expr(child)),
                _ => self.statement(child, out),
            }
        }
        self.cx.depth -= 1;
        value
    }

    fn let_declaration(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        let Some(pattern) = node.child_by_field_name("pattern") else { return };
        let value = node.child_by_field_name("value").map(|n| self.expr(n));
        let ty = self.cx.field_text(node, "type");
        let target = self.pattern(pattern);
        let target = match target.kind {
            // `let Some(x) = …` and `let Ok(x) = …`: the value inside.
            ExprKind::Other(mut parts) if parts.len() == 1 => parts.remove(0),
            kind => Expr::new(kind, target.span),
        };
        out.push(Stmt::Assign { target, ty, value, compound: false, declares: true });
        if let Some(alternative) = node.child_by_field_name("alternative") {
            let mut arm = Vec::new();
            self.block(alternative, &mut arm);
            out.push(Stmt::Branch(vec![arm, Vec::new()]));
        }
    }

    pub(super) fn statement(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        match node.kind() {
            "assignment_expression" | "compound_assignment_expr" => {
                if let Some(stmt) = self.assignment(node) {
                    out.push(stmt);
                }
            }
            "return_expression" => {
                let value = children(node).into_iter().next().map(|n| self.expr(n));
                out.push(Stmt::Return(value));
            }
            "for_expression" => {
                let target = node.child_by_field_name("pattern").map(|n| self.pattern(n));
                let iter = node.child_by_field_name("value").map(|n| self.expr(n));
                let mut body = Vec::new();
                if let Some(block) = node.child_by_field_name("body") {
                    let last = self.block(block, &mut body);
                    body.extend(last.map(Stmt::Expr));
                }
                out.push(Stmt::Loop { target, iter, body });
            }
            "while_expression" | "loop_expression" => {
                let mut body = Vec::new();
                if let Some(condition) = node.child_by_field_name("condition") {
                    self.condition(condition, &mut body);
                }
                if let Some(block) = node.child_by_field_name("body") {
                    let last = self.block(block, &mut body);
                    body.extend(last.map(Stmt::Expr));
                }
                out.push(Stmt::Loop { target: None, iter: None, body });
            }
            "macro_invocation" => {
                let value = self.expr(node);
                out.push(Stmt::Expr(value));
            }
            _ => {
                let value = self.expr(node);
                out.push(Stmt::Expr(value));
            }
        }
    }

    pub(super) fn assignment(&mut self, node: Node<'_>) -> Option<Stmt<'s>> {
        let (left, right) = (node.child_by_field_name("left")?, node.child_by_field_name("right")?);
        let value = Some(self.expr(right));
        let target = self.expr(left);
        let compound = node.kind() == "compound_assignment_expr";
        Some(Stmt::Assign { target, ty: None, value, compound, declares: false })
    }

    /// `if let Some(x) = value` assigns before the branch.
    pub(super) fn condition(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        match node.kind() {
            "let_condition" => {
                let value = node.child_by_field_name("value").map(|n| self.expr(n));
                let pattern = node.child_by_field_name("pattern").map(|n| self.pattern(n));
                match pattern {
                    Some(Expr { kind: ExprKind::Other(mut parts), .. }) if parts.len() == 1 => {
                        let target = parts.remove(0);
                        out.push(Stmt::Assign {
                            target,
                            ty: None,
                            value,
                            compound: false,
                            declares: true,
                        });
                    }
                    Some(target) => {
                        out.push(Stmt::Assign {
                            target,
                            ty: None,
                            value,
                            compound: false,
                            declares: true,
                        });
                    }
                    None => out.extend(value.map(Stmt::Expr)),
                }
            }
            "let_chain" => children(node).into_iter().for_each(|n| self.condition(n, out)),
            _ => {
                let value = self.expr(node);
                out.push(Stmt::Expr(value));
            }
        }
    }
}

/// A match arm's pattern gets the subject, or what is inside of it.
pub(super) fn bind_pattern<'s>(pattern: Expr<'s>, at: Span, out: &mut Vec<Stmt<'s>>) {
    match pattern.kind {
        ExprKind::Name(_) | ExprKind::List(_) => {
            let value = Some(Expr::new(ExprKind::Name("<subject>"), at));
            out.push(Stmt::Assign {
                target: pattern,
                ty: None,
                value,
                compound: false,
                declares: true,
            });
        }
        ExprKind::Other(parts) => parts.into_iter().for_each(|p| bind_pattern(p, at, out)),
        _ => {}
    }
}

/// `Buffer` of `crate::Buffer<'a, T>`.
pub(super) fn base_type(ty: &str) -> &str {
    let ty = ty.trim_start_matches(['&', '*', ' ']);
    let ty = ty.split('<').next().unwrap_or(ty);
    ty.rsplit("::").next().unwrap_or(ty).trim()
}
