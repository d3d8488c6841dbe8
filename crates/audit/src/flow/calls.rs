//! Calls: creations, touches, bindings, and functions of the audited code.

use std::borrow::Cow;
use std::sync::Arc;

use super::eval::Eval;
use super::summary::Touch;
use super::value::{Atom, Element, Root, Value};
use crate::api::create::recognise;
use crate::api::touch::{Effect, effects, keeps_view, makes_array, operand};
use crate::ir::{Call, Expr, ExprKind, Language, Span};

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
                value.only(|a| {
                    matches!(
                        a,
                        Atom::Str(_)
                            | Atom::Place { root: Root::Param(_) | Root::Field { .. }, .. }
                    )
                })
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
