//! Calls of the audited code's own functions: which one is meant, and what its summary says here.

use std::sync::Arc;

use super::bind::expand_list;
use super::constant::constant_name;
use super::eval::Eval;
use super::summary::{BindIndex, Event, Site, Touch};
use super::value::{Atom, Constant, Element, Pos, SiteId, Value};
use crate::ir::{Call, ExprKind, Function, FunctionKind, Language, Span};

/// The most events that one call takes over from a function of the audited code.
const MAX_APPLIED: usize = 512;

impl<'s> Eval<'_, 's> {
    pub(crate) fn resolve(&mut self, call: &Call<'s>, receiver: &Value<'s>) -> Option<u32> {
        let name = call.name.as_ref();
        if name.is_empty() {
            return None;
        }
        let argc = call.args.len();
        let Some(receiver_expr) = &call.receiver else {
            if let Some(id) = self.project.free_function(self.file, name, argc) {
                return Some(id);
            }
            if self.project.class(name).is_some() {
                return self.project.constructor(name);
            }
            if let Some(class) = self.function.class
                && self.language != Language::Python
            {
                return self.project.method(class, name);
            }
            return None;
        };
        if let Some(class) = receiver.object() {
            return self.project.method(class, name);
        }
        if let ExprKind::Name(path) | ExprKind::Field(_, path) = receiver_expr.kind {
            if path == "super" {
                let class = self.function.class.and_then(|c| self.project.class(c));
                return class?.bases.iter().find_map(|b| self.project.method(b, name));
            }
            if self.project.class(path).is_some() {
                if let Some(id) = self.project.method(path, name) {
                    return Some(id);
                }
                // Objective-C's `[[Foo alloc] init…]` and Swift's `Module.Foo(…)`.
                if self.project.class(name).is_some() {
                    return self.project.constructor(name);
                }
                return None;
            }
            let imports = &self.project.files[self.file as usize].module.imports;
            let import =
                imports.iter().find(|i| i.local == path && self.language == Language::Python);
            if let Some(import) = import {
                let wanted = import.item.unwrap_or(import.module);
                return match self.project.module_file(self.file, wanted) {
                    Some(file) => self.project.function_in(file, name),
                    None => None,
                };
            }
            // `module::function(…)` in Rust, `ns::function(…)` in C++.
            let before = call
                .name_span
                .start
                .checked_sub(1)
                .and_then(|i| self.source.as_bytes().get(i as usize));
            if before == Some(&b':')
                && receiver.is_unknown()
                && let Some(id) = self.project.free_function(self.file, name, argc)
                && self.language != Language::Python
                && self.language != Language::Swift
            {
                return Some(id);
            }
        }
        if is_common(name) {
            return None;
        }
        self.project.only_method(name, argc, self.language)
    }

    /// Applies the summary of a function at a call.
    pub(super) fn apply(
        &mut self,
        id: u32,
        call: &Call<'s>,
        args: &[Value<'s>],
        span: Span,
    ) -> Value<'s> {
        self.called(id);
        let project = self.project;
        let known = self.known;
        let (_, function) = project.function(id);
        let summary = &known[id as usize];
        let is_constructor = function.kind == FunctionKind::Constructor;
        let mut by_param = vec![Value::UNKNOWN; function.params.len()];
        let mut position = 0;
        for (arg, value) in call.args.iter().zip(args) {
            let labelled = arg.label.filter(|_| self.language == Language::Python);
            let at = labelled.and_then(|l| function.params.iter().position(|p| p.name == l));
            let at = at.or_else(|| {
                let at = position;
                position += 1;
                Some(at)
            });
            let Some(at) = at else { continue };
            match function.params.get(at) {
                Some(param) if param.ty == Some("*") => {
                    position = at;
                    append_rest(&mut by_param[at], value);
                }
                Some(_) => by_param[at] = value.clone(),
                None => {}
            }
        }
        for (param, value) in function.params.iter().zip(&mut by_param) {
            if value.is_unknown()
                && let Some(default) = &param.default
            {
                *value = self.expr(default);
            }
        }
        let via = self.pos(span);
        let kernels_here = self.current_kernels();
        let mut applied = 0;
        for event in &summary.events {
            if applied >= MAX_APPLIED {
                break;
            }
            let needs_kernel =
                matches!(&event.touch, Touch::Bind { kernels, .. } if kernels.is_unknown());
            if !event.mentions_param() {
                continue;
            }
            applied += 1;
            let expanded = expand_list(event, &by_param).unwrap_or_default();
            let direct = Event { value: event.value.substitute(&by_param), ..event.clone() };
            for mut event in expanded.into_iter().chain(std::iter::once(direct)) {
                if let Touch::Bind { index, kernels } = &mut event.touch {
                    // What could not be expanded stays with its list.
                    if matches!(index, BindIndex::FromList(_)) {
                        event.value = event.value.only(|a| {
                            matches!(a, Atom::Place { element: Element::Var(_) | Element::Any, .. })
                        });
                    }
                    *kernels = kernels.substitute(&by_param);
                    if needs_kernel {
                        *kernels = kernels_here.clone();
                    }
                }
                event.in_loop |= self.loops > 0;
                if event.value.holds_place() || event.touch == Touch::NoCopySource {
                    self.push_event(event);
                }
            }
        }
        for (root, value) in summary.stores.iter().filter(|(_, v)| v.has_param()) {
            let value = value.substitute(&by_param);
            if !value.is_unknown() && !self.out.stores.iter().any(|(r, v)| r == root && *v == value)
            {
                self.out.stores.push((*root, value));
            }
        }
        self.derive_sites(id, &by_param, via, call.name_span, span);
        let mut returned = summary.returns.seen_via(via).substitute(&by_param);
        returned = self.renamed_constants(&returned, function, call);
        if is_constructor && let Some(class) = function.class {
            returned.add(Atom::Object(class));
        }
        returned
    }

    /// A constant made by a helper is known by what the caller passes: `u32_bytes(M)` is `M`.
    fn renamed_constants(
        &self,
        value: &Value<'s>,
        function: &Function<'s>,
        call: &Call<'s>,
    ) -> Value<'s> {
        value.map(|atom| {
            let Atom::Constant(constant) = atom else { return Some(atom.clone()) };
            let names = constant
                .names
                .iter()
                .map(|name| {
                    let at = function.params.iter().position(|p| p.name == *name);
                    let arg = at.and_then(|at| call.args.get(at));
                    arg.and_then(|a| constant_name(&a.value)).unwrap_or(name)
                })
                .collect();
            Some(Atom::Constant(Arc::new(Constant {
                names,
                bytes: constant.bytes,
                by_address: constant.by_address,
            })))
        })
    }

    fn push_event(&mut self, event: Event<'s>) {
        let known = self.out.events.iter().rev().take(64).any(|e| {
            e.pos == event.pos
                && e.value == event.value
                && e.touch == event.touch
                && e.in_loop == event.in_loop
        });
        if !known {
            self.out.events.push(event);
        }
    }

    /// A wrapper's creation, seen from this call of the wrapper.
    fn derive_sites(
        &mut self,
        callee: u32,
        args: &[Value<'s>],
        via: Pos,
        name_span: Span,
        span: Span,
    ) {
        let summary = &self.known[callee as usize];
        for site in summary.returns.handed_out() {
            let Some(original) = summary.sites.iter().find(|s| s.id == site) else { continue };
            let id = SiteId { base: site.base, via: Some(via) };
            if self.out.sites.iter().any(|s| s.id == id) {
                continue;
            }
            let derived = Site {
                id,
                parent: Some(original.id),
                name: None,
                span: Span { start: name_span.start, end: span.end },
                file: self.file,
                function: self.id,
                options: original.options.substitute(args),
                size: original.size.substitute(args),
                bytes: original.bytes.substitute(args),
                in_loop: original.in_loop || self.loops > 0,
                ..original.clone()
            };
            self.out.sites.push(derived);
        }
    }
}

fn append_rest<'s>(held: &mut Value<'s>, value: &Value<'s>) {
    let mut items = match held.atoms() {
        [Atom::List(items)] => (**items).clone(),
        _ => Vec::new(),
    };
    // `f(*buffers)` passes the list itself on.
    match value.list() {
        Some(more) => items.extend(more.iter().cloned()),
        None => items.push(value.clone()),
    }
    *held = Value::of(Atom::List(Arc::new(items)));
}

/// Methods that so many types have that a single definition in the audited code proves nothing.
fn is_common(name: &str) -> bool {
    matches!(
        name,
        "get"
            | "set"
            | "new"
            | "init"
            | "append"
            | "push"
            | "insert"
            | "remove"
            | "clear"
            | "len"
            | "copy"
            | "clone"
            | "close"
            | "open"
            | "read"
            | "write"
            | "update"
            | "add"
            | "pop"
            | "item"
            | "numpy"
            | "cpu"
            | "to"
            | "unwrap"
            | "expect"
            | "map"
            | "and_then"
            | "ok_or"
            | "ok_or_else"
            | "into"
            | "from"
            | "iter"
            | "count"
            | "first"
            | "last"
            | "join"
            | "format"
            | "keys"
            | "values"
            | "items"
            | "contents"
            | "release"
            | "retain"
            | "encode"
            | "commit"
            | "begin"
            | "end"
            | "start"
            | "stop"
            | "reset"
            | "data"
            | "size"
            | "length"
            | "next"
            | "load"
            | "save"
            | "alloc"
            | "free"
            | "drop"
            | "as_ref"
            | "as_mut"
            | "buffer"
            | "name"
            | "label"
            | "device"
            | "print"
    )
}
