//! Gemma 3 (Gemma Team 2025), text only: five windowed layers to each full one, each kind with a rotary base of its
//! own; norms on query and key heads and after attention and feed-forward; scaled embeddings.

use marlin_backend::{Activation, Program, RopeStyle};

use super::{Architecture, Forward};
use crate::config::{Hyperparameters, SlidingWindow, WindowedLayers};
use crate::error::ModelError;

/// Layers of the 27B model, the only one whose scores are not scaled by the size of a head.
const LAYERS_OF_27B: usize = 62;
/// Rotary base of windowed layers.
const LOCAL_THETA: f32 = 10_000.0;
/// Every so many-th layer sees everything.
const WINDOW_PATTERN: usize = 6;

pub(super) static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    hugging_face: &["gemma3_text", "gemma3"],
    gguf_rope_style: RopeStyle::HalfSplit,
    defaults: &[
        ("head_dim", 256.0),
        ("hidden_size", 2304.0),
        ("intermediate_size", 9216.0),
        ("max_position_embeddings", 131_072.0),
        ("num_attention_heads", 8.0),
        ("num_hidden_layers", 26.0),
        ("num_key_value_heads", 4.0),
        ("query_pre_attn_scalar", 256.0),
        ("rms_norm_eps", 1e-6),
        ("rope_local_base_freq", LOCAL_THETA as f64),
        ("rope_theta", 1_000_000.0),
        ("sliding_window", 4096.0),
        ("vocab_size", 262_208.0),
    ],
    layer_names: &[
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ],
    configure: |config, parameters| {
        config.qk_norm = true;
        config.activation = Activation::GeluTanh;
        config.embedding_scale = (config.hidden as f32).sqrt();
        let (size, pattern, local_theta, scalar) = match parameters {
            Hyperparameters::Gguf(keys) => {
                // The file does not hold the scale's divisor; llama.cpp knows the exception by its layers, too.
                let scalar = match config.layers {
                    LAYERS_OF_27B => config.hidden / config.heads,
                    _ => config.head_dim,
                };
                let local_theta = keys.number("rope.freq_base_swa")?;
                let window = keys.integer("attention.sliding_window")?;
                (window, keys.window_pattern()?, local_theta, scalar as f32)
            }
            Hyperparameters::HuggingFace(fields) => {
                // In Hugging Face's files norm weights are stored less 1; the conversion to GGUF adds it.
                config.norm_offset = 1.0;
                let pattern = fields.integer("sliding_window_pattern")?.map(WindowedLayers::AllBut);
                let scalar = fields.number("query_pre_attn_scalar")?.filter(|&scalar| scalar > 0.0);
                let scalar = scalar
                    .ok_or_else(|| fields.wrong("query_pre_attn_scalar", "a positive number"))?;
                let local_theta = fields.number("rope_local_base_freq")?;
                (fields.integer("sliding_window")?, pattern, local_theta, scalar)
            }
        };
        config.attention_scale = scalar.sqrt().recip();
        let pattern = pattern.unwrap_or(WindowedLayers::AllBut(WINDOW_PATTERN));
        config.window = SlidingWindow::new(size, pattern);
        // A base that the configuration gave for windowed layers (`rope_parameters`) comes first.
        config.rope.local_theta = config.rope.local_theta.or(local_theta).or(Some(LOCAL_THETA));
        Ok(())
    },
    forward,
};

/// A decoder with norms before and after both attention and the feed-forward layer.
fn forward(mut f: Forward<'_>) -> Result<Program, ModelError> {
    let x = f.embed()?;
    for layer in 0..f.config.layers {
        let h = f.rms_norm(x, layer, "attn_norm")?;
        let h = f.attention(h, layer)?;
        let h = f.attention_output(h, layer)?;
        f.add_rms_norm(h, layer, "post_attention_norm", x)?;
        let h = f.rms_norm(x, layer, "ffn_norm")?;
        let h = f.gated(h, layer)?;
        let h = f.down(h, layer)?;
        f.add_rms_norm(h, layer, "post_ffw_norm", x)?;
    }
    f.logits(x)
}
