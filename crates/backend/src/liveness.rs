//! Which tensors of a program can share memory.

use std::ops::Range;

use crate::{Op, Program, Tensor};

impl Op {
    /// Calls `f` with every tensor that the op reads or writes.
    pub fn visit_tensors(&self, mut f: impl FnMut(Tensor)) {
        match self {
            Self::Embed { out, .. } => f(*out),
            Self::RmsNorm { x, out, .. } | Self::SelectOutputs { x, out } => {
                f(*x);
                f(*out);
            }
            Self::AddRmsNorm { x, residual, .. } => {
                f(*x);
                f(*residual);
            }
            Self::Linear { x, parts } => {
                f(*x);
                parts.iter().for_each(|p| f(p.out));
            }
            Self::GatedLinear { x, out, .. } => {
                f(*x);
                f(*out);
            }
            Self::Attention { q, k, v, out, .. } => [q, k, v, out].into_iter().for_each(|t| f(*t)),
        }
    }
}

impl Program {
    /// For each tensor the ops during which it must be kept, from the first that uses it to one past the last; the
    /// logits' end is `usize::MAX`. A tensor that no op uses has an empty range.
    pub fn lifetimes(&self) -> Vec<Range<usize>> {
        let mut lifetimes = vec![0..0; self.tensors.len()];
        for (i, op) in self.ops.iter().enumerate() {
            op.visit_tensors(|t| {
                let life = &mut lifetimes[t.index()];
                if life.start == life.end {
                    life.start = i;
                }
                life.end = i + 1;
            });
        }
        lifetimes[self.logits.index()].end = usize::MAX;
        lifetimes
    }
}

/// Gives each lifetime a slot such that lifetimes that overlap have different ones: first fit in the order of their
/// beginnings, which needs no more slots than are alive at once.
pub fn assign_slots(lifetimes: &[Range<usize>]) -> Vec<usize> {
    let mut slots = vec![0; lifetimes.len()];
    // For each slot when it is free again.
    let mut free_from: Vec<usize> = Vec::new();
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&t| lifetimes[t].start);
    for t in order {
        let slot = free_from.iter().position(|&free| free <= lifetimes[t].start);
        let slot = slot.unwrap_or_else(|| {
            free_from.push(0);
            free_from.len() - 1
        });
        free_from[slot] = lifetimes[t].end;
        slots[t] = slot;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_together_lies_apart_and_slots_are_used_again() {
        let lifetimes = [0..4, 1..3, 2..4, 3..5, 4..usize::MAX];
        let slots = assign_slots(&lifetimes);
        for (i, a) in lifetimes.iter().enumerate() {
            for (j, b) in lifetimes.iter().enumerate().skip(i + 1) {
                let overlap = a.start < b.end && b.start < a.end;
                assert!(!overlap || slots[i] != slots[j], "{i} and {j}");
            }
        }
        assert_eq!(slots.iter().max(), Some(&2));
    }
}
