//! Norms that the products around them can do.

use marlin_backend::{Op, Program};

/// Which norms lie between products that can do them.
pub(super) struct Sharing {
    /// For each op that is such a norm, whether outputs are selected before it.
    pub(super) norms: Vec<Option<bool>>,
    /// For each op the norm op that it would begin.
    pub(super) begins: Vec<Option<usize>>,
    /// For each op the norm op that it would finish.
    pub(super) finishes: Vec<Option<usize>>,
}

impl Sharing {
    /// A product that adds to a residual, a norm of the residual, perhaps with output rows selected in between, and
    /// products that read the norm's result, which nothing else does.
    pub(super) fn of(program: &Program) -> Self {
        let ops = &program.ops;
        let mut sharing = Self {
            norms: vec![None; ops.len()],
            begins: vec![None; ops.len()],
            finishes: vec![None; ops.len()],
        };
        for (i, op) in ops.iter().enumerate() {
            let Op::RmsNorm { x, out, .. } = op else { continue };
            let before = |i: usize| i.checked_sub(1).map(|i| (i, &ops[i]));
            let (selects, source, producer) = match before(i) {
                Some((at, Op::SelectOutputs { x: from, out })) if out == x => {
                    (true, *from, before(at))
                }
                producer => (false, *x, producer),
            };
            let Some((producer, Op::Linear { parts, .. })) = producer else { continue };
            let adds = matches!(&parts[..], [part] if part.accumulate && part.out == source);
            let readers: Vec<usize> = (i + 1..ops.len())
                .filter(|&at| {
                    let mut uses = false;
                    ops[at].visit_tensors(|t| uses |= t == *out);
                    uses
                })
                .collect();
            let multiply = |&at: &usize| match &ops[at] {
                Op::Linear { x, parts } => x == out && parts.iter().all(|part| part.out != *out),
                Op::GatedLinear { x, out: y, .. } => x == out && y != out,
                _ => false,
            };
            if adds && !readers.is_empty() && readers.iter().all(multiply) {
                sharing.norms[i] = Some(selects);
                sharing.begins[producer] = Some(i);
                readers.iter().for_each(|&reader| sharing.finishes[reader] = Some(i));
            }
        }
        sharing
    }
}
