//! GPU kernels, written once in the Metal dialect of C++ (`docs/kernels.md`), and what the build
//! makes of them: typed launchers, binding indices and access patterns, all read from the
//! kernels' signatures.
//!
//! Nothing here runs a kernel. A launcher turns typed views into a [`Dispatch`]; the devices of `marlin-gpu`
//! run dispatches.

mod cuda_entry;
mod element;
#[cfg(feature = "emulated")]
mod host;
mod kernel;
mod launch;
pub mod signature;
mod source;

#[allow(missing_docs, clippy::all, reason = "generated; documented where the kernels are written")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/launchers.rs"));
}

/// Kernels that test the emulated device, most of them wrong in one way.
#[cfg(feature = "emulated")]
#[allow(
    missing_docs,
    dead_code,
    clippy::all,
    reason = "generated; documented where the kernels are written"
)]
pub mod test_kernels {
    include!(concat!(env!("OUT_DIR"), "/test_launchers.rs"));
}

pub use element::{Atomic, Element};
pub use generated::*;
#[cfg(feature = "emulated")]
pub use host::{HostKernel, HostLaunch, HostRegion, HostState, host_entry, region_flags};
pub use kernel::{
    ConstantValues, Kernel, KernelParameter, MAX_CONSTANTS, Ordered, PipelineKey, TypeParameter,
};
pub use launch::{
    Allocation, Argument, BindError, Dispatch, Grid, InlineBytes, Launch, View, ViewMut,
};
pub use source::{SourceFile, Target, source, text};
