//! NVIDIA GPUs through the CUDA driver, with kernels compiled at run time by NVRTC. Nothing is linked:
//! both libraries are loaded when a device is asked for, and a machine without them gets an error that
//! says what was looked for.
//!
//! | [`StorageMode`](marlin_placement::StorageMode) | here |
//! |---|---|
//! | `Private` | device memory |
//! | `Managed` | device memory, and a mirror on the host; `did_modify` copies the range through pinned staging memory in the order of the stream |
//! | `Shared` | pinned host memory that kernels reach over the bus |
//! | `Inline` | kernel arguments |
//! | adopted | the host's own memory, registered with the driver for as long as the allocation lives |
//!
//! A recording is a CUDA graph; its submissions run one after the other on the device's only stream.
//!
//! Source of the driver's interface: *CUDA Driver API Reference*, version 12.0 and later; of the
//! compiler's: *NVRTC*, version 11.2 and later.

mod buffer;
mod commands;
mod context;
mod cubin_cache;
mod device;
mod driver;
mod nvrtc;
mod pipeline;
mod registration;
mod staging;

pub use device::{Cuda, Settings, devices};
pub use nvrtc::{Architecture, Compiled, NVRTC_VARIABLE, Nvrtc};
pub use pipeline::{PipelineStatistics, Variant, compile};

/// The name in errors and in [`DeviceProperties::kind`](crate::DeviceProperties::kind).
pub(crate) const KIND: &str = "cuda";
