//! Memory for a program's activation tensors: tensors that never live at the same time
//! share a buffer.

use marlin_backend::{BackendError, Op, Program, Rows, Tensor, TensorInfo, assign_slots};
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

    /// The buffer that a tensor is in.
    pub(super) fn buffer(&self, tensor: Tensor) -> &Buffer {
        &self.buffers[self.slots[tensor.index()]]
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
    let mut lifetimes = program.lifetimes();
    for (i, op) in program.ops.iter().enumerate() {
        if let Op::RmsNorm { .. } = op {
            // A norm may run together with the op that follows it.
            op.visit_tensors(|t| {
                let life = &mut lifetimes[t.index()];
                life.end = life.end.max(i + 2);
            });
        }
    }
    assign_slots(&lifetimes)
}
