//! Sessions over a model: batches, the KV cache, sampling settings, streamed text.
//!
//! [`Model::load`] opens a file, places its weights on a device and records the forward
//! pass. [`Model::session`] makes everything that running needs, once; after that a
//! decode step allocates nothing. [`Session::generate`] continues one prompt and
//! [`Session::generate_batch`] several at once: each step takes whatever every sequence has
//! to offer, a chunk of its prompt or its latest token. [`Session::audit`] says what it all cost.

mod audit;
mod device;
mod error;
mod model;
mod session;
mod stream;

pub use device::{Activations, DeviceChoice, open_device};
pub use error::EngineError;
pub use marlin_backend::{Ceilings, KvFormat, SamplingSettings};
pub use marlin_cpu::Isa;
pub use marlin_placement::audit::{Budget, RunAudit};
pub use model::{Model, ModelOptions, PassedOver, Progress};
pub use session::{GenerateOptions, Generated, Request, Session, SessionOptions, StopReason};
