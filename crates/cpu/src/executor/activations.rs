//! Memory for a program's activation tensors: tensors that never live at the same time
//! share a buffer.

use marlin_backend::{BackendError, Op, Program, Rows, Tensor, TensorInfo};
use marlin_placement::{AccessPattern, Ledger};

use crate::memory::Buffer;

/// The buffers, and which tensor is in which.
pub(super) struct Activations {
    buffers: Vec<Buffer>,
    /// For each tensor the index of its buffer.
    slots: Vec<usize>,
    tensors: Vec<TensorInfo>,
}

impl Activations {
    pub(super) fn new(
        ledger: &Ledger,
        program: &Program,
        max_tokens: usize,
        max_outputs: usize,
    ) -> Result<Self, BackendError> {
        let bytes: Vec<usize> = program
            .tensors
            .iter()
            .map(|t| {
                let rows = match t.rows {
                    Rows::Tokens => max_tokens,
                    Rows::Outputs => max_outputs,
                };
                // Kernels write whole tiles of 16 rows of a matrix.
                rows * t.width.next_multiple_of(16) * 4
            })
            .collect();
        let slots = share(program);
        let count = slots.iter().max().map_or(0, |m| m + 1);
        let mut sizes = vec![0; count];
        let mut names = vec![""; count];
        for (i, &slot) in slots.iter().enumerate() {
            sizes[slot] = sizes[slot].max(bytes[i]);
            if names[slot].is_empty() {
                names[slot] = program.tensors[i].name;
            }
        }
        let buffers = sizes
            .into_iter()
            .zip(names)
            .map(|(size, name)| Buffer::new(ledger, name, AccessPattern::DEVICE_ONLY, size))
            .collect::<Result<_, _>>()?;
        Ok(Self { buffers, slots, tensors: program.tensors.clone() })
    }

    /// The first row of a tensor, and the number of floats per row.
    pub(super) fn get(&self, tensor: Tensor) -> (*mut f32, usize) {
        let i = tensor.index();
        (self.buffers[self.slots[i]].as_ptr(), self.tensors[i].width)
    }

    /// How many rows a tensor has.
    pub(super) fn rows(&self, tensor: Tensor) -> Rows {
        self.tensors[tensor.index()].rows
    }

    pub(super) fn bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::len).sum()
    }
}

/// Gives each tensor a slot such that tensors alive together have different ones.
fn share(program: &Program) -> Vec<usize> {
    let count = program.tensors.len();
    let mut first = vec![usize::MAX; count];
    let mut last = vec![0; count];
    for (i, op) in program.ops.iter().enumerate() {
        visit(op, |t| {
            first[t.index()] = first[t.index()].min(i);
            // A norm may run together with the op that follows it.
            last[t.index()] = if matches!(op, Op::RmsNorm { .. }) { i + 1 } else { i };
        });
    }
    last[program.logits.index()] = usize::MAX;
    let mut slots = vec![0; count];
    // Slots in use: (last op that needs it).
    let mut busy_until: Vec<Option<usize>> = Vec::new();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|&t| first[t]);
    for t in order {
        let free = busy_until.iter().position(|until| until.is_none_or(|u| u < first[t]));
        let slot = free.unwrap_or_else(|| {
            busy_until.push(None);
            busy_until.len() - 1
        });
        busy_until[slot] = Some(last[t]);
        slots[t] = slot;
    }
    slots
}

fn visit(op: &Op, mut f: impl FnMut(Tensor)) {
    match op {
        Op::Embed { out, .. } => f(*out),
        Op::RmsNorm { x, out, .. } | Op::SelectOutputs { x, out } => {
            f(*x);
            f(*out);
        }
        Op::AddRmsNorm { x, residual, .. } => {
            f(*x);
            f(*residual);
        }
        Op::Linear { x, parts } => {
            f(*x);
            parts.iter().for_each(|p| f(p.out));
        }
        Op::GatedLinear { x, out, .. } => {
            f(*x);
            f(*out);
        }
        Op::Attention { q, k, v, out, .. } => {
            for t in [q, k, v, out] {
                f(*t);
            }
        }
    }
}
