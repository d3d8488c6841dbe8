//! The key/value cache and attention over it, against sums in f64.

mod cache;
#[path = "../common/mod.rs"]
mod common;
mod decode;
mod filled;
mod prefill;
mod query;
#[path = "../common/sequences.rs"]
mod sequences;
#[path = "../common/values.rs"]
mod values;

use marlin_gpu::ops::kv_cache::{KvLayout, KvStorage};

fn layout(storage: KvStorage, kv_heads: u32, head_dim: u32) -> KvLayout {
    KvLayout::new(storage, kv_heads, head_dim).unwrap()
}
