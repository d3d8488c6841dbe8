//! Qwen3 (Yang et al. 2025): Qwen2 with norms on query and key heads instead of biases.

use marlin_backend::RopeStyle;

use super::{Architecture, llama, qwen2};

pub(super) static QWEN3: Architecture = Architecture {
    name: "qwen3",
    hugging_face: &["qwen3"],
    gguf_rope_style: RopeStyle::HalfSplit,
    defaults: &[
        ("head_dim", 128.0),
        ("num_key_value_heads", 32.0),
        ("rms_norm_eps", 1e-6),
        ("rope_theta", 10_000.0),
    ],
    layer_names: &[
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
    ],
    configure: |config, parameters| {
        config.qk_norm = true;
        qwen2::upper_layers_windowed(config, parameters)
    },
    forward: llama::forward,
};
