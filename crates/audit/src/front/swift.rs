//! Swift.

use std::borrow::Cow;

use tree_sitter::Node;

use super::{Context, assign, children, field_children, literal, parse_int, span};
use crate::ir::{
    Arg, Call, Class, Expr, ExprKind, Function, FunctionKind, Lambda, Module, Param, Stmt,
};

pub(super) fn lower<'s>(cx: Context<'s>, root: Node<'_>) -> Module<'s> {
    let mut swift = Swift { cx, class: None };
    let mut body = Vec::new();
    for child in children(root) {
        swift.statement(child, &mut body);
    }
    swift.cx.module.functions.push(Function {
        name: Cow::Borrowed("<file>"),
        class: None,
        kind: FunctionKind::TopLevel,
        params: Vec::new(),
        body,
        span: span(root),
        is_test: false,
        is_selector: false,
    });
    swift.cx.module
}

struct Swift<'s> {
    cx: Context<'s>,
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
    fn body(&mut self, node: Node<'_>) -> Vec<Stmt<'s>> {
        let block = children(node).into_iter().find(|n| n.kind() == "statements");
        block.map(|b| self.statements_in(b)).unwrap_or_default()
    }

    fn statement(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
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

    fn assignment(&mut self, node: Node<'_>) -> Option<Stmt<'s>> {
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
