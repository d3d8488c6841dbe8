//! Expressions.

use std::borrow::Cow;
use std::sync::Arc;

use super::constant::{constant_name, size_of};
use super::eval::{Eval, MAX_UNROLLED};
use super::summary::Touch;
use super::value::{Atom, Constant, Element, Options, Root, Value};
use crate::ir::{Expr, ExprKind, Language, Stmt};

impl<'s> Eval<'_, 's> {
    pub(crate) fn expr(&mut self, expr: &Expr<'s>) -> Value<'s> {
        match &expr.kind {
            ExprKind::Name(name) => self.name(name),
            ExprKind::Field(object, name) => self.field_value(expr, object, name),
            ExprKind::Index(base, index) => self.index(expr, base, index),
            ExprKind::Call(call) => self.call(call, expr.span),
            ExprKind::Str(text) => Value::of(Atom::Str(text)),
            ExprKind::Int(i) => Value::of(Atom::Int(*i)),
            ExprKind::Literal => Value::UNKNOWN,
            ExprKind::List(items) => {
                let values: Vec<_> = items.iter().map(|i| self.expr(i)).collect();
                self.list_value(items, values)
            }
            ExprKind::Record { ty, entries } => self.record(*ty, entries),
            ExprKind::Binary(op, left, right) => self.binary(op, left, right),
            ExprKind::Deref(inner) => {
                let value = self.expr(inner);
                self.emit(&value, Touch::HostRead, expr.span, true);
                // Rust's `*buffer` and C's `*out` are the thing itself.
                value.only(|a| !matches!(a, Atom::Place { view: true, .. }))
            }
            ExprKind::AddressOf(inner) => self.address_of(inner),
            ExprKind::Cast(inner, _) => self.expr(inner),
            ExprKind::SizeOf(ty) => match size_of(ty) {
                Some(size) => Value::of(Atom::Int(size as i64)),
                None => Value::UNKNOWN,
            },
            ExprKind::OneOf(items) => {
                let mut out = Value::default();
                for item in items {
                    let value = self.expr(item);
                    out.join(&value);
                }
                out
            }
            ExprKind::Block(stmts, value) => {
                if let Some(list) = self.comprehension(stmts, value.as_deref()) {
                    return list;
                }
                self.statements(stmts);
                value.as_ref().map(|v| self.expr(v)).unwrap_or_default()
            }
            ExprKind::Lambda(lambda) => {
                self.run_lambda(&lambda.params, &lambda.body);
                Value::UNKNOWN
            }
            ExprKind::Assign(stmt) => {
                self.statement(stmt);
                match &**stmt {
                    Stmt::Assign { target, .. } => match &target.kind {
                        ExprKind::Name(name) => self.name(name),
                        ExprKind::Field(..) => self.expr(target),
                        _ => Value::UNKNOWN,
                    },
                    _ => Value::UNKNOWN,
                }
            }
            ExprKind::Other(parts) => {
                let mut out = Value::default();
                for part in parts {
                    let value = self.expr(part);
                    if parts.len() == 1 {
                        out = value;
                    }
                }
                out
            }
        }
    }

    /// `[f(x) for x in (a, b)]` over a list that is known keeps its order.
    pub(super) fn comprehension(
        &mut self,
        stmts: &[Stmt<'s>],
        value: Option<&Expr<'s>>,
    ) -> Option<Value<'s>> {
        let [Stmt::Loop { target: Some(target), iter: Some(iter), body }] = stmts else {
            return None;
        };
        let ExprKind::List(shape) = &value?.kind else { return None };
        let element = match shape.as_slice() {
            [only] if matches!(only.kind, ExprKind::Name("<element>")) => only,
            _ => return None,
        };
        let (list, counted) = self.iterated(iter);
        let items =
            Arc::clone(list.list().filter(|items| items.len() <= MAX_UNROLLED && !counted)?);
        self.loops += 1;
        let mut out = Vec::with_capacity(items.len());
        for item in items.iter() {
            self.bind_target(target, item);
            self.statements(body);
            out.push(self.expr(element));
        }
        self.loops -= 1;
        Some(Value::of(Atom::List(Arc::new(out))))
    }

    pub(crate) fn name(&mut self, name: &'s str) -> Value<'s> {
        if let Some(value) = self.env.get(name) {
            return value.clone();
        }
        if let Some(options) = Options::named(name) {
            return Value::of(Atom::Options(options));
        }
        if matches!(name, "self" | "this" | "cls" | "Self") {
            return self.function.class.map(|c| Value::of(Atom::Object(c))).unwrap_or_default();
        }
        let Some(root) = self.outer_name(name) else { return Value::UNKNOWN };
        let mut value = Value::place(root);
        if let Some(i) = self.project.int(name) {
            value.add(Atom::Int(i));
        }
        if let Root::Field { class: Some(class), .. } = root
            && let Some(ty) = self.project.field_type(class, name)
            && let Some(object) = self.project.class_in_type(ty)
        {
            value.add(Atom::Object(object));
        }
        value
    }

    /// The class whose field `object.name` is, if the object's class is known.
    pub(super) fn field_root(
        &mut self,
        object: &Expr<'s>,
        base: &Value<'s>,
        name: &'s str,
    ) -> Option<Root<'s>> {
        if let ExprKind::Name(module) = object.kind
            && let Some(class) = self.project.class(module).map(|c| c.name)
        {
            return Some(self.field(Some(class), name));
        }
        match base.object() {
            Some(class) => Some(self.field(Some(class), name)),
            None => Some(self.field(None, name)),
        }
    }

    fn field_value(&mut self, expr: &Expr<'s>, object: &Expr<'s>, name: &'s str) -> Value<'s> {
        if let Some(options) = Options::named(name) {
            return Value::of(Atom::Options(options));
        }
        if let ExprKind::Name(module) = object.kind
            && !self.env.contains_key(module)
        {
            let imports = &self.project.files[self.file as usize].module.imports;
            if let Some(import) = imports.iter().find(|i| i.local == module) {
                let wanted = import.item.unwrap_or(import.module);
                if let Some(file) = self.project.module_file(self.file, wanted)
                    && self.project.defines_global(file, name)
                {
                    return Value::place(Root::Global { file, name });
                }
            }
        }
        let base = self.expr(object);
        match name {
            "contents" if base.has_place() && self.language != Language::Rust => {
                return base.contents();
            }
            "pointee" => {
                self.emit(&base, Touch::HostRead, expr.span, true);
                return Value::UNKNOWN;
            }
            "baseAddress" | "mps" | "flat" | "T" | "data" | "value" if base.is_view() => {
                return base;
            }
            "count" | "shape" | "dtype" | "size" | "nbytes" | "ndim" | "isEmpty"
                if base.is_view() =>
            {
                return Value::UNKNOWN;
            }
            "rawValue" | "self" => return base,
            "gpuAddress" | "gpuResourceID" => {
                self.emit(&base, Touch::DeviceUnknown, expr.span, false);
                return Value::UNKNOWN;
            }
            _ => {}
        }
        if base.is_view() {
            self.emit(&base, Touch::HostRead, expr.span, true);
            return Value::UNKNOWN;
        }
        if let Some(held) = base.atoms().iter().find_map(|a| match a {
            Atom::Record(entries) => {
                entries.iter().find(|(k, _)| *k == name).map(|(_, v)| v.clone())
            }
            _ => None,
        }) {
            return held;
        }
        let mut value = base.only(|a| {
            matches!(a, Atom::Tensor(_)) && matches!(name, "data" | "T" | "grad" | "weight")
        });
        if let Some(root) = self.field_root(object, &base, name) {
            value.join(&Value::place(root));
            if let Root::Field { class: Some(class), .. } = root
                && let Some(ty) = self.project.field_type(class, name)
                && let Some(object) = self.project.class_in_type(ty)
            {
                value.add(Atom::Object(object));
            }
        }
        value
    }

    fn index(&mut self, expr: &Expr<'s>, base_expr: &Expr<'s>, index: &Expr<'s>) -> Value<'s> {
        let base = self.expr(base_expr);
        let at = self.expr(index);
        self.emit(&base, Touch::HostRead, expr.span, true);
        if base.is_view() {
            return Value::UNKNOWN;
        }
        let which = match (at.int(), at.strings().next(), &index.kind) {
            (Some(i), _, _) => Element::At(i),
            (_, Some(key), _) => Element::Key(key),
            (_, _, ExprKind::Name(name)) => Element::Var(name),
            _ => Element::Any,
        };
        // `Options(…).0`, the bits of an option set.
        if base.atoms().iter().any(|a| matches!(a, Atom::Options(_))) {
            return base;
        }
        // `pipelines["softmax"]` is a kernel by its name.
        if let Some(kernels) = self.cached_kernel(base_expr, &at) {
            return kernels;
        }
        let mut out = base.element(which);
        if base.tensor().is_some() {
            out.join(&base.only(|a| matches!(a, Atom::Tensor(_))));
        }
        if base.is_host_array() {
            out.add(Atom::HostArray);
        }
        out
    }

    /// What a cache of pipelines holds under `key`: the kernel that the key names, whoever put it there.
    pub(crate) fn cached_kernel(&self, cache: &Expr<'s>, key: &Value<'s>) -> Option<Value<'s>> {
        let named = key.only(|a| matches!(a, Atom::Str(name) if self.project.is_kernel(name)));
        if !named.is_unknown() {
            return Some(named);
        }
        let name = cache.last_name()?.to_ascii_lowercase();
        let holds = [
            "pipeline", "kernel", "function", "pso", "program", "shader", "state", "cache",
            "compiled",
        ];
        if !holds.iter().any(|w| name.contains(w)) {
            return None;
        }
        let by_param = key.only(|a| {
            matches!(a, Atom::Place { root: Root::Param(_), view: false, .. } | Atom::Str(_))
        });
        (!by_param.is_unknown()).then_some(by_param)
    }

    fn list_value(&mut self, items: &[Expr<'s>], values: Vec<Value<'s>>) -> Value<'s> {
        // Swift's `[.storageModePrivate, .hazardTrackingModeUntracked]`, and `[]` for defaults.
        let options: Vec<Options> = values
            .iter()
            .filter_map(|v| match v.atoms() {
                [Atom::Options(o)] => Some(*o),
                _ => None,
            })
            .collect();
        if !options.is_empty() && options.len() == items.len() {
            return Value::of(Atom::Options(
                options.into_iter().fold(Options::default(), Options::or),
            ));
        }
        let mut out = Value::of(Atom::List(Arc::new(values)));
        if let Some(constant) = self.constant_of(items) {
            out.add(Atom::Constant(Arc::new(constant)));
        }
        out
    }

    /// `[M, N, K]` is a constant of three values if nothing in it is a buffer or an array.
    fn constant_of(&mut self, items: &[Expr<'s>]) -> Option<Constant<'s>> {
        if items.is_empty() || items.len() > 64 {
            return None;
        }
        let mut names = Vec::new();
        for item in items {
            match &item.kind {
                ExprKind::Int(_) | ExprKind::Literal => {}
                ExprKind::List(inner) => names.extend(self.constant_of(inner)?.names),
                _ => names.push(constant_name(item)?),
            }
        }
        Some(Constant { names, bytes: None, by_address: false })
    }

    pub(super) fn record(
        &mut self,
        ty: Option<&'s str>,
        entries: &[(&'s str, Expr<'s>)],
    ) -> Value<'s> {
        let ty = ty.map(|t| t.rsplit([':', '.']).next().unwrap_or(t));
        let class = match ty {
            Some("Self") => self.function.class,
            Some(name) => self.project.class(name).map(|c| c.name),
            None => None,
        };
        let mut values = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let first = self.out.sites.len();
            let held = self.expr(value);
            for site in &mut self.out.sites[first..] {
                if site.name.is_none() && !key.is_empty() {
                    site.name = Some(Cow::Borrowed(key));
                }
            }
            if let Some(class) = class
                && !held.is_unknown()
            {
                let root = self.field(Some(class), key);
                self.out.stores.push((root, held.clone()));
            }
            values.push((*key, held));
        }
        let mut out = Value::of(Atom::Record(Arc::new(values)));
        if let Some(class) = class {
            out.add(Atom::Object(class));
        }
        out
    }

    fn binary(&mut self, op: &str, left: &Expr<'s>, right: &Expr<'s>) -> Value<'s> {
        let a = self.expr(left);
        let b = self.expr(right);
        match op {
            "|" | "||" | "??" | "or" => {
                let options = |v: &Value<'s>| {
                    v.atoms().iter().find_map(|x| match x {
                        Atom::Options(o) => Some(*o),
                        Atom::Int(i) => Some(Options::from_bits(*i)),
                        _ => None,
                    })
                };
                let is_options =
                    |v: &Value<'s>| v.atoms().iter().any(|x| matches!(x, Atom::Options(_)));
                if op == "|" && (is_options(&a) || is_options(&b)) {
                    if let (Some(x), Some(y)) = (options(&a), options(&b)) {
                        return Value::of(Atom::Options(x.or(y)));
                    }
                    return if is_options(&a) { a } else { b };
                }
                let mut out = a;
                out.join(&b);
                return out;
            }
            // `MTLStorageModeShared << MTLResourceStorageModeShift`.
            "<<" if a.atoms().iter().any(|x| matches!(x, Atom::Options(_))) => return a,
            _ => {}
        }
        if op == "+"
            && self.language == Language::Python
            && let Some(joined) = concatenated(&a, &b)
        {
            return joined;
        }
        if let (Some(x), Some(y)) = (a.int(), b.int()) {
            let value = match op {
                "+" => x.checked_add(y),
                "-" => x.checked_sub(y),
                "*" => x.checked_mul(y),
                "/" | "//" => x.checked_div(y),
                "<<" => u32::try_from(y).ok().and_then(|y| x.checked_shl(y)),
                _ => None,
            };
            return value.map(|v| Value::of(Atom::Int(v))).unwrap_or_default();
        }
        let pointer_arithmetic = matches!(op, "+" | "-") && self.language != Language::Python;
        for (value, expr) in [(&a, left), (&b, right)] {
            if value.is_view() && !pointer_arithmetic {
                self.emit(value, Touch::HostRead, expr.span, true);
            }
        }
        if pointer_arithmetic {
            let mut out = a.only(|x| matches!(x, Atom::Place { .. }));
            out.join(&b.only(|x| matches!(x, Atom::Place { view: true, .. })));
            return out;
        }
        let mut out = Value::default();
        if let Some(place) = a.tensor().or(b.tensor()) {
            out.add(Atom::Tensor(place));
        } else if self.language == Language::Python
            && (a.is_host_array() || b.is_host_array() || a.is_view())
        {
            out.add(Atom::HostArray);
        }
        out
    }

    /// `&buffer` is the buffer; `&M` is a constant to bind or copy.
    fn address_of(&mut self, inner: &Expr<'s>) -> Value<'s> {
        // `&p[i]` does not load.
        let mut value = match &inner.kind {
            ExprKind::Index(base, index) => {
                let base = self.expr(base);
                self.expr(index);
                if base.is_view() { base } else { base.element(Element::Any) }
            }
            _ => self.expr(inner),
        };
        if !value.has_site()
            && !value.is_view()
            && !value.is_host_array()
            && !value.atoms().iter().any(|a| matches!(a, Atom::List(_) | Atom::Record(_)))
            && let Some(name) = constant_name(inner)
        {
            value.add(Atom::Constant(Arc::new(Constant {
                names: vec![name],
                bytes: None,
                by_address: true,
            })));
        }
        value
    }
}

/// `[a, b] + [c]`.
fn concatenated<'s>(a: &Value<'s>, b: &Value<'s>) -> Option<Value<'s>> {
    let list = |v: &Value<'s>| {
        v.atoms().iter().find_map(|x| match x {
            Atom::List(items) => Some(Arc::clone(items)),
            _ => None,
        })
    };
    let (a, b) = (list(a)?, list(b)?);
    Some(Value::of(Atom::List(Arc::new(a.iter().chain(b.iter()).cloned().collect()))))
}
