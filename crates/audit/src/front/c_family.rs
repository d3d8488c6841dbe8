//! C, C++ and Objective-C: declarations and statements.
//!
//! Both grammars extend the one for C, so one front end reads the trees of either.

use std::borrow::Cow;
use std::collections::HashMap;

use tree_sitter::Node;

use super::{Context, assign, children, field_children, parse_int, span};
use crate::ir::{Class, Expr, ExprKind, Function, FunctionKind, Module, Param, Stmt};

pub(super) fn lower<'s>(cx: Context<'s>, root: Node<'_>) -> Module<'s> {
    let mut c = CFamily { cx, class: None, top: Vec::new(), types: HashMap::new() };
    c.items(root);
    let body = std::mem::take(&mut c.top);
    c.cx.into_module("<file>", body, span(root))
}

pub(super) struct CFamily<'s> {
    pub(super) cx: Context<'s>,
    class: Option<&'s str>,
    top: Vec<Stmt<'s>>,
    /// Declared types of the variables in sight, for `sizeof(variable)`.
    pub(super) types: HashMap<&'s str, &'s str>,
}

impl<'s> CFamily<'s> {
    fn items(&mut self, node: Node<'_>) {
        if self.cx.depth > super::MAX_DEPTH {
            return;
        }
        self.cx.depth += 1;
        for child in children(node) {
            self.item(child);
        }
        self.cx.depth -= 1;
    }

    pub(super) fn item(&mut self, node: Node<'_>) {
        match node.kind() {
            "function_definition"
            | "inline_method_definition"
            | "constructor_or_destructor_definition" => {
                self.function(node);
            }
            "method_definition" => self.method(node),
            "class_specifier" | "struct_specifier" | "union_specifier" => self.class(node),
            "class_interface"
            | "category_interface"
            | "protocol_declaration"
            | "class_declaration" => {
                self.interface(node);
            }
            "class_implementation" | "category_implementation" => {
                let name = children(node)
                    .into_iter()
                    .find(|n| n.kind() == "identifier")
                    .map(|n| self.cx.text(n));
                let outer = std::mem::replace(&mut self.class, name);
                self.items(node);
                self.class = outer;
            }
            "enum_specifier" => self.enumeration(node),
            "preproc_def" => self.define(node),
            "declaration" | "type_definition" => {
                // Types declared on the way: `struct { … } x;`, `typedef enum { … } E;`.
                for child in children(node) {
                    if matches!(
                        child.kind(),
                        "class_specifier"
                            | "struct_specifier"
                            | "enum_specifier"
                            | "union_specifier"
                    ) {
                        self.item(child);
                    }
                }
                if node.kind() == "declaration" {
                    let mut out = Vec::new();
                    self.declaration(node, &mut out);
                    self.top.extend(out);
                }
            }
            "preproc_function_def"
            | "preproc_include"
            | "preproc_call"
            | "using_declaration"
            | "comment"
            | "alias_declaration"
            | "static_assert_declaration" => {}
            "expression_statement" => {}
            _ => self.items(node),
        }
    }

    fn class(&mut self, node: Node<'_>) {
        let name = self.cx.field_text(node, "name").map(last_of_path);
        let Some(body) = node.child_by_field_name("body") else { return };
        let outer = self.class;
        self.class = name.or(outer);
        let mut fields = Vec::new();
        let mut bases = Vec::new();
        for child in children(node) {
            if child.kind() == "base_class_clause" {
                for base in children(child) {
                    if matches!(
                        base.kind(),
                        "type_identifier" | "qualified_identifier" | "template_type"
                    ) {
                        bases
                            .push(last_of_path(self.cx.text(base).split('<').next().unwrap_or("")));
                    }
                }
            }
        }
        for child in children(body) {
            match child.kind() {
                "field_declaration" => self.field(child, name, &mut fields),
                _ => self.item(child),
            }
        }
        self.class = outer;
        if let Some(name) = name {
            self.cx.module.classes.push(Class { name, fields, bases });
        }
    }

    fn field(
        &mut self,
        node: Node<'_>,
        class: Option<&'s str>,
        fields: &mut Vec<(&'s str, &'s str)>,
    ) {
        let ty = self.cx.field_text(node, "type").unwrap_or("");
        for declarator in field_children(node, "declarator") {
            if declarator.kind() == "function_declarator" {
                continue;
            }
            if let Some(name) = self.declared_name(declarator) {
                fields.push((name, ty));
            }
        }
        if let (Some(value), Some(class), Some((name, _))) =
            (node.child_by_field_name("default_value"), class, fields.last())
        {
            let object = Expr::new(ExprKind::Name(class), span(node));
            let target = Expr::new(ExprKind::Field(Box::new(object), name), span(node));
            let value = self.expr(value);
            self.top.push(assign(target, Some(value)));
        }
        for child in children(node) {
            if matches!(
                child.kind(),
                "class_specifier" | "struct_specifier" | "enum_specifier" | "union_specifier"
            ) {
                self.item(child);
            }
        }
    }

    /// An Objective-C interface: instance variables and properties.
    fn interface(&mut self, node: Node<'_>) {
        let mut name = None;
        let mut fields = Vec::new();
        for child in children(node) {
            match child.kind() {
                "identifier" if name.is_none() => name = Some(self.cx.text(child)),
                "instance_variables" | "property_declaration" => self.ivars(child, &mut fields),
                _ => {}
            }
        }
        let bases = self.cx.field_text(node, "superclass").into_iter().collect();
        if let Some(name) = name {
            self.cx.module.classes.push(Class { name, fields, bases });
        }
    }

    fn ivars(&mut self, node: Node<'_>, fields: &mut Vec<(&'s str, &'s str)>) {
        if node.kind() == "struct_declaration" {
            let parts = children(node);
            let ty = parts.first().map_or("", |n| self.cx.text(*n));
            for part in &parts[1.min(parts.len())..] {
                if let Some(name) = self.declared_name(*part) {
                    fields.push((name.trim_start_matches('_'), ty));
                }
            }
            return;
        }
        for child in children(node) {
            self.ivars(child, fields);
        }
    }

    /// Enumerators are integer constants that hosts and shaders share.
    fn enumeration(&mut self, node: Node<'_>) {
        let Some(body) = node.child_by_field_name("body") else { return };
        let mut next = Some(0i64);
        for child in children(body) {
            if child.kind() != "enumerator" {
                continue;
            }
            let Some(name_node) = child.child_by_field_name("name") else { continue };
            if let Some(value) = child.child_by_field_name("value") {
                next = parse_int(self.cx.text(value));
            }
            if let Some(value) = next {
                let name = self.cx.text(name_node);
                let target = Expr::new(ExprKind::Name(name), span(name_node));
                let value = Expr::new(ExprKind::Int(value), span(child));
                self.top.push(assign(target, Some(value)));
            }
            next = next.map(|n| n + 1);
        }
    }

    /// `#define OPTIONS (MTLResourceStorageModeShared | …)` is a constant.
    pub(super) fn define(&mut self, node: Node<'_>) {
        let (Some(name_node), Some(value_node)) =
            (node.child_by_field_name("name"), node.child_by_field_name("value"))
        else {
            return;
        };
        let at = span(value_node);
        let text = self.cx.text(value_node);
        let text = text.split("//").next().unwrap_or(text).trim();
        let mut value: Option<Expr<'s>> = None;
        for part in text.split('|') {
            let part = part.trim().trim_matches(['(', ')', ' ']);
            let word = last_of_path(part);
            let simple = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_');
            if !simple {
                return;
            }
            let kind = match parse_int(word) {
                Some(i) if word.starts_with(|c: char| c.is_ascii_digit()) => ExprKind::Int(i),
                _ => ExprKind::Name(word),
            };
            let piece = Expr::new(kind, at);
            value = Some(match value {
                None => piece,
                Some(left) => Expr::new(ExprKind::Binary("|", Box::new(left), Box::new(piece)), at),
            });
        }
        let target = Expr::new(ExprKind::Name(self.cx.text(name_node)), span(name_node));
        self.top.push(assign(target, value));
    }

    fn function(&mut self, node: Node<'_>) {
        let Some(declarator) = node.child_by_field_name("declarator") else { return };
        let Some(declarator) = function_declarator(declarator) else { return };
        let Some(name_node) = declarator.child_by_field_name("declarator") else { return };
        let path = self.cx.text(name_node);
        let name = last_of_path(path.split('<').next().unwrap_or(path));
        let scope = path
            .rfind("::")
            .map(|at| last_of_path(&path[..at]))
            .map(|s| s.split('<').next().unwrap_or(s));
        // A scope that is no class is a namespace: harmless, since no field is looked up in it.
        let class = scope.or(self.class);
        self.types.clear();
        let params = declarator
            .child_by_field_name("parameters")
            .map(|p| self.params(p))
            .unwrap_or_default();
        let mut body = Vec::new();
        for child in children(node) {
            if child.kind() == "field_initializer_list" {
                self.initializers(child, class, &mut body);
            }
        }
        if let Some(block) = node.child_by_field_name("body") {
            self.statements(block, &mut body);
        }
        let kind = match class {
            Some(class) if class == name => FunctionKind::Constructor,
            Some(_) => FunctionKind::Method,
            None => FunctionKind::Free,
        };
        self.cx.module.functions.push(Function {
            name: Cow::Borrowed(name),
            class,
            kind,
            params,
            body,
            span: span(node),
            is_test: name.starts_with("TEST") || name.starts_with("test"),
            // How the rewriting of Objective-C++ marks methods.
            is_selector: self.cx.field_text(node, "type") == Some("__objc_method"),
        });
    }

    fn initializers(&mut self, node: Node<'_>, class: Option<&'s str>, out: &mut Vec<Stmt<'s>>) {
        for child in children(node) {
            let parts = children(child);
            let (Some(field), Some(args)) = (parts.first(), parts.get(1)) else { continue };
            let name = self.cx.text(*field);
            let mut values = self.all(*args);
            let at = span(child);
            let value = match values.len() {
                1 => values.remove(0),
                _ => Expr::new(ExprKind::Other(values), at),
            };
            let object = Expr::new(ExprKind::Name(class.unwrap_or("this")), at);
            let target = Expr::new(ExprKind::Field(Box::new(object), name), at);
            out.push(assign(target, Some(value)));
        }
    }

    fn params(&mut self, node: Node<'_>) -> Vec<Param<'s>> {
        let mut out = Vec::new();
        for child in children(node) {
            if !matches!(child.kind(), "parameter_declaration" | "optional_parameter_declaration") {
                continue;
            }
            let name = child.child_by_field_name("declarator").and_then(|d| self.declared_name(d));
            let ty = self.cx.field_text(child, "type");
            // `f(void)` has no parameters.
            if name.is_none() && ty == Some("void") {
                continue;
            }
            let name = name.unwrap_or("");
            self.types.insert(name, ty.unwrap_or(""));
            let default = child.child_by_field_name("default_value").map(|n| self.expr(n));
            out.push(Param { name, label: None, ty, default });
        }
        out
    }

    /// An Objective-C method.
    fn method(&mut self, node: Node<'_>) {
        self.types.clear();
        let mut selector: Vec<&'s str> = Vec::new();
        let mut params = Vec::new();
        let mut body = Vec::new();
        for child in children(node) {
            match child.kind() {
                "identifier" => selector.push(self.cx.text(child)),
                "method_parameter" => {
                    let parts = children(child);
                    let name = parts.last().map_or("", |n| self.cx.text(*n));
                    let ty = parts.first().map(|n| self.cx.text(*n));
                    self.types.insert(name, ty.unwrap_or("").trim_matches(['(', ')']));
                    params.push(Param { name, label: None, ty, default: None });
                }
                "compound_statement" => self.statements(child, &mut body),
                _ => {}
            }
        }
        let is_init = selector.first().is_some_and(|s| s.starts_with("init"));
        self.cx.module.functions.push(Function {
            name: Cow::Owned(selector.join("_")),
            class: self.class,
            kind: if is_init { FunctionKind::Constructor } else { FunctionKind::Method },
            params,
            body,
            span: span(node),
            is_test: selector.first().is_some_and(|s| s.starts_with("test")),
            is_selector: true,
        });
    }

    /// The name that a declarator declares.
    pub(super) fn declared_name(&self, node: Node<'_>) -> Option<&'s str> {
        match node.kind() {
            "identifier" | "field_identifier" | "type_identifier" => Some(self.cx.text(node)),
            "qualified_identifier" => self.cx.field_text(node, "name"),
            "init_declarator"
            | "pointer_declarator"
            | "array_declarator"
            | "function_declarator"
            | "parenthesized_declarator"
            | "reference_declarator"
            | "struct_declarator"
            | "block_pointer_declarator"
            | "attributed_declarator" => match node.child_by_field_name("declarator") {
                Some(inner) => self.declared_name(inner),
                None => children(node).into_iter().rev().find_map(|n| self.declared_name(n)),
            },
            _ => None,
        }
    }
}

fn function_declarator(node: Node<'_>) -> Option<Node<'_>> {
    let mut node = node;
    for _ in 0..8 {
        if node.kind() == "function_declarator" {
            // `(*f)(…)` declares a pointer.
            return Some(node);
        }
        let inner = node.child_by_field_name("declarator");
        node = inner
            .or_else(|| children(node).into_iter().find(|n| n.kind().ends_with("declarator")))?;
    }
    None
}

/// `c` of `a::b::c`.
pub(super) fn last_of_path(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path).trim()
}
