//! Configurations from Hugging Face's `config.json`, as published checkpoints spell it and as `transformers` 5 does.

use marlin_backend::{Activation, RopeStyle};
use serde_json::Value;

use super::{Config, Field, Hyperparameters, RopeConfig, RopeScaling, WindowedLayers, check};
use crate::architectures::{self, Architecture};
use crate::error::ModelError;
use crate::hf::json::Fields;

/// The architecture that the file names, and the fields that describe its language model.
///
/// # Errors
/// [`ModelError::Unsupported`] also for weights that were quantised beforehand: reading them as they are would give
/// nonsense.
pub(crate) fn architecture<'a>(
    fields: Fields<'a>,
) -> Result<(&'static Architecture, Fields<'a>), ModelError> {
    if let Some(quantization) = fields.object("quantization_config")? {
        let field = "quant_method";
        let expected = "weights in bf16, f16 or f32";
        return Err(match quantization.value(field) {
            Some(_) => quantization.unsupported(field, expected),
            None => fields.unsupported("quantization_config", expected),
        });
    }
    let model_type = fields
        .string("model_type")?
        .ok_or_else(|| fields.missing("model_type", "the model's architecture"))?;
    let architecture = Architecture::by_model_type(model_type).ok_or_else(|| {
        let names: Vec<&str> =
            architectures::ALL.iter().flat_map(|a| a.hugging_face).copied().collect();
        fields.unsupported("model_type", format!("one of {}", names.join(", ")))
    })?;
    let fields = fields.object("text_config")?.unwrap_or(fields);
    Ok((architecture, fields.with_defaults(architecture.defaults)))
}

pub(super) fn read(
    architecture: &'static Architecture,
    fields: &Fields<'_>,
) -> Result<Config, ModelError> {
    let required = |name: &str, what: &str| -> Result<usize, ModelError> {
        fields.integer(name)?.ok_or_else(|| fields.missing(name, what))
    };
    let hidden = required("hidden_size", "the width of the model")?;
    let heads = required("num_attention_heads", "the number of heads")?;
    let head_dim = match fields.integer("head_dim")? {
        Some(head_dim) => head_dim,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    let layers = required("num_hidden_layers", "the number of layers")?;
    let eps = "rms_norm_eps";
    let positive = |name: &str| -> Result<Option<f32>, ModelError> {
        Ok(fields.number(name)?.filter(|&cap| cap > 0.0))
    };
    let mut config = Config {
        architecture,
        layers,
        hidden,
        heads,
        kv_heads: fields.integer("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        ffn: required("intermediate_size", "the width of the feed-forward layer")?,
        vocab: required("vocab_size", "the size of the vocabulary")?,
        context: required("max_position_embeddings", "the trained context")?,
        norm_eps: fields.number(eps)?.ok_or_else(|| fields.missing(eps, "a small number"))?,
        norm_offset: 0.0,
        rope: RopeConfig {
            style: RopeStyle::HalfSplit,
            dims: head_dim,
            theta: 0.0,
            scaling: RopeScaling::None,
            local_theta: None,
        },
        window: None,
        attention_scale: (head_dim as f32).sqrt().recip(),
        attention_softcap: positive("attn_logit_softcapping")?,
        logit_softcap: positive("final_logit_softcapping")?,
        embedding_scale: 1.0,
        activation: Activation::Silu,
        tied_embeddings: fields.boolean("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: false,
        qk_norm: false,
    };
    read_rope(fields, &mut config)?;
    (architecture.configure)(&mut config, &Hyperparameters::HuggingFace(fields.clone()))?;
    if let (Some(window), Some(types)) = (&mut config.window, layer_types(fields, layers)?) {
        window.layers = WindowedLayers::Listed(types);
    }
    check_activation(fields, &config)?;
    check(&config, |field, expected| fields.wrong(name_of(field), expected))?;
    Ok(config)
}

fn name_of(field: Field) -> &'static str {
    match field {
        Field::Layers => "num_hidden_layers",
        Field::Hidden => "hidden_size",
        Field::Heads => "num_attention_heads",
        Field::KvHeads => "num_key_value_heads",
        Field::HeadDim => "head_dim",
        Field::Ffn => "intermediate_size",
        Field::Vocab => "vocab_size",
        Field::Context => "max_position_embeddings",
        Field::NormEps => "rms_norm_eps",
        Field::RopeDims => "partial_rotary_factor",
        Field::RopeTheta => "rope_theta",
    }
}

/// `layer_types`: for each layer whether its attention is windowed.
fn layer_types(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let name = "layer_types";
    let Some(list) = fields.list(name)? else {
        return Ok(None);
    };
    if list.len() != layers {
        return Err(fields.wrong(name, format!("one for each of the {layers} layers")));
    }
    let windowed = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    let windowed: Option<Vec<bool>> = list.iter().map(windowed).collect();
    windowed
        .map(Some)
        .ok_or_else(|| fields.unsupported(name, "only `sliding_attention` and `full_attention`"))
}

fn check_activation(fields: &Fields<'_>, config: &Config) -> Result<(), ModelError> {
    let names: &[&str] = match config.activation {
        Activation::Silu => &["silu", "swish"],
        Activation::GeluTanh => &["gelu_pytorch_tanh", "gelu_tanh"],
    };
    for field in ["hidden_activation", "hidden_act"] {
        if let Some(name) = fields.string(field)? {
            if !names.contains(&name) {
                return Err(fields.unsupported(field, format!("`{}`", names[0])));
            }
            break;
        }
    }
    Ok(())
}

/// Base, rotated values and scaling. Older files have `rope_theta` and `rope_scaling`; newer ones `rope_parameters`,
/// which may hold one set for each kind of layer.
fn read_rope(fields: &Fields<'_>, config: &mut Config) -> Result<(), ModelError> {
    let parameters = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let theta = fields.number("rope_theta")?;
    let mut fraction = fields.number("partial_rotary_factor")?;
    let Some(parameters) = parameters else {
        config.rope.theta = theta.ok_or_else(|| fields.missing("rope_theta", "a rotary base"))?;
        return set_rotated(fields, config, fraction);
    };
    let global = match parameters.object("full_attention")? {
        Some(global) => global,
        None => parameters.clone(),
    };
    if let Some(local) = parameters.object("sliding_attention")? {
        if local.string("rope_type")?.is_some_and(|kind| kind != "default") {
            return Err(local.unsupported("rope_type", "`default` for windowed layers"));
        }
        config.rope.local_theta = local.number("rope_theta")?;
    }
    let own_theta = global.number("rope_theta")?.or(theta);
    config.rope.theta = own_theta.ok_or_else(|| global.missing("rope_theta", "a rotary base"))?;
    fraction = global.number("partial_rotary_factor")?.or(fraction);
    config.rope.scaling = scaling(&global, config.context)?;
    set_rotated(fields, config, fraction)
}

fn set_rotated(
    fields: &Fields<'_>,
    config: &mut Config,
    fraction: Option<f32>,
) -> Result<(), ModelError> {
    if let Some(fraction) = fraction {
        if !(fraction > 0.0 && fraction <= 1.0) {
            let name = "partial_rotary_factor";
            return Err(fields.wrong(name, format!("a number from 0 to 1, found {fraction}")));
        }
        config.rope.dims = (config.head_dim as f32 * fraction) as usize;
    }
    Ok(())
}

fn scaling(fields: &Fields<'_>, context: usize) -> Result<RopeScaling, ModelError> {
    let positive = |name: &str| -> Result<Option<f32>, ModelError> {
        match fields.number(name)? {
            Some(number) if number <= 0.0 => Err(fields.wrong(name, "a positive number")),
            number => Ok(number),
        }
    };
    let required = |name: &str| -> Result<f32, ModelError> {
        positive(name)?.ok_or_else(|| fields.missing(name, "a positive number"))
    };
    let type_field = if fields.value("rope_type").is_some() { "rope_type" } else { "type" };
    match fields.string(type_field)? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: required("factor")? }),
        Some("llama3") => {
            let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if high <= low {
                let expected = format!("a number above low_freq_factor ({low})");
                return Err(fields.wrong("high_freq_factor", expected));
            }
            Ok(RopeScaling::Llama3 {
                factor: required("factor")?,
                low,
                high,
                original: required("original_max_position_embeddings")?,
            })
        }
        Some("yarn") => {
            for name in ["mscale", "mscale_all_dim"] {
                if fields.value(name).is_some() {
                    return Err(fields.unsupported(name, "`attention_factor` or neither"));
                }
            }
            let original = positive("original_max_position_embeddings")?;
            Ok(RopeScaling::Yarn {
                factor: required("factor")?,
                original: original.unwrap_or(context as f32),
                beta_fast: positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: positive("beta_slow")?.unwrap_or(1.0),
                attention_factor: positive("attention_factor")?,
            })
        }
        Some(_) => Err(fields.unsupported(type_field, "default, linear, llama3 or yarn")),
    }
}
