//! The ops of a forward pass as dispatches: for each kernel, which grid and constants it runs with.

pub mod linear;
