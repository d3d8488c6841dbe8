//! Configurations from GGUF metadata (`<architecture>.*`).

use marlin_backend::Activation;

use super::{Config, Field, Hyperparameters, RopeConfig, RopeScaling, WindowedLayers, check};
use crate::architectures::{self, Architecture};
use crate::error::{At, ModelError};
use crate::gguf::Metadata;
use crate::tensor::TensorTable;

const ARCHITECTURE: &str = "general.architecture";
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The keys of one architecture.
#[derive(Debug)]
pub(crate) struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    pub(crate) fn integer<T: TryFrom<i128>>(&self, name: &str) -> Result<Option<T>, ModelError> {
        self.metadata.integer(&self.key(name))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<f32>, ModelError> {
        self.metadata.number(&self.key(name))
    }

    fn required(&self, name: &str, what: &str) -> Result<usize, ModelError> {
        self.integer(name)?.ok_or_else(|| self.metadata.missing(&self.key(name), what))
    }

    /// A number that may be given once for all layers or for each; only the same for each is supported.
    fn uniform(&self, name: &str) -> Result<Option<usize>, ModelError> {
        let key = self.key(name);
        if !matches!(self.metadata.get(&key), Some(crate::gguf::Value::Array { .. })) {
            return self.integer(name);
        }
        let mut per_layer = self.metadata.numbers(&key)?.into_iter().flatten();
        let first = per_layer.next();
        if per_layer.any(|other| Some(other) != first) {
            return Err(self.metadata.unsupported(&key, "the same number for every layer"));
        }
        Ok(first.filter(|&n| n >= 0.0).map(|n| n as usize))
    }

    /// `attention.sliding_window_pattern`: a period, or a truth value per layer.
    pub(crate) fn window_pattern(&self) -> Result<Option<WindowedLayers>, ModelError> {
        let name = "attention.sliding_window_pattern";
        let key = self.key(name);
        if matches!(self.metadata.get(&key), Some(crate::gguf::Value::Array { .. })) {
            let layers = self.metadata.numbers(&key)?.into_iter().flatten();
            return Ok(Some(WindowedLayers::Listed(layers.map(|layer| layer != 0.0).collect())));
        }
        Ok(self.integer(name)?.map(WindowedLayers::AllBut))
    }
}

pub(super) fn read(metadata: &Metadata, tensors: &TensorTable) -> Result<Config, ModelError> {
    let name = metadata
        .string(ARCHITECTURE)?
        .ok_or_else(|| metadata.missing(ARCHITECTURE, "the model's architecture"))?;
    let architecture = Architecture::by_gguf_name(name).ok_or_else(|| {
        let names: Vec<&str> = architectures::ALL.iter().map(|a| a.name).collect();
        metadata.unsupported(ARCHITECTURE, format!("one of {}", names.join(", ")))
    })?;
    let keys = Keys { metadata, architecture: architecture.name };
    if keys.integer::<u64>("expert_count")?.is_some_and(|experts| experts > 0) {
        return Err(metadata.unsupported(&keys.key("expert_count"), "a model without experts"));
    }

    let hidden = keys.required("embedding_length", "the width of the model")?;
    let heads = keys.uniform("attention.head_count")?.ok_or_else(|| {
        metadata.missing(&keys.key("attention.head_count"), "the number of heads")
    })?;
    let head_dim = match keys.integer("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    if keys.integer("attention.value_length")?.is_some_and(|length: usize| length != head_dim) {
        let key = keys.key("attention.value_length");
        return Err(metadata.unsupported(&key, format!("{head_dim}, the length of a key")));
    }
    let eps = "attention.layer_norm_rms_epsilon";
    let mut config = Config {
        architecture,
        layers: keys.required("block_count", "the number of layers")?,
        hidden,
        heads,
        kv_heads: keys.uniform("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: keys.uniform("feed_forward_length")?.ok_or_else(|| {
            metadata
                .missing(&keys.key("feed_forward_length"), "the width of the feed-forward layer")
        })?,
        vocab: vocabulary_size(metadata, tensors)?,
        context: keys.required("context_length", "the trained context")?,
        norm_eps: keys
            .number(eps)?
            .ok_or_else(|| metadata.missing(&keys.key(eps), "the epsilon of the norms"))?,
        norm_offset: 0.0,
        rope: RopeConfig {
            style: architecture.gguf_rope_style,
            dims: keys.integer("rope.dimension_count")?.unwrap_or(head_dim),
            theta: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
            scaling: RopeScaling::None,
            local_theta: None,
        },
        window: None,
        attention_scale: (head_dim as f32).sqrt().recip(),
        attention_softcap: keys.number("attn_logit_softcapping")?.filter(|&cap| cap > 0.0),
        logit_softcap: keys.number("final_logit_softcapping")?.filter(|&cap| cap > 0.0),
        embedding_scale: 1.0,
        activation: Activation::Silu,
        tied_embeddings: tensors.find("output.weight").is_none(),
        qkv_bias: false,
        qk_norm: false,
    };
    config.rope.scaling = rope_scaling(&keys, tensors, &config)?;
    (architecture.configure)(&mut config, &Hyperparameters::Gguf(Keys { metadata, ..keys }))?;
    check(&config, |field, expected| {
        let key = match field {
            Field::Vocab => "tokenizer.ggml.tokens".to_owned(),
            field => keys.key(key_of(field)),
        };
        metadata.unexpected(&key, expected)
    })?;
    Ok(config)
}

fn key_of(field: Field) -> &'static str {
    match field {
        Field::Layers => "block_count",
        Field::Hidden => "embedding_length",
        Field::Heads => "attention.head_count",
        Field::KvHeads => "attention.head_count_kv",
        Field::HeadDim => "attention.key_length",
        Field::Ffn => "feed_forward_length",
        Field::Vocab => "vocab_size",
        Field::Context => "context_length",
        Field::NormEps => "attention.layer_norm_rms_epsilon",
        Field::RopeDims => "rope.dimension_count",
        Field::RopeTheta => "rope.freq_base",
    }
}

fn vocabulary_size(metadata: &Metadata, tensors: &TensorTable) -> Result<usize, ModelError> {
    if let Some(embedding) = tensors.find("token_embd.weight") {
        return Ok(embedding.rows());
    }
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    Ok(tokens.map_or(0, |tokens| tokens.len()))
}

fn rope_scaling(
    keys: &Keys<'_>,
    tensors: &TensorTable,
    config: &Config,
) -> Result<RopeScaling, ModelError> {
    let metadata = keys.metadata;
    if let Some(tensor) = tensors.find(ROPE_FACTORS) {
        let expected = [config.rope.dims / 2];
        if tensor.format != marlin_formats::Format::F32 || tensor.shape != expected {
            let found = format!("{} {:?}", tensor.format, tensor.shape);
            let expected = format!("f32 {expected:?}");
            return Err(ModelError::invalid(
                &tensor.file,
                At::tensor(ROPE_FACTORS),
                found,
                expected,
            ));
        }
        let factors = tensor.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        return Ok(RopeScaling::PerDimension { factors: factors.collect() });
    }
    let type_key = keys.key("rope.scaling.type");
    let factor = match keys.number("rope.scaling.factor")? {
        None => keys.number("rope.scale_linear")?,
        factor => factor,
    };
    // 0 stands for "not given", as in llama.cpp.
    let factor = factor.filter(|&factor| factor != 0.0);
    if factor.is_some_and(|factor| factor <= 0.0) {
        return Err(metadata.unexpected(&keys.key("rope.scaling.factor"), "a positive number"));
    }
    match (metadata.string(&type_key)?, factor) {
        (Some("none"), _) | (_, None) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
        (Some("yarn"), Some(factor)) => {
            let original = keys.number("rope.scaling.original_context_length")?;
            Ok(RopeScaling::Yarn {
                factor,
                original: original.unwrap_or(config.context as f32),
                beta_fast: keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: keys.number("rope.scaling.yarn_attn_factor")?,
            })
        }
        (Some(_), Some(_)) => Err(metadata.unsupported(&type_key, "none, linear or yarn")),
    }
}
