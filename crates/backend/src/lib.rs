//! The interface between forward passes, which are written once, and the devices that run them.
//!
//! A model's forward pass is a [`Program`]: a list of [`Op`]s over activation tensors,
//! weights and KV caches, recorded once through a [`ProgramBuilder`] when a session is made
//! and replayed at every step. A recorded program, rather than a call per op, is what lets
//! the CPU backend run a whole step inside one fork of its threads, and a GPU backend record
//! one command list per step.
//!
//! A [`Backend`] places weights ([`Backend::place`]) and compiles programs into
//! [`Executor`]s, which own the activations and the KV cache and run [`Batch`]es of tokens
//! from any number of sequences.

mod batch;
mod bytes;
mod error;
mod executor;
mod liveness;
mod philox;
mod program;
mod sampling;
mod union;
mod weight;

pub use batch::{Batch, StepToken};
pub use bytes::{HostBytes, HostOwner};
pub use error::BackendError;
pub use executor::{Backend, Ceilings, Executor, ExecutorOptions, KvFormat, TunedProduct};
pub use liveness::assign_slots;
pub use philox::{philox4x32, uniform};
pub use program::{
    Activation, AttentionSpec, CacheId, CacheInfo, LinearPart, Norm, Op, Program, ProgramBuilder,
    Rope, RopeStyle, Rows, Tensor, TensorInfo,
};
pub use sampling::SamplingSettings;
pub use union::{MatrixOf, Union, stacks};
pub use weight::{FragmentBytes, Weight, WeightSource, WeightStorage};
