//! The CPU backend: quantised matrix products on packed weights, for AVX-512 VNNI, AVX2,
//! NEON and plain Rust.
mod isa;
mod kernels;
mod pool;
mod simd;
pub use isa::{ISA_VARIABLE, Isa, IsaError};
