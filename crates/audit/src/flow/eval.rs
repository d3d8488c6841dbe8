//! Evaluates one function: statements and expressions.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::bind::Encoder;
use super::project::Project;
use super::summary::{CallEdge, CopyFound, Event, Summary, Touch, ZeroCopyFound};
use super::value::{Atom, Constant, Element, Options, Pos, Root, SiteId, Value};
use crate::ir::{Expr, ExprKind, Function, FunctionKind, Language, Span, Stmt};
use crate::rules::Code;

/// The longest list whose loop is evaluated element by element.
const MAX_UNROLLED: usize = 32;

pub(crate) type Env<'s> = HashMap<&'s str, Value<'s>>;

/// Evaluates the function `id` with symbolic parameters.
pub(crate) fn evaluate<'s>(project: &Project<'s>, known: &[Summary<'s>], id: u32) -> Summary<'s> {
    let (source, function) = project.function(id);
    let file = project.file_of(id);
    let mut eval = Eval {
        project,
        known,
        id,
        file,
        language: source.language,
        source: source.source,
        function,
        env: Env::new(),
        out: Summary::default(),
        loops: 0,
        lambdas: 0,
        encoders: Vec::new(),
        emitted: HashSet::new(),
    };
    for (i, param) in function.params.iter().enumerate() {
        let mut value = Value::place(Root::Param(i as u16));
        if let Some(class) = param.ty.and_then(|ty| project.class_in_type(ty)) {
            value.add(Atom::Object(class));
        }
        if param.ty.is_some_and(|ty| ty.contains("ndarray")) {
            value.add(Atom::HostArray);
        }
        eval.env.insert(param.name, value);
    }
    eval.statements(&function.body);
    eval.finish_encoders();
    eval.out
}

pub(crate) struct Eval<'p, 's> {
    pub(crate) project: &'p Project<'s>,
    pub(crate) known: &'p [Summary<'s>],
    pub(crate) id: u32,
    pub(crate) file: u32,
    pub(crate) language: Language,
    pub(crate) source: &'s str,
    pub(crate) function: &'p Function<'s>,
    pub(crate) env: Env<'s>,
    pub(crate) out: Summary<'s>,
    pub(crate) loops: u32,
    lambdas: u32,
    pub(crate) encoders: Vec<Encoder<'s>>,
    emitted: HashSet<(Root<'s>, Element<'s>, bool, u8, bool)>,
}

impl<'p, 's> Eval<'p, 's> {
    pub(crate) fn pos(&self, span: Span) -> Pos {
        Pos { file: self.file, at: span.start }
    }

    pub(crate) fn text(&self, span: Span) -> &'s str {
        self.source.get(span.start as usize..span.end as usize).unwrap_or("")
    }

    pub(crate) fn copy(&mut self, rule: Code, span: Span) -> &mut CopyFound {
        let in_loop = self.loops > 0;
        let at =
            match self.out.copies.iter().position(|c| c.rule == rule && c.span.start == span.start)
            {
                Some(at) => at,
                None => {
                    self.out.copies.push(CopyFound {
                        rule,
                        span,
                        in_loop,
                        what: None,
                        direction: None,
                        avoidable: None,
                        sure: true,
                    });
                    self.out.copies.len() - 1
                }
            };
        &mut self.out.copies[at]
    }

    pub(crate) fn zero_copy(&mut self, span: Span, what: impl Into<String>) {
        let found = ZeroCopyFound { span, what: what.into() };
        if !self.out.zero_copies.contains(&found) {
            self.out.zero_copies.push(found);
        }
    }

    pub(crate) fn called(&mut self, callee: u32) {
        let edge = CallEdge { callee, in_loop: self.loops > 0 };
        if !self.out.calls.contains(&edge) {
            self.out.calls.push(edge);
        }
    }

    /// Records that `touch` happens to `value`.
    pub(crate) fn emit(&mut self, value: &Value<'s>, touch: Touch<'s>, span: Span, sure: bool) {
        let value = value.only(|a| match a {
            Atom::Place { .. } | Atom::List(_) | Atom::Record(_) => true,
            Atom::Contiguous(_) => touch == Touch::NoCopySource,
            _ => false,
        });
        let tag = match &touch {
            Touch::HostWrite => 0,
            Touch::HostRead => 1,
            Touch::HostView => 2,
            Touch::Escape(_) => 3,
            _ => 255,
        };
        // Loads and stores are many; the first of each kind on a place says it all.
        if tag != 255 {
            match value.atoms() {
                [] => return,
                [Atom::Place { root, element, view }] => {
                    if !self.emitted.insert((*root, *element, *view, tag, self.loops > 0)) {
                        return;
                    }
                }
                _ => {}
            }
        }
        if value.is_unknown() {
            return;
        }
        let event = Event { value, touch, pos: self.pos(span), in_loop: self.loops > 0, sure };
        self.out.events.push(event);
    }

    // ---- statements ----

    pub(crate) fn statements(&mut self, body: &[Stmt<'s>]) {
        for stmt in body {
            self.statement(stmt);
        }
    }

    fn statement(&mut self, stmt: &Stmt<'s>) {
        match stmt {
            Stmt::Assign { target, ty, value, compound, declares } => {
                self.assign(target, *ty, value.as_ref(), *compound, *declares);
            }
            Stmt::Expr(expr) => {
                self.expr(expr);
            }
            Stmt::Branch(arms) => {
                let before = self.env.clone();
                let mut after: Option<Env<'s>> = None;
                for arm in arms {
                    self.env = before.clone();
                    self.statements(arm);
                    let arm_env = std::mem::take(&mut self.env);
                    match &mut after {
                        Some(joined) => join_env(joined, &arm_env),
                        None => after = Some(arm_env),
                    }
                }
                self.env = after.unwrap_or(before);
            }
            Stmt::Loop { target, iter, body } => self.repeat(target.as_ref(), iter.as_ref(), body),
            Stmt::Return(value) => {
                if let Some(value) = value {
                    let first = self.out.sites.len();
                    let returned = self.expr(value);
                    self.name_new_sites(first, None, &returned);
                    if self.lambdas == 0 {
                        if returned.is_view() {
                            self.emit(&returned, Touch::HostView, value.span, false);
                        }
                        self.out.returns.join(&returned);
                    }
                }
            }
        }
    }

    fn repeat(&mut self, target: Option<&Expr<'s>>, iter: Option<&Expr<'s>>, body: &[Stmt<'s>]) {
        let before = self.env.clone();
        let items = iter.map(|i| self.iterated(i));
        self.loops += 1;
        match (target, items) {
            (Some(target), Some((value, counted))) => {
                let unrolled =
                    value.list().filter(|items| items.len() <= MAX_UNROLLED).map(Arc::clone);
                match (unrolled, counted, &target.kind) {
                    (Some(items), true, ExprKind::List(parts)) if parts.len() == 2 => {
                        for (i, item) in items.iter().enumerate() {
                            self.bind_target(&parts[0], &Value::of(Atom::Int(i as i64)));
                            self.bind_target(&parts[1], item);
                            self.statements(body);
                        }
                    }
                    (_, true, ExprKind::List(parts)) if parts.len() == 2 => {
                        let element = parts[0].last_name().map_or(Element::Any, Element::Var);
                        self.bind_target(&parts[0], &Value::UNKNOWN);
                        self.bind_target(&parts[1], &value.element(element));
                        self.statements(body);
                    }
                    _ => {
                        self.bind_target(target, &value.element(Element::Any));
                        self.statements(body);
                    }
                }
            }
            (Some(target), None) => {
                self.bind_target(target, &Value::UNKNOWN);
                self.statements(body);
            }
            _ => self.statements(body),
        }
        self.loops -= 1;
        join_env(&mut self.env, &before);
    }

    /// The list that a loop runs over, and whether the loop counts its elements.
    fn iterated(&mut self, iter: &Expr<'s>) -> (Value<'s>, bool) {
        if let ExprKind::Call(call) = &iter.kind {
            let inner = call.receiver.as_ref().or_else(|| call.args.first().map(|a| &a.value));
            match (call.name.as_ref(), inner) {
                ("enumerate" | "enumerated", Some(inner)) => return (self.iterated(inner).0, true),
                (
                    "iter" | "iter_mut" | "into_iter" | "values" | "reversed" | "sorted" | "list"
                    | "tuple" | "lazy" | "all" | "objectEnumerator",
                    Some(inner),
                ) => return self.iterated(inner),
                ("items", Some(inner)) => {
                    let value = self.expr(inner).element(Element::Any);
                    let pair = Atom::List(Arc::new(vec![Value::UNKNOWN, value]));
                    return (Value::of(Atom::List(Arc::new(vec![Value::of(pair)]))), false);
                }
                ("zip", _) => {
                    let mut columns = Vec::new();
                    if let Some(receiver) = &call.receiver {
                        columns.push(self.iterated(receiver).0.element(Element::Any));
                    }
                    for arg in &call.args {
                        columns.push(self.iterated(&arg.value).0.element(Element::Any));
                    }
                    let row = Value::of(Atom::List(Arc::new(columns)));
                    return (Value::of(Atom::List(Arc::new(vec![row]))), false);
                }
                _ => {}
            }
        }
        (self.expr(iter), false)
    }

    /// Gives a loop variable or pattern its value.
    fn bind_target(&mut self, target: &Expr<'s>, value: &Value<'s>) {
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

    fn assign_name(&mut self, name: &'s str, value: Value<'s>, declares: bool) {
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
    fn outer_name(&self, name: &'s str) -> Option<Root<'s>> {
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
                if let ExprKind::Name(name) = inner.kind {
                    if let Some(held) = self.env.get_mut(name) {
                        held.join(value);
                    }
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

    // ---- names of creation sites ----

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

    // ---- expressions ----

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
    fn comprehension(&mut self, stmts: &[Stmt<'s>], value: Option<&Expr<'s>>) -> Option<Value<'s>> {
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

    /// Runs a closure's body where it stands, with parameters unknown.
    fn run_lambda(&mut self, params: &[&'s str], body: &[Stmt<'s>]) {
        self.lambdas += 1;
        let before = self.env.clone();
        for param in params {
            self.env.insert(param, Value::UNKNOWN);
        }
        self.statements(body);
        self.lambdas -= 1;
        let mut after = std::mem::replace(&mut self.env, before);
        for param in params {
            after.remove(param);
        }
        join_env(&mut self.env, &after);
    }

    /// Runs a closure's body with its first parameter known, as `withUnsafeBytes` does.
    pub(crate) fn run_lambda_with(
        &mut self,
        lambda: &crate::ir::Lambda<'s>,
        first: &Value<'s>,
    ) -> Value<'s> {
        self.lambdas += 1;
        for (i, param) in lambda.params.iter().enumerate() {
            self.env.insert(param, if i == 0 { first.clone() } else { Value::UNKNOWN });
        }
        if lambda.params.is_empty() {
            self.env.insert("$0", first.clone());
        }
        self.statements(&lambda.body);
        self.lambdas -= 1;
        Value::UNKNOWN
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
    fn field_root(
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
        Some(Constant { names, bytes: None })
    }

    fn record(&mut self, ty: Option<&'s str>, entries: &[(&'s str, Expr<'s>)]) -> Value<'s> {
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
            "<<" => {
                // `MTLStorageModeShared << MTLResourceStorageModeShift`.
                if a.atoms().iter().any(|x| matches!(x, Atom::Options(_))) {
                    return a;
                }
            }
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
            && let Some(name) = constant_name(inner)
        {
            value.add(Atom::Constant(Arc::new(Constant { names: vec![name], bytes: None })));
        }
        value
    }
}

/// The name of a scalar for the purpose of a constant: a variable or a field.
pub(crate) fn constant_name<'s>(expr: &Expr<'s>) -> Option<&'s str> {
    match &expr.kind {
        ExprKind::Name(name) | ExprKind::Field(_, name) => Some(name),
        ExprKind::Cast(inner, _) | ExprKind::AddressOf(inner) => constant_name(inner),
        ExprKind::Call(call) if call.args.len() == 1 => constant_name(&call.args[0].value),
        ExprKind::Other(parts) if parts.len() == 1 => constant_name(&parts[0]),
        ExprKind::Binary(_, left, right) => constant_name(left).or_else(|| constant_name(right)),
        ExprKind::OneOf(items) => items.iter().find_map(constant_name),
        ExprKind::Block(stmts, Some(value)) => {
            constant_name(value).or_else(|| match stmts.as_slice() {
                // `1 if normalize else 0` is about the flag.
                [Stmt::Expr(condition)] => constant_name(condition),
                _ => None,
            })
        }
        _ => None,
    }
}

/// The size in bytes of a scalar type of any of the languages.
pub(crate) fn size_of(ty: &str) -> Option<u64> {
    let ty = ty.trim().trim_end_matches(".self").trim();
    let ty = ty.rsplit([':', '.']).next().unwrap_or(ty);
    Some(match ty {
        "u8" | "i8" | "bool" | "char" | "uint8_t" | "int8_t" | "uint8" | "int8" | "UInt8"
        | "Int8" | "Bool" | "BOOL" | "uchar" | "c_uint8" | "c_int8" | "c_bool" | "bool_" => 1,
        "u16" | "i16" | "f16" | "bf16" | "half" | "__fp16" | "_Float16" | "short" | "ushort"
        | "uint16_t" | "int16_t" | "uint16" | "int16" | "float16" | "bfloat16" | "UInt16"
        | "Int16" | "Float16" | "c_uint16" | "c_int16" => 2,
        "u32" | "i32" | "f32" | "float" | "int" | "uint" | "uint32_t" | "int32_t" | "uint32"
        | "int32" | "float32" | "UInt32" | "Int32" | "Float" | "Float32" | "unsigned"
        | "c_uint" | "c_int" | "c_float" | "c_uint32" | "c_int32" | "uintc" | "intc" | "single"
        | "unsigned int" => 4,
        "u64" | "i64" | "f64" | "usize" | "isize" | "double" | "long" | "size_t" | "uint64_t"
        | "int64_t" | "uint64" | "int64" | "float64" | "UInt64" | "Int64" | "Double" | "Int"
        | "UInt" | "NSUInteger" | "NSInteger" | "CGFloat" | "unsigned long" | "c_uint64"
        | "c_int64" | "c_size_t" => 8,
        "simd_float2" | "vector_float2" | "float2" | "vector_uint2" | "simd_uint2" | "uint2" => 8,
        "simd_float4" | "vector_float4" | "float4" | "simd_float3" | "float3" | "vector_float3" => {
            16
        }
        "simd_float4x4" | "matrix_float4x4" | "float4x4" => 64,
        _ => return None,
    })
}

fn join_env<'s>(env: &mut Env<'s>, other: &Env<'s>) {
    for (name, value) in other {
        match env.get_mut(name) {
            Some(held) => {
                if held != value {
                    held.join(value);
                }
            }
            None => {
                env.insert(name, value.clone());
            }
        }
    }
}

/// Appends to the list in `held`, or joins where there is none.
fn append<'s>(held: &mut Value<'s>, item: &Value<'s>) {
    match (held.list(), item.list()) {
        (Some(items), Some(more)) => {
            let mut items = (**items).clone();
            if items.len() < 256 {
                items.extend(more.iter().cloned());
            }
            *held = Value::of(Atom::List(Arc::new(items)));
        }
        _ => held.join(item),
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

/// A site of this function's own.
pub(crate) fn own_site(pos: Pos) -> SiteId {
    SiteId { base: pos, via: None }
}
