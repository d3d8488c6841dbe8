//! Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases on queries, keys and values.

use marlin_backend::RopeStyle;

use super::{Architecture, llama};
use crate::config::{Config, Hyperparameters, SlidingWindow, WindowedLayers};
use crate::error::ModelError;

pub(super) static QWEN2: Architecture = Architecture {
    name: "qwen2",
    hugging_face: &["qwen2"],
    gguf_rope_style: RopeStyle::HalfSplit,
    defaults: &[("rms_norm_eps", 1e-6), ("rope_theta", 10_000.0), ("num_key_value_heads", 32.0)],
    layer_names: &[("post_attention_layernorm", "ffn_norm")],
    configure: upper_layers_windowed,
    forward: llama::forward,
};

/// Qwen's sliding window: off unless asked for, then on the layers from `max_window_layers` on.
pub(super) fn upper_layers_windowed(
    config: &mut Config,
    parameters: &Hyperparameters<'_>,
) -> Result<(), ModelError> {
    let Hyperparameters::HuggingFace(fields) = parameters else {
        return Ok(());
    };
    if fields.boolean("use_sliding_window")? == Some(true) {
        let size = fields.integer("sliding_window")?.or(Some(4096));
        let first = fields.integer("max_window_layers")?.unwrap_or(28);
        config.window = SlidingWindow::new(size, WindowedLayers::From(first));
    }
    Ok(())
}
