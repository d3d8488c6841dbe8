//! Devices for the tests of kernels. A test file of kernels starts with `mod common;` and runs its cases on
//! every device of
//!
//! * [`devices`]`() -> Vec<Box<dyn Device>>`: emulated devices with SIMD-groups of 8, 16, 32 and 64 threads, with
//!   unified and discrete memory in turn;
//! * with the feature `cuda` and `MARLIN_TEST_DEVICE=cuda` in the environment, the first NVIDIA GPU instead;
//! * [`devices_of_width`]`(32)`: those of one width, for kernels with `REQUIRES_SIMD_WIDTH`.
//!
//! Each is a device of its own, so tests run side by side. Values go in with `device.upload_new("x", &values)?`,
//! results come back with `device.download_all(&buffer)?`; [`run`] records, submits and waits for one launcher;
//! [`output`] is a buffer that only kernels write. Fresh memory reads as NaN on the host (bytes 0xff).

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate of its own and uses a part"
)]

use marlin_gpu::emulated::{Emulated, EmulatedOptions};
use marlin_gpu::{Buffer, CommandList, Device, GpuError};
use marlin_kernels::{Element, Grid, Launch};
use marlin_placement::AccessPattern;

/// An emulated device.
pub fn emulated(simd_width: u32, unified: bool) -> Box<dyn Device> {
    let options = EmulatedOptions { simd_width, unified, ..EmulatedOptions::default() };
    Box::new(Emulated::new(options).expect("an emulated device"))
}

/// The first NVIDIA GPU, where `MARLIN_TEST_DEVICE=cuda` asks for it.
#[cfg(all(feature = "cuda", any(target_os = "linux", windows)))]
fn gpu() -> Option<Box<dyn Device>> {
    let asked = std::env::var_os("MARLIN_TEST_DEVICE").is_some_and(|device| device == "cuda");
    asked.then(|| -> Box<dyn Device> {
        Box::new(marlin_gpu::cuda::Cuda::open(0).expect("an NVIDIA GPU, its driver and NVRTC"))
    })
}

/// None in this build.
#[cfg(not(all(feature = "cuda", any(target_os = "linux", windows))))]
fn gpu() -> Option<Box<dyn Device>> {
    None
}

/// Every device that kernels are tested on; with `MARLIN_TEST_DEVICE=cuda` the GPU alone.
pub fn devices() -> Vec<Box<dyn Device>> {
    if let Some(gpu) = gpu() {
        return vec![gpu];
    }
    [(8, true), (16, false), (32, true), (64, false)]
        .into_iter()
        .map(|(width, unified)| emulated(width, unified))
        .collect()
}

/// Those of [`devices`] with SIMD-groups of `width` threads.
pub fn devices_of_width(width: u32) -> Vec<Box<dyn Device>> {
    devices().into_iter().filter(|d| d.properties().simd_width == width).collect()
}

/// Runs one launcher over `grid` and waits.
pub fn run(device: &dyn Device, launcher: impl Launch, grid: Grid) -> Result<(), GpuError> {
    let mut commands = CommandList::new("test");
    commands.launch(launcher, grid);
    device.run(commands).map(|_| ())
}

/// `len` elements that only the device uses, uninitialised.
pub fn output<T: Element>(device: &dyn Device, len: usize) -> Buffer<T> {
    device.allocate("output", len, AccessPattern::DEVICE_ONLY).expect("room for an output")
}
