//! Benchmarks of kernels on a device.
//!
//! Every figure is the median of several submissions of a command list that runs the kernel many times,
//! over copies of its operands that do not fit the caches together, divided by how often it ran. Ceilings are
//! measured the same way in the same run, and the floor of a kernel is the larger of its bytes over the
//! read ceiling and, where it multiplies, nothing else: these kernels are bound by memory.

mod cases;
mod ceilings;
mod timing;

pub use cases::{BenchOptions, KernelResult, Selection, run};
pub use ceilings::{Ceilings, backend_ceilings, measure as measure_ceilings, measure_multiply};
