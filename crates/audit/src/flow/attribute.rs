//! Attributes what was seen to the buffers it concerns.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::mentions;
use super::project::Project;
use super::summary::{BindIndex, Event, Site, Summary, Touch};
use super::value::{Atom, Element, Pos, Root, SiteId, Value};
use crate::msl::Index;

/// How many fields and globals a value is followed through.
const MAX_HOPS: u32 = 6;

/// What was seen of one buffer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) host_writes: bool,
    pub(crate) host_reads: bool,
    pub(crate) host_views: bool,
    pub(crate) did_modify: bool,
    pub(crate) synchronized: bool,
    pub(crate) device_reads: bool,
    pub(crate) device_writes: bool,
    /// Bound or handed to the device where what happens is not known.
    pub(crate) device_unknown: bool,
    /// An argument in the `constant` address space.
    pub(crate) constant_space: bool,
    /// A blit, rather than a kernel, was the only device access.
    pub(crate) blit_source: bool,
    /// The host writes in a loop or per step.
    pub(crate) repeated_writes: bool,
    /// Functions out of sight that got it.
    pub(crate) escapes: Vec<String>,
    /// Kernels and arguments it was bound to.
    pub(crate) bound: Vec<(String, String)>,
    /// Its name stands somewhere that the analysis did not follow.
    pub(crate) mentioned: bool,
    /// Something was concluded from a name or a position.
    pub(crate) guessed: bool,
    pub(crate) last_touch: Option<Pos>,
}

impl Facts {
    pub(crate) fn untouched(&self) -> bool {
        !(self.host_writes
            || self.host_reads
            || self.host_views
            || self.device_reads
            || self.device_writes
            || self.device_unknown)
    }

    fn merge(&mut self, other: &Self) {
        // Seen here and lost there: who else touches it is open.
        let lost = |facts: &Self| facts.mentioned && facts.untouched();
        if lost(self) && !other.untouched() || lost(other) && !self.untouched() {
            let somewhere = "code that was not followed".to_string();
            if !self.escapes.contains(&somewhere) {
                self.escapes.push(somewhere);
            }
        }
        self.host_writes |= other.host_writes;
        self.host_reads |= other.host_reads;
        self.host_views |= other.host_views;
        self.did_modify |= other.did_modify;
        self.synchronized |= other.synchronized;
        self.device_reads |= other.device_reads;
        self.device_writes |= other.device_writes;
        self.device_unknown |= other.device_unknown;
        self.constant_space |= other.constant_space;
        self.blit_source |= other.blit_source;
        self.repeated_writes |= other.repeated_writes;
        self.mentioned |= other.mentioned;
        self.guessed |= other.guessed;
        for escape in &other.escapes {
            if !self.escapes.contains(escape) {
                self.escapes.push(escape.clone());
            }
        }
        for bound in &other.bound {
            if !self.bound.contains(bound) {
                self.bound.push(bound.clone());
            }
        }
        self.last_touch = self.last_touch.or(other.last_touch);
    }
}

/// A buffer as it is reported: a creation, or a wrapper's creation seen from one call.
#[derive(Clone, Debug)]
pub(crate) struct Buffer<'s> {
    pub(crate) site: Site<'s>,
    pub(crate) options: Value<'s>,
    pub(crate) size: Option<u64>,
    pub(crate) bytes: Value<'s>,
    pub(crate) facts: Facts,
}

/// All buffers by their creation in the source, each with the calls of wrappers it is seen from.
pub(crate) struct Attributed<'s> {
    pub(crate) groups: Vec<Vec<Buffer<'s>>>,
    /// `.contiguous()` calls whose result is bound without a copy.
    pub(crate) contiguous: Vec<Pos>,
}

/// What is stored in fields of one name: by class, where known, and file of the store.
type Stored<'s> = Vec<(Option<&'s str>, u32, Value<'s>)>;

struct Heap<'s> {
    fields: HashMap<&'s str, Stored<'s>>,
    globals: HashMap<(u32, &'s str), Value<'s>>,
}

pub(crate) fn attribute<'s>(project: &Project<'s>, summaries: &[Summary<'s>]) -> Attributed<'s> {
    let heap = Heap::new(project, summaries);
    let mut sites: BTreeMap<SiteId, Site<'s>> = BTreeMap::new();
    for summary in summaries {
        for site in &summary.sites {
            sites.entry(site.id).or_insert_with(|| site.clone());
        }
    }
    let mut facts: HashMap<SiteId, Facts> = HashMap::new();
    let mut contiguous = Vec::new();
    for summary in summaries {
        for event in &summary.events {
            attribute_event(project, &heap, event, &mut facts, &mut contiguous);
        }
    }
    // What a function returns to no one in sight is in the hands of its callers.
    let mut called = vec![false; summaries.len()];
    for edge in summaries.iter().flat_map(|s| &s.calls) {
        called[edge.callee as usize] = true;
    }
    for (id, summary) in summaries.iter().enumerate() {
        if called[id] {
            continue;
        }
        for site in heap.settle(&summary.returns, MAX_HOPS).sites() {
            let function = project.function(id as u32).1;
            let facts = facts.entry(site).or_default();
            let caller = format!("the callers of {}", function.name);
            if !facts.escapes.contains(&caller) {
                facts.escapes.push(caller);
            }
        }
    }
    for (id, site) in &sites {
        let facts = facts.entry(*id).or_default();
        if facts.untouched() && facts.escapes.is_empty() {
            facts.mentioned = mentions::mentioned(project, &heap.holders(*id), site);
        }
    }
    let groups = group(project, &heap, sites, &facts, summaries);
    contiguous.sort_unstable();
    contiguous.dedup();
    Attributed { groups, contiguous }
}

fn attribute_event<'s>(
    project: &Project<'s>,
    heap: &Heap<'s>,
    event: &Event<'s>,
    facts: &mut HashMap<SiteId, Facts>,
    contiguous: &mut Vec<Pos>,
) {
    if event.touch == Touch::NoCopySource {
        for atom in heap.settle(&event.value, MAX_HOPS).atoms() {
            if let Atom::Contiguous(pos) = atom {
                contiguous.push(*pos);
            }
        }
    }
    if let Touch::Bind { index: BindIndex::FromList(base), kernels } = &event.touch {
        // The elements of lists held in fields, in order.
        for atom in event.value.atoms() {
            let Atom::Place { root, .. } = atom else { continue };
            let whole = Value::place(*root);
            for held in heap.settle(&whole, MAX_HOPS).atoms() {
                let Atom::List(items) = held else { continue };
                for (k, item) in items.iter().enumerate() {
                    let index = BindIndex::Number(base + k as u32);
                    let touch = Touch::Bind { index, kernels: kernels.clone() };
                    let one = Event { value: item.clone(), touch, ..event.clone() };
                    record(project, heap, &one, facts);
                }
            }
        }
        return;
    }
    record(project, heap, event, facts);
}

fn record<'s>(
    project: &Project<'s>,
    heap: &Heap<'s>,
    event: &Event<'s>,
    facts: &mut HashMap<SiteId, Facts>,
) {
    let settled = heap.settle(&event.value, MAX_HOPS);
    let mut targets: Vec<(SiteId, bool)> = Vec::new();
    collect(&settled, &mut targets);
    if targets.is_empty() {
        return;
    }
    for (site, view) in targets {
        let facts = facts.entry(site).or_default();
        facts.last_touch = Some(event.pos);
        let mut sure = event.sure;
        match &event.touch {
            Touch::HostWrite if view => {
                facts.host_writes = true;
                facts.repeated_writes |= event.in_loop;
            }
            Touch::HostRead if view => facts.host_reads = true,
            Touch::HostView if view => facts.host_views = true,
            Touch::HostWriteDirect => facts.host_writes = true,
            Touch::HostReadDirect => facts.host_reads = true,
            Touch::DidModify => facts.did_modify = true,
            Touch::Synchronize => facts.synchronized = true,
            Touch::DeviceRead => {
                facts.device_reads = true;
                facts.blit_source = true;
            }
            Touch::DeviceWrite => facts.device_writes = true,
            Touch::DeviceReadWrite => {
                facts.device_reads = true;
                facts.device_writes = true;
            }
            Touch::DeviceUnknown => {
                facts.device_unknown = true;
                sure = true;
            }
            Touch::Bind { index, kernels } => {
                sure &= bind(project, heap, event, *index, kernels, facts);
            }
            Touch::Escape(name) => {
                if !facts.escapes.iter().any(|e| e == name) {
                    facts.escapes.push(name.to_string());
                }
            }
            _ => sure = true,
        }
        facts.guessed |= !sure;
    }
}

/// Follows a binding to the kernels' arguments; whether that left no doubt.
fn bind<'s>(
    project: &Project<'s>,
    heap: &Heap<'s>,
    event: &Event<'s>,
    index: BindIndex<'s>,
    kernels: &Value<'s>,
    facts: &mut Facts,
) -> bool {
    let index = match index {
        BindIndex::Number(n) => Index::Number(n),
        BindIndex::Name(name) => Index::Name(name.to_string()),
        BindIndex::FromList(_) | BindIndex::Unknown => {
            facts.device_unknown = true;
            return false;
        }
    };
    let index = project.resolved(&index);
    let names: Vec<&str> = heap.settle(kernels, MAX_HOPS).strings().collect();
    let mut found = 0;
    for name in &names {
        for kernel in project.kernels(event.pos.file, name) {
            let param = kernel.params.iter().find(|p| project.resolved(&p.index) == index);
            let Some(param) = param else { continue };
            found += 1;
            facts.device_reads |= param.reads;
            facts.device_writes |= param.writes;
            facts.constant_space |= param.is_constant;
            let bound = (kernel.name.clone(), param.name.clone());
            if !facts.bound.contains(&bound) && facts.bound.len() < 8 {
                facts.bound.push(bound);
            }
        }
    }
    if found == 0 {
        facts.device_unknown = true;
    }
    found == 1
}

fn collect(value: &Value<'_>, out: &mut Vec<(SiteId, bool)>) {
    for atom in value.atoms() {
        match atom {
            Atom::Place { root: Root::Site(site), view, .. } => out.push((*site, *view)),
            Atom::List(items) => items.iter().for_each(|i| collect(i, out)),
            Atom::Record(entries) => entries.iter().for_each(|(_, v)| collect(v, out)),
            _ => {}
        }
    }
}

impl<'s> Heap<'s> {
    fn new(project: &Project<'s>, summaries: &[Summary<'s>]) -> Self {
        let mut heap = Self { fields: HashMap::new(), globals: HashMap::new() };
        for (id, summary) in summaries.iter().enumerate() {
            let store_file = project.file_of(id as u32);
            for (root, value) in &summary.stores {
                match root {
                    Root::Field { class, name, .. } => {
                        let entries = heap.fields.entry(name).or_default();
                        match entries.iter_mut().find(|(c, f, _)| c == class && *f == store_file) {
                            Some((_, _, held)) => held.join(value),
                            None => entries.push((*class, store_file, value.clone())),
                        }
                    }
                    Root::Global { file, name } => {
                        heap.globals.entry((*file, name)).or_default().join(value);
                    }
                    Root::Site(_) | Root::Param(_) => {}
                }
            }
        }
        heap
    }

    fn held(&self, root: &Root<'s>) -> Value<'s> {
        match root {
            Root::Global { file, name } => {
                self.globals.get(&(*file, *name)).cloned().unwrap_or_default()
            }
            Root::Field { class, name, file } => {
                let Some(entries) = self.fields.get(name) else { return Value::UNKNOWN };
                let mut out = Value::default();
                let join = |out: &mut Value<'s>, keep: &dyn Fn(Option<&str>, u32) -> bool| {
                    for (c, f, value) in entries {
                        if keep(*c, *f) {
                            out.join(value);
                        }
                    }
                };
                match class {
                    Some(class) => {
                        join(&mut out, &|c, _| c == Some(class));
                        if out.is_unknown() {
                            join(&mut out, &|c, _| c.is_none());
                        }
                    }
                    None => {
                        join(&mut out, &|_, f| f == *file);
                        let one_class = entries.windows(2).all(|w| w[0].0 == w[1].0);
                        if out.is_unknown() && one_class {
                            join(&mut out, &|_, _| true);
                        }
                    }
                }
                out
            }
            Root::Site(_) | Root::Param(_) => Value::UNKNOWN,
        }
    }

    /// The fields and globals that a buffer is stored in: their names.
    fn holders(&self, site: SiteId) -> Vec<&'s str> {
        let fields = self.fields.iter().filter(|(_, entries)| {
            entries.iter().any(|(_, _, value)| value.sites().contains(&site))
        });
        let globals = self.globals.iter().filter(|(_, value)| value.sites().contains(&site));
        fields.map(|(name, _)| *name).chain(globals.map(|((_, name), _)| *name)).collect()
    }

    /// The value with fields and globals replaced by what they hold.
    fn settle(&self, value: &Value<'s>, hops: u32) -> Value<'s> {
        let mut out = Value::default();
        for atom in value.atoms() {
            match atom {
                Atom::Place {
                    root: root @ (Root::Field { .. } | Root::Global { .. }),
                    element,
                    view,
                } => {
                    if hops == 0 {
                        continue;
                    }
                    let mut held = self.held(root);
                    if *element != Element::Whole {
                        held = held.element(*element);
                    }
                    held = self.settle(&held, hops - 1);
                    if *view {
                        held = held.contents();
                    }
                    out.join(&held);
                }
                Atom::Place { root: Root::Site(_), element: Element::Whole, .. } => {
                    out.add(atom.clone())
                }
                // An element of what is a single buffer is not a buffer.
                Atom::Place { root: Root::Site(_), .. } => {}
                Atom::List(items) if hops > 0 => {
                    let items = items.iter().map(|i| self.settle(i, hops - 1)).collect();
                    out.add(Atom::List(std::sync::Arc::new(items)));
                }
                other => out.add(other.clone()),
            }
        }
        out
    }
}

fn group<'s>(
    project: &Project<'s>,
    heap: &Heap<'s>,
    sites: BTreeMap<SiteId, Site<'s>>,
    facts: &HashMap<SiteId, Facts>,
    summaries: &[Summary<'s>],
) -> Vec<Vec<Buffer<'s>>> {
    let mut groups: BTreeMap<Pos, Vec<Buffer<'s>>> = BTreeMap::new();
    let parents: HashSet<SiteId> = sites.values().filter_map(|s| s.parent).collect();
    for (id, site) in &sites {
        let returned = summaries[site.function as usize].returns.sites().contains(id);
        // A wrapper of a wrapper hands its buffer on: its callers' views of it stand for it.
        if id.via.is_some() && returned && parents.contains(id) {
            continue;
        }
        let mut seen = facts.get(id).cloned().unwrap_or_default();
        let mut parent = site.parent;
        for _ in 0..MAX_HOPS {
            let Some(above) = parent.filter(|p| p.via.is_some()) else { break };
            if let Some(more) = facts.get(&above) {
                seen.merge(more);
            }
            parent = sites.get(&above).and_then(|s| s.parent);
        }
        if id.via.is_some() && returned && seen.escapes.is_empty() {
            let name = &project.function(site.function).1.name;
            seen.escapes.push(format!("the callers of {name}"));
        }
        groups.entry(id.base).or_default().push(Buffer {
            options: heap.settle(&site.options, MAX_HOPS),
            size: heap.settle(&site.size, MAX_HOPS).int().and_then(|i| u64::try_from(i).ok()),
            bytes: site.bytes.clone(),
            facts: seen,
            site: site.clone(),
        });
    }
    groups.into_values().collect()
}

impl<'s> Buffer<'s> {
    /// The buffer with what was seen of it through `other`.
    pub(crate) fn merged(&self, other: &Self) -> Self {
        let mut merged = self.clone();
        merged.facts.merge(&other.facts);
        let is_options = |a: &Atom<'s>| matches!(a, Atom::Options(_) | Atom::Int(_));
        if !merged.options.atoms().iter().any(is_options) {
            merged.options = other.options.clone();
        } else {
            merged.options.join(&other.options.only(is_options));
        }
        merged.size = self.size.or(other.size);
        if self.bytes.constant().is_none() {
            merged.bytes.join(&other.bytes);
        }
        merged
    }
}
