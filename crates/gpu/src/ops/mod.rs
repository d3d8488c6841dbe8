//! The ops of a forward pass as dispatches: for each kernel, which grid and constants it runs with.

pub mod activation;
pub mod attention;
pub mod attention_append;
mod attention_reduce;
mod attention_shape;
pub mod dequant_groups;
pub mod embed;
mod fragment_weights;
pub(crate) mod gemm_batch;
mod gemm_shape;
pub mod hadamard;
pub mod kv_cache;
mod lengths;
pub mod linear;
pub mod mla;
pub mod moe;
pub mod norm;
pub mod pack;
pub mod quantise_activations;
pub mod rope;
pub mod rope_append;
pub mod sample;
pub mod step;
mod vectors;
