//! Calls: creations, touches, bindings, and functions of the audited code.

use std::borrow::Cow;
use std::sync::Arc;

use super::bind::{expand_list, kernel_names};
use super::eval::{Eval, constant_name, own_site};
use super::summary::{BindIndex, Event, Site, Touch};
use super::value::{Atom, Constant, Element, Options, Pos, Root, SiteId, Value};
use crate::api::create::{CreateKind, recognise};
use crate::api::touch::{Effect, effects, keeps_view, makes_array, operand};
use crate::ir::{Call, Expr, ExprKind, Language, Span};

/// The most events that one call takes over from a function of the audited code.
const MAX_APPLIED: usize = 512;

impl<'s> Eval<'_, 's> {
    pub(crate) fn call(&mut self, call: &Call<'s>, span: Span) -> Value<'s> {
        if let Some(creation) = recognise(call, self.language)
            && !self.is_own_wrapper(call)
        {
            return self.create(call, creation, span);
        }
        let receiver = call.receiver.as_ref().map(|r| self.expr(r)).unwrap_or_default();
        let first_site = self.out.sites.len();
        let mut args = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            let value = match &arg.value.kind {
                // A closure that gets the pointer: `data.withUnsafeBytes { p in … }`.
                ExprKind::Lambda(lambda) if takes_pointer_closure(&call.name) => {
                    self.run_lambda_with(lambda, &receiver)
                }
                _ => self.expr(&arg.value),
            };
            args.push(value);
        }
        for site in &mut self.out.sites[first_site..] {
            if site.name.is_none() {
                site.name = call
                    .args
                    .iter()
                    .find_map(|a| a.label)
                    .map(Cow::Borrowed)
                    .filter(|l| *l != "options");
            }
        }
        if self.encoder_call(call, &args, span) {
            return Value::UNKNOWN;
        }
        if call.is_macro {
            return self.macro_call(call, &args, span);
        }
        let touched = self.touch_operands(call, span);
        if let Some(value) = self.host_data_call(call, &receiver, &args, span) {
            return value;
        }
        if touched {
            return Value::UNKNOWN;
        }
        if let Some(value) = self.view_call(call, &receiver, &args, span) {
            return value;
        }
        if let Some(value) = self.container_call(call, &receiver, &args) {
            return value;
        }
        if let Some(id) = self.resolve(call, &receiver) {
            let value = self.apply(id, call, &args, span);
            // A method known by its name alone may be another: it hands out no buffers of its own.
            let certain = call.receiver.is_none()
                || receiver.object().is_some()
                || names_a_class(call)
                || makes_buffers(&call.name);
            return if certain {
                value
            } else {
                value.only(|a| !matches!(a, Atom::Place { root: Root::Site(_), .. }))
            };
        }
        if matches!(
            call.name.as_ref(),
            "get" | "at" | "objectForKey" | "objectForKeyedSubscript" | "find"
        ) && let (Some(cache), Some(key)) = (&call.receiver, args.first())
            && let Some(kernels) = self.cached_kernel(cache, key)
        {
            return kernels;
        }
        if let Some(value) = passed_through(call, &receiver, &args) {
            return value;
        }
        self.unresolved(call, &receiver, &args, span)
    }

    // ---- creation ----

    /// Whether a call that looks like the API's is of a wrapper of that name in the audited code.
    fn is_own_wrapper(&mut self, call: &Call<'s>) -> bool {
        if !matches!(
            call.name.as_ref(),
            "new_buffer" | "new_buffer_with_data" | "new_buffer_with_bytes_no_copy" | "newBuffer"
        ) {
            return false;
        }
        let receiver = call.receiver.as_ref().map(|r| self.expr(r)).unwrap_or_default();
        let Some(id) = self.resolve(call, &receiver) else { return false };
        if id == self.id {
            return false;
        }
        self.called(id);
        self.known[id as usize].returns.has_site()
    }

    fn create(
        &mut self,
        call: &Call<'s>,
        creation: crate::api::create::Creation<'_, 's>,
        span: Span,
    ) -> Value<'s> {
        if let Some(receiver) = &call.receiver {
            self.expr(receiver);
        }
        let size = creation.length.map(|e| self.expr(e)).unwrap_or_default();
        let bytes = creation.bytes.map(|e| self.expr(e)).unwrap_or_default();
        let mut options = match (creation.kind, creation.options) {
            (CreateKind::Wgpu { .. }, Some(usage)) => self.wgpu_options(usage),
            (_, Some(e)) => self.options(e),
            (_, None) => Value::of(Atom::Options(Options::default())),
        };
        // Empty option lists and braces are the default options.
        let mut default_options = creation.options.is_none();
        if let Some(ExprKind::List(items)) = creation.options.map(|e| &e.kind)
            && items.is_empty()
        {
            options = Value::of(Atom::Options(Options::default()));
            default_options = true;
        }
        let id = own_site(self.pos(call.name_span));
        if creation.kind == CreateKind::NoCopy {
            self.emit(&bytes, Touch::NoCopySource, span, true);
        } else if bytes.is_view() {
            self.emit(&bytes, Touch::HostRead, span, true);
        }
        let site = Site {
            id,
            kind: creation.kind,
            name: None,
            span: Span { start: call.name_span.start, end: span.end },
            file: self.file,
            function: self.id,
            options,
            default_options,
            size,
            bytes,
            in_loop: self.loops > 0,
        };
        if let Some(known) = self.out.sites.iter_mut().find(|s| s.id == id) {
            known.in_loop |= site.in_loop;
        } else {
            self.out.sites.push(site);
        }
        Value::place(Root::Site(id))
    }

    /// The options that an argument stands for.
    pub(crate) fn options(&mut self, expr: &Expr<'s>) -> Value<'s> {
        let value = self.expr(expr);
        let mut out = Value::default();
        for atom in value.atoms() {
            match atom {
                Atom::Options(_) | Atom::Place { .. } => out.add(atom.clone()),
                Atom::Int(i) => out.add(Atom::Options(Options::from_bits(*i))),
                Atom::List(items) if items.is_empty() => out.add(Atom::Options(Options::default())),
                _ => {}
            }
        }
        out
    }

    /// Where a wgpu buffer lives follows from its usage (`wgpu::BufferUsages`): only mapped
    /// buffers are reachable by the host.
    fn wgpu_options(&mut self, usage: &Expr<'s>) -> Value<'s> {
        use super::value::WrittenMode;
        let text = self.text(usage.span);
        let mapped = text.contains("MAP_READ") || text.contains("MAP_WRITE");
        let flags = text.contains("BufferUsages::") || text.contains("BufferUses::");
        if !flags {
            return Value::UNKNOWN;
        }
        let mode = if mapped { WrittenMode::Shared } else { WrittenMode::Private };
        Value::of(Atom::Options(Options::of(mode)))
    }

    // ---- touches ----

    fn touch_operands(&mut self, call: &Call<'s>, span: Span) -> bool {
        let effects = effects(call, self.language);
        let mut direct = false;
        for (slot, effect) in effects {
            let Some(expr) = operand(call, slot) else { continue };
            let value = self.expr(expr);
            let sure = true;
            let touch = match effect {
                Effect::HostWrite => Touch::HostWrite,
                Effect::HostRead => Touch::HostRead,
                Effect::HostWriteDirect => Touch::HostWriteDirect,
                Effect::HostReadDirect => Touch::HostReadDirect,
                Effect::DidModify => Touch::DidModify,
                Effect::Synchronize => Touch::Synchronize,
                Effect::DeviceRead => Touch::DeviceRead,
                Effect::DeviceWrite => Touch::DeviceWrite,
                Effect::DeviceUnknown => Touch::DeviceUnknown,
            };
            direct |= match touch {
                Touch::HostRead | Touch::HostWrite => value.is_view(),
                _ => value.has_place(),
            };
            self.contents_copy(call, effect, &value, span);
            self.emit(&value, touch, span, sure);
        }
        direct
    }

    /// `contents()` and what is done with the pointer.
    fn view_call(
        &mut self,
        call: &Call<'s>,
        receiver: &Value<'s>,
        args: &[Value<'s>],
        span: Span,
    ) -> Option<Value<'s>> {
        let name = call.name.as_ref();
        if name == "contents" && args.is_empty() && receiver.has_place() {
            return Some(receiver.contents());
        }
        if let Some(reads) = makes_array(name) {
            let source = args.first().filter(|a| a.has_place()).or(args.get(1))?;
            if source.has_place() {
                if source.is_view() {
                    let touch = if reads { Touch::HostRead } else { Touch::HostView };
                    self.emit(source, touch, span, true);
                    self.array_over_contents(call, span);
                }
                return Some(source.clone());
            }
        }
        if receiver.is_view() {
            if keeps_view(name, self.language) {
                return Some(receiver.clone());
            }
            if matches!(name, "is_null" | "len" | "count" | "is_empty" | "is_aligned") {
                return Some(Value::UNKNOWN);
            }
            if self.resolve(call, receiver).is_none() {
                let writes = matches!(
                    name,
                    "fill"
                        | "set"
                        | "push"
                        | "put"
                        | "itemset"
                        | "sort"
                        | "insert"
                        | "get_mut"
                        | "iter_mut"
                        | "for_each"
                        | "write_all"
                        | "swap"
                        | "extend"
                        | "chunks_mut"
                        | "chunks_exact_mut"
                        | "split_at_mut"
                        | "index_mut"
                        | "par_iter_mut"
                );
                let touch = if writes { Touch::HostWrite } else { Touch::HostRead };
                self.emit(receiver, touch, span, true);
                if matches!(
                    name,
                    "iter_mut" | "get_mut" | "chunks_mut" | "chunks_exact_mut" | "split_at_mut"
                ) {
                    return Some(receiver.clone());
                }
                return Some(if self.language == Language::Python {
                    Value::of(Atom::HostArray)
                } else {
                    Value::UNKNOWN
                });
            }
        }
        let first = args.first()?;
        if first.is_view()
            && keeps_view(name, self.language)
            && self.resolve(call, receiver).is_none()
        {
            return Some(first.clone());
        }
        None
    }

    /// Lists and dictionaries that buffers are put into.
    fn container_call(
        &mut self,
        call: &Call<'s>,
        receiver: &Value<'s>,
        args: &[Value<'s>],
    ) -> Option<Value<'s>> {
        let base = call.receiver.as_ref()?;
        let item = match call.name.as_ref() {
            "append" | "push" | "push_back" | "emplace_back" | "addObject" | "add"
            | "appendleft" => args.first()?,
            "insert" | "setObject_forKey" | "setdefault" | "emplace" => args.last()?,
            _ => return None,
        };
        let item = if call.name == "setObject_forKey" { args.first()? } else { item };
        if !item.has_place() && !item.has_site() {
            return None;
        }
        let list = Value::of(Atom::List(Arc::new(vec![item.clone()])));
        self.add_to_container(base, receiver, list);
        Some(Value::UNKNOWN)
    }

    // ---- functions of the audited code ----

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
            if receiver.is_unknown()
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
    fn apply(&mut self, id: u32, call: &Call<'s>, args: &[Value<'s>], span: Span) -> Value<'s> {
        self.called(id);
        let project = self.project;
        let known = self.known;
        let (_, function) = project.function(id);
        let summary = &known[id as usize];
        let is_constructor = function.kind == crate::ir::FunctionKind::Constructor;
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
        function: &crate::ir::Function<'s>,
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
            Some(Atom::Constant(Arc::new(Constant { names, bytes: constant.bytes })))
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
        for site in summary.returns.sites() {
            let Some(original) = summary.sites.iter().find(|s| s.id == site) else { continue };
            let id = SiteId { base: site.base, via: Some(via) };
            if self.out.sites.iter().any(|s| s.id == id) {
                continue;
            }
            let derived = Site {
                id,
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

    // ---- everything else ----

    fn unresolved(
        &mut self,
        call: &Call<'s>,
        receiver: &Value<'s>,
        args: &[Value<'s>],
        span: Span,
    ) -> Value<'s> {
        let name = call.name.as_ref();
        if self.dispatch_helper(call, args, span) {
            return Value::UNKNOWN;
        }
        if !is_harmless(name) {
            for (arg, value) in call.args.iter().zip(args) {
                let place = value.only(|a| matches!(a, Atom::Place { .. } | Atom::List(_)));
                if place.is_unknown() {
                    continue;
                }
                if value.is_view() {
                    // A pointer handed on: Python's functions read, others are told by their names.
                    let lower = name.to_ascii_lowercase();
                    let fills =
                        ["fill", "init", "write", "set", "random", "load", "store", "generate"]
                            .iter()
                            .any(|w| lower.contains(w));
                    let touch = if self.language != Language::Python && fills {
                        Touch::HostWrite
                    } else {
                        Touch::HostRead
                    };
                    let sure = self.language == Language::Python;
                    self.emit(value, touch, arg.value.span, sure);
                } else {
                    self.emit(
                        &place,
                        Touch::Escape(Cow::Owned(name.to_string())),
                        arg.value.span,
                        false,
                    );
                }
            }
        }
        // Options go through conversions and unions: `MTLResourceOptions(a.bits() | b.bits())`.
        let mut options: Option<Options> = None;
        for value in args.iter().chain(std::iter::once(receiver)) {
            for atom in value.atoms() {
                if let Atom::Options(o) = atom {
                    options = Some(options.map_or(*o, |held| held.or(*o)));
                }
            }
        }
        if let Some(options) = options {
            return Value::of(Atom::Options(options));
        }
        if matches!(name, "empty" | "default")
            && call
                .receiver
                .as_ref()
                .and_then(Expr::last_name)
                .is_some_and(|n| n.ends_with("ResourceOptions"))
        {
            return Value::of(Atom::Options(Options::default()));
        }
        let mut out = Value::default();
        // What names a kernel goes through: `newFunctionWithName`, `get_pipeline`, ….
        let lower = name.to_ascii_lowercase();
        let makes_pipeline =
            ["function", "pipeline", "kernel", "pso", "shader"].iter().any(|w| lower.contains(w));
        for value in args.iter().chain(std::iter::once(receiver)) {
            for text in value.strings() {
                if makes_pipeline || self.project.is_kernel(text) {
                    out.add(Atom::Str(text));
                }
            }
            if makes_pipeline {
                out.join(&kernel_names(value).only(|a| {
                    matches!(
                        a,
                        Atom::Place {
                            root: Root::Param(_) | Root::Field { .. } | Root::Global { .. },
                            ..
                        }
                    )
                }));
            }
        }
        if let Some(class) = self.project.class(name).map(|c| c.name) {
            out.add(Atom::Object(class));
        }
        out
    }

    /// A function out of sight that gets a kernel's name and buffers binds them in order.
    fn dispatch_helper(&mut self, call: &Call<'s>, args: &[Value<'s>], span: Span) -> bool {
        let name = call.name.as_ref();
        let configured = self.project.dispatch_helpers.contains(name);
        let mut kernels = Value::default();
        for value in args {
            for text in value.strings() {
                if configured || self.project.is_kernel(text) {
                    kernels.add(Atom::Str(text));
                }
            }
            if configured {
                kernels.join(&kernel_names(value).only(|a| {
                    matches!(
                        a,
                        Atom::Place {
                            root: Root::Param(_) | Root::Field { .. },
                            element: Element::Whole,
                            ..
                        }
                    )
                }));
            }
        }
        if kernels.is_unknown() {
            return false;
        }
        let list = args.iter().find(|v| {
            v.atoms()
                .iter()
                .any(|a| matches!(a, Atom::List(items) if items.iter().any(Value::has_place)))
        });
        if let Some(list) = list {
            for atom in list.atoms() {
                if let Atom::List(items) = atom {
                    for (i, item) in items.iter().enumerate() {
                        let index = BindIndex::Number(i as u32);
                        self.emit_bind(item.clone(), index, kernels.clone(), span, configured);
                    }
                }
            }
            return true;
        }
        let buffers: Vec<_> = args.iter().filter(|v| v.has_site()).collect();
        if !configured || buffers.is_empty() {
            return false;
        }
        let first = args.iter().position(Value::has_site).unwrap_or(0);
        for (i, value) in args[first..].iter().enumerate() {
            self.emit_bind(value.clone(), BindIndex::Number(i as u32), kernels.clone(), span, true);
        }
        true
    }

    /// Rust macros: `set_params!(encoder, (length, input, (output, offset)))` binds in order.
    fn macro_call(&mut self, call: &Call<'s>, args: &[Value<'s>], span: Span) -> Value<'s> {
        match call.name.as_ref() {
            "set_params" => {
                let key = call.args.first().and_then(|a| a.value.last_name()).unwrap_or("");
                if let Some(list) = args.get(1) {
                    let items: Vec<Value<'s>> = list
                        .atoms()
                        .iter()
                        .find_map(|a| match a {
                            Atom::List(items) => Some(items.iter().map(first_of_pair).collect()),
                            _ => None,
                        })
                        .unwrap_or_default();
                    let list = Value::of(Atom::List(Arc::new(items)));
                    self.bind_list(key, Some(0), &list, span);
                }
                Value::UNKNOWN
            }
            "vec" => args.first().cloned().unwrap_or_default(),
            "unwrap" | "try" | "dbg" => args.first().cloned().unwrap_or_default(),
            _ => Value::UNKNOWN,
        }
    }
}

/// `Class::method(…)`, `[Class method]`, `module.function(…)`.
fn names_a_class(call: &Call<'_>) -> bool {
    match call.receiver.as_ref().map(|r| &r.kind) {
        Some(ExprKind::Name(name) | ExprKind::Field(_, name)) => {
            matches!(*name, "self" | "this" | "Self" | "super" | "crate" | "cls")
                || name.starts_with(|c: char| c.is_uppercase())
        }
        _ => false,
    }
}

/// Whether a name says that the function hands out buffers.
fn makes_buffers(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    ["buf", "alloc", "storage", "create", "make", "new_", "zeros", "empty", "upload", "tensor"]
        .iter()
        .any(|w| lower.contains(w))
}

/// `(buffer, offset)` is bound as the buffer.
fn first_of_pair<'s>(value: &Value<'s>) -> Value<'s> {
    let pair = value.atoms().iter().find_map(|a| match a {
        Atom::List(items) => items.first().cloned(),
        _ => None,
    });
    pair.unwrap_or_else(|| value.clone())
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

/// Smart pointers, optionals and ownership: the value itself goes through.
fn passed_through<'s>(
    call: &Call<'s>,
    receiver: &Value<'s>,
    args: &[Value<'s>],
) -> Option<Value<'s>> {
    let path = call.receiver.as_ref().and_then(Expr::last_name);
    match call.name.as_ref() {
        "Ok"
        | "Some"
        | "Err"
        | "move"
        | "forward"
        | "TransferPtr"
        | "RetainPtr"
        | "ref"
        | "cref"
        | "make_pair"
        | "static_cast"
        | "dynamic_cast"
        | "reinterpret_cast"
        | "const_cast"
        | "id"
        | "Optional"
        | "__bridge_transfer"
        | "CFBridgingRelease"
        | "from_ref"
        | "as_ref"
        | "borrow"
        | "retain_autoreleased"
        | "static_pointer_cast"
        | "make_shared_buffer"
        | "checkNotNil"
        | "ManuallyDrop"
            if !args.is_empty() =>
        {
            Some(args[0].clone())
        }
        "new" | "from" | "into_super" | "retain" | "from_raw" | "as_super" | "clone"
            if args.len() == 1
                && matches!(
                    path,
                    Some(
                        "Arc"
                            | "Rc"
                            | "Box"
                            | "Mutex"
                            | "RwLock"
                            | "RefCell"
                            | "Cell"
                            | "Some"
                            | "Retained"
                            | "ManuallyDrop"
                            | "OnceCell"
                            | "UnsafeCell"
                            | "Buffer"
                            | "NonNull"
                            | "Cow"
                            | "ProtocolObject"
                    )
                ) =>
        {
            Some(args[0].clone())
        }
        "unwrap" | "expect" | "clone" | "as_ref" | "as_mut" | "get" | "retain" | "autorelease"
        | "to_owned" | "lock" | "borrow" | "borrow_mut" | "read" | "unwrap_or_default" | "ok"
        | "ok_or" | "ok_or_else" | "map_err" | "deref" | "into" | "as_deref" | "release"
        | "leak" | "as_super" | "into_super" | "with_context" | "context" | "copy" | "take"
        | "detach" | "unwrap_or" | "unwrap_or_else" | "first" | "last" | "as_ptr" | "cloned"
        | "reset" | "slice" | "objectAtIndex" | "at" | "get_mut" | "get_unchecked" | "iter"
        | "as_slice" | "to_vec"
            if call.receiver.is_some() && !receiver.is_unknown() =>
        {
            match call.name.as_ref() {
                "get" | "at" | "objectAtIndex" | "get_mut" | "get_unchecked"
                    if !args.is_empty() =>
                {
                    let which = match (args[0].int(), args[0].strings().next()) {
                        (Some(i), _) => Element::At(i),
                        (_, Some(key)) => Element::Key(key),
                        _ => Element::Any,
                    };
                    let mut out = receiver.element(which);
                    for text in args[0].strings() {
                        out.add(Atom::Str(text));
                    }
                    Some(out)
                }
                "first" | "last" => Some(receiver.element(Element::Any)),
                _ => Some(receiver.clone()),
            }
        }
        _ => None,
    }
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

/// Functions that only look at a buffer, or manage its lifetime.
fn is_harmless(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    matches!(
        name,
        "" | "print"
            | "len"
            | "str"
            | "repr"
            | "isinstance"
            | "hasattr"
            | "getattr"
            | "NSLog"
            | "printf"
            | "assert"
            | "drop"
            | "release"
            | "retain"
            | "CFRelease"
            | "type"
            | "id"
            | "free"
            | "dealloc"
            | "precondition"
            | "sizeof"
            | "XCTAssertNotNil"
            | "XCTAssertEqual"
            | "min"
            | "max"
            | "bool"
            | "callable"
            | "setLabel"
            | "set_label"
            | "fatalError"
            | "os_log"
            | "fprintf"
            | "range"
            | "enumerate"
            | "zip"
            | "list"
            | "tuple"
            | "dict"
            | "sum"
            | "close"
            | "destroy"
            | "assert_eq"
            | "removeAll"
            | "del"
            | "autorelease"
            | "numel"
            | "super"
    ) || lower.starts_with("assert")
        || lower.starts_with("log")
        || lower.contains("println")
}

fn takes_pointer_closure(name: &str) -> bool {
    matches!(
        name,
        "withUnsafeBytes"
            | "withUnsafeMutableBytes"
            | "withUnsafeBufferPointer"
            | "withUnsafeMutableBufferPointer"
            | "withMemoryRebound"
            | "map"
            | "let"
            | "for_each"
            | "forEach"
            | "and_then"
    )
}
