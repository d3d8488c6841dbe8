//! A forward pass as a list of ops, and the builder that architectures write it with.
//!
//! A decoder layer reads like this:
//!
//! ```ignore
//! let h = b.rms_norm(x, &norm(layer.attn_norm))?;
//! let [q, k, v] = b.linear(h, [(&layer.q, None), (&layer.k, None), (&layer.v, None)])?;
//! let a = b.attention(q, k, v, &spec)?;
//! b.linear_add(a, &layer.o, None, x)?;              // x += a · oᵀ
//! let h = b.rms_norm(x, &norm(layer.ffn_norm))?;
//! let m = b.gated_linear(h, &layer.gate, &layer.up, Activation::Silu)?;
//! b.linear_add(m, &layer.down, None, x)?;
//! ```

use std::sync::Arc;

use crate::{BackendError, Weight};

/// An activation tensor of a program: one row of `width` f32 values per token (or per
/// output token).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tensor(u32);

impl Tensor {
    /// Its index in [`Program::tensors`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One layer's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheId(u32);

impl CacheId {
    /// Its index in [`Program::caches`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How many rows a tensor has in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One per token of the batch.
    Tokens,
    /// One per token after which logits are wanted.
    Outputs,
}

/// The shape of an activation tensor.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// What it is, for the ledger: `attention.q`, `ffn.gated`, …
    pub name: &'static str,
    /// Values per row.
    pub width: usize,
    /// How many rows.
    pub rows: Rows,
}

/// The shape of one layer's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Positions that a query sees, itself included; `None` sees all.
    pub window: Option<usize>,
}

/// Root-mean-square normalisation (Zhang & Sennrich 2019):
/// `y = x / sqrt(mean(x²) + eps) · (offset + weight)`.
#[derive(Clone)]
pub struct Norm {
    /// One value per input value.
    pub weight: Weight,
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight: 1 for Gemma's safetensors files, otherwise 0.
    pub offset: f32,
}

/// Which values a rotary embedding rotates together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(x[2i], x[2i+1])`: the RoFormer paper, and GGUF files of `llama`.
    Interleaved,
    /// `(x[i], x[i + dims/2])`: GPT-NeoX, and Hugging Face's files.
    HalfSplit,
}

/// Rotary position embedding (Su et al. 2021, "RoFormer", eq. 34): pair `i` of a head is
/// turned by `position · inverse_frequencies[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// One angle per position step and pair, scaling (linear, Llama 3, …) already applied.
    /// Twice their number is how many leading values of a head are rotated.
    pub inverse_frequencies: Arc<[f32]>,
    /// Which values form a pair.
    pub style: RopeStyle,
    /// Factor on the rotated values (YaRN's attention factor); otherwise 1.
    pub magnitude: f32,
}

/// The non-linearity of a gated feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)` (SwiGLU, Shazeer 2020).
    Silu,
    /// GELU in its tanh approximation (Hendrycks & Gimpel 2016, §2).
    GeluTanh,
}

/// Everything about an attention layer but its inputs.
#[derive(Clone)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it (Ainslie et al. 2023, GQA).
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1/sqrt(head_dim)`.
    pub scale: f32,
    /// Positions that a query sees, itself included; `None` sees all earlier ones.
    pub window: Option<usize>,
    /// `softcap · tanh(score / softcap)` (Gemma 2); `None` leaves scores alone.
    pub softcap: Option<f32>,
    /// Rotary embedding of queries and keys.
    pub rope: Option<Rope>,
    /// Norm of each query head, before the rotary embedding (Qwen3, Gemma 3).
    pub q_norm: Option<Norm>,
    /// Norm of each key head, before the rotary embedding.
    pub k_norm: Option<Norm>,
}

/// One matrix of a linear op.
#[derive(Clone)]
pub struct LinearPart {
    /// `[out features, in features]`.
    pub weight: Weight,
    /// Added to the product.
    pub bias: Option<Weight>,
    /// Where the product goes.
    pub out: Tensor,
    /// Whether it is added to what `out` holds.
    pub accumulate: bool,
}

/// One operation of a step. Rows are tokens; all activations are f32.
#[derive(Clone)]
pub enum Op {
    /// `out[t] = scale · table[token id of t]`.
    Embed {
        /// `[vocabulary, hidden]`.
        table: Weight,
        /// Factor on the embedding (Gemma: `sqrt(hidden)`).
        scale: f32,
        /// Where the rows go.
        out: Tensor,
    },
    /// `out = norm(x)`.
    RmsNorm {
        /// Input.
        x: Tensor,
        /// Weight and epsilon.
        norm: Norm,
        /// Output, as wide as `x`.
        out: Tensor,
    },
    /// `residual += norm(x)` (the norms after attention and feed-forward of Gemma 2 and 3).
    AddRmsNorm {
        /// Input.
        x: Tensor,
        /// Weight and epsilon.
        norm: Norm,
        /// What it is added to.
        residual: Tensor,
    },
    /// `out = x · weightᵀ + bias` for each part; all parts read the same `x`.
    Linear {
        /// Input.
        x: Tensor,
        /// The matrices.
        parts: Vec<LinearPart>,
    },
    /// `out = activation(x · gateᵀ) · (x · upᵀ)`, value by value.
    GatedLinear {
        /// Input.
        x: Tensor,
        /// `[ffn, hidden]`.
        gate: Weight,
        /// `[ffn, hidden]`.
        up: Weight,
        /// Of the gate.
        activation: Activation,
        /// Output, `ffn` wide.
        out: Tensor,
    },
    /// Norms and rotates `q` and `k` in place, appends `k` and `v` to the cache, and writes
    /// `out = softmax(scale · q · Kᵀ + mask) · V` over each token's own sequence, causally.
    Attention {
        /// `heads · head_dim` wide; overwritten.
        q: Tensor,
        /// `kv_heads · head_dim` wide; overwritten.
        k: Tensor,
        /// `kv_heads · head_dim` wide.
        v: Tensor,
        /// `heads · head_dim` wide.
        out: Tensor,
        /// This layer's cache.
        cache: CacheId,
        /// The rest.
        spec: Box<AttentionSpec>,
    },
    /// Copies the rows of output tokens: `out[o] = x[token of o]`.
    SelectOutputs {
        /// Input, a row per token.
        x: Tensor,
        /// Output, a row per output token.
        out: Tensor,
    },
}

/// A forward pass, ready to be compiled by a backend.
#[derive(Clone)]
pub struct Program {
    /// The ops in order.
    pub ops: Vec<Op>,
    /// The activation tensors.
    pub tensors: Vec<TensorInfo>,
    /// The KV caches.
    pub caches: Vec<CacheInfo>,
    /// The logits: one row of vocabulary size per output token, from which the executor samples.
    pub logits: Tensor,
    /// Final logit softcap (Gemma 2): `cap · tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
}

/// Records a [`Program`], checking every shape as it goes.
#[derive(Default)]
pub struct ProgramBuilder {
    ops: Vec<Op>,
    tensors: Vec<TensorInfo>,
    caches: Vec<CacheInfo>,
}

impl ProgramBuilder {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    fn tensor(&mut self, name: &'static str, width: usize, rows: Rows) -> Tensor {
        self.tensors.push(TensorInfo { name, width, rows });
        Tensor(self.tensors.len() as u32 - 1)
    }

    fn info(&self, t: Tensor) -> &TensorInfo {
        &self.tensors[t.index()]
    }

    fn check_width(&self, t: Tensor, expected: usize) -> Result<(), BackendError> {
        let info = self.info(t);
        check(info.name, "values per row", info.width, expected)
    }

    fn check_norm(norm: &Norm, width: usize) -> Result<(), BackendError> {
        check(norm.weight.name(), "values", norm.weight.rows() * norm.weight.cols(), width)
    }

    fn check_linear(
        &self,
        x: Tensor,
        weight: &Weight,
        bias: Option<&Weight>,
    ) -> Result<(), BackendError> {
        check(weight.name(), "input features", weight.cols(), self.info(x).width)?;
        match bias {
            Some(b) => check(b.name(), "values", b.rows() * b.cols(), weight.rows()),
            None => Ok(()),
        }
    }

    /// The embedding of each token, times `scale`.
    pub fn embed(&mut self, table: &Weight, scale: f32) -> Tensor {
        let out = self.tensor("residual", table.cols(), Rows::Tokens);
        self.ops.push(Op::Embed { table: table.clone(), scale, out });
        out
    }

    /// `norm(x)` as a new tensor.
    ///
    /// # Errors
    /// If the norm's weight is not as wide as `x`.
    pub fn rms_norm(&mut self, x: Tensor, norm: &Norm) -> Result<Tensor, BackendError> {
        let TensorInfo { width, rows, .. } = *self.info(x);
        Self::check_norm(norm, width)?;
        let out = self.tensor("normed", width, rows);
        self.ops.push(Op::RmsNorm { x, norm: norm.clone(), out });
        Ok(out)
    }

    /// `residual += norm(x)`.
    ///
    /// # Errors
    /// If the widths differ.
    pub fn add_rms_norm(
        &mut self,
        x: Tensor,
        norm: &Norm,
        residual: Tensor,
    ) -> Result<(), BackendError> {
        let width = self.info(x).width;
        Self::check_norm(norm, width)?;
        self.check_width(residual, width)?;
        self.ops.push(Op::AddRmsNorm { x, norm: norm.clone(), residual });
        Ok(())
    }

    /// Products of `x` with several matrices (weight, bias), each as a new tensor.
    ///
    /// # Errors
    /// If a matrix or bias does not fit.
    pub fn linear<const N: usize>(
        &mut self,
        x: Tensor,
        parts: [(&Weight, Option<&Weight>); N],
    ) -> Result<[Tensor; N], BackendError> {
        let rows = self.info(x).rows;
        let mut outs = [Tensor(0); N];
        let mut list = Vec::with_capacity(N);
        for (slot, (weight, bias)) in outs.iter_mut().zip(parts) {
            self.check_linear(x, weight, bias)?;
            let out = self.tensor("linear", weight.rows(), rows);
            *slot = out;
            let (weight, bias) = (weight.clone(), bias.cloned());
            list.push(LinearPart { weight, bias, out, accumulate: false });
        }
        self.ops.push(Op::Linear { x, parts: list });
        Ok(outs)
    }

    /// `out += x · weightᵀ + bias`.
    ///
    /// # Errors
    /// If the matrix, bias or `out` does not fit.
    pub fn linear_add(
        &mut self,
        x: Tensor,
        weight: &Weight,
        bias: Option<&Weight>,
        out: Tensor,
    ) -> Result<(), BackendError> {
        self.check_linear(x, weight, bias)?;
        self.check_width(out, weight.rows())?;
        let (weight, bias) = (weight.clone(), bias.cloned());
        let parts = vec![LinearPart { weight, bias, out, accumulate: true }];
        self.ops.push(Op::Linear { x, parts });
        Ok(())
    }

    /// `activation(x · gateᵀ) · (x · upᵀ)` as a new tensor.
    ///
    /// # Errors
    /// If a matrix does not fit.
    pub fn gated_linear(
        &mut self,
        x: Tensor,
        gate: &Weight,
        up: &Weight,
        activation: Activation,
    ) -> Result<Tensor, BackendError> {
        self.check_linear(x, gate, None)?;
        self.check_linear(x, up, None)?;
        check(up.name(), "output features", up.rows(), gate.rows())?;
        let out = self.tensor("gated", gate.rows(), self.info(x).rows);
        let (gate, up) = (gate.clone(), up.clone());
        self.ops.push(Op::GatedLinear { x, gate, up, activation, out });
        Ok(out)
    }

    /// Attention over this layer's own cache, as a new tensor `heads · head_dim` wide.
    ///
    /// # Errors
    /// If the heads do not divide, or a width or norm does not fit.
    pub fn attention(
        &mut self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: &AttentionSpec,
    ) -> Result<Tensor, BackendError> {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = *spec;
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
            return Err(BackendError::Shape {
                name: "attention".into(),
                what: "query heads, not a multiple of its key heads",
                found: heads,
                expected: kv_heads,
            });
        }
        self.check_width(q, heads * head_dim)?;
        self.check_width(k, kv_heads * head_dim)?;
        self.check_width(v, kv_heads * head_dim)?;
        for norm in [&spec.q_norm, &spec.k_norm].into_iter().flatten() {
            Self::check_norm(norm, head_dim)?;
        }
        if let Some(rope) = &spec.rope
            && rope.inverse_frequencies.len() * 2 > head_dim
        {
            return Err(BackendError::Shape {
                name: "rope".into(),
                what: "rotated values per head, more than the head has",
                found: rope.inverse_frequencies.len() * 2,
                expected: head_dim,
            });
        }
        self.caches.push(CacheInfo { kv_heads, head_dim, window: spec.window });
        let cache = CacheId(self.caches.len() as u32 - 1);
        let out = self.tensor("attention", heads * head_dim, Rows::Tokens);
        self.ops.push(Op::Attention { q, k, v, out, cache, spec: Box::new(spec.clone()) });
        Ok(out)
    }

    /// The rows of the tokens after which logits are wanted.
    pub fn select_outputs(&mut self, x: Tensor) -> Tensor {
        let out = self.tensor("outputs", self.info(x).width, Rows::Outputs);
        self.ops.push(Op::SelectOutputs { x, out });
        out
    }

    /// The end: `logits` is what the executor samples from.
    ///
    /// # Errors
    /// If `logits` has a row per token instead of one per output.
    pub fn finish(
        self,
        logits: Tensor,
        logit_softcap: Option<f32>,
    ) -> Result<Program, BackendError> {
        if self.info(logits).rows != Rows::Outputs {
            return Err(BackendError::Unsupported {
                backend: "a program",
                what: "logits for tokens that `select_outputs` did not select".into(),
            });
        }
        let Self { ops, tensors, caches } = self;
        Ok(Program { ops, tensors, caches, logits, logit_softcap })
    }
}

fn check(
    name: &str,
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), BackendError> {
    if found == expected {
        return Ok(());
    }
    Err(BackendError::Shape { name: name.into(), what, found, expected })
}
