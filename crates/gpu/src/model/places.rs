//! Where a program's tensors are: which share memory, and which lie side by side.

use std::ops::Range;

use marlin_backend::{Op, Program, Rows, assign_slots};

use super::sharing::Sharing;

/// A tensor's place: columns `first..first + width` of the rows of a slot, which are `stride` wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: usize,
    pub(super) first: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
    pub(super) rows: Rows,
}

/// Memory that tensors take turns in.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    /// What its first tensor is called.
    pub(super) name: &'static str,
    /// The shapes of its tensors: elements of a row, and how many rows.
    pub(super) shapes: Vec<(usize, Rows)>,
}

/// Where tensors are.
pub(super) struct Places {
    pub(super) tensors: Vec<Place>,
    /// For each op that multiplies gate and up apart, where both are.
    pub(super) gate_up: Vec<Option<Place>>,
    pub(super) slots: Vec<Slot>,
    pub(super) logits: Place,
}

impl Places {
    /// Tensors that are alive together have different slots. Queries, keys and values of one product share one: columns
    /// of the same rows. Gate and up need room only in ops that multiply them `apart`.
    pub(super) fn new(program: &Program, apart: &[bool]) -> Self {
        let lifetimes = program.lifetimes();
        let count = program.tensors.len();
        // Each tensor's leader, and its first column among the leader's.
        let mut leader: Vec<(usize, usize)> = (0..count).map(|t| (t, 0)).collect();
        let mut widths: Vec<usize> = program.tensors.iter().map(|t| t.width).collect();
        let mut lives: Vec<Range<usize>> = lifetimes.clone();
        for op in &program.ops {
            let Op::Attention { q, k, v, .. } = op else { continue };
            let members = [q.index(), k.index(), v.index()];
            let of_one_product = program.ops.iter().enumerate().any(|(index, op)| match op {
                Op::Linear { parts, .. } => {
                    parts.iter().map(|p| p.out.index()).eq(members) && program.joins_parts(index)
                }
                _ => false,
            });
            if of_one_product {
                let mut first = 0;
                for member in members {
                    leader[member] = (members[0], first);
                    first += program.tensors[member].width;
                    lives[members[0]].start = lives[members[0]].start.min(lifetimes[member].start);
                    lives[members[0]].end = lives[members[0]].end.max(lifetimes[member].end);
                }
                widths[members[0]] = first;
            }
        }
        // The product before a shared norm writes where its readers look.
        for (i, norm) in Sharing::of(program).begins.into_iter().enumerate() {
            if let Some(Op::RmsNorm { out, .. }) = norm.map(|norm| &program.ops[norm]) {
                let life = &mut lives[leader[out.index()].0];
                life.start = life.start.min(i);
            }
        }
        // Where every token is an output, the selection's result is its input.
        for op in &program.ops {
            if let Op::SelectOutputs { x, out } = op {
                let end = lives[leader[out.index()].0].end;
                let life = &mut lives[leader[x.index()].0];
                life.end = life.end.max(end);
            }
        }
        // Tensors with memory of their own, then gate and up of each gated product.
        let owners: Vec<usize> = (0..count).filter(|&t| leader[t].0 == t).collect();
        let gated: Vec<usize> = (0..program.ops.len()).filter(|&i| apart[i]).collect();
        let mut spans: Vec<Range<usize>> = owners.iter().map(|&t| lives[t].clone()).collect();
        spans.extend(gated.iter().map(|&i| i..i + 1));
        let assigned = assign_slots(&spans);
        let mut slots = vec![Slot::default(); assigned.iter().max().map_or(0, |m| m + 1)];
        let mut tensors = vec![None; count];
        let mut take = |slot: usize, name, width: usize, rows: Rows| {
            let entry: &mut Slot = &mut slots[slot];
            if entry.shapes.is_empty() {
                entry.name = name;
            }
            if !entry.shapes.contains(&(width, rows)) {
                entry.shapes.push((width, rows));
            }
        };
        for (&owner, &slot) in owners.iter().zip(&assigned) {
            let info = &program.tensors[owner];
            take(slot, info.name, widths[owner], info.rows);
            tensors[owner] = Some(slot);
        }
        let mut gate_up = vec![None; program.ops.len()];
        for (&op, &slot) in gated.iter().zip(&assigned[owners.len()..]) {
            if let Op::GatedLinear { out, .. } = &program.ops[op] {
                let info = &program.tensors[out.index()];
                let width = 2 * info.width;
                take(slot, "gate and up", width, info.rows);
                gate_up[op] = Some(Place { slot, first: 0, width, stride: width, rows: info.rows });
            }
        }
        let place = |t: usize| {
            let (owner, first) = leader[t];
            let info = &program.tensors[t];
            let slot = tensors[owner].unwrap_or(0);
            Place { slot, first, width: info.width, stride: widths[owner], rows: info.rows }
        };
        let logits = place(program.logits.index());
        let places = (0..count).map(place).collect();
        Self { tensors: places, gate_up, slots, logits }
    }
}
