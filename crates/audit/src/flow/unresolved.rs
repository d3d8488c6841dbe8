//! Calls of functions out of sight: what their names and arguments say.

use std::borrow::Cow;
use std::sync::Arc;

use super::bind::kernel_names;
use super::eval::Eval;
use super::summary::{BindIndex, Touch};
use super::value::{Atom, Element, Options, Root, Value};
use crate::ir::{Call, Expr, Language, Span};

impl<'s> Eval<'_, 's> {
    pub(super) fn unresolved(
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
    pub(super) fn macro_call(
        &mut self,
        call: &Call<'s>,
        args: &[Value<'s>],
        span: Span,
    ) -> Value<'s> {
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

/// `(buffer, offset)` is bound as the buffer.
fn first_of_pair<'s>(value: &Value<'s>) -> Value<'s> {
    let pair = value.atoms().iter().find_map(|a| match a {
        Atom::List(items) => items.first().cloned(),
        _ => None,
    });
    pair.unwrap_or_else(|| value.clone())
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
