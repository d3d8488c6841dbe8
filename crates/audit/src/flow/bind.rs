//! Bindings: which buffer is bound at which index when which kernel is dispatched.

use super::eval::Eval;
use super::summary::{BindIndex, Event, Touch};
use super::value::{Atom, Element, Root, Value};
use crate::api::touch::{Binding, binding, is_dispatch, sets_pipeline};
use crate::ir::{Call, Expr, ExprKind, Span};

/// The state of a command encoder, by the name of the variable that holds it.
pub(crate) struct Encoder<'s> {
    name: &'s str,
    bound: Vec<Bound<'s>>,
    kernels: Value<'s>,
}

struct Bound<'s> {
    index: BindIndex<'s>,
    value: Value<'s>,
    span: Span,
    /// A dispatch has used it.
    used: bool,
}

impl<'s> Eval<'_, 's> {
    /// Handles the calls of an encoder; true if this was one.
    pub(crate) fn encoder_call(&mut self, call: &Call<'s>, args: &[Value<'s>], span: Span) -> bool {
        let name = call.name.as_ref();
        let key = call.receiver.as_ref().and_then(Expr::last_name).unwrap_or("");
        if sets_pipeline(name) {
            let kernels = args.first().map(kernel_names).unwrap_or_default();
            self.encoder(key).kernels = kernels;
            return true;
        }
        if is_dispatch(name) {
            self.flush(key, true);
            return true;
        }
        match binding(call) {
            Some(Binding::One { buffer, index }) => {
                let (Some(value), Some(index_arg)) = (args.get(buffer), call.args.get(index))
                else {
                    return false;
                };
                let index = self.bind_index(&index_arg.value, args.get(index), value);
                self.bind_at(key, index, value.clone(), span);
                true
            }
            Some(Binding::Many { buffers, range }) => {
                let Some(value) = args.get(buffers) else { return false };
                let base = self.range_start(call.args.get(range).map(|a| &a.value));
                self.bind_list(key, base, value, span);
                true
            }
            Some(Binding::Bytes) => {
                self.zero_copy(span, format!("`{name}` binds constants inline: no buffer"));
                true
            }
            None => self.use_resource(call, args, span),
        }
    }

    fn encoder(&mut self, name: &'s str) -> &mut Encoder<'s> {
        let at = match self.encoders.iter().position(|e| e.name == name) {
            Some(at) => at,
            None => {
                self.encoders.push(Encoder { name, bound: Vec::new(), kernels: Value::UNKNOWN });
                self.encoders.len() - 1
            }
        };
        &mut self.encoders[at]
    }

    fn bind_at(&mut self, key: &'s str, index: BindIndex<'s>, value: Value<'s>, span: Span) {
        if value.is_unknown() {
            return;
        }
        let encoder = self.encoder(key);
        if matches!(index, BindIndex::Number(_) | BindIndex::Name(_)) {
            // What was bound there before stays for what was dispatched, and is replaced now.
            encoder.bound.retain(|b| b.index != index || !b.used);
        }
        encoder.bound.push(Bound { index, value, span, used: false });
    }

    /// Binds the elements of a list at `base`, `base + 1`, ….
    pub(crate) fn bind_list(
        &mut self,
        key: &'s str,
        base: Option<u32>,
        value: &Value<'s>,
        span: Span,
    ) {
        for atom in value.atoms() {
            match atom {
                Atom::List(items) => {
                    for (i, item) in items.iter().enumerate() {
                        let index =
                            base.map_or(BindIndex::Unknown, |b| BindIndex::Number(b + i as u32));
                        self.bind_at(key, index, item.clone(), span);
                    }
                }
                Atom::Place { root, element: Element::Whole, view: false } => {
                    let element = Element::Var("<list>");
                    let item = Value::of(Atom::Place { root: *root, element, view: false });
                    let index = base.map_or(BindIndex::Unknown, BindIndex::FromList);
                    self.bind_at(key, index, item, span);
                }
                _ => {}
            }
        }
    }

    fn range_start(&mut self, range: Option<&Expr<'s>>) -> Option<u32> {
        match &range?.kind {
            // `NSMakeRange(0, n)`, `NSRange { location: 0, … }`, `0..<3`.
            ExprKind::Call(call) => {
                let first = call.args.first()?;
                self.expr(&first.value).int().and_then(|i| u32::try_from(i).ok())
            }
            ExprKind::Binary(_, start, _) => {
                self.expr(start).int().and_then(|i| u32::try_from(i).ok())
            }
            ExprKind::Int(i) => u32::try_from(*i).ok(),
            ExprKind::List(items) | ExprKind::Other(items) => {
                let first = items.first()?;
                self.expr(first).int().and_then(|i| u32::try_from(i).ok())
            }
            ExprKind::Record { entries, .. } => {
                let first = entries.first()?;
                self.expr(&first.1).int().and_then(|i| u32::try_from(i).ok())
            }
            _ => None,
        }
    }

    fn bind_index(
        &mut self,
        expr: &Expr<'s>,
        value: Option<&Value<'s>>,
        bound: &Value<'s>,
    ) -> BindIndex<'s> {
        if let Some(i) = value.and_then(Value::int) {
            return u32::try_from(i).map_or(BindIndex::Unknown, BindIndex::Number);
        }
        // A value that is an integer on one path and something else on another.
        let loop_variable = bound.atoms().iter().find_map(|a| match a {
            Atom::Place { element: Element::Var(name), .. } => Some(*name),
            _ => None,
        });
        let (name, base) = match &expr.kind {
            ExprKind::Binary("+", left, right) => match (left.last_name(), right.last_name()) {
                (Some(name), _) => (Some(name), self.expr(right).int()),
                (_, Some(name)) => (Some(name), self.expr(left).int()),
                _ => (None, None),
            },
            ExprKind::Field(object, "rawValue") => (object.last_name(), Some(0)),
            ExprKind::Call(call) if call.args.len() == 1 => {
                let inner = &call.args[0].value;
                let name = match &inner.kind {
                    ExprKind::Field(object, "rawValue") => object.last_name(),
                    _ => inner.last_name(),
                };
                (name, Some(0))
            }
            _ => (expr.last_name(), Some(0)),
        };
        let Some(name) = name else { return BindIndex::Unknown };
        if loop_variable == Some(name) {
            return base
                .and_then(|b| u32::try_from(b).ok())
                .map_or(BindIndex::Unknown, BindIndex::FromList);
        }
        // `for b in buffers { set(b, i); i += 1 }` counts along with the list.
        let from_list = bound
            .atoms()
            .iter()
            .any(|a| matches!(a, Atom::Place { element: Element::Any, root: Root::Param(_), .. }));
        if from_list && self.loops > 0 {
            return BindIndex::FromList(0);
        }
        match self.project.int(name).and_then(|i| u32::try_from(i).ok()) {
            Some(i) => BindIndex::Number(i),
            None if self.env.contains_key(name) => BindIndex::Unknown,
            None => BindIndex::Name(name),
        }
    }

    /// Emits the bindings of an encoder with its current kernels.
    fn flush(&mut self, key: &'s str, dispatched: bool) {
        let Some(at) = self.encoders.iter().position(|e| e.name == key) else { return };
        let mut encoder = std::mem::replace(
            &mut self.encoders[at],
            Encoder { name: key, bound: Vec::new(), kernels: Value::UNKNOWN },
        );
        for bound in &mut encoder.bound {
            if !dispatched && bound.used {
                continue;
            }
            let kernels = encoder.kernels.clone();
            self.emit_bind(bound.value.clone(), bound.index, kernels, bound.span, true);
            bound.used = true;
        }
        self.encoders[at] = encoder;
    }

    pub(crate) fn emit_bind(
        &mut self,
        value: Value<'s>,
        index: BindIndex<'s>,
        kernels: Value<'s>,
        span: Span,
        sure: bool,
    ) {
        let touch = Touch::Bind { index, kernels };
        let known = self
            .out
            .events
            .iter()
            .any(|e| e.pos.at == span.start && e.value == value && e.touch == touch);
        if !known {
            self.emit(&value, touch, span, sure);
        }
    }

    /// At the end of a function, what was bound and not dispatched is dispatched by the caller.
    pub(crate) fn finish_encoders(&mut self) {
        let names: Vec<&str> = self.encoders.iter().map(|e| e.name).collect();
        for name in names {
            self.flush(name, false);
        }
    }

    /// A variable that gets a new encoder starts with nothing bound.
    pub(crate) fn new_encoder(&mut self, target: &Expr<'s>, value: &Expr<'s>) {
        let makes_encoder = matches!(&value.kind, ExprKind::Call(call)
            if call.name.contains("ncoder") || call.name.contains("compute_pass") || call.name.contains("omputePass"));
        if !makes_encoder {
            return;
        }
        let name = match &target.kind {
            ExprKind::List(parts) => parts.first().and_then(Expr::last_name),
            _ => target.last_name(),
        };
        if let Some(name) = name {
            self.flush(name, false);
            self.encoders.retain(|e| e.name != name);
        }
    }

    /// The kernels that the encoders of this function are set to, for bindings made by a callee.
    pub(crate) fn current_kernels(&self) -> Value<'s> {
        let mut out = Value::default();
        for encoder in &self.encoders {
            out.join(&encoder.kernels);
        }
        out
    }

    /// `useResource:usage:` says what the device does with a resource bound indirectly.
    fn use_resource(&mut self, call: &Call<'s>, args: &[Value<'s>], span: Span) -> bool {
        if !(call.name.starts_with("useResource") || call.name.starts_with("use_resource")) {
            return false;
        }
        let Some(usage) = call.args.get(1) else { return true };
        let text = self.text(usage.value.span);
        let (read, write) = (text.contains("ead"), text.contains("rite"));
        let touch = match (read, write) {
            (true, true) => Touch::DeviceReadWrite,
            (true, false) => Touch::DeviceRead,
            (false, true) => Touch::DeviceWrite,
            (false, false) => Touch::DeviceUnknown,
        };
        for value in args.first().into_iter() {
            for atom in value.atoms() {
                match atom {
                    Atom::List(items) => {
                        items.iter().for_each(|i| self.emit(i, touch.clone(), span, true))
                    }
                    _ => self.emit(&Value::of(atom.clone()), touch.clone(), span, true),
                }
            }
        }
        true
    }
}

/// The parts of a value that may name a kernel.
pub(crate) fn kernel_names<'s>(value: &Value<'s>) -> Value<'s> {
    value.only(|a| matches!(a, Atom::Str(_) | Atom::Place { view: false, .. }))
}

/// One event per element for the bindings of a list whose items a call makes known.
pub(crate) fn expand_list<'s>(event: &Event<'s>, args: &[Value<'s>]) -> Option<Vec<Event<'s>>> {
    let Touch::Bind { index: BindIndex::FromList(base), kernels } = &event.touch else {
        return None;
    };
    let mut out = Vec::new();
    for atom in event.value.atoms() {
        let Atom::Place {
            root: Root::Param(i),
            element: element @ Element::Var(_) | element @ Element::Any,
            ..
        } = atom
        else {
            continue;
        };
        for held in args.get(*i as usize)?.atoms() {
            match held {
                Atom::List(items) => {
                    for (k, item) in items.iter().enumerate() {
                        let index = BindIndex::Number(base + k as u32);
                        let touch = Touch::Bind { index, kernels: kernels.clone() };
                        out.push(Event { value: item.clone(), touch, ..event.clone() });
                    }
                }
                Atom::Place { root, element: Element::Whole, view: false } => {
                    let value =
                        Value::of(Atom::Place { root: *root, element: *element, view: false });
                    out.push(Event { value, ..event.clone() });
                }
                _ => {}
            }
        }
    }
    Some(out)
}
