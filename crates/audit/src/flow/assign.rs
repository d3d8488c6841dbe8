//! Assignments and stores: names, fields, elements, and writes through pointers.

use std::borrow::Cow;
use std::sync::Arc;

use super::eval::{Eval, append};
use super::summary::Touch;
use super::value::{Atom, Element, Root, Value};
use crate::ir::{Expr, ExprKind, FunctionKind, Language};

impl<'s> Eval<'_, 's> {
    /// Gives a loop variable or pattern its value.
    pub(super) fn bind_target(&mut self, target: &Expr<'s>, value: &Value<'s>) {
        match &target.kind {
            ExprKind::Name(name) => {
                self.env.insert(name, value.clone());
            }
            ExprKind::List(parts) => {
                for (i, part) in parts.iter().enumerate() {
                    let list = value.atoms().iter().any(|a| matches!(a, Atom::List(_)));
                    let strings = value.strings().next().is_some();
                    let item = if strings && !list {
                        value.clone()
                    } else {
                        value.element(Element::At(i as i64))
                    };
                    self.bind_target(part, &item);
                }
            }
            ExprKind::AddressOf(inner) | ExprKind::Deref(inner) | ExprKind::Cast(inner, _) => {
                self.bind_target(inner, value);
            }
            ExprKind::Other(parts) => parts.iter().for_each(|p| self.bind_target(p, value)),
            ExprKind::Call(call) => {
                // `Some(x)`, `Ok(x)` patterns.
                call.args.iter().for_each(|a| self.bind_target(&a.value, value));
            }
            _ => {}
        }
    }

    pub(crate) fn assign(
        &mut self,
        target: &Expr<'s>,
        ty: Option<&'s str>,
        value: Option<&Expr<'s>>,
        compound: bool,
        declares: bool,
    ) {
        let first = self.out.sites.len();
        let Some(value_expr) = value else {
            if let (ExprKind::Name(name), Some(ty)) = (&target.kind, ty) {
                let object = self.project.class_in_type(ty);
                let value = object.map(|c| Value::of(Atom::Object(c))).unwrap_or_default();
                self.env.insert(name, value);
            }
            return;
        };
        let mut value = self.expr(value_expr);
        self.name_new_sites(first, Some(target), &value);
        if let Some(class) = ty.and_then(|ty| self.project.class_in_type(ty)) {
            value.add(Atom::Object(class));
        }
        if compound {
            let old = self.expr(target);
            if old.is_view() || matches!(target.kind, ExprKind::Index(..) | ExprKind::Deref(_)) {
                self.store(target, &value, true);
            } else if let ExprKind::Name(name) = target.kind {
                let mut joined = old;
                joined.join(&value);
                self.env.insert(name, joined);
            }
            return;
        }
        self.new_encoder(target, value_expr);
        match &target.kind {
            ExprKind::Name(name) => self.assign_name(name, value, declares),
            ExprKind::List(parts) => {
                for (i, part) in parts.iter().enumerate() {
                    let is_list = value.atoms().iter().any(|a| matches!(a, Atom::List(_)));
                    let item = if is_list {
                        value.element(Element::At(i as i64))
                    } else if i == 0 || value.strings().next().is_some() {
                        value.clone()
                    } else {
                        Value::UNKNOWN
                    };
                    match &part.kind {
                        ExprKind::Name(name) => self.assign_name(name, item, declares),
                        _ => self.store(part, &item, false),
                    }
                }
            }
            _ => self.store(target, &value, false),
        }
    }

    pub(super) fn assign_name(&mut self, name: &'s str, value: Value<'s>, declares: bool) {
        if self.function.kind == FunctionKind::TopLevel && self.lambdas == 0 {
            let root = Root::Global { file: self.file, name };
            self.out.stores.push((root, value.clone()));
            self.env.insert(name, value);
            return;
        }
        if !declares && !self.env.contains_key(name) && self.language != Language::Python {
            // An assignment to a name that is no local: a field of this class, or a global.
            if let Some(root) = self.outer_name(name) {
                self.out.stores.push((root, value));
                return;
            }
        }
        self.env.insert(name, value);
    }

    /// The field or global that a name means which is no local variable.
    pub(super) fn outer_name(&self, name: &'s str) -> Option<Root<'s>> {
        if let Some(class) = self.function.class {
            let declared = self.project.field_type(class, name).is_some();
            let ivar = matches!(self.language, Language::ObjectiveC | Language::ObjectiveCpp)
                && name.starts_with('_');
            let member = matches!(self.language, Language::Cpp | Language::ObjectiveCpp)
                && (name.starts_with("m_") || name.starts_with('_') || name.ends_with('_'));
            if declared || ivar || member {
                return Some(self.field(Some(class), name));
            }
        }
        let file = self.project.global(self.file, name)?;
        let name = self.project.imported_name(self.file, name);
        Some(Root::Global { file, name })
    }

    pub(crate) fn field(&self, class: Option<&'s str>, name: &'s str) -> Root<'s> {
        // An Objective-C property `params` is the instance variable `_params`.
        let objc = matches!(self.language, Language::ObjectiveC | Language::ObjectiveCpp);
        let name = if objc { name.strip_prefix('_').unwrap_or(name) } else { name };
        // Storage of an inherited field belongs to the class that declares it.
        let class = class.map(|c| self.declaring_class(c, name));
        Root::Field { class, name, file: if class.is_some() { 0 } else { self.file } }
    }

    fn declaring_class(&self, class: &'s str, field: &str) -> &'s str {
        let mut current = class;
        for _ in 0..8 {
            let Some(info) = self.project.class(current) else { return class };
            if info
                .fields
                .iter()
                .any(|(name, _)| name.trim_start_matches('_') == field.trim_start_matches('_'))
            {
                return info.name;
            }
            let Some(base) = info.bases.iter().find(|b| self.project.class(b).is_some()) else {
                return class;
            };
            current = base;
        }
        class
    }

    /// Stores into a field, an element or through a pointer.
    fn store(&mut self, target: &Expr<'s>, value: &Value<'s>, also_reads: bool) {
        match &target.kind {
            ExprKind::Name(name) => {
                if also_reads {
                    // `view += x` on an array writes through it.
                    let old = self.expr(target);
                    self.emit(&old, Touch::HostRead, target.span, true);
                    self.emit(&old, Touch::HostWrite, target.span, true);
                } else {
                    self.env.insert(name, value.clone());
                }
            }
            ExprKind::Field(object, name) => {
                let base = self.expr(object);
                if base.is_view() || *name == "pointee" {
                    let base = self.expr(object);
                    self.emit(&base, Touch::HostWrite, target.span, true);
                    return;
                }
                if let Some(root) = self.field_root(object, &base, name) {
                    if self.may_be_pointer(&base) {
                        self.emit(&base, Touch::HostWrite, target.span, true);
                    }
                    // A pointer put into an object out of sight may be used by anyone.
                    if value.is_view() && matches!(root, Root::Field { class: None, .. }) {
                        self.emit(value, Touch::Escape(Cow::Borrowed(name)), target.span, false);
                    }
                    if !value.is_unknown() {
                        self.out.stores.push((root, value.clone()));
                    }
                }
                // A descriptor carries its functions' names to the pipeline made from it.
                if let ExprKind::Name(local) = object.kind {
                    let names = value.only(|a| matches!(a, Atom::Str(_)));
                    if let Some(held) = self.env.get_mut(local).filter(|_| !names.is_unknown()) {
                        held.join(&names);
                    } else if !names.is_unknown() {
                        self.env.insert(local, names);
                    }
                }
            }
            ExprKind::Index(base_expr, index) => {
                let base = self.expr(base_expr);
                let index_value = self.expr(index);
                self.emit(&base, Touch::HostWrite, target.span, true);
                if also_reads {
                    self.emit(&base, Touch::HostRead, target.span, true);
                }
                if base.is_view() || value.is_unknown() {
                    return;
                }
                let key = index_value.strings().next();
                let item = match key {
                    Some(key) => Atom::Record(Arc::new(vec![(key, value.clone())])),
                    None => Atom::List(Arc::new(vec![value.clone()])),
                };
                self.add_to_container(base_expr, &base, Value::of(item));
            }
            ExprKind::Deref(inner) => {
                let base = self.expr(inner);
                self.emit(&base, Touch::HostWrite, target.span, true);
                if also_reads {
                    self.emit(&base, Touch::HostRead, target.span, true);
                }
                // `*out = buffer;` hands the buffer to the caller's variable.
                if let ExprKind::Name(name) = inner.kind
                    && let Some(held) = self.env.get_mut(name)
                {
                    held.join(value);
                }
            }
            ExprKind::Cast(inner, _) | ExprKind::AddressOf(inner) => {
                self.store(inner, value, also_reads)
            }
            ExprKind::Call(_) => {
                // `view.slice_mut()[..]` and `*ptr.as_mut() = x` arrive as calls.
                let base = self.expr(target);
                self.emit(&base, Touch::HostWrite, target.span, true);
            }
            ExprKind::Other(parts) => parts.iter().for_each(|p| self.store(p, value, also_reads)),
            ExprKind::List(parts) => parts.iter().for_each(|p| self.store(p, value, also_reads)),
            _ => {}
        }
    }

    /// Whether a store to a field of this may go through a pointer into a buffer.
    fn may_be_pointer(&self, base: &Value<'s>) -> bool {
        let c_like =
            matches!(self.language, Language::Cpp | Language::ObjectiveC | Language::ObjectiveCpp);
        c_like
            && base
                .atoms()
                .iter()
                .any(|a| matches!(a, Atom::Place { root: Root::Param(_) | Root::Field { .. }, .. }))
    }

    /// Puts `item` into the list or dictionary that `base_expr` names.
    pub(crate) fn add_to_container(
        &mut self,
        base_expr: &Expr<'s>,
        base: &Value<'s>,
        item: Value<'s>,
    ) {
        if let ExprKind::Name(name) = base_expr.kind
            && let Some(held) = self.env.get_mut(name)
        {
            append(held, &item);
        }
        for atom in base.atoms() {
            if let Atom::Place { root: root @ (Root::Field { .. } | Root::Global { .. }), .. } =
                atom
            {
                self.out.stores.push((*root, item.clone()));
            }
        }
    }

    /// Names the sites made since `first` that `value` holds after the variable it is assigned to.
    pub(crate) fn name_new_sites(
        &mut self,
        first: usize,
        target: Option<&Expr<'s>>,
        value: &Value<'s>,
    ) {
        if self.out.sites.len() <= first {
            return;
        }
        let name = target.and_then(|t| match &t.kind {
            ExprKind::Index(base, index) => {
                let key = match &index.kind {
                    ExprKind::Str(key) => Some(*key),
                    _ => None,
                };
                key.or_else(|| base.last_name())
            }
            _ => t.last_name(),
        });
        let parts: &[Expr<'s>] = match target.map(|t| &t.kind) {
            Some(ExprKind::List(parts)) => parts,
            _ => &[],
        };
        let Some(name) = name.or_else(|| parts.first().and_then(Expr::last_name)) else { return };
        if name.starts_with('<') {
            return;
        }
        for site in &mut self.out.sites[first..] {
            if site.name.is_some() {
                continue;
            }
            let direct = value
                .atoms()
                .iter()
                .any(|a| matches!(a, Atom::Place { root: Root::Site(id), .. } if *id == site.id));
            let position = value.atoms().iter().find_map(|a| match a {
                Atom::List(items) if items.len() > 1 => {
                    items.iter().position(|i| i.sites().contains(&site.id))
                }
                _ => None,
            });
            site.name = match position {
                Some(at) if !parts.is_empty() => {
                    parts.get(at).and_then(Expr::last_name).map(Cow::Borrowed)
                }
                Some(at) => Some(Cow::Owned(format!("{name}[{at}]"))),
                None if direct || value.sites().contains(&site.id) => Some(Cow::Borrowed(name)),
                None => None,
            };
        }
    }
}
