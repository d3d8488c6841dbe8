//! What a model is like: one description for all architectures and both kinds of file.

mod gguf;
mod hugging_face;
mod rope;

use marlin_backend::{Activation, Rope};

use crate::architectures::Architecture;
use crate::error::ModelError;
use crate::hf::json::Fields;
use crate::tensor::TensorTable;
pub(crate) use gguf::Keys;
pub use rope::{RopeConfig, RopeScaling};

/// Sizes and constants of a model.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which forward pass it has.
    pub architecture: &'static Architecture,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Rows of the embedding; may be more than the tokenizer's tokens.
    pub vocab: usize,
    /// Positions that the model was trained for.
    pub context: usize,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// Added to every norm's weight: 1 for Gemma's Hugging Face files, otherwise 0.
    pub norm_offset: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Sliding-window attention, if some layers have it.
    pub window: Option<SlidingWindow>,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// `cap · tanh(score / cap)` on attention scores.
    pub attention_softcap: Option<f32>,
    /// `cap · tanh(logit / cap)` on logits.
    pub logit_softcap: Option<f32>,
    /// Factor on embeddings.
    pub embedding_scale: f32,
    /// Of the gate of the feed-forward layer.
    pub activation: Activation,
    /// Whether the embedding is also the output projection.
    pub tied_embeddings: bool,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether query and key heads are normed.
    pub qk_norm: bool,
}

/// Attention that sees only the latest positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Positions that a query sees, itself included.
    pub size: usize,
    /// The layers that it holds for.
    pub layers: WindowedLayers,
}

/// Which layers have a sliding window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WindowedLayers {
    /// All of them.
    All,
    /// All but every n-th: layer `l` has none if `(l + 1) % n == 0`.
    AllBut(usize),
    /// Those from this one on.
    From(usize),
    /// Those that are listed as `true`.
    Listed(Vec<bool>),
}

impl SlidingWindow {
    /// A window of `size` positions; none for a size that is absent or 0.
    pub(crate) fn new(size: Option<usize>, layers: WindowedLayers) -> Option<Self> {
        size.filter(|&size| size > 0).map(|size| Self { size, layers })
    }

    fn holds_for(&self, layer: usize) -> bool {
        match &self.layers {
            WindowedLayers::All => true,
            WindowedLayers::AllBut(n) => *n == 0 || !(layer + 1).is_multiple_of(*n),
            WindowedLayers::From(first) => layer >= *first,
            WindowedLayers::Listed(layers) => layers.get(layer).copied().unwrap_or(false),
        }
    }
}

impl Config {
    /// Positions that a query of `layer` sees, itself included; `None` for all earlier ones.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.window.as_ref().filter(|window| window.holds_for(layer)).map(|window| window.size)
    }

    /// The rotary embedding of `layer`: windowed layers may have a base of their own.
    pub fn rope(&self, layer: usize) -> Rope {
        match self.rope.local_theta.filter(|_| self.window(layer).is_some()) {
            Some(theta) => self.rope.unscaled(theta),
            None => self.rope.scaled(),
        }
    }

    /// Sets what shows in the tensors rather than in the configuration.
    fn look_at(&mut self, tensors: &TensorTable) {
        self.qkv_bias = tensors.find("blk.0.attn_q.bias").is_some();
    }
}

/// Where a configuration comes from, for what an architecture reads by itself.
#[derive(Debug)]
pub(crate) enum Hyperparameters<'a> {
    Gguf(Keys<'a>),
    HuggingFace(Fields<'a>),
}

/// Largest size of anything that is not a vocabulary or a context: keeps every product of two within 64 bits and
/// is some hundred times what exists.
const MAX_SIZE: usize = 1 << 24;
/// Largest vocabulary and context.
const MAX_COUNT: usize = 1 << 31;

/// Checks that hold however a configuration was read; `wrong` makes the error about a field, by the field's canonical
/// name.
fn check(config: &Config, wrong: impl Fn(Field, String) -> ModelError) -> Result<(), ModelError> {
    for (field, size, largest) in [
        (Field::Layers, config.layers, MAX_SIZE),
        (Field::Hidden, config.hidden, MAX_SIZE),
        (Field::Heads, config.heads, MAX_SIZE),
        (Field::KvHeads, config.kv_heads, MAX_SIZE),
        (Field::HeadDim, config.head_dim, MAX_SIZE),
        (Field::Ffn, config.ffn, MAX_SIZE),
        (Field::Vocab, config.vocab, MAX_COUNT),
        (Field::Context, config.context, MAX_COUNT),
    ] {
        if !(1..=largest).contains(&size) {
            return Err(wrong(field, format!("a number from 1 to {largest}, found {size}")));
        }
    }
    if !config.heads.is_multiple_of(config.kv_heads) {
        let expected = format!("a divisor of the {} query heads", config.heads);
        return Err(wrong(Field::KvHeads, format!("{expected}, found {}", config.kv_heads)));
    }
    if !(config.norm_eps.is_finite() && config.norm_eps >= 0.0) {
        return Err(wrong(Field::NormEps, "a small positive number".into()));
    }
    let RopeConfig { dims, theta, local_theta, .. } = config.rope;
    if dims == 0 || !dims.is_multiple_of(2) || dims > config.head_dim {
        let expected = format!("an even number up to the {} values of a head", config.head_dim);
        return Err(wrong(Field::RopeDims, format!("{expected}, found {dims}")));
    }
    for theta in [Some(theta), local_theta].into_iter().flatten() {
        if !(theta.is_finite() && theta > 1.0) {
            return Err(wrong(Field::RopeTheta, format!("a number above 1, found {theta}")));
        }
    }
    Ok(())
}

/// A field that [`check`] looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Layers,
    Hidden,
    Heads,
    KvHeads,
    HeadDim,
    Ffn,
    Vocab,
    Context,
    NormEps,
    RopeDims,
    RopeTheta,
}

/// A configuration from the metadata of a GGUF file.
pub(crate) fn from_gguf(
    metadata: &crate::gguf::Metadata,
    tensors: &TensorTable,
) -> Result<Config, ModelError> {
    let mut config = gguf::read(metadata, tensors)?;
    config.look_at(tensors);
    Ok(config)
}

/// A configuration from `config.json`, of an architecture that [`hugging_face_architecture`] found.
pub(crate) fn from_hugging_face(
    architecture: &'static Architecture,
    fields: &Fields<'_>,
    tensors: &TensorTable,
) -> Result<Config, ModelError> {
    let mut config = hugging_face::read(architecture, fields)?;
    config.tied_embeddings |= tensors.find("output.weight").is_none();
    config.look_at(tensors);
    Ok(config)
}

pub(crate) use hugging_face::architecture as hugging_face_architecture;
