//! From a program's ops to the stages that threads run between barriers.

use marlin_backend::{
    Activation, AttentionSpec, BackendError, Norm, Op, Program, Rope, Rows, Tensor, Weight,
};
use marlin_formats::tile::{TileLayout, TileMin};
use marlin_placement::{Direction, Ledger, Tally};

use crate::isa::{AppendKernel, AttendKernel, CodeKind, FloatKernel, Kernels, TileKernel};
use crate::kernels::quantise::{BLOCK, Bias};
use crate::kernels::tile::{has_bias, table_offset};
use crate::memory::Buffer;
use crate::weight::{CpuWeight, Storage, downcast};

/// A norm with its weight as f32.
pub(super) struct NormPlan {
    pub(super) weight: Buffer,
    pub(super) eps: f32,
    pub(super) offset: f32,
}

/// How one matrix is multiplied.
pub(super) enum Product {
    /// Quantised, with quantised activations.
    Tiles {
        kernel: TileKernel,
        layout: TileLayout,
        packed: Packed,
        /// Which of the stage's biases it needs.
        bias: Option<usize>,
        /// Groups of 16 columns.
        halves: bool,
    },
    /// Floats.
    Float { kernel: FloatKernel },
}

/// Where a matrix's tiles are.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    start: *const u8,
    tile_bytes: usize,
}

// SAFETY: tiles are written when the weight is placed and only read from then on; the plan that
// has the pointer also has the weight.
unsafe impl Send for Packed {}
// SAFETY: as above.
unsafe impl Sync for Packed {}

impl Packed {
    /// The start of tile `tile`, which may be past the end.
    pub(super) fn tile(&self, tile: usize) -> *const u8 {
        self.start.wrapping_add(tile * self.tile_bytes)
    }
}

/// One matrix of a linear stage. The weight is kept alive by `weight`.
pub(super) struct MatrixPlan {
    pub(super) weight: Weight,
    pub(super) product: Product,
    /// Padded with zeros to whole tiles.
    pub(super) bias: Option<Buffer>,
    pub(super) out: Tensor,
    pub(super) accumulate: bool,
    pub(super) rows: usize,
    /// Tiles of 16 rows.
    pub(super) tiles: usize,
    /// Bytes of a tile, or of 16 rows of floats.
    pub(super) tile_bytes: usize,
}

impl MatrixPlan {
    pub(super) fn storage(&self) -> &Storage {
        // The plan was made from this very weight by `downcast`.
        match self.weight.as_any().downcast_ref::<CpuWeight>() {
            Some(weight) => &weight.storage,
            None => unreachable!("a planned weight is this backend's"),
        }
    }
}

/// What a linear stage does with the products of a tile.
pub(super) enum Combine {
    /// Each matrix has its own output.
    Separate,
    /// Two matrices: `activation(first) · second` into the first's output.
    Gated(Activation),
}

/// Matrices that read the same input.
pub(super) struct LinearPlan {
    pub(super) x: Tensor,
    pub(super) norm: Option<NormPlan>,
    pub(super) matrices: Vec<MatrixPlan>,
    pub(super) combine: Combine,
    /// The forms in which the input's sums are needed.
    pub(super) biases: Vec<Bias>,
    pub(super) cols: usize,
    pub(super) any_quantised: bool,
    /// Whether any matrix has groups of 16 columns.
    pub(super) any_halves: bool,
    pub(super) any_float: bool,
}

/// An attention stage.
pub(super) struct AttentionPlan {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) out: Tensor,
    pub(super) cache: usize,
    pub(super) spec: AttentionSpec,
    pub(super) q_norm: Option<NormPlan>,
    pub(super) k_norm: Option<NormPlan>,
    /// Which of the step's tables of rotations.
    pub(super) rope: Option<usize>,
    pub(super) append: AppendKernel,
    pub(super) attend: AttendKernel,
}

/// What threads do between two barriers.
pub(super) enum StageKind {
    Embed { table: Weight, scale: f32, out: Tensor },
    Norm { x: Tensor, norm: NormPlan, out: Tensor },
    AddNorm { x: Tensor, norm: NormPlan, residual: Tensor },
    Linear(LinearPlan),
    Attention(Box<AttentionPlan>),
    Select { x: Tensor, out: Tensor },
}

/// A stage and its counter.
pub(super) struct Stage {
    pub(super) kind: StageKind,
    pub(super) tally: Tally,
}

/// Everything that follows from the program alone.
pub(super) struct Plan {
    pub(super) stages: Vec<Stage>,
    /// Distinct rotary embeddings.
    pub(super) ropes: Vec<Rope>,
    /// Greatest `cols` of a linear stage.
    pub(super) max_cols: usize,
    /// Greatest number of biases of a linear stage.
    pub(super) max_biases: usize,
    /// Whether any linear stage multiplies with quantised activations.
    pub(super) any_quantised: bool,
    /// Whether any of those has groups of 16 columns.
    pub(super) any_halves: bool,
    /// Whether any linear stage norms its input.
    pub(super) any_norm: bool,
    /// Greatest number of f32 that a tile's expanded header takes.
    pub(super) max_header: usize,
    /// Greatest number of bytes that a tile's codes take, unpacked for a matrix unit.
    pub(super) max_unpacked: usize,
    /// Rows of the embedding table: token ids are below it.
    pub(super) vocabulary: usize,
    /// Bytes of the file that one token reads.
    pub(super) weight_bytes: u64,
    /// Multiply-adds of one token, without the output head and attention.
    pub(super) multiply_adds: u64,
}

impl Plan {
    pub(super) fn new(
        program: &Program,
        kernels: &Kernels,
        kv: usize,
        ledger: &Ledger,
    ) -> Result<Self, BackendError> {
        let mut plan = Self {
            stages: Vec::new(),
            ropes: Vec::new(),
            max_cols: 0,
            max_biases: 0,
            any_quantised: false,
            any_halves: false,
            any_norm: false,
            max_header: 0,
            max_unpacked: 0,
            vocabulary: usize::MAX,
            weight_bytes: 0,
            multiply_adds: 0,
        };
        let mut skip = false;
        for (i, op) in program.ops.iter().enumerate() {
            if std::mem::take(&mut skip) {
                continue;
            }
            // A norm whose only reader is the linear op right after it becomes part of
            // that op's input: one barrier and one pass over memory less.
            let fused = match op {
                Op::RmsNorm { x, norm, out } => program
                    .ops
                    .get(i + 1)
                    .filter(|next| reads_only(next, *out) && !read_later(program, i + 2, *out))
                    .map(|next| (next, Some(norm), *x)),
                _ => None,
            };
            let (op, norm, input) = match fused {
                Some((next, norm, x)) => {
                    skip = true;
                    (next, norm, Some(x))
                }
                None => (op, None, None),
            };
            let stage = plan.stage(program, op, norm, input, kernels, kv, ledger)?;
            plan.stages.push(stage);
        }
        Ok(plan)
    }

    #[allow(clippy::too_many_arguments, reason = "one call, from `new`")]
    fn stage(
        &mut self,
        program: &Program,
        op: &Op,
        norm: Option<&Norm>,
        input: Option<Tensor>,
        kernels: &Kernels,
        kv: usize,
        ledger: &Ledger,
    ) -> Result<Stage, BackendError> {
        let rows = |t: Tensor| program.tensors[t.index()].rows;
        Ok(match op {
            Op::Embed { table, scale, out } => {
                let weight = downcast(table)?;
                // One row of the table.
                self.weight_bytes += weight.row_bytes();
                self.vocabulary = self.vocabulary.min(table.rows());
                let (table, scale, out) = (table.clone(), *scale, *out);
                let kind = StageKind::Embed { table, scale, out };
                Stage { kind, tally: ledger.dispatches("embed") }
            }
            Op::RmsNorm { x, norm, out } => {
                let kind = StageKind::Norm { x: *x, norm: norm_plan(norm, ledger)?, out: *out };
                Stage { kind, tally: ledger.dispatches("rms_norm") }
            }
            Op::AddRmsNorm { x, norm, residual } => {
                let norm = norm_plan(norm, ledger)?;
                let kind = StageKind::AddNorm { x: *x, norm, residual: *residual };
                Stage { kind, tally: ledger.dispatches("add_rms_norm") }
            }
            Op::Linear { x, parts } => {
                let x = input.unwrap_or(*x);
                let mut linear = LinearPlan::new(x, norm, Combine::Separate, ledger)?;
                for part in parts {
                    let bias = part.bias.as_ref();
                    linear.push(&part.weight, bias, part.out, part.accumulate, kernels, ledger)?;
                }
                self.account(&linear, rows(x), kernels);
                Stage { kind: StageKind::Linear(linear), tally: ledger.dispatches("linear") }
            }
            Op::GatedLinear { x, gate, up, activation, out } => {
                let x = input.unwrap_or(*x);
                let mut linear = LinearPlan::new(x, norm, Combine::Gated(*activation), ledger)?;
                linear.push(gate, None, *out, false, kernels, ledger)?;
                linear.push(up, None, *out, false, kernels, ledger)?;
                self.account(&linear, rows(x), kernels);
                let kind = StageKind::Linear(linear);
                Stage { kind, tally: ledger.dispatches("gated_linear") }
            }
            Op::Attention { q, k, v, out, cache, spec } => {
                let rope = spec.rope.as_ref().map(|rope| {
                    let known = self.ropes.iter().position(|r| r == rope);
                    known.unwrap_or_else(|| {
                        self.ropes.push(rope.clone());
                        self.ropes.len() - 1
                    })
                });
                let plan = AttentionPlan {
                    q: *q,
                    k: *k,
                    v: *v,
                    out: *out,
                    cache: cache.index(),
                    spec: (**spec).clone(),
                    q_norm: spec.q_norm.as_ref().map(|n| norm_plan(n, ledger)).transpose()?,
                    k_norm: spec.k_norm.as_ref().map(|n| norm_plan(n, ledger)).transpose()?,
                    rope,
                    append: kernels.append[kv],
                    attend: kernels.attend[kv],
                };
                let kind = StageKind::Attention(Box::new(plan));
                Stage { kind, tally: ledger.dispatches("attention") }
            }
            Op::SelectOutputs { x, out } => Stage {
                kind: StageKind::Select { x: *x, out: *out },
                tally: ledger.dispatches("select_outputs"),
            },
        })
    }

    fn account(&mut self, linear: &LinearPlan, rows: Rows, kernels: &Kernels) {
        self.max_cols = self.max_cols.max(linear.cols);
        self.max_biases = self.max_biases.max(linear.biases.len());
        self.any_quantised |= linear.any_quantised;
        self.any_halves |= linear.any_halves;
        self.any_norm |= linear.norm.is_some();
        for matrix in &linear.matrices {
            self.weight_bytes += matrix.weight.file_bytes();
            if rows == Rows::Tokens {
                self.multiply_adds += (matrix.weight.rows() * matrix.weight.cols()) as u64;
            }
            if let Storage::Tiles { layout, .. } = matrix.storage() {
                self.max_header = self.max_header.max(2 * layout.groups() * 16);
                if kernels.has_matrix_unit() {
                    self.max_unpacked = self.max_unpacked.max(16 * layout.padded_cols);
                }
            }
        }
    }
}

impl LinearPlan {
    fn new(
        x: Tensor,
        norm: Option<&Norm>,
        combine: Combine,
        ledger: &Ledger,
    ) -> Result<Self, BackendError> {
        Ok(Self {
            x,
            norm: norm.map(|norm| norm_plan(norm, ledger)).transpose()?,
            matrices: Vec::new(),
            combine,
            biases: Vec::new(),
            cols: 0,
            any_quantised: false,
            any_halves: false,
            any_float: false,
        })
    }

    fn push(
        &mut self,
        weight: &Weight,
        bias: Option<&Weight>,
        out: Tensor,
        accumulate: bool,
        kernels: &Kernels,
        ledger: &Ledger,
    ) -> Result<(), BackendError> {
        let placed = downcast(weight)?;
        self.cols = weight.cols();
        let product = match &placed.storage {
            Storage::Tiles { layout, packed } => {
                self.any_quantised = true;
                let halves = layout.group % BLOCK != 0;
                self.any_halves |= halves;
                let offset = layout.table.map_or(layout.offset, table_offset);
                let min = layout.min != TileMin::None;
                let needs_bias = has_bias(layout.bits, min, kernels.signed_8bit);
                let bias = needs_bias.then(|| {
                    let wanted = Bias { offset, halves };
                    let known = self.biases.iter().position(|b| *b == wanted);
                    known.unwrap_or_else(|| {
                        self.biases.push(wanted);
                        self.biases.len() - 1
                    })
                });
                let kernel = (kernels.tile)(CodeKind::of(layout), halves, min);
                let packed = Packed { start: packed.as_ptr(), tile_bytes: layout.tile_bytes() };
                Product::Tiles { kernel, layout: *layout, packed, bias, halves }
            }
            Storage::Float { kind, .. } => {
                self.any_float = true;
                Product::Float { kernel: (kernels.float)(*kind) }
            }
        };
        let rows = weight.rows();
        let tiles = rows.div_ceil(16);
        let bias = bias.map(|bias| vector(bias, 16 * tiles, ledger)).transpose()?;
        let tile_bytes = match &placed.storage {
            Storage::Tiles { layout, .. } => layout.tile_bytes(),
            Storage::Float { data, .. } => data.len() / tiles.max(1),
        };
        let weight = weight.clone();
        self.matrices.push(MatrixPlan {
            weight,
            product,
            bias,
            out,
            accumulate,
            rows,
            tiles,
            tile_bytes,
        });
        Ok(())
    }
}

fn norm_plan(norm: &Norm, ledger: &Ledger) -> Result<NormPlan, BackendError> {
    let weight = vector(&norm.weight, norm.weight.cols().max(norm.weight.rows()), ledger)?;
    Ok(NormPlan { weight, eps: norm.eps, offset: norm.offset })
}

/// A vector of the model as f32, padded with zeros to `len` values.
fn vector(weight: &Weight, len: usize, ledger: &Ledger) -> Result<Buffer, BackendError> {
    let mut values = downcast(weight)?.vector();
    values.resize(values.len().max(len), 0.0);
    ledger.copies(Direction::HostToHost, "norms and biases as f32").record(weight.file_bytes());
    Buffer::of_floats(ledger, format!("{}.f32", weight.name()), &values)
}

/// Whether `op` is a linear op with `tensor` as its input.
fn reads_only(op: &Op, tensor: Tensor) -> bool {
    match op {
        Op::Linear { x, .. } | Op::GatedLinear { x, .. } => *x == tensor,
        _ => false,
    }
}

/// Whether an op from `from` on reads `tensor` (each tensor is written before it is read).
fn read_later(program: &Program, from: usize, tensor: Tensor) -> bool {
    program.ops[from..].iter().any(|op| match op {
        Op::Embed { .. } => false,
        Op::RmsNorm { x, .. } | Op::AddRmsNorm { x, .. } | Op::SelectOutputs { x, .. } => {
            *x == tensor
        }
        Op::Linear { x, .. } | Op::GatedLinear { x, .. } => *x == tensor,
        Op::Attention { q, k, v, .. } => [*q, *k, *v].contains(&tensor),
    })
}
