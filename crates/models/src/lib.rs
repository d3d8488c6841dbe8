//! Model files: weights, configuration, tokenizer and chat template, from GGUF files and Hugging Face folders, and
//! the architectures' forward passes.
//!
//! Start with [`ModelSource::open`]. Whatever the kind of file, it gives one [`Config`], the tensors under one naming
//! (GGUF's: `token_embd.weight`, `blk.0.attn_q.weight`, …), a [`Tokenizer`] and a [`ChatTemplate`]. Weights stay in
//! the mapped file; nothing copies them here.
//!
//! Files are not trusted. Whatever is in them ends in a [`ModelError`] that names file, place, what was found and
//! what was expected: never in a panic, and never in an allocation that the file's size does not justify.

pub mod architectures;
pub mod chat;
mod config;
mod error;
pub mod gguf;
mod hf;
mod mapped;
mod packed;
mod source;
mod tensor;
pub mod tokenizer;

pub use architectures::Architecture;
pub use chat::{ChatOptions, ChatTemplate, Message, TemplateError};
pub use config::{Config, RopeConfig, RopeScaling, SlidingWindow, WindowedLayers};
pub use error::{At, ModelError};
pub use packed::{PackOptions, PackProgress, PackSummary, pack};
pub use source::ModelSource;
pub use tensor::{StoredTensor, TensorTable};
pub use tokenizer::{Detokenizer, SpecialTokens, TokenizeError, Tokenizer};
