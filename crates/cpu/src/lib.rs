//! The CPU backend of metal-marlin: quantised matrix products on packed weights, for
//! AVX-512 VNNI, AVX2, NEON and plain Rust.
//!
//! [`CpuBackend`] implements `marlin_backend::Backend`. Quantised weights are repacked once,
//! when they are placed, into tiles of sixteen rows (`marlin_formats::tile`); floats are
//! read where they lie in the file. A whole dequantised matrix is never made.
//!
//! A step runs on all threads at once: they fork once, work through the program's stages,
//! and meet at a barrier between them. In steady state a step allocates nothing.

mod backend;
mod executor;
mod isa;
mod kernels;
mod memory;
mod pool;
mod sampler;
mod simd;
mod weight;

pub use backend::{CpuBackend, CpuError};
pub use isa::{ISA_VARIABLE, Isa, IsaError};
