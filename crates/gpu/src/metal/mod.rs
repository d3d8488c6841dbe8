//! GPUs of Apple silicon (Apple GPU family 7, M1, and later) through Metal.
//!
//! | [`StorageMode`](marlin_placement::StorageMode) | here |
//! |---|---|
//! | `Private` | private memory, filled by blits from a ring of shared staging buffers |
//! | `Managed` | shared memory on unified memory; otherwise managed memory, `did_modify` is `didModifyRange:` |
//! | `Shared` | shared memory |
//! | `Inline` | `setBytes:length:atIndex:` |
//! | adopted | `newBufferWithBytesNoCopy:…` over the host's own pages |
//!
//! A recording holds the calls of its commands, worked out once; a submission is one command buffer, in which all dispatches between
//! two copies or fills share one concurrent encoder with barriers only where [`hazards`](crate::hazards) finds
//! them needed. Between encoders and command buffers Metal's own hazard tracking keeps the order.
//!
//! Everything but the calls themselves is above [`api`]: the same code runs over Apple's Metal and, in tests on
//! any system, over `double`, which records what it is asked.
//!
//! Sources: *Metal API reference* and its headers (macOS 26 SDK, as `objc2-metal` has them), *Metal Shading Language
//! Specification* (MSL), *Metal Feature Set Tables*.

pub mod api;
mod archive_cache;
mod buffer;
mod check;
mod commands;
mod context;
mod device;
#[cfg(feature = "metal-double")]
pub mod double;
mod encoding;
#[cfg(target_vendor = "apple")]
pub mod objc;
mod pipeline;
mod residency;
mod staging;
mod timeline;

pub use device::{MetalDevice, Settings};
#[cfg(target_vendor = "apple")]
pub use objc::{Metal, devices, system_version};
pub use pipeline::PipelineStatistics;

/// The name in errors and in [`DeviceProperties::kind`](crate::DeviceProperties::kind).
pub(crate) const KIND: &str = "metal";
