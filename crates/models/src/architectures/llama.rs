//! Llama 2 and 3, SmolLM2, Mistral (Touvron et al. 2023; Jiang et al. 2023).

use marlin_backend::{Program, RopeStyle};

use super::{Architecture, Forward};
use crate::config::{Hyperparameters, SlidingWindow, WindowedLayers};
use crate::error::ModelError;

pub(super) static LLAMA: Architecture = Architecture {
    name: "llama",
    hugging_face: &["llama", "mistral"],
    // The conversion to GGUF reorders the rows of queries and keys from Hugging Face's order back to the paper's.
    gguf_rope_style: RopeStyle::Interleaved,
    defaults: &[("rms_norm_eps", 1e-6), ("rope_theta", 10_000.0)],
    layer_names: &[("post_attention_layernorm", "ffn_norm")],
    configure: |config, parameters| {
        let size = match parameters {
            Hyperparameters::Gguf(keys) => keys.integer("attention.sliding_window")?,
            // Mistral's configuration class has a window unless the file says `null`.
            Hyperparameters::HuggingFace(fields)
                if fields.string("model_type")? == Some("mistral") =>
            {
                let default = (!fields.has("sliding_window")).then_some(4096);
                fields.integer("sliding_window")?.or(default)
            }
            Hyperparameters::HuggingFace(_) => None,
        };
        config.window = SlidingWindow::new(size, WindowedLayers::All);
        Ok(())
    },
    forward,
};

/// A decoder with norms before attention and before the feed-forward layer.
pub(super) fn forward(mut f: Forward<'_>) -> Result<Program, ModelError> {
    let x = f.embed()?;
    for layer in 0..f.config.layers {
        let h = f.rms_norm(x, layer, "attn_norm")?;
        let h = f.attention(h, layer)?;
        f.add_attention_output(h, layer, x)?;
        let h = f.rms_norm(x, layer, "ffn_norm")?;
        let h = f.gated(h, layer)?;
        f.add_down(h, layer, x)?;
    }
    f.logits(x)
}
