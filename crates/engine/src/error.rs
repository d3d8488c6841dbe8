//! What can go wrong between a prompt and its answer.

use marlin_backend::BackendError;
use marlin_cpu::CpuError;
use marlin_models::{ModelError, TemplateError, TokenizeError};

/// An error of loading or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model's file.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The CPU backend could not be made.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// There is no such device here.
    #[error("no {device} device: {reason}")]
    NoDevice {
        /// `cuda`, `metal`, `emulated`.
        device: &'static str,
        /// What was looked for and not found.
        reason: String,
    },
    /// A GPU could not be opened.
    #[cfg(any(feature = "cuda", feature = "metal", feature = "emulated"))]
    #[error(transparent)]
    Gpu(#[from] marlin_gpu::GpuError),
    /// The tokenizer refused a text.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
    /// The chat template refused a conversation.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// There is nothing to continue.
    #[error("the prompt has no tokens, expected at least one")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {tokens} tokens, but the context holds {context}: expected fewer, or a larger --ctx"
    )]
    PromptTooLong {
        /// Its tokens.
        tokens: usize,
        /// Positions of the session.
        context: usize,
    },
    /// More sequences at once than the session was made for.
    #[error("{found} prompts at once, but this session was made for {limit}")]
    TooManySequences {
        /// How many were given.
        found: usize,
        /// How many fit.
        limit: usize,
    },
}
