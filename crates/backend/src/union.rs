//! Which weights of a program are one matrix to GPU kernels: a device that packs weights and a file that holds them packed
//! must agree on it, so that the file's bytes can be used where they are.

use marlin_formats::fragment::FragmentLayout;

use crate::{Op, Program, Weight};

/// How several weights are one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Union {
    /// Rows under rows: queries, keys and values.
    Stacked,
    /// Gate and up, which one kernel multiplies side by side.
    Gated,
}

impl Union {
    /// The layout of each part of the matrix that weights of these layouts make, and how many parts it has; `None`
    /// if they cannot be one matrix.
    pub fn of(self, layouts: &[FragmentLayout]) -> Option<(FragmentLayout, usize)> {
        let (first, others) = layouts.split_first()?;
        match self {
            Self::Stacked => {
                let all = others.iter().try_fold(*first, |above, below| above.stacked(below));
                all.map(|layout| (layout, 1))
            }
            Self::Gated => others.iter().all(|l| l == first).then_some((*first, layouts.len())),
        }
    }
}

/// How the parts of a linear op, whose weights have these layouts, become matrices: the number of parts that each takes.
/// Where outputs are `joined` ([`Program::joins_parts`]) it is as many as can be stacked, otherwise one.
pub fn stacks(layouts: &[FragmentLayout], joined: bool) -> Vec<usize> {
    let mut counts = Vec::new();
    let mut rest = layouts;
    while !rest.is_empty() {
        let most = if joined { rest.len() } else { 1 };
        let fits = |count: &usize| Union::Stacked.of(&rest[..*count]).is_some();
        let count = (1..=most).rev().find(fits).unwrap_or(1);
        counts.push(count);
        rest = &rest[count..];
    }
    counts
}

/// A matrix of GPU kernels.
#[derive(Clone)]
pub struct MatrixOf {
    /// The weights that it is made of, in order.
    pub weights: Vec<Weight>,
    /// How.
    pub union: Union,
}

impl Program {
    /// Whether the outputs of op `index` lie side by side, so that its weights can be one matrix: a product whose parts
    /// are the queries, keys and values of one attention.
    pub fn joins_parts(&self, index: usize) -> bool {
        let Some(Op::Linear { parts, .. }) = self.ops.get(index) else { return false };
        let adds = parts.first().is_none_or(|part| part.accumulate);
        !adds
            && self.ops.iter().any(|op| match op {
                Op::Attention { q, k, v, .. } => parts.iter().map(|p| p.out).eq([*q, *k, *v]),
                _ => false,
            })
    }

    /// The matrices that GPU kernels read, each once, in the order of use. `layout` says how a weight lies by itself.
    ///
    /// # Errors
    /// Those of `layout`.
    pub fn matrices<E>(
        &self,
        mut layout: impl FnMut(&Weight) -> Result<FragmentLayout, E>,
    ) -> Result<Vec<MatrixOf>, E> {
        let mut matrices: Vec<MatrixOf> = Vec::new();
        let mut take = |weights: Vec<Weight>, union: Union| {
            let known = matrices.iter().any(|m| {
                m.weights.len() == weights.len()
                    && m.weights.iter().zip(&weights).all(|(a, b)| std::sync::Arc::ptr_eq(a, b))
            });
            if !known {
                matrices.push(MatrixOf { weights, union });
            }
        };
        for (index, op) in self.ops.iter().enumerate() {
            match op {
                Op::Embed { table, .. } => {
                    layout(table)?;
                    take(vec![table.clone()], Union::Stacked);
                }
                Op::Linear { parts, .. } => {
                    let layouts: Vec<FragmentLayout> =
                        parts.iter().map(|p| layout(&p.weight)).collect::<Result<_, E>>()?;
                    let mut rest = &parts[..];
                    for count in stacks(&layouts, self.joins_parts(index)) {
                        let (now, later) = rest.split_at(count);
                        take(now.iter().map(|p| p.weight.clone()).collect(), Union::Stacked);
                        rest = later;
                    }
                }
                Op::GatedLinear { gate, up, .. } => {
                    if Union::Gated.of(&[layout(gate)?, layout(up)?]).is_some() {
                        take(vec![gate.clone(), up.clone()], Union::Gated);
                    } else {
                        take(vec![gate.clone()], Union::Stacked);
                        take(vec![up.clone()], Union::Stacked);
                    }
                }
                Op::RmsNorm { .. }
                | Op::AddRmsNorm { .. }
                | Op::Attention { .. }
                | Op::SelectOutputs { .. } => {}
            }
        }
        Ok(matrices)
    }

    /// The vectors that kernels read as f32, norms and biases, each once, in the order of use: the biases of one product
    /// follow each other as its weights do.
    pub fn vectors(&self) -> Vec<Weight> {
        let mut vectors: Vec<Weight> = Vec::new();
        let mut take = |weight: &Weight| {
            if !vectors.iter().any(|known| std::sync::Arc::ptr_eq(known, weight)) {
                vectors.push(weight.clone());
            }
        };
        for op in &self.ops {
            match op {
                Op::RmsNorm { norm, .. } | Op::AddRmsNorm { norm, .. } => take(&norm.weight),
                Op::Linear { parts, .. } => {
                    parts.iter().filter_map(|p| p.bias.as_ref()).for_each(&mut take);
                }
                Op::Attention { spec, .. } => {
                    let norms = [&spec.q_norm, &spec.k_norm].into_iter().flatten();
                    norms.for_each(|norm| take(&norm.weight));
                }
                Op::Embed { .. } | Op::GatedLinear { .. } | Op::SelectOutputs { .. } => {}
            }
        }
        vectors
    }
}

#[cfg(test)]
mod tests {
    use marlin_formats::Format;

    use super::*;

    fn layouts<const N: usize>(of: [(Format, usize); N]) -> [FragmentLayout; N] {
        of.map(|(format, rows)| FragmentLayout::new(format, rows, 64, 1.0).unwrap())
    }

    #[test]
    fn as_many_parts_are_stacked_as_are_alike_and_end_with_a_row_block() {
        let (a, b) = (Format::F16, Format::BF16);
        for (of, joined, expected) in [
            ([(a, 32), (a, 16), (a, 16)], true, vec![3]),
            ([(a, 32), (a, 16), (a, 16)], false, vec![1, 1, 1]),
            // The last may end anywhere.
            ([(a, 32), (a, 16), (a, 9)], true, vec![3]),
            ([(a, 32), (a, 9), (a, 16)], true, vec![2, 1]),
            ([(a, 9), (a, 16), (a, 16)], true, vec![1, 2]),
            ([(a, 32), (a, 16), (b, 16)], true, vec![2, 1]),
            ([(a, 32), (b, 16), (a, 16)], true, vec![1, 1, 1]),
        ] {
            assert_eq!(stacks(&layouts(of), joined), expected, "{of:?}");
        }
    }

    #[test]
    fn gate_and_up_are_alike_to_the_last_row() {
        let alike = layouts([(Format::F16, 9), (Format::F16, 9)]);
        assert_eq!(Union::Gated.of(&alike), Some((alike[0], 2)));
        assert_eq!(Union::Gated.of(&layouts([(Format::F16, 9), (Format::F16, 8)])), None);
    }
}
