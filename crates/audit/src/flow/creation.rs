//! Buffer creations and the options they are given.

use super::eval::{Eval, own_site};
use super::summary::{Site, Touch};
use super::value::{Atom, Options, Root, Value, WrittenMode};
use crate::api::create::{CreateKind, Creation};
use crate::ir::{Call, Expr, ExprKind, Span};

impl<'s> Eval<'_, 's> {
    /// Whether a call that looks like the API's is of a wrapper of that name in the audited code.
    pub(super) fn is_own_wrapper(&mut self, call: &Call<'s>) -> bool {
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

    pub(super) fn create(
        &mut self,
        call: &Call<'s>,
        creation: Creation<'_, 's>,
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
            parent: None,
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
        let text = self.text(usage.span);
        let mapped = text.contains("MAP_READ") || text.contains("MAP_WRITE");
        let flags = text.contains("BufferUsages::") || text.contains("BufferUses::");
        if !flags {
            return Value::UNKNOWN;
        }
        let mode = if mapped { WrittenMode::Shared } else { WrittenMode::Private };
        Value::of(Atom::Options(Options::of(mode)))
    }
}
