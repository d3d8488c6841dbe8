//! Devices that run the kernels of `marlin-kernels`.
//!
//! [`Device`] is small: memory placed by the policy, pipelines, command lists. Everything above it
//! is written once. Each device has a folder with the same file names:
//!
//! | device | feature | runs on |
//! |---|---|---|
//! | `cuda` | `cuda` | NVIDIA GPUs; driver and NVRTC are loaded when asked for, nothing is linked |
//! | `metal` | `metal` | GPUs of Apple silicon; on other systems only a double of Metal that records its calls, for tests |
//! | `emulated` | `emulated` | the CPU, through a C++ compiler at build time; stricter than hardware |

pub mod bench;
mod command;
#[cfg(all(feature = "cuda", any(target_os = "linux", windows)))]
pub mod cuda;
mod device;
#[cfg(feature = "emulated")]
pub mod emulated;
mod error;
pub mod hazards;
mod kernel_cache;
#[cfg(all(feature = "metal", any(target_vendor = "apple", feature = "metal-double")))]
pub mod metal;
pub mod model;
pub mod ops;
pub mod selftest;
pub mod tuning;

pub use command::{Command, CommandList, Region};
pub use device::{Buffer, Completed, Device, DeviceProperties, Recording, Submission};
pub use error::GpuError;
