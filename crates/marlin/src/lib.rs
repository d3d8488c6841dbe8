//! Quantised LLM inference whose every buffer placement and copy can be audited.
//!
//! Load a model, make a session, generate:
//!
//! ```no_run
//! use std::io::Write;
//! use std::ops::ControlFlow;
//!
//! use metal_marlin::pull::{ModelReference, Puller, Settings, Silent};
//! use metal_marlin::{GenerateOptions, Message, Model, ModelOptions, SessionOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let reference = ModelReference::parse("smollm2-135m")?;
//! let path = Puller::new(Settings::from_env()?).resolve(&reference, &Silent)?;
//! let model = Model::load(&path, &ModelOptions::default())?;
//! let mut session = model.session(SessionOptions::default())?;
//! let prompt = model.encode_chat(&[Message::new("user", "Why is the sky blue?")])?;
//! let answer = session.generate(&prompt, &GenerateOptions::default(), &mut |text| {
//!     print!("{text}");
//!     let _ = std::io::stdout().flush();
//!     ControlFlow::Continue(())
//! })?;
//! println!("\n{} tokens in {:?}", answer.tokens.len(), answer.decode);
//! # Ok(())
//! # }
//! ```
//!
//! This crate puts the parts together; each is a crate of its own: `marlin-engine` (models,
//! sessions), `marlin-models` (files, tokenizers, architectures), `marlin-cpu`, `marlin-backend`,
//! `marlin-formats` and `marlin-placement`.

pub mod benchmark;
pub mod perplexity;
#[cfg(feature = "pull")]
pub mod pull;
pub mod random_model;

pub use marlin_engine::{
    Activations, Ceilings, DeviceChoice, EngineError, GenerateOptions, Generated, KvFormat, Model,
    ModelOptions, Request, SamplingSettings, Session, SessionOptions, StopReason, open_device,
};
pub use marlin_models::{Config, Message, ModelError, ModelSource, Tokenizer};
pub use marlin_placement::audit::{Budget, BudgetLine, RunAudit};
pub use marlin_placement::{Ledger, LedgerReport};
