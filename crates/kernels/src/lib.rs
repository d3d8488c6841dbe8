//! GPU kernels, written once in the Metal dialect of C++ (`docs/kernels.md`), and what the build
//! makes of them: typed launchers, binding indices and access patterns, all read from the
//! kernels' signatures.
//!
//! Nothing here runs a kernel. A launcher turns typed views into a [`Dispatch`]; the devices of `marlin-gpu`
//! run dispatches.

mod cuda_entry;
mod element;
mod kernel;
mod launch;
pub mod signature;
mod source;

#[allow(missing_docs, clippy::all, reason = "generated; documented where the kernels are written")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/launchers.rs"));
}

pub use element::{Atomic, Element};
pub use generated::*;
pub use kernel::{
    ConstantValues, Kernel, KernelParameter, MAX_CONSTANTS, Ordered, PipelineKey, TypeParameter,
};
pub use launch::{
    Allocation, Argument, BindError, Dispatch, Grid, InlineBytes, Launch, View, ViewMut,
};
pub use source::{SourceFile, Target, source};
