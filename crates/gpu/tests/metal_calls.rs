//! What Metal is asked, call by call, for a decode step and everything around it. The double of Metal writes the calls
//! down; everything above it is the code that runs on a Mac.

#[path = "metal_calls/decode_step.rs"]
mod decode_step;
#[path = "metal_calls/errors.rs"]
mod errors;
#[path = "metal_calls/memory.rs"]
mod memory;
#[path = "metal_calls/model.rs"]
mod model;
#[path = "metal_calls/packed.rs"]
mod packed;
#[path = "metal_calls/pipelines.rs"]
mod pipelines;

use std::sync::Arc;

use marlin_gpu::metal::double::{Call, Double, Options};
use marlin_gpu::metal::{MetalDevice, Settings};
use marlin_gpu::{Device, Region};
use marlin_kernels::Allocation;

/// No cache folder, so that tests do not meet.
fn settings() -> Settings {
    Settings { index: 0, cache_folder: None, signposts: false }
}

/// A device over the double, and the double.
fn device(options: Options) -> (Box<dyn Device>, Double) {
    let double = Double::new(options);
    let device = MetalDevice::over(double.clone(), &settings()).expect("a device");
    double.take_calls();
    (Box::new(device), double)
}

/// A GPU with memory of its own, which `Managed` is for.
fn discrete() -> Options {
    let mut options = Options::default();
    options.description.unified = false;
    options
}

fn text(calls: &[Call]) -> Vec<String> {
    calls.iter().map(Call::to_string).collect()
}

fn region(allocation: &Arc<dyn Allocation>, offset: u64, bytes: u64) -> Region {
    Region { allocation: allocation.clone(), offset, bytes }
}
