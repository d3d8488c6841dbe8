//! Evaluates one function: statements and expressions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::bind::Encoder;
use super::project::Project;
use super::summary::{CallEdge, CopyFound, Event, Summary, Touch, ZeroCopyFound};
use super::value::{Atom, Element, Pos, Root, SiteId, Value};
use crate::ir::{Expr, ExprKind, Function, Language, Span, Stmt};
use crate::rules::Code;

/// The longest list whose loop is evaluated element by element.
pub(super) const MAX_UNROLLED: usize = 32;

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
        commits: false,
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
    pub(super) lambdas: u32,
    pub(crate) encoders: Vec<Encoder<'s>>,
    /// A command buffer was committed in this function.
    pub(crate) commits: bool,
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
                        weak: false,
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
                [Atom::Place { root, element, view }]
                    if !self.emitted.insert((*root, *element, *view, tag, self.loops > 0)) =>
                {
                    return;
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

    pub(crate) fn statements(&mut self, body: &[Stmt<'s>]) {
        for stmt in body {
            self.statement(stmt);
        }
    }

    pub(super) fn statement(&mut self, stmt: &Stmt<'s>) {
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

    pub(super) fn repeat(
        &mut self,
        target: Option<&Expr<'s>>,
        iter: Option<&Expr<'s>>,
        body: &[Stmt<'s>],
    ) {
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
    pub(super) fn iterated(&mut self, iter: &Expr<'s>) -> (Value<'s>, bool) {
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

    /// Runs a closure's body where it stands, with parameters unknown.
    pub(super) fn run_lambda(&mut self, params: &[&'s str], body: &[Stmt<'s>]) {
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
pub(super) fn append<'s>(held: &mut Value<'s>, item: &Value<'s>) {
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

/// A site of this function's own.
pub(crate) fn own_site(pos: Pos) -> SiteId {
    SiteId { base: pos, via: None }
}
