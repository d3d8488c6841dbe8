//! Quantised LLM inference whose every buffer placement and copy can be audited.

#[cfg(feature = "pull")]
pub mod pull;
