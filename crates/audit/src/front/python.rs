//! Python.

use std::borrow::Cow;

use tree_sitter::Node;

use super::{Context, assign, children, field_children, literal, parse_int, span};
use crate::ir::{
    Arg, Call, Class, Expr, ExprKind, Function, FunctionKind, Import, Lambda, Module, Param, Stmt,
};

pub(super) fn lower<'s>(cx: Context<'s>, root: Node<'_>) -> Module<'s> {
    let mut py = Python { cx, class: None };
    let body = py.statements(root);
    py.cx.into_module("<module>", body, span(root))
}

struct Python<'s> {
    cx: Context<'s>,
    class: Option<&'s str>,
}

impl<'s> Python<'s> {
    fn statements(&mut self, node: Node<'_>) -> Vec<Stmt<'s>> {
        let mut out = Vec::new();
        for child in children(node) {
            self.statement(child, &mut out);
        }
        out
    }

    fn body_of(&mut self, node: Node<'_>, field: &str) -> Vec<Stmt<'s>> {
        node.child_by_field_name(field).map(|b| self.statements(b)).unwrap_or_default()
    }

    fn statement(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        match node.kind() {
            "expression_statement" => {
                for child in children(node) {
                    self.simple(child, out);
                }
            }
            "function_definition" => self.function(node, out),
            "class_definition" => self.class(node, out),
            "decorated_definition" => {
                if let Some(definition) = node.child_by_field_name("definition") {
                    self.statement(definition, out);
                }
            }
            "if_statement" => {
                if let Some(condition) = node.child_by_field_name("condition") {
                    out.push(Stmt::Expr(self.expr(condition)));
                }
                let mut arms = vec![self.body_of(node, "consequence")];
                let mut has_else = false;
                for alternative in field_children(node, "alternative") {
                    let mut arm = Vec::new();
                    if let Some(condition) = alternative.child_by_field_name("condition") {
                        arm.push(Stmt::Expr(self.expr(condition)));
                        arm.extend(self.body_of(alternative, "consequence"));
                    } else {
                        has_else = true;
                        arm.extend(self.body_of(alternative, "body"));
                    }
                    arms.push(arm);
                }
                if !has_else {
                    arms.push(Vec::new());
                }
                out.push(Stmt::Branch(arms));
            }
            "for_statement" => {
                let target = node.child_by_field_name("left").map(|n| self.expr(n));
                let iter = node.child_by_field_name("right").map(|n| self.expr(n));
                let body = self.body_of(node, "body");
                out.push(Stmt::Loop { target, iter, body });
                if let Some(alternative) = node.child_by_field_name("alternative") {
                    out.extend(self.body_of(alternative, "body"));
                }
            }
            "while_statement" => {
                let mut body = Vec::new();
                if let Some(condition) = node.child_by_field_name("condition") {
                    body.push(Stmt::Expr(self.expr(condition)));
                }
                body.extend(self.body_of(node, "body"));
                out.push(Stmt::Loop { target: None, iter: None, body });
            }
            "with_statement" => {
                for clause in children(node) {
                    if clause.kind() == "with_clause" {
                        for item in children(clause) {
                            self.with_item(item, out);
                        }
                    }
                }
                out.extend(self.body_of(node, "body"));
            }
            "try_statement" => {
                let tried = self.body_of(node, "body");
                let mut arms = vec![Vec::new()];
                let mut after = Vec::new();
                for child in children(node) {
                    match child.kind() {
                        "except_clause" | "except_group_clause" => {
                            let mut arm = Vec::new();
                            for part in children(child) {
                                if part.kind() == "block" {
                                    arm.extend(self.statements(part));
                                }
                            }
                            arms.push(arm);
                        }
                        "else_clause" => after.extend(self.body_of(child, "body")),
                        "finally_clause" => {
                            for part in children(child) {
                                after.extend(self.statements(part));
                            }
                        }
                        _ => {}
                    }
                }
                out.extend(tried);
                out.push(Stmt::Branch(arms));
                out.extend(after);
            }
            "match_statement" => {
                if let Some(subject) = node.child_by_field_name("subject") {
                    out.push(Stmt::Expr(self.expr(subject)));
                }
                let mut arms = vec![Vec::new()];
                if let Some(body) = node.child_by_field_name("body") {
                    for case in children(body) {
                        arms.push(self.body_of(case, "consequence"));
                    }
                }
                out.push(Stmt::Branch(arms));
            }
            "return_statement" => {
                let value = children(node).into_iter().next().map(|n| self.expr(n));
                out.push(Stmt::Return(value));
            }
            "import_statement" => self.import(node),
            "import_from_statement" => self.import_from(node),
            "block" | "module" => out.extend(self.statements(node)),
            "ERROR" => {
                for child in children(node) {
                    self.statement(child, out);
                }
            }
            "pass_statement"
            | "break_statement"
            | "continue_statement"
            | "global_statement"
            | "nonlocal_statement"
            | "comment"
            | "future_import_statement" => {}
            _ => self.simple(node, out),
        }
    }

    fn with_item(&mut self, item: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        let Some(value) = item.child_by_field_name("value") else { return };
        if value.kind() == "as_pattern" {
            let mut parts = children(value).into_iter();
            let subject = parts.next().map(|n| self.expr(n));
            let target = parts.next().and_then(|n| children(n).into_iter().next());
            match target.map(|n| self.expr(n)) {
                Some(target) => out.push(assign(target, subject)),
                None => out.extend(subject.map(Stmt::Expr)),
            }
        } else {
            out.push(Stmt::Expr(self.expr(value)));
        }
    }

    fn simple(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        match node.kind() {
            "assignment" => {
                let Some(left) = node.child_by_field_name("left") else { return };
                let right = node.child_by_field_name("right");
                // `a = b = value`: both names get the value.
                if let Some(inner) = right.filter(|r| r.kind() == "assignment") {
                    self.simple(inner, out);
                    let value = inner.child_by_field_name("left").map(|n| self.expr(n));
                    let target = self.expr(left);
                    out.push(assign(target, value));
                    return;
                }
                let value = right.map(|n| self.expr(n));
                let target = self.expr(left);
                let ty = self.cx.field_text(node, "type");
                let declares = ty.is_some();
                out.push(Stmt::Assign { target, ty, value, compound: false, declares });
            }
            "augmented_assignment" => {
                let (Some(left), Some(right)) =
                    (node.child_by_field_name("left"), node.child_by_field_name("right"))
                else {
                    return;
                };
                out.push(Stmt::Assign {
                    target: self.expr(left),
                    ty: None,
                    value: Some(self.expr(right)),
                    compound: true,
                    declares: false,
                });
            }
            _ => out.push(Stmt::Expr(self.expr(node))),
        }
    }

    fn function(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        let name = self.cx.field_text(node, "name").unwrap_or("");
        let mut params =
            node.child_by_field_name("parameters").map(|p| self.params(p)).unwrap_or_default();
        let nested = self.class == Some("");
        let class = self.class.filter(|c| !c.is_empty());
        let outer = self.class.replace("");
        let body = self.body_of(node, "body");
        self.class = outer;
        if nested {
            // A function inside a function sees its variables, so it is analysed in place.
            let params = params.iter().map(|p| p.name).collect();
            let lambda = ExprKind::Lambda(Box::new(Lambda { params, body }));
            let target = Expr::new(ExprKind::Name(name), span(node));
            out.push(assign(target, Some(Expr::new(lambda, span(node)))));
            return;
        }
        let is_static = class.is_some()
            && node.parent().is_some_and(|p| {
                p.kind() == "decorated_definition" && self.cx.text(p).starts_with("@staticmethod")
            });
        if class.is_some() && !is_static && !params.is_empty() {
            params.remove(0);
        }
        let kind = match class {
            None => FunctionKind::Free,
            Some(_) if name == "__init__" => FunctionKind::Constructor,
            Some(_) => FunctionKind::Method,
        };
        self.cx.module.functions.push(Function {
            name: Cow::Borrowed(name),
            class,
            kind,
            params,
            body,
            span: span(node),
            is_test: name.starts_with("test_"),
            is_selector: false,
        });
    }

    fn params(&mut self, node: Node<'_>) -> Vec<Param<'s>> {
        let mut out = Vec::new();
        for child in children(node) {
            let name_node = match child.kind() {
                "identifier" => Some(child),
                "default_parameter" | "typed_default_parameter" => {
                    child.child_by_field_name("name")
                }
                "typed_parameter" | "list_splat_pattern" | "dictionary_splat_pattern" => {
                    children(child).into_iter().next()
                }
                _ => None,
            };
            let Some(name_node) = name_node else { continue };
            let name = self.cx.text(name_node).trim_start_matches('*');
            let default = child.child_by_field_name("value").map(|n| self.expr(n));
            let ty = self.cx.field_text(child, "type");
            out.push(Param { name, label: Some(name), ty, default });
        }
        out
    }

    fn class(&mut self, node: Node<'_>, out: &mut Vec<Stmt<'s>>) {
        let name = self.cx.field_text(node, "name").unwrap_or("");
        let bases = node
            .child_by_field_name("superclasses")
            .map(|s| {
                children(s)
                    .iter()
                    .map(|n| self.cx.text(*n).rsplit('.').next().unwrap_or(""))
                    .collect()
            })
            .unwrap_or_default();
        let outer = self.class.replace(name);
        let mut body = self.body_of(node, "body");
        self.class = outer;
        // Class attributes are read through `self` and through the class alike.
        let mut fields = Vec::new();
        for stmt in &mut body {
            if let Stmt::Assign { target, ty, .. } = stmt
                && let ExprKind::Name(field) = target.kind
            {
                fields.push((field, ty.unwrap_or("")));
                let object = Expr::new(ExprKind::Name(name), target.span);
                target.kind = ExprKind::Field(Box::new(object), field);
            }
        }
        self.cx.module.classes.push(Class { name, fields, bases });
        out.extend(body);
    }

    fn import(&mut self, node: Node<'_>) {
        for child in field_children(node, "name") {
            let (module, local) = match child.kind() {
                "aliased_import" => (
                    self.cx.field_text(child, "name").unwrap_or(""),
                    self.cx.field_text(child, "alias").unwrap_or(""),
                ),
                _ => {
                    let module = self.cx.text(child);
                    (module, module.split('.').next().unwrap_or(module))
                }
            };
            self.cx.module.imports.push(Import { local, module, item: None });
        }
    }

    fn import_from(&mut self, node: Node<'_>) {
        let module = self.cx.field_text(node, "module_name").unwrap_or("");
        for child in field_children(node, "name") {
            let (item, local) = match child.kind() {
                "aliased_import" => (
                    self.cx.field_text(child, "name").unwrap_or(""),
                    self.cx.field_text(child, "alias").unwrap_or(""),
                ),
                _ => (self.cx.text(child), self.cx.text(child)),
            };
            self.cx.module.imports.push(Import { local, module, item: Some(item) });
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

    fn expr_inner(&mut self, node: Node<'_>) -> Expr<'s> {
        let at = span(node);
        let kind = match node.kind() {
            "identifier" => ExprKind::Name(self.cx.text(node)),
            "integer" => match parse_int(self.cx.text(node)) {
                Some(value) => ExprKind::Int(value),
                None => ExprKind::Literal,
            },
            "float" | "true" | "false" | "none" | "ellipsis" => ExprKind::Literal,
            "string" => return self.string(node),
            "concatenated_string" => {
                return children(node)
                    .into_iter()
                    .next()
                    .map_or_else(|| literal(node), |n| self.string(n));
            }
            "attribute" => {
                let (Some(object), Some(name)) =
                    (node.child_by_field_name("object"), node.child_by_field_name("attribute"))
                else {
                    return literal(node);
                };
                ExprKind::Field(self.boxed(object), self.cx.text(name))
            }
            "subscript" => {
                let Some(value) = node.child_by_field_name("value") else { return literal(node) };
                let base = self.boxed(value);
                let mut indices: Vec<_> =
                    field_children(node, "subscript").into_iter().map(|n| self.expr(n)).collect();
                let index = match indices.len() {
                    1 => indices.remove(0),
                    _ => Expr::new(ExprKind::Other(indices), at),
                };
                ExprKind::Index(base, Box::new(index))
            }
            "call" => self.call(node),
            "list" | "tuple" | "set" | "expression_list" | "pattern_list" | "tuple_pattern"
            | "list_pattern" => ExprKind::List(self.all(node)),
            "dictionary" => self.dictionary(node),
            "parenthesized_expression" | "await" | "list_splat" | "type" => {
                match children(node).into_iter().next() {
                    Some(inner) => return self.expr(inner),
                    None => ExprKind::Literal,
                }
            }
            "conditional_expression" => {
                let parts = children(node);
                if parts.len() != 3 {
                    return literal(node);
                }
                let condition = self.expr(parts[1]);
                let values = ExprKind::OneOf(vec![self.expr(parts[0]), self.expr(parts[2])]);
                let value = Box::new(Expr::new(values, at));
                ExprKind::Block(vec![Stmt::Expr(condition)], Some(value))
            }
            "boolean_operator" => {
                // `a or b` is one of the two.
                ExprKind::OneOf(self.all(node))
            }
            "binary_operator" => {
                let (Some(left), Some(right)) =
                    (node.child_by_field_name("left"), node.child_by_field_name("right"))
                else {
                    return literal(node);
                };
                let op = self.cx.field_text(node, "operator").unwrap_or("");
                ExprKind::Binary(op, self.boxed(left), self.boxed(right))
            }
            "lambda" => {
                let params = node
                    .child_by_field_name("parameters")
                    .map(|p| self.params(p).iter().map(|p| p.name).collect())
                    .unwrap_or_default();
                let body = node.child_by_field_name("body").map(|n| self.expr(n));
                let body = body.map(|value| vec![Stmt::Return(Some(value))]).unwrap_or_default();
                ExprKind::Lambda(Box::new(Lambda { params, body }))
            }
            "list_comprehension"
            | "generator_expression"
            | "set_comprehension"
            | "dictionary_comprehension" => self.comprehension(node),
            "named_expression" => {
                let (Some(name), Some(value)) =
                    (node.child_by_field_name("name"), node.child_by_field_name("value"))
                else {
                    return literal(node);
                };
                let stmt = assign(self.expr(name), Some(self.expr(value)));
                ExprKind::Assign(Box::new(stmt))
            }
            _ => ExprKind::Other(self.all(node)),
        };
        Expr::new(kind, at)
    }

    fn all(&mut self, node: Node<'_>) -> Vec<Expr<'s>> {
        children(node).into_iter().map(|n| self.expr(n)).collect()
    }

    fn call(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let Some(function) = node.child_by_field_name("function") else {
            return ExprKind::Literal;
        };
        let (receiver, name_node) = if function.kind() == "attribute" {
            let object = function.child_by_field_name("object").map(|n| self.expr(n));
            (object, function.child_by_field_name("attribute").unwrap_or(function))
        } else if function.kind() == "identifier" {
            (None, function)
        } else {
            // A call of a call's result: keep it as the receiver of a call without a name.
            (Some(self.expr(function)), function)
        };
        let name = match function.kind() {
            "attribute" | "identifier" => selector(self.cx.text(name_node)),
            _ => Cow::Borrowed(""),
        };
        let args = match node.child_by_field_name("arguments") {
            Some(list) if list.kind() == "argument_list" => self.args(list),
            Some(other) => vec![Arg { label: None, value: self.expr(other) }],
            None => Vec::new(),
        };
        let name_span = span(name_node);
        ExprKind::Call(Box::new(Call { name, receiver, args, name_span, is_macro: false }))
    }

    fn args(&mut self, list: Node<'_>) -> Vec<Arg<'s>> {
        let mut out = Vec::new();
        for child in children(list) {
            if child.kind() == "keyword_argument" {
                let label = self.cx.field_text(child, "name");
                if let Some(value) = child.child_by_field_name("value") {
                    out.push(Arg { label, value: self.expr(value) });
                }
            } else {
                out.push(Arg { label: None, value: self.expr(child) });
            }
        }
        out
    }

    fn dictionary(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let mut entries = Vec::new();
        for pair in children(node) {
            let value = pair.child_by_field_name("value").unwrap_or(pair);
            let key = pair.child_by_field_name("key").map(|k| self.expr(k));
            let key = match key.map(|k| k.kind) {
                Some(ExprKind::Str(text) | ExprKind::Name(text)) => text,
                _ => "",
            };
            let value = self.expr(value);
            entries.push((key, value));
        }
        ExprKind::Record { ty: None, entries }
    }

    /// `[body for target in iter]` is a loop whose value is a list of `body`.
    fn comprehension(&mut self, node: Node<'_>) -> ExprKind<'s> {
        let at = span(node);
        let Some(body) = node.child_by_field_name("body") else { return ExprKind::Literal };
        let value = if body.kind() == "pair" {
            body.child_by_field_name("value").map_or_else(|| literal(body), |n| self.expr(n))
        } else {
            self.expr(body)
        };
        let element = Expr::new(ExprKind::Name("<element>"), at);
        let mut stmts = vec![assign(element, Some(value))];
        for clause in children(node).into_iter().rev() {
            match clause.kind() {
                "for_in_clause" => {
                    let target = clause.child_by_field_name("left").map(|n| self.expr(n));
                    let iter = clause.child_by_field_name("right").map(|n| self.expr(n));
                    stmts = vec![Stmt::Loop { target, iter, body: stmts }];
                }
                "if_clause" => {
                    let condition = self.all(clause);
                    stmts.insert(0, Stmt::Expr(Expr::new(ExprKind::Other(condition), at)));
                }
                _ => {}
            }
        }
        let element = Expr::new(ExprKind::Name("<element>"), at);
        let list = Expr::new(ExprKind::List(vec![element]), at);
        ExprKind::Block(stmts, Some(Box::new(list)))
    }

    fn string(&mut self, node: Node<'_>) -> Expr<'s> {
        let mut parts = Vec::new();
        let mut content: Option<(u32, u32)> = None;
        for child in children(node) {
            match child.kind() {
                "string_content" => {
                    let at = span(child);
                    let start = content.map_or(at.start, |c| c.0);
                    content = Some((start, at.end));
                }
                "interpolation" => parts.extend(self.all(child)),
                _ => {}
            }
        }
        if !parts.is_empty() {
            return Expr::new(ExprKind::Other(parts), span(node));
        }
        let (start, end) = content.unwrap_or((0, 0));
        let text = self.cx.source.get(start as usize..end as usize).unwrap_or("");
        self.cx.note_string(start, text);
        Expr::new(ExprKind::Str(text), span(node))
    }
}

/// PyObjC spells `newBufferWithLength:options:` as `newBufferWithLength_options_`.
fn selector(name: &str) -> Cow<'_, str> {
    match name.strip_suffix('_') {
        Some(stem) if !stem.is_empty() && !stem.starts_with('_') => Cow::Borrowed(stem),
        _ => Cow::Borrowed(name),
    }
}
