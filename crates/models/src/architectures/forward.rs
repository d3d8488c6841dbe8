//! What forward passes are written with: a program's builder that knows a model's sizes and finds its weights.

use std::collections::HashMap;
use std::path::Path;

use marlin_backend::{
    AttentionSpec, BackendError, Norm, Program, ProgramBuilder, Tensor, Weight, WeightSource,
};

use crate::config::Config;
use crate::error::{At, ModelError};
use crate::tensor::TensorTable;

/// Puts a weight on a device.
pub type Place<'a> = &'a mut dyn FnMut(&WeightSource) -> Result<Weight, BackendError>;

/// A forward pass being recorded. Each weight is placed when it is first used.
pub(crate) struct Forward<'a> {
    pub(crate) config: &'a Config,
    path: &'a Path,
    tensors: &'a TensorTable,
    place: Place<'a>,
    placed: HashMap<String, Weight>,
    builder: ProgramBuilder,
}

type Result<T, E = ModelError> = std::result::Result<T, E>;

impl<'a> Forward<'a> {
    pub(crate) fn new(
        path: &'a Path,
        config: &'a Config,
        tensors: &'a TensorTable,
        place: Place<'a>,
    ) -> Self {
        let (placed, builder) = (HashMap::new(), ProgramBuilder::new());
        Self { config, path, tensors, place, placed, builder }
    }

    /// The residual stream at the start: scaled embeddings.
    pub(crate) fn embed(&mut self) -> Result<Tensor> {
        let table = self.matrix("token_embd", self.config.vocab, self.config.hidden)?;
        Ok(self.builder.embed(&table, self.config.embedding_scale))
    }

    /// `norm(x)` with the norm `part` of `layer`.
    pub(crate) fn rms_norm(&mut self, x: Tensor, layer: usize, part: &str) -> Result<Tensor> {
        let norm = self.norm(&block(layer, part), self.config.hidden)?;
        self.builder.rms_norm(x, &norm).map_err(|e| self.backend(e))
    }

    /// `residual += norm(x)` with the norm `part` of `layer`.
    pub(crate) fn add_rms_norm(
        &mut self,
        x: Tensor,
        layer: usize,
        part: &str,
        residual: Tensor,
    ) -> Result<()> {
        let norm = self.norm(&block(layer, part), self.config.hidden)?;
        self.builder.add_rms_norm(x, &norm, residual).map_err(|e| self.backend(e))
    }

    /// Attention of `layer` over `x`, before the output projection: `heads · head_dim` wide. Biases and norms of
    /// heads take part where the model has them.
    pub(crate) fn attention(&mut self, x: Tensor, layer: usize) -> Result<Tensor> {
        let Config { hidden, heads, kv_heads, head_dim, qk_norm, .. } = *self.config;
        let mut part = |name: &str, heads: usize| -> Result<(Weight, Option<Weight>)> {
            let name = block(layer, name);
            let weight = self.matrix(&name, heads * head_dim, hidden)?;
            Ok((weight, self.bias(&name, heads * head_dim)?))
        };
        let q = part("attn_q", heads)?;
        let k = part("attn_k", kv_heads)?;
        let v = part("attn_v", kv_heads)?;
        let head_norm = |forward: &mut Self, name: &str| -> Result<Option<Norm>> {
            let norm = || forward.norm(&block(layer, name), head_dim);
            qk_norm.then(norm).transpose()
        };
        let spec = AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            scale: self.config.attention_scale,
            window: self.config.window(layer),
            softcap: self.config.attention_softcap,
            rope: Some(self.config.rope(layer)),
            q_norm: head_norm(self, "attn_q_norm")?,
            k_norm: head_norm(self, "attn_k_norm")?,
        };
        let parts = [&q, &k, &v].map(|(weight, bias)| (weight, bias.as_ref()));
        let [q, k, v] = self.builder.linear(x, parts).map_err(|e| self.backend(e))?;
        self.builder.attention(q, k, v, &spec).map_err(|e| self.backend(e))
    }

    /// The output projection of attention, as a new tensor.
    pub(crate) fn attention_output(&mut self, x: Tensor, layer: usize) -> Result<Tensor> {
        let name = block(layer, "attn_output");
        self.linear(x, &name, self.config.hidden, self.config.heads * self.config.head_dim)
    }

    /// `residual +=` the output projection of attention.
    pub(crate) fn add_attention_output(
        &mut self,
        x: Tensor,
        layer: usize,
        residual: Tensor,
    ) -> Result<()> {
        let name = block(layer, "attn_output");
        let inner = self.config.heads * self.config.head_dim;
        self.linear_add(x, &name, self.config.hidden, inner, residual)
    }

    /// The gated inside of the feed-forward layer: `ffn` wide.
    pub(crate) fn gated(&mut self, x: Tensor, layer: usize) -> Result<Tensor> {
        let Config { hidden, ffn, activation, .. } = *self.config;
        let gate = self.matrix(&block(layer, "ffn_gate"), ffn, hidden)?;
        let up = self.matrix(&block(layer, "ffn_up"), ffn, hidden)?;
        self.builder.gated_linear(x, &gate, &up, activation).map_err(|e| self.backend(e))
    }

    /// The way back from the feed-forward layer, as a new tensor.
    pub(crate) fn down(&mut self, x: Tensor, layer: usize) -> Result<Tensor> {
        self.linear(x, &block(layer, "ffn_down"), self.config.hidden, self.config.ffn)
    }

    /// `residual +=` the way back from the feed-forward layer.
    pub(crate) fn add_down(&mut self, x: Tensor, layer: usize, residual: Tensor) -> Result<()> {
        let name = block(layer, "ffn_down");
        self.linear_add(x, &name, self.config.hidden, self.config.ffn, residual)
    }

    /// The end: logits of the tokens that they are wanted for. Refuses a model with weights that were not used.
    pub(crate) fn logits(mut self, x: Tensor) -> Result<Program> {
        let Config { hidden, vocab, tied_embeddings, .. } = *self.config;
        let outputs = self.builder.select_outputs(x);
        let norm = self.norm("output_norm", hidden)?;
        let normed = self.builder.rms_norm(outputs, &norm).map_err(|e| self.backend(e))?;
        let head = if tied_embeddings { "token_embd" } else { "output" };
        let head = self.matrix(head, vocab, hidden)?;
        let [logits] = self.builder.linear(normed, [(&head, None)]).map_err(|e| self.backend(e))?;
        self.check_all_used()?;
        let (path, softcap) = (self.path, self.config.logit_softcap);
        self.builder.finish(logits, softcap).map_err(|e| ModelError::backend(path, e))
    }

    /// A weight that nothing uses means that this is another architecture than the file says: going on would give
    /// plausible nonsense.
    fn check_all_used(&self) -> Result<()> {
        // A table of rotary frequencies that some old conversions kept; the configuration has what makes it.
        const DERIVED: [&str; 2] = ["attn_rot_embd.weight", "rotary_emb.inv_freq"];
        let unused = self.tensors.iter().find(|tensor| {
            tensor.name.starts_with("blk.")
                && !self.placed.contains_key(&tensor.name)
                && !DERIVED.iter().any(|name| tensor.name.ends_with(name))
        });
        match unused {
            None => Ok(()),
            Some(tensor) => {
                let name = self.config.architecture.name;
                let expected = format!("only weights that `{name}` uses");
                let at = At::tensor(&tensor.name);
                Err(ModelError::unsupported(&tensor.file, at, "this weight", expected))
            }
        }
    }

    fn linear(&mut self, x: Tensor, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        let weight = self.matrix(name, rows, cols)?;
        let bias = self.bias(name, rows)?;
        let parts = [(&weight, bias.as_ref())];
        let [out] = self.builder.linear(x, parts).map_err(|e| self.backend(e))?;
        Ok(out)
    }

    fn linear_add(
        &mut self,
        x: Tensor,
        name: &str,
        rows: usize,
        cols: usize,
        out: Tensor,
    ) -> Result<()> {
        let weight = self.matrix(name, rows, cols)?;
        let bias = self.bias(name, rows)?;
        self.builder.linear_add(x, &weight, bias.as_ref(), out).map_err(|e| self.backend(e))
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Norm> {
        let weight = self.weight(&format!("{name}.weight"), &[width])?;
        Ok(Norm { weight, eps: self.config.norm_eps, offset: self.config.norm_offset })
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        self.weight(&format!("{name}.weight"), &[rows, cols])
    }

    fn bias(&mut self, name: &str, width: usize) -> Result<Option<Weight>> {
        let name = format!("{name}.bias");
        match self.tensors.find(&name) {
            None => Ok(None),
            Some(_) => self.weight(&name, &[width]).map(Some),
        }
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Weight> {
        if let Some(weight) = self.placed.get(name) {
            return Ok(weight.clone());
        }
        let source = self.tensors.with_shape(name, shape)?.weight();
        let weight = (self.place)(&source).map_err(|e| self.backend(e))?;
        self.placed.insert(name.to_owned(), weight.clone());
        Ok(weight)
    }

    fn backend(&self, error: BackendError) -> ModelError {
        ModelError::backend(self.path, error)
    }
}

fn block(layer: usize, part: &str) -> String {
    format!("blk.{layer}.{part}")
}
