//! The architectures: what sets each apart, and its forward pass.

mod forward;
mod gemma3;
mod llama;
mod qwen2;
mod qwen3;

use marlin_backend::{Program, RopeStyle};

use crate::config::{Config, Hyperparameters};
use crate::error::ModelError;
pub(crate) use forward::Forward;
pub use forward::Place;

/// What sets an architecture apart from the others. A new one is a file in this folder and a line in [`ALL`].
#[derive(Debug)]
pub struct Architecture {
    /// Its name in GGUF (`general.architecture`).
    pub name: &'static str,
    /// Its names in Hugging Face's `config.json` (`model_type`).
    pub(crate) hugging_face: &'static [&'static str],
    /// Which values GGUF files' queries and keys rotate together. Hugging Face's are always half-split.
    pub(crate) gguf_rope_style: RopeStyle,
    /// Numbers that `config.json` may leave out (`transformers`' configuration classes).
    pub(crate) defaults: &'static [(&'static str, f64)],
    /// Hugging Face's names of a layer's parts, and the canonical (GGUF's) ones.
    pub(crate) layer_names: &'static [(&'static str, &'static str)],
    /// Sets what the files do not say in the same way for every architecture.
    pub(crate) configure: fn(&mut Config, &Hyperparameters<'_>) -> Result<(), ModelError>,
    /// Records the forward pass.
    pub(crate) forward: fn(Forward<'_>) -> Result<Program, ModelError>,
}

/// Every architecture.
pub static ALL: [&Architecture; 4] = [&llama::LLAMA, &qwen2::QWEN2, &qwen3::QWEN3, &gemma3::GEMMA3];

/// The parts of a layer that all of them have.
const COMMON_NAMES: [(&str, &str); 8] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

impl Architecture {
    /// The architecture that GGUF calls `name`.
    pub fn by_gguf_name(name: &str) -> Option<&'static Architecture> {
        ALL.into_iter().find(|architecture| architecture.name == name)
    }

    /// The architecture that Hugging Face calls `model_type`.
    pub fn by_model_type(model_type: &str) -> Option<&'static Architecture> {
        ALL.into_iter().find(|architecture| architecture.hugging_face.contains(&model_type))
    }

    /// The canonical name of a tensor that Hugging Face calls `name`; names without one stay as they are.
    pub fn canonical_name(&self, name: &str) -> String {
        self.rename(name).unwrap_or_else(|| name.to_owned())
    }

    fn rename(&self, name: &str) -> Option<String> {
        // The language part of a model for text and images has one more name in front.
        let name = name.strip_prefix("language_model.").unwrap_or(name);
        let name = name.strip_prefix("model.").unwrap_or(name);
        let name = name.strip_prefix("language_model.").unwrap_or(name);
        let (part, suffix) = name.rsplit_once('.')?;
        if !["weight", "bias"].contains(&suffix) {
            return None;
        }
        let canonical = match part {
            "embed_tokens" => "token_embd".to_owned(),
            "norm" => "output_norm".to_owned(),
            "lm_head" => "output".to_owned(),
            _ => {
                let (layer, part) = part.strip_prefix("layers.")?.split_once('.')?;
                let number: u32 = layer.parse().ok()?;
                let (_, canonical) = COMMON_NAMES
                    .iter()
                    .chain(self.layer_names)
                    .find(|(hugging_face, _)| *hugging_face == part)?;
                format!("blk.{number}.{canonical}")
            }
        };
        Some(format!("{canonical}.{suffix}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hugging_face_names_become_ggufs() {
        for (architecture, name, canonical) in [
            (&llama::LLAMA, "model.embed_tokens.weight", "token_embd.weight"),
            (&llama::LLAMA, "model.norm.weight", "output_norm.weight"),
            (&llama::LLAMA, "lm_head.weight", "output.weight"),
            (&llama::LLAMA, "model.layers.7.mlp.down_proj.weight", "blk.7.ffn_down.weight"),
            (
                &llama::LLAMA,
                "model.layers.7.post_attention_layernorm.weight",
                "blk.7.ffn_norm.weight",
            ),
            (&qwen2::QWEN2, "model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias"),
            (&qwen3::QWEN3, "model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight"),
            (
                &gemma3::GEMMA3,
                "language_model.model.layers.1.post_attention_layernorm.weight",
                "blk.1.post_attention_norm.weight",
            ),
            (
                &gemma3::GEMMA3,
                "model.language_model.layers.1.pre_feedforward_layernorm.weight",
                "blk.1.ffn_norm.weight",
            ),
            // Not a weight of the language model: stays as it is.
            (&gemma3::GEMMA3, "vision_tower.embeddings.weight", "vision_tower.embeddings.weight"),
        ] {
            assert_eq!(architecture.canonical_name(name), canonical);
        }
    }
}
