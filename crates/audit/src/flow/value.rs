//! What an expression may stand for.
//!
//! A [`Value`] is a small set of [`Atom`]s: buffers (by creation site, or symbolically through a
//! parameter, field or global), host views of their contents, and the constants that matter:
//! storage options, kernel names, integers, small host constants, tensors and host arrays.
//! An empty value is an unknown one.

use std::sync::Arc;

/// The most alternatives that one value keeps; the rest is dropped, which only loses evidence.
const MAX_ATOMS: usize = 24;

/// A place in the audited sources: file number and byte offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pos {
    pub(crate) file: u32,
    pub(crate) at: u32,
}

/// A buffer creation, and the call of the wrapper that returned it, if one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SiteId {
    pub(crate) base: Pos,
    pub(crate) via: Option<Pos>,
}

/// Where a value is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Root<'s> {
    /// A creation site.
    Site(SiteId),
    /// A parameter of the function under analysis.
    Param(u16),
    /// A field of a class; the class is `None` where the object's type is unknown.
    Field { class: Option<&'s str>, name: &'s str, file: u32 },
    /// A global of a file.
    Global { file: u32, name: &'s str },
}

/// Which element of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Element<'s> {
    /// The thing itself.
    Whole,
    /// The element of a known position.
    At(i64),
    /// The element of a known key.
    Key(&'s str),
    /// The element that a loop variable of this name selects.
    Var(&'s str),
    /// Some element.
    Any,
}

/// One alternative of a value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Atom<'s> {
    /// A buffer, or a host view of its contents.
    Place { root: Root<'s>, element: Element<'s>, view: bool },
    /// A string constant.
    Str(&'s str),
    /// An integer constant.
    Int(i64),
    /// Storage options.
    Options(Options),
    /// A small constant in host memory.
    Constant(Arc<Constant<'s>>),
    /// An array, slice or byte string in host memory.
    HostArray,
    /// A tensor of PyTorch, MLX or candle.
    Tensor(TensorPlace),
    /// The result of `.contiguous()` at this position.
    Contiguous(Pos),
    /// A list or tuple.
    List(Arc<Vec<Value<'s>>>),
    /// A struct or dictionary.
    Record(Arc<Vec<(&'s str, Value<'s>)>>),
    /// An object of a class of the audited code.
    Object(&'s str),
}

/// Where a tensor's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorPlace {
    /// In host memory.
    Host,
    /// On the device.
    Device,
    /// Either.
    Unknown,
}

/// A storage mode as written in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum WrittenMode {
    Shared,
    Managed,
    Private,
    Memoryless,
}

/// Resource options as far as they were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Options {
    pub(crate) mode: Option<WrittenMode>,
    pub(crate) write_combined: bool,
    pub(crate) untracked: bool,
}

impl Options {
    pub(crate) fn of(mode: WrittenMode) -> Self {
        Self { mode: Some(mode), ..Self::default() }
    }

    /// Both options together, as by `|`.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            mode: match (self.mode, other.mode) {
                (Some(WrittenMode::Shared) | None, Some(m)) => Some(m),
                (m, _) => m,
            },
            write_combined: self.write_combined || other.write_combined,
            untracked: self.untracked || other.untracked,
        }
    }

    /// Options from Metal's bits: cache mode in bits 0–3, storage mode in bits 4–7, hazard
    /// tracking in bits 8–9 (Metal API reference, `MTLResourceOptions`).
    pub(crate) fn from_bits(bits: i64) -> Self {
        Self {
            mode: match (bits >> 4) & 0xF {
                0 => Some(WrittenMode::Shared),
                1 => Some(WrittenMode::Managed),
                2 => Some(WrittenMode::Private),
                3 => Some(WrittenMode::Memoryless),
                _ => None,
            },
            write_combined: bits & 0xF == 1,
            untracked: (bits >> 8) & 0x3 == 1,
        }
    }

    /// The options that a name of the API stands for, in any binding's spelling:
    /// `MTLResourceStorageModeShared`, `MTL::ResourceStorageModePrivate`,
    /// `.storageModeManaged`, `MTLStorageModeShared`, `.cpuCacheModeWriteCombined`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let has = |tail: &str| name.ends_with(tail);
        let storage = name.contains("torageMode");
        if storage && has("Shared") {
            Some(Self::of(WrittenMode::Shared))
        } else if storage && has("Managed") {
            Some(Self::of(WrittenMode::Managed))
        } else if storage && has("Private") {
            Some(Self::of(WrittenMode::Private))
        } else if storage && has("Memoryless") {
            Some(Self::of(WrittenMode::Memoryless))
        } else if has("CacheModeWriteCombined") || has("OptionCPUCacheModeWriteCombined") {
            Some(Self { write_combined: true, ..Self::default() })
        } else if has("HazardTrackingModeUntracked") || has("azardTrackingModeUntracked") {
            Some(Self { untracked: true, ..Self::default() })
        } else if has("CPUCacheModeDefaultCache")
            || has("cpuCacheModeDefaultCache")
            || has("OptionCPUCacheModeDefault")
            || has("azardTrackingModeDefault")
            || has("azardTrackingModeTracked")
        {
            Some(Self::default())
        } else {
            None
        }
    }
}

/// A small constant in host memory, for binding or for a buffer's first contents.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Constant<'s> {
    /// The names of the values in it.
    pub(crate) names: Vec<&'s str>,
    /// Its size in bytes, where known.
    pub(crate) bytes: Option<u64>,
    /// The address of a variable, which may be of any size.
    pub(crate) by_address: bool,
}

/// What an expression may stand for; empty when unknown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Value<'s> {
    atoms: Vec<Atom<'s>>,
}

impl<'s> Value<'s> {
    pub(crate) const UNKNOWN: Self = Self { atoms: Vec::new() };

    pub(crate) fn of(atom: Atom<'s>) -> Self {
        Self { atoms: vec![atom] }
    }

    pub(crate) fn place(root: Root<'s>) -> Self {
        Self::of(Atom::Place { root, element: Element::Whole, view: false })
    }

    pub(crate) fn atoms(&self) -> &[Atom<'s>] {
        &self.atoms
    }

    pub(crate) fn is_unknown(&self) -> bool {
        self.atoms.is_empty()
    }

    pub(crate) fn add(&mut self, atom: Atom<'s>) {
        if self.atoms.len() < MAX_ATOMS && !self.atoms.contains(&atom) {
            self.atoms.push(atom);
        }
    }

    /// Either of both.
    pub(crate) fn join(&mut self, other: &Self) {
        for atom in &other.atoms {
            self.add(atom.clone());
        }
    }

    pub(crate) fn map(&self, f: impl Fn(&Atom<'s>) -> Option<Atom<'s>>) -> Self {
        let mut out = Self::default();
        for atom in &self.atoms {
            if let Some(atom) = f(atom) {
                out.add(atom);
            }
        }
        out
    }

    /// The atoms for which `keep` holds.
    pub(crate) fn only(&self, keep: impl Fn(&Atom<'s>) -> bool) -> Self {
        Self { atoms: self.atoms.iter().filter(|a| keep(a)).cloned().collect() }
    }

    /// The host's view of the buffers in this value.
    pub(crate) fn contents(&self) -> Self {
        self.map(|atom| match atom {
            Atom::Place { root, element, .. } => {
                Some(Atom::Place { root: *root, element: *element, view: true })
            }
            _ => None,
        })
    }

    /// An element of the lists in this value.
    pub(crate) fn element(&self, which: Element<'s>) -> Self {
        let mut out = Self::default();
        for atom in &self.atoms {
            match atom {
                Atom::List(items) => match which {
                    Element::At(i) if usize::try_from(i).is_ok_and(|i| i < items.len()) => {
                        out.join(&items[i as usize]);
                    }
                    _ => items.iter().for_each(|item| out.join(item)),
                },
                Atom::Record(entries) => {
                    for (key, value) in entries.iter() {
                        match which {
                            Element::Key(wanted) if *key != wanted && !key.is_empty() => {}
                            _ => out.join(value),
                        }
                    }
                }
                Atom::Place { root, element: Element::Whole, view: false } => {
                    out.add(Atom::Place { root: *root, element: which, view: false });
                }
                // An element of a view is data of the host's.
                _ => {}
            }
        }
        out
    }

    pub(crate) fn is_view(&self) -> bool {
        self.atoms.iter().any(|a| matches!(a, Atom::Place { view: true, .. }))
    }

    pub(crate) fn has_place(&self) -> bool {
        self.atoms.iter().any(|a| matches!(a, Atom::Place { .. }))
    }

    /// Whether a buffer is among the alternatives, lists and structs included.
    pub(crate) fn holds_place(&self) -> bool {
        self.atoms.iter().any(|a| match a {
            Atom::Place { .. } => true,
            Atom::List(items) => items.iter().any(Value::holds_place),
            Atom::Record(entries) => entries.iter().any(|(_, v)| v.holds_place()),
            _ => false,
        })
    }

    /// Whether a creation site is among the alternatives, lists included.
    pub(crate) fn has_site(&self) -> bool {
        self.atoms.iter().any(|a| match a {
            Atom::Place { root: Root::Site(_), .. } => true,
            Atom::List(items) => items.iter().any(Value::has_site),
            Atom::Record(entries) => entries.iter().any(|(_, v)| v.has_site()),
            _ => false,
        })
    }

    /// Whether a parameter is among the alternatives, lists included.
    pub(crate) fn has_param(&self) -> bool {
        self.atoms.iter().any(|a| match a {
            Atom::Place { root: Root::Param(_), .. } => true,
            Atom::List(items) => items.iter().any(Value::has_param),
            Atom::Record(entries) => entries.iter().any(|(_, v)| v.has_param()),
            _ => false,
        })
    }

    /// The one list that this value is, if it is one.
    pub(crate) fn list(&self) -> Option<&Arc<Vec<Value<'s>>>> {
        match self.atoms.as_slice() {
            [Atom::List(items)] | [Atom::List(items), Atom::Constant(_)] => Some(items),
            _ => None,
        }
    }

    pub(crate) fn int(&self) -> Option<i64> {
        match self.atoms.as_slice() {
            [Atom::Int(i)] => Some(*i),
            _ => None,
        }
    }

    pub(crate) fn strings(&self) -> impl Iterator<Item = &'s str> + '_ {
        self.atoms.iter().filter_map(|a| match a {
            Atom::Str(s) => Some(*s),
            _ => None,
        })
    }

    pub(crate) fn constant(&self) -> Option<&Arc<Constant<'s>>> {
        self.atoms.iter().find_map(|a| match a {
            Atom::Constant(c) => Some(c),
            _ => None,
        })
    }

    pub(crate) fn object(&self) -> Option<&'s str> {
        self.atoms.iter().find_map(|a| match a {
            Atom::Object(class) => Some(*class),
            _ => None,
        })
    }

    pub(crate) fn tensor(&self) -> Option<TensorPlace> {
        self.atoms.iter().find_map(|a| match a {
            Atom::Tensor(place) => Some(*place),
            _ => None,
        })
    }

    pub(crate) fn is_host_array(&self) -> bool {
        self.atoms.iter().any(|a| matches!(a, Atom::HostArray | Atom::Constant(_)))
    }

    /// This value with every parameter replaced by the argument of a call.
    pub(crate) fn substitute(&self, args: &[Value<'s>]) -> Self {
        let mut out = Self::default();
        for atom in &self.atoms {
            match atom {
                Atom::Place { root: Root::Param(i), element, view } => {
                    let Some(arg) = args.get(*i as usize) else { continue };
                    let mut value = match element {
                        Element::Whole => arg.clone(),
                        which => arg.element(*which),
                    };
                    if *view {
                        value = value.contents();
                    }
                    out.join(&value);
                }
                Atom::List(items) if self.has_param() => {
                    let items = items.iter().map(|v| v.substitute(args)).collect();
                    out.add(Atom::List(Arc::new(items)));
                }
                Atom::Record(entries) if self.has_param() => {
                    let entries = entries.iter().map(|(k, v)| (*k, v.substitute(args))).collect();
                    out.add(Atom::Record(Arc::new(entries)));
                }
                other => out.add(other.clone()),
            }
        }
        out
    }

    /// This value with every creation site that it hands out seen through the call at `via`.
    /// A struct keeps its own: making an object is no way of making a buffer.
    pub(crate) fn seen_via(&self, via: Pos) -> Self {
        self.map(|atom| {
            Some(match atom {
                Atom::Place { root: Root::Site(site), element, view } => Atom::Place {
                    root: Root::Site(SiteId { base: site.base, via: Some(via) }),
                    element: *element,
                    view: *view,
                },
                Atom::List(items) => {
                    Atom::List(Arc::new(items.iter().map(|v| v.seen_via(via)).collect()))
                }
                other => other.clone(),
            })
        })
    }

    /// The creation sites that this value hands out: itself or in lists, not in structs.
    pub(crate) fn handed_out(&self) -> Vec<SiteId> {
        let mut out = Vec::new();
        for atom in &self.atoms {
            match atom {
                Atom::Place { root: Root::Site(site), .. } => out.push(*site),
                Atom::List(items) => out.extend(items.iter().flat_map(Value::handed_out)),
                _ => {}
            }
        }
        out
    }

    /// Every creation site in this value, lists included.
    pub(crate) fn sites(&self) -> Vec<SiteId> {
        let mut out = Vec::new();
        for atom in &self.atoms {
            match atom {
                Atom::Place { root: Root::Site(site), .. } => out.push(*site),
                Atom::List(items) => out.extend(items.iter().flat_map(Value::sites)),
                Atom::Record(entries) => out.extend(entries.iter().flat_map(|(_, v)| v.sites())),
                _ => {}
            }
        }
        out
    }
}
