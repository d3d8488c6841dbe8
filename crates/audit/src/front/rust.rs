//! Rust.

use std::borrow::Cow;

use tree_sitter::Node;

use super::{Context, assign, children, literal, parse_int, span};
use crate::ir::{
    Arg, Call, Class, Expr, ExprKind, Function, FunctionKind, Import, Lambda, Module, Param, Span,
    Stmt,
};

pub(super) fn lower<'s>(cx: Context<'s>, root: Node<'_>) -> Module<'s> {
    let mut rust = Rust { cx, class: None, in_function: false, test: false, top: Vec::new() };
    rust.items(root);
    let body = std::mem::take(&mut rust.top);
    rust.cx.module.functions.push(Function {
        name: Cow::Borrowed("<module>"),
        class: None,
        kind: FunctionKind::TopLevel,
        params: Vec::new(),
        body,
        span: span(root),
        is_test: false,
        is_selector: false,
    });
    rust.cx.module
}

struct Rust<'s> {
    cx: Context<'s>,
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
    fn pattern_name(&self, node: Node<'_>) -> &'s str {
        match node.kind() {
            "identifier" | "self" => self.cx.text(node),
            _ => children(node).into_iter().last().map_or("", |n| self.pattern_name(n)),
        }
    }

    fn pattern(&mut self, node: Node<'_>) -> Expr<'s> {
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
    fn block(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) -> Option<Expr<'s>> {
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

    fn statement(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
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

    fn assignment(&mut self, node: Node<'_>) -> Option<Stmt<'s>> {
        let (left, right) = (node.child_by_field_name("left")?, node.child_by_field_name("right")?);
        let value = Some(self.expr(right));
        let target = self.expr(left);
        let compound = node.kind() == "compound_assignment_expr";
        Some(Stmt::Assign { target, ty: None, value, compound, declares: false })
    }

    /// `if let Some(x) = value` assigns before the branch.
    fn condition(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
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

    fn boxed(&mut self, node: Node<'_>) -> Box<Expr<'s>> {
        Box::new(self.expr(node))
    }

    fn expr(&mut self, node: Node<'_>) -> Expr<'s> {
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

    fn string(&mut self, node: Node<'_>) -> Expr<'s> {
        for child in children(node) {
            if child.kind() == "string_content" {
                let text = self.cx.text(child);
                self.cx.note_string(span(child).start, text);
                return Expr::new(ExprKind::Str(text), span(node));
            }
        }
        Expr::new(ExprKind::Str(""), span(node))
    }

    // ---- macros: token trees, read as expressions as far as they look like ones ----

    fn macro_invocation(&mut self, node: Node<'_>) -> ExprKind<'s> {
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

/// A match arm's pattern gets the subject, or what is inside of it.
fn bind_pattern<'s>(pattern: Expr<'s>, at: Span, out: &mut Vec<Stmt<'s>>) {
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
fn base_type(ty: &str) -> &str {
    let ty = ty.trim_start_matches(['&', '*', ' ']);
    let ty = ty.split('<').next().unwrap_or(ty);
    ty.rsplit("::").next().unwrap_or(ty).trim()
}
