//! What the analysis of one function leaves behind.

use std::borrow::Cow;

use super::value::{Pos, Root, SiteId, Value};
use crate::api::create::CreateKind;
use crate::ir::Span;

/// The index that a buffer is bound at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BindIndex<'s> {
    Number(u32),
    Name(&'s str),
    /// The position in the list plus this.
    FromList(u32),
    Unknown,
}

/// What is done to a value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Touch<'s> {
    /// The host stores through a view.
    HostWrite,
    /// The host loads through a view.
    HostRead,
    /// The host makes an array over the contents; a read unless it is stored into.
    HostView,
    /// The host writes the resource itself (`replaceRegion` on a texture over it).
    HostWriteDirect,
    /// The host reads the resource itself.
    HostReadDirect,
    /// The host tells the device what it wrote.
    DidModify,
    /// The device's writes are made visible to the host.
    Synchronize,
    DeviceRead,
    DeviceWrite,
    DeviceReadWrite,
    /// Bound somewhere that says nothing of what happens.
    DeviceUnknown,
    /// Bound to the argument of a kernel.
    Bind {
        index: BindIndex<'s>,
        kernels: Value<'s>,
    },
    /// Passed to a function that the audit cannot see into.
    Escape(Cow<'s, str>),
    /// Its memory becomes a buffer without a copy.
    NoCopySource,
}

/// A touch, and where it happens.
#[derive(Clone, Debug)]
pub(crate) struct Event<'s> {
    pub(crate) value: Value<'s>,
    pub(crate) touch: Touch<'s>,
    pub(crate) pos: Pos,
    /// In a loop, or per step.
    pub(crate) in_loop: bool,
    /// Follows from the code, not from a name or a guess.
    pub(crate) sure: bool,
}

/// A buffer creation.
#[derive(Clone, Debug)]
pub(crate) struct Site<'s> {
    pub(crate) id: SiteId,
    /// The site as the called wrapper knows it, for one that is seen through a call.
    pub(crate) parent: Option<SiteId>,
    pub(crate) kind: CreateKind,
    pub(crate) name: Option<Cow<'s, str>>,
    pub(crate) span: Span,
    /// File and function that the row is reported in.
    pub(crate) file: u32,
    pub(crate) function: u32,
    pub(crate) options: Value<'s>,
    /// No options argument was given.
    pub(crate) default_options: bool,
    pub(crate) size: Value<'s>,
    /// The initial contents, for creations with bytes.
    pub(crate) bytes: Value<'s>,
    pub(crate) in_loop: bool,
}

/// A copy of data or a wait, found at a call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CopyFound {
    pub(crate) rule: crate::rules::Code,
    pub(crate) span: Span,
    pub(crate) in_loop: bool,
    /// Overrides the rule's direction, text or advice.
    pub(crate) what: Option<String>,
    pub(crate) direction: Option<crate::report::Direction>,
    pub(crate) avoidable: Option<bool>,
    pub(crate) sure: bool,
    /// As likely no copy at all: never more than a note.
    pub(crate) weak: bool,
}

/// A binding without a copy: what is right.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ZeroCopyFound {
    pub(crate) span: Span,
    pub(crate) what: String,
}

/// A call of another function of the audited code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallEdge {
    pub(crate) callee: u32,
    pub(crate) in_loop: bool,
}

/// Everything that is known about a function after its analysis.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary<'s> {
    /// What it returns.
    pub(crate) returns: Value<'s>,
    pub(crate) events: Vec<Event<'s>>,
    pub(crate) sites: Vec<Site<'s>>,
    /// What it stores into fields and globals.
    pub(crate) stores: Vec<(Root<'s>, Value<'s>)>,
    pub(crate) copies: Vec<CopyFound>,
    pub(crate) zero_copies: Vec<ZeroCopyFound>,
    pub(crate) calls: Vec<CallEdge>,
}

impl Summary<'_> {
    /// Whether a caller learns anything from it.
    pub(crate) fn is_informative(&self) -> bool {
        !self.returns.is_unknown()
            || self.events.iter().any(|e| e.mentions_param())
            || self.stores.iter().any(|(_, v)| v.has_param())
    }
}

impl Event<'_> {
    pub(crate) fn mentions_param(&self) -> bool {
        self.value.has_param()
            || matches!(&self.touch, Touch::Bind { kernels, .. } if kernels.has_param())
    }
}
